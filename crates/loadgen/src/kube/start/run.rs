//! One run: a store that is some way off, then a control plane, then installs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use playground::api::{Api, items};
use playground::backend::{self, Backend};
use playground::cluster::Programs;
use playground::control_plane::{ControlPlane, Plan, READY_TIMEOUT_FAR};
use playground::guard::Guard;
use playground::kwok;
use playground::members;
use playground::store::{self, Endpoints};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

use super::install::{Installed, Installer, wait_until};
use super::report::Run;
use super::schema::{Definition, definitions};
use crate::kube::progress::Progress;
use crate::kube::{Result, stores};
use crate::{Error, Interrupt};

/// As kubeadm's components, so that what is measured is not their own limit; both theses used
/// defaults, with controllers that had fewer objects to make.
const CLIENT_QPS: u32 = 5000;
/// What a control plane makes in each of these, before it is said to be there.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Names of the installs that run at once, as in the slides.
const RELEASES: [&str; 4] = ["prometheus", "prometheus1", "prometheus2", "prometheus3"];
const LOOK: Duration = Duration::from_millis(50);

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// An apiserver that is given all members of etcd.
    Etcd,
    /// One that is given `orlop proxy` before the same.
    Proxy,
    /// One that is given the leader: the best that a proxy could do.
    Leader,
    /// One on orlop, a single server.
    Orlop,
}

impl Way {
    /// The one called `name`.
    pub(crate) fn parse(name: &str) -> Result<Way> {
        match name {
            "etcd" => Ok(Way::Etcd),
            "proxy" => Ok(Way::Proxy),
            "leader" => Ok(Way::Leader),
            "orlop" => Ok(Way::Orlop),
            _ => Err(Error::Argument(format!(
                "`{name}` is nothing that --mode start compares: etcd, proxy, leader, orlop"
            ))),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Etcd => "etcd",
            Way::Proxy => "proxy",
            Way::Leader => "leader",
            Way::Orlop => "orlop",
        })
    }
}

/// When what was there, in seconds from the start of kube-apiserver, and how long installs took.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Phases {
    /// The apiserver says that it is ready.
    pub(crate) apiserver_s: f64,
    /// Controllers and scheduler lead, and the system's objects exist.
    pub(crate) control_plane_s: f64,
    /// Each install by itself.
    pub(crate) installs: Vec<Installed>,
}

/// Everything that runs have in common.
pub(crate) struct StartBench {
    pub(crate) programs: Programs,
    pub(crate) nodes: u32,
    pub(crate) installs: usize,
    pub(crate) dir: PathBuf,
    pub(crate) orlop: PathBuf,
    pub(crate) interrupt: Interrupt,
    pub(crate) guard: Guard,
}

impl StartBench {
    /// Runs once: `members` say how far away what is, whoever is compared.
    ///
    /// # Errors
    /// If a program does not start, something is refused, or the user interrupts.
    pub(crate) async fn run(
        &mut self,
        way: Way,
        round: usize,
        members: &members::Setup,
        progress: &mut Progress,
    ) -> Result<Run> {
        let distances = members.distances.clone();
        progress.title(format!("round {round} {way}"));
        progress.say("starting the store");
        let dir = stores::directory_in(&self.dir)?;
        self.guard.remove_at_end(dir.path())?;
        let interrupt = self.interrupt.clone();
        let running = async {
            let setup = self.backend(way, members.clone());
            let mut backend = Backend::start(setup, dir.path(), None).await?;
            let first = leader_of(&backend).await?;
            let endpoints = backend.endpoints().clone();
            let phases = tokio::select! {
                phases = self.measure(&endpoints, dir.path(), progress) => phases?,
                error = ended(&mut backend) => return Err(error.into()),
            };
            let moved = leader_of(&backend).await? != first;
            backend.stop()?;
            Ok(Run {
                way,
                round,
                distances: (&distances).into(),
                leader_moved: moved,
                phases,
            })
        };
        tokio::select! {
            run = running => run,
            () = interrupted(&interrupt) => Err(Error::Interrupted),
        }
    }

