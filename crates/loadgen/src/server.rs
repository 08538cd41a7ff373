//! Servers that a comparison starts, and certainly stops.

use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::rpc::{Call, Connection};
use etcd_api::etcdserverpb::{StatusRequest, StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::LocalSet;

const START_LIMIT: Duration = Duration::from_secs(30);
const STATUS_LIMIT: Duration = Duration::from_secs(5);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A free port may be taken before the server binds it; then another is tried.
const START_TRIES: usize = 3;
/// Of a log, in an error.
const LAST_WORDS_LINES: usize = 5;

/// A server to start: one that takes etcd's flags.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name in reports.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// What comes before etcd's flags (`serve`).
    pub before: Vec<String>,
    /// What comes after them.
    pub after: Vec<String>,
}

/// A running server with its data in a directory of its own. Dropped, it is killed and its
/// data is gone.
pub(crate) struct Server {
    child: Child,
    /// Host and port of its client API.
    pub(crate) authority: String,
    /// As its status says.
    pub(crate) version: String,
    _dir: TempDir,
}

impl Server {
    /// Starts `program` with its data in a new directory in `dir`, and waits until it serves.
    pub(crate) fn start(
        program: &Program,
        dir: &Path,
        interrupt: &Interrupt,
    ) -> Result<Server, Error> {
        let mut tries = 1;
        loop {
            match Server::try_start(program, dir, interrupt) {
                Err(Error::Start { reason, .. })
                    if tries < START_TRIES && reason.contains("address already in use") =>
                {
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    fn try_start(program: &Program, dir: &Path, interrupt: &Interrupt) -> Result<Server, Error> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("bench-{}-", program.name))
            .tempdir_in(dir)
            .map_err(Error::file(dir))?;
        let log_path = dir.path().join("log");
        let log = File::create(&log_path).map_err(Error::file(&log_path))?;
        let log_too = log.try_clone().map_err(Error::file(&log_path))?;
        let authority = format!("127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let mut command = Command::new(&program.path);
        playground::store::without_own_variables(&mut command);
        let client = format!("http://{authority}");
        let child = command
            .args(&program.before)
            .arg("--name=bench")
            .arg(format!("--data-dir={}", dir.path().join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=bench={peer}"))
            .arg("--log-level=warn")
            .args(&program.after)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(Error::file(&program.path))?;
        let mut server = Server {
            child,
            authority,
            version: String::new(),
            _dir: dir,
        };
        let mut version = None;
        let mut gone = false;
        interrupt.wait(START_LIMIT, || {
            gone = matches!(server.child.try_wait(), Ok(Some(_)) | Err(_));
            version = if gone {
                None
            } else {
                version_of(&server.authority)
            };
            gone || version.is_some()
        })?;
        match version {
            Some(version) => server.version = version,
            None => {
                let seconds = START_LIMIT.as_secs();
                let how = if gone {
                    "it ended at once".to_owned()
                } else {
                    format!("it does not answer after {seconds} s")
                };
                return Err(Error::Start {
                    program: program.path.display().to_string(),
                    reason: format!("{how}: {}", last_words(&log_path)),
                });
            }
        }
        Ok(server)
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < STOP_LIMIT {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The version that the server at `authority` claims; none while it does not answer.
pub(crate) fn version_of(authority: &str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    LocalSet::new().block_on(&runtime, async {
        let asking = async {
            let connection = Connection::open(authority).await.ok()?;
            connection
                .unary::<StatusResponse>(Call::Status, &StatusRequest::default())
                .await
                .ok()
        };
        let status = tokio::time::timeout(STATUS_LIMIT, asking).await.ok()??;
        // etcd answers before it can write.
        (status.leader != 0).then_some(status.version)
    })
}

fn free_port() -> Result<u16, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(Error::system("finding a free port"))
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            name: "broken".into(),
            path: "/bin/sh".into(),
            before: vec!["-c".into(), "echo no luck today >&2; exit 3".into()],
            after: Vec::new(),
        };
        let error = Server::start(&program, dir.path(), &Interrupt::default())
            .err()
            .unwrap();
        assert!(error.to_string().contains("no luck today"), "{error}");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "its directory is still there"
        );
    }

    #[test]
    fn an_interrupt_ends_the_wait_and_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            name: "silent".into(),
            path: "/bin/sh".into(),
            before: vec!["-c".into(), "exec sleep 60".into()],
            after: Vec::new(),
        };
        let interrupt = Interrupt::default();
        let raised = interrupt.clone();
        let start = Instant::now();
        let raiser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            raised.raise();
        });
        let error = Server::start(&program, dir.path(), &interrupt)
            .err()
            .unwrap();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        raiser.join().unwrap();
    }
}
