//! What keeps a cluster's objects: one server, or members of etcd, perhaps behind a proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netdelay::{Delays, Network};

use crate::Result;
use crate::members::{self, Members};
use crate::proc::free_port;
use crate::proxy::Proxy;
use crate::shards::Shards;
use crate::store::{self, Endpoints, Kind, Store, Tls};

/// How clients find their way to several members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// They are given all members, and choose: etcd's client takes each in turn.
    All,
    /// They are given the one that leads at the beginning.
    Leader,
    /// They are given an `orlop proxy` before all members; its program.
    Proxy(PathBuf),
}

/// What a backend is made of.
#[derive(Debug, Clone)]
pub enum Setup {
    /// One server; what it answers is held for `delay`.
    Store {
        /// The server.
        store: store::Setup,
        /// How far away it is.
        delay: Duration,
    },
    /// Members of etcd.
    Members {
        /// The members.
        members: members::Setup,
        /// How clients reach them.
        way: Way,
    },
}

impl Setup {
    /// `store`, without a delay.
    #[must_use]
    pub fn store(store: store::Setup) -> Self {
        Self::Store {
            store,
            delay: Duration::ZERO,
        }
    }

    /// Whether anything of it answers with a delay.
    #[must_use]
    pub fn is_far(&self) -> bool {
        match self {
            Self::Store { delay, .. } => !delay.is_zero(),
            Self::Members { members, .. } => !members.distances.is_zero(),
        }
    }

    /// Which program it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Store { store, .. } => store.kind,
            Self::Members { .. } => Kind::Etcd,
        }
    }
}

#[derive(Debug)]
enum Servers {
    Store(Box<Store>),
    Members {
        proxy: Option<Proxy>,
        members: Box<Members>,
    },
}

/// A running backend. Dropped, its programs are killed.
#[derive(Debug)]
pub struct Backend {
    servers: Servers,
    endpoints: Endpoints,
    _network: Option<Network>,
}

impl Backend {
    /// Starts what `setup` describes, with data and logs below `dir`, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// If a program does not get ready.
    pub async fn start(setup: Setup, dir: &Path, tls: Option<Tls>) -> Result<Self> {
        match setup {
            Setup::Store { store, delay } => {
                let name = match store.kind {
                    Kind::Etcd => "etcd",
                    Kind::Orlop => "orlop",
                };
                let store = Store::start_as(store, name, dir, tls).await?;
                let mut endpoints = store.endpoints();
                let network = match delay.is_zero() {
                    true => None,
                    false => Some(far_away(&store, delay, &mut endpoints)?),
                };
                Ok(Self {
                    servers: Servers::Store(Box::new(store)),
                    endpoints,
                    _network: network,
                })
            }
            Setup::Members { members, way } => {
                if let Way::Proxy(program) = &way {
                    crate::proxy::check(program)?;
                }
                let members = Box::new(Members::start(members, dir, tls).await?);
                let mut endpoints = members.endpoints();
                let mut proxy = None;
                match way {
                    Way::All => {}
                    Way::Leader => {
                        let leader = members.leader().await?.unwrap_or_default();
                        endpoints.urls = vec![members.url(leader)];
                    }
                    Way::Proxy(program) => {
                        let started = Proxy::start(&program, &endpoints, dir).await?;
                        endpoints = started.endpoints(&endpoints);
                        proxy = Some(started);
                    }
                }
                Ok(Self {
                    servers: Servers::Members { proxy, members },
                    endpoints,
                    _network: None,
                })
            }
        }
    }

    /// How clients reach it.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The server, if it is one.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        match &self.servers {
            Servers::Store(store) => Some(store),
            Servers::Members { .. } => None,
        }
    }

    /// The members, if it is several.
    #[must_use]
    pub fn members(&self) -> Option<&Members> {
        match &self.servers {
            Servers::Store(_) => None,
            Servers::Members { members, .. } => Some(members),
        }
    }

    /// What clients reach the members through, if they do.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        match &self.servers {
            Servers::Store(_) => None,
            Servers::Members { proxy, .. } => proxy.as_ref(),
        }
    }

    /// Its processes: one server is called `store`, its shards `shard-1` and so on, members
    /// `etcd-1` and so on, a proxy `proxy`.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        match &self.servers {
            Servers::Store(store) => {
                let own = store.pid().map(|pid| ("store".into(), pid));
                let shards = store.shards().into_iter().flat_map(Shards::pids);
                own.into_iter().chain(shards).collect()
            }
            Servers::Members { proxy, members } => {
                let mut pids = members.pids();
                pids.extend(proxy.iter().map(|proxy| ("proxy".into(), proxy.pid())));
                pids
            }
        }
    }

    /// Fails if a program has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        match &mut self.servers {
            Servers::Store(store) => store.check_running(),
            Servers::Members { proxy, members } => {
                proxy.iter_mut().try_for_each(Proxy::check_running)?;
                members.check_running()
            }
        }
    }

    /// Stops everything with SIGTERM, the proxy first.
    ///
    /// # Errors
    /// If a program does not end by itself.
    pub fn stop(&mut self) -> Result<()> {
        match &mut self.servers {
            Servers::Store(store) => store.stop(),
            Servers::Members { proxy, members } => {
                let proxy = proxy.take().map_or(Ok(()), Proxy::stop);
                members.stop().and(proxy)
            }
        }
    }
}

/// Puts `store` behind a link that holds its answers for `delay`.
fn far_away(store: &Store, delay: Duration, endpoints: &mut Endpoints) -> Result<Network> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (network, port) = (Network::start()?, free_port()?);
    let delays = Delays {
        forward: Duration::ZERO,
        backward: delay,
    };
    network.link(loopback(port), loopback(store.port()), delays)?;
    for url in &mut endpoints.urls {
        *url = url.replace(&format!(":{}", store.port()), &format!(":{port}"));
    }
    Ok(network)
}
