//! A watcher that goes on where it was, however often the server goes away.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_api::etcdserverpb as pb;
use etcd_api::mvccpb::event::EventType;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

/// An event, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// The new value; `None` for a delete.
    pub value: Option<String>,
}

/// A watcher's memory.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    events: Arc<Mutex<Vec<Seen>>>,
    /// What the watch did that no watch may.
    wrong: Arc<Mutex<Option<String>>>,
    next: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    /// Begins to watch `key` to `end` (etcd's range) from revision `from` on, in a task.
    #[must_use]
    pub fn start(channel: Channel, key: &str, end: &[u8], from: i64) -> Self {
        let observer = Self::default();
        observer.next.store(from, Ordering::SeqCst);
        let create = pb::WatchCreateRequest {
            key: bytes::Bytes::copy_from_slice(key.as_bytes()),
            range_end: bytes::Bytes::copy_from_slice(end),
            ..Default::default()
        };
        tokio::spawn(observer.clone().run(channel, create));
        observer
    }

    /// The first revision not seen yet: all before it is.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Ends the task at its next event or error.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Seen> {
        locked(&self.events).clone()
    }

    /// What went wrong, if something did.
    #[must_use]
    pub fn wrong(&self) -> Option<String> {
        locked(&self.wrong).clone()
    }

    async fn run(self, channel: Channel, create: pb::WatchCreateRequest) {
        while !self.stop.load(Ordering::SeqCst) && self.wrong().is_none() {
            let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(64 << 20);
            let request = pb::WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                    start_revision: self.next(),
                    ..create.clone()
                })),
            };
            let requests = tokio_stream::once(request).chain(tokio_stream::pending());
            // A dead server is no error here: the checks are about what a living one says.
            if let Ok(reply) = client.watch(requests).await {
                let mut answers = reply.into_inner();
                while let Ok(Some(answer)) = answers.message().await {
                    if let Err(text) = self.take(answer) {
                        *locked(&self.wrong) = Some(text);
                        return;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn take(&self, answer: pb::WatchResponse) -> Result<(), String> {
        if answer.canceled {
            return Err(format!(
                "the watch was cancelled at {}: {} (compacted at {})",
                self.next(),
                answer.cancel_reason,
                answer.compact_revision
            ));
        }
        let next = self.next();
        let mut events = locked(&self.events);
        let mut last = next - 1;
        for event in answer.events {
            let kv = event.kv.unwrap_or_default();
            if kv.mod_revision < next || kv.mod_revision < last {
                return Err(format!(
                    "revision {} came after {}",
                    kv.mod_revision,
                    last.max(next - 1)
                ));
            }
            last = kv.mod_revision;
            let put = event.r#type == i32::from(EventType::Put);
            events.push(Seen {
                revision: kv.mod_revision,
                key: String::from_utf8_lossy(&kv.key).into_owned(),
                value: put.then(|| String::from_utf8_lossy(&kv.value).into_owned()),
            });
        }
        self.next.store(last + 1, Ordering::SeqCst);
        Ok(())
    }
}
