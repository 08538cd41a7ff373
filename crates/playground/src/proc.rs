//! Child processes that end with their owner, and ports for them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Result, fail};

/// Lines of a log shown with a failure.
const LOG_TAIL_LINES: usize = 40;

/// Process group of everything that is started; 0: the one of this process.
static GROUP: AtomicI32 = AtomicI32::new(0);

/// Makes every process that is started from now on join the group that `leader` leads; 0:
/// no group but this process's own.
pub(crate) fn set_group(leader: u32) {
    GROUP.store(i32::try_from(leader).unwrap_or(0), Ordering::SeqCst);
}

/// Makes `command`'s process join the group, if there is one.
pub fn join_group(command: &mut Command) {
    match GROUP.load(Ordering::SeqCst) {
        0 => {}
        group => {
            command.process_group(group);
        }
    }
}

/// A running program whose output goes to a file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command`, appending its output to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// If the log cannot be opened or the program not be started.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn(name, dir, command)
    }

    /// As [`Process::start`], with a pipe for the program's standard input.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_interactive(
        name: &str,
        dir: &Path,
        command: &mut Command,
    ) -> Result<(Self, ChildStdin)> {
        command.stdin(Stdio::piped());
        let mut process = Self::spawn(name, dir, command)?;
        match process.child.stdin.take() {
            Some(stdin) => Ok((process, stdin)),
            None => fail(format!("{name} has no standard input")),
        }
    }

    fn spawn(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        join_group(command);
        match command.spawn() {
            Ok(child) => Ok(Self {
                name: name.to_owned(),
                log,
                child,
            }),
            Err(error) => fail(format!("cannot start {command:?}: {error}")),
        }
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with all output so far.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails, with the end of its log, if the program has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => fail(format!(
                "{} ended: {status}; its log ends:\n{}",
                self.name,
                self.tail()
            )),
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it does not end within `timeout`; it is killed then.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > timeout {
                self.kill();
                return fail(format!(
                    "{} did not end within {} s of SIGTERM; its log ends:\n{}",
                    self.name,
                    timeout.as_secs(),
                    self.tail()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGKILL and waits for the end, which cannot fail to come.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(send(self.child.id(), signal)?)
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn send(id: u32, signal: Signal) -> std::io::Result<()> {
    match i32::try_from(id).ok().and_then(Pid::from_raw) {
        Some(pid) => Ok(kill_process(pid, signal)?),
        None => Ok(()),
    }
}

/// Runs `command` to its end with `input` on its standard input, and returns what it left.
///
/// # Errors
/// If it cannot be run, or does not end within `timeout`; it is killed then.
pub fn output(command: &mut Command, input: &str, timeout: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is no failure of ours.
        let _ = stdin.write_all(input.as_bytes());
    }
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(timeout) {
        Ok(output) => Ok(output?),
        Err(_) => {
            let _ = send(id, Signal::KILL);
            fail(format!(
                "{command:?} does not end within {} s",
                timeout.as_secs()
            ))
        }
    }
}

/// The last lines of the file at `log`.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Ports handed out by this process, so that it gives none twice.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback port that nobody listens on. It lies below the range the kernel
/// takes outgoing ports from, so that it stays free while a server restarts.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = std::process::id().wrapping_mul(37) as u16;
    for step in 0..8000u16 {
        let port = 20_000 + (seed.wrapping_add(step.wrapping_mul(7))) % 10_000;
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    fail("no free loopback port between 20000 and 29999")
}
