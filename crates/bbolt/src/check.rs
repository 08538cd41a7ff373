//! A walk over a whole database.

use crate::cursor::{Cursor, Entry};
use crate::database::{Bucket, Database};
use crate::error::{Error, Place};
use crate::format::{FREELIST, HEADER_BYTES, u64_at};
use crate::source::ReadAt;

/// Deeper nesting of buckets is refused, so that a file cannot exhaust the stack.
const MAX_NESTING: usize = 32;

/// What a database without fault consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages below the high-water mark.
    pub pages: u64,
    /// Pages in use, meta pages and the list of free pages among them.
    pub used_pages: u64,
    /// Pages on the list of free pages. None: the list is not stored, as etcd has it;
    /// then the pages not in use are free.
    pub free_pages: Option<u64>,
    /// Buckets, also those in buckets.
    pub buckets: u64,
    /// Keys with a value, of all buckets.
    pub keys: u64,
}

/// Which pages were met on the walk: a bit a page.
#[derive(Debug)]
pub(crate) struct Seen {
    used: Bits,
    free: Bits,
    used_pages: u64,
}

impl Seen {
    fn new(pages: u64) -> Seen {
        Seen {
            used: Bits::new(pages),
            free: Bits::new(pages),
            used_pages: 0,
        }
    }

    /// Takes note of a page and its overflow pages; 0 pages for an inline bucket.
    pub(crate) fn used(&mut self, place: Place, pages: u64) -> Result<(), Error> {
        for page in place.page..place.page + pages {
            if self.used.set(page) {
                return Err(place.damaged(format!("page {page} is used twice")));
            }
            if self.free.get(page) {
                return Err(place.damaged(format!(
                    "page {page} is in use and on the list of free pages"
                )));
            }
            self.used_pages += 1;
        }
        Ok(())
    }
}

/// A bit for each page of a file that is at least that long.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(pages: u64) -> Bits {
        // The file has that many pages of 4 KiB at least, so this is 1/32768 of it.
        Bits(vec![0; (pages / 64 + 1) as usize])
    }

    fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] & (1 << (page % 64)) != 0
    }

    /// Returns whether it was set before.
    fn set(&mut self, page: u64) -> bool {
        let was = self.get(page);
        self.0[(page / 64) as usize] |= 1 << (page % 64);
        was
    }
}

/// See [`Database::check_each`].
pub(crate) fn check<R: ReadAt, E: From<Error>>(
    database: &Database<R>,
    visit: impl FnMut(&[u8], Entry<'_>) -> Result<(), E>,
) -> Result<Report, E> {
    let meta = database.meta();
    let mut seen = Seen::new(meta.pages);
    seen.used(Place { page: 0, offset: 0 }, 2)?;
    let free_pages = match meta.freelist {
        None => None,
        Some(page) => Some(read_freelist(database, page, &mut seen)?),
    };
    let mut walk = Walk {
        database,
        visit,
        buckets: 0,
        keys: 0,
    };
    let seen = walk.bucket(&database.root(), &[], seen, 0)?;
    if free_pages.is_some()
        && let Some(page) =
            (0..meta.pages).find(|&page| !seen.used.get(page) && !seen.free.get(page))
    {
        let offset = database.offset_of(page);
        let place = Place { page, offset };
        let what = "the page is neither in use nor on the list of free pages";
        return Err(place.damaged(what).into());
    }
    Ok(Report {
        page_size: meta.page_size,
        pages: meta.pages,
        used_pages: seen.used_pages,
        free_pages,
        buckets: walk.buckets,
        keys: walk.keys,
    })
}

struct Walk<'a, R, V> {
    database: &'a Database<R>,
    visit: V,
    buckets: u64,
    keys: u64,
}

impl<R: ReadAt, V> Walk<'_, R, V> {
    /// `top` is the name of the top bucket that this one is, or is in.
    fn bucket<E: From<Error>>(
        &mut self,
        bucket: &Bucket,
        top: &[u8],
        seen: Seen,
        nesting: usize,
    ) -> Result<Seen, E>
    where
        V: FnMut(&[u8], Entry<'_>) -> Result<(), E>,
    {
        let mut cursor = Cursor::with_seen(self.database, bucket, None, Some(seen))?;
        while let Some(entry) = cursor.next_entry()? {
            let place = entry.place();
            if nesting == 1 {
                (self.visit)(top, entry)?;
            }
            let Some(inner) = entry.bucket()? else {
                if nesting == 0 {
                    let what = "a value stands where only buckets may";
                    return Err(place.damaged(what).into());
                }
                self.keys += 1;
                continue;
            };
            if nesting >= MAX_NESTING {
                let what =
                    format!("buckets are nested deeper than {MAX_NESTING}, which is not supported");
                return Err(place.damaged(what).into());
            }
            self.buckets += 1;
            let name = match nesting {
                0 => entry.key().to_vec(),
                _ => top.to_vec(),
            };
            // Always there: it was put in above, and is put back below.
            if let Some(seen) = cursor.seen.take() {
                cursor.seen = Some(self.bucket(&inner, &name, seen, nesting + 1)?);
            }
        }
        Ok(cursor.seen.unwrap_or_else(|| Seen::new(0)))
    }
}

/// Takes note of the free pages and of the list's own pages; returns how many are free.
fn read_freelist<R: ReadAt>(
    database: &Database<R>,
    id: u64,
    seen: &mut Seen,
) -> Result<u64, Error> {
    let meta = database.meta();
    let mut bytes = Vec::new();
    let from = Place {
        page: meta.page,
        offset: database.offset_of(meta.page),
    };
    let (header, pages) = database.run(id, from, &mut bytes)?;
    let place = Place {
        page: id,
        offset: database.offset_of(id),
    };
    if header.flags != FREELIST {
        return Err(place.damaged(format!(
            "the flags of the list of free pages are {:#x}, expected {FREELIST:#x}",
            header.flags
        )));
    }
    seen.used(place, pages)?;
    // From 65535 on the count does not fit into the header, and is the first number.
    let (first, count) = match header.count {
        u16::MAX => (1, u64_at(&bytes, HEADER_BYTES)),
        count => (0, u64::from(count)),
    };
    let room = ((bytes.len() - HEADER_BYTES) / 8 - first) as u64;
    if count > room {
        return Err(place.damaged(format!(
            "the list of free pages has {count} entries, there is room for {room}"
        )));
    }
    for i in 0..count as usize {
        let at = HEADER_BYTES + (first + i) * 8;
        let entry = Place {
            page: id,
            offset: place.offset + at as u64,
        };
        let page = u64_at(&bytes, at);
        if !(2..meta.pages).contains(&page) {
            return Err(entry.damaged(format!(
                "page {page} is on the list of free pages, allowed are 2 to {}",
                meta.pages - 1
            )));
        }
        if seen.free.set(page) {
            return Err(entry.damaged(format!("page {page} is twice on the list of free pages")));
        }
        if seen.used.get(page) {
            return Err(entry.damaged(format!(
                "the list of free pages stands on page {page}, which is on it"
            )));
        }
    }
    Ok(count)
}
