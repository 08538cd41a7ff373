//! Members at one distance, called in all ways in turn.

use super::report::{Report, Row};
use super::tool::Tool;
use crate::drive::{self, Load, Span};
use crate::error::Error;
use crate::interrupt::Interrupt;
use playground::guard::Guard;
use playground::members::{Members, Setup};
use playground::pki::private_dir;
use playground::proxy::Proxy;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;

/// How often a waiting start looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// How the members are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// Connections spread over all of them.
    RoundRobin,
    /// Through `orlop proxy`.
    Proxy,
    /// The one that leads at the beginning.
    Leader,
    /// This one, from 0.
    Member(usize),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::RoundRobin => f.write_str("round robin"),
            Way::Proxy => f.write_str("proxy"),
            Way::Leader => f.write_str("leader"),
            Way::Member(n) => write!(f, "member {}", n + 1),
        }
    }
}

/// Everything that runs have in common.
pub(crate) struct Bench {
    pub(crate) ways: Vec<Way>,
    pub(crate) load: Load,
    pub(crate) span: Span,
    pub(crate) rounds: usize,
    /// etcd's own load tool, if it puts the load instead of this program.
    pub(crate) tool: Option<Tool>,
    pub(crate) orlop: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) interrupt: Interrupt,
    pub(crate) guard: Guard,
}

/// Members that run, and what is before them.
struct Started {
    runtime: Runtime,
    members: Members,
    proxy: Option<Proxy>,
}

impl Bench {
    /// Starts the members of `setup` and measures all rounds on them.
    ///
    /// # Errors
    /// When a program does not start, a call fails, an answer is wrong, or on an interrupt;
    /// whatever was started has then been stopped.
    pub(crate) fn measure(&mut self, setup: Setup, report: &mut Report) -> Result<(), Error> {
        let dir = private_dir("orlop-bench-", &self.dir).map_err(Error::file(&self.dir))?;
        self.guard.remove_at_end(dir.path())?;
        let distances = setup.distances.clone();
        let started = self.start(setup, dir.path())?;
        let all = self.authorities(&started, Way::RoundRobin)?;
        drive::fill(&self.load, &all, &self.interrupt)?;
        for round in 1..=self.rounds {
            for turn in 0..self.ways.len() {
                // Another one begins in each round.
                let Some(way) = self.ways.get((turn + round - 1) % self.ways.len()) else {
                    continue;
                };
                let row = self.one(&started, *way, round, &distances, dir.path())?;
                eprintln!("{row}");
                report.rows.push(row);
            }
        }
        started.stop()
    }

    fn start(&self, setup: Setup, dir: &Path) -> Result<Started, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::system("starting a runtime"))?;
        let starting = async {
            let members = Members::start(setup, dir, None).await?;
            let proxy = match self.ways.contains(&Way::Proxy) {
                true => Some(Proxy::start(&self.orlop, &members.endpoints(), dir).await?),
                false => None,
            };
            Ok((members, proxy))
        };
        let (members, proxy) = runtime.block_on(async {
            tokio::select! {
                started = starting => started.map_err(|error: playground::Error| error.into()),
                () = interrupted(&self.interrupt) => Err(Error::Interrupted),
            }
        })?;
        Ok(Started {
            runtime,
            members,
            proxy,
        })
    }

    fn one(
        &self,
        started: &Started,
        way: Way,
        round: usize,
        distances: &playground::members::Distances,
        dir: &Path,
    ) -> Result<Row, Error> {
        let endpoints = self.authorities(started, way)?;
        let before = started.counts()?;
        let outcome = match &self.tool {
            Some(tool) => tool.run(&self.load, &endpoints, dir, &self.interrupt)?,
            None => drive::measure(&self.load, &endpoints, &self.span, None, &self.interrupt)?,
        };
        let after = started.counts()?;
        let writes = after.puts - before.puts;
        Ok(Row {
            way,
            round,
            distances: distances.into(),
            leader: after.leader.map(|leader| leader + 1),
            leader_stayed: before.leader.is_some() && before.leader == after.leader,
            peer_bytes_per_write: (writes > 0.0)
                .then(|| (after.peer_bytes - before.peer_bytes) / writes),
            load: self.load.clone(),
            outcome,
        })
    }

    /// Hosts and ports of the servers that clients of this way call.
    fn authorities(&self, started: &Started, way: Way) -> Result<Vec<String>, Error> {
        let members = &started.members;
        let urls = match way {
            Way::RoundRobin => members.endpoints().urls,
            Way::Member(n) => vec![members.url(n)],
            Way::Leader => {
                let leader = started.runtime.block_on(members.leader())?;
                let none = || Error::Argument("no member leads".into());
                vec![members.url(leader.ok_or_else(none)?)]
            }
            Way::Proxy => match &started.proxy {
                Some(proxy) => proxy.endpoints(&members.endpoints()).urls,
                None => Vec::new(),
            },
        };
        let plain = |url: String| url.trim_start_matches("http://").to_owned();
        Ok(urls.into_iter().map(plain).collect())
    }
}

/// What the members have counted so far.
struct Counts {
    leader: Option<usize>,
    peer_bytes: f64,
    /// Puts applied, those of transactions too.
    puts: f64,
}

impl Started {
    fn counts(&self) -> Result<Counts, Error> {
        let counting = async {
            let leader = self.members.leader().await?;
            let any = self.members.metrics(leader.unwrap_or_default()).await?;
            Ok(Counts {
                leader,
                peer_bytes: self.members.peer_sent_bytes().await?,
                puts: any.sum("etcd_mvcc_put_total", &[]),
            })
        };
        self.runtime
            .block_on(counting)
            .map_err(|error: playground::Error| error.into())
    }

    fn stop(mut self) -> Result<(), Error> {
        let proxy = self.proxy.take().map_or(Ok(()), Proxy::stop);
        self.members.stop()?;
        Ok(proxy?)
    }
}

async fn interrupted(interrupt: &Interrupt) {
    while interrupt.check().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}
