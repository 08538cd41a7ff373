//! Intervals of keys, each with an id: which of them hold a key, or overlap another interval,
//! without looking at all of them.
//!
//! A balanced tree sorted by start, in which each node knows how far the intervals below it
//! reach and between which ids they are. Adding and removing take a number of steps that goes
//! with the logarithm of what is held; a search that asks for one overlap, too.

use crate::op::KeyRange;
use crate::slab::Slab;
use bytes::Bytes;
use std::cell::Cell;
use std::cmp::Ordering;
use std::ops::Bound;

/// From where to where, for a search in what is sorted by key.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Where an interval ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<K> {
    /// With its start: it holds that key alone.
    Start,
    /// Before this key.
    Before(K),
    /// Nowhere.
    Open,
}

/// The keys from `start` to `end`. Those that hold no key are never found, nor find anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval<K> {
    /// The first key.
    pub start: K,
    /// Where it ends.
    pub end: End<K>,
}

impl From<&KeyRange> for Interval<Bytes> {
    fn from(range: &KeyRange) -> Self {
        let end = match range.upper() {
            _ if range.is_one() => End::Start,
            Some(_) => End::Before(range.end.clone()),
            None => End::Open,
        };
        Interval {
            start: range.key.clone(),
            end,
        }
    }
}

impl KeyRange {
    /// The interval that it names, for a search.
    pub fn interval(&self) -> Interval<&[u8]> {
        let end = match self.upper() {
            _ if self.is_one() => End::Start,
            Some(end) => End::Before(end),
            None => End::Open,
        };
        Interval {
            start: self.key.as_ref(),
            end,
        }
    }
}

impl<K: AsRef<[u8]>> Interval<K> {
    /// The interval of one key.
    pub fn one(start: K) -> Self {
        Interval {
            start,
            end: End::Start,
        }
    }

    /// The same, borrowed.
    pub fn by_ref(&self) -> Interval<&[u8]> {
        let end = match &self.end {
            End::Start => End::Start,
            End::Before(end) => End::Before(end.as_ref()),
            End::Open => End::Open,
        };
        Interval {
            start: self.start.as_ref(),
            end,
        }
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if end.as_ref() <= self.start.as_ref())
    }

    /// Whether it goes on up to `key`, wherever it starts.
    pub(crate) fn reaches(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Start => key <= self.start.as_ref(),
            End::Before(end) => key < end.as_ref(),
            End::Open => true,
        }
    }

    /// Which of two goes further.
    pub(crate) fn cmp_end<L: AsRef<[u8]>>(&self, other: &Interval<L>) -> Ordering {
        // Of two that end at the same key, the one that holds it goes further.
        fn rank<K: AsRef<[u8]>>(i: &Interval<K>) -> (bool, &[u8], bool) {
            match &i.end {
                End::Start => (false, i.start.as_ref(), true),
                End::Before(end) => (false, end.as_ref(), false),
                End::Open => (true, &[], false),
            }
        }
        rank(self).cmp(&rank(other))
    }

    /// From where on it holds nothing any more; `None` if it has no end.
    pub(crate) fn behind(&self) -> Option<Bound<&[u8]>> {
        match &self.end {
            End::Start => Some(Bound::Excluded(self.start.as_ref())),
            End::Before(end) => Some(Bound::Included(end.as_ref())),
            End::Open => None,
        }
    }

    fn order<L: AsRef<[u8]>>(&self, other: &Interval<L>) -> Ordering {
        let start = self.start.as_ref().cmp(other.start.as_ref());
        start.then_with(|| self.cmp_end(other))
    }
}

#[derive(Debug)]
struct Node<K> {
    interval: Interval<K>,
    id: u64,
    /// How often it was added and not removed.
    times: u32,
    /// The nodes before and after it.
    children: [Option<u32>; 2],
    /// Of itself and of all below it: levels, the node whose interval reaches furthest, ids.
    height: u8,
    furthest: u32,
    min_id: u64,
    max_id: u64,
}

/// Intervals with an id each. The same pair may be held several times.
#[derive(Debug)]
pub struct IntervalMap<K> {
    nodes: Slab<Node<K>>,
    root: Option<u32>,
    len: usize,
    steps: Cell<u64>,
}

impl<K> Default for IntervalMap<K> {
    fn default() -> Self {
        IntervalMap {
            nodes: Slab::default(),
            root: None,
            len: 0,
            steps: Cell::new(0),
        }
    }
}

