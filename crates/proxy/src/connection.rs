//! Carries out what [`Life`] decides, for one connection.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use upstream::Endpoint;

use crate::book::{AtMember, Book, Waiting};
use crate::life::{End, Life, State, Step};
use crate::relay::{Dial, Event, Relay, Side};
use crate::route::Route;
use crate::settings::Settings;

/// How long a closed connection's last bytes may take to be read by its client.
const LINGER: Duration = Duration::from_secs(1);

/// With no other deadline the state is looked at again this late.
const FAR: Duration = Duration::from_secs(24 * 3600);

type Dialing<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Why.
    pub(crate) end: End,
    /// The member that it was at.
    pub(crate) member: Option<Endpoint>,
    /// The last failure, of connecting or of a socket.
    pub(crate) error: Option<io::Error>,
}

/// One connection.
pub(crate) struct Connection<'a, C: Side, D: Dial> {
    client: C,
    /// Sent to each member first.
    header: Option<Vec<u8>>,
    dial: &'a D,
    book: &'a Arc<Book>,
    life: Life,
    relay: Relay,
    member: Option<D::Side>,
    at: Option<AtMember>,
    waiting: Option<Waiting>,
    error: Option<io::Error>,
}

impl<'a, C: Side, D: Dial> Connection<'a, C, D> {
    /// A connection that was just accepted. `waiting` is its place among those that wait.
    pub(crate) fn new(
        client: C,
        header: Option<Vec<u8>>,
        dial: &'a D,
        book: &'a Arc<Book>,
        settings: &Settings,
        waiting: Waiting,
    ) -> Self {
        let now = Instant::now();
        Connection {
            client,
            header,
            dial,
            book,
            life: Life::new(settings, now),
            relay: Relay::new(now),
            member: None,
            at: None,
            waiting: Some(waiting),
            error: None,
        }
    }

    /// Serves it to its end.
    pub(crate) async fn run(mut self, mut routes: watch::Receiver<Arc<Route>>) -> Ended {
        let mut dialing: Option<Dialing<D::Side>> = None;
        let mut sleep = pin!(sleep_until(Instant::now() + FAR));
        loop {
            let route = routes.borrow_and_update().clone();
            let now = Instant::now();
            match self.life.look(now, &route) {
                Step::End(end) => return self.close(end).await,
                Step::Connect(to) => {
                    self.leave();
                    dialing = Some(Box::pin(self.dial.dial(&to)));
                }
                Step::Again => {
                    self.leave();
                    self.book.begun_again();
                }
                Step::Suspect(member) => {
                    // An attempt that took too long is over.
                    if self.life.member().is_none() {
                        dialing = None;
                        self.book.connect_failed();
                    }
                    self.book.suspect(&member);
                }
                Step::Wait(until) => {
                    let until = until.unwrap_or(now + FAR);
                    let tells = self.life.wants_answers(now);
                    self.relay.tell_answers(tells, &self.client);
                    if until != sleep.deadline() {
                        sleep.as_mut().reset(until);
                    }
                    tokio::select! {
                        biased;
                        event = relay(&mut self.relay, &self.client, &self.member, self.book) => {
                            self.relayed(event);
                        }
                        dialed = dialed(&mut dialing) => {
                            dialing = None;
                            self.dialed(dialed);
                        }
                        () = sleep.as_mut() => {}
                        changed = routes.changed() => {
                            // Whoever tells where to go lives longer than every connection.
                            if changed.is_err() {
                                return self.close(End::Drain).await;
                            }
                        }
                    }
                    let (traffic, first) = (self.relay.traffic(), self.relay.first_bytes());
                    self.life.moved(traffic, first);
                    self.look_who_waits();
                }
            }
        }
    }

