//! A cluster of etcd's members on loopback, as far apart as asked for.
//!
//! A delay is of what *leaves* a member, as the kernel's `tc` on the member's network interface
//! would have it: its answers to clients, and all that it sends to its peers, on connections
//! that it opened and on those that they did. Relays of [`netdelay`] hold the bytes:
//!
//! ```text
//! client --> link of B --(B's delay back)--> B's client port
//! A --> egress of A --(A's delay there, B's delay back)--> B's peer port
//! ```
//!
//! Who connects to a peer port cannot be told from the connection, and all members must know a
//! member by the same peer URL, for its identity is made from that. So each member reaches its
//! peers through an HTTP proxy of its own, as etcd does when `HTTPS_PROXY` is set, and the peer
//! URLs have addresses for documentation (192.0.2.1 and so on), which only those proxies know:
//! Go uses no proxy for 127.0.0.1.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use netdelay::{Delays, Network, Route};

use crate::etcdctl::Etcdctl;
use crate::http::Client;
use crate::metrics::Metrics;
use crate::pki::{Authority, Pair};
use crate::proc::{Process, free_port};
use crate::store::{Endpoints, Tls, command_after};
use crate::{Result, ensure, eventually, fail};

/// The most members that a cluster has.
pub const MEMBERS_MAX: usize = 9;
/// The longest delay of one direction.
pub const DELAY_MAX: Duration = Duration::from_secs(2);
/// How long all members may take to elect the first leader and be ready. A vote takes round
/// trips.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the leadership may take to move.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a member may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a starting member is asked.
const LOOK: Duration = Duration::from_millis(20);
/// The port in the peer URLs that only the egress proxies know.
const PEER_PORT: u16 = 2380;
/// Variables by which a user's environment would send members or peers elsewhere.
const PROXY_VARIABLES: [&str; 8] = [
    "FORWARD_PROXY",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
];

/// How far the members of a cluster are from clients and from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distances {
    /// How long what leaves each member is held, to clients and to peers; zero for those
    /// beyond its end.
    pub member: Vec<Duration>,
    /// How much longer what one member sends to another is held.
    pub peer: Duration,
}

impl Distances {
    /// What leaves each of `members` is held for `delay`.
    #[must_use]
    pub fn equal(members: usize, delay: Duration) -> Self {
        Self {
            member: vec![delay; members],
            peer: Duration::ZERO,
        }
    }

    /// How long what leaves `member` (from 0) is held.
    #[must_use]
    pub fn of(&self, member: usize) -> Duration {
        self.member.get(member).copied().unwrap_or_default()
    }

    /// Whether nothing is held anywhere.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.peer.is_zero() && self.member.iter().all(Duration::is_zero)
    }

    /// The way of a connection that member `from` opens to member `to`.
    fn between(&self, from: usize, to: usize) -> Delays {
        Delays {
            forward: self.of(from) + self.peer,
            backward: self.of(to) + self.peer,
        }
    }
}

/// Where a member is, for clients and for its peers.
#[derive(Debug, Clone, Copy)]
pub struct MemberPlace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where its data is.
    pub data_dir: &'a Path,
    /// Where it listens for clients.
    pub listen_client_url: &'a str,
    /// Where clients reach it.
    pub advertise_client_url: &'a str,
    /// Port of its plain HTTP pages on loopback.
    pub metrics_port: u16,
    /// Where it listens for peers.
    pub listen_peer_url: &'a str,
    /// The URL by which its peers know it.
    pub advertise_peer_url: &'a str,
    /// All members of the cluster, each as NAME=PEER_URL.
    pub initial_cluster: &'a str,
}

impl MemberPlace<'_> {
    /// etcd's flags for that.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--listen-client-urls={}", self.listen_client_url),
            format!("--advertise-client-urls={}", self.advertise_client_url),
            format!(
                "--listen-metrics-urls=http://127.0.0.1:{}",
                self.metrics_port
            ),
            format!("--listen-peer-urls={}", self.listen_peer_url),
            format!("--initial-advertise-peer-urls={}", self.advertise_peer_url),
            format!("--initial-cluster={}", self.initial_cluster),
        ]
    }
}

/// What a cluster of members is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// etcd's program.
    pub program: PathBuf,
    /// etcdctl, which moves the leadership.
    pub etcdctl: PathBuf,
    /// How many members.
    pub members: usize,
    /// Words before the program on each one's command line, as in [`crate::store::Setup::before`].
    pub before: Vec<String>,
    /// More flags for each of them.
    pub flags: Vec<String>,
    /// How far apart they are.
    pub distances: Distances,
    /// Which of them leads at the beginning (from 0); none for whichever is elected.
    pub leader: Option<usize>,
}

