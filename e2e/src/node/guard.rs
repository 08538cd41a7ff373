//! The process that makes nodes, waits for the end of its parent, and puts the machine back.
//!
//! A parent that fails or is killed cannot clean up. The guard holds the reading end of a pipe
//! from it: when the pipe closes, however that came, it ends the nodes and puts back what they
//! changed. It leads a process group of its own, so that what ends a test's group from the
//! keyboard does not end it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::host::{Hierarchies, Parameters};
use crate::kube::proc::run as run_command;
use crate::kube::{Result, ensure, fail};

/// Held while a machine has nodes: what they change cannot be saved twice. The directory is
/// there on each machine that can run them.
const LOCKED: &str = "/usr/lib/cni";
/// How long one session waits for another one's end.
const LOCK_LIMIT: Duration = Duration::from_secs(1200);
/// How long a node's first process may take to appear.
const START_LIMIT: Duration = Duration::from_secs(10);
/// What the parent says when it ends in order.
const FAREWELL: &str = "end\n";

/// How the parent of a guard ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It said so. Its logs are its own.
    Asked,
    /// It was killed. Nobody else removes what it left.
    Lost,
}

impl End {
    fn of(mut parent: impl Read) -> Self {
        let mut said = String::new();
        match parent.read_to_string(&mut said) {
            Ok(_) if said == FAREWELL => Self::Asked,
            _ => Self::Lost,
        }
    }
}

/// A guard, as its parent sees it.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
    first_processes: Vec<u32>,
}

impl Guard {
    /// The command of a guard for nodes called `names` with their files in `dir`. `program` is
    /// `node-guard`. Whoever starts it gives it a pipe, and reads a process id for each node.
    #[must_use]
    pub fn command(program: &Path, dir: &Path, names: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg(dir).args(names).process_group(0);
        command.stdout(Stdio::piped());
        command
    }

