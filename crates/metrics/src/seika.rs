//! Series of `orlop-fleet seika run`. All of them are made at a scrape.

use crate::page::{self, Info};
use crate::registry::{Family, Kind, Registry};

/// What the controller reads at a scrape.
#[derive(Clone, Debug, Default)]
pub struct SeikaInput {
    /// It leads.
    pub leads: bool,
    /// Seikas that it knows.
    pub seikas: u64,
    /// Seikas that wait to be looked at.
    pub queued: u64,
    /// Pods that it keeps in memory.
    pub pods_kept: u64,
    /// Pods created or deleted and not seen yet.
    pub unseen: u64,
    /// Pods wanted, there, ready, and of the present template.
    pub pods: Vec<(&'static str, u64)>,
    /// Nodes by why their pods are not as wanted.
    pub nodes_in_trouble: Vec<(&'static str, u64)>,
    /// Calls that changed something, by what: since the start.
    pub writes: Vec<(&'static str, u64)>,
    /// Those that failed, by what.
    pub failures: Vec<(&'static str, u64)>,
    /// Looks at a Seika since the start.
    pub passes: u64,
    /// Time that they took, in seconds.
    pub pass_s: f64,
    /// Nodes of Seikas that were decided about, since the start.
    pub nodes_decided: u64,
    /// Watches that broke, since the start.
    pub watch_errors: u64,
    /// Log lines dropped because the output did not take them.
    pub log_lines_dropped: u64,
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub fn encode(version: &str, input: &SeikaInput) -> String {
    let info = Info {
        name: "orlop_seika_info",
        help: "1; the version is its label.",
        labels: &["version"],
        values: &[version],
    };
    page::text(&info, |r| at_scrape(r, input))
}

fn at_scrape(r: &mut Registry, input: &SeikaInput) {
    use Kind::{Counter, Gauge};
    const WHICH: &[&str] = &["which"];
    const REASON: &[&str] = &["reason"];
    const WHAT: &[&str] = &["what"];
    for (name, kind, labels, help, values) in [
        (
            "orlop_seika_pods",
            Gauge,
            WHICH,
            "Pods of all Seikas: wanted, current, ready, updated (of the present template).",
            &input.pods,
        ),
        (
            "orlop_seika_nodes_in_trouble",
            Gauge,
            REASON,
            "Nodes whose pods are not as wanted, by why; a node counts once for each Seika.",
            &input.nodes_in_trouble,
        ),
        (
            "orlop_seika_writes_total",
            Counter,
            WHAT,
            "Calls that changed something since the start: create, delete, adopt, release, status, event.",
            &input.writes,
        ),
        (
            "orlop_seika_write_failures_total",
            Counter,
            WHAT,
            "Such calls that failed since the start.",
            &input.failures,
        ),
    ] {
        page::by_label(r, name, kind, labels, help, values);
    }
    for (name, kind, help, value) in [
        (
            "orlop_seika_leads",
            Gauge,
            "Whether this process is the one that acts.",
            f64::from(u8::from(input.leads)),
        ),
        (
            "orlop_seika_seikas",
            Gauge,
            "Seikas that it knows; 0 while another leads.",
            input.seikas as f64,
        ),
        (
            "orlop_seika_queued",
            Gauge,
            "Seikas that wait to be looked at or are looked at.",
            input.queued as f64,
        ),
        (
            "orlop_seika_pods_kept",
            Gauge,
            "Pods in memory: those of Seikas and those of nobody.",
            input.pods_kept as f64,
        ),
        (
            "orlop_seika_unseen",
            Gauge,
            "Pods created or deleted that the watch has not shown so yet.",
            input.unseen as f64,
        ),
        (
            "orlop_seika_passes_total",
            Counter,
            "Looks at a Seika since the start.",
            input.passes as f64,
        ),
        (
            "orlop_seika_pass_seconds_total",
            Counter,
            "Time that they took, calls to the apiserver included.",
            input.pass_s,
        ),
        (
            "orlop_seika_nodes_decided_total",
            Counter,
            "Nodes of Seikas that were decided about since the start: those on which something had changed.",
            input.nodes_decided as f64,
        ),
        (
            "orlop_seika_watch_errors_total",
            Counter,
            "Watches that broke since the start.",
            input.watch_errors as f64,
        ),
        (
            "orlop_log_lines_dropped_total",
            Counter,
            "Log lines dropped because the log's output did not take them in time.",
            input.log_lines_dropped as f64,
        ),
    ] {
        page::single(r, name, kind, help, value);
    }
}

/// All families, for the reference page.
pub(crate) fn families() -> Vec<Family> {
    let add = |r: &mut _| at_scrape(r, &SeikaInput::default());
    page::own(add, |name| name.starts_with("orlop_seika_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_says_what_is_wanted_and_what_is_in_the_way() {
        let input = SeikaInput {
            leads: true,
            pods: vec![("wanted", 20), ("ready", 18)],
            nodes_in_trouble: vec![("NodeCordoned", 1)],
            writes: vec![("create", 20)],
            ..SeikaInput::default()
        };
        let text = encode("0.1.0", &input);
        for line in [
            "orlop_seika_leads 1",
            "orlop_seika_pods{which=\"ready\"} 18",
            "orlop_seika_nodes_in_trouble{reason=\"NodeCordoned\"} 1",
            "orlop_seika_writes_total{what=\"create\"} 20",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
