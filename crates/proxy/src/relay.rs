//! Bytes from one socket to the other, in both directions, untouched.
//!
//! They are copied through one buffer that all connections of a thread share: it stays in the
//! processor's cache, and a connection at rest holds none. Only what the other side does not take
//! is kept, and nothing more is read until it is gone: that is the back-pressure, and a connection
//! holds [`BUFFER_BYTES`] a direction at most.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use crate::life::{FirstBytes, Traffic, Who};

/// What is read at once, and so the most that a direction holds.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// What one direction moves before other connections of the thread have their turn.
const TURN_BYTES: usize = 1024 * 1024;

/// The most that is kept of a client's first bytes: a TLS record and its header.
const FIRST_BYTES_MAX: usize = 16 * 1024 + 5;

/// Fewer bytes than these are no answer of gRPC, but frames of HTTP/2's own: a ping (17 bytes), which
/// Go's server sends when a request comes, with window updates (13 each). The shortest answer has
/// headers, a message and trailers, 64 bytes in all.
const ANSWER_BYTES_MIN: usize = 52;

/// What a TLS record adds.
const TLS_RECORD_BYTES: usize = 22;

/// The first byte of a TLS handshake's record.
const TLS_HANDSHAKE: u8 = 0x16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// One end of a connection. The methods take `&self`: both directions use it at once.
pub(crate) trait Side: Send + 'static {
    /// Ready when there is something to read, or an end.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when something can be written.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads without waiting; 0 at the end.
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes without waiting.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Nothing more will be written; what was read can still come.
    fn end_writes(&self) -> io::Result<()>;
    /// Whether what is written waits for more, or for the end of writes, to leave together with it.
    /// An error does not matter: it leaves at once then.
    fn cork(&self, on: bool);
}

/// Connects to members.
pub(crate) trait Dial: Send + Sync + 'static {
    /// What a connection is.
    type Side: Side;
    /// Connects, without a limit on the time.
    fn dial(
        &self,
        to: &upstream::Endpoint,
    ) -> impl Future<Output = io::Result<Self::Side>> + Send + 'static;
}

/// What a direction is doing.
#[derive(Debug)]
enum Flow {
    /// It reads.
    Open,
    /// It has bytes that the receiver has yet to take, from this one on, and then reads on or ends.
    Holding {
        bytes: Vec<u8>,
        at: usize,
        then_ends: bool,
    },
    /// Its sender has ended, and its receiver was told.
    Ended,
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It moved so many bytes, and could go on.
    Moved,
    /// Its sender has ended.
    Eof,
}

/// Where a direction failed.
#[derive(Debug)]
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

impl Flow {
    fn begin(bytes: Vec<u8>, then_ends: bool) -> Self {
        match bytes.is_empty() && !then_ends {
            true => Flow::Open,
            false => Flow::Holding {
                bytes,
                at: 0,
                then_ends,
            },
        }
    }

    fn holds(&self) -> bool {
        matches!(self, Flow::Holding { .. })
    }

    /// Moves until it would have to wait, the turn is over, or the sender ends. `sent` is called
    /// with what was read.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &impl Side,
        to: &impl Side,
        mut sent: impl FnMut(&[u8]),
    ) -> Poll<Result<Turn, Fault>> {
        let mut moved = 0;
        loop {
            match self {
                Flow::Ended => return Poll::Pending,
                Flow::Holding {
                    bytes,
                    at,
                    then_ends,
                } => {
                    while *at < bytes.len() {
                        ready!(to.poll_writable(cx)).map_err(Fault::Writing)?;
                        match to.try_write(&bytes[*at..]) {
                            Ok(taken) => *at += taken,
                            Err(error) if blocked(&error) => {}
                            Err(error) => return Poll::Ready(Err(Fault::Writing(error))),
                        }
                    }
                    let ends = *then_ends;
                    *self = Flow::Open;
                    if ends {
                        return Poll::Ready(Ok(Turn::Eof));
                    }
                }
                Flow::Open => {
                    if moved >= TURN_BYTES {
                        return Poll::Ready(Ok(Turn::Moved));
                    }
                    ready!(from.poll_readable(cx)).map_err(Fault::Reading)?;
                    let read = BUFFER.with_borrow_mut(|buffer| {
                        let read = match from.try_read(buffer) {
                            Ok(read) => read,
                            Err(error) if blocked(&error) => return Ok(None),
                            Err(error) => return Err(Fault::Reading(error)),
                        };
                        let bytes = &buffer[..read];
                        if read > 0 {
                            sent(bytes);
                        }
                        let mut at = 0;
                        while at < read {
                            match to.try_write(&bytes[at..]) {
                                Ok(taken) => at += taken,
                                Err(error) if blocked(&error) => break,
                                Err(error) => return Err(Fault::Writing(error)),
                            }
                        }
                        Ok(Some((read, bytes[at..].to_vec())))
                    })?;
                    match read {
                        None => {}
                        Some((0, _)) => return Poll::Ready(Ok(Turn::Eof)),
                        Some((read, rest)) => {
                            moved += read;
                            *self = Flow::begin(rest, false);
                        }
                    }
                }
            }
        }
    }
}

