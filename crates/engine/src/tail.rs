//! The stored form of a key's version: the fields of etcd's `mvccpb.KeyValue` after the
//! key, in protobuf encoding.
//!
//! Kept encoded because every consumer wants those bytes: a range or watch answer is
//! `0x0a len key` plus this, and etcd's HashKV is a CRC over the same. One allocation a
//! version, made when the revision is stamped; the value is not copied again afterwards.

use std::sync::Arc;

/// A key, shared by index, history and answers.
pub type Key = Arc<[u8]>;

/// The fields of a stored version; the default is what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// Revision of the key's creation.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Number of puts since the creation.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// Lease, 0 for none.
    pub lease: i64,
}

/// Protobuf field tags of `KeyValue` 1 to 6 (wire type in the low three bits).
const KEY: u8 = 0x0a;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// Length of `value` as a protobuf varint, in bytes.
pub fn varint_len(value: u64) -> usize {
    ((63 - (value | 1).leading_zeros() as usize) / 7) + 1
}

/// Appends `value` as a protobuf varint.
pub fn put_varint(buf: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buf.push((value as u8) | 0x80);
        value >>= 7;
    }
    buf.push(value as u8);
}

/// Reads a varint from the front of `bytes`.
fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0u64;
    for (i, &b) in bytes.iter().take(10).enumerate() {
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            *bytes = &bytes[i + 1..];
            return value;
        }
    }
    *bytes = &[];
    value
}

/// Encodes a version. Fields at their default are left out, as protobuf does.
pub fn encode(f: &Fields<'_>) -> Arc<[u8]> {
    encode_with(&mut Vec::with_capacity(f.value.len() + 48), f)
}

/// The same, by way of a buffer that the caller keeps for it.
pub(crate) fn encode_with(buf: &mut Vec<u8>, f: &Fields<'_>) -> Arc<[u8]> {
    buf.clear();
    for (tag, v) in [
        (CREATE, f.create_revision),
        (MOD, f.mod_revision),
        (VERSION, f.version),
    ] {
        if v != 0 {
            buf.push(tag);
            put_varint(buf, v as u64);
        }
    }
    if !f.value.is_empty() {
        buf.push(VALUE);
        put_varint(buf, f.value.len() as u64);
        buf.extend_from_slice(f.value);
    }
    if f.lease != 0 {
        buf.push(LEASE);
        put_varint(buf, f.lease as u64);
    }
    Arc::from(buf.as_slice())
}

/// Decodes what [`encode`] made.
pub fn decode(mut bytes: &[u8]) -> Fields<'_> {
    let mut f = Fields::default();
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        let v = take_varint(&mut bytes);
        match tag {
            CREATE => f.create_revision = v as i64,
            MOD => f.mod_revision = v as i64,
            VERSION => f.version = v as i64,
            LEASE => f.lease = v as i64,
            _ => {
                let (value, rest) = bytes.split_at((v as usize).min(bytes.len()));
                f.value = value;
                bytes = rest;
            }
        }
    }
    f
}

/// A key with one of its versions, as answers carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// The encoded version.
    pub tail: Arc<[u8]>,
}

impl KeyValue {
    /// The decoded fields.
    pub fn fields(&self) -> Fields<'_> {
        decode(&self.tail)
    }

    /// The same without its value (etcd's `keys_only`).
    pub fn without_value(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            tail: encode(&Fields {
                value: &[],
                ..self.fields()
            }),
        }
    }

    /// The same without value and lease.
    pub fn without_value_and_lease(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            tail: encode(&Fields {
                value: &[],
                lease: 0,
                ..self.fields()
            }),
        }
    }

    /// Length of its protobuf encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        kv_len(&self.key, &self.tail)
    }

    /// Length of the same as a field of a message, with tag and length, in bytes.
    pub fn field_len(&self) -> usize {
        let len = self.encoded_len();
        1 + varint_len(len as u64) + len
    }

    /// Appends its protobuf encoding (`mvccpb.KeyValue`).
    pub fn encode_into(&self, buf: &mut Vec<u8>) {
        encode_kv(&self.key, &self.tail, buf);
    }
}

/// Length of `mvccpb.KeyValue` made of a key and an encoded version, in bytes.
pub fn kv_len(key: &[u8], tail: &[u8]) -> usize {
    1 + varint_len(key.len() as u64) + key.len() + tail.len()
}

/// Appends `mvccpb.KeyValue` made of a key and an encoded version (empty for a tombstone).
pub fn encode_kv(key: &[u8], tail: &[u8], buf: &mut Vec<u8>) {
    buf.push(KEY);
    put_varint(buf, key.len() as u64);
    buf.extend_from_slice(key);
    buf.extend_from_slice(tail);
}