impl<K: AsRef<[u8]>> IntervalMap<K> {
    /// Number of intervals held, each as often as it was added.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many nodes all calls so far have looked at: what tests bound.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Adds an interval, unless it holds no key.
    pub fn insert(&mut self, interval: Interval<K>, id: u64) {
        if interval.is_empty() {
            return;
        }
        self.len += 1;
        if let Some(i) = self.find(&interval, id)
            && let Some(node) = self.nodes.get_mut(i)
        {
            node.times += 1;
            return;
        }
        let new = self.nodes.insert(Node {
            interval,
            id,
            times: 1,
            children: [None; 2],
            height: 1,
            furthest: 0,
            min_id: id,
            max_id: id,
        });
        self.pull(new);
        self.root = Some(self.insert_below(self.root, new));
    }

    /// Removes an interval with this id, once. False if there is none.
    pub fn remove<L: AsRef<[u8]>>(&mut self, interval: &Interval<L>, id: u64) -> bool {
        let Some(i) = self.find(interval, id) else {
            return false;
        };
        self.len -= 1;
        match self.nodes.get_mut(i) {
            Some(node) if node.times > 1 => node.times -= 1,
            _ => self.root = self.remove_below(self.root, i),
        }
        if self.root.is_none() {
            // The room that many took is given back.
            self.nodes = Slab::default();
        }
        true
    }

    /// The id of one interval that overlaps `with`.
    pub fn any(&self, with: &Interval<impl AsRef<[u8]>>) -> Option<u64> {
        let mut found = None;
        self.each(with, |id| {
            found = Some(id);
            false
        });
        found
    }

