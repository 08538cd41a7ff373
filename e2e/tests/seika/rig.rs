//! A control plane with hollow nodes, and controllers of Seika as users run them: by the packaged
//! manifests, with the rights of their ServiceAccount.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::kube::api::{Api, items};
use e2e::kube::control_plane::{ControlPlane, Plan, READY_TIMEOUT};
use e2e::kube::proc::{Process, free_port, run};
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Error, Result, binaries, ensure, eventually, fail};
use playground::kwok;
use serde_json::{Value, json};

/// On two cores that other tests use too, in a debug build.
pub(crate) const CONVERGES: Duration = Duration::from_secs(120);
/// Of the election, so that a takeover takes seconds.
const LEASE_DURATION_MS: u32 = 4_000;
/// Calls a second of Kubernetes' own controllers: far more than they make here.
pub(crate) const CLIENT_QPS: u32 = 1_000;
pub(crate) const NAMESPACE: &str = "seika-test";

/// A controller's process.
pub(crate) struct Controller {
    pub(crate) name: String,
    pub(crate) process: Process,
    pub(crate) port: u16,
}

/// Everything that runs.
pub(crate) struct Rig {
    // In the order in which they have to end.
    pub(crate) controllers: Vec<Controller>,
    kwok: Process,
    pub(crate) plane: ControlPlane,
    store: Store,
    pub(crate) api: Arc<Api>,
    pub(crate) dir: PathBuf,
    pub(crate) admin: PathBuf,
    account: PathBuf,
    started: u32,
}

fn packaged(path: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/fleet");
    Path::new(root).join(path)
}

const STRICTLY: [&str; 3] = ["apply", "--server-side", "--validate=strict"];

fn kubectl(kubeconfig: &Path, args: &[&str]) -> Result<String> {
    run(Command::new(binaries("kube-1.37")?.join("kubectl"))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .args(args))
}

/// `kubectl apply -k` of the definition.
fn define(kubeconfig: &Path) -> Result<()> {
    let crd = packaged("crd").display().to_string();
    let mut args = STRICTLY.to_vec();
    args.extend(["-k", &crd]);
    kubectl(kubeconfig, &args)?;
    let established = [
        "wait",
        "crd/seikas.batch.bonavadeur.io",
        "--for=condition=Established",
    ];
    kubectl(kubeconfig, &established).map(|_| ())
}

impl Rig {
    /// Starts a control plane with `nodes` hollow nodes, `node-0` and so on, and installs Seika;
    /// no controller yet.
    pub(crate) async fn start(dir: &Path, nodes: u32) -> Result<Self> {
        let store = Store::start(Kind::under_test()?, "store", dir, None, &[]).await?;
        let plan = Plan {
            binaries: binaries("kube-1.37")?,
            checks_cache: true,
            client_qps: Some(CLIENT_QPS),
            port: 0,
            ready_timeout: READY_TIMEOUT,
        };
        let mut plane = ControlPlane::start_as(plan, dir, &store.endpoints(), &[]).await?;
        let api = plane.api();
        let admin = plane.write_kubeconfig("admin")?;
        // Before the controller manager: its garbage collector looks for new kinds every 30 s only.
        define(&admin)?;
        for program in ["kube-controller-manager", "kube-scheduler"] {
            plane.start_component(program, program)?;
        }
        kwok::create_nodes(&api, nodes).await?;
        let program = binaries("kwok")?.join("kwok");
        let kwok = kwok::start(&program, &admin, dir)?;
        kwok::wait_for_nodes(&api, nodes).await?;
        let mut rig = Rig {
            controllers: Vec::new(),
            kwok,
            plane,
            store,
            api,
            dir: dir.to_owned(),
            account: admin.clone(),
            admin,
            started: 0,
        };
        rig.install().await?;
        Ok(rig)
    }

    /// The processes that run: name and process id.
    pub(crate) fn pids(&self) -> Vec<(String, u32)> {
        let mut pids = self.plane.pids();
        pids.extend(self.store.pid().map(|pid| ("store".into(), pid)));
        pids.push(("kwok".into(), self.kwok.id()));
        let controllers = self.controllers.iter();
        pids.extend(controllers.map(|c| ("Seika's controller".into(), c.process.id())));
        pids
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl(&self.admin, args)
    }

