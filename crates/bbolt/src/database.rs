//! A database file opened for reading.

use std::sync::Arc;

use crate::check::{self, Report};
use crate::cursor::{Cursor, Entry};
use crate::error::{Error, Place};
use crate::format::{
    BUCKET_BYTES, FREELIST, HEADER_BYTES, Header, MAX_PAGE_SIZE, MAX_RUN_BYTES, META_BYTES,
    MIN_PAGE_SIZE, Meta, u64_at,
};
use crate::node::Node;
use crate::source::ReadAt;

/// Bytes of a meta page that mean something.
const META_PAGE_BYTES: usize = HEADER_BYTES + META_BYTES;

/// A bbolt database, open for reading. It is not changed, and nobody else may change it.
#[derive(Debug)]
pub struct Database<R> {
    source: R,
    meta: Meta,
    damaged_meta: Option<Error>,
}

/// A bucket: a tree of keys, with values and further buckets.
#[derive(Debug, Clone)]
pub struct Bucket {
    root: u64,
    /// Where it is referred to.
    place: Place,
    /// The page of a bucket without pages of its own, and where it is.
    inline: Option<(Arc<[u8]>, Place)>,
}

impl Bucket {
    /// Its tree's root page. 0: it is inline, in the page that refers to it.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Reads the value of a bucket element; `place` is the element's, `offset` the value's.
    pub(crate) fn decode(value: &[u8], place: Place, offset: u64) -> Result<Bucket, Error> {
        // A counter of its owner's follows, which etcd leaves at 0.
        let root = u64_at(value, 0);
        let inline = match root {
            0 => Some((
                Arc::from(&value[BUCKET_BYTES..]),
                Place {
                    page: place.page,
                    offset: offset + BUCKET_BYTES as u64,
                },
            )),
            _ => None,
        };
        Ok(Bucket {
            root,
            place,
            inline,
        })
    }
}

impl<R: ReadAt> Database<R> {
    /// Opens the first `bytes` bytes of `source`: the length of the file, less what does
    /// not belong to the database, such as the SHA-256 behind etcd's snapshot. They may be
    /// more than the pages take, and no multiple of the page size.
    ///
    /// Of the two meta pages the valid one with the higher transaction counts, as for
    /// bbolt. The page size is the file's own, from 4 KiB to 64 KiB.
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is no database, [`Error::Truncated`],
    /// [`Error::Damaged`] and [`Error::Read`].
    pub fn open(source: R, bytes: u64) -> Result<Database<R>, Error> {
        let (meta, damaged_meta) = newest_meta(&source, bytes)?;
        meta.plausible(bytes)?;
        Ok(Database {
            source,
            meta,
            damaged_meta,
        })
    }

    /// The meta page that counts.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What is wrong with the other meta page, if anything is. Then the state read may be
    /// one transaction old; bbolt opens such a file without a word.
    pub fn damaged_meta(&self) -> Option<&Error> {
        self.damaged_meta.as_ref()
    }

