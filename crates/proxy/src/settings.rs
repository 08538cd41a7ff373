//! Settings of a proxy and their defaults.

use std::time::Duration;

use crate::error::Error;

/// What is done with a connection that has waited in vain for a leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// It is refused.
    #[default]
    Refuse,
    /// It goes to the nearest healthy member that has a vote. That one answers serializable reads
    /// and nothing else while nobody leads.
    Follower,
}

/// Settings of a [`crate::Proxy`]. Every wait and every number has its limit here.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a new connection waits for a leader that takes it.
    pub wait: Duration,
    /// How long an attempt to connect to a member may take.
    pub dial_timeout: Duration,
    /// A connection that is to leave its member is ended once nobody has sent anything for so
    /// long, and the member was the last who did.
    pub handover_gap: Duration,
    /// It is ended after this at the latest.
    pub handover_limit: Duration,
    /// What is done with a connection that has waited in vain.
    pub fallback: Fallback,
    /// Connections at a time, those that wait included. More are refused.
    pub max_connections: usize,
    /// Connections that wait for a member at a time. More are refused.
    pub max_waiting: usize,
    /// A connection on which nothing was sent for so long is ended; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// The same once one side has ended and the other has not.
    pub half_closed_timeout: Duration,
    /// A silent peer is asked this often whether it is there (TCP keepalive).
    pub keepalive: Duration,
    /// A peer that acknowledges nothing for so long is given up (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
    /// How long connections may take to end when the proxy stops.
    pub drain: Duration,
    /// Begin each connection to a member with a header of the PROXY protocol, version 2. etcd does
    /// not take it.
    pub proxy_protocol: bool,
    /// Threads that relay. At least 1.
    pub workers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Settings {
            wait: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(2),
            handover_gap: Duration::from_millis(5),
            handover_limit: Duration::from_secs(5),
            fallback: Fallback::Refuse,
            max_connections: 10_000,
            max_waiting: 2_000,
            idle_timeout: Some(Duration::from_secs(3600)),
            half_closed_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(30),
            user_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            proxy_protocol: false,
            workers: cores.div_ceil(2),
        }
    }
}

impl Settings {
    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Settings(what.to_owned()));
        if self.workers == 0 || self.workers > 256 {
            return wrong("the number of relaying threads must lie between 1 and 256");
        }
        if self.max_connections == 0 || self.max_waiting == 0 {
            return wrong("the limits on connections must be at least 1");
        }
        if self.handover_gap > self.handover_limit {
            return wrong("the gap of a handover must not be longer than its limit");
        }
        if self.dial_timeout.is_zero() || self.wait.is_zero() {
            return wrong("the times to connect and to wait must not be zero");
        }
        Ok(())
    }
}
