//! What `orlop forecast generate` does to real members: loads, slow syncs, and processors that
//! are shared out.

use forecast::experiment::Load;
use playground::Result;
use playground::proc::Process;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Version 1 of control groups: the controller of processors.
const CGROUP_V1: &str = "/sys/fs/cgroup/cpu";
/// Version 2.
const CGROUP_V2: &str = "/sys/fs/cgroup";
/// How long a tool may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Control groups, one for each member and one for the load, with equal weights: without them
/// the overload of one member takes the processor from all. Dropped, they are removed; what
/// still is in them goes back to where it was from.
pub(crate) struct Cgroups {
    root: PathBuf,
    parent: PathBuf,
    groups: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes their parent, in whichever version there is; or says why there is none.
    pub(crate) fn new() -> std::result::Result<Self, String> {
        let name = format!("orlop-forecast-{}", std::process::id());
        let v1 = Path::new(CGROUP_V1);
        let root = match v1.join("cpu.shares").exists() {
            true => v1,
            false => Path::new(CGROUP_V2),
        };
        let told = |error: std::io::Error| format!("{}: {error}", root.display());
        let v2 = root == Path::new(CGROUP_V2);
        if v2 {
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).map_err(told)?;
            if !controllers.split_whitespace().any(|name| name == "cpu") {
                return Err(format!("{}: no controller of processors", root.display()));
            }
            fs::write(root.join("cgroup.subtree_control"), "+cpu").map_err(told)?;
        }
        let parent = root.join(name);
        fs::create_dir(&parent).map_err(told)?;
        let made = Cgroups {
            root: root.to_owned(),
            parent: parent.clone(),
            groups: Vec::new(),
        };
        if v2 {
            fs::write(parent.join("cgroup.subtree_control"), "+cpu").map_err(told)?;
        }
        Ok(made)
    }

    /// Puts a process, with all that it starts from now on, into the group `name`.
    pub(crate) fn put(&mut self, name: &str, pid: u32) -> std::io::Result<()> {
        let group = self.parent.join(name);
        if !self.groups.contains(&group) {
            fs::create_dir(&group)?;
            self.groups.push(group.clone());
        }
        fs::write(group.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in &self.groups {
            let left = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines() {
                // It may have ended meanwhile.
                let _ = fs::write(self.root.join("cgroup.procs"), pid);
            }
            let _ = fs::remove_dir(group);
        }
        if let Err(error) = fs::remove_dir(&self.parent) {
            tracing::warn!(group = %self.parent.display(), %error, "a control group stays");
        }
    }
}

/// Programs that run for a period. Dropped, they are killed.
pub(crate) struct Tools<'a> {
    /// This program, which has the load generator.
    pub(crate) orlop: &'a Path,
    /// Where logs go.
    pub(crate) dir: &'a Path,
}

impl Tools<'_> {
    /// Light writes and a few watchers, in all states: else idle differs from a delay by its
    /// traffic.
    pub(crate) fn background(&self, urls: &[String], span: Duration) -> Result<Process> {
        let flags = [
            "--watchers=20",
            "--watch-rate=20",
            "--keys=100",
            "--connections=3",
        ];
        self.bench("watch", "background", urls, span, &flags)
    }

    /// An overload of the member at `url`.
    pub(crate) fn overload(&self, load: Load, url: &str, span: Duration) -> Result<Process> {
        let urls = [url.to_owned()];
        let (workload, flags): (_, &[&str]) = match load {
            Load::LargeReads => (
                "range",
                &[
                    "--keys=2",
                    "--value-bytes=700000",
                    "--connections=50",
                    "--in-flight=100",
                ],
            ),
            Load::Writes => (
                "put",
                &[
                    "--keys=1000",
                    "--value-bytes=1024",
                    "--connections=20",
                    "--in-flight=500",
                ],
            ),
            Load::Watchers => (
                "watch",
                &[
                    "--watchers=1000",
                    "--watch-rate=200",
                    "--keys=100",
                    "--connections=20",
                ],
            ),
        };
        self.bench(workload, "load", &urls, span, flags)
    }

    fn bench(
        &self,
        workload: &str,
        name: &str,
        urls: &[String],
        span: Duration,
        flags: &[&str],
    ) -> Result<Process> {
        let mut command = Command::new(self.orlop);
        command
            .args(["bench", workload, "--rounds=1", "--warmup=0ms"])
            .arg("--client-threads=1")
            .arg(format!("--endpoints={}", urls.join(",")))
            .arg(format!("--duration={}ms", span.as_millis()))
            .args(flags);
        Process::start(name, self.dir, &mut command)
    }

    /// Makes each sync of the process `pid` take `more` longer, by strace. It stops the process
    /// at each of its other calls too, which costs it some of its processor.
    pub(crate) fn slow_syncs(&self, pid: u32, more: Duration) -> Result<Process> {
        let us = more.as_micros();
        let mut command = Command::new("strace");
        command
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=fsync,fdatasync",
            ])
            .args(["-e", &format!("inject=fsync,fdatasync:delay_exit={us}")])
            .args(["-p", &pid.to_string()]);
        Process::start("strace", self.dir, &mut command)
    }
}

/// Ends a tool whose time is over, by itself if it can: strace lets go of its process then.
pub(crate) fn end(tool: Option<Process>) {
    if let Some(mut tool) = tool
        && let Err(error) = tool.terminate(STOP_LIMIT)
    {
        tracing::warn!(%error, "a tool had to be killed");
    }
}
