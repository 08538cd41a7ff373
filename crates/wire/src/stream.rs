//! The two halves of a streaming call as a handler sees them, and the response body behind them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame as BodyFrame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;

use crate::grpc::{Code, Frame, PREFIX_BYTES, Status};
use crate::handler::Event;
use crate::local::{WakerSet, wait_in};
use crate::memory::{Chunk, ConnMemory, Drained, OpenCall, Queued};
use crate::message::Assembler;

/// Told of a stream's messages.
pub(crate) type Observer = Rc<dyn Fn(Event)>;

/// The client's messages of a streaming call.
///
/// The client may send as fast as messages are taken from here: what is not read stays within the
/// HTTP/2 windows. Do read: thousands of small messages left unread on one connection make h2 close
/// it, to bound their memory.
pub struct Inbound {
    body: Incoming,
    assembler: Assembler,
    observer: Observer,
}

impl Inbound {
    pub(crate) fn new(body: Incoming, assembler: Assembler, observer: Observer) -> Self {
        Inbound {
            body,
            assembler,
            observer,
        }
    }

    /// The next message, or `None` once the client has closed its half.
    ///
    /// Errors: the client reset the stream ([`Code::Canceled`]) or broke the protocol. Safe to
    /// drop and call again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Inbound::next`] for hand-written futures.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(message) = self.assembler.next()? {
                (self.observer)(Event::Received {
                    bytes: message.len(),
                });
                return Poll::Ready(Ok(Some(message)));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(chunk) = frame.into_data() {
                        self.assembler.push(chunk);
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Status::canceled())),
                Poll::Ready(None) if self.assembler.at_boundary() => return Poll::Ready(Ok(None)),
                Poll::Ready(None) => {
                    return Poll::Ready(Err(Status::new(Code::Internal, "unexpected EOF")));
                }
            }
        }
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound").finish_non_exhaustive()
    }
}

/// The stream is gone: the client reset it or disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Closed;

/// Why [`Outbound::try_send`] did not take a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is at its limit; here is the frame back.
    #[error("the stream's queue is full")]
    Full(Frame),
    /// The stream is gone.
    #[error("the stream is closed")]
    Closed,
}

/// The server's messages of a streaming call: a queue with a limit in bytes.
///
/// Clones share the queue. The transport takes frames from it as the client's windows allow. They
/// count as queued until they are on their way to the socket.
#[derive(Clone)]
pub struct Outbound(Rc<Queue>);

struct Queue {
    frames: RefCell<VecDeque<Chunk>>,
    /// Of the frames here and of those that HTTP/2 has not written.
    bytes: Cell<usize>,
    limit_bytes: usize,
    memory: Rc<ConnMemory>,
    /// Of the last frame that was refused for others' sake, until one is taken.
    wanted_bytes: Cell<usize>,
    /// Set by the handler's end.
    result: RefCell<Option<Status>>,
    /// Set by the body's drop.
    closed: Cell<bool>,
    /// The body's task.
    reader: RefCell<Option<Waker>>,
    /// Handlers that wait for room or for the end.
    writers: WakerSet,
    observer: Observer,
    /// This, for the frames.
    own: Weak<Queue>,
}

