//! A connection's bytes between hyper and its socket: writes of one turn leave together.
//!
//! hyper's HTTP/2 writes and flushes each DATA frame above 256 bytes by itself, so that eight
//! replies of a turn would cost eight system calls. Here a flush only promises; the connection's
//! task keeps the promise at the end of each of its turns ([`Io::poll_drain`]).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pings::{Misuse, PingPolicy, TOO_MANY_PINGS};

/// Bytes that wait for the socket at most; above it a writer has to wait.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// Bytes that a connection hands to its socket before its worker's other connections get their
/// turn: some tenths of a millisecond. A client that reads a long answer as fast as it comes
/// would keep the worker for milliseconds.
const TURN_BYTES_MAX: usize = 256 * 1024;

/// Bytes that a connection reads before its worker's other connections get their turn: of
/// requests of 20 bytes, some thousands.
const TURN_READ_BYTES_MAX: usize = 128 * 1024;

thread_local! {
    /// An empty buffer to reuse. A connection that keeps up holds it for one turn only, so one is
    /// enough for a worker, and idle connections hold none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A handle on a connection's transport; one is hyper's, one its task's.
pub(crate) struct Io<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    stream: S,
    /// Bytes that were read to detect the protocol, to be read again first.
    lead: Vec<u8>,
    lead_read: usize,
    pings: Option<PingPolicy>,
    pending: Vec<u8>,
    /// Of `pending`, what the socket has taken.
    written: usize,
    /// What the socket has taken in this turn of the connection's task.
    turn_bytes: usize,
    /// What was read from it in this turn.
    turn_read_bytes: usize,
    /// What it has taken so far.
    written_bytes: Rc<Cell<u64>>,
    /// Whether the stream may hold bytes that the socket has not taken, as TLS does.
    unflushed: bool,
}

