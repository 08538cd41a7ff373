//! What the programs use while a load runs: processor, memory, disk, once a second.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use playground::http::Client as Pages;
use playground::metrics::Metrics;
use playground::store::Kind;
use serde::Serialize;

use crate::procfs;

/// How often processes are looked at.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// The processes of a cluster, and the store's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Subjects {
    /// Name and process of each component.
    pub(crate) pids: Vec<(String, u32)>,
    /// The store's kind and the port of its metrics; none for a store that is not ours.
    pub(crate) store: Option<(Kind, u16)>,
}

/// What one process used since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Use {
    pub(crate) cpu_ms: f64,
    pub(crate) rss_bytes: u64,
    pub(crate) rss_peak_bytes: u64,
    /// Bytes that it caused to be written to a disk.
    pub(crate) written_bytes: u64,
}

impl Use {
    /// Of processes that are one component.
    fn add(&mut self, other: Use) {
        self.cpu_ms += other.cpu_ms;
        self.rss_bytes += other.rss_bytes;
        self.rss_peak_bytes += other.rss_peak_bytes;
        self.written_bytes += other.written_bytes;
    }
}

/// Everything at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) uses: BTreeMap<String, Use>,
    /// None where the store did not tell.
    pub(crate) store: Option<StoreUse>,
}

/// What the store did since its start, as it counts itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct StoreUse {
    pub(crate) syncs: f64,
    /// Puts, deletions and transactions that may write.
    pub(crate) writes: f64,
    /// From their arrival to their answers, all together.
    pub(crate) writes_s: f64,
}

impl Subjects {
    /// Looks at everything now.
    pub(crate) async fn sample(&self) -> Sample {
        let mut uses: BTreeMap<String, Use> = BTreeMap::new();
        for (name, pid) in &self.pids {
            if let Some(new) = use_of(*pid) {
                uses.entry(name.clone()).or_default().add(new);
            }
        }
        if let Some(own) = use_of(std::process::id()) {
            uses.insert(super::LOAD_GENERATOR.to_owned(), own);
        }
        Sample {
            at: Instant::now(),
            uses,
            store: self.store_use().await,
        }
    }

    async fn store_use(&self) -> Option<StoreUse> {
        let (kind, port) = self.store?;
        let (status, text) = Pages::plain(port).page("/metrics").await.ok()?;
        (status == 200).then(|| store_use(kind, &Metrics::new(text)))
    }
}

fn store_use(kind: Kind, metrics: &Metrics) -> StoreUse {
    const NAME: &str = "etcd_server_request_duration_seconds";
    let of_writes = |part: &str| -> f64 {
        ["Put", "DeleteRange", "Txn"]
            .iter()
            .map(|kind| {
                let label = format!("type=\"{kind}\"");
                metrics.sum(&format!("{NAME}_{part}"), &[&label])
            })
            .sum()
    };
    StoreUse {
        syncs: syncs(kind, metrics),
        writes: of_writes("count"),
        writes_s: of_writes("sum"),
    }
}

/// Syncs that a store has made. etcd syncs its log, and its database twice a commit: first
/// the data, then the page that makes it valid. (A database that grows is synced once more;
/// that is not counted.)
fn syncs(kind: Kind, metrics: &Metrics) -> f64 {
    let log = metrics.sum("etcd_disk_wal_fsync_duration_seconds_count", &[]);
    match kind {
        Kind::Orlop => log,
        Kind::Etcd => {
            log + 2.0 * metrics.sum("etcd_disk_backend_commit_duration_seconds_count", &[])
        }
    }
}

fn use_of(pid: u32) -> Option<Use> {
    let cpu = procfs::cpu(pid)?;
    let (now, peak) = procfs::memory(pid)?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default();
    Some(Use {
        cpu_ms: super::ms(cpu.user + cpu.kernel),
        rss_bytes: now,
        rss_peak_bytes: peak,
        written_bytes: written,
    })
}

/// The store as the apiserver sees it: a histogram of its requests, cumulative.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreCalls {
    count: f64,
    sum_s: f64,
    /// Upper bound in seconds and count up to it, in order.
    buckets: Vec<(f64, f64)>,
}

/// Latency of writes to the store, as the apiserver saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct StoreLatency {
    pub(crate) writes: f64,
    pub(crate) mean_ms: f64,
    /// Interpolated between the apiserver's buckets (5, 25, 50, 100 ms, ...): rough.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) sum_s: f64,
}

