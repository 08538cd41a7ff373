//! What a sample takes from a member's page of metrics, in one pass over it.

use crate::schema::{Column, Sample};
use std::collections::BTreeMap;

/// A scraped page is longer only if it is none of etcd's.
pub(crate) const MAX_PAGE_BYTES: usize = 8 << 20;
/// Buckets of one histogram that are taken.
const MAX_BUCKETS: usize = 64;
/// Peers of one member that are taken.
const MAX_PEERS: usize = 64;

/// Series that are summed over their labels.
const SUMS: [(&str, Column); 25] = [
    ("process_start_time_seconds", Column::StartS),
    ("etcd_disk_wal_write_bytes_total", Column::WalWriteBytes),
    (
        "etcd_network_client_grpc_sent_bytes_total",
        Column::ClientSentBytes,
    ),
    (
        "etcd_network_client_grpc_received_bytes_total",
        Column::ClientReceivedBytes,
    ),
    ("etcd_network_peer_sent_bytes_total", Column::PeerSentBytes),
    (
        "etcd_network_peer_received_bytes_total",
        Column::PeerReceivedBytes,
    ),
    (
        "etcd_server_heartbeat_send_failures_total",
        Column::HeartbeatSendFailures,
    ),
    ("etcd_server_slow_apply_total", Column::SlowApply),
    (
        "etcd_server_slow_read_indexes_total",
        Column::SlowReadIndexes,
    ),
    (
        "etcd_server_read_indexes_failed_total",
        Column::ReadIndexesFailed,
    ),
    (
        "etcd_server_leader_changes_seen_total",
        Column::LeaderChanges,
    ),
    ("etcd_server_proposals_committed_total", Column::Committed),
    ("etcd_server_proposals_applied_total", Column::Applied),
    ("etcd_server_proposals_failed_total", Column::Failed),
    ("etcd_server_proposals_pending", Column::Pending),
    (
        "etcd_disk_wal_fsync_duration_seconds_sum",
        Column::FsyncSeconds,
    ),
    ("etcd_disk_wal_fsync_duration_seconds_count", Column::Fsyncs),
    (
        "etcd_disk_backend_commit_duration_seconds_sum",
        Column::CommitSeconds,
    ),
    (
        "etcd_disk_backend_commit_duration_seconds_count",
        Column::Commits,
    ),
    (
        "etcd_server_apply_duration_seconds_sum",
        Column::ApplySeconds,
    ),
    ("etcd_server_apply_duration_seconds_count", Column::Applies),
    ("process_cpu_seconds_total", Column::CpuSeconds),
    ("grpc_server_started_total", Column::Started),
    ("grpc_server_handled_total", Column::Handled),
    ("process_resident_memory_bytes", Column::ResidentBytes),
];
const MORE_SUMS: [(&str, Column); 3] = [
    ("process_open_fds", Column::OpenFiles),
    ("go_goroutines", Column::Goroutines),
    ("etcd_debugging_mvcc_watcher_total", Column::Watchers),
];
/// Series that are summed over peers: one without peers has none, which is zero of a member alone.
const PEER_TRIP: &str = "etcd_network_peer_round_trip_time_seconds";

/// A histogram's buckets: bounds in seconds, and how many were at most that, of all labels.
type Buckets = Vec<(f64, f64)>;

/// What was taken from a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Page {
    sums: BTreeMap<Column, f64>,
    fsync: Buckets,
    commit: Buckets,
    apply: Buckets,
    /// By peer: sum and count of its round trips.
    peers: BTreeMap<u64, (f64, f64)>,
    /// The member that the page says to be of.
    pub(crate) server_id: Option<u64>,
}

impl Page {
    /// Takes what is known from a page; lines of other series, and such as cannot be read, are
    /// passed over.
    #[must_use]
    pub(crate) fn read(text: &str) -> Page {
        let mut page = Page::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value)) = split(line) else {
                continue;
            };
            page.take(name, labels, value);
        }
        page
    }

    fn take(&mut self, name: &str, labels: &str, value: f64) {
        if let Some((_, column)) = SUMS.iter().chain(&MORE_SUMS).find(|(of, _)| *of == name) {
            *self.sums.entry(*column).or_default() += value;
            return;
        }
        let buckets = match name {
            "etcd_disk_wal_fsync_duration_seconds_bucket" => &mut self.fsync,
            "etcd_disk_backend_commit_duration_seconds_bucket" => &mut self.commit,
            "etcd_server_apply_duration_seconds_bucket" => &mut self.apply,
            "etcd_server_id" => {
                let id = label(labels, "server_id").and_then(|id| u64::from_str_radix(id, 16).ok());
                self.server_id = self.server_id.or(id);
                return;
            }
            _ => return self.take_peer(name, labels, value),
        };
        let Some(bound) = label(labels, "le").and_then(|le| le.parse::<f64>().ok()) else {
            return;
        };
        match buckets.iter().position(|(of, _)| *of == bound) {
            Some(at) => buckets[at].1 += value,
            None if buckets.len() < MAX_BUCKETS => buckets.push((bound, value)),
            None => {}
        }
    }

    fn take_peer(&mut self, name: &str, labels: &str, value: f64) {
        let Some(part) = name.strip_prefix(PEER_TRIP) else {
            return;
        };
        let Some(peer) = label(labels, "To").and_then(|id| u64::from_str_radix(id, 16).ok()) else {
            return;
        };
        if !self.peers.contains_key(&peer) && self.peers.len() >= MAX_PEERS {
            return;
        }
        let of = self.peers.entry(peer).or_default();
        match part {
            "_sum" => of.0 += value,
            "_count" => of.1 += value,
            _ => {}
        }
    }

    /// Puts what the page has into a sample. `before` is the member's page of the sample before,
    /// if the process is the same.
    pub(crate) fn fill(&self, before: Option<&Page>, sample: &mut Sample) {
        for (column, value) in &self.sums {
            sample.set(*column, Some(*value));
        }
        let same = before.filter(|before| {
            let start = |page: &Page| page.sums.get(&Column::StartS).copied();
            start(before) == start(self)
        });
        if let Some(before) = same {
            let part = |now: &Buckets, was: &Buckets, q| quantile(now, was, q);
            sample.set(Column::FsyncP50S, part(&self.fsync, &before.fsync, 0.5));
            sample.set(Column::FsyncP99S, part(&self.fsync, &before.fsync, 0.99));
            sample.set(Column::CommitP99S, part(&self.commit, &before.commit, 0.99));
            sample.set(Column::ApplyP99S, part(&self.apply, &before.apply, 0.99));
        }
        for (peer, (sum, count)) in &self.peers {
            // What was observed since the page before; without one, since the process began.
            let was = same.and_then(|before| before.peers.get(peer)).copied();
            let (was_sum, was_count) = was.unwrap_or_default();
            let (sum, count) = (sum - was_sum, count - was_count);
            if count > 0.0 && sum >= 0.0 {
                sample.peer_round_trips.push((*peer, sum / count * 1e6));
            }
        }
    }
}

