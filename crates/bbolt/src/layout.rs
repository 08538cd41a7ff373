//! Which pages a sequence of items makes.
//!
//! Leaves are filled front to back. A branch page comes right behind the last page below
//! it, as soon as two further children exist: bbolt's deletion needs two children in
//! every branch. So the tree grows in one pass, with one unfinished page a level in
//! memory, and the same lengths always make the same pages.

use crate::error::Error;
use crate::format::{ELEMENT_BYTES, HEADER_BYTES};

/// What a branch keeps of a key: its length when planning, its bytes when writing.
pub(crate) trait BranchKey {
    fn bytes(&self) -> usize;
}

impl BranchKey for u16 {
    fn bytes(&self) -> usize {
        usize::from(*self)
    }
}

impl BranchKey for Box<[u8]> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// A page below a branch: its first key and its id.
#[derive(Debug)]
pub(crate) struct Child<K> {
    pub(crate) key: K,
    pub(crate) page: u64,
}

/// Takes each page as it is complete, in the order of their ids.
pub(crate) trait Pages<K> {
    /// The items since the last leaf are one, of `pages` pages.
    fn leaf(&mut self, page: u64, pages: u64) -> Result<(), Error>;
    /// A branch with these children, of `pages` pages.
    fn branch(&mut self, page: u64, pages: u64, children: &[Child<K>]) -> Result<(), Error>;
}

/// The tree of one bucket, as its items come.
#[derive(Debug)]
pub(crate) struct Tree<K> {
    page_size: usize,
    leaf: Leaf,
    /// Of the unfinished leaf.
    first_key: Option<K>,
    levels: Vec<Level<K>>,
}

/// How full the unfinished leaf is.
#[derive(Debug, Default)]
struct Leaf {
    items: usize,
    bytes: usize,
    /// One page, or as many as the first item takes.
    capacity: usize,
}

/// Children that have no branch page yet.
#[derive(Debug)]
struct Level<K> {
    children: Vec<Child<K>>,
    /// How many of them, from the first on, make a page: at least two.
    fit: usize,
    fit_bytes: usize,
}

impl<K: BranchKey> Tree<K> {
    pub(crate) fn new(page_size: usize) -> Tree<K> {
        Tree {
            page_size,
            leaf: Leaf::default(),
            first_key: None,
            levels: Vec::new(),
        }
    }

    /// Adds an item. The leaf before it may be completed by that; the item itself belongs
    /// to the leaf completed next. `next` is the first page id that is not taken.
    pub(crate) fn item(
        &mut self,
        key_bytes: usize,
        value_bytes: usize,
        key: impl FnOnce() -> K,
        next: &mut u64,
        out: &mut impl Pages<K>,
    ) -> Result<(), Error> {
        let bytes = ELEMENT_BYTES + key_bytes + value_bytes;
        let full = self.leaf.bytes + bytes > self.leaf.capacity;
        if self.leaf.items > 0 && full {
            self.end_leaf(next, out)?;
        }
        if self.leaf.items == 0 {
            let needed = HEADER_BYTES + bytes;
            self.leaf.bytes = HEADER_BYTES;
            self.leaf.capacity = needed.next_multiple_of(self.page_size);
            self.first_key = Some(key());
        }
        self.leaf.items += 1;
        self.leaf.bytes += bytes;
        Ok(())
    }

    /// Completes all pages. Returns the root's id; None if there was no item.
    pub(crate) fn finish(
        &mut self,
        next: &mut u64,
        out: &mut impl Pages<K>,
    ) -> Result<Option<u64>, Error> {
        self.end_leaf(next, out)?;
        let mut level = 0;
        while level < self.levels.len() {
            let top = level + 1 == self.levels.len();
            let fit = self.levels[level].fit;
            let children = std::mem::take(&mut self.levels[level].children);
            if top && let [root] = children.as_slice() {
                let page = root.page;
                self.levels.clear();
                return Ok(Some(page));
            }
            // At most one more than fits, so the last page may need one from the first.
            let split = match children.len() - fit {
                0 => 0,
                _ if fit >= 3 => fit - 1,
                _ => 0,
            };
            let mut first = children;
            let second = first.split_off(split);
            for group in [first, second] {
                if !group.is_empty() {
                    self.end_branch(level, group, next, out)?;
                }
            }
            level += 1;
        }
        Ok(None)
    }

    fn end_leaf(&mut self, next: &mut u64, out: &mut impl Pages<K>) -> Result<(), Error> {
        let Some(key) = self.first_key.take() else {
            return Ok(());
        };
        let pages = (self.leaf.capacity / self.page_size) as u64;
        self.leaf = Leaf::default();
        let page = *next;
        *next += pages;
        out.leaf(page, pages)?;
        self.add(0, Child { key, page }, next, out)
    }

    /// Puts a child on a level, and completes that level's page if it must be.
    fn add(
        &mut self,
        level: usize,
        child: Child<K>,
        next: &mut u64,
        out: &mut impl Pages<K>,
    ) -> Result<(), Error> {
        if level == self.levels.len() {
            self.levels.push(Level::new());
        }
        match self.levels[level].push(child, self.page_size) {
            None => Ok(()),
            Some(full) => self.end_branch(level, full, next, out),
        }
    }

    fn end_branch(
        &mut self,
        level: usize,
        children: Vec<Child<K>>,
        next: &mut u64,
        out: &mut impl Pages<K>,
    ) -> Result<(), Error> {
        let bytes: usize = children.iter().map(Child::bytes).sum();
        let pages = (HEADER_BYTES + bytes).div_ceil(self.page_size) as u64;
        let page = *next;
        *next += pages;
        out.branch(page, pages, &children)?;
        match children.into_iter().next() {
            None => Ok(()),
            Some(first) => {
                let key = first.key;
                self.add(level + 1, Child { key, page }, next, out)
            }
        }
    }
}

impl<K: BranchKey> Child<K> {
    /// In a branch page.
    fn bytes(&self) -> usize {
        ELEMENT_BYTES + self.key.bytes()
    }
}

impl<K: BranchKey> Level<K> {
    fn new() -> Level<K> {
        Level {
            children: Vec::new(),
            fit: 0,
            fit_bytes: HEADER_BYTES,
        }
    }

    /// Adds a child. Returns those that make a page, once two more are there.
    fn push(&mut self, child: Child<K>, page_size: usize) -> Option<Vec<Child<K>>> {
        let bytes = child.bytes();
        let all_fit = self.fit == self.children.len();
        if all_fit && (self.fit < 2 || self.fit_bytes + bytes <= page_size) {
            self.fit += 1;
            self.fit_bytes += bytes;
        }
        self.children.push(child);
        if self.children.len() < self.fit + 2 {
            return None;
        }
        let rest = self.children.split_off(self.fit);
        let full = std::mem::take(&mut self.children);
        *self = Level::new();
        for child in rest {
            // Two: never a page yet.
            self.push(child, page_size);
        }
        Some(full)
    }
}
