//! Watches all pods and says if a node ever had more of a Seika's than it may.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use e2e::kube::api::{Api, full_name, items, revision};
use e2e::kube::reflector::watch;
use e2e::kube::{Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::rig::NAMESPACE;

/// Label value of `app` and node.
type Place = (String, String);

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Place>,
    most: BTreeMap<Place, u32>,
    allowed: BTreeMap<Place, u32>,
    violations: Vec<String>,
    events: u64,
}

/// Ends when it is dropped.
pub(crate) struct Observer {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

fn place(pod: &Value) -> Option<Place> {
    let metadata = &pod["metadata"];
    let owner = metadata["ownerReferences"][0]["kind"].as_str()?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if metadata["namespace"] != NAMESPACE || owner != "Seika" || phase == "Failed" {
        return None;
    }
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/\
        nodeSelectorTerms/0/matchFields/0/values/0";
    let node = pod["spec"]["nodeName"].as_str();
    let node = node.or_else(|| pod.pointer(terms)?.as_str())?;
    let app = metadata["labels"]["app"].as_str()?;
    Some((app.to_owned(), node.to_owned()))
}

impl State {
    fn set(&mut self, name: String, place: Option<Place>) {
        self.events += 1;
        match place {
            Some(place) => self.pods.insert(name, place),
            None => self.pods.remove(&name),
        };
    }

    fn count(&mut self) {
        let mut now: BTreeMap<Place, u32> = BTreeMap::new();
        for place in self.pods.values() {
            *now.entry(place.clone()).or_default() += 1;
        }
        for (place, n) in now {
            let most = self.most.entry(place.clone()).or_default();
            *most = n.max(*most);
            if let Some(allowed) = self.allowed.get(&place)
                && n > *allowed
                && self.violations.len() < 10
            {
                self.violations
                    .push(format!("{place:?} has {n} pods, {allowed} are allowed"));
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    pub(crate) fn start(api: Arc<Api>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                // Errors are part of the test: apiservers go away.
                let _ = follow(&api, &shared).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { state, task }
    }

    /// From now on so many pods of `app` may be on `node`.
    pub(crate) fn allow(&self, app: &str, nodes: &[(&str, u32)]) {
        let mut state = lock(&self.state);
        for (node, n) in nodes {
            state
                .allowed
                .insert((app.to_owned(), (*node).to_owned()), *n);
        }
    }

    /// Fails if there were ever more than allowed.
    pub(crate) fn check(&self) -> Result<()> {
        let state = lock(&self.state);
        ensure(state.events > 0, || "the observer has seen nothing".into())?;
        ensure(state.violations.is_empty(), || state.violations.join("\n"))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(api: &Api, state: &Mutex<State>) -> Result<()> {
    let list = api.get("/api/v1/pods").await?;
    {
        let mut state = lock(state);
        state.pods.clear();
        for pod in items(&list) {
            state.set(full_name(pod), place(pod));
        }
        state.count();
    }
    let query = format!(
        "/api/v1/pods?watch=true&resourceVersion={}",
        revision(&list)
    );
    watch(api, &query, |kind, pod| {
        let mut state = lock(state);
        let place = place(&pod).filter(|_| kind != "DELETED");
        state.set(full_name(&pod), place);
        state.count();
    })
    .await
}