    /// Starts one and waits until the nodes' first processes run.
    ///
    /// # Errors
    /// If that fails; its standard error says why.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let mut guard = Self {
            pipe: child.stdin.take(),
            first_processes: Vec::new(),
            child,
        };
        let out = guard.child.stdout.take();
        guard.first_processes = first_processes(out)?;
        Ok(guard)
    }

    /// The nodes' first processes, as this namespace numbers them.
    #[must_use]
    pub fn first_processes(&self) -> &[u32] {
        &self.first_processes
    }

    /// Ends the nodes and puts the machine back.
    ///
    /// # Errors
    /// If something could not be put back; the guard's standard error says what.
    pub fn end(mut self) -> Result<()> {
        self.close()
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut pipe) = self.pipe.take() else {
            return Ok(());
        };
        pipe.write_all(FAREWELL.as_bytes())?;
        drop(pipe);
        let status = self.child.wait()?;
        ensure(status.success(), || format!("the node's guard: {status}"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// What a guard prints: a process id a line, one for each node.
///
/// # Errors
/// If it prints something else or nothing.
pub fn first_processes(out: Option<ChildStdout>) -> Result<Vec<u32>> {
    let Some(out) = out else {
        return fail("the guard has no output");
    };
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let ids: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
    ensure(!ids.is_empty(), || {
        "the node's guard made no node; see its errors above".to_owned()
    })?;
    Ok(ids)
}

/// The guard's own life; `arguments` are the directory and the names.
///
/// # Errors
/// If a node cannot be made, or something not be put back.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut arguments = arguments.map(PathBuf::from);
    let Some(dir) = arguments.next() else {
        return fail("usage: node-guard DIR NAME...");
    };
    let names: Vec<String> = arguments.map(|name| name.display().to_string()).collect();
    let _lock = lock()?;
    let mut session = Session {
        hierarchies: Hierarchies::read()?,
        parameters: Parameters::read(),
        nodes: Vec::new(),
        first_processes: Vec::new(),
        dir,
    };
    let made = session.make(&names).map(|()| {
        let ids: Vec<String> = session.first_processes.iter().map(u32::to_string).collect();
        println!("{}", ids.join(" "));
    });
    let end = match made {
        Ok(()) => End::of(std::io::stdin().lock()),
        Err(_) => End::Asked,
    };
    let put_back = session.put_back(&names);
    if end == End::Lost {
        fs::remove_dir_all(&session.dir)?;
    }
    made.and(put_back)
}

fn lock() -> Result<File> {
    let file = File::open(LOCKED)?;
    let began = Instant::now();
    while file.try_lock().is_err() {
        ensure(began.elapsed() < LOCK_LIMIT, || {
            format!("another run has nodes on this machine ({LOCKED} is locked)")
        })?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(file)
}

/// Nodes, and what the machine was before.
struct Session {
    hierarchies: Hierarchies,
    parameters: Parameters,
    /// Each node's `unshare`, which ends after its child.
    nodes: Vec<Child>,
    /// Their children: the nodes' first processes.
    first_processes: Vec<u32>,
    dir: PathBuf,
}

impl Session {
    fn make(&mut self, names: &[String]) -> Result<()> {
        // Left by a guard that was killed.
        self.hierarchies.remove_groups()?;
        for (number, name) in (1..).zip(names) {
            self.hierarchies.make(name)?;
            let child = Command::new("unshare")
                .args(["--net", "--mount", "--uts", "--pid", "--fork"])
                .args(["--mount-proc", "--kill-child", "--"])
                .arg(self.dir.join(name).join("init.sh"))
                .args([&self.dir.join(name), &self.dir])
                .args([name, &super::address(number), &super::pods(number)])
                .env("PATH", super::path(&self.dir.join(name)))
                .stdin(Stdio::null())
                .stdout(File::create(self.dir.join(format!("{name}-init.log")))?)
                .stderr(File::create(self.dir.join(format!("{name}-init.err.log")))?)
                .spawn()?;
            let outer = child.id();
            self.nodes.push(child);
            self.first_processes.push(first_child(outer)?);
        }
        let ids = &self.first_processes;
        // All are on a bridge in the first one's network, and none on the machine's.
        let first = ids.first().copied().unwrap_or_default();
        ip(first, "link add lan type bridge")?;
        ip(first, "link set lan up")?;
        for (number, id) in (1..).zip(ids) {
            ip(
                first,
                &format!("link add lan-{number} type veth peer name eth0 netns {id}"),
            )?;
            ip(first, &format!("link set lan-{number} master lan up"))?;
            ip(*id, "link set lo up")?;
            ip(
                *id,
                &format!("addr add {}/24 dev eth0", super::address(number)),
            )?;
            ip(*id, "link set eth0 up")?;
            ip(*id, "route add default via 172.30.0.254")?;
        }
        Ok(())
    }

    /// Ends the nodes and puts the machine back; all of it, whatever fails.
    fn put_back(&mut self, names: &[String]) -> Result<()> {
        let mut failed = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                failed.push(error.to_string());
            }
        };
        // With a first process ends all of its namespace, and then `unshare`. One whose first
        // process was never seen is killed itself, and takes it along.
        for id in &self.first_processes {
            note(kill(*id));
        }
        for node in self.nodes.iter_mut().skip(self.first_processes.len()) {
            note(node.kill().map_err(Into::into));
        }
        for node in &mut self.nodes {
            note(node.wait().map(drop).map_err(Into::into));
        }
        note(self.hierarchies.remove_groups());
        note(self.parameters.put_back());
        for name in names {
            let dir = self.dir.join(name);
            if dir.exists() {
                note(remove(&dir));
            }
        }
        ensure(failed.is_empty(), || failed.join("; "))
    }
}

/// Kills process `id`; one that has ended is no failure.
fn kill(id: u32) -> Result<()> {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// Removes a node's directory. Its mounts may be held for a moment after its last process.
fn remove(dir: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > START_LIMIT => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The only child of process `id`, once it is there.
fn first_child(id: u32) -> Result<u32> {
    let began = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        if let Some(Ok(child)) = children.split_whitespace().next().map(str::parse) {
            return Ok(child);
        }
        ensure(began.elapsed() < START_LIMIT, || {
            "unshare makes no namespaces; see the node's init.err.log".to_owned()
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `ip` in the network of process `id`.
fn ip(id: u32, arguments: &str) -> Result<()> {
    run_command(
        Command::new("nsenter")
            .arg(format!("--target={id}"))
            .args(["--net", "--", "ip"])
            .args(arguments.split(' ')),
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::End;

    #[test]
    fn only_a_whole_farewell_is_an_end_in_order() {
        assert_eq!(End::of(&b"end\n"[..]), End::Asked);
        assert_eq!(End::of(&b"end"[..]), End::Lost);
        assert_eq!(End::of(&b""[..]), End::Lost);
    }
}
