//! Which watchers there are, and where each of them is.
//!
//! Three methods change that: [`Watchers::add`], [`Watchers::put`] and [`Watchers::remove`].
//! Each takes a number of steps that goes with the logarithm of what is held.

use bytes::Bytes;
use engine::history::Event;
use engine::interval::{End, Interval, IntervalMap};
use engine::op::KeyRange;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::rc::Rc;
use wire::Peer;

/// A watch stream of this worker. Never used again.
pub(super) type StreamId = u64;

/// A cursor that watchers which are behind share. Never used again.
pub(super) type CursorId = u64;

/// A watcher of this worker: its slot, and how often that had been used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WatcherId {
    generation: u32,
    slot: u32,
}

impl WatcherId {
    const FIRST: WatcherId = WatcherId {
        generation: 0,
        slot: 0,
    };

    fn to_number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    fn from_number(number: u64) -> Self {
        WatcherId {
            generation: (number >> 32) as u32,
            slot: number as u32,
        }
    }
}

/// Where a watcher gets its events from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// From the cursor of those that have been sent everything.
    Synced,
    /// From older history: it began in the past, or its client was slow.
    Behind(Behind),
}

/// What a watcher that is behind waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// A cursor to read with.
    Waiting,
    /// This cursor's next events.
    Reading(CursorId),
    /// Room in its stream's queue.
    Stalled,
}

const EVERYTHING: Interval<&[u8]> = Interval {
    start: b"",
    end: End::Open,
};

/// What a client asked for.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    pub(super) stream: StreamId,
    pub(super) watch_id: i64,
    pub(super) range: KeyRange,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
    /// Wants progress notifications.
    pub(super) progress_notify: bool,
    /// Nothing was sent since the last tick of the notification timer.
    pub(super) quiet: bool,
    /// Events below are not for it. Of two, this and its cursor's, the higher one holds.
    pub(super) next_revision: i64,
}

impl Watcher {
    pub(super) fn wants(&self, e: &Event) -> bool {
        e.revision.main >= self.next_revision
            && !(if e.tail.is_some() {
                self.no_put
            } else {
                self.no_delete
            })
    }
}

/// A watcher, where it is, and a note of who matches events (see [`Watchers::seat`]).
struct Held {
    watcher: Watcher,
    place: Place,
    seat: u32,
}

struct Slot {
    generation: u32,
    held: Option<Held>,
}

/// A stream's watchers.
struct Members {
    connection: Rc<Peer>,
    by_watch_id: BTreeMap<i64, WatcherId>,
    next_watch_id: i64,
    /// How many are behind.
    behind: usize,
    /// Those that wait for room, by the revision that they need next.
    stalled: BTreeSet<(i64, WatcherId)>,
    /// Synced ones that started after what was there, by the revision of their start.
    ahead: BTreeSet<(i64, WatcherId)>,
}

/// The watch id is taken, or the stream is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// All watchers of a worker.
pub(super) struct Watchers {
    slots: Vec<Slot>,
    free: Vec<u32>,
    len: usize,
    behind: usize,
    /// The next revision that the synced watchers' cursor takes.
    synced_next: i64,
    synced: IntervalMap<Bytes>,
    /// The cursors of others, few.
    reading: Vec<(CursorId, IntervalMap<Bytes>)>,
    /// Those that wait for a cursor, by the revision that they need next.
    waiting: BTreeSet<(i64, WatcherId)>,
    streams: HashMap<StreamId, Members>,
    /// Watches of each connection, by its peer's address in memory.
    connections: HashMap<*const Peer, usize>,
    /// See [`Watchers::take_settled`].
    settled: Vec<StreamId>,
}

impl Watchers {
    pub(super) fn new(synced_next: i64) -> Self {
        Watchers {
            slots: Vec::new(),
            free: Vec::new(),
            len: 0,
            behind: 0,
            synced_next,
            synced: IntervalMap::default(),
            reading: Vec::new(),
            waiting: BTreeSet::new(),
            streams: HashMap::new(),
            connections: HashMap::new(),
            settled: Vec::new(),
        }
    }

    // --- the three that change where watchers are

