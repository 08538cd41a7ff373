//! Series with labels other than gRPC's: small fixed tables of handles, so
//! that no caller looks anything up in a map. As in etcd, a labelled series
//! appears when it is first used.

use std::sync::Arc;

use crate::cells::{Counter, Histogram, Run, Shape};
use crate::registry::{Kind, LastResult, Origin, Registry, Source};

/// One handle for success and one for failure.
#[derive(Clone, Debug)]
pub struct Outcome<T> {
    /// It succeeded.
    pub success: T,
    /// It ended in an error.
    pub failure: T,
}

impl<T> Outcome<T> {
    /// The handle for this outcome.
    pub fn get(&self, success: bool) -> &T {
        if success {
            &self.success
        } else {
            &self.failure
        }
    }
}

/// The `success` label.
const OUTCOMES: [(bool, &str); 2] = [(false, "false"), (true, "true")];

pub(crate) fn range_duration(registry: &mut Registry, shape: &Arc<Shape>) -> Outcome<Histogram> {
    let mut family = registry.family(
        "etcd_server_range_duration_seconds",
        Kind::Histogram,
        &["success"],
        Origin::Etcd,
        "How long reading took for one Range, without waiting and sending.",
    );
    let outcome = Outcome {
        success: family.histogram_of(shape),
        failure: family.histogram_of(shape),
    };
    for (success, label) in OUTCOMES {
        family.sample(
            &[label],
            Source::UsedHistogram(outcome.get(success).clone()),
        );
    }
    family.done();
    outcome
}

/// One handle for each storage class.
#[derive(Clone, Debug)]
pub struct ByClass<T> {
    /// On disk before it is answered.
    pub durable: T,
    /// In the log before it is answered, on disk a little later.
    pub volatile: T,
}

impl<T> ByClass<T> {
    /// The handle of one class.
    pub fn get(&self, volatile: bool) -> &T {
        if volatile {
            &self.volatile
        } else {
            &self.durable
        }
    }
}

/// A counter by storage class.
pub(crate) fn counter_by_class(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> ByClass<Counter> {
    let mut family = registry.family(name, Kind::Counter, &["class"], Origin::Orlop, help);
    let run = family.run(2);
    let classes = ByClass {
        durable: Counter(run.at(0)),
        volatile: Counter(run.at(1)),
    };
    family.sample(&["durable"], Source::Cell(run.at(0)));
    family.sample(&["volatile"], Source::Cell(run.at(1)));
    family.done();
    classes
}

/// How long writes took, by storage class.
pub(crate) fn write_duration(registry: &mut Registry, shape: &Arc<Shape>) -> ByClass<Histogram> {
    let mut family = registry.family(
        "orlop_write_duration_seconds",
        Kind::Histogram,
        &["class"],
        Origin::Orlop,
        "How long a write took from its request to its answer, by the class that it asked for.",
    );
    let classes = ByClass {
        durable: family.histogram_of(shape),
        volatile: family.histogram_of(shape),
    };
    family.sample(&["durable"], Source::UsedHistogram(classes.durable.clone()));
    family.sample(
        &["volatile"],
        Source::UsedHistogram(classes.volatile.clone()),
    );
    family.done();
    classes
}

/// The `op` label of `etcd_server_apply_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyOp {
    /// A put.
    Put,
    /// A deletion of a key or a range.
    DeleteRange,
    /// A transaction.
    Txn,
    /// A compaction.
    Compaction,
    /// A grant of a lease.
    LeaseGrant,
    /// A revocation of a lease, or its expiry.
    LeaseRevoke,
    /// An alarm raised, cleared or asked for.
    Alarm,
}

impl ApplyOp {
    const ALL: [(ApplyOp, &'static str); 7] = [
        (ApplyOp::Alarm, "Alarm"),
        (ApplyOp::Compaction, "Compaction"),
        (ApplyOp::DeleteRange, "DeleteRange"),
        (ApplyOp::LeaseGrant, "LeaseGrant"),
        (ApplyOp::LeaseRevoke, "LeaseRevoke"),
        (ApplyOp::Put, "Put"),
        (ApplyOp::Txn, "Txn"),
    ];
}

/// `etcd_server_apply_duration_seconds`, by operation and outcome.
#[derive(Clone, Debug)]
pub struct ApplyDurations(Arc<[Histogram]>);

impl ApplyDurations {
    /// The histogram of one operation and outcome.
    pub fn get(&self, op: ApplyOp, success: bool) -> &Histogram {
        &self.0[op as usize * 2 + usize::from(success)]
    }

