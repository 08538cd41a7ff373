//! Objects of one kind in a cluster, followed by a watch and kept in a small form.
//!
//! What is known stays while the API does not answer, and it is said that it may be old. It writes
//! nothing, and knows no kind: who calls it says what of an object is kept.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::runtime::watcher;
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

/// Objects of a page when they are listed: at most so many whole ones are in memory at once.
const PAGE: u32 = 100;
/// How long a watch that failed is left alone, at least and at most.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What is known of one kind.
#[derive(Clone, Debug)]
pub struct Followed<T> {
    /// By `namespace/name`, or by name where there are no namespaces.
    pub items: BTreeMap<String, T>,
    /// All of them have been listed once.
    pub listed: bool,
    /// Why the API does not answer now: `items` may be old.
    pub failing: Option<String>,
    /// How often it did not.
    pub failures: u64,
}

impl<T> Default for Followed<T> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            listed: false,
            failing: None,
            failures: 0,
        }
    }
}

/// Something that a task keeps current and others read.
pub type Shared<T> = Arc<Mutex<Followed<T>>>;

/// The key of an object.
pub fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Follows the objects of `api` for ever. `slim` says what of one is kept, if anything; `changed`
/// is called when what is kept, or whether it can be followed, has changed.
pub async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    kind: &'static str,
    slim: impl Fn(&K) -> Option<T>,
    into: Shared<T>,
    mut changed: impl FnMut(&Followed<T>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: PartialEq,
{
    let config = config.page_size(PAGE);
    let [mut wait, longest] = BACKOFF;
    // A watch that goes on after a failure says nothing until something changes, and nobody would
    // know that it is current. So it is begun anew, with a list.
    loop {
        let events = watcher(api.clone(), config.clone());
        let error = until_error(events, kind, &slim, &into, &mut changed, &mut wait).await;
        {
            let mut known = into.lock();
            known.failures += 1;
            if known.failing.replace(error.clone()).is_none() {
                tracing::warn!(
                    kind,
                    error,
                    "objects cannot be followed; those known before stay"
                );
                changed(&known);
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

/// Takes events until one is an error, and says which.
async fn until_error<K: Resource, T: PartialEq>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    kind: &'static str,
    slim: &impl Fn(&K) -> Option<T>,
    into: &Shared<T>,
    changed: &mut impl FnMut(&Followed<T>),
    wait: &mut Duration,
) -> String {
    let mut events = std::pin::pin!(events);
    let mut coming = BTreeMap::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return error.to_string(),
        };
        let mut known = into.lock();
        let news = match event {
            watcher::Event::Init => {
                coming.clear();
                continue;
            }
            watcher::Event::InitApply(object) => {
                if let Some(item) = slim(&object) {
                    coming.insert(key(&object), item);
                }
                continue;
            }
            watcher::Event::InitDone => {
                known.items = std::mem::take(&mut coming);
                known.listed = true;
                *wait = BACKOFF[0];
                tracing::info!(kind, count = known.items.len(), "objects are followed");
                true
            }
            watcher::Event::Apply(object) => {
                let key = key(&object);
                match slim(&object) {
                    Some(item) if known.items.get(&key) == Some(&item) => false,
                    Some(item) => {
                        known.items.insert(key, item);
                        true
                    }
                    None => known.items.remove(&key).is_some(),
                }
            }
            watcher::Event::Delete(object) => known.items.remove(&key(&object)).is_some(),
        };
        if (known.listed && known.failing.take().is_some()) || news {
            changed(&known);
        }
    }
    "the watch has ended".to_owned()
}
