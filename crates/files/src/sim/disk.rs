//! What a simulated disk holds, and which of it a power loss leaves.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit that a disk writes whole.
pub const SECTOR: usize = 512;

pub(super) type Inode = u64;
type Sector = [u8; SECTOR];

/// A small generator (SplitMix64): the same numbers everywhere, from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Default)]
pub(super) struct FileState {
    /// As a process reads it.
    pub(super) current: Arc<Vec<u8>>,
    /// As the platter has it.
    pub(super) durable: Arc<Vec<u8>>,
    /// Versions since the last sync, of sectors that a sync would write.
    pub(super) dirty: BTreeMap<usize, Vec<Sector>>,
    /// The length changed since the last sync.
    pub(super) length_dirty: bool,
    pub(super) reserved: u64,
    /// Bytes of it without room of their own.
    pub(super) punched: u64,
}

impl FileState {
    pub(super) fn sector(bytes: &[u8], index: usize) -> Sector {
        let mut sector = [0; SECTOR];
        let from = (index * SECTOR).min(bytes.len());
        let part = &bytes[from..(from + SECTOR).min(bytes.len())];
        sector[..part.len()].copy_from_slice(part);
        sector
    }

    pub(super) fn note(&mut self, from: usize, to: usize) {
        for index in from / SECTOR..to.div_ceil(SECTOR) {
            let sector = Self::sector(&self.current, index);
            let versions = self.dirty.entry(index).or_default();
            if versions.len() == 4 {
                versions.remove(0);
            }
            versions.push(sector);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        let current = Arc::make_mut(&mut self.current);
        if current.len() < end {
            current.resize(end, 0);
            self.length_dirty = true;
        }
        current[offset..end].copy_from_slice(bytes);
        self.note(offset, end);
    }

    pub(super) fn extend(&mut self, length: usize) {
        Arc::make_mut(&mut self.current).resize(length, 0);
        self.length_dirty = true;
    }

    pub(super) fn put_sector(durable: &mut [u8], index: usize, sector: &Sector) {
        let from = (index * SECTOR).min(durable.len());
        let to = (from + SECTOR).min(durable.len());
        durable[from..to].copy_from_slice(&sector[..to - from]);
    }

    pub(super) fn sync(&mut self) {
        let durable = Arc::make_mut(&mut self.durable);
        if self.length_dirty {
            durable.resize(self.current.len(), 0);
        }
        for (index, versions) in std::mem::take(&mut self.dirty) {
            if let Some(last) = versions.last() {
                Self::put_sector(durable, index, last);
            }
        }
        self.length_dirty = false;
    }

    /// Some of what is dirty reaches the platter; the rest stays dirty.
    pub(super) fn write_back(&mut self, random: &mut Random, portion: u64) {
        if self.length_dirty && random.below(100) < portion {
            Arc::make_mut(&mut self.durable).resize(self.current.len(), 0);
        }
        let durable = Arc::make_mut(&mut self.durable);
        for (index, versions) in &self.dirty {
            if random.below(100) < portion {
                let version = random.below(versions.len() as u64) as usize;
                Self::put_sector(durable, *index, &versions[version]);
            }
        }
    }
}

#[derive(Clone)]
pub(super) enum Change {
    Create(String, Inode),
    /// From, to, and the file: another of the same name is not meant.
    Rename(String, String, Inode),
    Remove(String),
}

pub(super) fn apply(entries: &mut BTreeMap<String, Inode>, change: &Change) {
    match change {
        Change::Create(name, inode) => {
            entries.insert(name.clone(), *inode);
        }
        Change::Rename(from, to, inode) => {
            if entries.get(from) == Some(inode) {
                entries.remove(from);
            }
            entries.insert(to.clone(), *inode);
        }
        Change::Remove(name) => {
            entries.remove(name);
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Directory {
    pub(super) current: BTreeMap<String, Inode>,
    pub(super) durable: BTreeMap<String, Inode>,
    pub(super) changes: Vec<Change>,
}