    /// All top buckets in the order of their names: entries whose
    /// [`bucket`](crate::Entry::bucket) is there.
    ///
    /// # Errors
    /// As [`Database::cursor`].
    pub fn buckets(&self) -> Result<Cursor<'_, R>, Error> {
        Cursor::new(self, &self.root(), None)
    }

    /// The top bucket of that name, if there is one.
    ///
    /// # Errors
    /// As [`Cursor::next_entry`]; [`Error::Damaged`] also if it is a value.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, Error> {
        let mut cursor = Cursor::new(self, &self.root(), Some(name))?;
        match cursor.next_entry()? {
            Some(entry) if entry.key() == name => match entry.bucket()? {
                None => Err(entry
                    .place()
                    .damaged("a value stands where only buckets may")),
                bucket => Ok(bucket),
            },
            _ => Ok(None),
        }
    }

    /// The keys of a bucket of this database with their values, in key order, from the
    /// first that is not below `from`.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Read`].
    pub fn cursor(&self, bucket: &Bucket, from: Option<&[u8]>) -> Result<Cursor<'_, R>, Error> {
        Cursor::new(self, bucket, from)
    }

    /// Walks the whole database: every page is used once or free, every page, key and
    /// bucket keeps the format's rules. It takes memory for two bits a page.
    ///
    /// # Errors
    /// The first thing found wrong, with its place.
    pub fn check(&self) -> Result<Report, Error> {
        self.check_each(|_, _| Ok(()))
    }

    /// As [`Database::check`]; on the way `visit` is given each entry of each top bucket with
    /// the bucket's name, in order, so that a file is read only once. What it is given is
    /// checked by itself. Whether all of the database is without fault is known at the end.
    ///
    /// # Errors
    /// The first thing found wrong, or the first error of `visit`, which ends the walk.
    pub fn check_each<E: From<Error>>(
        &self,
        visit: impl FnMut(&[u8], Entry<'_>) -> Result<(), E>,
    ) -> Result<Report, E> {
        check::check(self, visit)
    }

    /// The bucket of the top buckets.
    pub(crate) fn root(&self) -> Bucket {
        Bucket {
            root: self.meta.root,
            place: Place {
                page: self.meta.page,
                offset: self.offset_of(self.meta.page),
            },
            inline: None,
        }
    }

    /// The root of a bucket's tree, and how many pages it takes.
    pub(crate) fn root_node(&self, bucket: &Bucket) -> Result<(Node, u64), Error> {
        match &bucket.inline {
            None => self.node(bucket.root, bucket.place, Vec::new()),
            Some((page, place)) => {
                let node = Node::new(page.to_vec(), *place)?;
                if !node.is_leaf() {
                    return Err(place.damaged("the page of an inline bucket is no leaf"));
                }
                Ok((node, 0))
            }
        }
    }

    /// Reads a branch or leaf page that `place` refers to, into `buffer`, and says how
    /// many pages it takes.
    pub(crate) fn node(
        &self,
        id: u64,
        place: Place,
        mut buffer: Vec<u8>,
    ) -> Result<(Node, u64), Error> {
        let (header, run) = self.run(id, place, &mut buffer)?;
        let own = Place {
            page: id,
            offset: self.offset_of(id),
        };
        if header.flags == FREELIST || self.meta.freelist == Some(id) {
            return Err(own.damaged("a tree refers to the list of free pages"));
        }
        Ok((Node::new(buffer, own)?, run))
    }

    /// Reads a page with its overflow pages, checks what all pages have in common, and
    /// says how many pages it takes.
    pub(crate) fn run(
        &self,
        id: u64,
        place: Place,
        buffer: &mut Vec<u8>,
    ) -> Result<(Header, u64), Error> {
        if !(2..self.meta.pages).contains(&id) {
            return Err(place.damaged(format!(
                "it refers to page {id}, allowed are 2 to {}",
                self.meta.pages - 1
            )));
        }
        let page_size = u64::from(self.meta.page_size);
        let offset = self.offset_of(id);
        let own = Place { page: id, offset };
        let read = |buf: &mut [u8], offset| {
            self.source
                .read_exact_at(buf, offset)
                .map_err(|source| Error::Read { offset, source })
        };
        buffer.clear();
        buffer.resize(page_size as usize, 0);
        read(buffer, offset)?;
        let header = Header::decode(buffer);
        if header.id != id {
            return Err(own.damaged(format!(
                "the page says it is page {}, it is referred to as page {id}",
                header.id
            )));
        }
        let pages = u64::from(header.overflow) + 1;
        if pages > self.meta.pages - id {
            return Err(own.damaged(format!(
                "the page has {} overflow pages, the database ends after page {}",
                header.overflow,
                self.meta.pages - 1
            )));
        }
        // Below 2^48: page size times 2^32.
        let bytes = pages * page_size;
        if bytes > MAX_RUN_BYTES {
            return Err(own.damaged(format!(
                "the page has {bytes} bytes with its overflow pages, at most {MAX_RUN_BYTES} \
                 are supported"
            )));
        }
        if pages > 1 {
            buffer.resize(bytes as usize, 0);
            read(&mut buffer[page_size as usize..], offset + page_size)?;
        }
        Ok((header, pages))
    }

    /// Where a page begins. `id` is at most the high-water mark, so it does not overflow.
    pub(crate) fn offset_of(&self, id: u64) -> u64 {
        id * u64::from(self.meta.page_size)
    }
}

/// The meta page that counts, and what is wrong with the other.
fn newest_meta(source: &impl ReadAt, bytes: u64) -> Result<(Meta, Option<Error>), Error> {
    if bytes == 0 {
        return Err(Error::Foreign {
            found: "the file is empty".into(),
        });
    }
    let first = meta_at(source, bytes, 0, 0)?;
    if let Ok(first) = first {
        let page_size = first.page_size;
        let second = meta_at(source, bytes, u64::from(page_size), 1)?.and_then(|second| {
            if second.page_size == page_size {
                Ok(second)
            } else {
                Err(format!(
                    "its page size is {}, that of meta page 0 is {page_size}",
                    second.page_size
                ))
            }
        });
        return Ok(match second {
            Ok(second) if second.txid > first.txid => (second, None),
            Ok(_) => (first, None),
            Err(what) => (first, Some(damaged_meta(1, page_size, what))),
        });
    }
    // The page size is unknown without meta page 0: meta page 1 stands where it says.
    let what = first.err().unwrap_or_default();
    let mut page_size = MIN_PAGE_SIZE;
    while page_size <= MAX_PAGE_SIZE {
        if let Ok(second) = meta_at(source, bytes, u64::from(page_size), 1)?
            && second.page_size == page_size
        {
            return Ok((second, Some(damaged_meta(0, page_size, what))));
        }
        page_size *= 2;
    }
    Err(Error::Foreign {
        found: format!("{what}, and there is no second meta page"),
    })
}

fn damaged_meta(page: u64, page_size: u32, what: String) -> Error {
    Error::Damaged {
        page,
        offset: page * u64::from(page_size),
        what: format!("the meta page is not valid: {what}"),
    }
}

/// The meta page at an offset, or what is wrong with it.
fn meta_at(
    source: &impl ReadAt,
    bytes: u64,
    offset: u64,
    page: u64,
) -> Result<Result<Meta, String>, Error> {
    if bytes < offset + META_PAGE_BYTES as u64 {
        return Ok(Err(format!("it has only {bytes} bytes")));
    }
    let mut buf = [0; META_PAGE_BYTES];
    source
        .read_exact_at(&mut buf, offset)
        .map_err(|source| Error::Read { offset, source })?;
    Ok(Meta::decode(&buf, page))
}
