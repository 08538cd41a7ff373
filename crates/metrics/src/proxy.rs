//! Series of `orlop proxy`.
//!
//! Those of members have labels that are known at a scrape only; they are made then, for the
//! members that there are.

use crate::cells::{Counter, Histogram};
use crate::exponential::NANOS;
use crate::registry::{self, Family, Kind, Origin, Registry, Source};
use crate::scrape::ScrapeInput;
use crate::{doubling, fixed, process};

/// Why the proxy refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyRefusal {
    /// The limit on connections.
    Connections,
    /// The limit on connections that wait.
    Waiting,
    /// Nobody led in time.
    NoLeader,
    /// The leader could not be connected to in time.
    Unreachable,
}

impl ProxyRefusal {
    const ALL: [(ProxyRefusal, &'static str); 4] = [
        (ProxyRefusal::Connections, "connections"),
        (ProxyRefusal::Waiting, "waiting"),
        (ProxyRefusal::NoLeader, "no_leader"),
        (ProxyRefusal::Unreachable, "unreachable"),
    ];
}

/// Why a connection that had a member was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyEnd {
    /// By client and member.
    Done,
    /// The client's side failed.
    ClientFailed,
    /// The member's side failed.
    MemberFailed,
    /// Handed over in a gap.
    Gap,
    /// Handed over at the limit.
    Limit,
    /// Handed over because its member does not answer.
    MemberLost,
    /// Idle for too long.
    Idle,
    /// The proxy stopped.
    Drain,
}

impl ProxyEnd {
    const ALL: [(ProxyEnd, &'static str); 8] = [
        (ProxyEnd::Done, "done"),
        (ProxyEnd::ClientFailed, "client_failed"),
        (ProxyEnd::MemberFailed, "member_failed"),
        (ProxyEnd::Gap, "handover_gap"),
        (ProxyEnd::Limit, "handover_limit"),
        (ProxyEnd::MemberLost, "member_lost"),
        (ProxyEnd::Idle, "idle"),
        (ProxyEnd::Drain, "drain"),
    ];
}

/// One member at a scrape. Times are in seconds, and absent where nothing was measured.
#[derive(Clone, Debug, Default)]
pub struct ProxyMember {
    /// Its name; empty before it is known.
    pub name: String,
    /// Its client URL.
    pub endpoint: String,
    /// It leads.
    pub leads: bool,
    /// It answers, and may serve.
    pub healthy: bool,
    /// Its raft term.
    pub term: u64,
    /// The last entry of its log.
    pub raft_index: u64,
    /// The size of its database's file in bytes.
    pub db_bytes: u64,
    /// Round trip of Status: smoothed, median, 99th percentile.
    pub round_trip_s: [Option<f64>; 3],
    /// Connections that are at it.
    pub connections: u64,
}

/// What the proxy reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct ProxyInput {
    /// Members, each endpoint once.
    pub members: Vec<ProxyMember>,
    /// A leader is known.
    pub has_leader: bool,
    /// Leader changes since the start.
    pub leader_changes: u64,
    /// Connections that have a member.
    pub open: u64,
    /// Connections that wait for one.
    pub waiting: u64,
    /// Connections that are to leave their member.
    pub leaving: u64,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// All series of a proxy.
#[derive(Debug)]
pub struct ProxyMetrics {
    families: Vec<Family>,
    /// `orlop_proxy_connections_accepted_total`
    pub accepted: Counter,
    refused: Vec<(ProxyRefusal, Counter)>,
    ended: Vec<(ProxyEnd, Counter)>,
    /// `orlop_proxy_bytes_total{from="client"}`
    pub client_bytes: Counter,
    /// `orlop_proxy_bytes_total{from="member"}`
    pub member_bytes: Counter,
    /// `orlop_proxy_connect_failures_total`
    pub connect_failures: Counter,
    /// `orlop_proxy_wait_seconds`
    pub wait: Histogram,
    /// `orlop_proxy_begun_again_total`
    pub begun_again: Counter,
}

impl ProxyMetrics {
    /// Makes all series, at zero. `shards`: threads that count; `version`: orlop's.
    pub fn new(shards: usize, version: &str) -> Self {
        let r = &mut Registry::new(shards);
        use Origin::Orlop;
        fixed::declare_process(r);
        let mut info = r.family(
            "orlop_proxy_info",
            Kind::Gauge,
            &["version"],
            Orlop,
            "1; the proxy's version is its label.",
        );
        info.sample(&[version], Source::Constant(1.0));
        info.done();
        let accepted = r.counter(
            "orlop_proxy_connections_accepted_total",
            Orlop,
            "Connections that were accepted, refused ones included.",
        );
        let refused = counters(
            r,
            "orlop_proxy_connections_refused_total",
            "Connections that were refused: at the limit on connections or on waiting ones, because nobody led in time, or because the leader could not be reached in time.",
            &ProxyRefusal::ALL,
        );
        let ended = counters(
            r,
            "orlop_proxy_connections_ended_total",
            "Connections to members that ended: done, by a failure of a side, handed over to a new leader (in a gap, at the limit, or because the member was lost), idle, or at the proxy's end.",
            &ProxyEnd::ALL,
        );
        let mut family = r.family(
            "orlop_proxy_bytes_total",
            Kind::Counter,
            &["from"],
            Orlop,
            "Bytes that were relayed, by the side that sent them.",
        );
        let run = family.run(2);
        family.sample(&["client"], Source::Cell(run.at(0)));
        family.sample(&["member"], Source::Cell(run.at(1)));
        family.done();
        let metrics = ProxyMetrics {
            families: Vec::new(),
            accepted,
            refused,
            ended,
            client_bytes: Counter(run.at(0)),
            member_bytes: Counter(run.at(1)),
            connect_failures: r.counter(
                "orlop_proxy_connect_failures_total",
                Orlop,
                "Attempts to connect to a member that failed or took too long.",
            ),
            wait: r.histogram(
                "orlop_proxy_wait_seconds",
                Orlop,
                &doubling(0.000_25, 17, NANOS),
                "How long a connection was without a member: from its accept, or from the loss of one that had not answered, until it was connected to one.",
            ),
            begun_again: r.counter(
                "orlop_proxy_begun_again_total",
                Orlop,
                "Connections whose member went away before it had answered, and whose first bytes went to another.",
            ),
        };
        let registry = std::mem::replace(r, Registry::new(1));
        ProxyMetrics {
            families: registry.finish(),
            ..metrics
        }
    }