    /// Adds a watcher with the id asked for (0: the next free one); returns that id.
    pub(super) fn add(&mut self, mut watcher: Watcher, place: Place) -> Result<i64, Refused> {
        let members = self.streams.get_mut(&watcher.stream).ok_or(Refused)?;
        if watcher.watch_id == 0 {
            while members.by_watch_id.contains_key(&members.next_watch_id) {
                members.next_watch_id += 1;
            }
            watcher.watch_id = members.next_watch_id;
            members.next_watch_id += 1;
        } else if members.by_watch_id.contains_key(&watcher.watch_id) {
            return Err(Refused);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                held: None,
            });
            // `--max-watches` is far below.
            (self.slots.len() - 1) as u32
        });
        let s = &mut self.slots[slot as usize];
        let id = WatcherId {
            generation: s.generation,
            slot,
        };
        let watch_id = watcher.watch_id;
        members.by_watch_id.insert(watch_id, id);
        let connection = Rc::as_ptr(&members.connection);
        *self.connections.entry(connection).or_default() += 1;
        s.held = Some(Held {
            watcher,
            place,
            seat: 0,
        });
        self.len += 1;
        self.enter(id);
        Ok(watch_id)
    }

    /// Puts a watcher somewhere else, with the revision that it needs next.
    pub(super) fn put(&mut self, id: WatcherId, next_revision: i64, place: Place) {
        let Some(left) = self.leave(id) else {
            return;
        };
        if let Some(h) = self.held_mut(id) {
            h.watcher.next_revision = next_revision;
            h.place = place;
        }
        self.enter(id);
        self.settle(left);
    }

    /// Forgets a watcher.
    pub(super) fn remove(&mut self, id: WatcherId) {
        let Some(left) = self.leave(id) else {
            return;
        };
        self.settle(left);
        let slot = &mut self.slots[id.slot as usize];
        let Some(Held { watcher, .. }) = slot.held.take() else {
            return;
        };
        // A slot that was used so often is left alone.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.slot);
        }
        self.len -= 1;
        let Some(members) = self.streams.get_mut(&watcher.stream) else {
            return;
        };
        members.by_watch_id.remove(&watcher.watch_id);
        let connection = Rc::as_ptr(&members.connection);
        if let Some(count) = self.connections.get_mut(&connection) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(&connection);
            }
        }
    }

    /// Takes a watcher out of the sets that its place stands for; says whose it is, and where
    /// it was.
    fn leave(&mut self, id: WatcherId) -> Option<(StreamId, Place)> {
        let slot = self.slots.get(id.slot as usize);
        let slot = slot.filter(|s| s.generation == id.generation)?;
        let Held { watcher, place, .. } = slot.held.as_ref()?;
        let (next, number) = (watcher.next_revision, id.to_number());
        let range = watcher.range.interval();
        let members = self.streams.get_mut(&watcher.stream)?;
        match place {
            Place::Synced => {
                self.synced.remove(&range, number);
                members.ahead.remove(&(next, id));
            }
            Place::Behind(behind) => {
                match behind {
                    Behind::Waiting => {
                        self.waiting.remove(&(next, id));
                    }
                    Behind::Reading(cursor) => {
                        if let Some((_, set)) = self.reading.iter_mut().find(|c| c.0 == *cursor) {
                            set.remove(&range, number);
                        }
                    }
                    Behind::Stalled => {
                        members.stalled.remove(&(next, id));
                    }
                }
                members.behind -= 1;
                self.behind -= 1;
            }
        }
        Some((watcher.stream, *place))
    }

    /// Notes a stream of which nothing is under way any more, or which has caught up.
    fn settle(&mut self, (stream, left): (StreamId, Place)) {
        let (Place::Behind(was), Some(members)) = (left, self.streams.get(&stream)) else {
            return;
        };
        let landed = was != Behind::Stalled && members.behind == members.stalled.len();
        if landed || members.behind == 0 {
            self.settled.push(stream);
        }
    }

    /// Enters a watcher into the sets that its place stands for.
    fn enter(&mut self, id: WatcherId) {
        let Some(Held { watcher, place, .. }) = self
            .slots
            .get(id.slot as usize)
            .and_then(|s| s.held.as_ref())
        else {
            return;
        };
        let (next, number) = (watcher.next_revision, id.to_number());
        let Some(members) = self.streams.get_mut(&watcher.stream) else {
            return;
        };
        match place {
            Place::Synced => {
                self.synced.insert(Interval::from(&watcher.range), number);
                if next > self.synced_next {
                    members.ahead.insert((next, id));
                }
            }
            Place::Behind(behind) => {
                match behind {
                    Behind::Waiting => {
                        self.waiting.insert((next, id));
                    }
                    Behind::Reading(cursor) => {
                        let range = Interval::from(&watcher.range);
                        match self.reading.iter_mut().find(|c| c.0 == *cursor) {
                            Some((_, set)) => set.insert(range, number),
                            None => {
                                let mut set = IntervalMap::default();
                                set.insert(range, number);
                                self.reading.push((*cursor, set));
                            }
                        }
                    }
                    Behind::Stalled => {
                        members.stalled.insert((next, id));
                    }
                }
                members.behind += 1;
                self.behind += 1;
            }
        }
    }

    // --- streams

    pub(super) fn open_stream(&mut self, stream: StreamId, connection: Rc<Peer>) {
        let members = Members {
            connection,
            by_watch_id: BTreeMap::new(),
            next_watch_id: 0,
            behind: 0,
            stalled: BTreeSet::new(),
            ahead: BTreeSet::new(),
        };
        self.streams.insert(stream, members);
    }

    /// Removes some watcher of a stream that is gone; false once there is none, and the stream
    /// is forgotten.
    pub(super) fn remove_one_of(&mut self, stream: StreamId) -> bool {
        let members = self.streams.get(&stream);
        match members.and_then(|m| m.by_watch_id.first_key_value()) {
            Some((_, &id)) => {
                self.remove(id);
                true
            }
            None => {
                self.streams.remove(&stream);
                false
            }
        }
    }

    /// Watches of the connection that a stream is on.
    pub(super) fn of_connection(&self, stream: StreamId) -> usize {
        let members = self.streams.get(&stream);
        members.map_or(0, |m| {
            let count = self.connections.get(&Rc::as_ptr(&m.connection));
            count.copied().unwrap_or(0)
        })
    }

    pub(super) fn find(&self, stream: StreamId, watch_id: i64) -> Option<WatcherId> {
        let members = self.streams.get(&stream)?;
        members.by_watch_id.get(&watch_id).copied()
    }

    /// The stream's first watcher with an id above `after`.
    pub(super) fn next_of(&self, stream: StreamId, after: Option<i64>) -> Option<(i64, WatcherId)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let members = self.streams.get(&stream)?;
        let next = members.by_watch_id.range((from, Bound::Unbounded)).next();
        next.map(|(&watch_id, &id)| (watch_id, id))
    }

    pub(super) fn has_any(&self, stream: StreamId) -> bool {
        let members = self.streams.get(&stream);
        members.is_some_and(|m| !m.by_watch_id.is_empty())
    }

    /// Whether all watchers of a stream have been sent what is below the synced cursor.
    pub(super) fn all_synced(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|m| m.behind == 0)
    }

    /// Whether a stream has a watcher that starts above what the synced cursor has read.
    pub(super) fn any_ahead(&self, stream: StreamId) -> bool {
        let last = self.streams.get(&stream).and_then(|m| m.ahead.last());
        last.is_some_and(|(start, _)| *start > self.synced_next)
    }

    /// The stalled watcher of a stream that is furthest behind.
    pub(super) fn first_stalled(&self, stream: StreamId) -> Option<(i64, WatcherId)> {
        self.streams.get(&stream)?.stalled.first().copied()
    }

    /// How many watchers of a stream wait for a cursor or read with one.
    pub(super) fn under_way(&self, stream: StreamId) -> usize {
        let members = self.streams.get(&stream);
        members.map_or(0, |m| m.behind - m.stalled.len())
    }

    /// Streams none of whose watchers waits for, or reads with, a cursor since the last call, or
    /// all of whose watchers are synced since then.
    pub(super) fn take_settled(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.settled)
    }

    // --- watchers

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn behind(&self) -> usize {
        self.behind
    }

    fn held(&self, id: WatcherId) -> Option<&Held> {
        let slot = self.slots.get(id.slot as usize);
        slot.filter(|s| s.generation == id.generation)?
            .held
            .as_ref()
    }

    fn held_mut(&mut self, id: WatcherId) -> Option<&mut Held> {
        let slot = self.slots.get_mut(id.slot as usize);
        slot.filter(|s| s.generation == id.generation)?
            .held
            .as_mut()
    }

    pub(super) fn get(&self, id: WatcherId) -> Option<&Watcher> {
        self.held(id).map(|h| &h.watcher)
    }

    pub(super) fn place(&self, id: WatcherId) -> Option<Place> {
        self.held(id).map(|h| h.place)
    }

    pub(super) fn set_quiet(&mut self, id: WatcherId, quiet: bool) {
        if let Some(h) = self.held_mut(id) {
            h.watcher.quiet = quiet;
        }
    }

    /// A number that whoever matches events notes at a watcher, to find it again.
    pub(super) fn seat(&mut self, id: WatcherId) -> Option<(&Watcher, &mut u32)> {
        self.held_mut(id).map(|h| (&h.watcher, &mut h.seat))
    }

    // --- cursors

    #[cfg(test)]
    pub(super) fn synced_next(&self) -> i64 {
        self.synced_next
    }

    /// The synced watchers' cursor moves on.
    pub(super) fn set_synced_next(&mut self, next_revision: i64) {
        self.synced_next = next_revision;
    }

    fn set(&self, place: Place) -> Option<&IntervalMap<Bytes>> {
        match place {
            Place::Synced => Some(&self.synced),
            Place::Behind(Behind::Reading(cursor)) => {
                let found = self.reading.iter().find(|c| c.0 == cursor);
                found.map(|c| &c.1)
            }
            Place::Behind(Behind::Waiting | Behind::Stalled) => None,
        }
    }

    /// Calls `found` with each watcher of a cursor whose range holds `key`.
    pub(super) fn matching(&self, cursor: Place, key: &[u8], mut found: impl FnMut(WatcherId)) {
        if let Some(set) = self.set(cursor) {
            set.each(&Interval::one(key), |number| {
                found(WatcherId::from_number(number));
                true
            });
        }
    }

    /// How many watchers a cursor has.
    pub(super) fn count(&self, cursor: Place) -> usize {
        self.set(cursor).map_or(0, IntervalMap::len)
    }

    /// Some watcher of a cursor.
    pub(super) fn any_of(&self, cursor: Place) -> Option<WatcherId> {
        let first = self.set(cursor)?.any(&EVERYTHING);
        first.map(WatcherId::from_number)
    }

    /// All watchers of a cursor.
    pub(super) fn all_of(&self, cursor: Place) -> Vec<WatcherId> {
        let mut all = Vec::with_capacity(self.count(cursor));
        if let Some(set) = self.set(cursor) {
            set.each(&EVERYTHING, |number| {
                all.push(WatcherId::from_number(number));
                true
            });
        }
        all
    }

    /// A cursor is no more; it has no watchers.
    pub(super) fn drop_cursor(&mut self, cursor: CursorId) {
        self.reading.retain(|c| c.0 != cursor);
    }

    /// Of those that wait for a cursor, the one furthest behind that needs nothing below
    /// `from`.
    pub(super) fn first_waiting(&self, from: i64) -> Option<(i64, WatcherId)> {
        let mut at_or_above = self.waiting.range((from, WatcherId::FIRST)..);
        at_or_above.next().copied()
    }

    // --- for tests

    /// How many intervals were looked at so far.
    #[cfg(test)]
    pub(super) fn matching_steps(&self) -> u64 {
        self.synced.steps()
    }

    /// Panics unless every watcher is where its place says, and nowhere else.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let held = || {
            self.slots.iter().enumerate().filter_map(|(slot, s)| {
                let id = WatcherId {
                    generation: s.generation,
                    slot: slot as u32,
                };
                s.held.as_ref().map(|h| (id, h))
            })
        };
        let count = |place: &dyn Fn(Place) -> bool| held().filter(|(_, h)| place(h.place)).count();
        let behind = |b: Behind| count(&|p| p == Place::Behind(b));
        assert_eq!(self.len, held().count());
        assert_eq!(self.behind, count(&|p| p != Place::Synced));
        assert_eq!(self.synced.len(), count(&|p| p == Place::Synced));
        assert_eq!(self.waiting.len(), behind(Behind::Waiting));
        for (cursor, set) in &self.reading {
            assert_eq!(set.len(), behind(Behind::Reading(*cursor)));
        }
        let stalled: usize = self.streams.values().map(|m| m.stalled.len()).sum();
        assert_eq!(stalled, behind(Behind::Stalled));
        for (id, h) in held() {
            let Watcher {
                stream,
                watch_id,
                next_revision,
                ..
            } = h.watcher;
            let members = &self.streams[&stream];
            assert_eq!(members.by_watch_id[&watch_id], id);
            match h.place {
                Place::Behind(Behind::Waiting) => {
                    assert!(self.waiting.contains(&(next_revision, id)));
                }
                Place::Behind(Behind::Stalled) => {
                    assert!(members.stalled.contains(&(next_revision, id)));
                }
                place => assert!(self.all_of(place).contains(&id)),
            }
        }
        for (stream, members) in &self.streams {
            let of_stream = |h: &Held| h.watcher.stream == *stream;
            let behind = held().filter(|(_, h)| of_stream(h) && h.place != Place::Synced);
            assert_eq!(members.behind, behind.count());
            let all = held().filter(|(_, h)| of_stream(h)).count();
            assert_eq!(members.by_watch_id.len(), all);
            for (start, id) in &members.ahead {
                let h = self.held(*id).unwrap();
                assert_eq!((h.watcher.next_revision, h.place), (*start, Place::Synced));
            }
        }
        assert_eq!(self.connections.values().sum::<usize>(), self.len);
    }
}
