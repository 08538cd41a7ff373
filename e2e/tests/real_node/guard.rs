//! A node leaves nothing on the machine, also when the process that asked for it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure};
use e2e::node::guard::{Guard, first_processes};
use e2e::node::host::{self, Traces, pid_namespace, processes_in};
use e2e::node::prepare;

use crate::{GUARD, ONE_AT_A_TIME};

/// How long the node may take to work, and the guard to clean up.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_killed_test_leaves_nothing() {
    let _turn = ONE_AT_A_TIME.blocking_lock();
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let result = killed(&dir.path().join("of-the-killed"));
    conclude(dir, result);
}

fn killed(dir: &Path) -> Result<()> {
    host::check()?;
    let before = Traces::read()?;
    prepare(dir, &["first"])?;
    // It stands for a test: it holds the pipe, and knows nothing of nodes.
    let mut parent = Command::new("sleep")
        .arg("600")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut command = Guard::command(Path::new(GUARD), dir, &["first"]);
    if let Some(pipe) = parent.stdout.take() {
        command.stdin(Stdio::from(pipe));
    }
    let mut guard = command.spawn()?;
    // The command holds a copy of the pipe.
    drop(command);
    let changed = change(guard.stdout.take());
    // Whatever came of it, the machine is put back before another test looks at it.
    parent.kill()?;
    parent.wait()?;
    wait_for(&mut guard)?;

    let left = processes_in(&changed?);
    ensure(left.is_empty(), || format!("processes are left: {left:?}"))?;
    ensure(!dir.exists(), || {
        format!("{} is still there", dir.display())
    })?;
    before.compare()
}

/// Waits until the node works, and does what a kubelet does to the machine; the node's
/// namespace.
fn change(out: Option<ChildStdout>) -> Result<PathBuf> {
    let ids = first_processes(out)?;
    let namespace = pid_namespace(ids[0])?;
    let began = Instant::now();
    while !processes_in(&namespace).contains(&"containerd".to_owned()) {
        ensure(began.elapsed() < LIMIT, || {
            "the node has no runtime".to_owned()
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
    for (parameter, value) in [("kernel/panic", "10"), ("vm/overcommit_memory", "1")] {
        fs::write(Path::new("/proc/sys").join(parameter), value)?;
    }
    Ok(namespace)
}

fn wait_for(guard: &mut Child) -> Result<()> {
    let began = Instant::now();
    loop {
        if let Some(status) = guard.try_wait()? {
            println!(
                "the guard was done {:.1} s after the kill",
                began.elapsed().as_secs_f64()
            );
            return ensure(status.success(), || {
                format!("the guard ended with {status}")
            });
        }
        ensure(began.elapsed() < LIMIT, || {
            "the guard does not end".to_owned()
        })?;
        std::thread::sleep(Duration::from_millis(50));
    }
}
