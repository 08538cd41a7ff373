//! Series of `orlop keeper`. All are known at a scrape only, and made then.

use crate::page::{self, Info, Row};
use crate::registry::{Family, Kind};

/// What a keeper knows of itself when it is scraped.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeeperInput {
    /// It follows a server now.
    pub following: bool,
    /// The copy is proven complete.
    pub complete: bool,
    /// The copy's revision.
    pub revision: i64,
    /// Records that the server has and the copy has not, when it was last told.
    pub lag_records: u64,
    /// Their bytes.
    pub lag_bytes: u64,
    /// For how long the oldest of them has waited, or the server was silent.
    pub lag_s: f64,
    /// When the server was last heard, in Unix seconds; 0 if never.
    pub last_contact_unix_s: f64,
    /// Connections that were begun.
    pub connects: u64,
    /// Snapshots of the server's that were taken.
    pub snapshots: u64,
    /// Records that were taken.
    pub records: u64,
    /// Bytes of the copy's log.
    pub log_bytes: u64,
    /// When the newest snapshot that it saved by itself was begun, in Unix seconds; 0 if there is
    /// none.
    pub saved_last_unix_s: f64,
    /// Bytes of the last of those.
    pub saved_bytes: u64,
    /// Those that could not be saved.
    pub saved_failures: u64,
}

fn number(flag: bool) -> f64 {
    f64::from(u8::from(flag))
}

const SERIES: [Row<KeeperInput>; 14] = [
    (
        "orlop_keeper_following",
        Kind::Gauge,
        "Whether the keeper follows its server now: 1 if so.",
        |i| number(i.following),
    ),
    (
        "orlop_keeper_complete",
        Kind::Gauge,
        "Whether the copy is proven to have all that the server acknowledged, so that it can be promoted without a jump of the revision: 1 if so.",
        |i| number(i.complete),
    ),
    (
        "orlop_keeper_revision",
        Kind::Gauge,
        "The copy's revision.",
        |i| i.revision as f64,
    ),
    (
        "orlop_keeper_lag_records",
        Kind::Gauge,
        "Records that the server had and the copy had not on its disk, when the server last said so.",
        |i| i.lag_records as f64,
    ),
    (
        "orlop_keeper_lag_bytes",
        Kind::Gauge,
        "Bytes of those records.",
        |i| i.lag_bytes as f64,
    ),
    (
        "orlop_keeper_lag_seconds",
        Kind::Gauge,
        "For how long the oldest of those records has waited; without a connection, for how long the server was not heard.",
        |i| i.lag_s,
    ),
    (
        "orlop_keeper_last_contact_timestamp_seconds",
        Kind::Gauge,
        "When the server was last heard; 0 if never since the start.",
        |i| i.last_contact_unix_s,
    ),
    (
        "orlop_keeper_connects_total",
        Kind::Counter,
        "Connections to the server that were begun.",
        |i| i.connects as f64,
    ),
    (
        "orlop_keeper_snapshots_total",
        Kind::Counter,
        "Snapshots of the server's that were taken whole: at first, and after the copy was too far behind.",
        |i| i.snapshots as f64,
    ),
    (
        "orlop_keeper_records_total",
        Kind::Counter,
        "Records that were put on the keeper's disk.",
        |i| i.records as f64,
    ),
    (
        "orlop_keeper_log_bytes",
        Kind::Gauge,
        "Bytes of all files of the copy's log.",
        |i| i.log_bytes as f64,
    ),
    (
        "orlop_scheduled_snapshot_last_success_timestamp_seconds",
        Kind::Gauge,
        "When the newest complete snapshot in --snapshot-dir was begun (the time in its name), in Unix seconds, also if an earlier process saved it; 0 if there is none.",
        |i| i.saved_last_unix_s,
    ),
    (
        "orlop_scheduled_snapshot_failures_total",
        Kind::Counter,
        "Snapshots for --snapshot-dir that could not be saved.",
        |i| i.saved_failures as f64,
    ),
    (
        "orlop_scheduled_snapshot_size_bytes",
        Kind::Gauge,
        "Bytes of the last snapshot that this process saved in --snapshot-dir.",
        |i| i.saved_bytes as f64,
    ),
];

fn info<'a>(values: &'a [&'a str]) -> Info<'a> {
    Info {
        name: "orlop_keeper_info",
        help: "1; the keeper's version is its label.",
        labels: &["version"],
        values,
    }
}

/// All series of a keeper, for the documentation.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| page::rows(r, &SERIES, &KeeperInput::default());
    let mut all = page::families(&info(&[""]), add);
    all.retain(|family| {
        let name = &family.name;
        name.starts_with("orlop_keeper_") || name.starts_with("orlop_scheduled_snapshot_")
    });
    all
}

/// The page that is scraped. `version` is orlop's.
pub fn keeper_page(input: &KeeperInput, version: &str) -> String {
    page::text(&info(&[version]), |r| page::rows(r, &SERIES, input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_how_far_the_copy_is_behind() {
        let input = KeeperInput {
            following: true,
            lag_records: 7,
            lag_s: 0.25,
            revision: 12,
            ..KeeperInput::default()
        };
        let page = keeper_page(&input, "1.2.3");
        for line in [
            "orlop_keeper_info{version=\"1.2.3\"} 1",
            "orlop_keeper_following 1",
            "orlop_keeper_complete 0",
            "orlop_keeper_lag_records 7",
            "orlop_keeper_lag_seconds 0.25",
            "orlop_keeper_revision 12",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}