impl Setup {
    /// `members` of `program`, without delays; etcdctl is the one beside it, or the pinned one.
    ///
    /// # Errors
    /// If there is neither, or the number is not from 1 to [`MEMBERS_MAX`].
    pub fn new(program: PathBuf, members: usize) -> Result<Self> {
        ensure((1..=MEMBERS_MAX).contains(&members), || {
            format!("a cluster has 1 to {MEMBERS_MAX} members")
        })?;
        let beside = program.with_file_name("etcdctl");
        let etcdctl = match beside.is_file() {
            true => beside,
            false => crate::binaries("etcd")?.join("etcdctl"),
        };
        Ok(Self {
            program,
            etcdctl,
            members,
            before: Vec::new(),
            flags: Vec::new(),
            distances: Distances::default(),
            leader: None,
        })
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    /// Where it listens for clients, and where they reach it.
    client_port: u16,
    reached_port: u16,
    /// Where it listens for peers, and the URL by which they know it.
    peer_port: u16,
    peer_url: String,
    /// Its proxy to its peers.
    egress_port: Option<u16>,
    metrics_port: u16,
    process: Option<Process>,
}

/// A running cluster. Dropped, its members are killed.
#[derive(Debug)]
pub struct Members {
    setup: Setup,
    dir: PathBuf,
    tls: Option<Tls>,
    peers: Pair,
    peers_ca: PathBuf,
    members: Vec<Member>,
    _network: Option<Network>,
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The address in the peer URL of a member behind an egress proxy.
fn documentation_address(member: usize) -> String {
    format!("192.0.2.{}", member + 1)
}

impl Members {
    /// Starts the members that `setup` describes, with data and logs below `dir`, and waits
    /// until all are ready and the wanted one leads. With `tls` clients need it; peers always
    /// use certificates of their own.
    ///
    /// # Errors
    /// If a member does not get ready, with the end of its log, or the leadership does not move.
    pub async fn start(setup: Setup, dir: &Path, tls: Option<Tls>) -> Result<Self> {
        let apart = !setup.distances.is_zero();
        let authority = Authority::new(dir, "peers")?;
        let addresses: Vec<_> = (0..setup.members).map(documentation_address).collect();
        let mut members = Vec::new();
        for (n, address) in addresses.iter().enumerate() {
            let (client_port, peer_port) = (free_port()?, free_port()?);
            members.push(Member {
                name: format!("etcd-{}", n + 1),
                client_port,
                reached_port: match setup.distances.of(n).is_zero() {
                    true => client_port,
                    false => free_port()?,
                },
                peer_port,
                peer_url: match apart {
                    true => format!("https://{address}:{PEER_PORT}"),
                    false => format!("https://127.0.0.1:{peer_port}"),
                },
                egress_port: match apart {
                    true => Some(free_port()?),
                    false => None,
                },
                metrics_port: free_port()?,
                process: None,
            });
        }
        let network = match apart {
            true => Some(network(&members, &setup.distances)?),
            false => None,
        };
        let mut cluster = Self {
            dir: dir.to_owned(),
            tls,
            peers: authority.sign_for("peer", &addresses)?,
            peers_ca: authority.cert,
            members,
            _network: network,
            setup,
        };
        for n in 0..cluster.members.len() {
            let mut command = cluster.command(n);
            let member = &mut cluster.members[n];
            member.process = Some(Process::start(&member.name, dir, &mut command)?);
        }
        cluster.wait_until_ready().await?;
        if let Some(wanted) = cluster.setup.leader {
            cluster.lead(wanted).await?;
        }
        Ok(cluster)
    }

    fn command(&self, n: usize) -> Command {
        let member = &self.members[n];
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let all: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        let mut command = command_after(&self.setup.before, &self.setup.program);
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        if let Some(port) = member.egress_port {
            command.env("HTTPS_PROXY", format!("http://127.0.0.1:{port}"));
        }
        let data_dir = self.dir.join(format!("{}-data", member.name));
        let place = MemberPlace {
            name: &member.name,
            data_dir: &data_dir,
            listen_client_url: &format!("{scheme}://127.0.0.1:{}", member.client_port),
            advertise_client_url: &self.url(n),
            metrics_port: member.metrics_port,
            listen_peer_url: &format!("https://127.0.0.1:{}", member.peer_port),
            advertise_peer_url: &member.peer_url,
            initial_cluster: &all.join(","),
        };
        command
            .args(place.flags())
            .arg("--initial-cluster-token=playground")
            .arg(format!("--peer-cert-file={}", self.peers.cert.display()))
            .arg(format!("--peer-key-file={}", self.peers.key.display()))
            .arg(format!(
                "--peer-trusted-ca-file={}",
                self.peers_ca.display()
            ))
            .arg("--peer-client-cert-auth");
        if let Some(tls) = &self.tls {
            command.args(tls.server_flags());
        }
        command.args(&self.setup.flags);
        command
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        for n in 0..self.members.len() {
            let client = Client::plain(self.members[n].metrics_port);
            loop {
                // A member that ended keeps the others from being ready.
                self.check_running()?;
                if matches!(client.page("/readyz").await, Ok((200, _))) {
                    break;
                }
                ensure(began.elapsed() < START_TIMEOUT, || {
                    let tail = self.members[n].process.as_ref().map(Process::tail);
                    format!(
                        "{} is not ready; its log ends:\n{}",
                        self.members[n].name,
                        tail.unwrap_or_default()
                    )
                })?;
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// How many members there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The client URL of member `n` (from 0), behind its delay.
    #[must_use]
    pub fn url(&self, n: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[n].reached_port)
    }

    /// How a client reaches all of them, behind their delays.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            urls: (0..self.count()).map(|n| self.url(n)).collect(),
            tls: self.tls.clone(),
        }
    }