impl Drained for Queue {
    fn drained(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.writers.wake_all();
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Outbound {
    /// Queues a frame if there is room, in the queue and beside what other streams hold. An empty
    /// queue takes any frame while the others hold little, but for one that is longer than
    /// [`crate::MAX_MESSAGE_BYTES`]: that ends the stream.
    pub fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        let queue = &*self.0;
        if self.is_closed() {
            return Err(Refused::Closed);
        }
        let held = queue.bytes.get();
        if held > 0 && held + frame.len() > queue.limit_bytes {
            return Err(Refused::Full(frame));
        }
        if !queue.memory.stream_has_room(frame.len(), held == 0) {
            queue.wanted_bytes.set(frame.len());
            return Err(Refused::Full(frame));
        }
        queue.wanted_bytes.set(0);
        self.queue(frame).map_err(|Closed| Refused::Closed)
    }

    /// Queues a frame whatever the limit: for the short control messages of a protocol, and
    /// for what must not be separated from a frame that [`Outbound::try_send`] has taken. The
    /// caller bounds how much that is. Without effect once the stream is gone.
    pub fn push(&self, frame: Frame) {
        if !self.is_closed() {
            // Gone with the stream, if it is too large.
            let _ = self.queue(frame);
        }
    }

    fn queue(&self, frame: Frame) -> Result<(), Closed> {
        let queue = &*self.0;
        let bytes = frame.into_bytes().map_err(|too_large| {
            self.finish(too_large.of_stream());
            Closed
        })?;
        let len = bytes.len();
        (queue.observer)(Event::Sent {
            bytes: len - PREFIX_BYTES,
        });
        queue.bytes.set(queue.bytes.get() + len);
        let queued = Queued {
            bytes: len,
            queue: queue.own.clone(),
        };
        let chunk = Chunk::new(bytes, queue.memory.frame(len)).queued(queued);
        queue.frames.borrow_mut().push_back(chunk);
        queue.wake_reader();
        Ok(())
    }

    /// Queues a frame, waiting for room.
    pub async fn send(&self, frame: Frame) -> Result<(), Closed> {
        let mut frame = Some(frame);
        let check = || match self.try_send(frame.take()?) {
            Ok(()) => Some(Ok(())),
            Err(Refused::Closed) => Some(Err(Closed)),
            Err(Refused::Full(back)) => {
                frame = Some(back);
                None
            }
        };
        wait_in(self.waiters(), check).await
    }

    /// Bytes in the queue, and of it in HTTP/2.
    pub fn queued_bytes(&self) -> usize {
        self.0.bytes.get()
    }

    /// The queue's limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes
    }

    /// Waits until fewer than `bytes` are queued (for 0: until none are), and there is room for
    /// what [`Outbound::try_send`] refused beside what other streams hold.
    pub async fn ready_below(&self, bytes: usize) -> Result<(), Closed> {
        let queue = &*self.0;
        let check = || {
            if queue.closed.get() {
                return Some(Err(Closed));
            }
            let (held, wanted) = (queue.bytes.get(), queue.wanted_bytes.get());
            let room = held < bytes.max(1) && queue.memory.stream_has_room(wanted, held == 0);
            room.then_some(Ok(()))
        };
        wait_in(self.waiters(), check).await
    }

    /// Who waits for room: for this queue's, the connection's, the worker's.
    fn waiters(&self) -> [&WakerSet; 3] {
        let [connection, worker] = self.0.memory.stream_waiters();
        [&self.0.writers, connection, worker]
    }

    /// Whether the stream is gone.
    pub fn is_closed(&self) -> bool {
        self.0.closed.get()
    }

    /// Waits until the stream is gone.
    pub async fn closed(&self) {
        self.0
            .writers
            .wait(|| self.0.closed.get().then_some(()))
            .await;
    }

