//! Values under small numbers. Grows by whole chunks: nothing is ever moved, so that a
//! store of millions of keys never stops to copy them.

/// Values in a chunk.
const CHUNK: usize = 1024;

/// A slab.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            chunks: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Stores a value under a number of its own.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(i) = self.free.pop()
            && let Some(place) = self.place(i)
        {
            *place = Some(value);
            return i;
        }
        if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let n = self.chunks.len() - 1;
        let chunk = &mut self.chunks[n];
        chunk.push(Some(value));
        (n * CHUNK + chunk.len() - 1) as u32
    }

    fn place(&mut self, i: u32) -> Option<&mut Option<T>> {
        let i = i as usize;
        self.chunks.get_mut(i / CHUNK)?.get_mut(i % CHUNK)
    }

    /// The value under `i`.
    pub(crate) fn get(&self, i: u32) -> Option<&T> {
        let i = i as usize;
        self.chunks.get(i / CHUNK)?.get(i % CHUNK)?.as_ref()
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, i: u32) -> Option<&mut T> {
        self.place(i)?.as_mut()
    }

    /// Takes the value out; its number may be used again.
    pub(crate) fn remove(&mut self, i: u32) -> Option<T> {
        let value = self.place(i)?.take()?;
        self.free.push(i);
        Some(value)
    }
}
