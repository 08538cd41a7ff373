//! Running the released etcdctl.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::proc::output;
use crate::store::Tls;
use crate::{Result, binaries, ensure};

/// Longest run of one command, except those that are made to run on.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// etcdctl with an endpoint and, perhaps, certificates.
#[derive(Debug, Clone)]
pub struct Etcdctl {
    program: PathBuf,
    flags: Vec<String>,
}

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Etcdctl {
    /// etcdctl for the server at `url`.
    ///
    /// # Errors
    /// If etcdctl is not built.
    pub fn new(url: &str, tls: Option<&Tls>) -> Result<Self> {
        Ok(Self::with(binaries("etcd")?.join("etcdctl"), url, tls))
    }

    /// `program`, an etcdctl, for the server at `url`.
    #[must_use]
    pub fn with(program: PathBuf, url: &str, tls: Option<&Tls>) -> Self {
        Self {
            program,
            flags: flags(url, tls),
        }
    }

    /// The command, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.flags)
            .args(args)
            .env_remove("ETCDCTL_ENDPOINTS");
        command
    }

    /// Runs it with `input` on standard input, to its end.
    ///
    /// # Errors
    /// If it cannot be run or does not end in time. A failing exit code is an
    /// answer like another.
    pub fn run_with<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Result<Answer> {
        let output = output(&mut self.command(args), input, COMMAND_TIMEOUT)?;
        Ok(Answer::of(&output))
    }

    /// Runs it to its end, with nothing on standard input.
    ///
    /// # Errors
    /// As [`Etcdctl::run_with`].
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Answer> {
        self.run_with(args, "")
    }

    /// Runs it and returns what it printed; it must succeed.
    ///
    /// # Errors
    /// If its exit code is not 0.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let answer = self.run(args)?;
        ensure(answer.code == 0, || {
            let args: Vec<_> = args
                .iter()
                .map(|arg| arg.as_ref().to_string_lossy())
                .collect();
            format!(
                "etcdctl {}: exit code {}: {}",
                args.join(" "),
                answer.code,
                answer.err
            )
        })?;
        Ok(answer.out)
    }

    /// Starts a command that runs on (`watch`, `lock`, `elect`), its output going
    /// to a file in `dir`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn background<S: AsRef<OsStr>>(
        &self,
        name: &str,
        dir: &Path,
        args: &[S],
    ) -> Result<crate::proc::Process> {
        crate::proc::Process::start(name, dir, &mut self.command(args))
    }

    /// The keys below `prefix` and their modification revisions, at `revision` (0:
    /// now).
    ///
    /// # Errors
    /// If etcdctl fails.
    pub fn keys(&self, prefix: &str, revision: i64) -> Result<BTreeMap<String, i64>> {
        let rev = format!("--rev={revision}");
        let out = self.ok(&[
            "get",
            prefix,
            "--prefix",
            "--keys-only",
            "--write-out=fields",
            &rev,
        ])?;
        let mut keys = BTreeMap::new();
        let mut key = String::new();
        for line in out.lines() {
            if let Some(name) = line.strip_prefix("\"Key\" : ") {
                key = name.trim_matches('"').to_owned();
            } else if let Some(found) = line.strip_prefix("\"ModRevision\" : ") {
                keys.insert(std::mem::take(&mut key), found.parse().unwrap_or(-1));
            }
        }
        Ok(keys)
    }
}

/// What etcdctl has to be told to reach the server at `url`.
pub(crate) fn flags(url: &str, tls: Option<&Tls>) -> Vec<String> {
    let mut flags = vec![format!("--endpoints={url}")];
    if let Some(tls) = tls {
        flags.push(format!("--cacert={}", tls.ca.display()));
        if let Some(client) = &tls.client {
            flags.push(format!("--cert={}", client.cert.display()));
            flags.push(format!("--key={}", client.key.display()));
        }
    }
    flags
}

/// Waits until `text` is in the file at `path`, and returns all of it.
///
/// # Errors
/// If that does not happen in time.
pub fn wait_for_text(path: &Path, text: &str, timeout: Duration) -> Result<String> {
    let began = Instant::now();
    loop {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        if found.contains(text) {
            return Ok(found);
        }
        ensure(began.elapsed() < timeout, || {
            format!(
                "{text:?} does not appear in {}, which has:\n{found}",
                path.display()
            )
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
}