    /// Ends the stream after what is queued.
    pub(crate) fn finish(&self, status: Status) {
        self.0.result.borrow_mut().get_or_insert(status);
        self.0.wake_reader();
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound")
            .field("queued_bytes", &self.queued_bytes())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Queue {
    fn wake_reader(&self) {
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    fn wait_for_writer(&self, cx: &Context<'_>) {
        let mut reader = self.reader.borrow_mut();
        match &*reader {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *reader = Some(cx.waker().clone()),
        }
    }
}

/// The body of a streaming response. Its drop, by a reset or a lost connection, ends the handler.
pub(crate) struct StreamBody {
    queue: Rc<Queue>,
    task: Option<StreamTask>,
}

/// What ends with a stream's body.
struct StreamTask {
    handler: AbortHandle,
    /// The stream is open until both its handler and its body are gone.
    _open: Rc<OpenCall>,
}

impl StreamBody {
    /// A connected pair: what the handler writes, and what the transport reads.
    pub(crate) fn pair(
        limit_bytes: usize,
        memory: Rc<ConnMemory>,
        observer: Observer,
    ) -> (Outbound, StreamBody) {
        let queue = Rc::new_cyclic(|own| Queue {
            frames: RefCell::default(),
            bytes: Cell::new(0),
            limit_bytes,
            memory,
            wanted_bytes: Cell::new(0),
            result: RefCell::default(),
            closed: Cell::new(false),
            reader: RefCell::default(),
            writers: WakerSet::default(),
            observer,
            own: own.clone(),
        });
        (
            Outbound(Rc::clone(&queue)),
            StreamBody { queue, task: None },
        )
    }

    /// Names the handler's task, to be ended with this body.
    pub(crate) fn own(&mut self, handler: AbortHandle, open: Rc<OpenCall>) {
        self.task = Some(StreamTask {
            handler,
            _open: open,
        });
    }

    /// Waits for the first frame or the end; the status if it ended without any frame.
    pub(crate) async fn first(&mut self) -> Option<Status> {
        std::future::poll_fn(|cx| {
            if !self.queue.frames.borrow().is_empty() {
                return Poll::Ready(None);
            }
            if let Some(status) = self.queue.result.borrow_mut().take() {
                return Poll::Ready(Some(status));
            }
            self.queue.wait_for_writer(cx);
            Poll::Pending
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<BodyFrame<Chunk>>> {
        let queue = &*self.queue;
        let Some(frame) = queue.frames.borrow_mut().pop_front() else {
            return match queue.result.borrow_mut().take() {
                Some(status) => {
                    let mut trailers = HeaderMap::with_capacity(2);
                    status.write_to(&mut trailers);
                    Poll::Ready(Some(BodyFrame::trailers(trailers)))
                }
                None => {
                    queue.wait_for_writer(cx);
                    Poll::Pending
                }
            };
        };
        Poll::Ready(Some(BodyFrame::data(frame)))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.queue.closed.set(true);
        // After the borrow: a frame that goes tells the queue.
        let frames = std::mem::take(&mut *self.queue.frames.borrow_mut());
        drop(frames);
        self.queue.writers.wake_all();
        if let Some(task) = &self.task {
            task.handler.abort();
        }
    }
}

/// What HTTP/2 is given of a message at once. It takes no piece over 2 GiB - 1, and a message of
/// gRPC's largest size has a prefix, too; what it does not take ends the call with a reset, which
/// Go's client of etcd answers by calling again.
const PIECE_BYTES: usize = 16 * 1024 * 1024;

/// Every response body of this server.
pub(crate) enum Body {
    /// No body: trailers-only responses.
    Empty,
    /// What is left of a unary call's message, and whether its trailers were given.
    Unary(Chunk, bool),
    /// Plain HTTP.
    Full(Option<Chunk>),
    /// A streaming call.
    Stream(StreamBody),
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Chunk>, Self::Error>>> {
        let frame = match &mut *self {
            Body::Empty => None,
            Body::Full(chunk) => chunk.take().map(BodyFrame::data),
            Body::Unary(left, _) if left.len() > 0 => {
                Some(BodyFrame::data(left.split_to(PIECE_BYTES)))
            }
            Body::Unary(_, done) => (!std::mem::replace(done, true)).then(|| {
                let mut trailers = HeaderMap::with_capacity(2);
                Status::OK.write_to(&mut trailers);
                BodyFrame::trailers(trailers)
            }),
            Body::Stream(stream) => std::task::ready!(stream.poll(cx)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(chunk) => chunk.is_none(),
            Body::Unary(..) | Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // An exact size becomes a content-length header, which gRPC responses do not carry.
            Body::Unary(..) | Body::Stream(_) => SizeHint::default(),
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(chunk) => {
                SizeHint::with_exact(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ledger::{Account, Ledger, Limits};

    use super::*;
    use crate::Config;
    use crate::memory::WorkerMemory;

    /// A worker whose streams and answers may hold so much.
    fn memory(limit_bytes: usize) -> (Ledger, Rc<ConnMemory>) {
        let limits = Limits::none()
            .with(Account::Streams, limit_bytes)
            .with(Account::Answers, limit_bytes);
        let config = Config {
            ledger: Ledger::new(limits),
            ..Config::default()
        };
        let memory = WorkerMemory::new(&config).connection(&config, "peer");
        (config.ledger, memory)
    }

    fn frame(len: usize) -> Frame {
        Frame::encode(len - PREFIX_BYTES, |b| b.resize(len, 0))
    }

    fn next(body: &mut StreamBody) -> Option<Chunk> {
        let mut cx = Context::from_waker(Waker::noop());
        match body.poll(&mut cx) {
            Poll::Ready(Some(frame)) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[test]
    fn a_frame_counts_until_http2_has_written_it() {
        let (ledger, memory) = memory(1 << 20);
        let (out, mut body) = StreamBody::pair(30_000, memory, Rc::new(|_| {}));
        assert_eq!(out.try_send(frame(20_000)), Ok(()));
        let taken = next(&mut body).unwrap();
        // In HTTP/2 now, and nobody reads it.
        assert_eq!(out.queued_bytes(), 20_000);
        assert!(matches!(out.try_send(frame(20_000)), Err(Refused::Full(_))));
        assert_eq!(out.try_send(frame(10_000)), Ok(()));
        drop(taken);
        assert_eq!(out.queued_bytes(), 10_000);
        // A body that is dropped lets go of its queue, not of what HTTP/2 has.
        let taken = next(&mut body).unwrap();
        assert_eq!(out.try_send(frame(6_000)), Ok(()));
        drop(body);
        assert_eq!(ledger.held_bytes(Account::Streams), 10_000);
        drop(taken);
        assert_eq!(ledger.held_bytes(Account::Streams), 0);
        assert_eq!(out.queued_bytes(), 0);
    }

    #[test]
    fn streams_share_a_limit_and_give_back_what_they_held() {
        // A connection gets three quarters of it.
        let (ledger, memory) = memory(100_000);
        let pair = || StreamBody::pair(60_000, Rc::clone(&memory), Rc::new(|_| {}));
        let ((one, body), (two, _two), (three, _three)) = (pair(), pair(), pair());
        assert_eq!(one.try_send(frame(25_000)), Ok(()));
        assert_eq!(one.try_send(frame(25_000)), Ok(()));
        // Beside others an empty queue takes what is small, and only that.
        assert!(matches!(two.try_send(frame(30_000)), Err(Refused::Full(_))));
        assert_eq!(two.try_send(frame(4_000)), Ok(()));
        assert!(matches!(two.try_send(frame(30_000)), Err(Refused::Full(_))));
        drop(body);
        // While there is little, it takes any.
        assert_eq!(three.try_send(frame(90_000)), Ok(()));
        assert_eq!(
            ledger.held_bytes(Account::Streams),
            two.queued_bytes() + three.queued_bytes()
        );
    }

    #[test]
    fn who_waits_for_room_is_woken_by_other_streams() {
        let (_, memory) = memory(100_000);
        let pair = || StreamBody::pair(60_000, Rc::clone(&memory), Rc::new(|_| {}));
        let ((one, body), (two, _two)) = (pair(), pair());
        assert_eq!(one.try_send(frame(40_000)), Ok(()));
        assert_eq!(one.try_send(frame(20_000)), Ok(()));
        let mut cx = Context::from_waker(Waker::noop());
        // Its own queue is empty: no room of its own would wake it.
        let mut ready = std::pin::pin!(two.ready_below(10));
        let mut sending = std::pin::pin!(two.send(frame(30_000)));
        assert!(sending.as_mut().poll(&mut cx).is_pending());
        assert!(ready.as_mut().poll(&mut cx).is_pending());
        drop(body);
        assert!(ready.as_mut().poll(&mut cx).is_ready());
        assert!(sending.as_mut().poll(&mut cx).is_ready());
        assert_eq!(two.queued_bytes(), 30_000);
    }

    #[test]
    fn a_large_answer_is_given_in_pieces_and_counts_to_the_last() {
        let (ledger, memory) = memory(100 << 20);
        let len = 2 * PIECE_BYTES + 7;
        let mut body = Body::Unary(memory.answer(Bytes::from(vec![1; len])), false);
        let mut cx = Context::from_waker(Waker::noop());
        let mut pieces = Vec::new();
        let trailers = loop {
            match http_body::Body::poll_frame(Pin::new(&mut body), &mut cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => pieces.push(piece),
                    Err(frame) => break frame.into_trailers().unwrap(),
                },
                _ => panic!("an answer ends with trailers"),
            }
        };
        assert_eq!(trailers["grpc-status"], "0");
        let sizes: Vec<_> = pieces.iter().map(Chunk::len).collect();
        assert_eq!(sizes, [PIECE_BYTES, PIECE_BYTES, 7]);
        drop(body);
        assert!(ledger.held_bytes(Account::Answers) >= len);
        pieces.truncate(2);
        assert_eq!(ledger.held_bytes(Account::Answers), 2 * PIECE_BYTES);
        drop(pieces);
        assert_eq!(ledger.held_bytes(Account::Answers), 0);
    }

    #[test]
    fn a_message_that_is_too_large_ends_its_stream() {
        let (_, memory) = memory(1 << 20);
        let (out, mut body) = StreamBody::pair(1000, memory, Rc::new(|_| {}));
        let too_large = Frame::encode(crate::MAX_MESSAGE_BYTES + 1, |_| panic!("built"));
        assert_eq!(out.try_send(too_large), Err(Refused::Closed));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(end)) = body.poll(&mut cx) else {
            panic!("the stream goes on");
        };
        assert_eq!(end.into_trailers().unwrap()["grpc-status"], "8");
    }
}
