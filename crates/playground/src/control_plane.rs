//! kube-apiserver, kube-controller-manager and kube-scheduler as child processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::Api;
use crate::pki::{Authority, Pair, write_key};
use crate::proc::{Process, free_port};
use crate::store::{Endpoints, Store};
use crate::{Result, binaries, ensure, fail};

/// A debug-built store, two cores and a cold cache are no excuse beyond this.
pub const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// On a store that is far away, where an apiserver's start makes some hundred calls one after
/// the other, this is still no time to give up.
pub const READY_TIMEOUT_FAR: Duration = Duration::from_secs(600);
/// How long a component may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an apiserver may take to end before it is killed.
const APISERVER_GRACE: Duration = Duration::from_secs(3);
/// What a panic looks like in a component's log, recovered from or not.
const PANIC_SIGNS: [&str; 3] = [
    "Observed a panic",
    "panicked: true",
    "Cache consistency check failed",
];
const SECRET_BYTES: usize = 16;
/// Users that the apiservers know by token: name and groups.
const USERS: [(&str, &str); 3] = [
    ("admin", "system:masters"),
    ("system:kube-controller-manager", ""),
    ("system:kube-scheduler", ""),
];

/// What a control plane is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Directory of kube-apiserver, kube-controller-manager and kube-scheduler.
    pub binaries: PathBuf,
    /// Whether apiservers compare their watch cache with the store, and panic if it differs.
    pub checks_cache: bool,
    /// Requests a second that the controller manager and the scheduler may make; their
    /// burst is the double. None for their defaults, 20 and 50.
    pub client_qps: Option<u32>,
    /// Port of the first apiserver; 0 for a free one.
    pub port: u16,
    /// How long an apiserver may take to become ready.
    pub ready_timeout: Duration,
}

/// A kube-apiserver.
#[derive(Debug)]
pub struct ApiServer {
    name: String,
    port: u16,
    number: usize,
    process: Option<Process>,
    /// Its API, as a user who may do everything.
    pub api: Arc<Api>,
}

/// kube-controller-manager or kube-scheduler.
#[derive(Debug)]
struct Component {
    name: String,
    program: String,
    process: Process,
}

/// A control plane on a store. Its parts end when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    plan: Plan,
    secret: String,
    authority: Authority,
    serving: Pair,
    store_flags: Vec<String>,
    /// Its apiservers; controllers talk to the first.
    pub apiservers: Vec<ApiServer>,
    components: Vec<Component>,
}

/// What proves to this control plane's apiservers that a client is `user`. Other users of
/// the machine can reach the port, so it cannot be guessed.
fn token(secret: &str, user: &str) -> String {
    format!("{}-{secret}", user.replace(':', "-"))
}

fn new_secret() -> Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        Err(_) => fail("the system has no random numbers"),
    }
}

/// What a kube-apiserver is told of its store.
fn store_flags(store: &Endpoints) -> Vec<String> {
    let mut flags = vec![format!("--etcd-servers={}", store.urls.join(","))];
    if let Some(tls) = &store.tls {
        flags.push(format!("--etcd-cafile={}", tls.ca.display()));
        if let Some(client) = &tls.client {
            flags.push(format!("--etcd-certfile={}", client.cert.display()));
            flags.push(format!("--etcd-keyfile={}", client.key.display()));
        }
    }
    flags
}

