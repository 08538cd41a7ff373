//! The shard's unit: systemd takes it, and it is as closed as the others; its DaemonSet says what
//! the command takes.

use std::process::Command;

use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure};

use crate::repo;
use crate::unit::{settings, systemd_takes, values};

const UNIT: &str = "packaging/systemd/orlop-shard.service";
const SETTINGS: &str = "packaging/systemd/shard.env";
const DAEMON_SET: &str = "packaging/kubernetes/orlop-shard.yaml";

#[test]
fn systemd_takes_the_shards_unit() {
    systemd_takes("orlop-shard.service", "shard-tls.conf").unwrap();
}

/// Runs a shard with these variables; it fails only because the certificates are not there.
fn fails_for_certificates(
    variables: impl Iterator<Item = (String, String)>,
    missing: &str,
) -> Result<()> {
    let mut command = Command::new(Kind::Orlop.program()?);
    let done = command.arg("shard").envs(variables).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let right = !done.status.success() && said.contains(missing);
    ensure(right, || said.clone())
}

#[test]
fn the_shards_settings_are_a_whole_command_line() {
    let unit = std::fs::read_to_string(repo(UNIT)).unwrap();
    let start = values(&settings(&unit), "ExecStart");
    assert_eq!(start, ["/usr/local/bin/orlop shard"]);
    let file = std::fs::read_to_string(repo(SETTINGS)).unwrap();
    let variables = file.lines().filter_map(|line| {
        let line = line.strip_prefix('#').unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        name.starts_with("ORLOP_SHARD_")
            .then(|| (name.to_owned(), value.to_owned()))
    });
    fails_for_certificates(variables, "/etc/orlop/shard/").unwrap();
}

#[test]
fn the_daemon_set_is_a_whole_command_line() {
    let file = std::fs::read_to_string(repo(DAEMON_SET)).unwrap();
    let set: serde_json::Value = serde_yaml_ng::from_str(&file).unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], serde_json::json!(["orlop", "shard"]));
    let variables = container["env"].as_array().unwrap().iter();
    let variables = variables.map(|one| {
        let value = one["value"].as_str().unwrap_or("a-node").to_owned();
        (one["name"].as_str().unwrap().to_owned(), value)
    });
    fails_for_certificates(variables, "/certs/").unwrap();
}
