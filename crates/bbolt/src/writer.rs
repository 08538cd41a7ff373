//! A new database, written front to back in two passes.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use crate::error::Error;
use crate::format::{
    BRANCH, BUCKET_BYTES, BUCKET_ELEMENT, ELEMENT_BYTES, FREELIST, HEADER_BYTES, Header, LEAF,
    MAX_KEY_BYTES, MAX_VALUE_BYTES, META_BYTES, Meta, is_page_size,
};
use crate::layout::{Child, Pages, Tree};

/// The list of free pages, which is empty, and the first page behind it.
const FREELIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;
/// As in a copy that bbolt makes of a database: meta page 0 is the newer one.
const TXIDS: [u64; 2] = [2, 1];

/// The first pass: computes from the lengths of all keys and values which pages they make.
///
/// Memory does not grow with the number of items, but for the names of buckets.
#[derive(Debug)]
pub struct Planner {
    page_size: u32,
    next: u64,
    buckets: Vec<Planned>,
    names: HashSet<Vec<u8>>,
    /// The one that takes items now.
    open: Option<(Totals, Tree<u16>)>,
}

/// What [`Writer`] needs to know before the first byte.
#[derive(Debug, Clone)]
pub struct Plan {
    page_size: u32,
    pages: u64,
    root: u64,
    buckets: Arc<[Planned]>,
}

#[derive(Debug, Clone)]
struct Planned {
    name: Vec<u8>,
    totals: Totals,
    /// 0 if it is empty, and so inline.
    root: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    items: u64,
    key_bytes: u64,
    value_bytes: u64,
}

impl Totals {
    fn add(&mut self, key_bytes: usize, value_bytes: usize) {
        self.items += 1;
        self.key_bytes += key_bytes as u64;
        self.value_bytes += value_bytes as u64;
    }
}

/// Planning writes nothing.
struct NoPages;

impl<K> Pages<K> for NoPages {
    fn leaf(&mut self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn branch(&mut self, _: u64, _: u64, _: &[Child<K>]) -> Result<(), Error> {
        Ok(())
    }
}

impl Planner {
    /// `page_size` in bytes: a power of two from 4 KiB to 64 KiB, best that of the
    /// machine that will use the file; see [`crate::DEFAULT_PAGE_SIZE`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for another page size.
    pub fn new(page_size: u32) -> Result<Planner, Error> {
        if !is_page_size(page_size) {
            return Err(invalid(format!(
                "the page size is {page_size} bytes, it must be a power of two from 4096 to 65536"
            )));
        }
        Ok(Planner {
            page_size,
            next: FIRST_PAGE,
            buckets: Vec::new(),
            names: HashSet::new(),
            open: None,
        })
    }

    /// Begins the next top bucket, in any order; the items that follow are its. It may
    /// stay empty.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is there already, is empty or too long.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.end_bucket()?;
        check_lengths(name.len(), 0)?;
        if !self.names.insert(name.to_vec()) {
            return Err(invalid(format!(
                "there are two buckets of the name {:?}",
                String::from_utf8_lossy(name)
            )));
        }
        self.buckets.push(Planned {
            name: name.to_vec(),
            totals: Totals::default(),
            root: 0,
        });
        self.open = Some((Totals::default(), Tree::new(self.page_size as usize)));
        Ok(())
    }

    /// Adds an item of the bucket, in key order.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no bucket, or a length is out of range.
    pub fn item(&mut self, key_bytes: usize, value_bytes: usize) -> Result<(), Error> {
        check_lengths(key_bytes, value_bytes)?;
        let Some((totals, tree)) = &mut self.open else {
            return Err(invalid("an item comes before the first bucket"));
        };
        totals.add(key_bytes, value_bytes);
        // Checked above: at most 32768.
        let key = || key_bytes as u16;
        tree.item(key_bytes, value_bytes, key, &mut self.next, &mut NoPages)
    }

    /// Ends the first pass.
    ///
    /// # Errors
    /// None are known.
    pub fn finish(mut self) -> Result<Plan, Error> {
        self.end_bucket()?;
        let mut tree = Tree::<u16>::new(self.page_size as usize);
        for (name, value) in root_items(&self.buckets) {
            let (key_bytes, value_bytes) = (name.len(), value.len());
            let key = || key_bytes as u16;
            tree.item(key_bytes, value_bytes, key, &mut self.next, &mut NoPages)?;
        }
        let root = match tree.finish(&mut self.next, &mut NoPages)? {
            Some(root) => root,
            None => {
                // The page of a database without buckets: an empty leaf.
                self.next += 1;
                self.next - 1
            }
        };
        Ok(Plan {
            page_size: self.page_size,
            pages: self.next,
            root,
            buckets: self.buckets.into(),
        })
    }

    fn end_bucket(&mut self) -> Result<(), Error> {
        if let Some((totals, mut tree)) = self.open.take() {
            let root = tree.finish(&mut self.next, &mut NoPages)?;
            if let Some(bucket) = self.buckets.last_mut() {
                bucket.totals = totals;
                bucket.root = root.unwrap_or(0);
            }
        }
        Ok(())
    }
}

