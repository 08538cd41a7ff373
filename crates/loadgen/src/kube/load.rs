//! The load on one control plane: an open loop of requests, watched to their end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use tokio::task::{JoinHandle, JoinSet};

use super::Result;
use super::client::{Client, Target};
use super::manifest::Manifest;
use super::progress::Progress;
use super::proto::{self, Deployment, List, Pod, ReplicaSet};
use super::sample::{PERIOD, Sample, StoreCalls, StoreLatency, Subjects};
use super::track::{Stage, Tracker};
use crate::{Error, Interrupt};

/// Connections that requests are spread over, so that an apiserver's limit of streams a
/// connection is not what is measured.
const CONNECTIONS: usize = 4;
/// How long a namespace may take to get its ServiceAccount, or to go.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(120);
/// Requests in flight while the initial Deployments are made.
const SETUP_IN_FLIGHT: usize = 8;
const TICK: Duration = Duration::from_millis(50);

/// Which requests, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    /// Deployments that exist before a steady state begins; none for a creation burst.
    pub(crate) initial: Option<u32>,
    /// Time from one request to the next.
    pub(crate) interval: Duration,
    /// Length of the load.
    pub(crate) duration: Duration,
    /// How long everything may take to be done after it.
    pub(crate) settle: Duration,
    /// Deployments that are made before anything is measured.
    pub(crate) warmup: u32,
}

impl Shape {
    pub(crate) fn mode(&self) -> &'static str {
        match self.initial {
            None => "burst",
            Some(_) => "steady",
        }
    }

    /// How many requests are due within the load.
    fn requests(&self) -> usize {
        let count = self
            .duration
            .as_nanos()
            .div_ceil(self.interval.as_nanos().max(1));
        usize::try_from(count).unwrap_or(usize::MAX)
    }
}

/// What a load left to be looked at.
pub(crate) struct Outcome {
    pub(crate) tracker: Tracker,
    /// When the first request was due.
    pub(crate) began: Instant,
    /// Requests sent, creates and deletes.
    pub(crate) requests: usize,
    /// From just before the load to when all was done, one a second.
    pub(crate) samples: Vec<Sample>,
    pub(crate) store: Option<StoreLatency>,
}

struct Loader<'a> {
    clients: Vec<Client>,
    namespace: String,
    manifest: &'a Manifest,
    tracker: Rc<RefCell<Tracker>>,
    interrupt: &'a Interrupt,
    requests: JoinSet<()>,
}

/// Puts a load on the apiserver at `target`, in a namespace of its own, which goes at the end
/// if `clean_up` is set. Must run in a [`tokio::task::LocalSet`].
///
/// # Errors
/// If the count is wrong or anything is stuck; if the apiserver does not answer; if the user
/// interrupts.
pub(crate) async fn run(
    target: Arc<Target>,
    manifest: &Manifest,
    shape: &Shape,
    subjects: &Subjects,
    clean_up: bool,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Outcome> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(Arc::clone(&target)).await?);
    }
    let namespace = format!("orlop-bench-{}", std::process::id());
    let mut loader = Loader {
        clients,
        namespace,
        manifest,
        tracker: Rc::new(RefCell::new(Tracker::new(manifest.replicas))),
        interrupt,
        requests: JoinSet::new(),
    };
    // What is there already is somebody else's, and stays.
    loader.create_namespace().await?;
    let result = loader.whole(target, shape, subjects, progress).await;
    if !clean_up {
        return result;
    }
    match (result, loader.remove_namespace().await) {
        (result, Ok(())) => result,
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Err(left)) => {
            progress.done(&left.to_string());
            Err(error)
        }
    }
}

