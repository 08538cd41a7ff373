//! A client's cache of one resource, kept by list and watch, that checks on the
//! way what a watch must keep: order, no gap, nothing twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::api::{Api, full_name, items, revision};
use super::{Error, Result, ensure};

/// Violations kept; the first ones tell the story.
const MAX_VIOLATIONS: usize = 20;
/// Longest line of a watch.
const MAX_LINE_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Arc<Value>>,
    revision: i64,
    lists: u64,
    watches: u64,
    violations: Vec<String>,
}

impl State {
    fn violation(&mut self, text: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(text);
        }
    }

    /// A fresh list. What was there and is there again must not have gone back.
    fn replace(&mut self, list: &Value) {
        self.lists += 1;
        let now = revision(list);
        if now < self.revision {
            self.violation(format!(
                "a list at {now} after events up to {}",
                self.revision
            ));
        }
        let new: BTreeMap<_, _> = items(list)
            .iter()
            .map(|item| (full_name(item), Arc::new(item.clone())))
            .collect();
        for (name, old) in &self.objects {
            if let Some(found) = new.get(name)
                && revision(found) < revision(old)
            {
                let text = format!(
                    "{name}: listed at {} after {}",
                    revision(found),
                    revision(old)
                );
                if self.violations.len() < MAX_VIOLATIONS {
                    self.violations.push(text);
                }
            }
        }
        self.objects = new;
        self.revision = now;
    }

    fn event(&mut self, kind: &str, object: Value) {
        let name = full_name(&object);
        let at = revision(&object);
        if kind == "BOOKMARK" {
            if at < self.revision {
                self.violation(format!("a bookmark at {at} after {}", self.revision));
            }
            self.revision = self.revision.max(at);
            return;
        }
        if at <= self.revision {
            self.violation(format!("{kind} {name} at {at} after {}", self.revision));
        }
        self.revision = self.revision.max(at);
        let known = self.objects.contains_key(&name);
        if known == (kind == "ADDED") {
            self.violation(format!("{kind} {name} at {at}, known before: {known}"));
        }
        if kind == "DELETED" {
            self.objects.remove(&name);
        } else {
            self.objects.insert(name, Arc::new(object));
        }
    }
}

/// A running list-and-watch loop. Ends when dropped.
#[derive(Debug)]
pub struct Reflector {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reflector {
    /// Follows the collection at `path` (without a query).
    #[must_use]
    pub fn start(api: Arc<Api>, path: &str) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, path) = (Arc::clone(&state), path.to_owned());
        let task = tokio::spawn(async move {
            loop {
                // Errors are part of the tests: servers are being killed.
                if let Ok(list) = api.get(&path).await {
                    lock(&shared).replace(&list);
                    while follow(&api, &path, &shared).await {}
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { state, task }
    }

    /// The objects now, by `NAMESPACE/NAME`.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Arc<Value>> {
        lock(&self.state).objects.clone()
    }

    /// Names and revisions of the objects now.
    #[must_use]
    pub fn revisions(&self) -> BTreeMap<String, i64> {
        lock(&self.state)
            .objects
            .iter()
            .map(|(name, o)| (name.clone(), revision(o)))
            .collect()
    }

    /// The highest revision seen.
    #[must_use]
    pub fn revision(&self) -> i64 {
        lock(&self.state).revision
    }

    /// How many lists it needed; more than one means that a watch could not go on.
    #[must_use]
    pub fn lists(&self) -> u64 {
        lock(&self.state).lists
    }

    /// Fails if an event broke a watch's promises.
    ///
    /// # Errors
    /// With the first violations.
    pub fn check(&self) -> Result<()> {
        let state = lock(&self.state);
        ensure(state.violations.is_empty(), || {
            format!(
                "a watch broke its promises ({} lists, {} watches):\n{}",
                state.lists,
                state.watches,
                state.violations.join("\n")
            )
        })
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches from the last revision until the stream ends. Returns whether a watch
/// can go on from there; if not, a list is due.
async fn follow(api: &Api, path: &str, state: &Mutex<State>) -> bool {
    let from = {
        let mut state = lock(state);
        state.watches += 1;
        state.revision
    };
    let query = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={from}");
    match watch(api, &query, |kind, object| lock(state).event(kind, object)).await {
        Err(Error::Status { status: 410, .. }) => return false,
        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        Ok(()) => {}
    }
    true
}

/// Sends a watch request and hands each event to `event`, until the stream ends.
///
/// # Errors
/// If the request or the stream fails; an ERROR event is [`Error::Status`] with
/// the code it carries.
pub async fn watch(api: &Api, query: &str, mut event: impl FnMut(&str, Value)) -> Result<()> {
    let response = api
        .client()
        .send(Method::GET, query, "", Bytes::new())
        .await?;
    let status = response.status().as_u16();
    let gone = |status: u16, message: String| Error::Status {
        method: "WATCH".to_owned(),
        path: query.to_owned(),
        status,
        message,
    };
    if status != 200 {
        return Err(gone(status, String::new()));
    }
    let mut body = response.into_body();
    let mut pending: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Transport(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        ensure(pending.len() <= MAX_LINE_BYTES, || {
            format!("{query}: an event without end")
        })?;
        let mut start = 0;
        while let Some(end) = pending[start..].iter().position(|byte| *byte == b'\n') {
            let mut line: Value = serde_json::from_slice(&pending[start..start + end])?;
            start += end + 1;
            let object = line["object"].take();
            match line["type"].as_str() {
                Some("ERROR") => {
                    let code = object["code"]
                        .as_u64()
                        .and_then(|code| u16::try_from(code).ok());
                    return Err(gone(code.unwrap_or(500), object["message"].to_string()));
                }
                kind => event(kind.unwrap_or_default(), object),
            }
        }
        pending.drain(..start);
    }
    Ok(())
}
