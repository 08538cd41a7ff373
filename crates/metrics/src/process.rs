//! The process, as `/proc` describes it.
//!
//! Facts: `proc(5)`; the names and their meaning are those of Prometheus' own
//! process collector, which etcd uses.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// What `/proc` said at one scrape; `None` where it did not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessStats {
    pub(crate) cpu_s: Option<f64>,
    pub(crate) start_unix_s: Option<f64>,
    pub(crate) virtual_bytes: Option<f64>,
    pub(crate) virtual_max_bytes: Option<f64>,
    pub(crate) resident_bytes: Option<f64>,
    pub(crate) open_fds: Option<f64>,
    pub(crate) max_fds: Option<f64>,
    pub(crate) network_receive_bytes: Option<f64>,
    pub(crate) network_transmit_bytes: Option<f64>,
}

/// Reads the process's figures.
pub(crate) fn read() -> ProcessStats {
    let mut stats = ProcessStats::default();
    if let Ok(text) = fs::read_to_string("/proc/self/stat") {
        let boot = fs::read_to_string("/proc/stat").ok();
        let boot_unix_s = boot.as_deref().and_then(boot_unix_s);
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let page_bytes = rustix::param::page_size() as f64;
        apply_stat(&mut stats, &text, boot_unix_s, ticks_per_s, page_bytes);
    }
    // The directory handle that counts is itself one of the entries.
    stats.open_fds = fs::read_dir("/proc/self/fd")
        .ok()
        .map(|entries| entries.count().saturating_sub(1) as f64);
    stats.max_fds = limit(Resource::Nofile);
    stats.virtual_max_bytes = limit(Resource::As);
    if let Ok(text) = fs::read_to_string("/proc/self/net/netstat") {
        stats.network_receive_bytes = ip_octets(&text, "InOctets");
        stats.network_transmit_bytes = ip_octets(&text, "OutOctets");
    }
    stats
}

/// A soft limit; none is the largest number, as in etcd's series.
fn limit(resource: Resource) -> Option<f64> {
    Some(getrlimit(resource).current.unwrap_or(u64::MAX) as f64)
}

fn boot_unix_s(proc_stat: &str) -> Option<f64> {
    proc_stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn apply_stat(
    stats: &mut ProcessStats,
    text: &str,
    boot_unix_s: Option<f64>,
    ticks_per_s: f64,
    page_bytes: f64,
) {
    // The command, in parentheses, may hold anything; the rest begins with field 3.
    let Some((_, rest)) = text.rsplit_once(')') else {
        return;
    };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|text| text.parse::<f64>().ok())
    };
    stats.cpu_s = field(14)
        .zip(field(15))
        .map(|(user, system)| (user + system) / ticks_per_s);
    stats.start_unix_s = field(22)
        .zip(boot_unix_s)
        .map(|(start, boot)| boot + start / ticks_per_s);
    stats.virtual_bytes = field(23);
    stats.resident_bytes = field(24).map(|pages| pages * page_bytes);
}

/// A column of `IpExt`, whose names and values are on two lines.
fn ip_octets(netstat: &str, column: &str) -> Option<f64> {
    let mut lines = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    names
        .split_ascii_whitespace()
        .zip(values.split_ascii_whitespace())
        .find_map(|(name, value)| (name == column).then(|| value.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0 20 0 4 0 1000 4096 3 1 1";
        let mut stats = ProcessStats::default();
        apply_stat(&mut stats, text, Some(1_000_000.0), 100.0, 4096.0);
        assert_eq!(stats.cpu_s, Some(3.0));
        assert_eq!(stats.start_unix_s, Some(1_000_010.0));
        assert_eq!(stats.virtual_bytes, Some(4096.0));
        assert_eq!(stats.resident_bytes, Some(12288.0));
    }

    #[test]
    fn octets_are_read_by_their_column() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 9 10 11\n";
        assert_eq!(ip_octets(text, "InOctets"), Some(10.0));
        assert_eq!(ip_octets(text, "OutOctets"), Some(11.0));
        assert_eq!(ip_octets(text, "Other"), None);
        assert_eq!(ip_octets("", "InOctets"), None);
    }

    #[test]
    fn this_process_has_figures() {
        let stats = read();
        assert!(stats.resident_bytes.is_some_and(|bytes| bytes > 100_000.0));
        assert!(stats.open_fds.is_some_and(|fds| fds >= 1.0));
        assert!(stats.max_fds.is_some_and(|fds| fds >= 1.0));
        assert!(stats.start_unix_s.is_some_and(|start| start > 1.6e9));
        assert!(stats.cpu_s.is_some());
    }
}