impl Loader<'_> {
    async fn whole(
        &mut self,
        target: Arc<Target>,
        shape: &Shape,
        subjects: &Subjects,
        progress: &mut Progress,
    ) -> Result<Outcome> {
        self.wait_for_account().await?;
        let _watches = [
            self.watch(
                &target,
                "apps/v1",
                "deployments",
                |tracker, kind, raw, now| {
                    proto::object::<Deployment>(raw).map(|o| tracker.deployment(kind, &o, now))
                },
            )
            .await?,
            self.watch(
                &target,
                "apps/v1",
                "replicasets",
                |tracker, kind, raw, now| {
                    proto::object::<ReplicaSet>(raw).map(|o| tracker.replica_set(kind, &o, now))
                },
            )
            .await?,
            self.watch(&target, "v1", "pods", |tracker, kind, raw, now| {
                proto::object::<Pod>(raw).map(|o| tracker.pod(kind, &o, now))
            })
            .await?,
        ];
        progress.say("warming up");
        self.set_up(
            shape.warmup.max(shape.initial.unwrap_or(0)),
            shape,
            progress,
        )
        .await?;
        let store_before = self.store_calls().await;
        let sampling = Sampling::start(subjects.clone());
        let (began, requests) = self.open_loop(shape, progress).await?;
        self.settle(shape.settle, progress).await?;
        let samples = sampling.end().await;
        let store = match (store_before, self.store_calls().await) {
            (Some(before), Some(after)) => Some(after.since(&before)),
            _ => None,
        };
        self.verdict().await?;
        Ok(Outcome {
            tracker: self.tracker.replace(Tracker::new(self.manifest.replicas)),
            began,
            requests,
            samples,
            store,
        })
    }

    fn collection(&self, group: &str, resource: &str) -> String {
        let root = if group == "v1" { "api" } else { "apis" };
        format!("/{root}/{group}/namespaces/{}/{resource}", self.namespace)
    }

    fn client(&self, n: usize) -> Client {
        // There are always CONNECTIONS of them.
        self.clients[n % CONNECTIONS].clone()
    }

    async fn create_namespace(&self) -> Result<()> {
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": self.namespace }
        });
        let body = body.to_string().into();
        self.client(0)
            .call(Method::POST, "/api/v1/namespaces", body)
            .await
            .map(drop)
    }

    /// Waits for the namespace's ServiceAccount, without which no pod is admitted.
    async fn wait_for_account(&self) -> Result<()> {
        let client = self.client(0);
        let account = format!("{}/default", self.collection("v1", "serviceaccounts"));
        let began = Instant::now();
        loop {
            self.interrupt.check()?;
            match client.call(Method::GET, &account, Bytes::new()).await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > NAMESPACE_TIMEOUT => return Err(error),
                Err(_) => tokio::time::sleep(TICK).await,
            }
        }
    }

    async fn remove_namespace(&mut self) -> Result<()> {
        self.requests.abort_all();
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let client = self.client(0);
        client.call(Method::DELETE, &path, Bytes::new()).await?;
        let began = Instant::now();
        while began.elapsed() < NAMESPACE_TIMEOUT {
            match client.call(Method::GET, &path, Bytes::new()).await {
                Err(Error::Cluster(error)) if error.status() == Some(404) => return Ok(()),
                _ => tokio::time::sleep(PERIOD).await,
            }
        }
        Err(Error::Count(format!(
            "namespace {} is still there {} s after it was deleted",
            self.namespace,
            NAMESPACE_TIMEOUT.as_secs()
        )))
    }

    /// Follows a collection from now on, on a connection of its own.
    async fn watch(
        &self,
        target: &Arc<Target>,
        group: &str,
        resource: &'static str,
        mut take: impl FnMut(&mut Tracker, &str, &Bytes, Instant) -> std::result::Result<(), String>
        + 'static,
    ) -> Result<Aborting> {
        let client = Client::connect(Arc::clone(target)).await?;
        let path = self.collection(group, resource);
        let list: List = client.get(&path).await?;
        let mut watch = client.watch(&path, list.resource_version()).await?;
        let tracker = Rc::clone(&self.tracker);
        let task = tokio::task::spawn_local(async move {
            let _client = client;
            loop {
                let event = watch.next().await;
                let now = Instant::now();
                let mut tracker = tracker.borrow_mut();
                let taken = match event {
                    Ok(Some((kind, _))) if kind == "ERROR" => Err("an ERROR event".to_owned()),
                    Ok(Some((kind, raw))) => take(&mut tracker, &kind, &raw, now),
                    Ok(None) => Err("its stream ended".to_owned()),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(why) = taken {
                    tracker.problem(format!("the watch of {resource} broke: {why}"));
                    return;
                }
            }
        });
        Ok(Aborting(task))
    }

    /// Creates `count` Deployments, a few at once, and waits until they are complete.
    async fn set_up(&mut self, count: u32, shape: &Shape, progress: &mut Progress) -> Result<()> {
        for _ in 0..count {
            while self.requests.len() >= SETUP_IN_FLIGHT {
                self.requests.join_next().await;
            }
            self.create(Instant::now(), false);
            self.look(progress)?;
        }
        self.settle(shape.settle, progress).await?;
        self.verdict().await
    }

    fn create(&mut self, intended: Instant, measured: bool) {
        let index = self.tracker.borrow().asked();
        let name = self.manifest.name(index);
        let body = self.manifest.json(index);
        let path = self.collection("apps/v1", "deployments");
        let client = self.client(index);
        let tracker = Rc::clone(&self.tracker);
        let app = tracker.borrow_mut().ask(name, intended, measured);
        self.requests.spawn_local(async move {
            let answer = client.call(Method::POST, &path, body).await;
            let mut tracker = tracker.borrow_mut();
            match answer {
                Ok(_) => tracker.reach(app, Stage::Accepted, Instant::now()),
                Err(error) => tracker.problem(error.to_string()),
            }
        });
    }

    fn delete(&mut self, app: usize, intended: Instant) {
        let path = format!(
            "{}/{}",
            self.collection("apps/v1", "deployments"),
            self.manifest.name(app)
        );
        let client = self.client(app);
        let tracker = Rc::clone(&self.tracker);
        tracker.borrow_mut().ask_delete(app, intended);
        // As kubectl does: dependents go in the background.
        let body = r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#;
        self.requests.spawn_local(async move {
            let answer = client.call(Method::DELETE, &path, body.into()).await;
            let mut tracker = tracker.borrow_mut();
            match answer {
                Ok(_) => tracker.reach(app, Stage::DeleteAccepted, Instant::now()),
                Err(error) => tracker.problem(error.to_string()),
            }
        });
    }

    /// Sends requests when they are due, whatever became of those before.
    async fn open_loop(
        &mut self,
        shape: &Shape,
        progress: &mut Progress,
    ) -> Result<(Instant, usize)> {
        let count = shape.requests();
        let began = Instant::now() + TICK;
        let mut oldest = 0;
        progress.begin(shape.duration);
        for n in 0..count {
            let due = began + shape.interval.mul_f64(n as f64);
            tokio::time::sleep_until(due.into()).await;
            // In a steady state: delete and create in turn.
            if shape.initial.is_some() && n % 2 == 0 {
                let found = self.tracker.borrow().oldest(oldest);
                match found {
                    Some(app) => {
                        oldest = app + 1;
                        self.delete(app, due);
                    }
                    None => {
                        return Err(Error::Argument(
                            "there is no Deployment left to delete: use more --initial ones".into(),
                        ));
                    }
                }
            } else {
                self.create(due, true);
            }
            while self.requests.try_join_next().is_some() {}
            self.look(progress)?;
        }
        Ok((began, count))
    }

    /// Waits until everything is as it should be, or `limit`.
    async fn settle(&mut self, limit: Duration, progress: &mut Progress) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < limit {
            while self.requests.try_join_next().is_some() {}
            if self.requests.is_empty() && self.tracker.borrow().unfinished() == 0 {
                break;
            }
            self.look(progress)?;
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Ends a run that was interrupted or has failed already; shows how far it is.
    fn look(&self, progress: &mut Progress) -> Result<()> {
        self.interrupt.check()?;
        let tracker = self.tracker.borrow();
        tracker.check().map_err(Error::Count)?;
        if progress.due() {
            progress.show(
                tracker.asked(),
                tracker.reached(Stage::Bound),
                tracker.unfinished(),
            );
        }
        Ok(())
    }

    /// Compares what was seen, and what the apiserver has, with what was asked for.
    async fn verdict(&self) -> Result<()> {
        let should = {
            let tracker = self.tracker.borrow();
            tracker.verdict().map_err(Error::Count)?;
            tracker.should_exist()
        };
        for (group, resource, each) in [
            ("apps/v1", "deployments", 1),
            ("apps/v1", "replicasets", 1),
            ("v1", "pods", self.manifest.replicas as usize),
        ] {
            let list: List = self
                .client(0)
                .get(&self.collection(group, resource))
                .await?;
            let (found, wanted) = (list.items.len(), should * each);
            if found != wanted {
                return Err(Error::Count(format!(
                    "the apiserver lists {found} {resource} where {wanted} should be"
                )));
            }
        }
        Ok(())
    }

    /// The apiserver's metrics; none if we may not see them.
    async fn store_calls(&self) -> Option<StoreCalls> {
        Some(StoreCalls::read(
            self.client(0).page("/metrics").await.ok()?,
        ))
    }
}

/// A task that ends when dropped.
struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Samples once a second in the background.
struct Sampling {
    subjects: Subjects,
    samples: Rc<RefCell<Vec<Sample>>>,
    _task: Aborting,
}

impl Sampling {
    fn start(subjects: Subjects) -> Sampling {
        let samples = Rc::new(RefCell::new(Vec::new()));
        let (kept, watched) = (Rc::clone(&samples), subjects.clone());
        let task = tokio::task::spawn_local(async move {
            loop {
                let began = Instant::now();
                let sample = watched.sample().await;
                kept.borrow_mut().push(sample);
                tokio::time::sleep_until((began + PERIOD).into()).await;
            }
        });
        Sampling {
            subjects,
            samples,
            _task: Aborting(task),
        }
    }

    async fn end(self) -> Vec<Sample> {
        let last = self.subjects.sample().await;
        let mut samples = self.samples.take();
        samples.push(last);
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_has_a_request_for_each_interval() {
        let requests = |duration_ms, interval_ms| {
            let shape = Shape {
                initial: None,
                interval: Duration::from_millis(interval_ms),
                duration: Duration::from_millis(duration_ms),
                settle: Duration::ZERO,
                warmup: 0,
            };
            shape.requests()
        };
        assert_eq!((requests(30_000, 50), requests(30_000, 16)), (600, 1875));
        // Not 12, as a division of floating-point numbers has it.
        assert_eq!((requests(1_100, 100), requests(10, 100)), (11, 1));
    }
}
