//! How `orlop serve` ends when it is told to.
#![allow(clippy::unwrap_used)] // a test

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

struct Running {
    child: Child,
    address: String,
    log: PathBuf,
    data: PathBuf,
}

impl Running {
    /// Starts it; each sync takes so much longer, and so does the end.
    fn start(dir: &Path, sync_delay: &str) -> Running {
        let (log, data) = (dir.join("log"), dir.join("data"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["serve", "--listen-client-urls=http://127.0.0.1:0"])
            .arg("--advertise-client-urls=http://127.0.0.1:2379")
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--fault-sync-delay={sync_delay}"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let (mut address, mut line) = (None, String::new());
        // To the last line of its greeting: it would not like a closed pipe.
        while !line.trim().starts_with("stop") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "no greeting");
            let url = line.trim().strip_prefix("listening");
            let url = url.and_then(|url| url.trim().strip_prefix("http://"));
            address = address.or(url.map(str::to_owned));
        }
        Running {
            child,
            address: address.unwrap(),
            log,
            data,
        }
    }

    /// Sends signals, one right after the other.
    fn signal(&self, names: &[&str]) {
        let script: Vec<String> = names
            .iter()
            .map(|name| format!("kill -{name} {}", self.child.id()))
            .collect();
        let script = script.join(" && ");
        let sent = Command::new("sh").arg("-c").arg(script).status();
        assert!(sent.unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What `orlop check` says.
    fn check(&self) -> String {
        let mut check = Command::new(env!("CARGO_BIN_EXE_orlop"));
        let output = check.arg("check").arg(&self.data).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn signals_at_once_are_one_and_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), "100ms");
    running.signal(&["INT", "TERM", "INT"]);
    let status = running.ended();
    assert_eq!(status.code(), Some(0), "{}", running.log());
    let found = running.check();
    assert!(found.contains("the last process closed the log"), "{found}");
}

#[test]
fn a_hangup_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), "0s");
    running.signal(&["HUP"]);
    let begun = Instant::now();
    while !running.log().contains("received SIGHUP") {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{}",
            running.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    TcpStream::connect(&running.address).unwrap();
    running.signal(&["TERM", "HUP"]);
    assert_eq!(running.ended().code(), Some(0), "{}", running.log());
    let found = running.check();
    assert!(found.contains("the last process closed the log"), "{found}");
}

#[test]
fn a_later_signal_does_not_wait_for_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), "400ms");
    // A client that does not answer keeps the end waiting for a while.
    let mut client = TcpStream::connect(&running.address).unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    client.read_exact(&mut [0; 9]).unwrap();
    running.signal(&["TERM"]);
    std::thread::sleep(Duration::from_millis(1300));
    running.signal(&["TERM"]);
    let status = running.ended();
    assert_eq!(status.code(), Some(1), "{}", running.log());
    assert!(running.log().contains("received another signal"));
    let found = running.check();
    assert!(found.contains("did not close the log"), "{found}");
}
