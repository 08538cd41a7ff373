//! A worker's watches.
//!
//! Synced watchers share one cursor on history. Those that are behind (they began in the past,
//! or their client was slow) read older history with a few cursors more, many with one, until
//! they are where the synced ones are. A watcher whose stream has no room leaves its cursor
//! until there is some.
//!
//! One task a worker calls [`Hub::turn`] while there is work. What a turn does is counted in
//! steps and has a limit, so that everyone else of the worker has a turn as well; nothing else
//! here takes more than a few steps.

use super::cursor::{Cursor, Matches, Sending, State, Steps};
use super::encode::{Recipient, Sent, control};
use super::host::{Host, Sink};
use super::progress::{Progress, Round};
use super::watchers::{Behind, CursorId, Place, Refused, StreamId, Watcher, WatcherId, Watchers};
use bytes::Bytes;
use engine::history::Part;
use engine::op::KeyRange;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;
use wire::{MAX_MESSAGE_BYTES, Peer};

/// How much is done at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// What a cursor reads at a time; about as much memory may wait in it to be sent.
    pub(super) part: Part,
    /// How many pairs of watcher and event it finds in that.
    pub(super) matches: Matches,
    /// Steps of a turn for the synced watchers, and as many for all else.
    pub(super) turn_steps: usize,
    /// Cursors besides the synced watchers' one. More watchers than one with other places in
    /// history wait until one is free.
    pub(super) cursors: usize,
    /// Who is no more revisions than this after a cursor reads with it, though another is free.
    pub(super) near_revisions: i64,
    /// So many watchers of a stream go on when it has room again; twice as many each time that
    /// these have caught up.
    pub(super) first_allowance: usize,
    /// So many turns in a row, cursors wait for all who may read with them.
    pub(super) patience_turns: usize,
}

impl Bounds {
    /// A turn takes one to three milliseconds.
    const DEFAULT: Bounds = Bounds {
        part: Part {
            max_events: 1024,
            max_bytes: 4 << 20,
        },
        matches: Matches {
            many: 16 << 10,
            most: 64 << 10,
        },
        turn_steps: 4096,
        cursors: 4,
        near_revisions: 1024,
        first_allowance: 64,
        patience_turns: 32,
    };
}

/// The last tenth of all watches is kept for connections with fewer than this.
const MODEST_WATCHES: usize = 1000;

const TOO_MANY: &str = "orlop: too many watches; raise --max-watches";
const TOO_MANY_HERE: &str = "orlop: too many watches on this connection: the last tenth of \
     --max-watches is kept for connections with fewer than 1000";

/// Whether a stream's queue takes events.
#[derive(Clone, Copy, Debug)]
enum Room {
    /// It does, and so many of its stalled watchers may go on.
    Open { may_resume: usize },
    /// It does not until fewer bytes than these are queued.
    Full { below_bytes: usize },
}

/// A watch stream.
struct Stream<S> {
    sink: S,
    wake: Arc<Notify>,
    room: Room,
    /// How many stalled watchers go on at a time.
    allowance: usize,
    progress: Progress,
    notifications: Round,
}

impl<S: Sink> Stream<S> {
    /// It has refused an answer: its task waits for room.
    fn fill(&mut self, allowance: usize) {
        let limit = self.sink.limit_bytes();
        // A queue that has no room for even one answer takes it when it is empty.
        let below_bytes = if self.sink.queued_bytes() < limit / 2 {
            0
        } else {
            limit / 2
        };
        self.room = Room::Full { below_bytes };
        self.allowance = allowance;
        self.wake.notify_one();
    }
}

/// Streams to look at, each once.
#[derive(Default)]
struct Agenda {
    queue: VecDeque<StreamId>,
    listed: HashSet<StreamId>,
}

impl Agenda {
    fn add(&mut self, stream: StreamId) {
        if self.listed.insert(stream) {
            self.queue.push_back(stream);
        }
    }

    fn next(&mut self) -> Option<StreamId> {
        let stream = self.queue.pop_front()?;
        self.listed.remove(&stream);
        Some(stream)
    }
}

