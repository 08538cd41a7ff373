//! What there is to route to: services, their pods, and the other nodes' routers.
//!
//! A file today ([`read`]); whatever else knows it makes the same [`Table`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;

use routing::Policy;
use serde::Deserialize;

use crate::Error;

/// A file is no larger.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Nodes, services, and pods of all services.
const ENTRIES_MAX: usize = 20_000;
/// The longest time that a request may have.
const TIMEOUT_MS_MAX: u64 = 24 * 3_600_000;
/// The most that may wait at one place.
const WAITING_MAX: usize = 100_000;

/// All that a router routes by.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Other nodes; the own one may be among them.
    #[serde(default, rename = "node")]
    pub nodes: Vec<NodeEntry>,
    /// Services.
    #[serde(default, rename = "service")]
    pub services: Vec<ServiceEntry>,
}

/// A node with a router.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Its name; the certificate of its router is for this name.
    pub name: String,
    /// Where its router takes requests of other routers.
    pub peer: SocketAddr,
}

/// How pods are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, with upgrades.
    #[default]
    Http1,
    /// HTTP/2 without TLS, known beforehand: gRPC.
    H2c,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceEntry {
    /// `NAMESPACE/NAME`, as in the series.
    pub name: String,
    /// Hosts by which it is asked for, without ports. Those of a Service's cluster name,
    /// `NAME.NAMESPACE`, with `.svc` and `.svc.cluster.local`, are added.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// How a pod is chosen.
    #[serde(default)]
    pub policy: Policy,
    /// How its pods are spoken to.
    #[serde(default)]
    pub protocol: Protocol,
    /// Requests that a pod serves at once (containerConcurrency); without it, as many as come.
    #[serde(default)]
    pub concurrency: Option<NonZeroU32>,
    /// Requests that wait for one pod, at most.
    #[serde(default = "default_waiting")]
    pub queue: usize,
    /// Requests that wait at one router while no pod can be used, at most.
    #[serde(default = "default_waiting")]
    pub waiting: usize,
    /// Milliseconds until an answer has to begin, all waiting included.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Its pods.
    #[serde(default, rename = "pod")]
    pub pods: Vec<PodEntry>,
}

fn default_waiting() -> usize {
    1_000
}

fn default_timeout_ms() -> u64 {
    60_000
}

/// A pod that is ready.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodEntry {
    /// Its name, once in its service.
    pub name: String,
    /// The node that it is on.
    pub node: String,
    /// Where it serves.
    pub address: SocketAddr,
}

fn is_name(text: &str) -> bool {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(good)
}

impl ServiceEntry {
    /// A service of this name with the defaults, without pods.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hosts: Vec::new(),
            policy: Policy::default(),
            protocol: Protocol::default(),
            concurrency: None,
            queue: default_waiting(),
            waiting: default_waiting(),
            timeout_ms: default_timeout_ms(),
            pods: Vec::new(),
        }
    }

    /// The hosts that its own name makes.
    fn own_hosts(&self) -> [String; 3] {
        let (namespace, name) = self.split();
        ["", ".svc", ".svc.cluster.local"].map(|end| format!("{name}.{namespace}{end}"))
    }

    /// Namespace and name.
    pub(crate) fn split(&self) -> (&str, &str) {
        self.name.split_once('/').unwrap_or(("", &self.name))
    }

    /// All hosts by which it is asked for.
    pub(crate) fn all_hosts(&self) -> impl Iterator<Item = String> + '_ {
        let further = self.hosts.iter().map(|host| host.to_ascii_lowercase());
        self.own_hosts().into_iter().chain(further)
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |why: String| Err(format!("service {:?}: {why}", self.name));
        let parts = self.name.split_once('/');
        if !parts.is_some_and(|(namespace, name)| is_name(namespace) && is_name(name)) {
            return wrong(
                "its name must be NAMESPACE/NAME, of small letters, digits, - and .".into(),
            );
        }
        if let Some(host) = self
            .hosts
            .iter()
            .find(|host| host.contains(':') || host.is_empty())
        {
            return wrong(format!("host {host:?} must be a name without a port"));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            return wrong(format!("timeout_ms must be from 1 to {TIMEOUT_MS_MAX}"));
        }
        if self.queue > WAITING_MAX || self.waiting > WAITING_MAX {
            return wrong(format!("queue and waiting must be at most {WAITING_MAX}"));
        }
        let mut names = HashSet::new();
        for pod in &self.pods {
            if !is_name(&pod.name) || !is_name(&pod.node) {
                return wrong(format!(
                    "pod {:?} on {:?}: names are of small letters, digits, - and .",
                    pod.name, pod.node
                ));
            }
            if !names.insert(&pod.name) {
                return wrong(format!("pod {:?} is there twice", pod.name));
            }
        }
        Ok(())
    }
}

