//! A server in a process of its own.
#![allow(dead_code)] // not every test uses all of it

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// It is killed when dropped.
pub(crate) struct Running {
    child: Child,
    /// Where clients are served.
    pub(crate) address: String,
    log: PathBuf,
    data: PathBuf,
}

impl Running {
    /// Starts it with flags of the test's own. A debug build panics where the test puts a
    /// file into `DIR/panics` that is named like the place.
    pub(crate) fn start(dir: &Path, flags: &[&str]) -> Running {
        let (log, data) = (dir.join("log"), dir.join("data"));
        let mut child = command(dir)
            .args(flags)
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

    /// Starts one that is to fail before it serves; how it ended, and its log.
    pub(crate) fn fails_to_start(dir: &Path, flags: &[&str]) -> (ExitStatus, String) {
        let output = command(dir).args(flags).output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    /// Sends signals, one right after the other.
    pub(crate) fn signal(&self, names: &[&str]) {
        let script: Vec<String> = names
            .iter()
            .map(|name| format!("kill -{name} {}", self.child.id()))
            .collect();
        let script = script.join(" && ");
        let sent = Command::new("sh").arg("-c").arg(script).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What `orlop check` says.
    pub(crate) fn check(&self) -> String {
        let mut check = Command::new(env!("CARGO_BIN_EXE_orlop"));
        let output = check.arg("check").arg(&self.data).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command
        .env("ORLOP_FAULT_PANIC", dir.join("panics"))
        .args(["serve", "--listen-client-urls=http://127.0.0.1:0"])
        .arg("--advertise-client-urls=http://127.0.0.1:2379")
        .arg(format!("--data-dir={}", dir.join("data").display()));
    command
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
