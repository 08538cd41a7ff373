//! Series of `orlop shard`. All are known at a scrape only, and made then.

use crate::page::{self, Info, Row};
use crate::registry::{Family, Kind};

/// What a shard knows of itself when it is scraped.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardInput {
    /// A server has taken it.
    pub connected: bool,
    /// Frames that it holds.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The most that it may hold.
    pub limit_bytes: u64,
    /// Connections that were begun.
    pub connects: u64,
    /// Messages that were taken.
    pub messages: u64,
}

const SERIES: [Row<ShardInput>; 6] = [
    (
        "orlop_shard_connected",
        Kind::Gauge,
        "Whether a server has taken this shard: 1 if so.",
        |i| f64::from(u8::from(i.connected)),
    ),
    (
        "orlop_shard_frames",
        Kind::Gauge,
        "Frames of the server's log that are held, since they are not on the server's disk yet.",
        |i| i.frames as f64,
    ),
    (
        "orlop_shard_held_bytes",
        Kind::Gauge,
        "Bytes of those frames.",
        |i| i.bytes as f64,
    ),
    (
        "orlop_shard_limit_bytes",
        Kind::Gauge,
        "The most that the shard holds; what would be more is refused, and writes wait for the server's disk.",
        |i| i.limit_bytes as f64,
    ),
    (
        "orlop_shard_connects_total",
        Kind::Counter,
        "Connections to the server that were begun.",
        |i| i.connects as f64,
    ),
    (
        "orlop_shard_messages_total",
        Kind::Counter,
        "Messages with frames, or with how far the server's disk is, that were taken.",
        |i| i.messages as f64,
    ),
];

fn info<'a>(values: &'a [&'a str]) -> Info<'a> {
    Info {
        name: "orlop_shard_info",
        help: "1; the shard's version is its label.",
        labels: &["version"],
        values,
    }
}

/// All series of a shard, for the documentation.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| page::rows(r, &SERIES, &ShardInput::default());
    let mut all = page::families(&info(&[""]), add);
    all.retain(|family| family.name.starts_with("orlop_shard_"));
    all
}

/// The page that is scraped. `version` is orlop's.
pub fn shard_page(input: &ShardInput, version: &str) -> String {
    page::text(&info(&[version]), |r| page::rows(r, &SERIES, input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_is_held() {
        let input = ShardInput {
            connected: true,
            bytes: 700,
            ..ShardInput::default()
        };
        let page = shard_page(&input, "1.2.3");
        for line in [
            "orlop_shard_info{version=\"1.2.3\"} 1",
            "orlop_shard_connected 1",
            "orlop_shard_held_bytes 700",
        ] {
            assert!(page.lines().any(|of| of == line), "{line} in {page}");
        }
    }
}