/// What was done so far: what tests bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) steps: u64,
    /// Of the longest turn.
    pub(super) longest: u64,
    /// Events taken from history.
    pub(super) events: u64,
}

/// All watches of one worker.
pub(crate) struct Hub<H, S> {
    host: H,
    bounds: Bounds,
    watchers: Watchers,
    streams: HashMap<StreamId, Stream<S>>,
    /// Streams that are gone and whose watchers are not yet.
    closed: VecDeque<StreamId>,
    synced: Cursor,
    /// The cursors of watchers that are behind; the first has the next turn.
    behind: VecDeque<(CursorId, Cursor)>,
    /// Turns in a row in which these waited for more watchers.
    waited_turns: usize,
    agenda: Agenda,
    next_id: u64,
    /// Watchers, and watchers that are behind, as the host was told.
    counted: (usize, usize),
    wake: Arc<Notify>,
    work: Work,
}

impl<H: Host, S: Sink> Hub<H, S> {
    pub(crate) fn new(host: H) -> Self {
        Self::bounded(host, Bounds::DEFAULT)
    }

    pub(super) fn bounded(host: H, bounds: Bounds) -> Self {
        let next_revision = host.revisions().current + 1;
        Hub {
            host,
            bounds,
            watchers: Watchers::new(next_revision),
            streams: HashMap::new(),
            closed: VecDeque::new(),
            synced: Cursor::new(next_revision),
            behind: VecDeque::new(),
            waited_turns: 0,
            agenda: Agenda::default(),
            next_id: 1,
            counted: (0, 0),
            wake: Arc::default(),
            work: Work::default(),
        }
    }

    /// Notified when there is something to do that no write caused.
    pub(super) fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    #[cfg(test)]
    pub(super) fn work(&self) -> Work {
        self.work
    }

    #[cfg(test)]
    pub(super) fn matching_steps(&self) -> u64 {
        self.watchers.matching_steps()
    }

    /// Panics where what it knows does not fit together.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.watchers.check();
        assert_eq!(self.synced.next_revision, self.watchers.synced_next());
        for (_, cursor) in &self.behind {
            assert!(cursor.next_revision <= self.synced.next_revision);
        }
        assert!(self.behind.len() <= self.bounds.cursors);
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    // --- what streams' tasks call

    pub(super) fn open_stream(
        &mut self,
        sink: S,
        wake: Arc<Notify>,
        connection: Rc<Peer>,
    ) -> StreamId {
        let id = self.new_id();
        self.watchers.open_stream(id, connection);
        let stream = Stream {
            sink,
            wake,
            room: Room::Open { may_resume: 0 },
            allowance: self.bounds.first_allowance,
            progress: Progress::Idle,
            notifications: Round::Done,
        };
        self.streams.insert(id, stream);
        self.host.stream_opened();
        id
    }

    pub(super) fn close_stream(&mut self, stream: StreamId) {
        if self.streams.remove(&stream).is_some() {
            self.closed.push_back(stream);
            self.wake.notify_one();
            self.host.stream_closed();
        }
    }

