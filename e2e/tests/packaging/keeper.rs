//! The keeper's unit: systemd takes it, and it is as closed as the others.

use std::process::Command;

use e2e::kube::store::Kind;

use crate::unit::{EXPOSURE_TENTHS, settings, values};
use crate::{repo, run};

const UNIT: &str = "packaging/systemd/orlop-keeper.service";
const SETTINGS: &str = "packaging/systemd/keeper.env";

#[test]
fn systemd_takes_the_keepers_unit() {
    let dir = tempfile::tempdir().unwrap();
    let program = Kind::Orlop.program().unwrap();
    let text = std::fs::read_to_string(repo(UNIT)).unwrap();
    let text = text.replace("/usr/local/bin/orlop", &program.display().to_string());
    let file = dir.path().join("orlop-keeper.service");
    std::fs::write(&file, text).unwrap();
    let verify = || run(Command::new("systemd-analyze").arg("verify").arg(&file)).unwrap();
    assert_eq!(verify(), "");
    let threshold = format!("--threshold={EXPOSURE_TENTHS}");
    let security = ["security", "--no-pager", "--offline=true", &threshold];
    run(Command::new("systemd-analyze").args(security).arg(&file)).unwrap();
    let drop_in = dir.path().join("orlop-keeper.service.d");
    std::fs::create_dir(&drop_in).unwrap();
    let tls = repo("packaging/systemd/keeper-tls.conf");
    std::fs::copy(tls, drop_in.join("tls.conf")).unwrap();
    assert_eq!(verify(), "");
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
