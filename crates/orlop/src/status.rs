//! `orlop status`: what a running server does, for a person.

use crate::admin::{Ask, Form, Target, ask, show};
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

/// Arguments of `orlop status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    write_out: Form,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let question = Ask {
        method: "GET",
        path: "/v1/status",
        body: String::new(),
    };
    let answer = ask(&args.target, &question);
    show("orlop status", answer, args.write_out, |v| {
        match text(v, "/role") {
            "keeper" => of_a_keeper(v),
            _ => for_a_person(v),
        }
    })
}

fn text<'a>(v: &'a Value, at: &str) -> &'a str {
    v.pointer(at).and_then(Value::as_str).unwrap_or("?")
}

fn number(v: &Value, at: &str) -> f64 {
    v.pointer(at).and_then(Value::as_f64).unwrap_or(0.0)
}

fn is(v: &Value, at: &str) -> bool {
    v.pointer(at).and_then(Value::as_bool).unwrap_or(false)
}

/// One line on the rules in force.
pub(crate) fn rules_line(v: &Value) -> String {
    let name = text(v, "/profile/name");
    let source = text(v, "/profile/source");
    let also = if is(v, "/profile/run_time_choice") {
        format!(
            "; the command line says {}, which `orlop profile reset` brings back",
            text(v, "/profile/command_line")
        )
    } else {
        String::new()
    };
    format!("{name} ({source}{also})")
}

fn bytes(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n:.0} bytes"),
    }
}

/// What a person is shown.
pub(crate) fn for_a_person(v: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line(
        "server",
        format!(
            "{}, orlop {}, revision {:.0}",
            text(v, "/name"),
            text(v, "/version"),
            number(v, "/revision")
        ),
    );
    line("profile", rules_line(v));
    let window = number(v, "/rates_over_seconds");
    for class in ["durable", "volatile"] {
        let at = |field: &str| number(v, &format!("/{class}/{field}"));
        line(
            class,
            format!(
                "{:.1} writes/s, {}/s to the log ({:.0} writes since the start)",
                at("writes_per_second"),
                bytes(at("bytes_per_second")),
                at("writes"),
            ),
        );
    }
    line(
        "syncs",
        format!(
            "{:.1}/s (rates over the last {window:.0} s)",
            number(v, "/syncs_per_second")
        ),
    );
    let unsynced = number(v, "/unsynced/bytes");
    if unsynced > 0.0 {
        line(
            "not on disk",
            format!(
                "{} of volatile writes, the oldest for {:.0} ms",
                bytes(unsynced),
                number(v, "/unsynced/age_ms")
            ),
        );
    } else {
        line("not on disk", "nothing".to_owned());
    }
    line("power loss", power_loss(v));
    for value in memory(v) {
        line("memory", value);
    }
    for value in followers(v) {
        line("copies", value);
    }
    for value in shards(v) {
        line("shards", value);
    }
    if let Some(profiles) = v.pointer("/spared/profiles").and_then(Value::as_array) {
        let sampled = number(v, "/spared/sampled_writes");
        if sampled == 0.0 {
            line(
                "spared",
                "nothing is known yet: no write was sampled".to_owned(),
            );
        }
        for p in profiles.iter().filter(|_| sampled > 0.0) {
            line(
                "spared",
                format!(
                    "{} would make {:.0} % of writes volatile, and spare up to {:.0} % of syncs ({sampled:.0} writes sampled)",
                    text(p, "/profile"),
                    number(p, "/writes_percent"),
                    number(p, "/syncs_percent"),
                ),
            );
        }
    }
    out
}

/// How far somebody is behind, in its three measures.
fn lag(v: &Value) -> String {
    match number(v, "/lag_records") {
        0.0 => "nothing behind".to_owned(),
        records => format!(
            "{records:.0} records behind ({}, the oldest for {:.0} ms)",
            bytes(number(v, "/lag_bytes")),
            number(v, "/lag_ms")
        ),
    }
}