impl Table {
    /// Checks it, and says which host is which service's (its index).
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn check(&self) -> Result<HashMap<String, usize>, String> {
        let pods: usize = self.services.iter().map(|s| s.pods.len()).sum();
        for (what, count) in [
            ("nodes", self.nodes.len()),
            ("services", self.services.len()),
            ("pods", pods),
        ] {
            if count > ENTRIES_MAX {
                return Err(format!("{count} {what}: at most {ENTRIES_MAX}"));
            }
        }
        let mut nodes = BTreeMap::new();
        for node in &self.nodes {
            if !is_name(&node.name) {
                return Err(format!(
                    "node {:?}: a name is of small letters, digits, - and .",
                    node.name
                ));
            }
            if nodes.insert(&node.name, node.peer).is_some() {
                return Err(format!("node {:?} is there twice", node.name));
            }
        }
        let mut names = HashSet::new();
        if let Some(twice) = self.services.iter().find(|s| !names.insert(&s.name)) {
            return Err(format!("service {:?} is there twice", twice.name));
        }
        let mut hosts: HashMap<String, usize> = HashMap::new();
        for (at, service) in self.services.iter().enumerate() {
            service.check()?;
            for host in service.all_hosts() {
                if let Some(other) = hosts.insert(host.clone(), at)
                    && other != at
                {
                    let other = &self.services[other].name;
                    return Err(format!(
                        "host {host:?} is of both {other:?} and {:?}",
                        service.name
                    ));
                }
            }
        }
        Ok(hosts)
    }

    /// A table of those services that can be used, and why the others can not. Nobody takes the host
    /// that another service's own name makes; of several that want a further host, the first in the
    /// order of names has it. Nodes whose names are none are left out.
    #[must_use]
    pub fn of_good(
        nodes: Vec<NodeEntry>,
        services: Vec<ServiceEntry>,
    ) -> (Self, BTreeMap<String, String>) {
        let by_name: BTreeMap<String, ServiceEntry> = services
            .into_iter()
            .map(|service| (service.name.clone(), service))
            .collect();
        let own: HashMap<String, String> = by_name
            .values()
            .flat_map(|service| service.own_hosts().map(|host| (host, service.name.clone())))
            .collect();
        let mut taken: HashMap<String, String> = HashMap::new();
        let (mut table, mut wrong) = (Self::default(), BTreeMap::new());
        for (name, service) in by_name {
            let other = service.all_hosts().find_map(|host| {
                let of = own.get(&host).or_else(|| taken.get(&host))?;
                (*of != name).then(|| format!("host {host:?} is of {of:?}"))
            });
            match service.check().err().or(other) {
                Some(why) => {
                    wrong.insert(name, why);
                }
                None => {
                    taken.extend(service.all_hosts().map(|host| (host, name.clone())));
                    table.services.push(service);
                }
            }
        }
        let names: BTreeMap<String, NodeEntry> = nodes
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        table.nodes = names
            .into_values()
            .filter(|node| is_name(&node.name))
            .collect();
        (table, wrong)
    }

    /// From TOML.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        table.check()?;
        Ok(table)
    }
}

/// Reads a file of services.
///
/// # Errors
/// If it cannot be read or used.
pub fn read(path: &Path) -> Result<Table, Error> {
    let unread = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let unusable = |why| Error::Services {
        path: path.to_owned(),
        why,
    };
    let bytes = std::fs::metadata(path).map_err(unread)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(unusable(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(unread)?;
    Table::parse(&text).map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn what_cannot_be_meant_is_refused_and_said() {
        let one = "[[service]]\nname = \"shop/cart\"\n";
        let pod = "[[service.pod]]\nname = \"p\"\nnode = \"a\"\naddress = \"127.0.0.1:1\"\n";
        for (text, says) in [
            (
                "[[service]]\nname = \"cart\"\n".to_owned(),
                "NAMESPACE/NAME",
            ),
            (format!("{one}{one}"), "twice"),
            (format!("{one}concurrency = 0\n"), "concurrency"),
            (format!("{one}timeout_ms = 0\n"), "timeout_ms"),
            (format!("{one}colour = 1\n"), "colour"),
            (format!("{one}policy = \"nearest\"\n"), "nearest"),
            (format!("{one}hosts = [\"a:80\"]\n"), "without a port"),
            (format!("{one}{pod}{pod}"), "twice"),
            (
                format!("{one}hosts = [\"A.b\"]\n[[service]]\nname = \"b/a\"\n"),
                "of both",
            ),
        ] {
            let said = Table::parse(&text).err().unwrap_or_default();
            assert!(said.contains(says), "{text}: {said}");
        }
        let good = Table::parse(&format!(
            "{one}concurrency = 2\npolicy = \"local-first\"\n{pod}"
        ));
        let hosts = good.map(|table| table.check().map(|hosts| hosts.len()));
        assert_eq!(hosts, Ok(Ok(3)));
    }
}
