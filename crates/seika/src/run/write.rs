//! Calls that change something.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::api::core::v1::Pod as CorePod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::state::{Known, State, What, now_ms};
use super::{CALL_TIMEOUT, WRITES_AT_A_TIME};
use crate::api::{Seika, SeikaStatus};
use crate::decide::{Create, Delete};
use crate::slim::{self, Made, SlimPod};
use crate::template::{self, Owned};

/// The name that this controller's fields have.
const FIELD_MANAGER: &str = "orlop-seika";
/// What a refusal keeps of the apiserver's words.
const WORDS_BYTES: usize = 512;
/// An answer of no more than an object's metadata.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The apiserver understood and refuses: the same call will be refused again.
    #[error("{0}")]
    Refused(String),
    /// It may be repeated.
    #[error("{0}")]
    Passing(String),
    /// This process leads no more: nothing was sent.
    #[error("this process does not lead any more")]
    NotLeading,
}

/// What became of a creation.
#[derive(Debug)]
pub(super) enum Created {
    /// It is there.
    Ours,
    /// Another's pod has the name.
    Taken(Create),
    /// A pod had the name, and is gone again: it is to be decided anew.
    Gone(Create),
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

fn failed(error: &kube::Error) -> Failed {
    match error {
        // Forbidden (quota, admission), invalid, and the like. 409 is a conflict, 429 a request to
        // wait.
        kube::Error::Api(status)
            if (400..500).contains(&status.code)
                && !matches!(status.code, 401 | 408 | 409 | 429) =>
        {
            let end = status.message.floor_char_boundary(WORDS_BYTES);
            Failed::Refused(status.message[..end].to_owned())
        }
        other => Failed::Passing(other.to_string()),
    }
}

/// The calls, of which so many are under way at a time.
#[derive(Debug)]
pub(super) struct Writer {
    state: Arc<State>,
    at_a_time: Semaphore,
}

/// [`Client`] has no `Debug`.
#[derive(Clone)]
pub(super) struct Cluster(pub(super) Client);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Writer {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            at_a_time: Semaphore::new(WRITES_AT_A_TIME),
        }
    }

    /// Makes a call: only while this process leads, and counted.
    async fn call<T>(
        &self,
        what: What,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<Result<T, kube::Error>, Failed> {
        let _permit = self.at_a_time.acquire().await;
        if !self.state.leads() {
            return Err(Failed::NotLeading);
        }
        let answer = timeout(CALL_TIMEOUT, call).await;
        let Ok(answer) = answer else {
            self.state.counters.count(what, false);
            return Err(Failed::Passing("the apiserver does not answer".into()));
        };
        self.state.counters.count(what, answer.is_ok());
        Ok(answer)
    }

    /// Creates a pod.
    pub(super) async fn create(
        &self,
        client: &Client,
        known: &Known,
        owner: Owned<'_>,
        create: Create,
    ) -> Result<Created, Failed> {
        let hash = &known.template.hash;
        let pod = template::pod(&known.seika.spec.template, hash, owner, &create);
        let api: Api<SlimPod> = Api::namespaced(client.clone(), owner.namespace);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let body = serde_json::to_vec(&pod).map_err(|e| Failed::Refused(e.to_string()))?;
        let mut request = Request::new(api.resource_url())
            .create(&params, body)
            .map_err(|e| Failed::Refused(e.to_string()))?;
        // The rest of the pod is known: it was sent. Nobody would read a warning of a field that no pod
        // has, and looking for them costs the apiserver a second reading.
        let uri = format!("{}&fieldValidation=Ignore", request.uri());
        *request.uri_mut() = uri.parse().map_err(|_| Failed::Refused(uri))?;
        let accept = HeaderValue::from_static(METADATA_ONLY);
        request.headers_mut().insert(ACCEPT, accept);
        let sent = self.call(What::Create, client.request::<Made>(request));
        match sent.await? {
            Ok(made) => {
                if let Some((namespace, pod)) = slim::made(made, &create.node) {
                    self.state.index.lock().created(&namespace, pod, now_ms());
                }
                Ok(Created::Ours)
            }
            Err(error) if code(&error) == 409 => self.who_has(client, owner, create).await,
            Err(error) => Err(failed(&error)),
        }
    }

    /// There is a pod of this name: one that this controller has made and not seen yet, or
    /// another's.
    async fn who_has(
        &self,
        client: &Client,
        owner: Owned<'_>,
        create: Create,
    ) -> Result<Created, Failed> {
        let name = format!("{}{}", owner.prefix(&create.node), create.slot);
        let api: Api<SlimPod> = Api::namespaced(client.clone(), owner.namespace);
        let found = timeout(CALL_TIMEOUT, api.get_opt(&name)).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(Failed::Passing("the apiserver does not answer".into())),
        };
        let Some(found) = found else {
            return Ok(Created::Gone(create));
        };
        match slim::pod(found) {
            Some((namespace, pod)) if pod.owner.as_ref().is_some_and(|o| o.uid == owner.uid) => {
                self.state.index.lock().created(&namespace, pod, now_ms());
                Ok(Created::Ours)
            }
            _ => Ok(Created::Taken(create)),
        }
    }

    /// Deletes a pod, if it is still the one that was decided on.
    pub(super) async fn delete(
        &self,
        client: &Client,
        owner: Owned<'_>,
        delete: &Delete,
    ) -> Result<(), Failed> {
        let api: Api<SlimPod> = Api::namespaced(client.clone(), owner.namespace);
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(delete.uid.clone()),
            resource_version: None,
        });
        // Told before the call: it may be seen before it is answered.
        let (node, uid) = (delete.node.as_deref(), &delete.uid);
        self.state
            .index
            .lock()
            .deleted(owner.uid, node, uid, now_ms());
        let sent = self.call(What::Delete, api.delete(&delete.name, &params));
        let answer = sent.await;
        let failure = match answer {
            Ok(Ok(_)) => return Ok(()),
            // It is gone, or another has its name.
            Ok(Err(error)) if matches!(code(&error), 404 | 409) => return Ok(()),
            Ok(Err(error)) => failed(&error),
            Err(failure) => failure,
        };
        let mut index = self.state.index.lock();
        match failure {
            Failed::Passing(_) => index.deletion_is_open(&delete.uid),
            Failed::Refused(_) | Failed::NotLeading => index.not_deleted(&delete.uid),
        }
        drop(index);
        Err(failure)
    }

    /// Whether a Seika is still there and not being deleted, by the apiserver itself: only then it
    /// may adopt.
    pub(super) async fn may_adopt(&self, client: &Client, known: &Known) -> Result<bool, Failed> {
        let namespace = known
            .seika
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let name = known.seika.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Seika> = Api::namespaced(client.clone(), namespace);
        match timeout(CALL_TIMEOUT, api.get_metadata_opt(name)).await {
            Ok(Ok(found)) => Ok(found.is_some_and(|found| {
                found.metadata.uid.as_deref() == Some(known.uid.as_str())
                    && found.metadata.deletion_timestamp.is_none()
            })),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(Failed::Passing("the apiserver does not answer".into())),
        }
    }

    /// Makes a Seika a pod's owner, or no longer.
    pub(super) async fn own(
        &self,
        client: &Client,
        owner: Owned<'_>,
        pod: &crate::facts::Pod,
        adopts: bool,
    ) -> Result<(), Failed> {
        let reference = match adopts {
            true => owner.reference(),
            false => json!({ "$patch": "delete", "uid": owner.uid }),
        };
        // With another uid than it has the apiserver refuses.
        let patch = json!({ "metadata": { "uid": pod.uid, "ownerReferences": [reference] } });
        let api: Api<CorePod> = Api::namespaced(client.clone(), owner.namespace);
        let what = if adopts { What::Adopt } else { What::Release };
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let patch = Patch::Strategic(patch);
        let sent = self.call(what, api.patch_metadata(&pod.name, &params, &patch));
        match sent.await? {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == 404 => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Writes a status.
    pub(super) async fn status(
        &self,
        client: &Client,
        known: &Known,
        status: &SeikaStatus,
    ) -> Result<(), Failed> {
        let namespace = known
            .seika
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let name = known.seika.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Seika> = Api::namespaced(client.clone(), namespace);
        let patch: Value = json!({
            "apiVersion": Seika::api_version(&()), "kind": Seika::kind(&()),
            "metadata": { "name": name, "uid": known.uid },
            "status": status
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(patch);
        let sent = self.call(What::Status, api.patch_status(name, &params, &patch));
        match sent.await? {
            Ok(_) => Ok(()),
            // It was deleted, or another has its name now.
            Err(error) if matches!(code(&error), 404 | 409) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// How many calls of a Seika may be under way: one, and one more with each that succeeds, up to
/// [`WRITES_AT_A_TIME`]. What fails for all, as a quota does, is not asked for hundreds of times; and
/// nobody waits for the slowest of a batch.
#[derive(Debug)]
pub(super) struct Ramp {
    allowed: usize,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { allowed: 1 }
    }
}

impl Ramp {
    /// Carries out `items` while all succeed: what succeeded, and why it stopped. After a failure no
    /// more is begun, what is under way is waited for, and the next one begins with one call.
    pub(super) async fn run<I, T, F>(
        &mut self,
        items: Vec<I>,
        mut call: impl FnMut(I) -> F,
    ) -> (Vec<T>, Option<Failed>)
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut items = items.into_iter();
        let mut done = Vec::new();
        let mut failure = None;
        let mut under_way = FuturesUnordered::new();
        loop {
            while failure.is_none() && under_way.len() < self.allowed {
                let Some(item) = items.next() else { break };
                under_way.push(call(item));
            }
            match under_way.next().await {
                None => return (done, failure),
                Some(Ok(value)) => {
                    done.push(value);
                    self.allowed = (self.allowed + 1).min(WRITES_AT_A_TIME);
                }
                Some(Err(error)) => failure = Some(error),
            }
            if failure.is_some() {
                self.allowed = 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn what_fails_for_all_is_asked_for_once() {
        let calls = Cell::new(0);
        let mut ramp = Ramp::default();
        let (done, failure) = run(ramp.run((0..500).collect(), |_: i32| {
            calls.set(calls.get() + 1);
            async { Err::<(), _>(Failed::Refused("quota".into())) }
        }));
        assert_eq!((done.len(), calls.get()), (0, 1));
        assert!(matches!(failure, Some(Failed::Refused(_))));
    }

    #[test]
    fn after_a_failure_no_more_is_begun() {
        let mut ramp = Ramp::default();
        let calls = Cell::new(0);
        let (done, failure) = run(ramp.run((0..100).collect(), |n: i32| {
            calls.set(calls.get() + 1);
            async move {
                tokio::task::yield_now().await;
                match n {
                    5 => Err(Failed::Passing("once".into())),
                    n => Ok(n),
                }
            }
        }));
        // At most as many were under way as had succeeded, and one.
        assert!(
            failure.is_some() && calls.get() <= 12,
            "{} calls",
            calls.get()
        );
        assert_eq!(done.len() + 1, calls.get());
        assert_eq!(ramp.allowed, 1);
    }

    #[test]
    fn no_more_than_so_many_are_under_way_and_the_next_pass_goes_on() {
        let (now, most) = (Cell::new(0), Cell::new(0));
        let mut ramp = Ramp::default();
        let go = |ramp: &mut Ramp| {
            run(ramp.run((0..500).collect(), |n: i32| {
                now.set(now.get() + 1);
                most.set(now.get().max(most.get()));
                let now = &now;
                async move {
                    tokio::task::yield_now().await;
                    now.set(now.get() - 1);
                    Ok(n)
                }
            }))
        };
        let (done, failure) = go(&mut ramp);
        assert_eq!((done.len(), failure.is_none()), (500, true));
        assert_eq!(
            (most.get(), ramp.allowed),
            (WRITES_AT_A_TIME, WRITES_AT_A_TIME)
        );
        assert_eq!(go(&mut ramp).0.len(), 500);
        assert_eq!(most.get(), WRITES_AT_A_TIME);
    }
}
