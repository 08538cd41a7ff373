//! The order of the keys: their slots' numbers in sorted chunks, 4 bytes a key where a
//! B-tree of keys takes 30. Comparisons look the keys up where they are.

/// A chunk is split when it would have more numbers than this.
const CHUNK: usize = 512;

/// A position: chunk, and place in it.
pub(crate) type Place = (usize, usize);

/// Numbers of slots, sorted by the keys that `key_of` finds for them.
#[derive(Debug, Default)]
pub(crate) struct KeyOrder {
    /// None is empty.
    chunks: Vec<Vec<u32>>,
}

impl KeyOrder {
    /// The first place whose key is not `before` (a predicate that no key satisfies after
    /// one that does not).
    pub(crate) fn seek(&self, before: impl Fn(u32) -> bool) -> Place {
        // The last chunk whose first key is before; the place is in it or right behind it.
        let n = self
            .chunks
            .partition_point(|c| c.first().is_some_and(|&i| before(i)));
        match n.checked_sub(1) {
            Some(c) => (c, self.chunks[c].partition_point(|&i| before(i))),
            None => (0, 0),
        }
    }

    /// Adds slot `id` of `key`, which must be new.
    pub(crate) fn insert<'a>(&mut self, key: &[u8], id: u32, key_of: impl Fn(u32) -> &'a [u8]) {
        let last = self.chunks.last().and_then(|c| c.last());
        if last.is_none_or(|&i| key_of(i) < key) {
            // Keys that come in order leave full chunks behind.
            match self.chunks.last_mut() {
                Some(chunk) if chunk.len() < CHUNK => chunk.push(id),
                _ => self.chunks.push(vec![id]),
            }
            return;
        }
        let (c, at) = self.seek(|i| key_of(i) < key);
        self.chunks[c].insert(at, id);
        if self.chunks[c].len() > CHUNK {
            let half = self.chunks[c].split_off(CHUNK / 2);
            self.chunks[c].shrink_to_fit();
            self.chunks.insert(c + 1, half);
        }
    }

    /// Removes the slot of `key`.
    pub(crate) fn remove<'a>(&mut self, key: &[u8], id: u32, key_of: impl Fn(u32) -> &'a [u8]) {
        let (mut c, mut at) = self.seek(|i| key_of(i) < key);
        if self.chunks.get(c).is_some_and(|chunk| at == chunk.len()) {
            (c, at) = (c + 1, 0);
        }
        if self.chunks.get(c).and_then(|chunk| chunk.get(at)) != Some(&id) {
            return;
        }
        self.chunks[c].remove(at);
        let len = self.chunks[c].len();
        if len == 0 {
            self.chunks.remove(c);
        } else if len < CHUNK / 4
            && self
                .chunks
                .get(c + 1)
                .is_some_and(|next| next.len() + len <= CHUNK / 2)
        {
            let next = self.chunks.remove(c + 1);
            self.chunks[c].extend(next);
        }
    }

    /// The numbers between two places, in order; none if the second is not behind.
    pub(crate) fn between(&self, start: Place, end: Place) -> impl Iterator<Item = u32> + '_ {
        let end = end.max(start);
        let chunks = self.chunks.get(start.0..).unwrap_or_default();
        chunks
            .iter()
            .take(end.0 - start.0 + 1)
            .enumerate()
            .flat_map(move |(n, chunk)| {
                let from = if n == 0 { start.1 } else { 0 };
                let to = if n == end.0 - start.0 {
                    end.1
                } else {
                    chunk.len()
                };
                chunk[from..to].iter().copied()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_through_inserts_and_removals() {
        // Number i stands for a key that is i spread over the space.
        let keys: Vec<Vec<u8>> = (0..6000u32)
            .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes().to_vec())
            .collect();
        let key_of = |i: u32| keys[i as usize].as_slice();
        let mut order = KeyOrder::default();
        let mut want = std::collections::BTreeMap::new();
        for i in 0..6000 {
            order.insert(key_of(i), i, key_of);
            want.insert(key_of(i), i);
        }
        for i in (0..6000).filter(|i| i % 7 != 3) {
            if i % 2 == 0 {
                continue;
            }
            order.remove(key_of(i), i, key_of);
            want.remove(key_of(i));
        }
        for i in (0..6000).filter(|i| i % 10 != 0 && i % 2 == 0) {
            order.remove(key_of(i), i, key_of);
            want.remove(key_of(i));
        }
        for (from, to) in [
            (0u32, u32::MAX),
            (1 << 20, 1 << 30),
            (1 << 31, 1 << 31),
            (9, 3),
        ] {
            let (a, b) = (from.to_be_bytes(), to.to_be_bytes());
            let got: Vec<u32> = order
                .between(
                    order.seek(|i| key_of(i) < a.as_slice()),
                    order.seek(|i| key_of(i) < b.as_slice()),
                )
                .collect();
            let expected: Vec<u32> = want
                .iter()
                .filter(|(k, _)| **k >= a.as_slice() && **k < b.as_slice())
                .map(|(_, &i)| i)
                .collect();
            assert_eq!(got, expected);
        }
        for &i in want.values() {
            order.remove(key_of(i), i, key_of);
        }
        assert!(order.chunks.is_empty());
    }
}