/// Bytes that are not an `mvccpb.KeyValue` as etcd writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key with its fields as etcd encodes them")]
pub struct NotAKeyValue;

/// Reads an encoded `mvccpb.KeyValue` from outside: only what [`encode_kv`] and [`encode`]
/// would write, since other bytes for the same would make HashKV differ. Fields that are
/// not there are 0 or empty, the key too.
///
/// # Errors
/// [`NotAKeyValue`].
pub fn decode_kv(mut bytes: &[u8]) -> Result<(&[u8], Fields<'_>), NotAKeyValue> {
    let mut key = &[][..];
    let mut f = Fields::default();
    let mut last = 0;
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        let number = bytes;
        let v = take_varint(&mut bytes);
        let number = &number[..number.len() - bytes.len()];
        // The tenth byte has room for one bit.
        let ends = number.last().is_some_and(|&b| b < 0x80) && number.get(9).is_none_or(|&b| b < 2);
        // Ascending, nothing at its default, each number as short as it can be.
        if tag <= last || v == 0 || !ends || number.len() != varint_len(v) {
            return Err(NotAKeyValue);
        }
        last = tag;
        match tag {
            CREATE => f.create_revision = v as i64,
            MOD => f.mod_revision = v as i64,
            VERSION => f.version = v as i64,
            LEASE => f.lease = v as i64,
            KEY | VALUE => {
                let len = usize::try_from(v).map_err(|_| NotAKeyValue)?;
                let (field, rest) = bytes.split_at_checked(len).ok_or(NotAKeyValue)?;
                *(if tag == KEY { &mut key } else { &mut f.value }) = field;
                bytes = rest;
            }
            _ => return Err(NotAKeyValue),
        }
    }
    Ok((key, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode_at_the_corners() {
        for lease in [0, 1, -5, i64::MAX] {
            for value in [&b""[..], b"v", &[0x30; 300]] {
                let f = Fields {
                    create_revision: 2,
                    mod_revision: 1 << 40,
                    version: 127,
                    value,
                    lease,
                };
                assert_eq!(decode(&encode(&f)), f);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn decode_takes_any_bytes(bytes: Vec<u8>) {
            let f = decode(&bytes);
            proptest::prop_assert!(f.value.len() <= bytes.len());
        }

        #[test]
        fn decode_takes_damaged_tails(
            value: Vec<u8>, numbers: [i64; 4], at: usize, with: u8, cut: usize,
        ) {
            let [create_revision, mod_revision, version, lease] = numbers;
            let f = Fields { create_revision, mod_revision, version, value: &value, lease };
            let tail = encode(&f);
            proptest::prop_assert_eq!(decode(&tail), f);
            let mut damaged = tail.to_vec();
            if !damaged.is_empty() {
                let n = damaged.len();
                damaged[at % n] = with;
                damaged.truncate(1 + cut % n);
            }
            decode(&damaged);
        }

        #[test]
        fn a_pair_from_outside_is_what_would_be_written_or_refused(
            key: Vec<u8>, value: Vec<u8>, numbers: [i64; 4], at: usize, with: u8,
        ) {
            let [create_revision, mod_revision, version, lease] = numbers;
            let f = Fields { create_revision, mod_revision, version, value: &value, lease };
            let encoded = |key: &[u8], f: &Fields<'_>| {
                let mut out = Vec::new();
                if !key.is_empty() {
                    encode_kv(key, &[], &mut out);
                }
                out.extend_from_slice(&encode(f));
                out
            };
            let mut bytes = encoded(&key, &f);
            proptest::prop_assert_eq!(decode_kv(&bytes), Ok((&key[..], f)));
            if !bytes.is_empty() {
                let n = bytes.len();
                bytes[at % n] = with;
            }
            if let Ok((key, f)) = decode_kv(&bytes) {
                proptest::prop_assert_eq!(encoded(key, &f), bytes);
            }
        }

        #[test]
        fn encoding_a_pair_takes_the_length_that_it_says(key: Vec<u8>, value: Vec<u8>) {
            let f = Fields {
                create_revision: 5, mod_revision: 6, version: 7, value: &value, lease: -1,
            };
            let kv = KeyValue { key: Key::from(key), tail: encode(&f) };
            let mut buf = Vec::new();
            kv.encode_into(&mut buf);
            proptest::prop_assert_eq!(buf.len(), kv.encoded_len());
        }
    }

    #[test]
    fn varint_lengths() {
        let mut buf = Vec::new();
        for v in [0, 1, 127, 128, 16383, 16384, u64::MAX] {
            buf.clear();
            put_varint(&mut buf, v);
            assert_eq!(buf.len(), varint_len(v));
            assert_eq!(take_varint(&mut buf.as_slice()), v);
        }
    }
}