    pub(crate) fn declare(registry: &mut Registry, shape: &Arc<Shape>) -> Self {
        let mut family = registry.family(
            "etcd_server_apply_duration_seconds",
            Kind::Histogram,
            &["op", "success", "version"],
            Origin::Etcd,
            "How long a write took to be evaluated and applied in memory, by operation.",
        );
        let handles = Self(
            (0..ApplyOp::ALL.len() * 2)
                .map(|_| family.histogram_of(shape))
                .collect(),
        );
        for (op, name) in ApplyOp::ALL {
            for (success, label) in OUTCOMES {
                let histogram = handles.get(op, success).clone();
                family.sample(&[name, label, "v3"], Source::UsedHistogram(histogram));
            }
        }
        family.done();
        handles
    }
}

/// The `type` label of `etcd_server_request_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// A read of a key or a range.
    Range,
    /// A put.
    Put,
    /// A deletion.
    DeleteRange,
    /// A transaction that may write.
    Txn,
    /// A transaction that only reads.
    ReadonlyTxn,
    /// A compaction.
    Compaction,
    /// A grant of a lease.
    LeaseGrant,
    /// A revocation of a lease.
    LeaseRevoke,
    /// An alarm request.
    Alarm,
}

impl RequestType {
    const ALL: [(RequestType, &'static str); 9] = [
        (RequestType::Alarm, "Alarm"),
        (RequestType::Compaction, "Compaction"),
        (RequestType::DeleteRange, "DeleteRange"),
        (RequestType::LeaseGrant, "LeaseGrant"),
        (RequestType::LeaseRevoke, "LeaseRevoke"),
        (RequestType::Put, "Put"),
        (RequestType::Range, "Range"),
        (RequestType::ReadonlyTxn, "ReadonlyTxn"),
        (RequestType::Txn, "Txn"),
    ];
}

/// `etcd_server_request_duration_seconds`, by type and outcome.
#[derive(Clone, Debug)]
pub struct RequestDurations(Arc<[Histogram]>);

impl RequestDurations {
    /// The histogram of one type and outcome.
    pub fn get(&self, request: RequestType, success: bool) -> &Histogram {
        &self.0[request as usize * 2 + usize::from(success)]
    }

    pub(crate) fn declare(registry: &mut Registry, shape: &Arc<Shape>) -> Self {
        let mut family = registry.family(
            "etcd_server_request_duration_seconds",
            Kind::Histogram,
            &["success", "type"],
            Origin::Etcd,
            "How long the server took for a request, waiting for the disk included, by type.",
        );
        let handles = Self(
            (0..RequestType::ALL.len() * 2)
                .map(|_| family.histogram_of(shape))
                .collect(),
        );
        for (request, name) in RequestType::ALL {
            for (success, label) in OUTCOMES {
                let histogram = handles.get(request, success).clone();
                family.sample(&[label, name], Source::UsedHistogram(histogram));
            }
        }
        family.done();
        handles
    }
}

/// Minor versions 3.0 to 3.N that have a series of their own.
const MINORS: usize = 16;
/// Then: no version sent; any other text.
const UNKNOWN: usize = MINORS;
const OTHER: usize = MINORS + 1;
const VERSIONS: usize = MINORS + 2;

/// `etcd_server_client_requests_total`, by kind and the version that the
/// client says it has. A client chooses the text, so what is not `3.N` with a
/// small N counts as `other`: the number of series has a limit.
#[derive(Clone, Debug)]
pub struct ClientRequests(Run);

impl ClientRequests {
    /// Unary calls of a client whose `client-api-version` is this.
    pub fn unary(&self, version: Option<&str>) -> Counter {
        Counter(self.0.at(Self::slot(version)))
    }

    /// Streams of a client whose `client-api-version` is this.
    pub fn stream(&self, version: Option<&str>) -> Counter {
        Counter(self.0.at(VERSIONS + Self::slot(version)))
    }

    fn slot(version: Option<&str>) -> usize {
        let Some(version) = version else {
            return UNKNOWN;
        };
        let minor = version
            .strip_prefix("3.")
            .and_then(|minor| minor.parse::<usize>().ok());
        match minor {
            // Only the usual spelling: "3.07" and "3.+7" are other texts.
            Some(minor) if minor < MINORS && version.len() == 3 + usize::from(minor > 9) => minor,
            _ if version == "unknown" => UNKNOWN,
            _ => OTHER,
        }
    }

    pub(crate) fn declare(registry: &mut Registry) -> Self {
        let mut family = registry.family(
            "etcd_server_client_requests_total",
            Kind::Counter,
            &["client_api_version", "type"],
            Origin::Etcd,
            "Calls by the API version that the client sends (unknown: none sent; other: not 3.0 to 3.15) and by unary or stream.",
        );
        let run = family.run(2 * VERSIONS);
        for slot in 0..VERSIONS {
            let version = match slot {
                UNKNOWN => "unknown".to_owned(),
                OTHER => "other".to_owned(),
                minor => format!("3.{minor}"),
            };
            for (kind, offset) in [("stream", VERSIONS), ("unary", 0)] {
                family.sample(&[&version, kind], Source::UsedCell(run.at(offset + slot)));
            }
        }
        family.done();
        Self(run)
    }
}

/// Which way a stream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading the client's messages.
    Receive,
    /// Sending to the client.
    Send,
}

