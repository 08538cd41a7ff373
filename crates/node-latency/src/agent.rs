//! The agent: one UDP socket, which asks and answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::RngCore as _;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::limit::Limits;
use crate::packet::{Nonce, Packet};
use crate::prober::{Answer, Prober, Settings, View};
use crate::roster::Roster;
use crate::targets::{self, Target, ZoneEstimate};
use crate::{Error, NodeName};

/// Packets that are taken in one turn, before it is looked whose probe is due.
const TURN: usize = 64;
/// Longer packets are cut, and so not understood.
const BUFFER: usize = 64;
/// Room for packets that come while the agent does something else.
const SOCKET_BUFFER_BYTES: usize = 256 << 10;
/// How often it is looked whether the sample of other zones turns.
const LOOK: Duration = Duration::from_secs(10);

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node it runs on.
    pub node: NodeName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How it probes.
    pub settings: Settings,
}

/// What the socket has seen, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Questions that were answered.
    pub answered: u64,
    /// Questions that were not: too many came.
    pub refused: u64,
    /// Packets that are none of this protocol.
    pub unknown: u64,
    /// Answers that nobody waited for.
    pub stray: u64,
    /// Packets that could not be sent.
    pub unsent: u64,
}

struct State {
    prober: Prober,
    limits: Limits,
    counters: Counters,
    nodes: usize,
}

/// What an agent shows of itself, to be asked at any time.
#[derive(Clone)]
pub struct Board {
    node: NodeName,
    state: Arc<Mutex<State>>,
    roster: watch::Receiver<Roster>,
    began: Instant,
}

/// All that is known at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The agent's node.
    pub node: NodeName,
    /// Every peer that is measured.
    pub peers: Vec<View>,
    /// Estimates by zone.
    pub zones: Vec<ZoneEstimate>,
    /// Nodes that there are, without its own.
    pub nodes: usize,
    /// What the socket has seen.
    pub counters: Counters,
    /// Whether it is known which nodes there are.
    pub roster_known: bool,
    /// Why that may be old.
    pub roster_failing: Option<String>,
    /// How often its source failed.
    pub roster_failures: u64,
}

impl Board {
    /// Reads all of it.
    #[must_use]
    pub fn read(&self) -> Snapshot {
        let now_us = micros(self.began);
        let (peers, counters, nodes) = {
            let state = self.state.lock();
            (state.prober.views(now_us), state.counters, state.nodes)
        };
        let roster = self.roster.borrow();
        Snapshot {
            node: self.node.clone(),
            zones: targets::estimates(&peers),
            peers,
            nodes,
            counters,
            roster_known: roster.nodes.is_some(),
            roster_failing: roster.failing.clone(),
            roster_failures: roster.failures,
        }
    }
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// An agent with its socket, not running yet.
pub struct Agent {
    options: Options,
    socket: UdpSocket,
    board: Board,
    roster: watch::Receiver<Roster>,
    targets: Vec<Target>,
}

impl Agent {
    /// Listens. Must be called within a runtime.
    ///
    /// # Errors
    /// Settings out of range, or [`Error::Listen`].
    pub fn bind(options: Options, roster: watch::Receiver<Roster>) -> Result<Self, Error> {
        options.settings.check()?;
        let socket = bind(options.listen).map_err(|source| Error::Listen {
            address: options.listen,
            source,
        })?;
        let state = State {
            prober: Prober::new(options.settings),
            limits: Limits::default(),
            counters: Counters::default(),
            nodes: 0,
        };
        let board = Board {
            node: options.node.clone(),
            state: Arc::new(Mutex::new(state)),
            roster: roster.clone(),
            began: Instant::now(),
        };
        Ok(Self {
            options,
            socket,
            board,
            roster,
            targets: Vec::new(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What it shows of itself.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Asks and answers until it is dropped.
    pub async fn run(mut self) {
        self.roster.mark_changed();
        let mut source_lives = true;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.board.state.lock().prober.next_us();
            let next = next.map(|us| self.board.began + Duration::from_micros(us));
            let turn = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                readable = self.socket.readable() => {
                    if readable.is_ok() {
                        self.receive();
                    }
                    self.send();
                }
                () = turn => self.send(),
                changed = self.roster.changed(), if source_lives => match changed {
                    Ok(()) => self.know(),
                    // A list that never changes has nobody who sends it.
                    Err(_) => source_lives = false,
                },
                _ = look.tick() => self.know(),
            }
        }
    }

    /// Takes over which nodes there are.
    fn know(&mut self) {
        let roster = self.roster.borrow_and_update();
        let Some(nodes) = &roster.nodes else { return };
        let me = &*self.options.node;
        let own = nodes.iter().find(|t| &*t.node == me);
        let own_zone = own.and_then(|t| t.zone.as_ref());
        let now_us = micros(self.board.began);
        let chosen = targets::choose(me, own_zone, nodes, now_us);
        let mut state = self.board.state.lock();
        state.nodes = nodes.iter().filter(|t| &*t.node != me).count();
        state
            .limits
            .know(nodes.iter().map(|t| t.address.ip()), now_us);
        if chosen != self.targets {
            tracing::info!(
                nodes = state.nodes,
                measured = chosen.len(),
                "nodes to measure have changed"
            );
            state.prober.set_targets(&chosen, now_us);
            self.targets = chosen;
        }
    }

    fn receive(&self) {
        let mut bytes = [0; BUFFER];
        for _ in 0..TURN {
            let Ok((size, from)) = self.socket.try_recv_from(&mut bytes) else {
                return;
            };
            let now_us = micros(self.board.began);
            let mut state = self.board.state.lock();
            match Packet::decode(bytes.get(..size).unwrap_or_default()) {
                Some(Packet::Question(nonce)) => {
                    if !state.limits.allow(from.ip().to_canonical(), now_us) {
                        state.counters.refused += 1;
                        continue;
                    }
                    let answer = Packet::Answer(nonce).encode();
                    match self.socket.try_send_to(&answer, from) {
                        Ok(_) => state.counters.answered += 1,
                        Err(_) => state.counters.unsent += 1,
                    }
                }
                Some(Packet::Answer(nonce)) => {
                    if state.prober.answered(&nonce, now_us) == Answer::Stray {
                        state.counters.stray += 1;
                    }
                }
                None => state.counters.unknown += 1,
            }
        }
    }

    /// Gives up what is lost, and sends what is due.
    fn send(&self) {
        let now_us = micros(self.board.began);
        let mut state = self.board.state.lock();
        state.prober.expire(now_us);
        let probes = state.prober.due(now_us, || {
            let mut nonce = Nonce::default();
            rand::rng().fill_bytes(&mut nonce);
            nonce
        });
        for probe in probes {
            let question = Packet::Question(probe.nonce).encode();
            state.prober.sent(&probe.nonce, micros(self.board.began));
            if self.socket.try_send_to(&question, probe.to).is_err() {
                // It counts as lost when its time is over.
                state.counters.unsent += 1;
            }
        }
    }
}

/// A socket for both families where there is IPv6 and no address is given, else for the address'.
fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
