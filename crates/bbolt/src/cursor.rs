//! A bucket's keys in order.

use crate::check::Seen;
use crate::database::{Bucket, Database};
use crate::error::{Error, Place};
use crate::format::MAX_DEPTH;
use crate::node::Node;
use crate::source::ReadAt;

/// Goes through the keys of a bucket in order. Ends at the first error.
#[derive(Debug)]
pub struct Cursor<'a, R> {
    database: &'a Database<R>,
    /// From the root down to the leaf that is being read.
    path: Vec<Level>,
    /// A buffer for the next page.
    spare: Vec<u8>,
    /// For [`Database::check`]: the pages met so far.
    pub(crate) seen: Option<Seen>,
}

#[derive(Debug)]
struct Level {
    node: Node,
    /// Of a branch: the element we are below. Of a leaf: the next one to give.
    index: usize,
}

/// A key and what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    node: &'a Node,
    index: usize,
}

impl<'a> Entry<'a> {
    /// The key.
    pub fn key(&self) -> &'a [u8] {
        self.node.key(self.index)
    }

    /// The value; of a bucket, its header (and page, if it is inline).
    pub fn value(&self) -> &'a [u8] {
        self.node.value(self.index)
    }

    /// Whether this is a bucket and not a value.
    pub fn is_bucket(&self) -> bool {
        self.node.is_bucket(self.index)
    }

    /// The bucket, if it is one and not a value.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its header is.
    pub fn bucket(&self) -> Result<Option<Bucket>, Error> {
        if !self.is_bucket() {
            return Ok(None);
        }
        let offset = self.offset() + self.key().len() as u64;
        Bucket::decode(self.value(), self.place(), offset).map(Some)
    }

    /// The page it is on.
    pub fn page(&self) -> u64 {
        self.node.place().page
    }

    /// Where its key begins, in bytes from the beginning of the file; the value follows.
    pub fn offset(&self) -> u64 {
        self.node.data_offset(self.index)
    }

    pub(crate) fn place(&self) -> Place {
        self.node.place_of(self.index)
    }
}

impl<'a, R: ReadAt> Cursor<'a, R> {
    pub(crate) fn new(
        database: &'a Database<R>,
        bucket: &Bucket,
        from: Option<&[u8]>,
    ) -> Result<Cursor<'a, R>, Error> {
        Self::with_seen(database, bucket, from, None)
    }

    pub(crate) fn with_seen(
        database: &'a Database<R>,
        bucket: &Bucket,
        from: Option<&[u8]>,
        seen: Option<Seen>,
    ) -> Result<Cursor<'a, R>, Error> {
        let mut cursor = Cursor {
            database,
            path: Vec::new(),
            spare: Vec::new(),
            seen,
        };
        let (node, pages) = database.root_node(bucket)?;
        cursor.push(node, pages, from)?;
        cursor.descend(from)?;
        Ok(cursor)
    }

    /// The next key; None after the last, and after an error.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Read`].
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, Error> {
        if let Err(error) = self.find_next() {
            self.path.clear();
            return Err(error);
        }
        Ok(self.path.last_mut().map(|leaf| {
            let index = leaf.index;
            leaf.index += 1;
            Entry {
                node: &leaf.node,
                index,
            }
        }))
    }

    /// Makes the path end at a leaf with a next element, or empty at the end.
    fn find_next(&mut self) -> Result<(), Error> {
        while let Some(leaf) = self.path.last()
            && leaf.index >= leaf.node.count()
        {
            // Up to the first branch with a further child, and down from there.
            loop {
                if let Some(done) = self.path.pop() {
                    self.spare = done.node.into_bytes();
                }
                match self.path.last_mut() {
                    None => return Ok(()),
                    Some(branch) if branch.index + 1 < branch.node.count() => {
                        branch.index += 1;
                        break;
                    }
                    Some(_) => {}
                }
            }
            self.descend(None)?;
        }
        Ok(())
    }

    /// Goes down to a leaf: the one that `from` would be on, or the leftmost.
    fn descend(&mut self, from: Option<&[u8]>) -> Result<(), Error> {
        while let Some(parent) = self.path.last()
            && !parent.node.is_leaf()
        {
            let place = parent.node.place_of(parent.index);
            if self.path.len() >= MAX_DEPTH {
                return Err(place.damaged(format!(
                    "the tree is deeper than {MAX_DEPTH} pages, so it must refer to itself"
                )));
            }
            let id = parent.node.child(parent.index);
            let spare = std::mem::take(&mut self.spare);
            let (node, pages) = self.database.node(id, place, spare)?;
            self.check_bounds(&node)?;
            self.push(node, pages, from)?;
        }
        Ok(())
    }

    /// All keys of a page lie between the key that leads to it and the next one. This is
    /// also what ends the walk over pages that refer to each other.
    fn check_bounds(&self, node: &Node) -> Result<(), Error> {
        // bbolt removes a leaf together with its last key.
        let Some(last) = node.count().checked_sub(1) else {
            return Err(node.place().damaged("a leaf page below a branch is empty"));
        };
        let Some(parent) = self.path.last() else {
            return Ok(());
        };
        if node.key(0) < parent.node.key(parent.index) {
            return Err(node.place_of(0).damaged(format!(
                "the first key is below the one that leads here from page {}",
                parent.node.place().page
            )));
        }
        let upper = self.path.iter().rev().find_map(|level| {
            let next = level.index + 1;
            (next < level.node.count()).then(|| (level.node.key(next), level.node.place().page))
        });
        match upper {
            Some((upper, page)) if node.key(last) >= upper => {
                Err(node.place_of(last).damaged(format!(
                    "the last key is not below the one that leads to the next page, on page \
                     {page}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, node: Node, pages: u64, from: Option<&[u8]>) -> Result<(), Error> {
        if let Some(seen) = &mut self.seen {
            seen.used(node.place(), pages)?;
        }
        let index = match from {
            None => 0,
            Some(from) if node.is_leaf() => node.partition(|key| key < from),
            Some(from) => node.partition(|key| key <= from).saturating_sub(1),
        };
        self.path.push(Level { node, index });
        Ok(())
    }
}
