//! One install, with the requests that Helm 3 makes for it, in its order.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use playground::Error as Refused;
use playground::api::{Api, items};
use serde_json::Value;
use tokio::task::JoinSet;

use super::chart::{Object, Release};
use crate::Error;
use crate::kube::Result;

/// How often something that is waited for is looked at. Helm watches Jobs, and asks for
/// definitions every two seconds, which would be seen in the result.
const LOOK: Duration = Duration::from_millis(50);
/// How long Helm waits for a hook or for definitions before it gives up is minutes too.
const WAIT_LIMIT: Duration = Duration::from_secs(300);

/// How long the parts of an install took, in seconds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Installed {
    /// Until all definitions were established.
    pub(crate) definitions_s: f64,
    /// Until the install returned, definitions and hooks included.
    pub(crate) installed_s: f64,
    /// Until its Deployments and its DaemonSet were available.
    pub(crate) available_s: f64,
    /// Requests that were made for it, those that look whether something is done not counted.
    pub(crate) requests: usize,
}

/// Who installs.
pub(crate) struct Installer {
    api: Arc<Api>,
    release: Release,
    name: String,
    definitions: Rc<Vec<Value>>,
    requests: usize,
}

impl Installer {
    pub(crate) fn new(api: Arc<Api>, name: &str, definitions: Rc<Vec<Value>>) -> Installer {
        Installer {
            api,
            release: Release::new(name),
            name: name.to_owned(),
            definitions,
            requests: 0,
        }
    }

    /// Installs everything.
    ///
    /// # Errors
    /// If the apiserver refuses something, or it is not done in time.
    pub(crate) async fn run(mut self) -> Result<Installed> {
        let began = Instant::now();
        let mut installed = Installed::default();
        self.definitions().await?;
        installed.definitions_s = began.elapsed().as_secs_f64();
        let kinds = self.release.objects();
        // Helm looks for each object before it creates any, one after the other.
        for object in kinds.iter().flatten() {
            self.requests += 1;
            if self.find(object).await?.is_some() {
                return Err(Error::Argument(format!(
                    "{} is there already",
                    object.path()
                )));
            }
        }
        let record = self.release.record(1);
        self.create(&record).await?;
        self.hook("create").await?;
        for kind in &kinds {
            self.create_all(kind).await?;
        }
        self.hook("patch").await?;
        self.update(&self.release.record(2)).await?;
        installed.installed_s = began.elapsed().as_secs_f64();
        self.available().await?;
        installed.available_s = began.elapsed().as_secs_f64();
        installed.requests = self.requests;
        Ok(installed)
    }

    /// Creates the definitions that are not there yet, and waits until all are served.
    async fn definitions(&mut self) -> Result<()> {
        const COLLECTION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for definition in self.definitions.iter() {
            self.requests += 1;
            match self.api.create(COLLECTION, definition).await {
                // The other install was first.
                Err(Refused::Status { status: 409, .. }) => {}
                other => other.map(|_| ())?,
            }
        }
        let wanted = self.definitions.len();
        let api = &self.api;
        wait_until("definitions are established", || async {
            let list = api.get(&format!("{COLLECTION}?resourceVersion=0")).await?;
            let established = items(&list).iter().filter(|item| {
                let conditions = item["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|condition| {
                    condition["type"] == "Established" && condition["status"] == "True"
                })
            });
            Ok(established.count() >= wanted)
        })
        .await
    }

    async fn find(&self, object: &Object) -> Result<Option<Value>> {
        Ok(self.api.find(&object.path()).await?)
    }

    async fn create(&mut self, object: &Object) -> Result<()> {
        self.requests += 1;
        create(&self.api, object).await
    }

    async fn update(&mut self, object: &Object) -> Result<()> {
        self.requests += 1;
        self.api.replace(&object.path(), &object.body).await?;
        Ok(())
    }

    /// Creates the objects of a kind at once, as Helm does.
    async fn create_all(&mut self, objects: &[Object]) -> Result<()> {
        self.requests += objects.len();
        let mut calls = JoinSet::new();
        for object in objects {
            let (api, object) = (Arc::clone(&self.api), object.clone());
            calls.spawn_local(async move { create(&api, &object).await });
        }
        while let Some(done) = calls.join_next().await {
            done.map_err(|_| Error::Panicked)??;
        }
        Ok(())
    }

    /// Runs a hook: each object is removed if it is there, created, and waited for; at the end
    /// all are removed.
    async fn hook(&mut self, job: &str) -> Result<()> {
        let objects = self.release.hook(job);
        for object in &objects {
            self.delete(object).await?;
            self.create(object).await?;
            if object.kind == "Job" {
                let (api, path) = (&self.api, format!("{}?resourceVersion=0", object.path()));
                wait_until("a hook's Job is complete", || async {
                    let job = api.find(&path).await?;
                    Ok(job.is_some_and(|job| job["status"]["succeeded"] == 1))
                })
                .await?;
            }
        }
        for object in &objects {
            self.delete(object).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, object: &Object) -> Result<()> {
        self.requests += 1;
        match self.api.delete(&object.path()).await {
            Err(Refused::Status { status: 404, .. }) => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    async fn available(&self) -> Result<()> {
        let selector = format!("?resourceVersion=0&labelSelector=release%3D{}", self.name);
        let api = &self.api;
        let deployments = format!("/apis/apps/v1/namespaces/default/deployments{selector}");
        let daemons = format!("/apis/apps/v1/namespaces/default/daemonsets{selector}");
        wait_until("the install's pods are available", || async {
            let (deployments, daemons) = (api.get(&deployments).await?, api.get(&daemons).await?);
            let done = |item: &Value, have: &str, wanted: &Value| {
                wanted.as_u64().is_some_and(|w| w > 0) && item["status"][have] == *wanted
            };
            let of_deployments = items(&deployments);
            let of_daemons = items(&daemons);
            let available = of_deployments
                .iter()
                .all(|item| done(item, "availableReplicas", &item["spec"]["replicas"]))
                && of_daemons.iter().all(|item| {
                    done(
                        item,
                        "numberAvailable",
                        &item["status"]["desiredNumberScheduled"],
                    )
                });
            Ok(available && of_deployments.len() == 3 && of_daemons.len() == 1)
        })
        .await
    }
}

/// Creates an object. One of a kind that was defined a moment ago may not be served yet.
async fn create(api: &Api, object: &Object) -> Result<()> {
    let began = Instant::now();
    loop {
        match api.create(&object.collection, &object.body).await {
            Err(Refused::Status { status: 404, .. }) if began.elapsed() < WAIT_LIMIT => {
                tokio::time::sleep(LOOK).await;
            }
            other => return Ok(other.map(|_| ())?),
        }
    }
}

/// Looks at `check` until it holds.
///
/// # Errors
/// If it fails, or does not hold in time.
pub(super) async fn wait_until<F>(what: &'static str, check: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let began = Instant::now();
    while !check().await? {
        if began.elapsed() > WAIT_LIMIT {
            return Err(Error::Stuck {
                what,
                seconds: WAIT_LIMIT.as_secs(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