    /// Name and process of each member that runs.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let running = self.members.iter().filter_map(|member| {
            let process = member.process.as_ref()?;
            Some((member.name.clone(), process.id()))
        });
        running.collect()
    }

    /// Ports of the members' plain HTTP pages, without delays.
    #[must_use]
    pub fn metrics_ports(&self) -> Vec<u16> {
        self.members.iter().map(|m| m.metrics_port).collect()
    }

    /// The metrics of member `n` (from 0) now.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self, n: usize) -> Result<Metrics> {
        let member = &self.members[n];
        let (status, text) = Client::plain(member.metrics_port).page("/metrics").await?;
        ensure(status == 200, || {
            format!("{} /metrics: HTTP {status}", member.name)
        })?;
        Ok(Metrics::new(text))
    }

    /// Bytes that members have sent to members since they started, as they count them
    /// themselves.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn peer_sent_bytes(&self) -> Result<f64> {
        let mut sum = 0.0;
        for n in 0..self.count() {
            let metrics = self.metrics(n).await?;
            sum += metrics.sum("etcd_network_peer_sent_bytes_total", &[]);
        }
        Ok(sum)
    }

    /// Which member (from 0) says that it leads; none while none does.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn leader(&self) -> Result<Option<usize>> {
        for n in 0..self.count() {
            let metrics = self.metrics(n).await?;
            if metrics.sum("etcd_server_is_leader", &[]) == 1.0 {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    /// Moves the leadership to `wanted` (from 0), and waits until it is there.
    ///
    /// # Errors
    /// If there is no such member, or it does not get there.
    pub async fn lead(&self, wanted: usize) -> Result<()> {
        ensure(wanted < self.count(), || {
            format!("there is no member {}", wanted + 1)
        })?;
        let id = self.member_id(wanted)?;
        eventually("the wanted member leads", MOVE_TIMEOUT, || async {
            match self.leader().await? {
                Some(leader) if leader == wanted => Ok(Some(())),
                Some(leader) => {
                    self.etcdctl(leader)
                        .ok(&["move-leader", &format!("{id:x}")])?;
                    Ok(None)
                }
                None => Ok(None),
            }
        })
        .await
    }

    /// etcdctl for member `n`, without its delay.
    fn etcdctl(&self, n: usize) -> Etcdctl {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{}", self.members[n].client_port);
        Etcdctl::with(self.setup.etcdctl.clone(), &url, self.tls.as_ref())
    }

    fn member_id(&self, n: usize) -> Result<u64> {
        let status = self
            .etcdctl(n)
            .ok(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        match status[0]["Status"]["header"]["member_id"].as_u64() {
            Some(id) => Ok(id),
            None => fail(format!("etcdctl tells no member's id: {status}")),
        }
    }

    /// Fails if a member has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        self.members
            .iter_mut()
            .filter_map(|member| member.process.as_mut())
            .try_for_each(Process::check_running)
    }

    /// Stops all members with SIGTERM; they must exit by themselves.
    ///
    /// # Errors
    /// If one does not.
    pub fn stop(&mut self) -> Result<()> {
        let mut result = Ok(());
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                result = result.and(process.terminate(STOP_TIMEOUT).map(|_| ()));
            }
        }
        result
    }
}

/// The relays around `members`.
fn network(members: &[Member], distances: &Distances) -> Result<Network> {
    let network = Network::start()?;
    for (n, member) in members.iter().enumerate() {
        if member.reached_port != member.client_port {
            let delays = Delays {
                forward: Duration::ZERO,
                backward: distances.of(n),
            };
            let (listen, target) = (loopback(member.reached_port), loopback(member.client_port));
            network.link(listen, target, delays)?;
        }
        let Some(port) = member.egress_port else {
            continue;
        };
        let peers = members.iter().enumerate().filter(|(peer, _)| *peer != n);
        let routes = peers.map(|(peer, to)| Route {
            authority: format!("{}:{PEER_PORT}", documentation_address(peer)),
            target: loopback(to.peer_port),
            delays: distances.between(n, peer),
        });
        network.egress(loopback(port), routes.collect())?;
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_between_members_has_the_delay_of_each_sender() {
        let ms = Duration::from_millis;
        let distances = Distances {
            member: vec![ms(250), ms(50), ms(110)],
            peer: ms(3),
        };
        let way = distances.between(0, 1);
        assert_eq!((way.forward, way.backward), (ms(253), ms(53)));
        let back = distances.between(1, 0);
        assert_eq!((back.forward, back.backward), (ms(53), ms(253)));
        assert_eq!(distances.of(7), Duration::ZERO);
        assert!(!distances.is_zero() && Distances::equal(3, Duration::ZERO).is_zero());
    }

    #[test]
    fn a_cluster_has_members() {
        let none = Setup::new(PathBuf::from("/nowhere/etcd"), 0);
        assert!(none.is_err());
    }
}
