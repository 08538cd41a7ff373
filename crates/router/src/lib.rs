//! A node's HTTP router.
//!
//! A request enters at its own node, at any path into [`Listen`]. `routing` names a pod. A pod of
//! the node is served from its queue here; one of another node through the router of that node,
//! which owns the pod's queue, over HTTP/2 with mutual TLS. What comes in from another router goes
//! to the node's own pods, and never further: there are no loops.
//!
//! Bodies are passed on as they come, and not kept. What is not limited by their flow control is
//! limited in [`Limits`]. It knows no Kubernetes: what there is to route to is a
//! [`table::Table`], whoever makes it.

mod body;
mod client;
mod entry;
mod error;
mod failure;
mod head;
mod job;
mod owner;
mod pages;
mod peers;
mod pod;
mod router;
mod serve;
pub mod table;
mod tunnel;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use wire::{ClientTls, ClientTlsConfig, ServerTls, TlsConfig};

pub use error::Error;
pub use pages::Pages;
pub use router::{Limits, Router};

use serve::{Door, Phase};

/// How often peers and those that wait are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often weights are made anew, and unread answers looked for.
const LEARN: Duration = Duration::from_secs(1);

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate's chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// Who a router is to other routers. One authority signs the routers' certificates and nothing
/// else: whoever has one is a router. Each is for its node's name.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// Its own certificate.
    pub pair: Pair,
    /// The routers' authority, PEM.
    pub trusted_ca_file: PathBuf,
}

/// Where a router listens.
#[derive(Clone, Debug)]
pub struct Listen {
    /// For clients, over HTTP/1.1 and HTTP/2.
    pub clients: Vec<SocketAddr>,
    /// The same over TLS.
    pub tls_clients: Vec<SocketAddr>,
    /// The certificate that clients see there.
    pub tls: Option<Pair>,
    /// For other routers; needs [`PeerTls`].
    pub peers: Option<SocketAddr>,
}

/// How it ends.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// It is not ready any more, and still accepts: so long, for those who watch that.
    pub notice: Duration,
    /// What is under way may take so long after that.
    pub timeout: Duration,
}

/// Refuses a certificate that names one of the store's roles: its authority is not the routers'.
fn names_no_role(der: &[u8]) -> Result<(), String> {
    match certs::role_of(der) {
        Ok(None) => Ok(()),
        Ok(Some(identity)) => Err(format!("it names {identity}, which is no router")),
        Err(error) => Err(error.to_string()),
    }
}

impl PeerTls {
    /// As a client of other routers.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn client(&self) -> Result<Arc<ClientTls>, Error> {
        let config = ClientTlsConfig {
            ca_file: self.trusted_ca_file.clone(),
            identity: Some((self.pair.cert_file.clone(), self.pair.key_file.clone())),
            server_name: None,
        };
        Ok(ClientTls::load(config, b"h2")?)
    }

    fn server(&self) -> Result<ServerTls, Error> {
        let mut config = TlsConfig::new(&self.pair.cert_file, &self.pair.key_file);
        config.client_ca_file = Some(self.trusted_ca_file.clone());
        config.client_check = Some(names_no_role);
        config.min_version = wire::TlsVersion::V13;
        Ok(ServerTls::load(&config, false)?)
    }
}

/// A router that listens.
#[derive(Debug)]
pub struct Listening {
    doors: Vec<(tokio::net::TcpListener, DoorOf)>,
}

type DoorOf = Option<(ServerTls, bool)>;

impl Listening {
    /// Listens on all addresses. To be called within a runtime.
    ///
    /// # Errors
    /// An address that cannot be listened on, a file that cannot be used, settings that
    /// contradict each other.
    pub fn bind(listen: &Listen, peer_tls: Option<&PeerTls>) -> Result<Self, Error> {
        let mut doors: Vec<(tokio::net::TcpListener, DoorOf)> = Vec::new();
        for address in &listen.clients {
            doors.push((serve::bind(*address)?, None));
        }
        match (&listen.tls, listen.tls_clients.is_empty()) {
            (Some(pair), false) => {
                let config = TlsConfig::new(&pair.cert_file, &pair.key_file);
                let tls = ServerTls::load(&config, true)?;
                for address in &listen.tls_clients {
                    doors.push((serve::bind(*address)?, Some((tls.clone(), false))));
                }
            }
            (None, true) => {}
            _ => {
                let text =
                    "--tls-listen needs --tls-cert-file and --tls-key-file, and they need it";
                return Err(Error::Settings(text.to_owned()));
            }
        }
        match (listen.peers, peer_tls) {
            (Some(address), Some(tls)) => {
                doors.push((serve::bind(address)?, Some((tls.server()?, true))));
            }
            (None, None) => {}
            _ => {
                let text = "--peer-listen needs --peer-cert-file, --peer-key-file and \
                            --peer-trusted-ca-file, and they need it";
                return Err(Error::Settings(text.to_owned()));
            }
        }
        Ok(Self { doors })
    }

    /// Where it listens, in the order of [`Listen`].
    ///
    /// # Errors
    /// The system's.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.doors
            .iter()
            .map(|(listener, _)| listener.local_addr())
            .collect()
    }

    /// Serves until `stop`, then drains.
    pub async fn run(self, router: Arc<Router>, drain: Drain, stop: impl Future<Output = ()>) {
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut doors = tokio::task::JoinSet::new();
        for (listener, of) in self.doors {
            let door = match of {
                None => Door::Clients(None),
                Some((tls, false)) => Door::Clients(Some(tls)),
                Some((tls, true)) => Door::Routers(tls),
            };
            doors.spawn(serve::run(router.clone(), listener, door, phases.clone()));
        }
        let upkeep = tokio::spawn(upkeep(router.clone()));
        stop.await;
        // Other routers send nothing more, and who watches `/readyz` neither.
        router.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(drain.notice).await;
        phase.send_replace(Phase::Draining);
        let all = async {
            while doors.join_next().await.is_some() {}
            // Connections that have switched to another protocol have left their doors.
            while router.counts.tunnels.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(TICK).await;
            }
        };
        if tokio::time::timeout(drain.timeout, all).await.is_err() {
            tracing::warn!(
                "requests are still under way after the time for that: they are broken off"
            );
        }
        phase.send_replace(Phase::Over);
        while doors.join_next().await.is_some() {}
        upkeep.abort();
    }
}

async fn upkeep(router: Arc<Router>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut learned = std::time::Instant::now();
    loop {
        tick.tick().await;
        router.tick();
        if learned.elapsed() >= LEARN {
            learned = std::time::Instant::now();
            router.learn();
            router.sweep();
        }
    }
}

/// Follows a file of services: one that changes and can be used is applied; one that cannot is
/// said, and changes nothing. Runs for ever.
pub async fn follow_file(router: Arc<Router>, path: PathBuf, every: Duration) {
    let mut last = table::read(&path).ok();
    let mut said = None;
    loop {
        tokio::time::sleep(every).await;
        let of = path.clone();
        let read = tokio::task::spawn_blocking(move || table::read(&of)).await;
        let Ok(read) = read else { continue };
        let applied = match read {
            Ok(table) if last.as_ref() == Some(&table) => {
                said = None;
                continue;
            }
            Ok(table) => router.apply(&table).map(|()| last = Some(table)),
            Err(error) => Err(error.to_string()),
        };
        match applied {
            Ok(()) => said = None,
            Err(error) if said.as_ref() != Some(&error) => {
                tracing::error!(
                    error,
                    "the services changed but cannot be used: staying with the old ones"
                );
                said = Some(error);
            }
            Err(_) => {}
        }
    }
}