    fn backend(&self, way: Way, members: members::Setup) -> backend::Setup {
        let way = match way {
            Way::Etcd => backend::Way::All,
            Way::Leader => backend::Way::Leader,
            Way::Proxy => backend::Way::Proxy(self.orlop.clone()),
            Way::Orlop => {
                return backend::Setup::Store {
                    store: store::Setup::new(store::Kind::Orlop, self.orlop.clone()),
                    // As far away as the one that would lead.
                    delay: members.distances.of(members.leader.unwrap_or_default()),
                };
            }
        };
        backend::Setup::Members { members, way }
    }

    async fn measure(
        &self,
        endpoints: &Endpoints,
        dir: &Path,
        progress: &mut Progress,
    ) -> Result<Phases> {
        // These take a second or two of this machine, which is none of the store's.
        let definitions: Vec<Value> = definitions()
            .iter()
            .map(Definition::object)
            .collect::<Result<_>>()?;
        let definitions = Rc::new(definitions);
        progress.say("starting a control plane");
        let mut phases = Phases::default();
        let plan = Plan {
            binaries: self.programs.kube.clone(),
            checks_cache: false,
            client_qps: Some(CLIENT_QPS),
            port: 0,
            ready_timeout: READY_TIMEOUT_FAR,
        };
        let began = Instant::now();
        let mut plane = ControlPlane::start_as(plan, dir, endpoints, &[]).await?;
        phases.apiserver_s = began.elapsed().as_secs_f64();
        for program in ["kube-controller-manager", "kube-scheduler"] {
            plane.start_component(program, program)?;
        }
        let api = plane.api();
        system_is_there(&api).await?;
        phases.control_plane_s = began.elapsed().as_secs_f64();
        let mut nodes = None;
        if let Some(program) = &self.programs.kwok {
            progress.say("waiting for nodes");
            kwok::create_nodes(&api, self.nodes).await?;
            nodes = Some(kwok::start(
                program,
                &plane.write_kubeconfig("admin")?,
                dir,
            )?);
            kwok::wait_for_nodes(&api, self.nodes).await?;
        }
        progress.say("installing");
        let mut installs = JoinSet::new();
        for name in RELEASES.iter().take(self.installs) {
            let api = Arc::clone(&api);
            installs.spawn_local(Installer::new(api, name, Rc::clone(&definitions)).run());
        }
        while let Some(installed) = installs.join_next().await {
            phases
                .installs
                .push(installed.map_err(|_| Error::Panicked)??);
        }
        plane.check_alive()?;
        drop(nodes);
        plane.stop();
        Ok(phases)
    }
}

/// Ends, with the end of its log, when a program of the store does. Who waits for what a dead
/// store never says would learn of it at a time-out only, minutes later.
async fn ended(backend: &mut Backend) -> playground::Error {
    loop {
        if let Err(error) = backend.check_running() {
            return error;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Which of several members leads, from 0; none of one server.
async fn leader_of(backend: &Backend) -> Result<Option<usize>> {
    match backend.members() {
        Some(members) => Ok(members.leader().await?),
        None => Ok(None),
    }
}

/// Waits until controllers and scheduler lead, and what they make in each namespace is there.
/// It reads from the apiserver's cache, so that looking is no load on the store.
async fn system_is_there(api: &Api) -> Result<()> {
    wait_until("the control plane's objects exist", || async {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?resourceVersion=0";
        let accounts = "/api/v1/serviceaccounts?resourceVersion=0";
        let authorities = "/api/v1/configmaps?resourceVersion=0";
        let leases = api.get(leases).await?;
        let leads = |name: &str| {
            items(&leases).iter().any(|lease| {
                lease["metadata"]["name"] == name && lease["spec"]["holderIdentity"].is_string()
            })
        };
        if !leads("kube-controller-manager") || !leads("kube-scheduler") {
            return Ok(false);
        }
        let (accounts, authorities) = (api.get(accounts).await?, api.get(authorities).await?);
        let in_each = |list: &Value, name: &str| {
            NAMESPACES.iter().all(|namespace| {
                items(list).iter().any(|item| {
                    item["metadata"]["name"] == name && item["metadata"]["namespace"] == *namespace
                })
            })
        };
        Ok(in_each(&accounts, "default") && in_each(&authorities, "kube-root-ca.crt"))
    })
    .await
}

async fn interrupted(interrupt: &Interrupt) {
    while interrupt.check().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}