    /// `kubectl apply -k` of what is packaged, first without effect; then a kubeconfig with the
    /// rights that the manifests give.
    async fn install(&mut self) -> Result<()> {
        let all = packaged("seika").display().to_string();
        let apply = |path: &str, more: &[&str]| {
            let mut args = STRICTLY.to_vec();
            args.extend(["-k", path]);
            args.extend(more);
            self.kubectl(&args)
        };
        // Its namespace has to be there even for a trial.
        self.kubectl(&["create", "namespace", "orlop-fleet"])?;
        apply(&all, &["--dry-run=server"])?;
        apply(&all, &["--force-conflicts"])?;
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
        eventually("a default ServiceAccount", CONVERGES, || {
            self.api.find(&account)
        })
        .await?;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": 7200 }
        });
        let path = "/api/v1/namespaces/orlop-fleet/serviceaccounts/orlop-seika/token";
        let token = self.api.create(path, &request).await?["status"]["token"].take();
        let mut config: Value = serde_json::from_slice(&std::fs::read(&self.admin)?)?;
        config["users"][0]["user"]["token"] = token;
        self.account = self.dir.join("orlop-seika.kubeconfig");
        std::fs::write(&self.account, serde_json::to_vec(&config)?)?;
        Ok(())
    }

    /// Starts one more controller.
    pub(crate) fn start_controller(&mut self) -> Result<()> {
        self.started += 1;
        let name = format!("controller-{}", self.started);
        let port = free_port()?;
        let mut command = Command::new(e2e::fleet::program()?);
        command
            .args(["seika", "run", "--log-level=debug", "--log-format=console"])
            .arg(format!("--kubeconfig={}", self.account.display()))
            .arg(format!("--metrics-addr=127.0.0.1:{port}"))
            .arg(format!("--lease-duration-ms={LEASE_DURATION_MS}"))
            .arg(format!("--identity={name}"));
        let process = Process::start(&name, &self.dir, &mut command)?;
        self.controllers.push(Controller {
            name,
            process,
            port,
        });
        Ok(())
    }

    /// Where the controller that leads is among the controllers.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let path = "/apis/coordination.k8s.io/v1/namespaces/orlop-fleet/leases/orlop-seika";
        eventually("a controller leads", CONVERGES, || async {
            let lease = self.api.get(path).await?;
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            Ok(self.controllers.iter().position(|c| c.name == holder))
        })
        .await
    }

    /// Fails if a program has ended that should run.
    pub(crate) fn check(&mut self) -> Result<()> {
        for controller in &mut self.controllers {
            controller.process.check_running()?;
        }
        self.plane.check_running()
    }

    /// Creates a Seika.
    pub(crate) async fn create(&self, seika: &Value) -> Result<Value> {
        self.api.create(&seikas(), seika).await
    }

    /// Says what is wanted: exactly this.
    pub(crate) async fn want(&self, name: &str, wanted: &[(&str, u32)]) -> Result<()> {
        let path = format!("{}/{name}", seikas());
        let now = self.api.get(&path).await?;
        let mut map = serde_json::Map::new();
        // A merge patch takes away what is null.
        for node in now["spec"]["repurika"].as_object().into_iter().flatten() {
            map.insert(node.0.clone(), Value::Null);
        }
        for (node, n) in wanted {
            map.insert((*node).into(), (*n).into());
        }
        let patch = json!({ "spec": { "repurika": map } });
        self.api.patch(&path, &patch).await.map(|_| ())
    }

    /// The pods of `name`, by label.
    pub(crate) async fn pods(&self, name: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{name}");
        Ok(items(&self.api.get(&path).await?).to_vec())
    }

    /// Waits until exactly the wanted pods of `name` are there and ready, and the status says so.
    pub(crate) async fn converges(&self, name: &str, wanted: &[(&str, u32)]) -> Result<Value> {
        let began = Instant::now();
        let mut said_s = 0;
        eventually(&format!("{name} has exactly {wanted:?}"), CONVERGES, || {
            let now_s = began.elapsed().as_secs();
            let says = now_s >= said_s + 10;
            if says {
                said_s = now_s;
            }
            async move {
                let found = self.is_exact(name, wanted).await;
                if let (true, Err(error)) = (says, &found) {
                    println!("after {now_s} s: {error}");
                }
                found.map(Some)
            }
        })
        .await
    }

    /// Whether exactly the wanted pods are there and ready, and the status says so; it is returned.
    pub(crate) async fn is_exact(&self, name: &str, wanted: &[(&str, u32)]) -> Result<Value> {
        let seika = self.api.get(&format!("{}/{name}", seikas())).await?;
        let pods = self.pods(name).await?;
        let total: u32 = wanted.iter().map(|(_, n)| n).sum();
        ensure(pods.len() == total as usize, || {
            format!("{} pods, {}", pods.len(), seika["status"])
        })?;
        for (node, n) in wanted {
            let here = pods.iter().filter(|pod| pod["spec"]["nodeName"] == *node);
            let ready = here.filter(|pod| is_ready(pod)).count();
            ensure(ready == *n as usize, || format!("{node}: {ready} of {n}"))?;
        }
        let status = &seika["status"];
        ensure(
            status["observedGeneration"] == seika["metadata"]["generation"]
                && status["readyTotal"].as_u64() == Some(u64::from(total))
                && status["updatedTotal"].as_u64() == Some(u64::from(total))
                && condition(&seika, "Ready")["status"] == "True",
            || format!("status {status}"),
        )?;
        Ok(seika)
    }

    /// Waits until `node` of `name` has this reason in the status; its message.
    pub(crate) async fn says(&self, name: &str, node: &str, reason: &str) -> Result<String> {
        let path = format!("{}/{name}", seikas());
        eventually(
            &format!("{name} on {node}: {reason}"),
            CONVERGES,
            || async {
                let seika = self.api.get(&path).await?;
                let nodes = seika["status"]["nodes"].as_array();
                let found = nodes.into_iter().flatten().find(|n| n["name"] == node);
                let Some(found) = found else {
                    return fail(format!("not in {}", seika["status"]));
                };
                ensure(found["reason"] == reason, || found.to_string())?;
                Ok(Some(
                    found["message"].as_str().unwrap_or_default().to_owned(),
                ))
            },
        )
        .await
    }

    /// Deletes a Seika and waits until its pods are gone.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        self.api.delete(&format!("{}/{name}", seikas())).await?;
        eventually(&format!("the pods of {name} go"), CONVERGES, || async {
            Ok(self.pods(name).await?.is_empty().then_some(()))
        })
        .await
    }

    /// A series of a controller.
    pub(crate) async fn series(&self, controller: usize, series: &str) -> Result<f64> {
        let port = self.controllers[controller].port;
        let client = e2e::kube::http::Client::plain(port);
        let (_, text) = client.page("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        let value = line.and_then(|rest| rest.trim().parse().ok());
        value.ok_or_else(|| Error::Failed(format!("no {series} in {text}")))
    }
}

pub(crate) fn seikas() -> String {
    format!("/apis/batch.bonavadeur.io/v1/namespaces/{NAMESPACE}/seikas")
}

pub(crate) fn condition(seika: &Value, type_: &str) -> Value {
    let conditions = seika["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == type_);
    found.cloned().unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A Seika of pods with the label `app: NAME`.
pub(crate) fn seika(name: &str, wanted: &[(&str, u32)]) -> Value {
    let repurika: serde_json::Map<_, _> = wanted
        .iter()
        .map(|(node, n)| ((*node).to_owned(), (*n).into()))
        .collect();
    json!({
        "apiVersion": "batch.bonavadeur.io/v1", "kind": "Seika",
        "metadata": { "name": name },
        "spec": {
            "repurika": repurika,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "hello:1" }] }
            }
        }
    })
}
