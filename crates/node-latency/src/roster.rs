//! Which nodes there are: a list, a file that is read again when it changes, or the nodes of a
//! cluster, followed by a watch. What is known stays while the source cannot be reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use follow::{Followed, follow};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::targets::Target;
use crate::{Error, NodeName};

/// A file of peers is no larger.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What is known of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// The nodes, the agent's own among them if the source has it; `None` until they are known.
    pub nodes: Option<Vec<Target>>,
    /// Why the source does not answer now; what is known may be old.
    pub failing: Option<String>,
    /// Times that it failed.
    pub failures: u64,
}

/// A peer from its text: `NAME ADDRESS [ZONE]`, or `NAME=ADDRESS` on a command line. An address
/// without a port has `port`.
///
/// # Errors
/// [`Error::Peer`].
pub fn peer(text: &str, place: &str, port: u16) -> Result<Target, Error> {
    let wrong = |why: &str| Error::Peer {
        text: text.to_owned(),
        place: place.to_owned(),
        why: why.to_owned(),
    };
    let mut words = match text.split_once('=') {
        Some((name, rest)) => vec![name.trim()]
            .into_iter()
            .chain(rest.split_whitespace())
            .collect(),
        None => text.split_whitespace().collect::<Vec<_>>(),
    }
    .into_iter();
    let name = words.next().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| wrong("there is no name"))?;
    let address = words.next().ok_or_else(|| wrong("there is no address"))?;
    let address = match address.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let ip: IpAddr = address
                .parse()
                .map_err(|_| wrong("the address is no IP address"))?;
            SocketAddr::new(ip, port)
        }
    };
    let zone = words.next().map(NodeName::from);
    if words.next().is_some() {
        return Err(wrong("there is something after the zone"));
    }
    Ok(Target {
        node: name.into(),
        address,
        zone,
    })
}

/// Peers from a file's text, a line each. Empty lines and what follows a `#` are left out.
///
/// # Errors
/// [`Error::Peer`] with the line.
pub fn peers(text: &str, port: u16) -> Result<Vec<Target>, Error> {
    let mut found: BTreeMap<NodeName, Target> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let place = format!("in line {}", number + 1);
        let target = peer(line, &place, port)?;
        let name = target.node.clone();
        if found.insert(name, target).is_some() {
            return Err(Error::Peer {
                text: line.to_owned(),
                place,
                why: "another line has this name".into(),
            });
        }
    }
    Ok(found.into_values().collect())
}

/// Reads a file of peers.
///
/// # Errors
/// [`Error::Read`] or [`Error::Peer`].
pub fn read(path: &Path, port: u16) -> Result<Vec<Target>, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
        return Err(read(std::io::Error::other("it has more than 4 MiB")));
    }
    peers(&std::fs::read_to_string(path).map_err(read)?, port)
}

/// Reads a file again whenever it changes, looking each `every`. A file that cannot be read or
/// understood changes nothing.
pub async fn follow_file(path: PathBuf, port: u16, every: Duration, roster: watch::Sender<Roster>) {
    let stamp = |path: &Path| -> Option<(SystemTime, u64)> {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    };
    let mut seen = None;
    loop {
        let now = stamp(&path);
        if now.is_none() || now != seen {
            match read(&path, port) {
                Ok(nodes) => {
                    tracing::info!(file = %path.display(), peers = nodes.len(), "peers read");
                    roster.send_modify(|r| {
                        (r.nodes, r.failing) = (Some(nodes), None);
                    });
                    seen = now;
                }
                Err(error) => {
                    if failed(&roster, error.to_string()) {
                        tracing::warn!(error = %error, "peers cannot be read; those known before stay");
                    }
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Notes a failure; whether it is news.
fn failed(roster: &watch::Sender<Roster>, why: String) -> bool {
    let news = roster.borrow().failing.is_none();
    roster.send_modify(|r| {
        r.failing = Some(why);
        r.failures += 1;
    });
    news
}

/// A node's name, address and zone; `None` for one without an address.
#[must_use]
pub fn of_node(node: &Node, port: u16) -> Option<Target> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    let ip: IpAddr = internal.filter_map(|a| a.address.parse().ok()).next()?;
    let labels = node.metadata.labels.as_ref();
    Some(Target {
        node: node.metadata.name.as_deref()?.into(),
        address: SocketAddr::new(ip, port),
        zone: labels.and_then(|l| l.get(ZONE)).map(|z| z.as_str().into()),
    })
}

/// Follows the nodes of a cluster. While its API does not answer, those known before stay.
pub async fn follow_cluster(client: Client, port: u16, roster: watch::Sender<Roster>) {
    let slim = |node: &Node| of_node(node, port);
    let changed = |known: &Followed<Target>| {
        roster.send_modify(|r| {
            if known.listed {
                r.nodes = Some(known.items.values().cloned().collect());
            }
            r.failing.clone_from(&known.failing);
            r.failures = known.failures;
        });
    };
    let known = follow::Shared::default();
    let config = kube::runtime::watcher::Config::default();
    follow(Api::all(client), config, "Node", slim, known, changed).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_peers_is_read_and_what_is_wrong_is_said_with_its_line() {
        let good =
            "# the edge\nedge-0 10.0.0.7 edge\nedge-1 10.0.0.8:9999 # another port\n\nv6 fd00::1\n";
        let found = peers(good, 9478).unwrap_or_default();
        let texts: Vec<String> = found
            .iter()
            .map(|t| {
                format!(
                    "{} {} {}",
                    t.node,
                    t.address,
                    t.zone.as_deref().unwrap_or("-")
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                "edge-0 10.0.0.7:9478 edge",
                "edge-1 10.0.0.8:9999 -",
                "v6 [fd00::1]:9478 -"
            ]
        );
        for (bad, said) in [
            ("a\n", "no address"),
            ("\na b\n", "in line 2"),
            ("a 1.2.3.4 z more\n", "after the zone"),
            ("a 1.2.3.4\na 1.2.3.5\n", "another line"),
        ] {
            let text = peers(bad, 1)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default();
            assert!(text.contains(said), "{bad:?}: {text}");
        }
        let one = peer("n1=10.0.0.1:5", "of --peer", 1).map(|t| t.address.to_string());
        assert_eq!(one.unwrap_or_default(), "10.0.0.1:5");
    }
}
