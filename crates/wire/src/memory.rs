//! What a worker and its connections hold for clients, within the limits of the ledger.
//!
//! A request of 50 bytes can ask for an answer of 100 MB, and nobody has to read it. So a
//! connection with much unread is not asked for more: its further calls wait until it has read.
//! Where a worker's limit is reached, small holders still get their answers from what is kept
//! back for them, and the connections that hold most and read nothing are ended
//! ([`crate::shed`]).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use ledger::{Account, Charge, Full, Local};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::local::{Flag, WakerSet};

/// What an open call costs besides its message: its stream in HTTP/2, its task, its headers once
/// they are trimmed, and one message of up to [`SMALL_BYTES`] of a stream. Measured, rounded up.
pub(crate) const CALL_BYTES: usize = 8 * 1024;

/// What a call costs that was answered, but whose answer was not read, besides that.
pub(crate) const ANSWERED_BYTES: usize = 5 * 1024;

/// A message of a stream that is covered by the call's own charge.
pub(crate) const SMALL_BYTES: usize = 4 * 1024;

/// What an open connection costs with nothing under way, with TLS. Measured, rounded up.
pub(crate) const CONNECTION_BYTES: usize = 48 * 1024;

/// A connection that holds less gets answers out of a worker's last fifth.
const SMALL_HOLDER_BYTES: usize = 1024 * 1024;

/// Of answers above this, a worker that is over its limit has one.
const LARGE_BYTES: usize = 1024 * 1024;

/// A connection with fewer calls open gets one out of a worker's last eighth.
const FEW_CALLS: usize = 100;

/// An account, and who waits for room in it.
#[derive(Debug)]
pub(crate) struct Gate {
    account: Local,
    pub(crate) waiting: WakerSet,
    /// Somebody was told to wait since all were woken.
    waits: Cell<bool>,
    /// Of what is held, answers above [`LARGE_BYTES`], which have a half of a worker's account.
    large_bytes: Cell<usize>,
    /// All who wait are woken when no more than this is held beside large answers: each wake of
    /// many is to free much.
    wake_bytes: usize,
    /// A worker's, of a connection's.
    above: Option<Rc<Gate>>,
    pressure: Rc<Pressure>,
}

impl Gate {
    fn new(
        account: Local,
        wake_bytes: usize,
        above: Option<Rc<Gate>>,
        pressure: &Rc<Pressure>,
    ) -> Rc<Gate> {
        Rc::new(Gate {
            account,
            waiting: WakerSet::default(),
            waits: Cell::new(false),
            large_bytes: Cell::new(0),
            wake_bytes,
            above,
            pressure: Rc::clone(pressure),
        })
    }

    fn part(self: &Rc<Gate>, limit_bytes: usize) -> Rc<Gate> {
        let account = self.account.part(limit_bytes);
        let wake_bytes = limit_bytes / 4 * 3;
        Gate::new(account, wake_bytes, Some(Rc::clone(self)), &self.pressure)
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.account.held_bytes()
    }

    fn limit_bytes(&self) -> usize {
        self.account.limit_bytes()
    }

    /// Counts `bytes` that exist until what is returned is dropped.
    fn hold(self: &Rc<Gate>, bytes: usize) -> Held {
        Held {
            charge: Some(self.account.charge(bytes)),
            gate: Rc::clone(self),
            large: None,
        }
    }

    /// Notes that somebody waits for room here.
    fn will_wait(&self) {
        self.waits.set(true);
        if self.above.is_none() {
            self.pressure.tell();
        }
    }

    /// What is held beside large answers, in bytes.
    fn small_bytes(&self) -> usize {
        self.held_bytes().saturating_sub(self.large_bytes.get())
    }

    fn made_room(&self) {
        if self.waits.get() && self.small_bytes() <= self.wake_bytes {
            self.wake();
        }
        if let Some(above) = &self.above {
            above.made_room();
        }
    }

    fn wake(&self) {
        self.waits.set(false);
        self.waiting.wake_all();
    }
}

/// Bytes of an account; who waits for room is woken when they go.
#[derive(Debug)]
pub(crate) struct Held {
    /// `None` only while it is dropped.
    charge: Option<Charge>,
    gate: Rc<Gate>,
    large: Option<Large>,
}

