//! A branch or leaf page with its overflow pages, checked before anything of it is used.

use crate::error::{Error, Place};
use crate::format::{
    BRANCH, BUCKET_BYTES, BUCKET_ELEMENT, ELEMENT_BYTES, HEADER_BYTES, Header, LEAF, MAX_KEY_BYTES,
    u32_at, u64_at,
};

/// Bytes of a branch or leaf page (or of an inline bucket's page) that keep the format's
/// rules: every element lies within, and keys ascend.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where the page begins in the file.
    place: Place,
    leaf: bool,
    count: usize,
    bytes: Vec<u8>,
}

impl Node {
    /// Takes a page's bytes (of a page: with its overflow pages).
    ///
    /// # Errors
    /// [`Error::Damaged`] with the place of the first thing that is wrong.
    pub(crate) fn new(bytes: Vec<u8>, place: Place) -> Result<Node, Error> {
        if bytes.len() < HEADER_BYTES {
            return Err(place.damaged(format!(
                "a page of {} bytes has no room for its header",
                bytes.len()
            )));
        }
        let header = Header::decode(&bytes);
        let leaf = match header.flags {
            LEAF => true,
            BRANCH => false,
            other => {
                return Err(place.damaged(format!(
                    "the page's flags are {other:#x}, a branch page has {BRANCH:#x} and a leaf \
                     page {LEAF:#x}"
                )));
            }
        };
        let node = Node {
            place,
            leaf,
            count: usize::from(header.count),
            bytes,
        };
        node.check_elements()?;
        Ok(node)
    }

    fn check_elements(&self) -> Result<(), Error> {
        let table_end = HEADER_BYTES + self.count * ELEMENT_BYTES;
        if table_end > self.bytes.len() {
            return Err(self.place.damaged(format!(
                "the page has {} elements, more than its {} bytes can hold",
                self.count,
                self.bytes.len()
            )));
        }
        if self.count == 0 && !self.leaf {
            return Err(self.place.damaged("the branch page has no elements"));
        }
        // bbolt fills pages with zeros.
        let first = self.bytes.iter().skip(HEADER_BYTES).take(ELEMENT_BYTES);
        if self.count == 0 && first.copied().any(|byte| byte != 0) {
            return Err(self
                .place
                .damaged("the page says that it has no elements, but there are"));
        }
        // bbolt writes the data of all elements one after the other, right behind the table.
        let mut expected = table_end as u64;
        for i in 0..self.count {
            let (key_bytes, value_bytes) = self.lengths(i);
            // None of these sums overflows: each term is below 2^33.
            let from = element_at(i) as u64 + u64::from(self.position(i));
            let to = from + u64::from(key_bytes) + u64::from(value_bytes);
            if from != expected || to > self.bytes.len() as u64 {
                return Err(self.place_of(i).damaged(format!(
                    "the data of element {i} lies at bytes {from} to {to} of the page, it should \
                     begin at {expected} and end by {}",
                    self.bytes.len()
                )));
            }
            expected = to;
            if key_bytes == 0 || key_bytes as usize > MAX_KEY_BYTES {
                return Err(self.place_of(i).damaged(format!(
                    "the key of element {i} has {key_bytes} bytes, allowed are 1 to \
                     {MAX_KEY_BYTES}"
                )));
            }
            if self.leaf {
                self.check_flags(i, value_bytes)?;
            }
            if i > 0 && self.key(i - 1) >= self.key(i) {
                return Err(self.place_of(i).damaged(format!(
                    "the key of element {i} is not above the one before it"
                )));
            }
        }
        Ok(())
    }

    fn check_flags(&self, i: usize, value_bytes: u32) -> Result<(), Error> {
        let flags = u32_at(&self.bytes, element_at(i));
        if flags > BUCKET_ELEMENT {
            return Err(self.place_of(i).damaged(format!(
                "the flags of element {i} are {flags:#x}, allowed are 0x0 (a value) and \
                 {BUCKET_ELEMENT:#x} (a bucket)"
            )));
        }
        if flags == BUCKET_ELEMENT && (value_bytes as usize) < BUCKET_BYTES {
            return Err(self.place_of(i).damaged(format!(
                "element {i} is a bucket of {value_bytes} bytes, its header alone has \
                 {BUCKET_BYTES}"
            )));
        }
        Ok(())
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Where element `i` stands in the file.
    pub(crate) fn place_of(&self, i: usize) -> Place {
        Place {
            page: self.place.page,
            offset: self.place.offset + element_at(i) as u64,
        }
    }

    /// Where the data of element `i` begins in the file.
    pub(crate) fn data_offset(&self, i: usize) -> u64 {
        self.place.offset + self.data(i) as u64
    }

    pub(crate) fn key(&self, i: usize) -> &[u8] {
        let from = self.data(i);
        &self.bytes[from..from + self.lengths(i).0 as usize]
    }

    /// Of a leaf.
    pub(crate) fn value(&self, i: usize) -> &[u8] {
        let (key_bytes, value_bytes) = self.lengths(i);
        let from = self.data(i) + key_bytes as usize;
        &self.bytes[from..from + value_bytes as usize]
    }

    /// Of a leaf: whether the value is a bucket.
    pub(crate) fn is_bucket(&self, i: usize) -> bool {
        u32_at(&self.bytes, element_at(i)) & BUCKET_ELEMENT != 0
    }

    /// Of a branch: the page below.
    pub(crate) fn child(&self, i: usize) -> u64 {
        u64_at(&self.bytes, element_at(i) + 8)
    }

    /// How many of the first elements' keys fulfil `before`, which must hold for a prefix.
    pub(crate) fn partition(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.key(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Gives the buffer back for another page.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes of key and value; a branch element has no value.
    fn lengths(&self, i: usize) -> (u32, u32) {
        let at = element_at(i);
        if self.leaf {
            (u32_at(&self.bytes, at + 8), u32_at(&self.bytes, at + 12))
        } else {
            (u32_at(&self.bytes, at + 4), 0)
        }
    }

    /// Where the data is, counted from the element.
    fn position(&self, i: usize) -> u32 {
        let at = element_at(i);
        u32_at(&self.bytes, if self.leaf { at + 4 } else { at })
    }

    fn data(&self, i: usize) -> usize {
        element_at(i) + self.position(i) as usize
    }
}

fn element_at(i: usize) -> usize {
    HEADER_BYTES + i * ELEMENT_BYTES
}
