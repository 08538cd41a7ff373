//! A small process that ends what a killed parent left.
//!
//! A parent that ends in order stops its children itself. One that is killed cannot; its
//! children would run on, and its temporary directory would stay. The guard is this same
//! program, started first. It holds the reading end of a pipe from the parent and leads a
//! process group of its own that all children join. When the pipe closes it asks what is
//! left in the group to end, kills what does not, and removes the directories that it was
//! told of.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process};

use crate::Result;

/// Behind each path on the pipe.
const END: u8 = 0;
/// How long processes may take to end by themselves: a store then removes what it has outside
/// of its directory.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// How long all of them may take to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The guard of this process, as its parent sees it. Dropped, it finds nothing to do and
/// ends.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts `command`, a program that calls [`run`], and makes every process that this
    /// one starts from now on join its group.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        crate::proc::set_group(child.id());
        Ok(Self {
            pipe: child.stdin.take(),
            child,
        })
    }

    /// Has `dir` removed when this process ends, however it ends.
    ///
    /// # Errors
    /// If the guard is gone.
    pub fn remove_at_end(&mut self, dir: &Path) -> Result<()> {
        if let Some(pipe) = &mut self.pipe {
            // No path holds this byte.
            pipe.write_all(dir.as_os_str().as_bytes())?;
            pipe.write_all(&[END])?;
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        crate::proc::set_group(0);
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The guard's own life: waits for the end of standard input, then cleans up.
pub fn run() {
    let dirs = directories(std::io::stdin().lock());
    let began = Instant::now();
    let send = |to: &[Pid], signal| {
        for pid in to {
            let _ = kill_process(*pid, signal);
        }
    };
    let mut left = members();
    send(&left, Signal::TERM);
    while !left.is_empty() && began.elapsed() < KILL_LIMIT {
        if began.elapsed() > TERM_LIMIT {
            send(&left, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
        left = members();
    }
    for dir in dirs {
        let _ = fs::remove_dir_all(dir);
    }
}

/// The directories that the parent names until it ends. One whose end is missing is none: it may
/// be the beginning of another's path.
fn directories(mut from: impl BufRead) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    loop {
        let mut path = Vec::new();
        match from.read_until(END, &mut path) {
            Ok(_) if path.pop() == Some(END) => dirs.push(PathBuf::from(OsString::from_vec(path))),
            _ => return dirs,
        }
    }
}

/// Processes of this one's group, itself and the dead excepted.
fn members() -> Vec<Pid> {
    let (group, me) = (getpgrp(), getpid());
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != me && group_of(*pid) == Some(group))
        .collect()
}

fn group_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The command's name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok().and_then(Pid::from_raw);
    if state == "Z" { None } else { group }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_path_is_one_whatever_is_in_it() {
        let found = directories(&b"/tmp/a\n/home\0/tmp/\xff\0/tm"[..]);
        let expected = [&b"/tmp/a\n/home"[..], b"/tmp/\xff"];
        assert_eq!(
            found,
            expected.map(|path| Path::new(OsStr::from_bytes(path)))
        );
    }

    #[test]
    fn this_process_is_in_a_group() {
        assert_eq!(group_of(getpid()), Some(getpgrp()));
    }
}
