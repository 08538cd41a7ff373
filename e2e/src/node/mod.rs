//! Real nodes: kubelet, containerd, runc and kubeadm, each in namespaces of its own.
//!
//! A node has its own network, mounts, host name and process ids; what it writes is below one
//! directory. A kubelet also changes the machine outside of them, and makes control groups: a
//! [`guard`] puts that back, also when the test that asked for the node is killed.
//!
//! Nothing here knows what a test does with a node.

pub mod guard;
pub mod host;
pub mod image;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::kube::proc::output;
use crate::kube::store::{Kind, without_own_variables};
use crate::kube::{Result, binaries, ensure};
use guard::Guard;

/// The file that `kubectl` and kubeadm speak as.
const KUBECONFIG: &str = "/etc/kubernetes/admin.conf";
/// How long a command may take that does one thing.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Programs of a node, and the sets they are in.
const PROGRAMS: [(&str, &str); 5] = [
    ("kubelet", "node-1.37"),
    ("kubeadm", "kube-1.37"),
    ("kubectl", "kube-1.37"),
    ("etcdctl", "etcd"),
    ("etcdutl", "etcd"),
];

/// Address of the node with this number, from 1. It is in none of Kubernetes' own networks:
/// Services have 10.96.0.0/12.
#[must_use]
pub fn address(number: u32) -> String {
    format!("172.30.0.{number}")
}

/// Network of the pods of the node with this number.
#[must_use]
pub fn pods(number: u32) -> String {
    format!("10.244.{number}.0/24")
}

/// Where a node with its files in `dir` looks for programs: its own `systemctl` comes first,
/// and kube-proxy's and containerd's tools are in `/usr/sbin`.
#[must_use]
pub fn path(dir: &Path) -> OsString {
    let mut path = dir.join("bin").into_os_string();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Nodes of one test. Dropped, they end, and the machine is as it was.
#[derive(Debug)]
pub struct Nodes {
    guard: Guard,
    nodes: Vec<Node>,
    namespaces: Vec<PathBuf>,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: String,
    dir: PathBuf,
    first_process: u32,
}

/// Makes what the nodes `names` need in `dir`: their first process's script and programs.
///
/// # Errors
/// If the machine cannot run a node, or a program is not built.
pub fn prepare(dir: &Path, names: &[&str]) -> Result<()> {
    host::check()?;
    for name in names {
        let dir = dir.join(name);
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        for (program, set) in PROGRAMS {
            symlink(binaries(set)?.join(program), bin.join(program))?;
        }
        symlink(Kind::Orlop.program()?, bin.join("orlop"))?;
        for (file, text) in [
            (dir.join("init.sh"), include_str!("init.sh")),
            (bin.join("systemctl"), include_str!("systemctl.sh")),
        ] {
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

impl Nodes {
    /// Starts nodes called `names`, on one network, with their files and logs in `dir`.
    /// `guard` is the program `node-guard`.
    ///
    /// # Errors
    /// If the machine cannot run them, with all that it lacks.
    pub fn start(guard: &Path, dir: &Path, names: &[&str]) -> Result<Self> {
        prepare(dir, names)?;
        let guard = Guard::start(Guard::command(guard, dir, names))?;
        let mut nodes = Vec::new();
        let mut namespaces = Vec::new();
        for ((number, name), id) in (1..).zip(names).zip(guard.first_processes()) {
            namespaces.push(host::pid_namespace(*id)?);
            nodes.push(Node {
                name: (*name).to_owned(),
                address: address(number),
                dir: dir.join(name),
                first_process: *id,
            });
        }
        let nodes = Self {
            guard,
            nodes,
            namespaces,
        };
        for node in &nodes.nodes {
            node.wait_for_runtime()?;
        }
        Ok(nodes)
    }

    /// The nodes, in the order of their names.
    #[must_use]
    pub fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// Ends them.
    ///
    /// # Errors
    /// If a process is left, or the machine could not be put back.
    pub fn end(self) -> Result<()> {
        self.guard.end()?;
        for namespace in &self.namespaces {
            let left = host::processes_in(namespace);
            ensure(left.is_empty(), || format!("processes are left: {left:?}"))?;
        }
        Ok(())
    }
}

impl Node {
    /// Its host name and its name in Kubernetes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory with its files, at the same path inside and outside.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs in the node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first_process))
            .args(["--mount", "--uts", "--net", "--pid", "--", program])
            .env("PATH", path(&self.dir))
            .env("KUBECONFIG", KUBECONFIG);
        without_own_variables(&mut command);
        command
    }

    /// Runs a program in the node to its end, which must be a good one; what it printed.
    ///
    /// # Errors
    /// If it fails: with all that it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run_within(COMMAND_LIMIT, program, args, "")
    }

    /// As [`Node::run`], with a time limit and text on standard input.
    ///
    /// # Errors
    /// As [`Node::run`], or if it takes longer.
    pub fn run_within(
        &self,
        limit: Duration,
        program: &str,
        args: &[&str],
        input: &str,
    ) -> Result<String> {
        let left = output(self.command(program).args(args), input, limit)?;
        let text = String::from_utf8_lossy(&left.stdout).into_owned();
        ensure(left.status.success(), || {
            let error = String::from_utf8_lossy(&left.stderr);
            format!(
                "{program} {} on {}: {}\n{text}{error}",
                args.join(" "),
                self.name,
                left.status
            )
        })?;
        Ok(text)
    }

    /// Runs kubectl as the cluster's administrator.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run("kubectl", args)
    }

    /// Has kubectl apply `manifests`.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.run_within(COMMAND_LIMIT, "kubectl", &["apply", "-f", "-"], manifests)
    }

    /// Brings images to the runtime.
    ///
    /// # Errors
    /// If it does not take them.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        let args = ["--namespace", "k8s.io", "images", "import", &archive];
        self.run_within(2 * COMMAND_LIMIT, "ctr", &args, "")
            .map(drop)
    }

    fn wait_for_runtime(&self) -> Result<()> {
        let mut last = Ok(());
        for _ in 0..100 {
            last = self.run("ctr", &["version"]).map(drop);
            if last.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        last
    }
}
