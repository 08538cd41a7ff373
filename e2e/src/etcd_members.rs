//! A cluster of real etcds with TLS, whose members are killed, stopped, cut off, added, removed
//! and given other certificates.
//!
//! Members speak to each other straight, or by relays, one in front of each peer port. A relay
//! reads who calls (etcd says so in the head of each request), so that one member can be cut off
//! from the others in both directions, and from nobody else. Relays run on the test's own runtime:
//! a test that blocks it starts members without.

mod relay;

use crate::kube::etcdctl::Etcdctl;
use crate::kube::pki::{Authority, Pair};
use crate::kube::proc::{Process, free_port};
use crate::kube::store::{Tls, without_own_variables};
use crate::kube::{Error, Result, binaries, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;
use playground::members::MemberPlace;
use relay::Relay;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Longest wait for a member to answer, or for a leader.
const READY: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Another crate's error, as this one's.
pub fn told(error: impl Display) -> Error {
    Error::Failed(error.to_string())
}

/// A member.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Port of its plain pages.
    pub metrics_port: u16,
    port: u16,
    peer_port: u16,
    /// What stands before its peer port, if anything does.
    relay: Option<Relay>,
    process: Option<Process>,
}

/// How members reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peers {
    Straight,
    ByRelays,
}

/// The cluster. Dropping it ends its processes.
#[derive(Debug)]
pub struct EtcdMembers {
    dir: PathBuf,
    program: PathBuf,
    /// Who signs certificates now.
    pub authority: Authority,
    server: Pair,
    /// What a client shows; its files may be replaced.
    pub client: Pair,
    /// Whom a client trusts; the file may be replaced.
    pub ca: PathBuf,
    /// The members that there are.
    pub members: Vec<Member>,
    peers: Peers,
    cut: watch::Sender<Option<u64>>,
    made: usize,
}

impl EtcdMembers {
    /// `n` etcds of one of the pinned sets, ready, with a leader; each can be [cut
    /// off](Self::cut_off).
    ///
    /// # Errors
    /// If they cannot be started.
    pub async fn start(set: &str, n: usize, dir: &Path) -> Result<Self> {
        Self::start_with(set, n, dir, Peers::ByRelays).await
    }

    /// The same without relays: none can be cut off, and they go on while the test blocks its
    /// runtime.
    ///
    /// # Errors
    /// If they cannot be started.
    pub async fn start_straight(set: &str, n: usize, dir: &Path) -> Result<Self> {
        Self::start_with(set, n, dir, Peers::Straight).await
    }

