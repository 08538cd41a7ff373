//! The systemd unit: valid, and its sandbox leaves orlop what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::kube::etcdctl::Etcdctl;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure, fail};

use crate::{repo, run};

/// Longest start of a server with an empty directory, in a debug build under strace.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// The worst exposure that `systemd-analyze security` may find, in tenths (of 100).
pub(crate) const EXPOSURE_TENTHS: u32 = 20;

/// The assignments of a unit, in their order.
pub(crate) fn settings(unit: &str) -> Vec<(&str, &str)> {
    unit.lines()
        .filter(|line| !line.starts_with(['#', '[']))
        .filter_map(|line| line.split_once('='))
        .collect()
}

pub(crate) fn values<'a>(settings: &[(&'a str, &'a str)], name: &str) -> Vec<&'a str> {
    let named = settings.iter().filter(|(n, _)| *n == name);
    named.map(|(_, value)| *value).collect()
}

fn unit() -> Result<String> {
    Ok(std::fs::read_to_string(repo(
        "packaging/systemd/orlop.service",
    ))?)
}

#[test]
fn systemd_takes_the_unit() {
    systemd_takes("orlop.service", "tls.conf").unwrap();
}

/// The verifier finds nothing in a unit of `packaging/systemd`, alone and with its drop-in, and it
/// is as closed as it should be.
pub(crate) fn systemd_takes(unit: &str, drop_in: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let part = |name: &str| repo(&format!("packaging/systemd/{name}"));
    let program = Kind::Orlop.program()?;
    // The verifier wants to see the program.
    let text = std::fs::read_to_string(part(unit))?;
    let text = text.replace("/usr/local/bin/orlop", &program.display().to_string());
    let file = dir.path().join(unit);
    std::fs::write(&file, text)?;
    let verify = || run(Command::new("systemd-analyze").arg("verify").arg(&file));
    assert_eq!(verify()?, "");

    let threshold = format!("--threshold={EXPOSURE_TENTHS}");
    let security = ["security", "--no-pager", "--offline=true", &threshold];
    run(Command::new("systemd-analyze").args(security).arg(&file))?;

    let drop_ins = dir.path().join(format!("{unit}.d"));
    std::fs::create_dir(&drop_ins)?;
    std::fs::copy(part(drop_in), drop_ins.join("tls.conf"))?;
    assert_eq!(verify()?, "");
    Ok(())
}

/// Runs orlop as the unit does, with its environment, and compares each system call with
/// what the unit's sandbox allows.
#[test]
fn the_sandbox_leaves_what_orlop_needs() {
    let dir = tempfile::tempdir().unwrap();
    let result = sandbox(dir.path());
    conclude(dir, result);
}

fn sandbox(dir: &Path) -> Result<()> {
    let unit = unit()?;
    let settings = settings(&unit);
    let (client, metrics) = (free_port()?, free_port()?);
    let local = |value: &str| {
        value
            .replace("127.0.0.1:2379", &format!("127.0.0.1:{client}"))
            .replace("127.0.0.1:2381", &format!("127.0.0.1:{metrics}"))
            .replace("/var/lib/orlop", &dir.join("state").display().to_string())
    };
    let start = values(&settings, "ExecStart");
    ensure(start == ["/usr/local/bin/orlop serve"], || {
        format!("{start:?}")
    })?;
    // Else a killed process would be taken for a power loss: /dev/shm is emptied.
    let kept = ["RuntimeDirectory", "RuntimeDirectoryPreserve", "RemoveIPC"];
    let kept = kept.map(|name| values(&settings, name).concat());
    ensure(kept == ["orlop", "yes", "yes"], || format!("{kept:?}"))?;
    std::fs::create_dir(dir.join("state"))?;
    let file = std::fs::read_to_string(repo("packaging/systemd/orlop.env"))?;
    let file = file.lines().filter(|line| !line.starts_with('#'));
    let environment: Vec<(&str, String)> = values(&settings, "Environment")
        .into_iter()
        .chain(file)
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name, local(value)))
        .collect();

    let service = Service::start(dir, "serve", environment)?;
    let etcdctl = Etcdctl::new(&format!("http://127.0.0.1:{client}"), None)?;
    etcdctl.ok(&["put", "key", "value"])?;
    etcdctl.ok(&["compaction", "2"])?;
    etcdctl.ok(&["defrag"])?;
    etcdctl.ok(&["endpoint", "status"])?;
    ensure(dir.join("state/data/format").is_file(), || {
        "no data where the unit says".into()
    })?;
    let trace = service.stop()?;
    let needed = ["fdatasync", "epoll_wait", "accept4"];
    allowed(&trace, &settings, &needed)
}

/// A subcommand of orlop as a unit of systemd starts it, which hears what it says; strace notes
/// its system calls.
pub(crate) struct Service {
    process: Process,
    manager: UnixDatagram,
    trace: PathBuf,
}

