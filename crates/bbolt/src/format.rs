//! The fixed parts of the format: page headers and meta pages. All numbers are
//! little-endian (bbolt writes the machine's own order; etcd supports no big-endian one
//! in practice).

use crate::error::Error;

/// The page size of a new database, in bytes, if there is no reason for another: that of
/// x86_64 and of most aarch64 systems.
pub const DEFAULT_PAGE_SIZE: u32 = 4096;
/// The most bytes a key can have.
pub const MAX_KEY_BYTES: usize = 32768;
/// The most bytes a value can have.
pub const MAX_VALUE_BYTES: usize = (1 << 31) - 2;
/// The most bytes that one page with its overflow pages may have for [`crate::Database`]
/// to read it. It bounds the memory of reading. A leaf holds its values whole, in etcd at
/// most a few of them, each smaller than `--max-request-bytes`.
pub const MAX_RUN_BYTES: u64 = 256 << 20;

pub(crate) const MIN_PAGE_SIZE: u32 = 4096;
pub(crate) const MAX_PAGE_SIZE: u32 = 65536;
/// Deeper trees than this are taken for cycles: with two children a page it would hold
/// more pages than a file can.
pub(crate) const MAX_DEPTH: usize = 64;

pub(crate) const HEADER_BYTES: usize = 16;
/// Of an element in a branch or leaf page's table.
pub(crate) const ELEMENT_BYTES: usize = 16;
/// Of the header that is a bucket's value: root page and sequence.
pub(crate) const BUCKET_BYTES: usize = 16;
pub(crate) const META_BYTES: usize = 64;

pub(crate) const BRANCH: u16 = 0x01;
pub(crate) const LEAF: u16 = 0x02;
pub(crate) const META: u16 = 0x04;
pub(crate) const FREELIST: u16 = 0x10;
/// Of a leaf element: its value is a bucket.
pub(crate) const BUCKET_ELEMENT: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const NO_FREELIST: u64 = u64::MAX;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut b = [0; 2];
    b.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(b)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

/// A page size this crate reads and writes.
pub(crate) fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&bytes)
}

/// The first bytes of every page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) id: u64,
    pub(crate) flags: u16,
    pub(crate) count: u16,
    /// How many pages follow that belong to this one.
    pub(crate) overflow: u32,
}

impl Header {
    /// Of the first [`HEADER_BYTES`] of `page`.
    pub(crate) fn decode(page: &[u8]) -> Header {
        Header {
            id: u64_at(page, 0),
            flags: u16_at(page, 8),
            count: u16_at(page, 10),
            overflow: u32_at(page, 12),
        }
    }

    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..16].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }
}

/// What a meta page says of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Which of the two meta pages this is, 0 or 1.
    pub page: u64,
    /// Bytes of a page.
    pub page_size: u32,
    /// The transaction that wrote it; the higher of the two counts.
    pub txid: u64,
    /// The high-water mark: pages of the file that may be in use.
    pub pages: u64,
    /// The page of the tree of top buckets.
    pub root: u64,
    /// The sequence of the bucket of top buckets.
    pub sequence: u64,
    /// The page of the list of free pages. None: it is not stored, as etcd has it.
    pub freelist: Option<u64>,
}

impl Meta {
    /// Bytes of all pages below the high-water mark: what etcdutl calls the total size.
    /// The file may be longer.
    pub fn bytes(&self) -> u64 {
        self.pages.saturating_mul(u64::from(self.page_size))
    }

    /// Reads a meta page. `page` is its first bytes, at least header and meta.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase.
    pub(crate) fn decode(page: &[u8], id: u64) -> Result<Meta, String> {
        let m = &page[HEADER_BYTES..HEADER_BYTES + META_BYTES];
        let magic = u32_at(m, 0);
        if magic == MAGIC.swap_bytes() {
            return Err("it was written on a big-endian machine, which is not supported".into());
        }
        if magic != MAGIC {
            return Err(format!(
                "its magic number is {magic:#010x}, a bbolt database has {MAGIC:#010x}"
            ));
        }
        let version = u32_at(m, 4);
        if version != VERSION {
            return Err(format!(
                "its format version is {version}, only {VERSION} is supported"
            ));
        }
        let (stored, computed) = (u64_at(m, 56), fnv1a(&m[..56]));
        if stored != computed {
            return Err(format!(
                "the meta page's checksum is {stored:#018x}, its content has {computed:#018x}"
            ));
        }
        let header = Header::decode(page);
        if header.flags != META {
            return Err(format!(
                "its page flags are {:#x}, a meta page has {META:#x}",
                header.flags
            ));
        }
        let freelist = u64_at(m, 32);
        let meta = Meta {
            page: id,
            page_size: u32_at(m, 8),
            root: u64_at(m, 16),
            sequence: u64_at(m, 24),
            freelist: (freelist != NO_FREELIST).then_some(freelist),
            pages: u64_at(m, 40),
            txid: u64_at(m, 48),
        };
        if !is_page_size(meta.page_size) {
            return Err(format!(
                "its page size is {} bytes; powers of two from {MIN_PAGE_SIZE} to \
                 {MAX_PAGE_SIZE} are supported",
                meta.page_size
            ));
        }
        Ok(meta)
    }

    /// The first bytes of the meta page; the rest of the page is zero.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES + META_BYTES] {
        let mut out = [0; HEADER_BYTES + META_BYTES];
        let header = Header {
            id: self.page,
            flags: META,
            count: 0,
            overflow: 0,
        };
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        let m = &mut out[HEADER_BYTES..];
        m[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        m[4..8].copy_from_slice(&VERSION.to_le_bytes());
        m[8..12].copy_from_slice(&self.page_size.to_le_bytes());
        m[16..24].copy_from_slice(&self.root.to_le_bytes());
        m[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        m[32..40].copy_from_slice(&self.freelist.unwrap_or(NO_FREELIST).to_le_bytes());
        m[40..48].copy_from_slice(&self.pages.to_le_bytes());
        m[48..56].copy_from_slice(&self.txid.to_le_bytes());
        let sum = fnv1a(&m[..56]);
        m[56..64].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Refuses values that no database has, though the checksum fits.
    pub(crate) fn plausible(&self, bytes: u64) -> Result<(), Error> {
        let needed = self.pages.checked_mul(u64::from(self.page_size));
        let what = match needed {
            None => format!("it counts {} pages, more than a file can have", self.pages),
            Some(_) if self.pages < 3 => {
                format!("it counts {} pages, a database has more", self.pages)
            }
            Some(needed) if needed > bytes => return Err(Error::Truncated { bytes, needed }),
            Some(_) if !(2..self.pages).contains(&self.root) => {
                format!("its root is page {} of {}", self.root, self.pages)
            }
            Some(_) => match self.freelist {
                Some(page) if !(2..self.pages).contains(&page) => {
                    format!("its list of free pages is page {page} of {}", self.pages)
                }
                _ => return Ok(()),
            },
        };
        Err(Error::Damaged {
            page: self.page,
            offset: self.page * u64::from(self.page_size),
            what: format!("of the meta page, {what}"),
        })
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_has_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_comes_back_and_every_flipped_bit_is_seen() {
        let meta = Meta {
            page: 1,
            page_size: 16384,
            txid: 7,
            pages: 99,
            root: 98,
            sequence: 0,
            freelist: Some(2),
        };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes, 1), Ok(meta));
        // Of the header only the flags count: bbolt does not check the rest either.
        for bit in (8 * 8..10 * 8).chain(HEADER_BYTES * 8..bytes.len() * 8) {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&flipped, 1).is_err(), "bit {bit}");
        }
    }
}