/// Name, text of labels, and value of a series' line.
fn split(line: &str) -> Option<(&str, &str, f64)> {
    let (name, labels, rest) = match line.find(['{', ' '])? {
        at if line[at..].starts_with('{') => {
            let end = line.rfind('}')?;
            (&line[..at], line.get(at + 1..end)?, &line[end + 1..])
        }
        at => (&line[..at], "", &line[at..]),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// The value of a label; those that are looked at have no escapes in them.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|one| {
        let value = one.trim().strip_prefix(name)?.strip_prefix("=\"")?;
        value.strip_suffix('"')
    })
}

/// A quantile of what two states of a histogram have between them, in seconds, interpolated
/// within its bucket as Prometheus does. Beyond the last bound it is that bound.
fn quantile(now: &Buckets, was: &Buckets, q: f64) -> Option<f64> {
    let before = |bound: f64| was.iter().find(|(of, _)| *of == bound).map_or(0.0, |b| b.1);
    let mut more: Buckets = now
        .iter()
        .map(|(bound, n)| (*bound, n - before(*bound)))
        .collect();
    more.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = more.last().map(|last| last.1).filter(|all| *all > 0.0)?;
    let wanted = q * all;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, n) in more {
        if n >= wanted {
            if !bound.is_finite() {
                return Some(low);
            }
            let within = if n > below {
                (wanted - below) / (n - below)
            } else {
                1.0
            };
            return Some(low + (bound - low) * within);
        }
        (low, below) = (bound, n);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fsyncs: [u32; 3], sum: f64) -> String {
        let [a, b, c] = fsyncs;
        format!(
            "# HELP process_start_time_seconds x\n\
             process_start_time_seconds 1.7e+09\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"0.001\"}} {a}\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"0.002\"}} {b}\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"+Inf\"}} {c}\n\
             etcd_disk_wal_fsync_duration_seconds_sum {sum}\n\
             etcd_disk_wal_fsync_duration_seconds_count {c}\n\
             etcd_network_peer_sent_bytes_total{{To=\"a1\"}} 5\n\
             etcd_network_peer_sent_bytes_total{{To=\"b2\"}} 6\n\
             etcd_network_peer_round_trip_time_seconds_sum{{To=\"a1\"}} {sum}\n\
             etcd_network_peer_round_trip_time_seconds_count{{To=\"a1\"}} {c}\n\
             etcd_server_id{{server_id=\"c3\"}} 1\n\
             grpc_server_started_total{{grpc_method=\"Range\",x=\"a,b\"}} 3\n\
             nonsense\nworse {{\n"
        )
    }

    #[test]
    fn a_page_is_read_into_a_sample() {
        let first = Page::read(&page([10, 10, 10], 0.01));
        let next = Page::read(&page([10, 20, 30], 0.05));
        assert_eq!(next.server_id, Some(0xc3));
        let mut sample = Sample::new(1, 1, String::new());
        next.fill(Some(&first), &mut sample);
        assert_eq!(sample.get(Column::PeerSentBytes), Some(11.0));
        assert_eq!(sample.get(Column::Started), Some(3.0));
        assert_eq!(sample.get(Column::Fsyncs), Some(30.0));
        // Half of what came in between is in the bucket up to 2 ms.
        assert_eq!(sample.get(Column::FsyncP50S), Some(0.002));
        assert_eq!(sample.get(Column::FsyncP99S), Some(0.002));
        assert_eq!(sample.get(Column::WalWriteBytes), None);
        let [(peer, us)] = sample.peer_round_trips[..] else {
            panic!("{:?}", sample.peer_round_trips);
        };
        assert!(peer == 0xa1 && (us - 2_000.0).abs() < 1e-6);
    }

    #[test]
    fn another_process_shares_no_histogram_with_the_one_before() {
        let first = Page::read(&page([10, 10, 10], 0.01).replace("1.7e+09", "1.6e+09"));
        let next = Page::read(&page([1, 2, 3], 0.003));
        let mut sample = Sample::new(1, 1, String::new());
        next.fill(Some(&first), &mut sample);
        assert_eq!(sample.get(Column::FsyncP50S), None);
        assert!((sample.peer_round_trips[0].1 - 1_000.0).abs() < 1e-6);
    }
}