/// Who keeps copies, a line for each. None on a server that lets nobody follow.
fn followers(v: &Value) -> Vec<String> {
    let most = number(v, "/followers/max");
    if most == 0.0 {
        return Vec::new();
    }
    let all = v
        .pointer("/followers/followers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut lines: Vec<String> = all
        .map(|follower| {
            let (name, address) = (text(follower, "/name"), text(follower, "/address"));
            match is(follower, "/joining") {
                true => format!("keeper {name} ({address}): is sent a snapshot"),
                false => format!("keeper {name} ({address}): {}", lag(follower)),
            }
        })
        .collect();
    if lines.is_empty() {
        lines.push("NOBODY follows: if this machine is lost, so is what its disk holds".to_owned());
    }
    lines
}

/// Who holds the newest writes in memory, after whether that counts. None on a server that lets no
/// shard in.
fn shards(v: &Value) -> Vec<String> {
    if number(v, "/shards/max") == 0.0 {
        return Vec::new();
    }
    let copies = number(v, "/shards/copies");
    let mut lines = vec![match (copies, is(v, "/shards/counting")) {
        (0.0, _) => "the storage rules ask for none".to_owned(),
        (_, true) => format!("replicated writes are answered when {copies:.0} shards have them"),
        (_, false) => format!(
            "DEGRADED: replicated writes wait for the disk, since {copies:.0} shards are not there"
        ),
    }];
    let all = v.pointer("/shards/shards").and_then(Value::as_array);
    lines.extend(all.into_iter().flatten().map(|shard| {
        let (name, address) = (text(shard, "/name"), text(shard, "/address"));
        let zone = match text(shard, "/zone") {
            "" => String::new(),
            zone => format!(", zone {zone}"),
        };
        match is(shard, "/holds") {
            true => format!(
                "{name} ({address}{zone}) holds {}",
                bytes(number(shard, "/bytes"))
            ),
            false => format!("{name} ({address}{zone}) is there"),
        }
    }));
    lines
}

/// What a person is shown of a keeper.
fn of_a_keeper(v: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line(
        "keeper",
        format!("of {}, orlop {}", text(v, "/server"), text(v, "/version")),
    );
    line(
        "copy",
        match v.get("cluster_id").and_then(Value::as_str) {
            Some(cluster) => format!(
                "cluster {cluster}, term {:.0}, revision {:.0}, {} of log",
                number(v, "/raft_term"),
                number(v, "/revision"),
                bytes(number(v, "/log_bytes"))
            ),
            None => "none yet".to_owned(),
        },
    );
    line(
        "now",
        match (is(v, "/following"), is(v, "/joining")) {
            (true, _) => format!("follows, {}", lag(v)),
            (_, true) => "takes a snapshot of the server".to_owned(),
            _ => format!("DOES NOT FOLLOW: {}", text(v, "/problem")),
        },
    );
    line(
        "promotion",
        match is(v, "/complete") {
            true => format!("would be exact: {}", text(v, "/proof")),
            false => "would jump: nothing proves that this copy has all".to_owned(),
        },
    );
    out
}

/// Where memory is: what is stored, what is held for clients, and where there was no room.
fn memory(v: &Value) -> Vec<String> {
    let Some(memory) = v.get("memory") else {
        return Vec::new();
    };
    let of = |name: &str| {
        let (held, most) = (
            number(memory, &format!("/{name}_bytes")),
            number(
                memory,
                if name == "data" {
                    "/quota_bytes"
                } else {
                    "/history_budget_bytes"
                },
            ),
        );
        match most > 0.0 {
            true => format!("{name} {} of {}", bytes(held), bytes(most)),
            false => format!("{name} {}, no quota", bytes(held)),
        }
    };
    let mut lines = vec![format!("{}, {}", of("data"), of("history"))];
    let accounts = memory.pointer("/clients").and_then(Value::as_object);
    let accounts: Vec<_> = accounts.into_iter().flatten().collect();
    let held: Vec<String> = accounts
        .iter()
        .filter(|(_, a)| number(a, "/bytes") > 0.0)
        .map(|(name, a)| {
            let (held, most) = (number(a, "/bytes"), number(a, "/limit_bytes"));
            format!("{name} {} of {}", bytes(held), bytes(most))
        })
        .collect();
    lines.push(match held.is_empty() {
        true => "for clients: nothing".to_owned(),
        false => format!("for clients: {}", held.join(", ")),
    });
    let full: Vec<String> = accounts
        .iter()
        .filter(|(_, a)| number(a, "/refused") + number(a, "/shed") > 0.0)
        .map(|(name, a)| {
            let (refused, ended) = (number(a, "/refused"), number(a, "/shed"));
            format!("{name} (refused {refused:.0}, ended {ended:.0})")
        })
        .collect();
    if !full.is_empty() {
        lines.push(format!("no room since the start: {}", full.join(", ")));
    }
    lines
}

fn power_loss(v: &Value) -> String {
    if is(v, "/profile/strict") && !is(v, "/epoch/open") {
        return "would take nothing that was answered".to_owned();
    }
    let now = match number(v, "/unsynced/bytes") {
        0.0 => "now it would take nothing".to_owned(),
        n => format!("now it would take those {}", bytes(n)),
    };
    let relist = if is(v, "/epoch/open") {
        "; every watcher would list again"
    } else {
        ""
    };
    let rule = text(v, "/profile/power_loss");
    let rule = if rule == "?" {
        String::new()
    } else {
        format!("\n{:<12} {rule}", "")
    };
    format!("{now}{relist}{rule}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_keeper_says_whether_it_follows_and_what_a_promotion_would_be() {
        let mut v = json!({
            "role": "keeper", "server": "https://a:2380", "version": "0", "following": true,
            "cluster_id": "c1", "raft_term": 2, "revision": 9, "log_bytes": 4096,
            "lag_records": 0, "complete": false,
        });
        let text = of_a_keeper(&v);
        for part in [
            "follows, nothing behind",
            "term 2, revision 9",
            "would jump",
        ] {
            assert!(text.contains(part), "{text}");
        }
        v["following"] = json!(false);
        v["problem"] = json!("no route");
        v["complete"] = json!(true);
        v["proof"] = json!("it stopped");
        let text = of_a_keeper(&v);
        for part in ["DOES NOT FOLLOW: no route", "would be exact: it stopped"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn shows_what_would_be_lost() {
        let mut v = json!({
            "name": "m", "version": "0", "revision": 7,
            "profile": {
                "name": "ephemeral", "source": "a choice at run time", "run_time_choice": true,
                "command_line": "strict", "strict": false, "power_loss": "A power loss may take X.",
            },
            "durable": {"writes": 1, "writes_per_second": 0.5, "bytes_per_second": 4096},
            "unsynced": {"bytes": 12_288, "age_ms": 34},
            "epoch": {"open": true},
        });
        let text = for_a_person(&v);
        for part in [
            "ephemeral (a choice at run time; the command line says strict",
            "12.3 kB of volatile writes, the oldest for 34 ms",
            "now it would take those 12.3 kB; every watcher would list again",
            "A power loss may take X.",
        ] {
            assert!(text.contains(part), "{text}");
        }
        v["profile"] = json!({"name": "strict", "source": "the default", "strict": true});
        v["epoch"] = json!({"open": false});
        v["unsynced"] = json!({"bytes": 0});
        v["spared"] = json!({
            "sampled_writes": 160,
            "profiles": [{"profile": "balanced", "writes_percent": 30.0, "syncs_percent": 20.0}],
        });
        let text = for_a_person(&v);
        assert!(
            text.contains("would take nothing that was answered"),
            "{text}"
        );
        v["memory"] = json!({
            "data_bytes": 2_500_000, "quota_bytes": -1,
            "history_bytes": 1000, "history_budget_bytes": 3_000_000_000_u64,
            "clients": {
                "answers": {"bytes": 0, "limit_bytes": 9, "refused": 0, "shed": 0},
                "streams": {"bytes": 4096, "limit_bytes": 8192, "refused": 0, "shed": 0},
                "writes": {"bytes": 0, "limit_bytes": 9, "refused": 5, "shed": 2},
            },
        });
        let text = for_a_person(&v);
        for part in [
            "memory       data 2.5 MB, no quota, history 1.0 kB of 3.0 GB",
            "for clients: streams 4.1 kB of 8.2 kB\n",
            "no room since the start: writes (refused 5, ended 2)",
        ] {
            assert!(text.contains(part), "{text}");
        }
        v["followers"] = json!({"max": 2, "followers": []});
        assert!(for_a_person(&v).contains("NOBODY follows"));
        v["followers"]["followers"] = json!([
            {"name": "b", "address": "10.0.0.2:4", "lag_records": 7, "lag_bytes": 2000, "lag_ms": 12},
            {"name": "c", "address": "10.0.0.3:4", "joining": true},
        ]);
        let with_followers = for_a_person(&v);
        for part in [
            "keeper b (10.0.0.2:4): 7 records behind (2.0 kB, the oldest for 12 ms)",
            "keeper c (10.0.0.3:4): is sent a snapshot",
        ] {
            assert!(with_followers.contains(part), "{with_followers}");
        }
        v["shards"] = json!({"max": 3, "copies": 2, "counting": false, "shards": [
            {"name": "n1", "address": "10.0.0.4:4", "zone": "r1", "holds": true, "bytes": 4000},
        ]});
        let degraded = for_a_person(&v);
        assert!(
            degraded.contains("DEGRADED: replicated writes wait for the disk"),
            "{degraded}"
        );
        assert!(
            degraded.contains("n1 (10.0.0.4:4, zone r1) holds 4.0 kB"),
            "{degraded}"
        );
        v["shards"]["counting"] = json!(true);
        let counting = for_a_person(&v);
        assert!(
            counting.contains("answered when 2 shards have them"),
            "{counting}"
        );
        assert!(
            text.contains("balanced would make 30 % of writes volatile, and spare up to 20 %"),
            "{text}"
        );
    }
}