    /// Whether a stream may have another watch; if not, why.
    pub(super) fn room_for_watch(&self, stream: StreamId) -> Result<(), &'static str> {
        let (all, max) = (self.host.watchers(), self.host.max_watches());
        if all >= max {
            return Err(TOO_MANY);
        }
        if all >= max - max / 10 && self.watchers.of_connection(stream) >= MODEST_WATCHES {
            return Err(TOO_MANY_HERE);
        }
        Ok(())
    }

    /// Adds a watcher with the id asked for (0: the next free one); returns that id. It is sent
    /// nothing before the next turn.
    pub(super) fn add(&mut self, watcher: Watcher) -> Result<i64, Refused> {
        let dissolving = self.synced.is_dissolving();
        let place = if watcher.next_revision >= self.synced.next_revision && !dissolving {
            Place::Synced
        } else {
            Place::Behind(Behind::Waiting)
        };
        let watch_id = self.watchers.add(watcher, place)?;
        if place != Place::Synced {
            self.wake.notify_one();
        }
        self.count();
        Ok(watch_id)
    }

    /// Cancels a watcher; false if there is none.
    pub(super) fn cancel(&mut self, stream: StreamId, watch_id: i64) -> bool {
        let Some(id) = self.watchers.find(stream, watch_id) else {
            return false;
        };
        self.remove(id);
        self.count();
        // It may be what a progress request waited for.
        self.wake.notify_one();
        true
    }

    /// A client asked for progress of all its watchers: answered once all have been sent what
    /// there is now.
    pub(super) fn request_progress(&mut self, stream: StreamId) {
        if !self.watchers.has_any(stream) {
            return;
        }
        let current = self.host.revisions().current;
        if let Some(s) = self.streams.get_mut(&stream) {
            s.progress.ask(current);
            self.look_at(stream);
        }
    }

    /// A tick of a stream's notification timer.
    pub(super) fn notify_progress(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.notifications.begin();
            self.look_at(stream);
        }
    }

    /// A stream that waits for room has some when fewer bytes than these are queued (for 0: when
    /// none are).
    pub(super) fn waits_below(&self, stream: StreamId) -> Option<usize> {
        match self.streams.get(&stream)?.room {
            Room::Full { below_bytes } => Some(below_bytes),
            Room::Open { .. } => None,
        }
    }

    /// A stream has the room that it waited for.
    pub(super) fn has_room(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.room = Room::Open {
                may_resume: s.allowance,
            };
            self.look_at(stream);
        }
    }

    /// The revision shown in answers to control requests.
    pub(super) fn revision(&self) -> i64 {
        self.host.revisions().current
    }

    fn look_at(&mut self, stream: StreamId) {
        self.agenda.add(stream);
        self.wake.notify_one();
    }

    // --- turns

    /// Does some of what there is to do; returns whether there may be more.
    pub(crate) fn turn(&mut self) -> bool {
        let mut steps = Steps::new(self.bounds.turn_steps);
        let mut synced = std::mem::replace(&mut self.synced, Cursor::new(0));
        let more = self.advance(Place::Synced, &mut synced, &mut steps);
        self.synced = synced;
        let mut others = Steps::new(self.bounds.turn_steps);
        self.forget_closed(&mut others);
        let all_admitted = self.admit(&mut others);
        if all_admitted || self.waited_turns >= self.bounds.patience_turns {
            self.waited_turns = 0;
            self.read_behind(&mut others);
        } else {
            self.waited_turns += 1;
        }
        self.look(&mut others);
        self.count();
        let taken = (steps.taken() + others.taken()) as u64;
        self.work.steps += taken;
        self.work.longest = self.work.longest.max(taken);
        more || !self.closed.is_empty()
            || !self.behind.is_empty()
            || !self.agenda.queue.is_empty()
            || self.watchers.first_waiting(0).is_some()
    }

    /// Lets a cursor do what it has to. Returns whether there may be more.
    fn advance(&mut self, place: Place, cursor: &mut Cursor, steps: &mut Steps) -> bool {
        match std::mem::replace(&mut cursor.state, State::Reading) {
            State::Reading => {
                let more = self.read(place, cursor, steps);
                if let State::Sending(sending) = &mut cursor.state {
                    if self.send(place, sending, steps) {
                        cursor.state = State::Reading;
                        return more;
                    }
                    return true;
                }
                more
            }
            State::Sending(mut sending) => {
                if !self.send(place, &mut sending, steps) {
                    cursor.state = State::Sending(sending);
                }
                true
            }
            State::Dissolving => {
                while steps.any()
                    && let Some(id) = self.watchers.any_of(place)
                {
                    let next = self.next_revision(id, cursor);
                    let waiting = Place::Behind(Behind::Waiting);
                    self.watchers.put(id, next, waiting);
                    steps.take(1);
                }
                if self.watchers.count(place) > 0 {
                    cursor.state = State::Dissolving;
                } else if place == Place::Synced {
                    // Those that it had need nothing from it before they have caught up.
                    cursor.next_revision = self.host.revisions().current + 1;
                    self.watchers.set_synced_next(cursor.next_revision);
                }
                true
            }
        }
    }

    /// What a watcher of a cursor needs next.
    fn next_revision(&self, id: WatcherId, cursor: &Cursor) -> i64 {
        let own = self.watchers.get(id).map_or(0, |w| w.next_revision);
        own.max(cursor.next_revision)
    }

    /// Reads a batch and finds who wants it. Returns whether there may be more.
    fn read(&mut self, place: Place, cursor: &mut Cursor, steps: &mut Steps) -> bool {
        let mut events = Vec::new();
        let (at, mut more) = if self.watchers.count(place) > 0 {
            self.host
                .read(cursor.next_revision, self.bounds.part, &mut events)
        } else {
            (self.host.revisions(), false)
        };
        self.work.events += events.len() as u64;
        let end = match place {
            Place::Synced => at.current + 1,
            // What synced watchers have not been sent yet is left to their cursor.
            Place::Behind(_) => self.synced.next_revision,
        };
        if self.watchers.count(place) > 0 && cursor.next_revision < at.compacted {
            cursor.state = State::Dissolving;
            return true;
        }
        let read = events.len();
        let wanted = events.partition_point(|e| e.revision.main < end);
        events.truncate(wanted);
        more &= wanted == read;
        if !events.is_empty() {
            let sending = Sending::find(
                &mut self.watchers,
                place,
                events,
                self.bounds.matches,
                steps,
            );
            more |= sending.batch.events().len() < wanted;
            if more {
                cursor.next_revision = sending.reached + 1;
            }
            cursor.state = State::Sending(sending);
        }
        if !more {
            cursor.next_revision = end.max(cursor.next_revision);
        }
        if let State::Sending(sending) = &mut cursor.state {
            sending.reached = cursor.next_revision - 1;
        }
        if place == Place::Synced {
            self.watchers.set_synced_next(cursor.next_revision);
        }
        more
    }

    /// Sends what was read. Returns whether that is all.
    fn send(&mut self, place: Place, sending: &mut Sending, steps: &mut Steps) -> bool {
        while steps.any() {
            let Some((id, indices)) = sending.next(&self.watchers, steps) else {
                return true;
            };
            if self.watchers.place(id) != Some(place) {
                continue;
            }
            let Some(watcher) = self.watchers.get(id) else {
                continue;
            };
            let Some(stream) = self.streams.get_mut(&watcher.stream) else {
                continue;
            };
            let Some(&first) = indices.first() else {
                continue;
            };
            let stalled = Place::Behind(Behind::Stalled);
            if matches!(stream.room, Room::Full { .. }) {
                let unsent = sending.batch.revision(first);
                self.watchers.put(id, unsent, stalled);
                continue;
            }
            let recipient = Recipient {
                watcher,
                sink: &stream.sink,
                ids: self.host.ids(),
                fragment_bytes: self.host.fragment_bytes(),
            };
            let (started, mut bytes) = (Instant::now(), 0);
            let sent = sending
                .batch
                .send(&recipient, &indices, sending.reached, &mut bytes);
            steps.take(indices.len() / 16 + bytes / 4096);
            match sent {
                Sent::All => {
                    self.host.sent(indices.len(), started.elapsed());
                    if watcher.quiet {
                        self.watchers.set_quiet(id, false);
                    }
                }
                Sent::Full(unsent) => {
                    // From here on it reads history at its client's pace.
                    stream.fill(self.bounds.first_allowance);
                    self.watchers.put(id, unsent, stalled);
                }
                Sent::Closed => {}
                Sent::TooLarge(bytes) => {
                    let reason = format!(
                        "grpc: trying to send message larger than max ({bytes} vs. {MAX_MESSAGE_BYTES})"
                    );
                    let frame = control(self.host.ids(), sending.reached, watcher.watch_id)
                        .canceled(&reason)
                        .frame();
                    stream.sink.push(frame);
                    self.remove(id);
                }
            }
        }
        false
    }

    /// Forgets a watcher, and its stream's wish for progress if it was the last.
    fn remove(&mut self, id: WatcherId) {
        let Some(stream) = self.watchers.get(id).map(|w| w.stream) else {
            return;
        };
        self.watchers.remove(id);
        if !self.watchers.has_any(stream)
            && let Some(s) = self.streams.get_mut(&stream)
        {
            s.progress = Progress::Idle;
        }
    }

    /// Forgets watchers of streams that are gone.
    fn forget_closed(&mut self, steps: &mut Steps) {
        while steps.any()
            && let Some(&stream) = self.closed.front()
        {
            steps.take(1);
            if !self.watchers.remove_one_of(stream) {
                self.closed.pop_front();
            }
        }
    }

    /// Finds cursors for watchers that wait for one. Returns whether all have one that can.
    fn admit(&mut self, steps: &mut Steps) -> bool {
        if self.watchers.first_waiting(0).is_none() || self.synced.is_dissolving() {
            return true;
        }
        let compacted = self.host.revisions().compacted;
        while steps.any() {
            let reading = || self.behind.iter().filter(|(_, c)| !c.is_dissolving());
            let is_free = self.behind.len() < self.bounds.cursors;
            let from = if is_free {
                0
            } else {
                let lowest = reading().map(|(_, c)| c.next_revision).min();
                lowest.unwrap_or(self.synced.next_revision)
            };
            let Some((next, id)) = self.watchers.first_waiting(from) else {
                return true;
            };
            steps.take(1);
            if next < compacted {
                self.cancel_compacted(id, next, compacted);
                continue;
            }
            if next >= self.synced.next_revision {
                self.watchers.put(id, next, Place::Synced);
                continue;
            }
            let nearest = reading()
                .filter(|(_, c)| c.next_revision <= next)
                .max_by_key(|(_, c)| c.next_revision)
                .filter(|(_, c)| !is_free || next - c.next_revision <= self.bounds.near_revisions)
                .map(|(cursor, _)| *cursor);
            let cursor = nearest.unwrap_or_else(|| {
                let new = self.new_id();
                self.behind.push_back((new, Cursor::new(next)));
                new
            });
            let reading = Place::Behind(Behind::Reading(cursor));
            self.watchers.put(id, next, reading);
        }
        false
    }

    /// Tells a client that what its watcher needs is compacted.
    fn cancel_compacted(&mut self, id: WatcherId, next: i64, compacted: i64) {
        let Some(watcher) = self.watchers.get(id) else {
            return;
        };
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            let frame = control(self.host.ids(), 0, watcher.watch_id)
                .canceled("")
                .compact_revision(compacted)
                .frame();
            let full = matches!(stream.room, Room::Full { .. });
            if full || matches!(stream.sink.try_send(frame), Err(wire::Refused::Full(_))) {
                if !full {
                    stream.fill(self.bounds.first_allowance);
                }
                let stalled = Place::Behind(Behind::Stalled);
                self.watchers.put(id, next, stalled);
                return;
            }
            self.host.cancelled_slow();
        }
        self.remove(id);
    }

    /// Gives one cursor of those that are behind its turn.
    fn read_behind(&mut self, steps: &mut Steps) {
        let Some((id, mut cursor)) = self.behind.pop_front() else {
            return;
        };
        let place = Place::Behind(Behind::Reading(id));
        let caught_up = |hub: &Self, cursor: &Cursor| {
            cursor.is_reading()
                && cursor.next_revision >= hub.synced.next_revision
                && !hub.synced.is_dissolving()
        };
        if !caught_up(self, &cursor) {
            self.advance(place, &mut cursor, steps);
        }
        while steps.any()
            && caught_up(self, &cursor)
            && let Some(watcher) = self.watchers.any_of(place)
        {
            steps.take(1);
            let next = self.next_revision(watcher, &cursor);
            self.watchers.put(watcher, next, Place::Synced);
        }
        if self.watchers.count(place) > 0 || !cursor.is_reading() {
            self.behind.push_back((id, cursor));
        } else {
            self.watchers.drop_cursor(id);
        }
    }

    /// Looks at the streams that something happened to.
    fn look(&mut self, steps: &mut Steps) {
        for stream in self.watchers.take_settled() {
            self.agenda.add(stream);
        }
        for _ in 0..self.agenda.queue.len() {
            if !steps.any() {
                return;
            }
            let Some(stream) = self.agenda.next() else {
                return;
            };
            steps.take(1);
            let again = self.resume_stalled(stream, steps)
                | self.answer_progress(stream)
                | self.notify_round(stream, steps);
            if again {
                self.agenda.add(stream);
            }
        }
    }

    /// Lets stalled watchers of a stream with room go on. Returns whether it has to be asked
    /// again.
    fn resume_stalled(&mut self, stream: StreamId, steps: &mut Steps) -> bool {
        let Some(s) = self.streams.get_mut(&stream) else {
            return false;
        };
        let Room::Open { may_resume } = &mut s.room else {
            return false;
        };
        if self.watchers.first_stalled(stream).is_none() {
            return false;
        }
        if *may_resume == 0 && self.watchers.under_way(stream) == 0 {
            s.allowance = s.allowance.saturating_mul(2);
            *may_resume = s.allowance;
        }
        while *may_resume > 0
            && let Some((next, id)) = self.watchers.first_stalled(stream)
        {
            if !steps.any() {
                return true;
            }
            steps.take(1);
            *may_resume -= 1;
            let waiting = Place::Behind(Behind::Waiting);
            self.watchers.put(id, next, waiting);
        }
        false
    }

    /// Answers a progress request if the stream has caught up. Returns whether it has to be
    /// asked again, though nothing happens to the stream.
    fn answer_progress(&mut self, stream: StreamId) -> bool {
        let reached = self.synced.next_revision - 1;
        let Some(s) = self.streams.get_mut(&stream) else {
            return false;
        };
        let Some(asked_at) = s.progress.asked_at() else {
            return false;
        };
        // Looked at again when the last watcher has caught up, or when there is room.
        if !self.watchers.all_synced(stream) || matches!(s.room, Room::Full { .. }) {
            return false;
        }
        if reached < asked_at || !self.synced.is_reading() {
            return true;
        }
        // As in etcd: a watcher of the future has no progress to report yet.
        if self.watchers.any_ahead(stream) {
            s.progress = Progress::Idle;
            return false;
        }
        match s
            .sink
            .try_send(control(self.host.ids(), reached, -1).frame())
        {
            Ok(()) => s.progress.answered(reached),
            Err(_) => s.fill(self.bounds.first_allowance),
        }
        s.progress.asked_at().is_some() && !matches!(s.room, Room::Full { .. })
    }

    /// Goes on with the notifications of a tick. Returns whether it has to be asked again.
    fn notify_round(&mut self, stream: StreamId, steps: &mut Steps) -> bool {
        let reached = self.synced.next_revision - 1;
        let Some(s) = self.streams.get_mut(&stream) else {
            return false;
        };
        if s.notifications.is_done() {
            return false;
        }
        if !self.synced.is_reading() {
            return true;
        }
        let started = Instant::now();
        while let Some((watch_id, id)) = s.notifications.next(&self.watchers, stream) {
            steps.take(1);
            let quiet = self.watchers.get(id).filter(|w| w.progress_notify);
            if let Some(w) = quiet {
                let synced = self.watchers.place(id) == Some(Place::Synced)
                    && w.next_revision <= reached + 1;
                if w.quiet && synced {
                    // A client without room for a notification does not need one.
                    let frame = control(self.host.ids(), reached, watch_id).frame();
                    let _ = s.sink.try_send(frame);
                }
                self.watchers.set_quiet(id, true);
            }
            if !steps.any() {
                break;
            }
        }
        self.host.notified(started.elapsed());
        !s.notifications.is_done()
    }

    /// Tells the host how many watchers there are.
    fn count(&mut self) {
        let now = (self.watchers.len(), self.watchers.behind());
        if now != self.counted {
            let more = |now: usize, before: usize| now as i64 - before as i64;
            self.host
                .count_watchers(more(now.0, self.counted.0), more(now.1, self.counted.1));
            self.counted = now;
        }
    }
}

/// A range in the form that the matcher takes, or `None` if it is empty: etcd then refuses the
/// watch.
pub(super) fn watch_range(key: Bytes, end: Bytes) -> Option<KeyRange> {
    let key = if key.is_empty() {
        Bytes::from_static(b"\0")
    } else {
        key
    };
    let range = KeyRange { key, end };
    let open = range.is_one() || range.upper().is_none();
    (open || range.upper().is_some_and(|e| range.key.as_ref() < e)).then_some(range)
}
