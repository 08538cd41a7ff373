//! The watches: what they show goes to the index, and asks for passes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use telemetry::Throttle;
use tokio::task::JoinSet;

use super::state::{State, now_ms};
use crate::api::Seika;
use crate::slim::{self, SlimNode, SlimPod};

/// A watch that stays broken is said so often.
const SAY: Duration = Duration::from_secs(10);

/// Starts the watches on Seikas, pods and nodes.
pub(super) fn start(client: &Client, state: &Arc<State>, tasks: &mut JoinSet<()>) {
    tasks.spawn(follow(
        of_namespace::<Seika>(client, state),
        Arc::clone(state),
        seika,
    ));
    tasks.spawn(follow(
        of_namespace::<SlimPod>(client, state),
        Arc::clone(state),
        pod,
    ));
    tasks.spawn(follow(
        Api::<SlimNode>::all(client.clone()),
        Arc::clone(state),
        node,
    ));
}

fn of_namespace<K>(client: &Client, state: &State) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match &state.settings.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Follows a watch for ever; it is begun anew when it breaks.
async fn follow<K>(api: Api<K>, state: Arc<State>, mut show: impl FnMut(&State, Event<K>))
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let throttle = Throttle::new(SAY);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => show(&state, event),
            Err(error) => {
                state.counters.watch_errors.fetch_add(1, Ordering::Relaxed);
                if let Some(more) = throttle.allow() {
                    let kind = K::kind(&());
                    tracing::warn!(%error, %kind, more, "a watch broke; it is begun anew");
                }
            }
        }
    }
}

fn seika(state: &State, event: Event<Seika>) {
    match event {
        Event::Init => state.begin_seikas(),
        Event::InitApply(seika) => state.list_seika(seika),
        Event::InitDone => state.end_seikas(),
        Event::Apply(seika) => state.apply_seika(seika),
        Event::Delete(seika) => state.remove_seika(&seika),
    }
}

fn pod(state: &State, event: Event<SlimPod>) {
    match event {
        Event::Init => state.index.lock().begin_pods(now_ms()),
        Event::InitApply(pod) => {
            if let Some((namespace, pod)) = slim::pod(pod) {
                state.index.lock().list_pod(namespace, pod);
            }
        }
        Event::InitDone => {
            state.index.lock().end_pods(now_ms());
            state.ask_all();
        }
        Event::Apply(pod) => {
            let id = (
                pod.namespace().unwrap_or_default(),
                pod.name_any(),
                pod.uid(),
            );
            let shown = slim::pod(pod);
            let (namespace, name, uid) = id;
            let concerned = match shown {
                Some((namespace, pod)) => state.index.lock().apply_pod(&namespace, pod, now_ms()),
                // Another controller has it now.
                None => {
                    let uid = uid.unwrap_or_default();
                    state.index.lock().remove_pod(&namespace, &name, &uid)
                }
            };
            ask(state, &namespace, &concerned);
        }
        Event::Delete(pod) => {
            let namespace = pod.namespace().unwrap_or_default();
            let uid = pod.uid().unwrap_or_default();
            let concerned = state
                .index
                .lock()
                .remove_pod(&namespace, &pod.name_any(), &uid);
            ask(state, &namespace, &concerned);
        }
    }
}

fn ask(state: &State, namespace: &str, concerned: &crate::index::Concerned) {
    for uid in &concerned.owners {
        state.ask_owner(uid);
    }
    if let Some(pod) = &concerned.orphan {
        state.ask_adopters(namespace, pod);
    }
}

fn node(state: &State, event: Event<SlimNode>) {
    let set = |name: String, node| {
        if state.nodes.lock().set(&name, node) {
            state.ask_wanting(&[name].into());
        }
    };
    match event {
        Event::Init => state.nodes.lock().begin(),
        Event::InitApply(node) => {
            if let Some((name, node)) = slim::node(node) {
                state.nodes.lock().list(name, node);
            }
        }
        Event::InitDone => {
            let changed = state.nodes.lock().end();
            state.ask_wanting(&changed);
        }
        Event::Apply(node) => {
            if let Some((name, node)) = slim::node(node) {
                set(name, Some(node));
            }
        }
        Event::Delete(node) => set(node.name_any(), None),
    }
}
