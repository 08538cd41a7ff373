//! One page with everything in it: tables and the thesis's figures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::STORE;
use super::report::{COLUMNS, Group, Report, of, shown, stage};
use super::result::{Course, Run};
use super::track::Stage;
use plots::{Line, bars, escape, lines};

const MIB: f64 = 1024.0 * 1024.0;
const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1.5em }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .3em } svg { width: 100%; height: auto } svg text { font-size: 12px; fill: #444 }
.legend { margin: .2em 0 0 4em } .legend span { margin-right: 1.2em; white-space: nowrap } .legend i { display: inline-block; width: 1em; height: .6em; margin-right: .4em }
.failed { color: #b00020; font-weight: 600 }";

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>orlop bench kube</title><style>{STYLE}</style></head><body><h1>orlop bench kube</h1><p>{}</p>",
        escape(&report.place())
    );
    for failure in &report.failures {
        let _ = write!(page, "<p class=\"failed\">FAILED: {}</p>", escape(failure));
    }
    if !report.delays.is_empty() {
        let rows: Vec<Vec<String>> = report
            .delays
            .iter()
            .map(|d| {
                let numbers = [d.put_ms, d.delayed_put_ms, d.added_ms()];
                let mut row = vec![d.store.clone(), format!("{}", d.asked_ms)];
                row.extend(numbers.map(|n| format!("{n:.2}")));
                row
            })
            .collect();
        page += "<h2>What the slower disk adds to one put</h2>";
        page += &table(
            &["store", "asked, ms", "put, ms", "delayed, ms", "added, ms"],
            &rows,
        );
    }
    page += &kept_up(report);
    for (title, stores) in report.groups() {
        page += &group(&title, &stores);
    }
    page += &limits(report);
    page += &idle(report);
    page + "</body></html>\n"
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |cells: &[String], tag: &str| -> String {
        cells
            .iter()
            .map(|c| format!("<{tag}>{}</{tag}>", escape(c)))
            .collect()
    };
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let rows: String = rows
        .iter()
        .map(|row| format!("<tr>{}</tr>", cells(row, "td")))
        .collect();
    format!("<table><tr>{}</tr>{rows}</table>", cells(&head, "th"))
}

/// Throughput kept up or not, by interval and store.
fn kept_up(report: &Report) -> String {
    let groups = report.groups();
    if groups.is_empty() {
        return String::new();
    }
    let stores: BTreeSet<&str> = groups.iter().flat_map(|(_, s)| s.keys().copied()).collect();
    let mut head = vec!["load"];
    head.extend(stores.iter().copied());
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|(title, by_store)| {
            let mut row = vec![title.clone()];
            row.extend(stores.iter().map(|store| match by_store.get(store) {
                None => "-".to_owned(),
                Some(runs) => {
                    let kept = runs.iter().filter(|run| run.kept_up).count();
                    let rate =
                        runs.iter().map(|run| run.bound_per_s).sum::<f64>() / runs.len() as f64;
                    format!("{kept} of {} runs, {rate:.1}/s", runs.len())
                }
            }));
            row
        })
        .collect();
    let mut text = format!("<h2>Throughput kept up</h2>{}", table(&head, &rows));
    if groups.len() > 1 {
        let rates: Vec<Line> = stores.iter().map(|store| rates(store, &groups)).collect();
        let plot = lines("requests/s", "bound/s", &rates, false);
        let _ = write!(
            text,
            "<div class=\"plots\">{}</div>",
            figure("Deployments bound by rate of requests", plot)
        );
    }
    text
}