impl StoreCalls {
    /// Of the apiserver's metrics page.
    pub(crate) fn read(page: String) -> StoreCalls {
        const NAME: &str = "etcd_request_duration_seconds";
        let metrics = Metrics::new(page);
        let mut calls = StoreCalls::default();
        let mut buckets: BTreeMap<u64, f64> = BTreeMap::new();
        for operation in ["create", "update", "delete"] {
            let label = format!("operation=\"{operation}\"");
            let labels = [label.as_str()];
            calls.count += metrics.sum(&format!("{NAME}_count"), &labels);
            calls.sum_s += metrics.sum(&format!("{NAME}_sum"), &labels);
            for (text, value) in metrics.series(&format!("{NAME}_bucket"), &labels) {
                let bound = text
                    .split("le=\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next());
                let bound = match bound {
                    Some("+Inf") => f64::INFINITY,
                    Some(bound) => bound.parse().unwrap_or(f64::INFINITY),
                    None => continue,
                };
                // Bits of positive numbers are in the numbers' order.
                *buckets.entry(bound.to_bits()).or_default() += value;
            }
        }
        calls.buckets = buckets
            .into_iter()
            .map(|(bits, count)| (f64::from_bits(bits), count))
            .collect();
        calls
    }

    /// What happened since an `earlier` reading.
    pub(crate) fn since(&self, earlier: &StoreCalls) -> StoreLatency {
        let writes = self.count - earlier.count;
        let sum_s = self.sum_s - earlier.sum_s;
        let before = |bound: f64| {
            let found = earlier.buckets.iter().find(|(b, _)| *b == bound);
            found.map_or(0.0, |(_, count)| *count)
        };
        let buckets: Vec<(f64, f64)> = self
            .buckets
            .iter()
            .map(|(bound, count)| (*bound, count - before(*bound)))
            .collect();
        StoreLatency {
            writes,
            mean_ms: if writes > 0.0 {
                sum_s / writes * 1e3
            } else {
                0.0
            },
            p50_ms: quantile_ms(&buckets, 0.5),
            p99_ms: quantile_ms(&buckets, 0.99),
            sum_s,
        }
    }
}

fn quantile_ms(buckets: &[(f64, f64)], quantile: f64) -> f64 {
    let wanted = buckets.last().map_or(0.0, |(_, count)| *count) * quantile;
    let (mut low, mut below) = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= wanted && count > below {
            if bound.is_infinite() {
                return low * 1e3;
            }
            return (low + (bound - low) * (wanted - below) / (count - below)) * 1e3;
        }
        (low, below) = (bound, count);
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_calls_are_read_and_subtracted() {
        let page = |create: [u32; 3], sum: f64| {
            let mut text = String::new();
            for (bound, count) in ["0.005", "0.025", "+Inf"].iter().zip(create) {
                text += &format!(
                    "etcd_request_duration_seconds_bucket{{operation=\"create\",type=\"pods\",le=\"{bound}\"}} {count}\n"
                );
            }
            text += &format!("etcd_request_duration_seconds_sum{{operation=\"create\"}} {sum}\n");
            text += &format!(
                "etcd_request_duration_seconds_count{{operation=\"create\"}} {}\n",
                create[2]
            );
            text + "etcd_request_duration_seconds_count{operation=\"get\"} 999\n"
        };
        let early = StoreCalls::read(page([10, 10, 10], 0.02));
        let late = StoreCalls::read(page([60, 110, 110], 1.02));
        let latency = late.since(&early);
        assert_eq!((latency.writes, latency.mean_ms), (100.0, 10.0));
        assert!((latency.p50_ms - 5.0).abs() < 0.01, "{latency:?}");
        assert!((latency.p99_ms - 24.6).abs() < 0.01, "{latency:?}");
    }

    #[test]
    fn etcd_syncs_its_database_twice_a_commit() {
        let page = "etcd_disk_wal_fsync_duration_seconds_count 10\n\
                    etcd_disk_backend_commit_duration_seconds_count 3\n";
        let metrics = Metrics::new(page.to_owned());
        assert_eq!(store_use(Kind::Etcd, &metrics).syncs, 16.0);
        assert_eq!(store_use(Kind::Orlop, &metrics).syncs, 10.0);
    }

    #[test]
    fn writes_are_counted_without_reads() {
        let page: String = ["Put", "Txn", "Range", "ReadonlyTxn", "LeaseGrant"]
            .iter()
            .map(|kind| {
                let name = "etcd_server_request_duration_seconds";
                let labels = format!("success=\"true\",type=\"{kind}\"");
                format!("{name}_sum{{{labels}}} 0.5\n{name}_count{{{labels}}} 7\n")
            })
            .collect();
        let used = store_use(Kind::Orlop, &Metrics::new(page));
        assert_eq!((used.writes, used.writes_s), (14.0, 1.0));
    }
}
