//! A load of creates, updates and deletes that writes down what was acknowledged,
//! so that afterwards it can tell whether any of it is lost.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::api::{Api, full_name, items, revision};
use super::{Error, Result, ensure, fail};

/// Objects a writer works on before it begins to delete the oldest.
const LIVE_PER_WRITER: u64 = 40;

/// What a name must look like.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// The last acknowledged write: content and revision; `None` after an
    /// acknowledged delete or before any acknowledged write.
    acked: Option<(u64, i64)>,
    /// A later write whose outcome is not known: its content, `None` for a delete.
    /// After such a write the name is left alone.
    unknown: Option<Option<u64>>,
}

#[derive(Debug, Default)]
struct Book {
    entries: BTreeMap<String, Entry>,
    revisions: HashSet<i64>,
    acked: u64,
    unknown: u64,
    wrong: Vec<String>,
}

/// Writers under way.
#[derive(Debug)]
pub struct Ledger {
    path: String,
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

/// How a load ended.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes with an error whose outcome was open.
    pub unknown: u64,
    /// Objects there are in the end.
    pub objects: usize,
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Starts `writers` writers of ConfigMaps in `namespace`, which exists; writer
    /// n uses the nth apiserver of `apis`, round and round. Each writes about every
    /// `pause`.
    #[must_use]
    pub fn start(apis: &[Arc<Api>], namespace: &str, writers: usize, pause: Duration) -> Self {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let book = Arc::new(Mutex::new(Book::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..writers)
            .map(|n| {
                let api = Arc::clone(&apis[n % apis.len()]);
                let (path, book, stop) = (path.clone(), Arc::clone(&book), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        turn(&api, &path, &book, n, round).await;
                        round += 1;
                        tokio::time::sleep(pause).await;
                    }
                })
            })
            .collect();
        Self {
            path,
            book,
            stop,
            writers,
        }
    }

    /// Acknowledged writes so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        lock(&self.book).acked
    }

    /// Waits until `count` more writes are acknowledged: the load is alive.
    ///
    /// # Errors
    /// If that takes longer than `timeout`.
    pub async fn wait_for_more(&self, count: u64, timeout: Duration) -> Result<()> {
        let goal = self.acked() + count;
        super::eventually("acknowledged writes go on", timeout, || async {
            Ok((self.acked() >= goal).then_some(()))
        })
        .await
    }

    /// Stops the writers and compares what is there, read through `api`, with what
    /// was acknowledged.
    ///
    /// # Errors
    /// If an acknowledged write is lost, undone or has another revision, or if a
    /// revision was given twice.
    pub async fn finish(self, api: &Api) -> Result<Summary> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            if writer.await.is_err() {
                return fail("a writer of the load panicked");
            }
        }
        let list = api.get(&self.path).await?;
        let found: BTreeMap<String, &Value> = items(&list)
            .iter()
            .filter(|item| item["data"]["content"].is_string())
            .map(|item| (full_name(item), item))
            .collect();
        let mut book = lock(&self.book);
        let mut wrong = std::mem::take(&mut book.wrong);
        for (name, entry) in &book.entries {
            let is = found.get(name).map(|item| {
                let content = item["data"]["content"]
                    .as_str()
                    .and_then(|text| text.parse().ok());
                (content.unwrap_or(u64::MAX), revision(item))
            });
            let as_unknown = entry
                .unknown
                .is_some_and(|content| content == is.map(|(content, _)| content));
            if is != entry.acked && !as_unknown {
                wrong.push(format!(
                    "{name}: is {is:?} (content, revision), should be {entry:?}"
                ));
            }
        }
        for name in found
            .keys()
            .filter(|name| !book.entries.contains_key(*name))
        {
            wrong.push(format!("{name}: is there and was never written"));
        }
        ensure(wrong.is_empty(), || {
            wrong.truncate(20);
            format!(
                "acknowledged writes are not as acknowledged:\n{}",
                wrong.join("\n")
            )
        })?;
        Ok(Summary {
            acked: book.acked,
            unknown: book.unknown,
            objects: found.len(),
        })
    }
}

/// One write of a writer: mostly a new object or an update, then deletes of old
/// ones.
async fn turn(api: &Api, path: &str, book: &Mutex<Book>, writer: usize, round: u64) {
    let namespace = path.split('/').nth(4).unwrap_or_default();
    let number = round / 3;
    // Create number n, update it, and delete the one that has become too old.
    let (number, content) = match round % 3 {
        0 => (number, Some(round)),
        1 => (number, Some(round)),
        _ if number >= LIVE_PER_WRITER => (number - LIVE_PER_WRITER, None),
        _ => (number / 2, Some(round)),
    };
    let name = format!("load-{writer}-{number}");
    let full = format!("{namespace}/{name}");
    let entry = lock(book).entries.get(&full).cloned().unwrap_or_default();
    if entry.unknown.is_some() || (entry.acked.is_none() && !round.is_multiple_of(3)) {
        return;
    }
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace,
                      "resourceVersion": entry.acked.map(|(_, revision)| revision.to_string()) },
        "data": { "content": content.unwrap_or_default().to_string(), "pad": "x".repeat(600) }
    });
    let at = format!("{path}/{name}");
    let answer = match (content, entry.acked) {
        (None, _) => api.delete(&at).await,
        (Some(_), None) => api.create(path, &object).await,
        (Some(_), Some(_)) => api.replace(&at, &object).await,
    };
    let mut book = lock(book);
    match answer {
        Ok(answer) => {
            book.acked += 1;
            let acked = content.map(|content| (content, revision(&answer)));
            if let Some((_, revision)) = acked {
                let fresh = book.revisions.insert(revision);
                if !fresh || entry.acked.is_some_and(|(_, before)| revision <= before) {
                    book.wrong.push(format!(
                        "{full}: written at revision {revision}, which was given before; \
                         before: {entry:?}"
                    ));
                }
            }
            book.entries.insert(
                full,
                Entry {
                    acked,
                    unknown: None,
                },
            );
        }
        // Nobody else writes these names, so these answers say that an earlier
        // write was lost, or that a failed one came through in spite of the ledger.
        Err(Error::Status {
            status: 404 | 409,
            message,
            ..
        }) => {
            book.wrong
                .push(format!("{full}: {message}; acknowledged: {entry:?}"));
            book.entries.insert(
                full,
                Entry {
                    unknown: Some(content),
                    ..entry
                },
            );
        }
        Err(_) => {
            book.unknown += 1;
            book.entries.insert(
                full,
                Entry {
                    unknown: Some(content),
                    ..entry
                },
            );
        }
    }
}