impl Held {
    fn split(&mut self, bytes: usize) -> Held {
        Held {
            charge: self.charge.as_mut().map(|charge| charge.split(bytes)),
            gate: Rc::clone(&self.gate),
            large: self.large.as_mut().map(|large| large.split(bytes)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.charge = None;
        self.gate.made_room();
    }
}

/// Bytes of a worker's large answers.
#[derive(Debug)]
struct Large {
    bytes: usize,
    worker: Rc<WorkerMemory>,
}

impl Large {
    /// `None` for an answer that is not large.
    fn of(bytes: usize, worker: &Rc<WorkerMemory>) -> Option<Large> {
        (bytes > LARGE_BYTES).then(|| {
            let all = &worker.answers.large_bytes;
            all.set(all.get() + bytes);
            let worker = Rc::clone(worker);
            Large { bytes, worker }
        })
    }

    fn split(&mut self, bytes: usize) -> Large {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let worker = Rc::clone(&self.worker);
        Large { bytes, worker }
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let worker = &self.worker;
        let all = &worker.answers.large_bytes;
        all.set(all.get() - self.bytes);
        // At most one waits here.
        worker.large_waiting.wake_all();
    }
}

/// A piece of a response body. What it counts for is held until HTTP/2 has written it.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    held: Held,
    /// Counts in a stream's own queue, too.
    _queued: Option<Queued>,
}

impl Chunk {
    pub(crate) fn new(bytes: Bytes, held: Held) -> Self {
        Chunk {
            bytes,
            held,
            _queued: None,
        }
    }

    pub(crate) fn queued(self, queued: Queued) -> Self {
        Chunk {
            _queued: Some(queued),
            ..self
        }
    }

    /// Takes the first `bytes` out of it, at most all, and what is held for them.
    pub(crate) fn split_to(&mut self, bytes: usize) -> Chunk {
        let bytes = bytes.min(self.bytes.len());
        Chunk {
            bytes: self.bytes.split_to(bytes),
            held: match self.bytes.is_empty() {
                true => self.held.split(usize::MAX),
                false => self.held.split(bytes),
            },
            _queued: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// Bytes that count in one stream's queue until they are written.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) bytes: usize,
    pub(crate) queue: Weak<dyn Drained>,
}

/// A queue that is told what has left it.
pub(crate) trait Drained: std::fmt::Debug {
    fn drained(&self, bytes: usize);
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            queue.drained(self.bytes);
        }
    }
}

/// Raised when somebody waits at a worker's limit.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    raised: Cell<bool>,
    waiting: WakerSet,
}

impl Pressure {
    fn tell(&self) {
        if !self.raised.replace(true) {
            self.waiting.wake_all();
        }
    }

    pub(crate) fn clear(&self) {
        self.raised.set(false);
    }

    pub(crate) async fn wait(&self) {
        let raised = || self.raised.get().then_some(());
        self.waiting.wait(raised).await;
    }
}

/// A worker's accounts.
#[derive(Debug)]
pub(crate) struct WorkerMemory {
    connections: Local,
    calls: Local,
    requests: Local,
    answers: Rc<Gate>,
    streams: Rc<Gate>,
    /// Of those that want to make a large answer, who is next.
    large_turn: Semaphore,
    large_waiting: WakerSet,
    pub(crate) pressure: Rc<Pressure>,
    pub(crate) holders: RefCell<Vec<Weak<ConnMemory>>>,
}

impl WorkerMemory {
    /// For one of the configured workers, on its thread.
    pub(crate) fn new(config: &Config) -> Rc<Self> {
        let worker = config.ledger.worker(config.workers);
        let pressure = Rc::<Pressure>::default();
        let gate = |account, eighths| {
            let account = worker.account(account);
            let wake_bytes = account.limit_bytes() / 8 * eighths;
            Gate::new(account, wake_bytes, None, &pressure)
        };
        Rc::new(WorkerMemory {
            connections: worker.account(Account::Connections),
            calls: worker.account(Account::Calls),
            requests: worker.account(Account::Requests),
            answers: gate(Account::Answers, 3),
            streams: gate(Account::Streams, 6),
            large_turn: Semaphore::new(1),
            large_waiting: WakerSet::default(),
            pressure,
            holders: RefCell::default(),
        })
    }

    /// The accounts of a new connection of this peer.
    pub(crate) fn connection(self: &Rc<Self>, config: &Config, peer: &str) -> Rc<ConnMemory> {
        let limit = |account: &Local, most: usize| most.min(account.limit_bytes() / 4 * 3);
        let calls = config.max_calls_per_connection.saturating_mul(CALL_BYTES);
        let requests = limit(&self.requests, config.max_partial_bytes);
        let answers = limit(&self.answers.account, usize::MAX) / 2;
        let answers = answers.min(config.max_unread_bytes);
        let streams = limit(&self.streams.account, usize::MAX);
        let connection = Rc::new(ConnMemory {
            calls: self.calls.part(limit(&self.calls, calls)),
            requests: self.requests.part(requests),
            answers: self.answers.part(answers),
            streams: self.streams.part(streams),
            written_bytes: Rc::default(),
            end: Flag::default(),
            peer_address: peer.to_owned(),
            _charge: self.connections.charge(CONNECTION_BYTES),
            worker: Rc::clone(self),
        });
        let mut holders = self.holders.borrow_mut();
        if holders.len() == holders.capacity() {
            // Amortized over the connections that came since.
            holders.retain(|holder| holder.strong_count() > 0);
        }
        holders.push(Rc::downgrade(&connection));
        connection
    }

