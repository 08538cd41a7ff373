//! The keeper's unit: systemd takes it, and it is as closed as the others.

use std::process::Command;

use e2e::kube::store::Kind;

use crate::repo;
use crate::unit::{settings, systemd_takes, values};

const UNIT: &str = "packaging/systemd/orlop-keeper.service";
const SETTINGS: &str = "packaging/systemd/keeper.env";

#[test]
fn systemd_takes_the_keepers_unit() {
    systemd_takes("orlop-keeper.service", "keeper-tls.conf").unwrap();
}

/// What the unit and its files say together is a command line that the keeper takes: it fails
/// only because the certificates are not there.
#[test]
fn the_keepers_settings_are_a_whole_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(repo(UNIT)).unwrap();
    let start = values(&settings(&unit), "ExecStart");
    assert_eq!(start, ["/usr/local/bin/orlop keeper"]);
    let file = std::fs::read_to_string(repo(SETTINGS)).unwrap();
    let mut command = Command::new(Kind::Orlop.program().unwrap());
    command.arg("keeper");
    for line in file.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some((name, value)) = line.split_once('=')
            && name.starts_with("ORLOP_KEEPER_")
        {
            let value = match name {
                "ORLOP_KEEPER_DATA_DIR" => dir.path().join("copy").display().to_string(),
                _ => value.to_owned(),
            };
            command.env(name, value);
        }
    }
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success());
    assert!(said.contains("/etc/orlop/keeper/"), "{said}");
}