    fn dialed(&mut self, dialed: io::Result<D::Side>) {
        let now = Instant::now();
        match dialed {
            Ok(member) => {
                self.life.connected(now);
                let Some(to) = self.life.member() else {
                    return;
                };
                self.at = Some(self.book.at_member(to));
                self.book.connected(self.life.waited(now));
                self.relay.begin(now, self.header.as_deref());
                self.member = Some(member);
            }
            Err(error) => {
                self.book.connect_failed();
                if let Some(to) = self.life.failed(now) {
                    self.book.suspect(&to);
                }
                self.error = Some(error);
            }
        }
    }

    fn relayed(&mut self, event: Event) {
        match event {
            Event::Asked | Event::Answered => {}
            Event::Done => self.life.end(End::Done),
            Event::ClientFailed(error) => {
                self.error = Some(error);
                self.life.end(End::ClientFailed);
            }
            Event::MemberGone(error) => {
                let ended = error.is_none();
                self.error = error;
                if let Some(to) = self.life.member().cloned() {
                    self.book.suspect(&to);
                }
                // What the relay knows counts, not what was told before the last bytes.
                let (traffic, first) = (self.relay.traffic(), self.relay.first_bytes());
                self.life.moved(traffic, first);
                // The client has ended, and so has the member: there is nothing to begin again for.
                if ended && traffic.half_closed {
                    self.life.end(End::Done);
                } else if self.life.lost_member(Instant::now()) {
                    let end = if ended { End::Done } else { End::MemberFailed };
                    self.life.end(end);
                } else {
                    self.leave();
                    self.book.begun_again();
                }
            }
        }
    }

    /// Drops the connection to the member.
    fn leave(&mut self) {
        self.member = None;
        self.at = None;
    }

    /// Who has a member has no place among those that wait.
    fn look_who_waits(&mut self) {
        let has_member = self.life.member().is_some();
        if has_member && self.waiting.is_some() {
            self.waiting = None;
        } else if !has_member && self.waiting.is_none() {
            self.waiting = Some(self.book.wait_again());
        }
        let leaves = matches!(self.life.state(), State::Leaving { .. });
        if let Some(at) = &mut self.at {
            at.leaves(leaves);
        }
    }

    /// Ends it. What the member sent must reach the client: a socket that is closed with unread
    /// bytes resets, and takes what is under way with it. So what the client still sends is read,
    /// for a moment.
    async fn close(self, end: End) -> Ended {
        let gentle = matches!(
            end,
            End::Done | End::Gap | End::Limit | End::MemberLost | End::Idle | End::Drain
        );
        // First of all: each moment may bring the client's next call.
        let lingers = gentle && self.member.is_some() && self.client.end_writes().is_ok();
        let to = self.at.as_ref().map(|at| at.member().clone());
        let ended = Ended {
            end,
            member: to,
            error: self.error,
        };
        drop((self.at, self.waiting, self.member));
        if lingers {
            let _ = timeout(LINGER, swallow(&self.client)).await;
        }
        ended
    }
}

/// Relays, once there is a member.
async fn relay<C: Side, M: Side>(
    relay: &mut Relay,
    client: &C,
    member: &Option<M>,
    book: &Arc<Book>,
) -> Event {
    poll_fn(|cx| match member {
        None => std::task::Poll::Pending,
        Some(member) => relay.poll(cx, client, member, &**book),
    })
    .await
}

/// The attempt to connect, if there is one.
async fn dialed<S>(dialing: &mut Option<Dialing<S>>) -> io::Result<S> {
    match dialing {
        Some(dialing) => dialing.await,
        None => std::future::pending().await,
    }
}

/// Reads and forgets until the other side ends.
async fn swallow(side: &impl Side) {
    let mut bytes = [0; 4096];
    loop {
        if poll_fn(|cx| side.poll_readable(cx)).await.is_err() {
            return;
        }
        match side.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// The header of a connection, if one is asked for.
pub(crate) fn header(
    wanted: bool,
    client: SocketAddr,
    local: Option<SocketAddr>,
) -> Option<Vec<u8>> {
    let local = local.filter(|_| wanted)?;
    Some(crate::header::header(client, local))
}