impl Service {
    /// Starts it with nothing but `environment`, and waits until it says that it is ready.
    pub(crate) fn start<N, V>(
        dir: &Path,
        subcommand: &str,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self>
    where
        N: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let (notify, trace) = (dir.join("notify"), dir.join("trace"));
        let manager = UnixDatagram::bind(&notify)?;
        manager.set_read_timeout(Some(READY_TIMEOUT))?;
        let mut command = Command::new("strace");
        command
            // -D: the process is orlop itself, and strace looks on from aside.
            .args(["-D", "-f", "--signal=none", "-o"])
            .arg(&trace)
            .arg(Kind::Orlop.program()?)
            .arg(subcommand)
            .env_clear()
            .envs(environment)
            .env("NOTIFY_SOCKET", &notify);
        let mut service = Service {
            process: Process::start("orlop", dir, &mut command)?,
            manager,
            trace,
        };
        service.hear("READY=1")?;
        Ok(service)
    }

    fn hear(&mut self, expected: &str) -> Result<()> {
        let mut said = [0; 64];
        let Ok(len) = self.manager.recv(&mut said) else {
            let tail = self.process.tail();
            return fail(format!("no {expected}; the log ends:\n{tail}"));
        };
        let said = String::from_utf8_lossy(&said[..len]).into_owned();
        ensure(said == expected, || said)
    }

    /// Ends it as systemd does; what strace noted.
    pub(crate) fn stop(mut self) -> Result<String> {
        let status = self.process.terminate(READY_TIMEOUT)?;
        ensure(status.success(), || format!("{status}"))?;
        self.hear("STOPPING=1")?;
        whole(&self.trace, self.process.id())
    }
}

/// The trace, once it tells of the end of the process.
fn whole(trace: &Path, id: u32) -> Result<String> {
    let ends = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.starts_with(&[&id.to_string(), "+++", "exited"])
    };
    for _ in 0..500 {
        let text = std::fs::read_to_string(trace)?;
        if text.lines().any(ends) {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    fail(format!("{} does not end", trace.display()))
}

/// Compares a trace with the unit's SystemCallFilter, RestrictAddressFamilies and
/// MemoryDenyWriteExecute. It must have the calls of `needed`: else it is the trace of nothing.
pub(crate) fn allowed(trace: &str, settings: &[(&str, &str)], needed: &[&str]) -> Result<()> {
    let listed = run(Command::new("systemd-analyze").args(["--no-pager", "syscall-filter"]))?;
    let sets = call_sets(&listed);
    let mut calls = BTreeSet::new();
    for filter in values(settings, "SystemCallFilter") {
        match filter.strip_prefix('~') {
            None => add(&sets, filter, &mut calls),
            Some(denied) => {
                let mut out = BTreeSet::new();
                add(&sets, denied, &mut out);
                calls.retain(|call| !out.contains(call));
            }
        }
    }
    ensure(calls.len() > 100, || format!("{calls:?}"))?;
    let families: Vec<_> = values(settings, "RestrictAddressFamilies")
        .into_iter()
        .flat_map(str::split_whitespace)
        .collect();
    let mut seen = BTreeSet::new();
    let mut executed = false;
    for line in trace.lines() {
        // `PID call(ARGUMENTS) = RESULT`; or `PID <... call resumed>`, `PID +++ exited`.
        let Some((_, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if call.contains([' ', '<', '+']) {
            continue;
        }
        // systemd's own call starts the program.
        if call == "execve" && !executed {
            executed = true;
            continue;
        }
        ensure(calls.contains(call), || {
            format!("the unit does not allow {call}: {line}")
        })?;
        if call == "socket" {
            let family = arguments.split(',').next().unwrap_or_default();
            ensure(families.contains(&family), || {
                format!("the unit does not allow {family}: {line}")
            })?;
        }
        if call == "mmap" || call == "mprotect" {
            let both = arguments.contains("PROT_WRITE") && arguments.contains("PROT_EXEC");
            ensure(!both, || {
                format!("memory that is written and executed: {line}")
            })?;
        }
        seen.insert(call);
    }
    for call in needed {
        ensure(seen.contains(call), || format!("no {call} in {seen:?}"))?;
    }
    Ok(())
}

/// `systemd-analyze syscall-filter`: a set's name, then its members, indented.
fn call_sets(listed: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sets = BTreeMap::new();
    let mut current = "";
    for line in listed.lines() {
        match line.strip_prefix("    ") {
            Some(member) if !member.starts_with('#') => {
                sets.entry(current).or_insert_with(Vec::new).push(member);
            }
            None if line.starts_with('@') => current = line,
            _ => {}
        }
    }
    sets
}

/// Adds the calls of `names`, sets within sets included.
fn add<'a>(sets: &BTreeMap<&str, Vec<&'a str>>, names: &'a str, to: &mut BTreeSet<&'a str>) {
    for name in names.split_whitespace() {
        match sets.get(name) {
            Some(members) => members.iter().for_each(|member| add(sets, member, to)),
            None => {
                to.insert(name);
            }
        }
    }
}
