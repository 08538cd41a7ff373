//! The two halves of a streaming call as a handler sees them, and the response body behind them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame as BodyFrame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;

use crate::grpc::{Code, Frame, PREFIX_BYTES, Status};
use crate::handler::Event;
use crate::local::WakerSet;
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
/// Clones share the queue. The transport takes frames from it as the client's windows allow.
#[derive(Clone)]
pub struct Outbound(Rc<Queue>);

struct Queue {
    frames: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    limit_bytes: usize,
    /// What all streams of the worker have queued, and its limit.
    all: StreamBytes,
    /// Set by the handler's end.
    result: RefCell<Option<Status>>,
    /// Set by the body's drop.
    closed: Cell<bool>,
    /// The body's task.
    reader: RefCell<Option<Waker>>,
    /// Handlers that wait for room or for the end.
    writers: WakerSet,
    observer: Observer,
}

/// What the queues of a worker's streams hold together. Over the limit a stream gets one
/// frame at a time, when its queue is empty. Clones share the count.
#[derive(Clone)]
pub(crate) struct StreamBytes {
    bytes: Rc<Cell<usize>>,
    limit_bytes: usize,
}

impl StreamBytes {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        StreamBytes {
            bytes: Rc::default(),
            limit_bytes,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.get() + bytes <= self.limit_bytes
    }
}

impl Outbound {
    /// Queues a frame if there is room. An empty queue takes any frame, however large.
    pub fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        let queue = &*self.0;
        if queue.closed.get() {
            return Err(Refused::Closed);
        }
        let held = queue.bytes.get();
        let full = held + frame.len() > queue.limit_bytes || !queue.all.has_room(frame.len());
        if held > 0 && full {
            return Err(Refused::Full(frame));
        }
        queue.hold(frame.len());
        (queue.observer)(Event::Sent {
            bytes: frame.len() - PREFIX_BYTES,
        });
        queue.frames.borrow_mut().push_back(frame.into_bytes());
        queue.wake_reader();
        Ok(())
    }

    /// Queues a frame whatever the limit: for the short control messages of a protocol, and
    /// for what must not be separated from a frame that [`Outbound::try_send`] has taken. The
    /// caller bounds how much that is. Without effect once the stream is gone.
    pub fn push(&self, frame: Frame) {
        let queue = &*self.0;
        if queue.closed.get() {
            return;
        }
        queue.hold(frame.len());
        (queue.observer)(Event::Sent {
            bytes: frame.len() - PREFIX_BYTES,
        });
        queue.frames.borrow_mut().push_back(frame.into_bytes());
        queue.wake_reader();
    }

    /// Queues a frame, waiting for room.
    pub async fn send(&self, frame: Frame) -> Result<(), Closed> {
        let mut frame = Some(frame);
        self.0
            .writers
            .wait(|| match self.try_send(frame.take()?) {
                Ok(()) => Some(Ok(())),
                Err(Refused::Closed) => Some(Err(Closed)),
                Err(Refused::Full(back)) => {
                    frame = Some(back);
                    None
                }
            })
            .await
    }

    /// Bytes in the queue; what the transport has taken is not counted.
    pub fn queued_bytes(&self) -> usize {
        self.0.bytes.get()
    }

    /// The queue's limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes
    }

    /// Waits until fewer than `bytes` are queued (for 0: until none are).
    pub async fn ready_below(&self, bytes: usize) -> Result<(), Closed> {
        let queue = &*self.0;
        queue
            .writers
            .wait(|| {
                if queue.closed.get() {
                    return Some(Err(Closed));
                }
                (queue.bytes.get() < bytes.max(1)).then_some(Ok(()))
            })
            .await
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
    fn hold(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        self.all.bytes.set(self.all.bytes.get() + bytes);
    }

    fn release(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.all.bytes.set(self.all.bytes.get() - bytes);
    }

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
    task: Option<AbortHandle>,
}

impl StreamBody {
    /// A connected pair: what the handler writes, and what the transport reads.
    pub(crate) fn pair(
        limit_bytes: usize,
        all: StreamBytes,
        observer: Observer,
    ) -> (Outbound, StreamBody) {
        let queue = Rc::new(Queue {
            frames: RefCell::default(),
            bytes: Cell::new(0),
            limit_bytes,
            all,
            result: RefCell::default(),
            closed: Cell::new(false),
            reader: RefCell::default(),
            writers: WakerSet::default(),
            observer,
        });
        (
            Outbound(Rc::clone(&queue)),
            StreamBody { queue, task: None },
        )
    }

    /// Names the handler's task, to be ended with this body.
    pub(crate) fn own(&mut self, task: AbortHandle) {
        self.task = Some(task);
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<BodyFrame<Bytes>>> {
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
        queue.release(frame.len());
        queue.writers.wake_all();
        Poll::Ready(Some(BodyFrame::data(frame)))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.queue.closed.set(true);
        self.queue.frames.borrow_mut().clear();
        self.queue.release(self.queue.bytes.get());
        self.queue.writers.wake_all();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Every response body of this server.
pub(crate) enum Body {
    /// No body: trailers-only responses.
    Empty,
    /// A unary call's message, then its trailers.
    Unary(Option<Bytes>, bool),
    /// Plain HTTP.
    Full(Option<Bytes>),
    /// A streaming call.
    Stream(StreamBody),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Self::Error>>> {
        let frame = match &mut *self {
            Body::Empty => None,
            Body::Full(bytes) => bytes.take().map(BodyFrame::data),
            Body::Unary(message, done) => match message.take() {
                Some(bytes) => Some(BodyFrame::data(bytes)),
                None if !std::mem::replace(done, true) => {
                    let mut trailers = HeaderMap::with_capacity(2);
                    Status::OK.write_to(&mut trailers);
                    Some(BodyFrame::trailers(trailers))
                }
                None => None,
            },
            Body::Stream(stream) => std::task::ready!(stream.poll(cx)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_none(),
            Body::Unary(..) | Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // An exact size becomes a content-length header, which gRPC responses do not carry.
            Body::Unary(..) | Body::Stream(_) => SizeHint::default(),
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_a_limit_and_give_back_what_they_held() {
        let all = StreamBytes::new(1000);
        let pair = || StreamBody::pair(800, all.clone(), Rc::new(|_| {}));
        let frame = || Frame::encode(395, |b| b.resize(400, 0));
        let ((one, body), (two, _other)) = (pair(), pair());
        assert_eq!(one.try_send(frame()), Ok(()));
        assert_eq!(one.try_send(frame()), Ok(()));
        // An empty queue takes one whatever the others hold, and no second.
        assert_eq!(two.try_send(frame()), Ok(()));
        assert!(matches!(two.try_send(frame()), Err(Refused::Full(_))));
        drop(body);
        assert_eq!(two.try_send(frame()), Ok(()));
        assert_eq!(all.bytes.get(), two.queued_bytes());
    }
}
