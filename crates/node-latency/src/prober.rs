//! Which probe is sent when, and what became of it. No sockets, no clock: every call says what
//! time it is, in microseconds that never go back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;

use crate::packet::Nonce;
use crate::targets::Target;
use crate::window::{Outcome, Stats, Window};
use crate::{Error, NodeName};

/// Sends are grouped to steps of time, so that many peers do not wake the processor for each: at most
/// this long, and [`STEPS`] from one probe of a peer to its next.
const STEP_MAX_US: u64 = 50_000;
const STEPS: u64 = 16;

/// How probes are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A period, in microseconds.
    pub period_us: u64,
    /// Probes of each peer in a period.
    pub probes: u32,
    /// After so long a probe is lost, in microseconds.
    pub timeout_us: u64,
    /// Percentiles and loss are over so long, in microseconds.
    pub window_us: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            period_us: 5_000_000,
            probes: 3,
            timeout_us: 2_000_000,
            window_us: 60_000_000,
        }
    }
}

impl Settings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |name, value: u64, range| {
            Err(Error::Setting {
                name,
                value: format!("{} ms", value / 1_000),
                range,
            })
        };
        if !(500_000..=300_000_000).contains(&self.period_us) {
            return wrong("--period", self.period_us, "from 500 ms to 5 min");
        }
        if !(1..=20).contains(&self.probes) {
            return Err(Error::Setting {
                name: "--probes",
                value: self.probes.to_string(),
                range: "from 1 to 20",
            });
        }
        if !(10_000..=self.period_us).contains(&self.timeout_us) {
            return wrong("--timeout", self.timeout_us, "from 10 ms to the period");
        }
        if !(2 * self.period_us..=3_600_000_000).contains(&self.window_us) {
            return wrong("--window", self.window_us, "from two periods to an hour");
        }
        Ok(())
    }

    fn step_us(&self) -> u64 {
        (self.period_us / u64::from(self.probes.max(1)) / STEPS).clamp(1, STEP_MAX_US)
    }

    /// From one probe of a peer to its next.
    fn gap_us(&self) -> u64 {
        let step_us = self.step_us();
        (self.period_us / u64::from(self.probes.max(1)) / step_us * step_us).max(step_us)
    }

    /// Probes of one peer that a window has at most.
    fn most(&self) -> usize {
        (self.window_us / self.gap_us()) as usize + 2
    }

    /// The last two periods, with time for their answers.
    fn recent_us(&self) -> u64 {
        2 * self.period_us + self.timeout_us
    }
}

/// A question to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// To whom.
    pub to: SocketAddr,
    /// Its nonce.
    pub nonce: Nonce,
}

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a probe that was waited for.
    Counted,
    /// Of no probe that is waited for: late, sent twice, or made up.
    Stray,
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Its name.
    pub node: NodeName,
    /// Its zone, if it has one.
    pub zone: Option<NodeName>,
    /// Statistics.
    pub stats: Stats,
    /// Probes that were answered, since the agent's start or the peer's coming.
    pub answered: u64,
    /// Probes that were lost.
    pub lost: u64,
    /// Round trips by bucket, as [`BUCKETS_MS`] has them, the last one for all above.
    pub histogram: [u64; BUCKETS_MS.len() + 1],
}

/// Upper bounds of the histogram that stays in the agent, in ms.
pub const BUCKETS_MS: [f64; 12] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1_000.0,
];

#[derive(Debug)]
struct Peer {
    target: Target,
    window: Window,
    answered: u64,
    lost: u64,
    histogram: [u64; BUCKETS_MS.len() + 1],
}

/// A probe on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    peer: u64,
    at_us: u64,
}

/// All probes of one agent.
#[derive(Debug)]
pub struct Prober {
    settings: Settings,
    peers: HashMap<u64, Peer>,
    numbers: HashMap<NodeName, u64>,
    next_number: u64,
    /// When whose next probe is due.
    due: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: HashMap<Nonce, Sent>,
    /// In the order in which they were sent.
    sent: VecDeque<(u64, Nonce)>,
}

