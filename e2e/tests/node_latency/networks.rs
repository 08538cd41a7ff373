//! Network namespaces on a bridge, for a test. They end with the value.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use e2e::kube::proc::run;
use e2e::kube::{Result, ensure};

/// Networks 10.88.0.0/24; the host is .254, node n is .(n + 1).
pub(crate) struct Networks {
    id: String,
    nodes: usize,
}

fn ip(args: &str) -> Result<String> {
    run(Command::new("ip").args(args.split_whitespace()))
}

impl Networks {
    pub(crate) fn make(nodes: usize) -> Result<Self> {
        ensure(rustix::process::geteuid().is_root(), || {
            "network namespaces are made by root only".into()
        })?;
        let networks = Self {
            id: format!("ol{}", std::process::id() % 100_000),
            nodes,
        };
        let bridge = networks.bridge();
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {}/24 dev {bridge}", networks.host()))?;
        ip(&format!("link set {bridge} up"))?;
        for node in 0..nodes {
            let (space, link) = (networks.space(node), networks.end(node));
            ip(&format!("netns add {space}"))?;
            ip(&format!(
                "link add {link} type veth peer name eth0 netns {space}"
            ))?;
            ip(&format!("link set {link} master {bridge} up"))?;
            ip(&format!(
                "-n {space} addr add {}/24 dev eth0",
                networks.address(node)
            ))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(networks)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.id)
    }

    fn space(&self, node: usize) -> String {
        format!("{}-{node}", self.id)
    }

    fn end(&self, node: usize) -> String {
        format!("{}v{node}", self.id)
    }

    pub(crate) fn host(&self) -> IpAddr {
        IpAddr::from([10, 88, 0, 254])
    }

    pub(crate) fn address(&self, node: usize) -> IpAddr {
        IpAddr::from([10, 88, 0, node as u8 + 1])
    }

    /// A command that runs in a node's network.
    pub(crate) fn command(&self, node: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.space(node)])
            .arg(program);
        command
    }

    /// Takes a node's link down, or up again.
    pub(crate) fn link(&self, node: usize, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&format!("link set {} {state}", self.end(node)))?;
        Ok(())
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            // First: connections that broke off keep a namespace for a while, and its link with it.
            let _ = ip(&format!("link del {}", self.end(node)));
            let _ = ip(&format!("netns del {}", self.space(node)));
        }
        let _ = ip(&format!("link del {}", self.bridge()));
    }
}
