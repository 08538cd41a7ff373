//! Nodes without kubelets. They register, renew their leases, say that every pod
//! bound to them runs, let pods of Jobs succeed, and remove pods that are being
//! deleted. No container is ever started.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::api::Api;
use super::reflector::Reflector;
use super::{Result, ensure};

/// How often a node renews its lease. A kubelet does every 10 s; more often here,
/// so that a short test sees many renewals.
const LEASE_PERIOD: Duration = Duration::from_secs(4);
/// How often nodes look for work.
const TICK: Duration = Duration::from_millis(100);

/// Running nodes. They end when dropped.
#[derive(Debug)]
pub struct Nodes {
    pods: Arc<Reflector>,
    task: JoinHandle<()>,
}

impl Nodes {
    /// Registers `count` nodes with the apiserver and starts what a kubelet does
    /// for the API.
    ///
    /// # Errors
    /// If a node cannot be registered.
    pub async fn start(api: Arc<Api>, count: usize) -> Result<Self> {
        let names: Vec<String> = (0..count).map(|n| format!("node-{n}")).collect();
        for name in &names {
            register(&api, name).await?;
        }
        let pods = Arc::new(Reflector::start(Arc::clone(&api), "/api/v1/pods"));
        let seen = Arc::clone(&pods);
        let task = tokio::spawn(async move {
            let mut renewed: Option<Instant> = None;
            loop {
                if renewed.is_none_or(|at| at.elapsed() > LEASE_PERIOD) {
                    for name in &names {
                        // A failed renewal is due again soon, as with a kubelet.
                        let _ = renew(&api, name).await;
                    }
                    renewed = Some(Instant::now());
                }
                for pod in seen.objects().values() {
                    let _ = act(&api, pod).await;
                }
                tokio::time::sleep(TICK).await;
            }
        });
        Ok(Self { pods, task })
    }

    /// All pods of the cluster, as the nodes see them.
    #[must_use]
    pub fn pods(&self) -> &Reflector {
        &self.pods
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The time now in the forms of Kubernetes' Time and MicroTime (UTC, RFC 3339).
fn now() -> (String, String) {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 1970 to a date in the proleptic Gregorian calendar, with years
    // that begin on 1 March so that the leap day is the last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    (
        format!("{text}Z"),
        format!("{text}.{:06}Z", since.subsec_micros()),
    )
}

async fn register(api: &Api, name: &str) -> Result<()> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } }
    });
    api.create("/api/v1/nodes", &node).await?;
    let (time, _) = now();
    let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "500" });
    let status = json!({ "status": {
        "capacity": room, "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": time, "lastTransitionTime": time
        }]
    }});
    api.patch(&format!("/api/v1/nodes/{name}/status"), &status)
        .await?;
    Ok(())
}

async fn renew(api: &Api, name: &str) -> Result<()> {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let (_, time) = now();
    let path = format!("{LEASES}/{name}");
    match api.find(&path).await? {
        Some(mut lease) => {
            lease["spec"]["renewTime"] = json!(time);
            api.replace(&path, &lease).await?;
        }
        None => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": name },
                "spec": {
                    "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": time
                }
            });
            api.create(LEASES, &lease).await?;
        }
    }
    Ok(())
}

/// Does the next thing that a kubelet would do for a pod, if there is one.
async fn act(api: &Api, pod: &Value) -> Result<()> {
    if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &pod["metadata"];
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(&metadata["namespace"]),
        text(&metadata["name"])
    );
    let phase = text(&pod["status"]["phase"]);
    let runs_to_end = text(&pod["spec"]["restartPolicy"]) != "Always";
    let done = phase == "Succeeded" || phase == "Failed";
    if metadata["deletionTimestamp"].is_string() {
        // A pod with finalizers stays; deleting it again does no harm.
        if !done
            && metadata["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty())
        {
            set_phase(api, &path, metadata, "Failed").await?;
        }
        api.delete_now(&path, &text(&metadata["uid"])).await?;
    } else if phase == "Pending" {
        set_phase(api, &path, metadata, "Running").await?;
    } else if phase == "Running" && runs_to_end {
        set_phase(api, &path, metadata, "Succeeded").await?;
    }
    Ok(())
}

async fn set_phase(api: &Api, path: &str, metadata: &Value, phase: &str) -> Result<()> {
    let (time, _) = now();
    let ready = if phase == "Running" { "True" } else { "False" };
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .iter()
        .map(|kind| {
            let status = if kind.contains("Ready") {
                ready
            } else {
                "True"
            };
            json!({ "type": kind, "status": status, "lastTransitionTime": time })
        })
        .collect();
    let patch = json!({
        "metadata": { "uid": metadata["uid"] },
        "status": { "phase": phase, "conditions": conditions, "podIP": "192.0.2.10",
                    "podIPs": [{ "ip": "192.0.2.10" }], "startTime": time }
    });
    let answer = api.patch(&format!("{path}/status"), &patch).await?;
    ensure(answer["status"]["phase"] == phase, || {
        format!("{path} did not become {phase}")
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_has_the_form_kubernetes_wants() {
        let (time, micro) = super::now();
        assert_eq!(time.len(), "2026-01-01T00:00:00Z".len());
        assert_eq!(micro.len(), "2026-01-01T00:00:00.000000Z".len());
        assert_eq!(time[..19], micro[..19]);
    }
}
