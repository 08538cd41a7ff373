//! `orlop proxy status`: what a running proxy does, for a person.

use crate::admin::{Form, fetch, show};
use hyper::Uri;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

/// Arguments of `orlop proxy status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The proxy's --metrics-addr, as a URL.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2382")]
    admin_url: Uri,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    write_out: Form,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let answer = fetch(&args.admin_url, "/v1/status");
    show("orlop proxy status", answer, args.write_out, for_a_person)
}

fn text<'a>(v: &'a Value, at: &str) -> &'a str {
    v.pointer(at).and_then(Value::as_str).unwrap_or("?")
}

fn number(v: &Value, at: &str) -> u64 {
    v.pointer(at).and_then(Value::as_u64).unwrap_or(0)
}

/// A round trip in milliseconds.
fn ms(v: &Value, at: &str) -> String {
    match v.pointer(at).and_then(Value::as_u64) {
        Some(us) => format!("{:.1}", us as f64 / 1000.0),
        None => "-".to_owned(),
    }
}

/// What a person is shown.
fn for_a_person(v: &Value) -> String {
    let mut out = String::new();
    let listens: Vec<_> = v["listen"].as_array().into_iter().flatten().collect();
    let listens: Vec<_> = listens.iter().filter_map(|l| l.as_str()).collect();
    let draining = match v["draining"].as_bool() {
        Some(true) => ", stopping",
        _ => "",
    };
    let _ = writeln!(
        out,
        "proxy        orlop {}, listening on {}{draining}",
        text(v, "/version"),
        listens.join(", ")
    );
    let leader = match v["leader"].is_object() {
        true => format!(
            "{} ({}), term {}",
            text(v, "/leader/endpoint"),
            text(v, "/leader/member_id"),
            number(v, "/leader/term")
        ),
        false => "none is known: new connections wait".to_owned(),
    };
    let _ = writeln!(
        out,
        "leader       {leader}; {} changes since the start",
        number(v, "/leader_changes")
    );
    let _ = writeln!(
        out,
        "connections  {} open, {} waiting, {} leaving a member",
        number(v, "/connections/open"),
        number(v, "/connections/waiting"),
        number(v, "/connections/leaving")
    );
    for (what, line) in [("refused", "refused"), ("ended", "ended")] {
        let numbers: Vec<String> = v["connections"][what]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, n)| n.as_u64() != Some(0))
            .map(|(why, n)| format!("{why} {n}"))
            .collect();
        let numbers = match numbers.is_empty() {
            true => "none".to_owned(),
            false => numbers.join(", "),
        };
        let _ = writeln!(out, "{line:<12} {numbers}");
    }
    let _ = writeln!(
        out,
        "\n{:<16} {:<32} {:>8} {:>22} {:>6} {:>12} {:>12}",
        "MEMBER",
        "ENDPOINT",
        "ROLE",
        "ROUND TRIP MS (P50, P99)",
        "TERM",
        "RAFT INDEX",
        "CONNECTIONS"
    );
    for member in v["members"].as_array().into_iter().flatten() {
        let is = |field: &str| member[field].as_bool() == Some(true);
        let role = match (is("leads"), is("learner")) {
            (true, _) => "leader",
            (_, true) => "learner",
            _ => "follower",
        };
        let trip = format!(
            "{} ({}, {})",
            ms(member, "/round_trip_us/smoothed"),
            ms(member, "/round_trip_us/p50"),
            ms(member, "/round_trip_us/p99")
        );
        let _ = writeln!(
            out,
            "{:<16} {:<32} {role:>8} {trip:>22} {:>6} {:>12} {:>12}",
            text(member, "/name"),
            text(member, "/endpoint"),
            number(member, "/term"),
            number(member, "/raft_index"),
            number(member, "/connections")
        );
        if text(member, "/health") != "healthy" {
            let why = member["why"].as_str().unwrap_or("it was not asked yet");
            let _ = writeln!(out, "{:<16} {}: {why}", "", text(member, "/health"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_who_leads_and_what_is_wrong() {
        let member = |name: &str, leads: bool, health: &str, why: Option<&str>| {
            json!({
                "name": name, "endpoint": format!("https://{name}:2379"), "leads": leads,
                "learner": false, "health": health, "why": why, "term": 7, "raft_index": 9,
                "round_trip_us": {"smoothed": 1250, "p50": 1200, "p99": null}, "connections": 3,
            })
        };
        let mut v = json!({
            "version": "0.1.0", "listen": ["127.0.0.1:2379"], "draining": false,
            "leader": {"endpoint": "https://a:2379", "member_id": "1f", "term": 7},
            "leader_changes": 2,
            "connections": {
                "open": 6, "waiting": 1, "leaving": 0,
                "refused": {"no_leader": 0}, "ended": {"handover_gap": 4, "idle": 0},
            },
            "members": [
                member("a", true, "healthy", None),
                member("b", false, "unhealthy", Some("no answer for 3 s")),
            ],
        });
        let text = for_a_person(&v);
        for part in [
            "https://a:2379 (1f), term 7; 2 changes",
            "6 open, 1 waiting, 0 leaving",
            "refused      none",
            "ended        handover_gap 4\n",
            "1.2 (1.2, -)",
            "unhealthy: no answer for 3 s",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        v["leader"] = Value::Null;
        assert!(for_a_person(&v).contains("none is known: new connections wait"));
    }
}