    /// The counter of refusals for this reason.
    pub fn refused(&self, why: ProxyRefusal) -> Counter {
        found(&self.refused, why)
    }

    /// The counter of ends for this reason.
    pub fn ended(&self, why: ProxyEnd) -> Counter {
        found(&self.ended, why)
    }

    /// Every refusal with its label and number.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        labelled(&ProxyRefusal::ALL, &self.refused)
    }

    /// Every end with its label and number.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> {
        labelled(&ProxyEnd::ALL, &self.ended)
    }

    /// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
    pub fn encode(&self, input: &ProxyInput) -> String {
        let (none, process) = (ScrapeInput::default(), process::read());
        let mut text = registry::encode(&self.families, &none, &process);
        text.push_str(&registry::encode(&at_scrape(input), &none, &process));
        text
    }
}

fn counters<T: Copy>(
    r: &mut Registry,
    name: &'static str,
    help: &'static str,
    all: &[(T, &'static str)],
) -> Vec<(T, Counter)> {
    let mut family = r.family(name, Kind::Counter, &["reason"], Origin::Orlop, help);
    let run = family.run(all.len());
    let made = all.iter().enumerate().map(|(nth, (reason, label))| {
        family.sample(&[label], Source::Cell(run.at(nth)));
        (*reason, Counter(run.at(nth)))
    });
    let made = made.collect();
    family.done();
    made
}

fn found<T: Copy + PartialEq>(counters: &[(T, Counter)], why: T) -> Counter {
    let named = counters.iter().find(|(reason, _)| *reason == why);
    // Every reason has one.
    let (_, counter) = named.unwrap_or(&counters[0]);
    counter.clone()
}

fn labelled<T>(
    labels: &'static [(T, &'static str)],
    counters: &[(T, Counter)],
) -> impl Iterator<Item = (&'static str, u64)> {
    let numbers = counters.iter().map(|(_, counter)| counter.get());
    labels.iter().map(|(_, label)| *label).zip(numbers)
}

type OfMember = fn(&ProxyMember) -> f64;

/// Series of each member.
const OF_MEMBERS: [(&str, &str, OfMember); 6] = [
    (
        "orlop_proxy_member_leads",
        "Whether the member leads: 1 if so.",
        |m| f64::from(u8::from(m.leads)),
    ),
    (
        "orlop_proxy_member_healthy",
        "Whether the member answers and may serve: 1 if so.",
        |m| f64::from(u8::from(m.healthy)),
    ),
    (
        "orlop_proxy_member_term",
        "The member's raft term, by its last answer.",
        |m| m.term as f64,
    ),
    (
        "orlop_proxy_member_raft_index",
        "The last entry of the member's log, by its last answer.",
        |m| m.raft_index as f64,
    ),
    (
        "orlop_proxy_member_db_size_bytes",
        "The size of the member's database, by its last answer.",
        |m| m.db_bytes as f64,
    ),
    (
        "orlop_proxy_member_connections",
        "Connections of clients that are at the member.",
        |m| m.connections as f64,
    ),
];