impl<S> Clone for Io<S> {
    fn clone(&self) -> Self {
        Io(Rc::clone(&self.0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// `lead` was read already and is read again first; `pings` judges what comes after it.
    /// `written_bytes` tells what the socket has taken.
    pub(crate) fn new(
        stream: S,
        lead: Vec<u8>,
        pings: Option<PingPolicy>,
        written_bytes: Rc<Cell<u64>>,
    ) -> Self {
        Io(Rc::new(RefCell::new(Inner {
            stream,
            lead,
            lead_read: 0,
            pings,
            pending: Vec::new(),
            written: 0,
            turn_bytes: 0,
            turn_read_bytes: 0,
            written_bytes,
            unflushed: false,
        })))
    }

    /// Tells that the connection's task has its turn.
    pub(crate) fn begin_turn(&self) {
        let mut inner = self.0.borrow_mut();
        (inner.turn_bytes, inner.turn_read_bytes) = (0, 0);
    }

    /// Hands everything that was written to the socket. If it is not ready for all, the task is
    /// woken when it is.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += taken;
            self.turn_bytes += taken;
            let written = self.written_bytes.get();
            self.written_bytes.set(written + taken as u64);
        }
        if !self.pending.is_empty() {
            self.written = 0;
            let mut spare = std::mem::take(&mut self.pending);
            spare.clear();
            SPARE.set(spare);
            self.unflushed = true;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_append(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.pending.len() >= PENDING_BYTES_MAX {
            if self.turn_bytes + self.pending.len() >= TURN_BYTES_MAX {
                // Wakes the task once the runtime has looked what else there is to do, which a
                // plain wake would not wait for.
                let later = pin!(tokio::task::yield_now());
                ready!(later.poll(cx));
            }
            ready!(self.poll_drain(cx))?;
        }
        if self.pending.capacity() == 0 {
            self.pending = SPARE.take();
        }
        let begin = self.pending.len();
        for buf in bufs {
            let room = PENDING_BYTES_MAX - self.pending.len();
            self.pending.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        let taken = &self.pending[begin..];
        if let Some(pings) = &mut self.pings {
            pings.on_sent(taken);
        }
        Poll::Ready(Ok(taken.len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        let rest = &inner.lead[inner.lead_read..];
        if !rest.is_empty() {
            let part = &rest[..rest.len().min(buf.remaining())];
            buf.put_slice(part);
            inner.lead_read += part.len();
            return Poll::Ready(Ok(()));
        }
        if inner.pending.len() >= PENDING_BYTES_MAX {
            // Who does not read is not read from: each request brings an answer that would wait
            // behind this.
            ready!(inner.poll_drain(cx))?;
        }
        if inner.turn_read_bytes >= TURN_READ_BYTES_MAX {
            let later = pin!(tokio::task::yield_now());
            ready!(later.poll(cx));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        inner.turn_read_bytes += read.len();
        if let Some(pings) = &mut inner.pings
            && let Err(misuse) = pings.on_received(read, Instant::now)
        {
            if misuse == Misuse::Pings && pings.may_send() {
                // The error ends hyper's part; the task still drains this.
                inner.pending.extend_from_slice(TOO_MANY_PINGS);
            }
            return Poll::Ready(Err(io::Error::other(misuse)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0
            .borrow_mut()
            .poll_append(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_append(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // See the module's text: `poll_drain` follows in the same turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that takes bytes at once, and hands them on at a flush, as TLS does; it gives
    /// zeros without end.
    #[derive(Default)]
    struct Taker {
        given: usize,
        /// Takes nothing.
        stuck: bool,
        kept: usize,
        sent: usize,
        /// Flushes that find the socket full.
        full: usize,
    }

    impl AsyncRead for Taker {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let room = buf.remaining();
            buf.put_slice(&vec![0; room]);
            self.get_mut().given += room;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Taker {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.stuck {
                return Poll::Pending;
            }
            self.kept += buf.len();
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.full > 0 {
                self.full -= 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.sent += std::mem::take(&mut self.kept);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_tls_holds_back_is_flushed_when_the_socket_has_room() {
        let stream = Taker {
            full: 1,
            ..Taker::default()
        };
        let io = Io::new(stream, Vec::new(), None, Rc::default());
        let mut hyper = io.clone();
        std::future::poll_fn(|cx| Pin::new(&mut hyper).poll_write(cx, b"the end"))
            .await
            .unwrap();
        std::future::poll_fn(|cx| io.poll_drain(cx)).await.unwrap();
        assert_eq!(io.0.borrow().stream.sent, 7);
    }

    #[tokio::test]
    async fn a_long_answer_takes_turns() {
        let io = Io::new(Taker::default(), Vec::new(), None, Rc::default());
        let (mut hyper, mut left, mut turns) = (io.clone(), 100 * PENDING_BYTES_MAX, 0);
        let bytes = vec![7; PENDING_BYTES_MAX];
        std::future::poll_fn(|cx| {
            io.begin_turn();
            turns += 1;
            while left > 0 {
                let some = &bytes[..left.min(bytes.len())];
                match Pin::new(&mut hyper).poll_write(cx, some) {
                    Poll::Ready(taken) => left -= taken.unwrap(),
                    Poll::Pending => break,
                }
            }
            assert!(io.poll_drain(cx).is_ready());
            // Woken again without the socket: the turn ended by itself.
            (left == 0).then_some(()).map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        assert_eq!(io.0.borrow().stream.sent, 100 * PENDING_BYTES_MAX);
        assert_eq!(turns, 100 * PENDING_BYTES_MAX / TURN_BYTES_MAX);
    }

    fn read(io: &mut Io<Taker>, cx: &mut Context<'_>) -> bool {
        let mut space = [0; 8192];
        let mut buf = ReadBuf::new(&mut space);
        Pin::new(io).poll_read(cx, &mut buf).is_ready()
    }

    #[tokio::test]
    async fn a_connection_reads_so_much_a_turn() {
        let io = Io::new(Taker::default(), Vec::new(), None, Rc::default());
        let mut hyper = io.clone();
        for turn in 1..=3 {
            std::future::poll_fn(|cx| {
                io.begin_turn();
                while read(&mut hyper, cx) {}
                Poll::Ready(())
            })
            .await;
            assert_eq!(io.0.borrow().stream.given, turn * TURN_READ_BYTES_MAX);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_read_from() {
        let stream = Taker {
            stuck: true,
            ..Taker::default()
        };
        let written = Rc::<Cell<u64>>::default();
        let io = Io::new(stream, Vec::new(), None, Rc::clone(&written));
        let mut hyper = io.clone();
        let bytes = vec![7; PENDING_BYTES_MAX];
        std::future::poll_fn(|cx| {
            io.begin_turn();
            assert!(read(&mut hyper, cx));
            assert!(Pin::new(&mut hyper).poll_write(cx, &bytes).is_ready());
            assert!(!read(&mut hyper, cx));
            io.0.borrow_mut().stream.stuck = false;
            assert!(read(&mut hyper, cx));
            Poll::Ready(())
        })
        .await;
        assert_eq!(written.get(), PENDING_BYTES_MAX as u64);
    }
}