    /// Whether another answer has room that is not large: those have half of the account.
    /// `kept_back`: in the last fifth, too.
    fn answers_have_room(&self, kept_back: bool) -> bool {
        let half = self.answers.limit_bytes() / 2;
        let limit = if kept_back { half } else { half / 5 * 4 };
        self.answers.small_bytes() < limit
    }

    /// Whether a large answer has room: in the other half, or alone whatever its size.
    fn large_has_room(&self, bytes: usize) -> bool {
        let large = self.answers.large_bytes.get();
        large == 0 || large.saturating_add(bytes) <= self.answers.limit_bytes() / 2
    }

    /// Wakes all that wait, to look again.
    pub(crate) fn wake_waiting(&self) {
        for gate in [&self.answers, &self.streams] {
            gate.wake();
        }
        self.large_waiting.wake_all();
    }

    /// How many bytes have to go so that nobody needs to wait; 0 if nobody does.
    pub(crate) fn excess_bytes(&self) -> usize {
        let excess = |gate: &Gate| match gate.waits.get() {
            true => gate.small_bytes().saturating_sub(gate.wake_bytes / 2),
            false => 0,
        };
        let large = match self.large_waiting.is_empty() {
            true => 0,
            false => self.answers.large_bytes.get(),
        };
        excess(&self.answers).max(excess(&self.streams)).max(large)
    }
}