    async fn start_with(set: &str, n: usize, dir: &Path, peers: Peers) -> Result<Self> {
        let authority = Authority::new(dir, "first")?;
        let (server, client) = (authority.sign("server")?, authority.sign("client")?);
        let ca = dir.join("ca.crt");
        fs::copy(&authority.cert, &ca)?;
        let mut cluster = EtcdMembers {
            dir: dir.to_owned(),
            program: binaries(set)?.join("etcd"),
            authority,
            server,
            client,
            ca,
            members: Vec::new(),
            peers,
            cut: watch::channel(None).0,
            made: 0,
        };
        for _ in 0..n {
            let member = cluster.make().await?;
            cluster.members.push(member);
        }
        let all = cluster.initial();
        for at in 0..n {
            cluster.spawn(at, &all, "new")?;
        }
        for at in 0..n {
            let id = cluster.until_answers(at).await?;
            cluster.members[at].is_known(id);
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    async fn make(&mut self) -> Result<Member> {
        let name = format!("m{}", self.made);
        self.made += 1;
        self.authority.sign(&name)?;
        let peer_port = free_port()?;
        let relay = match self.peers {
            Peers::Straight => None,
            Peers::ByRelays => {
                Some(Relay::start(free_port()?, peer_port, self.cut.subscribe()).await?)
            }
        };
        Ok(Member {
            relay,
            name,
            id: 0,
            metrics_port: free_port()?,
            port: free_port()?,
            peer_port,
            process: None,
        })
    }

    fn initial(&self) -> String {
        let all = self.members.iter();
        let all = all.map(|m| format!("{}={}", m.name, m.peer_url()));
        all.collect::<Vec<_>>().join(",")
    }

    fn spawn(&mut self, at: usize, initial: &str, state: &str) -> Result<()> {
        let member = &mut self.members[at];
        let file = |name: String| self.dir.join(name).display().to_string();
        let (url, name) = (member.url(), &member.name);
        let mut command = Command::new(&self.program);
        without_own_variables(&mut command);
        let place = MemberPlace {
            name,
            data_dir: &self.dir.join(format!("{name}-data")),
            listen_client_url: &url,
            advertise_client_url: &url,
            metrics_port: member.metrics_port,
            listen_peer_url: &format!("http://127.0.0.1:{}", member.peer_port),
            advertise_peer_url: &member.peer_url(),
            initial_cluster: initial,
        };
        command.args(place.flags()).args([
            format!("--initial-cluster-state={state}"),
            format!("--cert-file={}", file(format!("{name}.crt"))),
            format!("--key-file={}", file(format!("{name}.key"))),
            format!("--trusted-ca-file={}", file("ca.crt".to_owned())),
            "--client-cert-auth".to_owned(),
            "--unsafe-no-fsync".to_owned(),
        ]);
        member.process = Some(Process::start(name, &self.dir, &mut command)?);
        Ok(())
    }

    /// A client's connection to one member.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn connect(&self, at: usize) -> Result<Channel> {
        let pem = |path: &Path| fs::read(path);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem(&self.ca)?))
            .identity(Identity::from_pem(
                pem(&self.client.cert)?,
                pem(&self.client.key)?,
            ));
        let endpoint = Endpoint::from_shared(self.members[at].url()).map_err(told)?;
        let endpoint = endpoint
            .tls_config(tls)
            .map_err(told)?
            .timeout(CALL_TIMEOUT);
        endpoint
            .connect_timeout(CALL_TIMEOUT)
            .connect()
            .await
            .map_err(told)
    }

    /// What a member says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self, at: usize) -> Result<pb::StatusResponse> {
        let mut client = MaintenanceClient::new(self.connect(at).await?);
        let status = client.status(pb::StatusRequest::default()).await;
        Ok(status.map_err(told)?.into_inner())
    }

    async fn until_answers(&mut self, at: usize) -> Result<u64> {
        let began = Instant::now();
        loop {
            if let Ok(status) = self.status(at).await
                && status.leader != 0
            {
                return Ok(status.header.map_or(0, |header| header.member_id));
            }
            if let Some(process) = &mut self.members[at].process {
                process.check_running()?;
            }
            let name = &self.members[at].name;
            ensure(began.elapsed() < READY, || format!("{name} is not ready"))?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The member that leads, by the highest term; waits for one.
    ///
    /// # Errors
    /// If none leads for long.
    pub async fn leader(&self) -> Result<usize> {
        self.leader_but(None).await
    }

    /// The same, and another than `not`, which is not asked.
    ///
    /// # Errors
    /// If none leads for long.
    pub async fn leader_but(&self, not: Option<usize>) -> Result<usize> {
        let began = Instant::now();
        loop {
            let mut found = None;
            for at in 0..self.members.len() {
                if self.members[at].process.is_none() || Some(at) == not {
                    continue;
                }
                if let Ok(Ok(status)) =
                    tokio::time::timeout(Duration::from_secs(1), self.status(at)).await
                    && status.leader == self.members[at].id
                {
                    found = found.max(Some((status.raft_term, at)));
                }
            }
            if let Some((_, at)) = found {
                return Ok(at);
            }
            ensure(began.elapsed() < READY, || "nobody leads".to_owned())?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All client URLs.
    #[must_use]
    pub fn urls(&self) -> String {
        let all: Vec<_> = self.members.iter().map(Member::url).collect();
        all.join(",")
    }

    /// TLS files of clients, and of a server that stands in for a member.
    #[must_use]
    pub fn tls(&self) -> Tls {
        Tls {
            server: self.server.clone(),
            ca: self.ca.clone(),
            client: Some(self.client.clone()),
        }
    }

    /// etcdctl for these URLs.
    ///
    /// # Errors
    /// If there is none.
    pub fn etcdctl(&self, urls: &str) -> Result<Etcdctl> {
        Etcdctl::new(urls, Some(&self.tls()))
    }

    /// kill -9.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            process.kill();
        }
    }

    /// Starts a member again, on its data, and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn start_again(&mut self, at: usize) -> Result<()> {
        let all = self.initial();
        self.spawn(at, &all, "existing")?;
        self.until_answers(at).await.map(drop)
    }

    /// SIGTERM, and start again.
    ///
    /// # Errors
    /// If it does not end, or not answer.
    pub async fn restart(&mut self, at: usize) -> Result<()> {
        if let Some(mut process) = self.members[at].process.take() {
            let ended =
                tokio::task::spawn_blocking(move || process.terminate(Duration::from_secs(20)));
            ended.await.map_err(told)??;
        }
        self.start_again(at).await
    }

    /// SIGSTOP: it is silent, and its connections stay.
    ///
    /// # Errors
    /// Those of the system.
    pub fn pause(&self, at: usize) -> Result<()> {
        self.signal(at, Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// Those of the system.
    pub fn resume(&self, at: usize) -> Result<()> {
        self.signal(at, Signal::CONT)
    }

    fn signal(&self, at: usize, signal: Signal) -> Result<()> {
        let id = self.members[at].process.as_ref().map_or(0, Process::id);
        match i32::try_from(id).ok().and_then(Pid::from_raw) {
            Some(pid) => Ok(kill_process(pid, signal).map_err(std::io::Error::from)?),
            None => fail("it does not run"),
        }
    }

    /// Cuts a member off from its peers, and from nobody else; `None` heals that. Without relays
    /// it does nothing.
    pub fn cut_off(&self, at: Option<usize>) {
        self.cut.send_replace(at.map(|at| self.members[at].id));
    }

    /// Gives the lead to a member.
    ///
    /// # Errors
    /// If it is not taken.
    pub async fn move_leader(&self, to: usize) -> Result<()> {
        let target_id = self.members[to].id;
        let leader = self.leader().await?;
        let mut client = MaintenanceClient::new(self.connect(leader).await?);
        let moved = client
            .move_leader(pb::MoveLeaderRequest { target_id })
            .await;
        moved.map(drop).map_err(told)
    }

    /// Adds a member and starts it; its number.
    ///
    /// # Errors
    /// If it is not taken, or does not answer.
    pub async fn add(&mut self) -> Result<usize> {
        self.add_as(false).await
    }

    /// Adds a learner, which has no vote, and starts it; its number.
    ///
    /// # Errors
    /// If it is not taken, or does not answer.
    pub async fn add_learner(&mut self) -> Result<usize> {
        self.add_as(true).await
    }

    async fn add_as(&mut self, is_learner: bool) -> Result<usize> {
        let mut member = self.make().await?;
        let request = pb::MemberAddRequest {
            peer_ur_ls: vec![member.peer_url()],
            is_learner,
        };
        let began = Instant::now();
        let added = loop {
            let leader = self.leader().await?;
            let mut client = ClusterClient::new(self.connect(leader).await?);
            match client.member_add(request.clone()).await {
                Ok(added) => break added.into_inner(),
                Err(status) => until_connected(&status, began).await?,
            }
        };
        member.is_known(added.member.map_or(0, |member| member.id));
        self.members.push(member);
        let at = self.members.len() - 1;
        let all = self.initial();
        self.spawn(at, &all, "existing")?;
        self.until_answers(at).await?;
        Ok(at)
    }

    /// Gives a learner its vote.
    ///
    /// # Errors
    /// If it is not promoted for long.
    pub async fn promote(&self, at: usize) -> Result<()> {
        let id = self.members[at].id;
        let began = Instant::now();
        loop {
            let leader = self.leader().await?;
            let mut client = ClusterClient::new(self.connect(leader).await?);
            let promoted = client.member_promote(pb::MemberPromoteRequest { id }).await;
            match promoted {
                Ok(_) => return Ok(()),
                // It has not caught up yet.
                Err(_) if began.elapsed() < READY => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(status) => return Err(told(status)),
            }
        }
    }

    /// Removes a member, and ends its process.
    ///
    /// # Errors
    /// If it is not removed.
    pub async fn remove(&mut self, at: usize) -> Result<()> {
        let other = (0..self.members.len()).find(|other| *other != at);
        let Some(other) = other else {
            return fail("it is the only one");
        };
        let id = self.members[at].id;
        let began = Instant::now();
        loop {
            let mut client = ClusterClient::new(self.connect(other).await?);
            match client.member_remove(pb::MemberRemoveRequest { id }).await {
                Ok(_) => break,
                Err(status) => until_connected(&status, began).await?,
            }
        }
        self.members.remove(at);
        Ok(())
    }

    /// Goes over to another authority: clients and members trust both from now on. Certificates
    /// are the old ones until they are signed anew; a member reads whom it trusts when it starts.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn trust_another(&mut self) -> Result<()> {
        let next = Authority::new(&self.dir, "second")?;
        write(
            &self.ca,
            format!("{}{}", self.authority.cert_pem, next.cert_pem),
        )?;
        self.authority = next;
        Ok(())
    }

    /// Clients and members trust the newest authority only.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn trust_only_newest(&self) -> Result<()> {
        write(&self.ca, self.authority.cert_pem.clone())
    }

    /// Signs a member's certificate anew, by the newest authority.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn sign_member(&self, at: usize) -> Result<()> {
        self.authority.sign(&self.members[at].name).map(drop)
    }

    /// Signs the client's certificate anew, by the newest authority.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn sign_client(&self) -> Result<()> {
        self.authority.sign("client").map(drop)
    }
}

/// etcd changes members only when all have been connected for 5 s: waits, if that is missing.
async fn until_connected(status: &tonic::Status, began: Instant) -> Result<()> {
    let passing = status.message().contains("unhealthy cluster");
    ensure(passing && began.elapsed() < READY, || {
        told(status).to_string()
    })?;
    tokio::time::sleep(Duration::from_millis(250)).await;
    Ok(())
}

/// Replaces a file whole.
fn write(path: &Path, text: String) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    Ok(fs::rename(&next, path)?)
}

impl Member {
    /// Its client URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn peer_url(&self) -> String {
        let port = self.relay.as_ref().map_or(self.peer_port, |r| r.port);
        format!("http://127.0.0.1:{port}")
    }

    /// Its id is known now.
    fn is_known(&mut self, id: u64) {
        self.id = id;
        if let Some(relay) = &self.relay {
            relay.own.send_replace(id);
        }
    }
}