impl Prober {
    /// Without peers.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            peers: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            due: BinaryHeap::new(),
            waiting: HashMap::new(),
            sent: VecDeque::new(),
        }
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on these are probed, and no others. What is known of those that stay, stays; one
    /// whose address has changed begins anew.
    pub fn set_targets(&mut self, targets: &[Target], now_us: u64) {
        let wanted: HashMap<&NodeName, &Target> = targets.iter().map(|t| (&t.node, t)).collect();
        let gone: Vec<u64> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                wanted
                    .get(&peer.target.node)
                    .is_none_or(|target| target.address != peer.target.address)
            })
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            if let Some(peer) = self.peers.remove(&number) {
                self.numbers.remove(&peer.target.node);
            }
        }
        for target in wanted.into_values() {
            if let Some(peer) = self
                .numbers
                .get(&target.node)
                .and_then(|number| self.peers.get_mut(number))
            {
                peer.target = target.clone();
                continue;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.numbers.insert(target.node.clone(), number);
            self.peers.insert(
                number,
                Peer {
                    target: target.clone(),
                    window: Window::default(),
                    answered: 0,
                    lost: 0,
                    histogram: Default::default(),
                },
            );
            let first_us = self.slot_after(now_us, phase(&target.node));
            self.due.push(Reverse((first_us, number)));
        }
    }

    /// The first time after `now_us` at which a peer of this phase has its turn.
    fn slot_after(&self, now_us: u64, phase: u64) -> u64 {
        let gap_us = self.settings.gap_us();
        let step_us = self.settings.step_us();
        let phase_us = (phase % gap_us) / step_us * step_us;
        let turns = (now_us.saturating_sub(phase_us)) / gap_us + 1;
        if now_us < phase_us {
            return phase_us;
        }
        turns * gap_us + phase_us
    }

    /// When something is to be done next.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        let probe = self.due.peek().map(|Reverse((at, _))| *at);
        let timeout = self
            .sent
            .front()
            .map(|(at, _)| at + self.settings.timeout_us);
        match (probe, timeout) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The probes to be sent now, at most one of each peer: turns that were missed (the machine
    /// slept) are left out. `nonce` makes a new one each time.
    pub fn due(&mut self, now_us: u64, mut nonce: impl FnMut() -> Nonce) -> Vec<Probe> {
        let mut probes = Vec::new();
        while let Some(Reverse((at_us, number))) = self.due.peek().copied() {
            if at_us > now_us {
                break;
            }
            self.due.pop();
            let Some(peer) = self.peers.get(&number) else {
                continue;
            };
            let phase = phase(&peer.target.node);
            let to = peer.target.address;
            let next_us = self.slot_after(now_us, phase);
            self.due.push(Reverse((next_us, number)));
            let nonce = nonce();
            let sent = Sent {
                peer: number,
                at_us: now_us,
            };
            self.waiting.insert(nonce, sent);
            self.sent.push_back((now_us, nonce));
            probes.push(Probe { to, nonce });
        }
        probes
    }

    /// The question went out at this time, not when it was due.
    pub fn sent(&mut self, nonce: &Nonce, at_us: u64) {
        if let Some(sent) = self.waiting.get_mut(nonce) {
            sent.at_us = at_us;
        }
    }

    /// Takes an answer.
    pub fn answered(&mut self, nonce: &Nonce, now_us: u64) -> Answer {
        let Some(sent) = self.waiting.remove(nonce) else {
            return Answer::Stray;
        };
        let took_us = now_us.saturating_sub(sent.at_us);
        if took_us > self.settings.timeout_us {
            self.over(sent, Outcome::Lost, now_us);
            return Answer::Stray;
        }
        let took_us = u32::try_from(took_us).unwrap_or(u32::MAX);
        self.over(sent, Outcome::Answered(took_us), now_us);
        Answer::Counted
    }

    /// Gives up probes whose time is over.
    pub fn expire(&mut self, now_us: u64) {
        while let Some((at_us, nonce)) = self.sent.front().copied() {
            if at_us + self.settings.timeout_us > now_us && self.waiting.contains_key(&nonce) {
                break;
            }
            self.sent.pop_front();
            if let Some(sent) = self.waiting.remove(&nonce) {
                self.over(sent, Outcome::Lost, now_us);
            }
        }
    }

    fn over(&mut self, sent: Sent, outcome: Outcome, now_us: u64) {
        let most = self.settings.most();
        // Of a peer that is gone nobody asks.
        let Some(peer) = self.peers.get_mut(&sent.peer) else {
            return;
        };
        match outcome {
            Outcome::Answered(us) => {
                peer.answered += 1;
                let ms = f64::from(us) / 1e3;
                let bucket = BUCKETS_MS.iter().position(|bound| ms <= *bound);
                peer.histogram[bucket.unwrap_or(BUCKETS_MS.len())] += 1;
            }
            Outcome::Lost => peer.lost += 1,
        }
        peer.window.over(sent.at_us, outcome, now_us, most);
    }

    /// What is known of every peer, by name.
    #[must_use]
    pub fn views(&self, now_us: u64) -> Vec<View> {
        let settings = &self.settings;
        let mut views: Vec<View> = self
            .peers
            .values()
            .map(|peer| View {
                node: peer.target.node.clone(),
                zone: peer.target.zone.clone(),
                stats: peer
                    .window
                    .stats(now_us, settings.recent_us(), settings.window_us),
                answered: peer.answered,
                lost: peer.lost,
                histogram: peer.histogram,
            })
            .collect();
        views.sort_by(|a, b| a.node.cmp(&b.node));
        views
    }

    /// Probes on their way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// A number that spreads peers over a period, the same after each start.
fn phase(node: &str) -> u64 {
    crate::targets::hash(node.as_bytes())
}
