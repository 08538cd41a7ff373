//! `orlop forecast status`: what a running forecast thinks, for a person.

use crate::admin::{Form, fetch, show};
use hyper::Uri;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

/// Arguments of `orlop forecast status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The forecast's --metrics-addr, as a URL.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2384")]
    admin_url: Uri,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    write_out: Form,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let answer = fetch(&args.admin_url, "/v1/status");
    show(
        "orlop forecast status",
        answer,
        args.write_out,
        for_a_person,
    )
}

fn ms(v: &Value) -> String {
    match v.as_u64() {
        Some(us) => format!("{:.1}", us as f64 / 1000.0),
        None => "-".to_owned(),
    }
}

/// What a person is shown.
fn for_a_person(v: &Value) -> String {
    let mut out = String::new();
    let is = |field: &str| v[field].as_bool() == Some(true);
    let mode = match (is("acts"), is("is_actor")) {
        (false, _) => "looks on: it moves nothing (no --act)",
        (true, true) => "acts for this cluster",
        (true, false) => "may act, and another process does or no lease is to be had",
    };
    let _ = writeln!(
        out,
        "forecast  orlop {}, {mode}",
        v["version"].as_str().unwrap_or("?")
    );
    if is("stopped") {
        let _ = writeln!(
            out,
            "stopped   by an operator; orlop forecast resume ends that"
        );
    }
    if is("gave_up") {
        let why = v["gave_up_because"].as_str().unwrap_or("another actor did");
        let _ = writeln!(out, "gave up   {why}; orlop forecast resume ends that");
    }
    let wanted = &v["wanted"];
    if wanted.is_object() {
        let text = |field: &str| wanted[field].as_str().unwrap_or("?");
        let gain = ms(&wanted["gain_us"]);
        let _ = writeln!(
            out,
            "wanted    the lead from {} to {}: {gain} ms less a commit",
            text("from"),
            text("to")
        );
    }
    let why = v["holds_because"]
        .as_str()
        .unwrap_or("the lead is being moved");
    let _ = writeln!(out, "lead      {why}");
    let moves: Vec<String> = v["moves"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(what, n)| format!("{what} {n}"))
        .collect();
    let _ = writeln!(out, "moves     {}", moves.join(", "));
    let _ = writeln!(
        out,
        "\n{:<16} {:<17} {:>8} {:>9} {:>12} {:>10} {:>8} {:>10}",
        "MEMBER", "ID", "ROLE", "STATE", "COMMIT MS", "CLIENT MS", "SYNC MS", "QUORUM MS"
    );
    for member in v["members"].as_array().into_iter().flatten() {
        let role = match member["leads"].as_bool() {
            Some(true) => "leader",
            _ => "follower",
        };
        let cost = &member["commit_cost_us"];
        let _ = writeln!(
            out,
            "{:<16} {:<17} {role:>8} {:>9} {:>12} {:>10} {:>8} {:>10}",
            member["name"].as_str().unwrap_or("?"),
            member["id"].as_str().unwrap_or("?"),
            member["state"].as_str().unwrap_or("unknown"),
            ms(&cost["all"]),
            ms(&cost["client"]),
            ms(&cost["sync"]),
            ms(&cost["quorum"]),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_what_each_member_would_cost_and_why_nothing_is_done() {
        let text = for_a_person(&json!({
            "version": "0.1.0", "acts": false, "is_actor": false, "stopped": true, "gave_up": false,
            "holds": "shadow", "holds_because": "it only looks on (no --act)",
            "wanted": {"from": "1f", "to": "2e", "gain_us": 45_300},
            "moves": {"made": 0, "would": 1},
            "members": [{
                "name": "a", "id": "1f", "leads": true, "state": null,
                "commit_cost_us": {"all": 93_500, "client": 45_500, "sync": 2_000, "quorum": null},
            }],
        }));
        for part in [
            "looks on",
            "stopped   by an operator",
            "from 1f to 2e: 45.3 ms less",
            "would 1",
            "93.5",
            "unknown",
            "it only looks on (no --act)",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