/// What is known at a scrape only.
fn at_scrape(input: &ProxyInput) -> Vec<Family> {
    use Kind::{Counter, Gauge};
    use Origin::Orlop;
    let mut registry = Registry::new(1);
    let r = &mut registry;
    let members = &input.members;
    for (name, help, read) in OF_MEMBERS {
        let mut family = r.family(name, Gauge, &["member", "endpoint"], Orlop, help);
        for m in members {
            family.sample(&[&m.name, &m.endpoint], Source::Constant(read(m)));
        }
        family.done();
    }
    let mut family = r.family(
        "orlop_proxy_member_round_trip_seconds",
        Gauge,
        &["member", "endpoint", "stat"],
        Orlop,
        "How long the member's answers to Status took of late: smoothed, median, 99th percentile.",
    );
    for m in members {
        for (stat, value) in ["smoothed", "p50", "p99"].iter().zip(m.round_trip_s) {
            if let Some(value) = value {
                family.sample(&[&m.name, &m.endpoint, stat], Source::Constant(value));
            }
        }
    }
    family.done();
    let mut family = r.family(
        "orlop_proxy_connections",
        Gauge,
        &["state"],
        Orlop,
        "Connections now: waiting for a member, at the member that they belong to, or leaving one that does not lead any more.",
    );
    let there = input.open.saturating_sub(input.leaving);
    for (state, number) in [
        ("waiting", input.waiting),
        ("relaying", there),
        ("leaving", input.leaving),
    ] {
        family.sample(&[state], Source::Constant(number as f64));
    }
    family.done();
    for (name, kind, help, value) in [
        (
            "orlop_proxy_has_leader",
            Gauge,
            "Whether a leader is known: 1 if so.",
            f64::from(u8::from(input.has_leader)),
        ),
        (
            "orlop_proxy_leader_changes_total",
            Counter,
            "How often the leader became another one since the start.",
            input.leader_changes as f64,
        ),
        (
            "orlop_log_lines_dropped_total",
            Counter,
            "Log lines dropped because the log's output did not take them in time.",
            input.log_lines_dropped as f64,
        ),
    ] {
        r.family(name, kind, &[], Orlop, help)
            .one(Source::Constant(value));
    }
    registry.finish()
}

/// All families, for the reference page.
pub(crate) fn families() -> Vec<Family> {
    let mut all = ProxyMetrics::new(1, "").families;
    all.extend(at_scrape(&ProxyInput::default()));
    all.retain(|family| family.name.starts_with("orlop_proxy_"));
    all.sort_by_key(|family| family.name);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_every_member_once_a_family() {
        let metrics = ProxyMetrics::new(1, "0.1.0");
        metrics.refused(ProxyRefusal::NoLeader).inc();
        metrics.ended(ProxyEnd::Gap).add(2);
        let member = ProxyMember {
            name: "a".to_owned(),
            endpoint: "https://a:2379".to_owned(),
            leads: true,
            round_trip_s: [Some(0.5), None, Some(1.5)],
            ..ProxyMember::default()
        };
        let text = metrics.encode(&ProxyInput {
            members: vec![member],
            open: 5,
            leaving: 2,
            ..ProxyInput::default()
        });
        for line in [
            "orlop_proxy_connections_refused_total{reason=\"no_leader\"} 1",
            "orlop_proxy_connections_ended_total{reason=\"handover_gap\"} 2",
            "orlop_proxy_member_leads{member=\"a\",endpoint=\"https://a:2379\"} 1",
            "orlop_proxy_member_round_trip_seconds{member=\"a\",endpoint=\"https://a:2379\",stat=\"p99\"} 1.5",
            "orlop_proxy_connections{state=\"relaying\"} 3",
            "orlop_proxy_has_leader 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("stat=\"p50\""));
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        let mut names: Vec<_> = types.collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn each_reason_has_its_own_counter() {
        let metrics = ProxyMetrics::new(1, "");
        for (why, label) in ProxyEnd::ALL {
            metrics.ended(why).inc();
            assert!(metrics.ends().any(|end| end == (label, 1)), "{label}");
        }
        for (why, label) in ProxyRefusal::ALL {
            metrics.refused(why).inc();
            assert!(metrics.refusals().any(|r| r == (label, 1)), "{label}");
        }
    }
}