/// How many Deployments a second were bound at each interval.
fn rates(store: &str, groups: &[Group<'_>]) -> Line {
    let mut points: Vec<(f64, f64)> = groups
        .iter()
        .filter_map(|(_, stores)| {
            let runs = stores.get(store)?;
            let asked = 1e3 / runs.first()?.interval_ms;
            Some((asked, of(runs, |run| Some(run.bound_per_s))?))
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Line {
        name: store.to_owned(),
        points,
        dashed: false,
    }
}

fn figure(caption: &str, plot: String) -> String {
    format!("<figure><figcaption>{caption}</figcaption>{plot}</figure>")
}

fn group(title: &str, stores: &BTreeMap<&str, Vec<&Run>>) -> String {
    let mut text = format!("<h2>{}</h2>", escape(title));
    let mut head = vec![""];
    head.extend(stores.keys().copied());
    let mut rows = Vec::new();
    for (shown, name) in shown(stores) {
        let mut row = vec![format!("{name}: p50 / p90 / p99 / p99.9 / max, ms")];
        row.extend(stores.values().map(|runs| {
            let all: Vec<String> = [
                stage(runs, shown, |l| l.p50_ms),
                stage(runs, shown, |l| l.p90_ms),
                stage(runs, shown, |l| l.p99_ms),
                stage(runs, shown, |l| l.p999_ms),
                stage(runs, shown, |l| l.max_ms),
            ]
            .iter()
            .map(|value| value.map_or_else(|| "-".into(), |v| format!("{v:.0}")))
            .collect();
            all.join(" / ")
        }));
        rows.push(row);
    }
    for column in &COLUMNS {
        let mut row = vec![column.head.to_owned()];
        row.extend(stores.values().map(|runs| column.text(runs)));
        rows.push(row);
    }
    text += &table(&head, &rows);
    text += "<p>Latencies run from the intended time of a request; medians over the runs. CPU, syncs and bytes are by request. Plots show the first run of each store.</p><div class=\"plots\">";

    let first: Vec<(&str, &Run)> = stores
        .iter()
        .filter_map(|(name, runs)| runs.first().map(|run| (*name, *run)))
        .collect();
    let course_with_gaps = |pick: &dyn Fn(&Course) -> Vec<Option<f64>>| -> Vec<Line> {
        let points = |course: &Course| -> Vec<(f64, f64)> {
            let all = course.seconds.iter().zip(pick(course));
            all.filter_map(|(second, value)| Some((*second, value?)))
                .collect()
        };
        first
            .iter()
            .map(|(name, run)| Line {
                name: (*name).to_owned(),
                points: points(&run.course),
                dashed: false,
            })
            .collect()
    };
    let course = |pick: &dyn Fn(&Course) -> Vec<f64>| {
        course_with_gaps(&|course| pick(course).into_iter().map(Some).collect())
    };
    let mut deployed = course(&|c| c.bound.iter().map(|n| *n as f64).collect());
    if let Some((_, run)) = first.first() {
        let asked = run.course.asked.iter().map(|n| *n as f64);
        deployed.push(Line {
            name: "asked for".into(),
            points: run.course.seconds.iter().copied().zip(asked).collect(),
            dashed: true,
        });
    }
    text += &figure(
        "Deployments asked for and bound",
        lines("s", "Deployments", &deployed, false),
    );
    for (shown, caption) in [
        (Stage::Bound, "From the intended time to bound"),
        (Stage::Ready, "From the intended time to ready"),
        (Stage::Gone, "From the intended time of a delete to gone"),
    ] {
        let curves: Vec<Line> = first
            .iter()
            .filter_map(|(name, run)| {
                let curve = &run.stage(shown)?.curve_ms;
                let share = |n: usize| (n + 1) as f64 / curve.len() as f64 * 100.0;
                Some(Line {
                    name: (*name).to_owned(),
                    points: curve
                        .iter()
                        .enumerate()
                        .map(|(n, ms)| (*ms, share(n)))
                        .collect(),
                    dashed: false,
                })
            })
            .collect();
        if !curves.is_empty() {
            text += &figure(caption, lines("ms", "% of all", &curves, true));
        }
    }
    text += &components(&first);
    let cores = |c: &Course| {
        let mut sums = vec![0.0; c.seconds.len()];
        for (name, values) in &c.cores {
            if name != super::LOAD_GENERATOR {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        sums
    };
    text += &figure(
        "CPU of the whole control plane",
        lines("s", "cores", &course(&cores), false),
    );
    let memory = |c: &Course| {
        let all = c.rss_bytes.get(STORE).cloned().unwrap_or_default();
        all.into_iter().map(|bytes| bytes as f64 / MIB).collect()
    };
    text += &figure(
        "Memory of the store",
        lines("s", "MiB", &course(&memory), false),
    );
    text += &figure(
        "Writes of the store by its own clock",
        lines(
            "s",
            "ms, mean of a second",
            &course_with_gaps(&|c| c.store_write_ms.clone()),
            false,
        ),
    );
    text += &figure(
        "Syncs of the store",
        lines(
            "s",
            "syncs/s",
            &course_with_gaps(&|c| c.syncs_per_s.clone()),
            false,
        ),
    );
    let written = |c: &Course| c.written_bytes_per_s.iter().map(|b| b / 1024.0).collect();
    text += &figure(
        "Bytes the store wrote to the disk",
        lines("s", "KiB/s", &course(&written), false),
    );
    text + "</div>"
}

/// CPU by component, and the store's latency, a bar for each store.
fn components(first: &[(&str, &Run)]) -> String {
    let names: Vec<String> = first.iter().map(|(name, _)| (*name).to_owned()).collect();
    let parts: BTreeSet<String> = first
        .iter()
        .flat_map(|(_, run)| run.used.keys().cloned())
        .collect();
    let parts: Vec<String> = parts.into_iter().collect();
    let cpu: Vec<Vec<f64>> = first
        .iter()
        .map(|(_, run)| {
            let of = |part: &String| run.used.get(part).map_or(0.0, |u| u.cpu_ms_per_request);
            parts.iter().map(of).collect()
        })
        .collect();
    let memory: Vec<Vec<f64>> = first
        .iter()
        .map(|(_, run)| {
            let of = |part: &String| run.used.get(part).map_or(0.0, |u| u.rss_peak_bytes as f64);
            parts.iter().map(|part| of(part) / MIB).collect()
        })
        .collect();
    let store: Vec<Vec<f64>> = first
        .iter()
        .map(|(_, run)| {
            let per_request = |sum_s: f64| sum_s * 1e3 / run.requests.max(1) as f64;
            vec![run.store_writes.map_or(0.0, |s| per_request(s.sum_s))]
        })
        .collect();
    let sum = ["all writes of a request".to_owned()];
    figure(
        "CPU by component",
        bars("ms by request", &names, &parts, &cpu),
    ) + &figure(
        "Most memory, by component",
        bars("MiB", &names, &parts, &memory),
    ) + &figure(
        "Latency of the store, as the apiserver saw it",
        bars("ms by request", &names, &sum, &store),
    )
}

fn limits(report: &Report) -> String {
    if report.limits.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = report
        .limits
        .iter()
        .map(|found| {
            let text = |value: Option<f64>| value.map_or_else(|| "-".into(), |v| format!("{v:.1}"));
            vec![
                format!("{} {}", found.store, found.mode),
                format!("{}", found.disk_delay_ms),
                format!("{}", found.limit_ms),
                text(found.interval_ms),
                text(found.per_s),
                format!("{}", found.attempts.len()),
            ]
        })
        .collect();
    let head = [
        "store",
        "disk delay, ms",
        "p99 to bound, ms",
        "shortest interval, ms",
        "requests/s",
        "attempts",
    ];
    let attempts: Vec<Line> = report
        .limits
        .iter()
        .map(|found| {
            let mut points: Vec<(f64, f64)> = found
                .attempts
                .iter()
                .filter_map(|a| Some((1e3 / a.interval_ms, a.p99_ms?)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line {
                name: found.store.clone(),
                points,
                dashed: false,
            }
        })
        .collect();
    format!(
        "<h2>Highest rate</h2>{}<div class=\"plots\">{}</div>",
        table(&head, &rows),
        figure(
            "p99 to bound by rate",
            lines("requests/s", "ms", &attempts, false)
        )
    )
}

fn idle(report: &Report) -> String {
    if report.idle.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = report
        .idle
        .iter()
        .map(|idle| {
            vec![
                idle.store.clone(),
                idle.nodes.to_string(),
                format!("{:.0}", idle.seconds),
                format!("{:.0}", idle.syncs_per_hour),
                format!("{:.1}", idle.written_bytes_per_hour / MIB),
                format!("{:.2}", idle.store_cpu_ms_per_s),
            ]
        })
        .collect();
    let head = [
        "store",
        "nodes",
        "looked at, s",
        "syncs/h",
        "MiB written/h",
        "store CPU, ms/s",
    ];
    format!("<h2>Idle</h2>{}", table(&head, &rows))
}
