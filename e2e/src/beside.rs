//! Processes beside a server, and commands that are run once: a keeper, a shard, `orlop status`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::kube::http::Client;
use crate::kube::proc::{Process, free_port};
use crate::kube::store::Kind;
use crate::kube::{Result, ensure, fail};

/// How long a process may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs orlop; its output if it succeeds, its errors if not.
///
/// # Errors
/// If it cannot be run.
pub fn orlop(args: &[&str]) -> Result<std::result::Result<String, String>> {
    let done = Command::new(Kind::Orlop.program()?).args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(match done.status.success() {
        true => Ok(text(&done.stdout)),
        false => Err(text(&done.stderr)),
    })
}

/// A subcommand of orlop that follows a server, with what outlives its restarts.
#[derive(Debug)]
pub struct Beside {
    subcommand: &'static str,
    logs: PathBuf,
    port: u16,
    /// The command line before the program, which it ends by running in its own place: `ip netns
    /// exec NAME`.
    pub launcher: Vec<OsString>,
    process: Option<Process>,
}

impl Beside {
    /// One that does not run yet, with its log in `logs`.
    ///
    /// # Errors
    /// If no port is free.
    pub fn new(subcommand: &'static str, logs: &Path) -> Result<Self> {
        Ok(Beside {
            subcommand,
            logs: logs.to_owned(),
            port: free_port()?,
            launcher: Vec::new(),
            process: None,
        })
    }

    /// Starts it, with its pages on a port of its own.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn run(&mut self, args: &[String]) -> Result<()> {
        let mut line = self.launcher.clone();
        line.push(Kind::Orlop.program()?.into());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .arg(self.subcommand)
            .arg(format!("--metrics-addr=127.0.0.1:{}", self.port))
            .args(args);
        self.process = Some(Process::start(self.subcommand, &self.logs, &mut command)?);
        Ok(())
    }

    /// Kills it, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// If it does not run, does not end, or ends badly.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return fail(format!("no {} runs", self.subcommand));
        };
        let status = process.terminate(STOP_TIMEOUT)?;
        ensure(status.success(), || format!("{status}: {}", process.tail()))
    }

    /// The process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// The same, to see whether it has ended.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// The end of what it said.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process().map_or_else(String::new, Process::tail)
    }

    /// One of its pages: the HTTP status and the text.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn page(&self, path: &str) -> Result<(u16, String)> {
        Client::plain(self.port).page(path).await
    }
}