impl Plan {
    /// The exact size of the database in bytes.
    pub fn bytes(&self) -> u64 {
        self.pages * u64::from(self.page_size)
    }
}

/// The second pass: takes the items that were planned, with their bytes, and writes the
/// database from front to back, exactly [`Plan::bytes`].
///
/// It buffers one leaf: about a page, or the largest value. With a `Vec<u8>` as the
/// output, what is there so far can be taken out by [`Writer::get_mut`] at any time.
#[derive(Debug)]
pub struct Writer<W> {
    plan: Plan,
    next: u64,
    out: Output<W>,
    /// How many buckets have begun.
    begun: usize,
    totals: Totals,
    tree: Tree<Box<[u8]>>,
    last_key: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins the database: writes both meta pages and the empty list of free pages.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn new(plan: Plan, out: W) -> Result<Writer<W>, Error> {
        let page_size = plan.page_size as usize;
        let mut out = Output {
            inner: out,
            page_size,
            table: Vec::new(),
            items: Vec::new(),
            data: Vec::new(),
        };
        for (page, txid) in (0..).zip(TXIDS) {
            let meta = Meta {
                page,
                page_size: plan.page_size,
                txid,
                pages: plan.pages,
                root: plan.root,
                sequence: 0,
                freelist: Some(FREELIST_PAGE),
            };
            out.write(&meta.encode())?;
            out.pad(HEADER_BYTES + META_BYTES)?;
        }
        out.empty_page(FREELIST_PAGE, FREELIST)?;
        Ok(Writer {
            tree: Tree::new(page_size),
            plan,
            next: FIRST_PAGE,
            out,
            begun: 0,
            totals: Totals::default(),
            last_key: Vec::new(),
        })
    }

    /// Begins the next bucket of the plan.
    ///
    /// # Errors
    /// [`Error::Unplanned`] if the plan has another one next, or had other items in the
    /// bucket before; [`Error::Write`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.end_bucket()?;
        match self.plan.buckets.get(self.begun) {
            Some(next) if next.name == name => {}
            next => {
                let next = next.map_or_else(
                    || "no further bucket".to_owned(),
                    |next| format!("bucket {:?}", String::from_utf8_lossy(&next.name)),
                );
                return Err(unplanned(format!(
                    "bucket {:?} begins where {next} was planned",
                    String::from_utf8_lossy(name)
                )));
            }
        }
        self.begun += 1;
        Ok(())
    }

    /// Writes the next item of the bucket.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key is not above the one before or a length is out of
    /// range, [`Error::Unplanned`] if it is one more than planned, [`Error::Write`].
    pub fn item(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        check_lengths(key.len(), value.len())?;
        let planned = match self.begun.checked_sub(1) {
            None => return Err(invalid("an item comes before the first bucket")),
            Some(open) => self.plan.buckets[open].totals,
        };
        if self.totals.items == planned.items {
            return Err(unplanned(format!(
                "there are more than the {} items planned for bucket {}",
                planned.items, self.begun
            )));
        }
        if self.totals.items > 0 && self.last_key.as_slice() >= key {
            return Err(invalid(format!(
                "item {} of bucket {} has a key that is not above the one before it",
                self.totals.items, self.begun
            )));
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.totals.add(key.len(), value.len());
        self.put(key, value, 0)
    }

    /// The output, for instance to take out what a `Vec<u8>` holds.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out.inner
    }

    /// Writes the rest and returns the output, neither flushed nor synced.
    ///
    /// # Errors
    /// [`Error::Unplanned`] if a bucket or item of the plan did not come;
    /// [`Error::Write`].
    pub fn finish(mut self) -> Result<W, Error> {
        self.end_bucket()?;
        if self.begun != self.plan.buckets.len() {
            return Err(unplanned(format!(
                "{} of {} buckets came",
                self.begun,
                self.plan.buckets.len()
            )));
        }
        let plan = self.plan.clone();
        for (name, value) in root_items(&plan.buckets) {
            self.put(name, &value, BUCKET_ELEMENT)?;
        }
        let root = match self.tree.finish(&mut self.next, &mut self.out)? {
            Some(root) => root,
            None => {
                self.out.empty_page(self.next, LEAF)?;
                self.next += 1;
                self.next - 1
            }
        };
        if (root, self.next) != (self.plan.root, self.plan.pages) {
            return Err(unplanned(format!(
                "it has {} pages and its root is page {root}, planned were {} and {}",
                self.next, self.plan.pages, self.plan.root
            )));
        }
        Ok(self.out.inner)
    }

    fn put(&mut self, key: &[u8], value: &[u8], flags: u32) -> Result<(), Error> {
        self.tree.item(
            key.len(),
            value.len(),
            || key.into(),
            &mut self.next,
            &mut self.out,
        )?;
        self.out.keep(key, value, flags);
        Ok(())
    }

    fn end_bucket(&mut self) -> Result<(), Error> {
        let Some(open) = self.begun.checked_sub(1) else {
            return Ok(());
        };
        let root = self.tree.finish(&mut self.next, &mut self.out)?;
        let came = (std::mem::take(&mut self.totals), root.unwrap_or(0));
        let planned = &self.plan.buckets[open];
        if came != (planned.totals, planned.root) {
            return Err(unplanned(format!(
                "bucket {:?} has {:?}, planned were {:?}",
                String::from_utf8_lossy(&planned.name),
                came.0,
                planned.totals
            )));
        }
        Ok(())
    }
}