fn blocked(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// A client's first bytes, kept until a member answers them.
///
/// A client of TLS asks for nothing before the server has spoken, so its first bytes may go to
/// another member when the first one goes away. Without TLS they may be a request, and are not
/// kept: it could be executed twice.
#[derive(Debug)]
enum First {
    Kept { bytes: Vec<u8>, ended: bool },
    Gone,
}

impl First {
    fn add(&mut self, more: &[u8]) {
        let First::Kept { bytes, .. } = self else {
            return;
        };
        let first = bytes.first().or(more.first());
        if first != Some(&TLS_HANDSHAKE) || bytes.len() + more.len() > FIRST_BYTES_MAX {
            *self = First::Gone;
            return;
        }
        bytes.extend_from_slice(more);
    }
}

/// What a relay has to tell.
#[derive(Debug)]
pub(crate) enum Event {
    /// The client has sent its first bytes.
    Asked,
    /// The member has sent its first bytes; or some, when each answer is to be told.
    Answered,
    /// Both sides have ended.
    Done,
    /// The client's side failed.
    ClientFailed(io::Error),
    /// The member's side failed, or ended before it sent anything (`None`).
    MemberGone(Option<io::Error>),
}

/// Bytes that were moved, for counters.
pub(crate) trait Count {
    /// So many bytes were read from that side.
    fn count(&self, from: Who, bytes: usize);
}

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct Relay {
    up: Flow,
    down: Flow,
    first: First,
    asked: bool,
    answered: bool,
    tells_answers: bool,
    tls: bool,
    traffic: Traffic,
}

impl Relay {
    /// Of a connection whose client has sent nothing that was read.
    pub(crate) fn new(now: Instant) -> Self {
        Relay {
            up: Flow::Open,
            down: Flow::Open,
            first: First::Kept {
                bytes: Vec::new(),
                ended: false,
            },
            asked: false,
            answered: false,
            tells_answers: false,
            tls: false,
            traffic: Traffic::new(now),
        }
    }

    /// Begins with a member: `header`, then the client's first bytes, if there were some, go there.
    pub(crate) fn begin(&mut self, now: Instant, header: Option<&[u8]>) {
        let First::Kept { bytes, ended } = &self.first else {
            return;
        };
        self.traffic = Traffic::new(now);
        self.traffic.half_closed = *ended;
        if !bytes.is_empty() {
            self.traffic.by = Some(Who::Client);
        }
        let mut first = header.unwrap_or_default().to_vec();
        first.extend_from_slice(bytes);
        self.up = Flow::begin(first, *ended);
        self.down = Flow::Open;
    }

    /// Whether the end of each answer is told. It reaches the client together with the end of the
    /// connection, if that follows: a moment later the client would have asked again.
    pub(crate) fn tell_answers(&mut self, tells: bool, client: &impl Side) {
        if self.tells_answers != tells {
            self.tells_answers = tells;
            client.cork(tells);
        }
    }

    /// What was sent last.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            held: self.up.holds() || self.down.holds(),
            ..self.traffic
        }
    }

    /// Whether the client's bytes could go to another member.
    pub(crate) fn first_bytes(&self) -> FirstBytes {
        match self.first {
            First::Kept { .. } if !self.answered => FirstBytes::Kept,
            _ => FirstBytes::Gone,
        }
    }

    /// Moves what can be moved; ready when there is something to tell.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &impl Side,
        member: &impl Side,
        counters: &impl Count,
    ) -> Poll<Event> {
        let (traffic, first, tls) = (&mut self.traffic, &mut self.first, &mut self.tls);
        let up = self.up.poll(cx, client, member, |bytes| {
            *tls |= traffic.by.is_none() && bytes.first() == Some(&TLS_HANDSHAKE);
            counters.count(Who::Client, bytes.len());
            traffic.by = Some(Who::Client);
            traffic.last = Instant::now();
            first.add(bytes);
        });
        self.traffic.answers = false;
        let mut again = false;
        match up {
            Poll::Ready(Ok(Turn::Moved)) => again = true,
            Poll::Ready(Ok(Turn::Eof)) => {
                self.traffic.half_closed = true;
                if let First::Kept { ended, .. } = &mut self.first {
                    *ended = true;
                }
                self.up = Flow::Ended;
                if let Err(error) = member.end_writes() {
                    return Poll::Ready(Event::MemberGone(Some(error)));
                }
                again = true;
            }
            Poll::Ready(Err(Fault::Reading(error))) => {
                return Poll::Ready(Event::ClientFailed(error));
            }
            Poll::Ready(Err(Fault::Writing(error))) => {
                return Poll::Ready(Event::MemberGone(Some(error)));
            }
            Poll::Pending => {}
        }
        let traffic = &mut self.traffic;
        let mut spoke_bytes = 0;
        let down = self.down.poll(cx, member, client, |bytes| {
            counters.count(Who::Member, bytes.len());
            traffic.by = Some(Who::Member);
            traffic.last = Instant::now();
            spoke_bytes += bytes.len();
        });
        let spoke = spoke_bytes > 0;
        match down {
            Poll::Ready(Ok(Turn::Moved)) => again = true,
            Poll::Ready(Ok(Turn::Eof)) if !self.answered && !spoke => {
                return Poll::Ready(Event::MemberGone(None));
            }
            Poll::Ready(Ok(Turn::Eof)) => {
                self.traffic.half_closed = true;
                self.down = Flow::Ended;
                if let Err(error) = client.end_writes() {
                    return Poll::Ready(Event::ClientFailed(error));
                }
                again = true;
            }
            Poll::Ready(Err(Fault::Reading(error))) => {
                return Poll::Ready(Event::MemberGone(Some(error)));
            }
            Poll::Ready(Err(Fault::Writing(error))) => {
                return Poll::Ready(Event::ClientFailed(error));
            }
            Poll::Pending => {}
        }
        if matches!((&self.up, &self.down), (Flow::Ended, Flow::Ended)) {
            return Poll::Ready(Event::Done);
        }
        let record = if self.tls { TLS_RECORD_BYTES } else { 0 };
        let is_answer = spoke_bytes >= ANSWER_BYTES_MIN + record;
        if is_answer && self.tells_answers && self.answered {
            self.traffic.answers = true;
            return Poll::Ready(Event::Answered);
        }
        if spoke && !self.answered {
            self.answered = true;
            self.first = First::Gone;
            return Poll::Ready(Event::Answered);
        }
        if !self.asked && self.traffic.by.is_some() {
            self.asked = true;
            return Poll::Ready(Event::Asked);
        }
        if again {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    #[derive(Default)]
    struct Counted {
        client: Cell<usize>,
        member: Cell<usize>,
    }

    impl Count for Counted {
        fn count(&self, from: Who, bytes: usize) {
            let counter = match from {
                Who::Client => &self.client,
                Who::Member => &self.member,
            };
            counter.set(counter.get() + bytes);
        }
    }

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(connecting, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Relays until there is something to tell.
    async fn next(
        relay: &mut Relay,
        client: &TcpStream,
        member: &TcpStream,
        counted: &Counted,
    ) -> Event {
        let polled = poll_fn(|cx| relay.poll(cx, client, member, counted));
        timeout(Duration::from_secs(30), polled).await.unwrap()
    }

    /// Relays to the end.
    async fn to_the_end(
        relay: &mut Relay,
        client: &TcpStream,
        member: &TcpStream,
        counted: &Counted,
    ) -> Event {
        loop {
            match next(relay, client, member, counted).await {
                Event::Asked | Event::Answered => {}
                event => return event,
            }
        }
    }

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        let step = |n: usize| {
            (n as u8)
                .wrapping_mul(31)
                .wrapping_add((n >> 8) as u8 ^ seed)
        };
        (0..len).map(step).collect()
    }

    #[tokio::test]
    async fn both_directions_arrive_byte_for_byte_and_end_one_after_the_other() {
        let (mut client, near) = pair().await;
        let (far, mut member) = pair().await;
        let (up, down) = (bytes(3_000_001, 1), bytes(5_000_003, 2));
        let (sent_up, sent_down) = (up.clone(), down.clone());
        let counted = Counted::default();
        let mut relay = Relay::new(Instant::now());
        let relaying = to_the_end(&mut relay, &near, &far, &counted);
        let at_client = async {
            client.write_all(&sent_up).await.unwrap();
            // The client's half is closed, and the member's answer still comes.
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        };
        let at_member = async {
            let mut got = Vec::new();
            member.read_to_end(&mut got).await.unwrap();
            member.write_all(&sent_down).await.unwrap();
            member.shutdown().await.unwrap();
            got
        };
        let (event, got_down, got_up) = tokio::join!(relaying, at_client, at_member);
        assert!(matches!(event, Event::Done), "{event:?}");
        assert!(got_up == up && got_down == down);
        assert_eq!(counted.client.get(), up.len());
        assert_eq!(counted.member.get(), down.len());
    }

    /// Sends until nobody takes anything for a while; how much was taken.
    async fn flood(from: &mut TcpStream) -> usize {
        let piece = vec![7; 64 * 1024];
        let mut taken = 0;
        loop {
            match timeout(Duration::from_millis(300), from.write(&piece)).await {
                Ok(n) => taken += n.unwrap(),
                Err(_) => return taken,
            }
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_read_for() {
        let (mut client, near) = pair().await;
        let (far, mut member) = pair().await;
        let counted = Counted::default();
        let mut relay = Relay::new(Instant::now());
        client.write_all(&[1]).await.unwrap();
        let flooded = tokio::select! {
            event = to_the_end(&mut relay, &near, &far, &counted) => panic!("{event:?}"),
            taken = flood(&mut member) => taken,
        };
        assert!(relay.traffic().held);
        let Flow::Holding { bytes, .. } = &relay.down else {
            panic!("{relay:?}");
        };
        assert!(bytes.len() <= BUFFER_BYTES);
        // The rest is in the four sockets' buffers.
        assert!(flooded < 64 << 20, "{flooded}");
        let read = async {
            let mut got = vec![0; flooded];
            client.read_exact(&mut got).await.unwrap();
            got
        };
        let got = tokio::select! {
            event = to_the_end(&mut relay, &near, &far, &counted) => panic!("{event:?}"),
            got = timeout(Duration::from_secs(30), read) => got.unwrap(),
        };
        assert!(got.iter().all(|byte| *byte == 7));
        assert!(!relay.traffic().held);
    }

    #[tokio::test]
    async fn first_bytes_of_tls_go_to_the_next_member_and_others_do_not() {
        for (first, kept) in [
            (&b"\x16\x03\x01hello"[..], true),
            (b"PRI * HTTP/2.0", false),
        ] {
            let (mut client, near) = pair().await;
            let (far, member) = pair().await;
            let counted = Counted::default();
            let mut relay = Relay::new(Instant::now());
            relay.begin(Instant::now(), Some(b"header"));
            client.write_all(first).await.unwrap();
            let event = next(&mut relay, &near, &far, &counted).await;
            assert!(matches!(event, Event::Asked), "{event:?}");
            drop(member);
            let event = next(&mut relay, &near, &far, &counted).await;
            assert!(matches!(event, Event::MemberGone(_)), "{event:?}");
            assert_eq!(relay.first_bytes() == FirstBytes::Kept, kept);
            if !kept {
                continue;
            }
            let (far, mut member) = pair().await;
            relay.begin(Instant::now(), Some(b"header"));
            let mut got = vec![0; 6 + first.len()];
            let read = async {
                member.read_exact(&mut got).await.unwrap();
                member.write_all(b"answer").await.unwrap();
            };
            let (event, ()) = tokio::join!(next(&mut relay, &near, &far, &counted), read);
            assert!(matches!(event, Event::Answered), "{event:?}");
            assert_eq!(got, [&b"header"[..], first].concat());
            assert_eq!(relay.first_bytes(), FirstBytes::Gone);
            let mut answer = [0; 6];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"answer");
        }
    }

    #[tokio::test]
    async fn frames_of_http_2_are_no_answers() {
        for tls in [false, true] {
            let (mut client, near) = pair().await;
            let (far, mut member) = pair().await;
            let counted = Counted::default();
            let mut relay = Relay::new(Instant::now());
            let hello = if tls { TLS_HANDSHAKE } else { b'P' };
            client.write_all(&[hello]).await.unwrap();
            let event = next(&mut relay, &near, &far, &counted).await;
            assert!(matches!(event, Event::Asked), "{event:?}");
            member.write_all(&[1; 200]).await.unwrap();
            let event = next(&mut relay, &near, &far, &counted).await;
            assert!(matches!(event, Event::Answered), "{event:?}");
            relay.tell_answers(true, &near);
            // A ping and two window updates.
            let record = if tls { TLS_RECORD_BYTES } else { 0 };
            member.write_all(&vec![1; 43 + record]).await.unwrap();
            let polled = poll_fn(|cx| relay.poll(cx, &near, &far, &counted));
            assert!(timeout(Duration::from_millis(100), polled).await.is_err());
            member.write_all(&vec![1; 64 + record]).await.unwrap();
            let event = next(&mut relay, &near, &far, &counted).await;
            assert!(matches!(event, Event::Answered), "{event:?}");
            assert!(relay.traffic().answers);
        }
    }

    #[test]
    fn no_more_is_kept_than_a_first_record() {
        let mut first = First::Kept {
            bytes: Vec::new(),
            ended: false,
        };
        first.add(&[TLS_HANDSHAKE; 100]);
        first.add(&[1; FIRST_BYTES_MAX - 100]);
        assert!(matches!(&first, First::Kept { bytes, .. } if bytes.len() == FIRST_BYTES_MAX));
        first.add(&[1]);
        assert!(matches!(first, First::Gone));
    }
}