/// Which stream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamApi {
    /// A watch stream.
    Watch,
    /// A lease keep-alive stream.
    LeaseKeepalive,
}

/// `etcd_network_server_stream_failures_total`.
#[derive(Clone, Debug)]
pub struct StreamFailures(Run);

impl StreamFailures {
    /// The counter of one way and stream.
    pub fn get(&self, direction: Direction, api: StreamApi) -> Counter {
        Counter(self.0.at(direction as usize * 2 + api as usize))
    }

    pub(crate) fn declare(registry: &mut Registry) -> Self {
        let mut family = registry.family(
            "etcd_network_server_stream_failures_total",
            Kind::Counter,
            &["API", "Type"],
            Origin::Etcd,
            "Streams that failed other than by the client's wish, by stream and direction.",
        );
        let handles = Self(family.run(4));
        for (api, api_name) in [
            (StreamApi::LeaseKeepalive, "lease-keepalive"),
            (StreamApi::Watch, "watch"),
        ] {
            for (direction, name) in [(Direction::Receive, "receive"), (Direction::Send, "send")] {
                let counter = handles.get(direction, api);
                family.sample(&[api_name, name], Source::UsedCell(counter.0));
            }
        }
        family.done();
        handles
    }
}

/// The HTTP endpoint that a check belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/livez`
    Livez,
    /// `/readyz`
    Readyz,
}

/// A check behind `/livez` or `/readyz`, by etcd's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// No CORRUPT alarm.
    DataCorruption,
    /// A read of the store as it is.
    SerializableRead,
    /// A read that waits for what was committed.
    LinearizableRead,
    /// The member votes; always so here.
    NonLearner,
}

/// `etcd_server_healthcheck` and `etcd_server_healthchecks_total`.
#[derive(Clone, Debug)]
pub struct Healthchecks {
    last: Arc<[LastResult]>,
    totals: Run,
}

impl Healthchecks {
    const PROBES: [(Probe, &'static str); 2] = [(Probe::Livez, "livez"), (Probe::Readyz, "readyz")];
    const CHECKS: [(Check, &'static str); 4] = [
        (Check::DataCorruption, "data_corruption"),
        (Check::LinearizableRead, "linearizable_read"),
        (Check::NonLearner, "non_learner"),
        (Check::SerializableRead, "serializable_read"),
    ];

    /// A check ran, with this result.
    pub fn record(&self, probe: Probe, check: Check, success: bool) {
        let slot = Self::slot(probe, check);
        self.last[slot].set(success);
        self.totals.add(slot * 2 + usize::from(success), 1);
    }

    fn slot(probe: Probe, check: Check) -> usize {
        probe as usize * Self::CHECKS.len() + check as usize
    }

    pub(crate) fn declare(registry: &mut Registry) -> Self {
        let slots = Self::PROBES.len() * Self::CHECKS.len();
        let last: Arc<[LastResult]> = (0..slots).map(|_| LastResult::default()).collect();
        let totals = registry.run(slots * 2);

        let mut family = registry.family(
            "etcd_server_healthcheck",
            Kind::Gauge,
            &["name", "type"],
            Origin::Etcd,
            "The last result of each check behind /livez and /readyz: 1 passed, 0 failed.",
        );
        for (check, name) in Self::CHECKS {
            for (probe, kind) in Self::PROBES {
                let result = last[Self::slot(probe, check)].clone();
                family.sample(&[name, kind], Source::Last(result));
            }
        }
        family.done();

        let mut family = registry.family(
            "etcd_server_healthchecks_total",
            Kind::Counter,
            &["name", "status", "type"],
            Origin::Etcd,
            "Runs of each check behind /livez and /readyz, by result (success or error).",
        );
        for (check, name) in Self::CHECKS {
            for (status, offset) in [("error", 0), ("success", 1)] {
                for (probe, kind) in Self::PROBES {
                    let at = totals.at(Self::slot(probe, check) * 2 + offset);
                    family.sample(&[name, status, kind], Source::UsedCell(at));
                }
            }
        }
        family.done();
        Self { last, totals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_make_series() {
        let mut registry = Registry::new(1);
        let requests = ClientRequests::declare(&mut registry);
        let texts = [
            "3.7",
            "3.15",
            "3.16",
            "3.07",
            "3.+7",
            "4.0",
            "",
            "\u{1F980}",
            "unknown",
        ];
        for text in texts {
            requests.unary(Some(text)).inc();
        }
        requests.stream(None).inc();
        let count = |slot: usize| requests.0.sum(slot);
        assert_eq!(
            (count(7), count(15), count(UNKNOWN), count(OTHER)),
            (1, 1, 1, 6)
        );
        assert_eq!(count(VERSIONS + UNKNOWN), 1);
    }
}
