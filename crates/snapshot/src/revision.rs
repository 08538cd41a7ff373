//! Reading revisions as the keys of etcd's `key` bucket; [`engine::versions::BucketKey`]
//! writes them.

use engine::record::Revision;

const BYTES: usize = 17;
const TOMBSTONE: u8 = b't';

/// The revision of a key, and whether it is a tombstone's.
pub(crate) fn decode(key: &[u8]) -> Option<(Revision, bool)> {
    let (number, mark) = key.split_at_checked(BYTES)?;
    let (main, rest) = number.split_first_chunk::<8>()?;
    let sub = rest.strip_prefix(b"_")?.first_chunk::<8>()?;
    let revision = Revision {
        main: i64::from_be_bytes(*main),
        sub: i64::from_be_bytes(*sub),
    };
    let tombstone = match mark {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    (revision.main >= 0 && revision.sub >= 0).then_some((revision, tombstone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::versions::BucketKey;

    proptest::proptest! {
        #[test]
        fn a_key_reads_back(main in 0..i64::MAX, sub in 0..i64::MAX, tombstone: bool) {
            let revision = Revision { main, sub };
            let key = BucketKey::new(revision, tombstone);
            proptest::prop_assert_eq!(decode(&key), Some((revision, tombstone)));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            if let Some((revision, tombstone)) = decode(&bytes) {
                proptest::prop_assert_eq!(&BucketKey::new(revision, tombstone)[..], &bytes[..]);
            }
        }
    }
}