/// Writes pages, and keeps the items of the unfinished leaf.
#[derive(Debug)]
struct Output<W> {
    inner: W,
    page_size: usize,
    /// A buffer for a page's header and table.
    table: Vec<u8>,
    items: Vec<Item>,
    /// Key and value of each item.
    data: Vec<u8>,
}

#[derive(Debug)]
struct Item {
    flags: u32,
    key_bytes: u32,
    value_bytes: u32,
}

impl<W: Write> Output<W> {
    fn keep(&mut self, key: &[u8], value: &[u8], flags: u32) {
        self.items.push(Item {
            flags,
            key_bytes: key.len() as u32,
            value_bytes: value.len() as u32,
        });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner
            .write_all(bytes)
            .map_err(|source| Error::Write { source })
    }

    /// Fills up the page behind the `written` bytes of it.
    fn pad(&mut self, written: usize) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = written.next_multiple_of(self.page_size) - written;
        while left > 0 {
            let now = left.min(ZEROS.len());
            self.write(&ZEROS[..now])?;
            left -= now;
        }
        Ok(())
    }

    fn empty_page(&mut self, id: u64, flags: u16) -> Result<(), Error> {
        self.write(&header(id, flags, 0, 1).encode())?;
        self.pad(HEADER_BYTES)
    }
}

impl<W: Write> Pages<Box<[u8]>> for Output<W> {
    fn leaf(&mut self, page: u64, pages: u64) -> Result<(), Error> {
        let mut table = std::mem::take(&mut self.table);
        table.clear();
        table.extend(header(page, LEAF, self.items.len(), pages).encode());
        let mut data = HEADER_BYTES + self.items.len() * ELEMENT_BYTES;
        for item in self.items.drain(..) {
            let position = (data - table.len()) as u32;
            for number in [item.flags, position, item.key_bytes, item.value_bytes] {
                table.extend(number.to_le_bytes());
            }
            data += item.key_bytes as usize + item.value_bytes as usize;
        }
        self.write(&table)?;
        self.table = table;
        let bytes = std::mem::take(&mut self.data);
        self.write(&bytes)?;
        self.pad(data)?;
        self.data = bytes;
        self.data.clear();
        Ok(())
    }

    fn branch(
        &mut self,
        page: u64,
        pages: u64,
        children: &[Child<Box<[u8]>>],
    ) -> Result<(), Error> {
        let mut table = std::mem::take(&mut self.table);
        table.clear();
        table.extend(header(page, BRANCH, children.len(), pages).encode());
        let mut data = HEADER_BYTES + children.len() * ELEMENT_BYTES;
        for child in children {
            let position = (data - table.len()) as u32;
            table.extend(position.to_le_bytes());
            table.extend((child.key.len() as u32).to_le_bytes());
            table.extend(child.page.to_le_bytes());
            data += child.key.len();
        }
        for child in children {
            table.extend_from_slice(&child.key);
        }
        self.write(&table)?;
        self.table = table;
        self.pad(data)
    }
}

/// A page of at most 64 KiB holds fewer than 65535 elements of 17 bytes; one with overflow
/// pages holds fewer still, as its first item fills all but the last of them.
fn header(id: u64, flags: u16, count: usize, pages: u64) -> Header {
    Header {
        id,
        flags,
        count: count as u16,
        overflow: (pages - 1) as u32,
    }
}

/// The root's items: a header for each bucket, and an empty page for those that are empty.
fn root_items(buckets: &[Planned]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    let mut sorted: Vec<&Planned> = buckets.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.into_iter().map(|bucket| {
        let mut value = Vec::with_capacity(BUCKET_BYTES + HEADER_BYTES);
        value.extend(bucket.root.to_le_bytes());
        value.extend(0_u64.to_le_bytes());
        if bucket.root == 0 {
            value.extend(header(0, LEAF, 0, 1).encode());
        }
        (bucket.name.as_slice(), value)
    })
}

fn check_lengths(key_bytes: usize, value_bytes: usize) -> Result<(), Error> {
    if !(1..=MAX_KEY_BYTES).contains(&key_bytes) {
        return Err(invalid(format!(
            "a key has {key_bytes} bytes, it can have 1 to {MAX_KEY_BYTES}"
        )));
    }
    if value_bytes > MAX_VALUE_BYTES {
        return Err(invalid(format!(
            "a value has {value_bytes} bytes, it can have at most {MAX_VALUE_BYTES}"
        )));
    }
    Ok(())
}

fn invalid(what: impl Into<String>) -> Error {
    Error::Invalid { what: what.into() }
}

fn unplanned(what: impl Into<String>) -> Error {
    Error::Unplanned { what: what.into() }
}