impl ControlPlane {
    /// Prepares a control plane of the pinned set `set` (`kube-1.37`) on `store`,
    /// and starts one apiserver with `flags` beside its defaults.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn start(dir: &Path, set: &str, store: &Store, flags: &[&str]) -> Result<Self> {
        let plan = Plan {
            binaries: binaries(set)?,
            checks_cache: true,
            client_qps: None,
            port: 0,
            ready_timeout: READY_TIMEOUT,
        };
        Self::start_as(plan, dir, &store.endpoints(), flags).await
    }

    /// Prepares the control plane that `plan` describes on `store`, and starts one apiserver
    /// with `flags` beside its defaults.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn start_as(
        plan: Plan,
        dir: &Path,
        store: &Endpoints,
        flags: &[&str],
    ) -> Result<Self> {
        let authority = Authority::new(dir, "kubernetes")?;
        let serving = authority.sign("kube-apiserver")?;
        write_key(&dir.join("service-account.key"))?;
        let secret = new_secret()?;
        let tokens: String = USERS
            .iter()
            .map(|(user, groups)| format!("{},{user},{user},\"{groups}\"\n", token(&secret, user)))
            .collect();
        std::fs::write(dir.join("tokens.csv"), tokens)?;
        let mut plane = Self {
            dir: dir.to_owned(),
            plan,
            secret,
            authority,
            serving,
            store_flags: store_flags(store),
            apiservers: Vec::new(),
            components: Vec::new(),
        };
        plane.add_apiserver(flags).await?;
        Ok(plane)
    }

    /// Starts one more apiserver on the same store and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn add_apiserver(&mut self, flags: &[&str]) -> Result<()> {
        let number = self.apiservers.len() + 1;
        let port = match self.plan.port {
            port if port != 0 && number == 1 => port,
            _ => free_port()?,
        };
        let api = Arc::new(Api::new(
            port,
            &self.authority.cert,
            &token(&self.secret, "admin"),
        )?);
        let name = format!("kube-apiserver-{number}");
        self.apiservers.push(ApiServer {
            name,
            port,
            number,
            process: None,
            api,
        });
        self.start_apiserver(number - 1, flags).await
    }

    /// Stops an apiserver and starts it again with other flags. As a kubelet does,
    /// it asks first and kills after a while: an apiserver waits up to a minute for
    /// watches that clients hold open.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn restart_apiserver(&mut self, index: usize, flags: &[&str]) -> Result<()> {
        self.stop_apiserver(index);
        self.start_apiserver(index, flags).await
    }

    /// Stops an apiserver until [`ControlPlane::restart_apiserver`].
    pub fn stop_apiserver(&mut self, index: usize) {
        if let Some(mut process) = self.apiservers[index].process.take() {
            let _ = process.terminate(APISERVER_GRACE);
        }
    }

    /// Names another store to the apiservers that are started from now on.
    pub fn use_store(&mut self, store: &Store) {
        self.store_flags = store_flags(&store.endpoints());
    }

    async fn start_apiserver(&mut self, index: usize, flags: &[&str]) -> Result<()> {
        let dir = &self.dir;
        let server = &mut self.apiservers[index];
        let file = |name: &str| dir.join(name).display().to_string();
        let key = file("service-account.key");
        let mut command = Command::new(self.plan.binaries.join("kube-apiserver"));
        if self.plan.checks_cache {
            command.env("KUBE_WATCHCACHE_CONSISTENCY_CHECKER", "true");
        }
        command
            .args(&self.store_flags)
            .arg(format!("--secure-port={}", server.port))
            .arg("--bind-address=127.0.0.1")
            // An endpoint address may not be loopback; nobody connects to this one.
            .arg(format!("--advertise-address=192.0.2.{}", server.number))
            .arg(format!("--tls-cert-file={}", self.serving.cert.display()))
            .arg(format!(
                "--tls-private-key-file={}",
                self.serving.key.display()
            ))
            .arg(format!(
                "--client-ca-file={}",
                self.authority.cert.display()
            ))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={key}.pub"))
            .arg(format!("--service-account-signing-key-file={key}"))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .args(flags);
        let mut process = Process::start(&server.name, dir, &mut command)?;
        let began = Instant::now();
        loop {
            process.check_running()?;
            if matches!(server.api.client().page("/readyz").await, Ok((200, _))) {
                break;
            }
            ensure(began.elapsed() < self.plan.ready_timeout, || {
                format!(
                    "{} is not ready; its log ends:\n{}",
                    server.name,
                    process.tail()
                )
            })?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server.process = Some(process);
        Ok(())
    }

    /// Starts a component called `program` under `name`: kube-controller-manager
    /// or kube-scheduler, with the flags kubeadm gives it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_component(&mut self, program: &str, name: &str) -> Result<()> {
        let kubeconfig = self.write_kubeconfig(&format!("system:{program}"))?;
        let mut command = Command::new(self.plan.binaries.join(program));
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!(
                "--authentication-kubeconfig={}",
                kubeconfig.display()
            ))
            .arg(format!(
                "--authorization-kubeconfig={}",
                kubeconfig.display()
            ))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", free_port()?))
            .arg("--leader-elect=true");
        if let Some(qps) = self.plan.client_qps {
            command
                .arg(format!("--kube-api-qps={qps}"))
                .arg(format!("--kube-api-burst={}", qps * 2));
        }
        if program == "kube-controller-manager" {
            command
                .arg("--use-service-account-credentials=true")
                .arg(format!("--root-ca-file={}", self.authority.cert.display()))
                .arg(format!(
                    "--service-account-private-key-file={}",
                    self.dir.join("service-account.key").display()
                ));
        }
        let process = Process::start(name, &self.dir, &mut command)?;
        let (name, program) = (name.to_owned(), program.to_owned());
        self.components.push(Component {
            name,
            program,
            process,
        });
        Ok(())
    }

    fn component(&self, name: &str) -> Result<usize> {
        let found = self
            .components
            .iter()
            .position(|component| component.name == name);
        found.map_or_else(|| fail(format!("{name} was not started")), Ok)
    }

    /// Stops a component with SIGTERM.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop_component(&mut self, name: &str) -> Result<()> {
        let at = self.component(name)?;
        self.components
            .remove(at)
            .process
            .terminate(STOP_TIMEOUT)
            .map(|_| ())
    }

    /// Waits until a component has ended by itself, as one does that lost its leader
    /// lease. It is gone then, until it is started again.
    ///
    /// # Errors
    /// If it runs on for longer than `timeout`.
    pub async fn wait_for_end(&mut self, name: &str, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        let at = self.component(name)?;
        while self.components[at].process.ended()?.is_none() {
            ensure(began.elapsed() < timeout, || format!("{name} runs on"))?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.components.remove(at);
        Ok(())
    }

    /// Starts components again that have ended, as a kubelet does. Only for tests in
    /// which a leader is bound to lose its lease; elsewhere an end is a failure.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn revive(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        for component in &mut self.components {
            if component.process.ended()?.is_some() {
                ended.push((component.program.clone(), component.name.clone()));
            }
        }
        for (program, name) in ended {
            self.components.retain(|component| component.name != name);
            self.start_component(&program, &name)?;
        }
        Ok(())
    }

    /// Adds to a failure what else is wrong: most often a component has ended.
    ///
    /// # Errors
    /// If `result` is an error.
    pub fn explain(&mut self, result: Result<()>) -> Result<()> {
        match (result, self.check_running()) {
            (Err(error), Err(other)) => fail(format!("{error}\nBesides: {other}")),
            (result, _) => result,
        }
    }

    /// Writes a kubeconfig for `user` and returns its path.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_kubeconfig(&self, user: &str) -> Result<PathBuf> {
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.apiservers[0].port),
                "certificate-authority": self.authority.cert,
            }}],
            "users": [{ "name": user, "user": { "token": token(&self.secret, user) } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }]
        });
        let path = self
            .dir
            .join(format!("{}.kubeconfig", user.replace(':', "-")));
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(path)
    }

    /// Its processes that run: name and process id.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, u32)> {
        let servers = self.apiservers.iter().filter_map(|server| {
            let process = server.process.as_ref()?;
            Some((server.name.clone(), process.id()))
        });
        let components = self
            .components
            .iter()
            .map(|component| (component.name.clone(), component.process.id()));
        servers.chain(components).collect()
    }

    /// Stops everything: first the clients of the apiservers, then these. Whatever does not
    /// end soon after SIGTERM is killed.
    pub fn stop(&mut self) {
        for mut component in self.components.drain(..).rev() {
            let _ = component.process.terminate(APISERVER_GRACE);
        }
        for server in &mut self.apiservers {
            if let Some(mut process) = server.process.take() {
                let _ = process.terminate(APISERVER_GRACE);
            }
        }
    }

    /// Fails if a program has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        let servers = self
            .apiservers
            .iter_mut()
            .filter_map(|server| server.process.as_mut());
        let components = self.components.iter_mut().map(|c| &mut c.process);
        for process in servers.chain(components) {
            process.check_running()?;
        }
        Ok(())
    }

    /// The first apiserver's API.
    #[must_use]
    pub fn api(&self) -> Arc<Api> {
        Arc::clone(&self.apiservers[0].api)
    }

    /// Fails if a program has ended, or if an apiserver's log has a panic: the
    /// consistency checker of its watch cache speaks that way.
    ///
    /// # Errors
    /// With what was found.
    pub fn check_running(&mut self) -> Result<()> {
        let servers = self
            .apiservers
            .iter_mut()
            .filter_map(|server| server.process.as_mut());
        for process in servers.chain(
            self.components
                .iter_mut()
                .map(|component| &mut component.process),
        ) {
            process.check_running()?;
            let log = std::fs::read(process.log())?;
            let log = String::from_utf8_lossy(&log);
            let found = log.lines().find(|line| {
                line.starts_with("panic:") || PANIC_SIGNS.iter().any(|sign| line.contains(sign))
            });
            ensure(found.is_none(), || {
                format!("{}: {}", process.log().display(), found.unwrap_or_default())
            })?;
        }
        Ok(())
    }
}
