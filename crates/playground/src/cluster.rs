//! A whole cluster: store, control plane, hollow nodes, kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::api::Api;
use crate::backend::{self, Backend};
use crate::control_plane::{ControlPlane, Plan, READY_TIMEOUT, READY_TIMEOUT_FAR};
use crate::pki::Authority;
use crate::proc::Process;
use crate::store::Tls;
use crate::{Result, bins, ensure, eventually, fail, kwok};

/// Requests a second that controllers may make. Their defaults (20 and 50) would hide
/// everything else.
const CLIENT_QPS: u32 = 5000;
/// How long controllers may take to make the first ServiceAccount.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a starting cluster's programs are looked after.
const LOOK: Duration = Duration::from_millis(200);
const KUBE_SET: &str = "kube-1.37";

/// Programs of a cluster.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Directory of the Kubernetes programs.
    pub kube: PathBuf,
    /// KWOK, if there are to be nodes.
    pub kwok: Option<PathBuf>,
    /// kubectl, if it is there.
    pub kubectl: Option<PathBuf>,
}

impl Programs {
    /// No programs: for a cluster that somebody else runs.
    #[must_use]
    pub fn none() -> Self {
        Self {
            kube: PathBuf::new(),
            kwok: None,
            kubectl: None,
        }
    }

    /// Takes the programs in `kube_bin`, or the pinned ones, which are built if they are
    /// not in the cache; KWOK only for a cluster with `nodes`. `say` hears of the building.
    ///
    /// # Errors
    /// If a program is missing, or cannot be built.
    pub fn find(kube_bin: Option<&Path>, nodes: u32, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let kube = match kube_bin {
            Some(dir) => dir.to_owned(),
            None => bins::set(KUBE_SET)?.build(say)?,
        };
        for name in [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            ensure(kube.join(name).is_file(), || {
                format!("there is no {name} in {}", kube.display())
            })?;
        }
        let own_kwok = kube.join("kwok");
        let kwok = match nodes {
            0 => None,
            _ if own_kwok.is_file() => Some(own_kwok),
            _ => Some(bins::set("kwok")?.build(say)?.join("kwok")),
        };
        let kubectl = Some(kube.join("kubectl")).filter(|path| path.is_file());
        Ok(Self {
            kube,
            kwok,
            kubectl,
        })
    }
}

/// Where etcd's program is: `given`, or the pinned one, built if it is not in the cache.
///
/// # Errors
/// If it cannot be built.
pub fn etcd_program(given: Option<&Path>, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(path.to_owned()),
        None => Ok(bins::set("etcd")?.build(say)?.join("etcd")),
    }
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Programs.
    pub programs: Programs,
    /// What keeps its objects.
    pub backend: backend::Setup,
    /// Number of hollow nodes.
    pub nodes: u32,
    /// Port of the apiserver; 0 for a free one.
    pub port: u16,
    /// Whether the store takes only the apiserver and who may read the cluster's directory: it
    /// demands a certificate then. Otherwise every user of the machine can read what is in it.
    pub private_store: bool,
}

/// Certificates of a store and its clients, made in `dir`.
fn store_tls(dir: &Path) -> Result<Tls> {
    let authority = Authority::new(dir, "store")?;
    Ok(Tls {
        server: authority.sign("store")?,
        ca: authority.cert.clone(),
        client: Some(authority.sign("store-client")?),
    })
}

/// A running cluster. Dropped, its programs are killed and its directory is removed;
/// [`Cluster::stop`] does it in order.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they have to end.
    kwok: Option<Process>,
    plane: ControlPlane,
    backend: Backend,
    kubeconfig: PathBuf,
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster with everything in `dir`, and waits until its nodes take pods.
    ///
    /// # Errors
    /// If a program does not get ready, with the end of its log.
    pub async fn start(options: Options, dir: TempDir) -> Result<Self> {
        let path = dir.path();
        let tls = match options.private_store {
            true => Some(store_tls(path)?),
            false => None,
        };
        let far = options.backend.is_far();
        let backend = Backend::start(options.backend, path, tls).await?;
        let plan = Plan {
            binaries: options.programs.kube,
            checks_cache: false,
            client_qps: Some(CLIENT_QPS),
            port: options.port,
            ready_timeout: match far {
                true => READY_TIMEOUT_FAR,
                false => READY_TIMEOUT,
            },
        };
        let mut plane = ControlPlane::start_as(plan, path, backend.endpoints(), &[]).await?;
        for program in ["kube-controller-manager", "kube-scheduler"] {
            plane.start_component(program, program)?;
        }
        let kubeconfig = plane.write_kubeconfig("admin")?;
        let api = plane.api();
        kwok::create_nodes(&api, options.nodes).await?;
        let kwok = match &options.programs.kwok {
            Some(program) if options.nodes > 0 => Some(kwok::start(program, &kubeconfig, path)?),
            _ => None,
        };
        let mut cluster = Self {
            kwok,
            plane,
            backend,
            kubeconfig,
            dir,
        };
        let settled = {
            let settling = async {
                kwok::wait_for_nodes(&api, options.nodes).await?;
                let account = "/api/v1/namespaces/default/serviceaccounts/default";
                eventually("a default ServiceAccount", ACCOUNT_TIMEOUT, || {
                    api.find(account)
                })
                .await
                .map(|_| ())
            };
            tokio::select! {
                settled = settling => settled,
                // No use waiting for what a dead program should do.
                dead = cluster.dead() => Err(dead),
            }
        };
        match settled {
            Ok(()) => Ok(cluster),
            Err(error) => fail(format!("the cluster does not get ready: {error}")),
        }
    }

    /// Waits until a program ends by itself; says which.
    async fn dead(&mut self) -> crate::Error {
        loop {
            if let Err(error) = self.check_alive() {
                return error;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The apiserver, as a user who may do everything.
    #[must_use]
    pub fn api(&self) -> std::sync::Arc<Api> {
        self.plane.api()
    }

    /// What keeps its objects.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// A kubeconfig of a user who may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where its files and logs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its processes: a name and a process id each. The backend's are called as it calls them,
    /// an apiserver `kube-apiserver`.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let mut pids = self.backend.pids();
        pids.extend(self.plane.pids().into_iter().map(|(name, pid)| {
            let name = name.strip_suffix("-1").map(str::to_owned).unwrap_or(name);
            (name, pid)
        }));
        pids.extend(self.kwok.as_ref().map(|kwok| ("kwok".into(), kwok.id())));
        pids
    }

    /// Fails if a program has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        self.backend.check_running()?;
        self.plane.check_alive()?;
        match &mut self.kwok {
            Some(kwok) => kwok.check_running(),
            None => Ok(()),
        }
    }

    /// Ends everything in order, and removes the directory, unless that is disabled.
    ///
    /// # Errors
    /// If the store does not end by itself.
    pub fn stop(mut self) -> Result<()> {
        if let Some(mut kwok) = self.kwok.take() {
            kwok.kill();
        }
        self.plane.stop();
        self.backend.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_nodes_needs_no_kwok() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let mut said = Vec::new();
        let mut say = |line: &str| said.push(line.to_owned());
        let found = Programs::find(Some(dir.path()), 0, &mut say).unwrap();
        assert_eq!((found.kwok, said.len()), (None, 0));
    }
}
