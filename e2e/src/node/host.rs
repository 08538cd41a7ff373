//! What a node needs of the machine, what it changes there, and how that is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::kube::proc::run;
use crate::kube::{Result, binaries, ensure, fail};

/// Kernel parameters of the whole machine that a kubelet sets, below `/proc/sys`. No namespace
/// holds them.
const PARAMETERS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Programs that a node runs, and the Debian packages that they are in.
const PROGRAMS: [(&str, &str); 12] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("socat", "socat"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
];
/// What a kubelet wants of control groups.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// Begins the name of a node's control group.
const GROUP_PREFIX: &str = "orlop-node-";
/// Directories of a real node, which a test must neither use nor make.
const DIRECTORIES: [&str; 8] = [
    "/etc/kubernetes",
    "/etc/cni/net.d",
    "/run/containerd",
    "/run/orlop",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/orlop",
    "/var/log/pods",
];
/// How long control groups may take to be empty once their processes were killed.
const REMOVAL_LIMIT: Duration = Duration::from_secs(20);

/// Fails with all that this machine lacks for a node.
///
/// # Errors
/// If it lacks anything: a sentence for each thing.
pub fn check() -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("it runs as root only".to_owned());
    }
    let packages: BTreeSet<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if !packages.is_empty() {
        let packages: Vec<&str> = packages.into_iter().collect();
        missing.push(format!(
            "apt-get install --no-install-recommends {}",
            packages.join(" ")
        ));
    }
    if !read("/proc/filesystems").contains("\toverlay\n") {
        missing.push("the kernel has no overlay file system".to_owned());
    }
    if let Err(error) = Hierarchies::read() {
        missing.push(error.to_string());
    }
    for set in ["kube-1.37", "node-1.37", "coredns", "etcd"] {
        if let Err(error) = binaries(set) {
            missing.push(error.to_string());
        }
    }
    ensure(missing.is_empty(), || {
        format!(
            "a real node cannot run on this machine: {}",
            missing.join("; ")
        )
    })
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Where control groups are made: a directory for each hierarchy.
#[derive(Debug)]
pub struct Hierarchies(Vec<PathBuf>);

impl Hierarchies {
    /// Finds them.
    ///
    /// # Errors
    /// If a controller that a kubelet wants is not there.
    pub fn read() -> Result<Self> {
        let mounts = read("/proc/self/mounts");
        let (mut dirs, mut controllers) = (Vec::new(), BTreeSet::new());
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(dir), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup" => controllers.extend(options.split(',').map(String::from)),
                // What children may have of it.
                "cgroup2" => controllers.extend(
                    read(Path::new(dir).join("cgroup.subtree_control"))
                        .split_whitespace()
                        .map(String::from),
                ),
                _ => continue,
            }
            dirs.push(PathBuf::from(dir));
        }
        let missing: Vec<&str> = CONTROLLERS
            .into_iter()
            .filter(|name| !controllers.contains(*name))
            .collect();
        ensure(missing.is_empty(), || {
            format!(
                "control groups cannot be made with the controllers {} (they are read from \
                 /proc/self/mounts and cgroup.subtree_control)",
                missing.join(", ")
            )
        })?;
        Ok(Self(dirs))
    }

    /// Makes the control group of the node `name` in each of them, called [`group_name`].
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn make(&self, name: &str) -> Result<()> {
        for hierarchy in &self.0 {
            let group = hierarchy.join(group_name(name));
            fs::create_dir(&group)?;
            // A group of version 1 has no processors and no memory until it is told.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.join(file).exists() {
                    fs::write(group.join(file), read(hierarchy.join(file)))?;
                }
            }
        }
        Ok(())
    }

    /// Control groups of nodes that are there.
    #[must_use]
    pub fn groups(&self) -> BTreeSet<PathBuf> {
        let all = self.0.iter().filter_map(|dir| fs::read_dir(dir).ok());
        all.flat_map(|entries| entries.flatten())
            .filter(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with(GROUP_PREFIX)
            })
            .map(|entry| entry.path())
            .collect()
    }

    /// Removes them, once they are empty.
    ///
    /// # Errors
    /// If that does not become so.
    pub fn remove_groups(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let left = self.groups();
            if left.is_empty() {
                return Ok(());
            }
            ensure(began.elapsed() < REMOVAL_LIMIT, || {
                format!("control groups are still in use: {left:?}")
            })?;
            for group in left {
                remove_group(&group);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Name of a node's control group. A kubelet's `cgroupRoot` has it behind a slash.
#[must_use]
pub fn group_name(node: &str) -> String {
    format!("{GROUP_PREFIX}{node}")
}

/// Removes a group and those below it, as far as they are empty. What looks like files in them
/// goes with them.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// The machine's kernel parameters as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters(BTreeMap<&'static str, String>);

impl Parameters {
    /// Reads them.
    #[must_use]
    pub fn read() -> Self {
        let values = PARAMETERS.map(|name| (name, read(Path::new("/proc/sys").join(name))));
        Self(values.into_iter().collect())
    }

    /// Puts back those that are others now.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn put_back(&self) -> Result<()> {
        let now = Self::read();
        for (name, value) in &self.0 {
            if now.0.get(name) != Some(value) {
                fs::write(Path::new("/proc/sys").join(name), value)?;
            }
        }
        Ok(())
    }
}

/// All of the machine that a node could leave something in.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    parameters: Parameters,
    groups: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
    rules: String,
    directories: Vec<&'static str>,
}

impl Traces {
    /// Looks at it.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn read() -> Result<Self> {
        let mounts = read("/proc/self/mounts");
        let interfaces = fs::read_dir("/sys/class/net")?.flatten();
        Ok(Self {
            parameters: Parameters::read(),
            groups: Hierarchies::read()?.groups(),
            mounts: mounts.lines().map(String::from).collect(),
            interfaces: interfaces
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            rules: run(Command::new("nft").args(["list", "ruleset"]))?,
            directories: DIRECTORIES
                .into_iter()
                .filter(|dir| Path::new(dir).exists())
                .collect(),
        })
    }

    /// Fails unless all is now as it was in `self`.
    ///
    /// # Errors
    /// With both.
    pub fn compare(&self) -> Result<()> {
        let now = Self::read()?;
        ensure(*self == now, || {
            format!("the node left something on the machine:\nbefore {self:#?}\nafter {now:#?}")
        })
    }
}

/// Processes in the namespace `namespace` of process ids, a link as in `/proc/ID/ns/pid`.
#[must_use]
pub fn processes_in(namespace: &Path) -> Vec<String> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == namespace)
        })
        .map(|entry| read(entry.path().join("comm")).trim().to_owned())
        .collect()
}

/// The namespace of process ids that process `id` is in.
///
/// # Errors
/// If there is no such process.
pub fn pid_namespace(id: u32) -> Result<PathBuf> {
    fs::read_link(format!("/proc/{id}/ns/pid"))
        .or_else(|error| fail(format!("process {id} of the node: {error}")))
}