    /// Whether an interval holds `key`.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.any(&Interval::one(key)).is_some()
    }

    /// Calls `seen` with the id of each interval that overlaps `with`, in order of their
    /// starts, until it returns false. An interval that was added twice comes once.
    pub fn each(&self, with: &Interval<impl AsRef<[u8]>>, mut seen: impl FnMut(u64) -> bool) {
        if !with.is_empty() {
            self.each_below(self.root, &with.by_ref(), &mut seen);
        }
    }

    /// The greatest id under `below` of the intervals that overlap `with`.
    pub fn latest(&self, with: &Interval<impl AsRef<[u8]>>, below: u64) -> Option<u64> {
        let mut found = None;
        if !with.is_empty() {
            self.latest_below(self.root, &with.by_ref(), below, &mut found);
        }
        found
    }

    fn node(&self, i: u32) -> Option<&Node<K>> {
        self.steps.set(self.steps.get() + 1);
        self.nodes.get(i)
    }

    fn find<L: AsRef<[u8]>>(&self, interval: &Interval<L>, id: u64) -> Option<u32> {
        let mut at = self.root;
        while let Some(i) = at {
            let node = self.node(i)?;
            let order = interval.order(&node.interval).then(id.cmp(&node.id));
            at = match order {
                Ordering::Less => node.children[0],
                Ordering::Greater => node.children[1],
                Ordering::Equal => return Some(i),
            };
        }
        None
    }

    fn each_below(
        &self,
        at: Option<u32>,
        with: &Interval<&[u8]>,
        seen: &mut dyn FnMut(u64) -> bool,
    ) -> bool {
        let Some(node) = at.and_then(|i| self.node(i)) else {
            return true;
        };
        if !self.far_enough(node, with) {
            return true;
        }
        if !self.each_below(node.children[0], with, seen) {
            return false;
        }
        if !with.reaches(node.interval.start.as_ref()) {
            return true;
        }
        if node.interval.reaches(with.start) && !seen(node.id) {
            return false;
        }
        self.each_below(node.children[1], with, seen)
    }

    fn latest_below(
        &self,
        at: Option<u32>,
        with: &Interval<&[u8]>,
        below: u64,
        found: &mut Option<u64>,
    ) {
        let Some(node) = at.and_then(|i| self.node(i)) else {
            return;
        };
        let of_use = node.min_id < below && found.is_none_or(|id| node.max_id > id);
        if !of_use || !self.far_enough(node, with) {
            return;
        }
        let starts_before = with.reaches(node.interval.start.as_ref());
        if starts_before
            && node.id < below
            && found.is_none_or(|id| node.id > id)
            && node.interval.reaches(with.start)
        {
            *found = Some(node.id);
        }
        let max_id = |at: Option<u32>| at.and_then(|i| self.nodes.get(i)).map(|n| n.max_id);
        let mut children = node.children;
        if max_id(children[1]) > max_id(children[0]) {
            // Where the greater ids are first: the others are then of no use.
            children.reverse();
        }
        for child in children {
            if starts_before || child == node.children[0] {
                self.latest_below(child, with, below, found);
            }
        }
    }

    /// Whether an interval at or below a node goes on up to the start of `with`.
    fn far_enough(&self, node: &Node<K>, with: &Interval<&[u8]>) -> bool {
        let furthest = self.nodes.get(node.furthest);
        furthest.is_some_and(|n| n.interval.reaches(with.start))
    }

    /// Works out what a node knows of those below it.
    fn pull(&mut self, i: u32) {
        let Some(node) = self.node(i) else { return };
        let (mut height, mut furthest) = (1, i);
        let (mut min_id, mut max_id) = (node.id, node.id);
        for child in node.children.into_iter().flatten() {
            let Some(child) = self.nodes.get(child) else {
                continue;
            };
            height = height.max(child.height + 1);
            min_id = min_id.min(child.min_id);
            max_id = max_id.max(child.max_id);
            if let (Some(a), Some(b)) = (self.nodes.get(child.furthest), self.nodes.get(furthest))
                && a.interval.cmp_end(&b.interval).is_gt()
            {
                furthest = child.furthest;
            }
        }
        if let Some(node) = self.nodes.get_mut(i) {
            (node.height, node.furthest) = (height, furthest);
            (node.min_id, node.max_id) = (min_id, max_id);
        }
    }

    fn child(&self, i: u32, side: usize) -> Option<u32> {
        self.nodes.get(i).and_then(|n| n.children[side])
    }

    fn set_child(&mut self, i: u32, side: usize, child: Option<u32>) {
        if let Some(node) = self.nodes.get_mut(i) {
            node.children[side] = child;
        }
    }

    fn height(&self, at: Option<u32>) -> u8 {
        at.and_then(|i| self.nodes.get(i)).map_or(0, |n| n.height)
    }

    /// Lifts the child on one side above its parent; returns who is on top.
    fn lift(&mut self, i: u32, side: usize) -> u32 {
        let Some(child) = self.child(i, side) else {
            return i;
        };
        self.set_child(i, side, self.child(child, 1 - side));
        self.set_child(child, 1 - side, Some(i));
        self.pull(i);
        self.pull(child);
        child
    }

    /// Mends a node below which one level came or went; returns who is on top.
    fn balance(&mut self, i: u32) -> u32 {
        let heights = [0, 1].map(|side| self.height(self.child(i, side)));
        let side = match heights {
            [before, after] if before > after + 1 => 0,
            [before, after] if after > before + 1 => 1,
            _ => {
                self.pull(i);
                return i;
            }
        };
        if let Some(child) = self.child(i, side) {
            let heights = [0, 1].map(|side| self.height(self.child(child, side)));
            if heights[1 - side] > heights[side] {
                let top = self.lift(child, 1 - side);
                self.set_child(i, side, Some(top));
            }
        }
        self.lift(i, side)
    }

    /// On which side of node `i` node `of` belongs.
    fn side(&self, i: u32, of: u32) -> usize {
        match (self.node(i), self.nodes.get(of)) {
            (Some(a), Some(b)) => {
                let order = b.interval.order(&a.interval).then(b.id.cmp(&a.id));
                usize::from(order.is_gt())
            }
            _ => 0,
        }
    }

    fn insert_below(&mut self, at: Option<u32>, new: u32) -> u32 {
        let Some(i) = at else { return new };
        let side = self.side(i, new);
        let top = self.insert_below(self.child(i, side), new);
        self.set_child(i, side, Some(top));
        self.balance(i)
    }

    fn remove_below(&mut self, at: Option<u32>, gone: u32) -> Option<u32> {
        let i = at?;
        if i != gone {
            let side = self.side(i, gone);
            let top = self.remove_below(self.child(i, side), gone);
            self.set_child(i, side, top);
            return Some(self.balance(i));
        }
        let [before, after] = self.nodes.remove(i)?.children;
        let (Some(before), Some(after)) = (before, after) else {
            return before.or(after);
        };
        let (rest, next) = self.take_first(after);
        self.set_child(next, 0, Some(before));
        self.set_child(next, 1, rest);
        Some(self.balance(next))
    }

    /// Takes the first node out of a tree: what is left, and the node.
    fn take_first(&mut self, i: u32) -> (Option<u32>, u32) {
        let Some(before) = self.child(i, 0) else {
            return (self.child(i, 1), i);
        };
        let (rest, first) = self.take_first(before);
        self.set_child(i, 0, rest);
        (Some(self.balance(i)), first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Levels of the tree; panics where a node does not know what is below it.
    fn check(map: &IntervalMap<Vec<u8>>, at: Option<u32>) -> u8 {
        let Some(i) = at else { return 0 };
        let n = map.nodes.get(i).unwrap();
        let heights = n.children.map(|c| check(map, c));
        assert!(heights[0].abs_diff(heights[1]) <= 1);
        assert_eq!(n.height, 1 + heights[0].max(heights[1]));
        n.height
    }

    fn overlap(a: &Interval<Vec<u8>>, b: &Interval<Vec<u8>>) -> bool {
        // Every key of up to three letters, and one behind.
        let letters = b"\0abc";
        let mut keys = vec![Vec::new()];
        for n in 0..3 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .filter(|k: &&Vec<u8>| k.len() == n)
                .flat_map(|k| letters.iter().map(|l| [k.as_slice(), &[*l]].concat()))
                .collect();
            keys.extend(longer);
        }
        let holds = |i: &Interval<Vec<u8>>, k: &Vec<u8>| match &i.end {
            End::Start => *k == i.start,
            End::Before(e) => *k >= i.start && k < e,
            End::Open => *k >= i.start,
        };
        keys.iter().any(|k| holds(a, k) && holds(b, k))
    }

    fn interval() -> impl Strategy<Value = Interval<Vec<u8>>> {
        let key = || proptest::collection::vec(proptest::sample::select(&b"\0abc"[..]), 0..3);
        (key(), key(), 0..4).prop_map(|(start, end, kind)| Interval {
            start,
            end: match kind {
                0 => End::Start,
                1 => End::Open,
                _ => End::Before(end),
            },
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            steps in proptest::collection::vec((interval(), 0..12u64, any::<bool>(), 0..14u64), 1..80),
        ) {
            let mut map = IntervalMap::default();
            let mut held: Vec<(Interval<Vec<u8>>, u64)> = Vec::new();
            for (interval, id, add, below) in steps {
                let same = |x: &(Interval<Vec<u8>>, u64)| x.0 == interval && x.1 == id;
                if add {
                    map.insert(interval.clone(), id);
                    if !interval.is_empty() {
                        held.push((interval.clone(), id));
                    }
                } else {
                    let at = held.iter().position(same);
                    prop_assert_eq!(map.remove(&interval, id), at.is_some());
                    at.map(|at| held.swap_remove(at));
                }
                check(&map, map.root);
                prop_assert_eq!(map.len(), held.len());
                let mut got = Vec::new();
                map.each(&interval, |id| { got.push(id); true });
                let hits = held.iter().filter(|(i, _)| overlap(i, &interval));
                let mut want: Vec<(&Interval<Vec<u8>>, u64)> = hits.map(|(i, id)| (i, *id)).collect();
                let latest = want.iter().map(|x| x.1).filter(|id| *id < below).max();
                prop_assert_eq!(map.latest(&interval, below), latest);
                want.sort_by(|a, b| a.0.order(b.0).then(a.1.cmp(&b.1)));
                want.dedup();
                prop_assert_eq!(got, want.into_iter().map(|x| x.1).collect::<Vec<u64>>());
            }
        }
    }

    #[test]
    fn a_call_takes_few_steps_of_many_intervals() {
        const N: u64 = 50_000;
        let key = |i: u64| format!("k{i:09}").into_bytes();
        let mut map = IntervalMap::default();
        // Shuffled, and of all lengths: from one key to a third of all.
        for i in 0..N {
            let start = i * 7919 % N;
            let end = End::Before(key(start + 1 + i * i % (N / 3)));
            let start = key(start);
            map.insert(Interval { start, end }, i);
        }
        let most = |before: u64, map: &IntervalMap<Vec<u8>>| map.steps() - before;
        for i in 0..N {
            let before = map.steps();
            map.holds(&key(i));
            map.latest(&Interval::one(key(i)), u64::MAX);
            assert!(most(before, &map) < 1000, "{}", most(before, &map));
        }
        let before = map.steps();
        for i in 0..N {
            let start = i * 7919 % N;
            let end = End::Before(key(start + 1 + i * i % (N / 3)));
            let start = key(start);
            assert!(map.remove(&Interval { start, end }, i));
        }
        assert!(map.is_empty());
        let each = most(before, &map) / N;
        assert!(each < 100, "{each} steps a removal");
    }
}
