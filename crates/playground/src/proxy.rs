//! `orlop proxy` before a cluster's members: another process of this program, as a user runs
//! it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::http::Client;
use crate::proc::{Process, free_port};
use crate::store::{Endpoints, without_own_variables};
use crate::{Result, ensure};

/// How long it may take to find the leader. It asks over the members' delays.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM: it drains.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// A running proxy. Dropped, it is killed.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    port: u16,
    metrics_port: u16,
}

impl Proxy {
    /// Starts the proxy of `program`, an orlop, before `members`, with its log in `dir`, and
    /// waits until it knows a leader.
    ///
    /// # Errors
    /// If this orlop has no proxy, or it does not get ready.
    pub async fn start(program: &Path, members: &Endpoints, dir: &Path) -> Result<Self> {
        check(program)?;
        let (port, metrics_port) = (free_port()?, free_port()?);
        let mut command = Command::new(program);
        without_own_variables(&mut command);
        command
            .arg("proxy")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--endpoints={}", members.urls.join(",")))
            .arg(format!("--metrics-addr=127.0.0.1:{metrics_port}"));
        if let Some(tls) = &members.tls {
            command.arg(format!("--cacert={}", tls.ca.display()));
            if let Some(client) = &tls.client {
                command
                    .arg(format!("--cert={}", client.cert.display()))
                    .arg(format!("--key={}", client.key.display()));
            }
        }
        let mut process = Process::start("proxy", dir, &mut command)?;
        let began = Instant::now();
        let client = Client::plain(metrics_port);
        loop {
            process.check_running()?;
            if matches!(client.page("/readyz").await, Ok((200, _))) {
                break;
            }
            ensure(began.elapsed() < START_TIMEOUT, || {
                format!("the proxy is not ready; its log ends:\n{}", process.tail())
            })?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(Self {
            process,
            port,
            metrics_port,
        })
    }

    /// How a client reaches `members` through it: TLS goes through to them.
    #[must_use]
    pub fn endpoints(&self, members: &Endpoints) -> Endpoints {
        let scheme = match members.tls {
            Some(_) => "https",
            None => "http",
        };
        Endpoints {
            urls: vec![format!("{scheme}://127.0.0.1:{}", self.port)],
            tls: members.tls.clone(),
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Port of its plain HTTP pages.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// Stops it with SIGTERM.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(STOP_TIMEOUT).map(|_| ())
    }
}

/// Fails unless `program` has a proxy.
///
/// # Errors
/// With what is missing.
pub fn check(program: &Path) -> Result<()> {
    let asked = Command::new(program)
        .args(["proxy", "--help"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure(asked.success(), || {
        format!("{} has no `proxy` command", program.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_proxy_is_told() {
        let error = check(Path::new("/bin/false")).unwrap_err();
        assert!(error.to_string().contains("no `proxy` command"), "{error}");
    }
}