/// A call counts as open while it has this.
#[derive(Debug)]
pub(crate) struct OpenCall(#[expect(dead_code, reason = "held until it is dropped")] Charge);

/// What one connection holds.
#[derive(Debug)]
pub(crate) struct ConnMemory {
    worker: Rc<WorkerMemory>,
    calls: Local,
    pub(crate) requests: Local,
    answers: Rc<Gate>,
    pub(crate) streams: Rc<Gate>,
    /// What the socket has taken so far.
    pub(crate) written_bytes: Rc<Cell<u64>>,
    /// Raised to end the connection.
    pub(crate) end: Flag,
    /// For log lines.
    pub(crate) peer_address: String,
    _charge: Charge,
}

impl ConnMemory {
    /// Counts an open call. A connection with few calls gets one when others do not any more.
    pub(crate) fn open_call(&self) -> Result<OpenCall, Full> {
        let all = &self.worker.calls;
        let kept_back = match self.calls.held_bytes() < FEW_CALLS * CALL_BYTES {
            true => 0,
            false => all.limit_bytes() / 8,
        };
        let checked = self.calls.check(CALL_BYTES);
        match checked.and_then(|()| all.check(CALL_BYTES + kept_back)) {
            Ok(()) => Ok(OpenCall(self.calls.charge(CALL_BYTES))),
            Err(full) => {
                all.count_refused();
                Err(full)
            }
        }
    }

    /// What the client has not read, in bytes.
    pub(crate) fn unread_bytes(&self) -> usize {
        self.answers.held_bytes() + self.streams.held_bytes()
    }

    /// Whether plain HTTP's requests are refused before they cost anything, because there is much
    /// that the client has not read: making a page takes a worker milliseconds.
    pub(crate) fn http_is_behind(&self) -> bool {
        let behind = self.answers.held_bytes() >= SMALL_HOLDER_BYTES;
        if behind {
            self.answers.account.count_refused();
        }
        behind
    }

    /// Whether an answer to a plain HTTP request, which is there, may be kept until it is read. A
    /// small one may while any has room.
    pub(crate) fn http_has_room(&self, bytes: usize) -> bool {
        let own = &self.answers;
        let has_room = own.held_bytes() < own.limit_bytes()
            && self.worker.answers_have_room(bytes <= SMALL_BYTES);
        if !has_room {
            own.account.count_refused();
            self.worker.pressure.tell();
        }
        has_room
    }

    /// Counts an answer that exists.
    pub(crate) fn answer(&self, bytes: Bytes) -> Chunk {
        let mut held = self.answers.hold(bytes.len() + ANSWERED_BYTES);
        held.large = Large::of(bytes.len(), &self.worker);
        Chunk::new(bytes, held)
    }

    /// Whether a frame has room beside what the streams of the connection and of its worker hold.
    /// `first`: its stream holds no other.
    pub(crate) fn stream_has_room(&self, bytes: usize, first: bool) -> bool {
        if first && bytes <= SMALL_BYTES {
            return true;
        }
        let full = |gate: &Gate| {
            let held = gate.held_bytes();
            // One of any size, while there is little.
            held + bytes > gate.limit_bytes() && (!first || held > gate.limit_bytes() / 2)
        };
        match [&self.streams, &self.worker.streams]
            .into_iter()
            .find(|gate| full(gate))
        {
            None => true,
            Some(gate) => {
                gate.will_wait();
                false
            }
        }
    }

    /// Who waits for room for streams, here and in the worker.
    pub(crate) fn stream_waiters(&self) -> [&WakerSet; 2] {
        [&self.streams.waiting, &self.worker.streams.waiting]
    }

    /// Counts a frame of a stream.
    pub(crate) fn frame(&self, bytes: usize) -> Held {
        self.streams.hold(bytes)
    }

    /// Counts a holder that was ended to make room.
    pub(crate) fn count_shed(&self) {
        for gate in [&self.answers, &self.streams] {
            if gate.held_bytes() > 0 {
                gate.account.count_shed();
            }
        }
    }
}

/// What one connection has unread of its unary calls' answers. Clones are of the same connection.
#[derive(Debug, Clone)]
pub struct Unread(Rc<ConnMemory>);

impl Unread {
    pub(crate) fn new(memory: &Rc<ConnMemory>) -> Self {
        Unread(Rc::clone(memory))
    }

    /// Waits until another answer may be made. The transport does so before it hands a call to
    /// the handler; a handler whose answer comes later, and is not small, asks again, and makes it
    /// in the same turn.
    pub fn room(&self) -> Room {
        Room {
            unread: self.clone(),
            keys: [None, None],
        }
    }

    /// Whether another answer may be made now.
    pub fn has_room(&self) -> bool {
        self.full_gate().is_none()
    }

    /// Where there is no room for another answer.
    fn full_gate(&self) -> Option<&Gate> {
        let (own, all) = (&*self.0.answers, &*self.0.worker.answers);
        let held = own.held_bytes();
        if held >= own.limit_bytes() {
            return Some(own);
        }
        let kept_back = held < SMALL_HOLDER_BYTES;
        (!self.0.worker.answers_have_room(kept_back)).then_some(all)
    }

    /// Takes room for an answer of so many bytes, if there is any now, until it is handed over:
    /// drop the claim in the turn in which the call ends. An answer of any size has room while no
    /// other large one is held.
    pub fn try_claim(&self, bytes: usize) -> Option<Claim> {
        let (memory, worker) = (&*self.0, &self.0.worker);
        let fits = self.has_room() && (bytes <= LARGE_BYTES || worker.large_has_room(bytes));
        fits.then(|| {
            let mut held = memory.answers.hold(bytes);
            held.large = Large::of(bytes, worker);
            Claim(held)
        })
    }

    /// Waits for room for an answer of so many bytes: see [`Unread::try_claim`]. Who has to wait
    /// for a large one is served in turn.
    pub async fn claim(&self, bytes: usize) -> Claim {
        if let Some(claim) = self.try_claim(bytes) {
            return claim;
        }
        let worker = &self.0.worker;
        // It is never closed.
        let _turn = worker.large_turn.acquire().await;
        loop {
            self.room().await;
            let claimed = worker.large_waiting.wait(|| {
                let claim = self.try_claim(bytes);
                if claim.is_none() {
                    worker.pressure.tell();
                }
                // Without room for any, that is waited for first.
                (claim.is_some() || !self.has_room()).then_some(claim)
            });
            if let Some(claim) = claimed.await {
                return claim;
            }
        }
    }
}

/// Room that was taken for an answer that is being made.
#[derive(Debug)]
#[must_use = "a claim ends when it is dropped"]
pub struct Claim(#[expect(dead_code, reason = "held until it is dropped")] Held);

/// Waits for room for another answer: see [`Unread::room`].
#[derive(Debug)]
pub struct Room {
    unread: Unread,
    /// Its places among those that wait, of the connection and of the worker.
    keys: [Option<usize>; 2],
}

impl Room {
    fn gates(memory: &ConnMemory) -> [&Gate; 2] {
        [&memory.answers, &memory.worker.answers]
    }
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Room { unread, keys } = &mut *self;
        let Some(full) = unread.full_gate() else {
            return Poll::Ready(());
        };
        full.will_wait();
        for (gate, key) in Room::gates(&unread.0).into_iter().zip(keys) {
            gate.waiting.register(key, cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (gate, key) in Room::gates(&self.unread.0).into_iter().zip(self.keys) {
            if let Some(key) = key {
                gate.waiting.remove(key);
            }
        }
    }
}
