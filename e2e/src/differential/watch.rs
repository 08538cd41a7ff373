//! A watch stream as a client sees it: what its watches saw, in order, and whether
//! the stream kept its promises.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::watch_client::WatchClient;
use etcd_api::mvccpb::Event;
use pb::watch_request::RequestUnion;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::kube::store::Kind;
use crate::kube::{Result, fail};

/// Requests that may wait for the server to take them.
const REQUESTS: usize = 64;
/// How long any one thing that must come may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often progress is asked for again: etcd does not answer while a watch of
/// the stream is behind.
const PROGRESS_EVERY: Duration = Duration::from_millis(20);

/// An open stream. Dropping it ends it.
#[derive(Debug)]
pub struct WatchStream {
    requests: mpsc::Sender<pb::WatchRequest>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    changed: Notify,
}

/// What came over a stream and has not been looked at.
#[derive(Debug)]
struct Log {
    kind: Kind,
    /// What the creations under way asked for, in their order.
    asked: VecDeque<Asked>,
    /// Beginnings and ends of watches.
    control: VecDeque<pb::WatchResponse>,
    /// Watches by id and by how often the id had been used before.
    watches: BTreeMap<(i64, usize), Seen>,
    /// How often each id was used.
    uses: BTreeMap<i64, usize>,
    /// Revision of the last answer to a progress request.
    progress_revision: i64,
    /// Promises broken.
    broken: Vec<String>,
    /// Why the stream ended.
    ended: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    prev_kv: bool,
    fragment: bool,
}

#[derive(Debug, Default)]
struct Seen {
    asked: Asked,
    events: Vec<Event>,
    last_revision: i64,
    in_fragments: bool,
}

/// What the watches of a stream saw since the last look.
#[derive(Debug, Default)]
pub struct Sight {
    /// Events by watch id and by how often the id had been used before.
    pub events: BTreeMap<(i64, usize), Vec<Event>>,
    /// Beginnings and ends of watches that nobody waited for.
    pub control: Vec<pb::WatchResponse>,
    /// Promises broken.
    pub broken: Vec<String>,
}

impl WatchStream {
    /// Opens a stream to a store of some kind.
    #[must_use]
    pub fn open(mut client: WatchClient<Channel>, kind: Kind) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let shared = Arc::new(Shared {
            log: Mutex::new(Log::new(kind)),
            changed: Notify::new(),
        });
        let for_reader = Arc::clone(&shared);
        // The call returns with the first answer, so it cannot be awaited here.
        let reader = tokio::spawn(async move {
            let end = match client.watch(ReceiverStream::new(receiver)).await {
                Err(status) => status.to_string(),
                Ok(response) => {
                    let mut responses = response.into_inner();
                    loop {
                        match responses.message().await {
                            Ok(Some(response)) => {
                                for_reader.log().take(response);
                                for_reader.changed.notify_waiters();
                            }
                            Ok(None) => break "closed by the server".to_owned(),
                            Err(status) => break status.to_string(),
                        }
                    }
                }
            };
            for_reader.log().ended = Some(end);
            for_reader.changed.notify_waiters();
        });
        Self {
            requests,
            shared,
            reader,
        }
    }

    /// Asks for a watch and waits until the server says that it begins, or not.
    ///
    /// # Errors
    /// If it says nothing.
    pub async fn create(&self, request: pb::WatchCreateRequest) -> Result<pb::WatchResponse> {
        self.shared.log().asked.push_back(Asked {
            prev_kv: request.prev_kv,
            fragment: request.fragment,
        });
        self.send(RequestUnion::CreateRequest(request)).await?;
        self.control().await
    }

    /// Asks to cancel a watch; [`WatchStream::control`] has the answer, if any.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn cancel(&self, watch_id: i64) -> Result<()> {
        let request = pb::WatchCancelRequest { watch_id };
        self.send(RequestUnion::CancelRequest(request)).await
    }

    /// Asks for progress.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn ask_progress(&self) -> Result<()> {
        let request = pb::WatchProgressRequest {};
        self.send(RequestUnion::ProgressRequest(request)).await
    }

    /// The next beginning or end of a watch.
    ///
    /// # Errors
    /// If none comes.
    pub async fn control(&self) -> Result<pb::WatchResponse> {
        self.until("an answer to a watch request", TIMEOUT, |log| {
            log.control.pop_front()
        })
        .await
    }

    /// Waits until the server says that all watches have seen everything up to
    /// `revision`. At least one watch must be open, none may start above it, and
    /// `revision` must be newer than the newest of them.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn reach(&self, revision: i64) -> Result<()> {
        let began = Instant::now();
        loop {
            self.ask_progress().await?;
            let reached = self
                .until("progress", PROGRESS_EVERY, |log| {
                    (log.progress_revision >= revision).then_some(())
                })
                .await;
            match reached {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > TIMEOUT || self.shared.log().ended.is_some() => {
                    return fail(format!("progress up to revision {revision}: {error}"));
                }
                Err(_) => {}
            }
        }
    }

    /// Takes what was seen since the last call.
    #[must_use]
    pub fn look(&self) -> Sight {
        let mut log = self.shared.log();
        let mut sight = Sight {
            control: log.control.drain(..).collect(),
            broken: std::mem::take(&mut log.broken),
            ..Sight::default()
        };
        for (id, seen) in &mut log.watches {
            if !seen.events.is_empty() {
                sight.events.insert(*id, std::mem::take(&mut seen.events));
            }
        }
        sight
    }

    async fn send(&self, request: RequestUnion) -> Result<()> {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        match tokio::time::timeout(TIMEOUT, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => fail(format!(
                "the watch stream ended: {:?}",
                self.shared.log().ended
            )),
            Err(_) => fail("the server does not read from the watch stream"),
        }
    }

    async fn until<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut check: impl FnMut(&mut Log) -> Option<T>,
    ) -> Result<T> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut log = self.shared.log();
                if let Some(value) = check(&mut log) {
                    return Ok(value);
                }
                if let Some(ended) = &log.ended {
                    return fail(format!("no {what}: the stream ended: {ended}"));
                }
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return fail(format!("no {what} within {timeout:?}"));
            }
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            asked: VecDeque::new(),
            control: VecDeque::new(),
            watches: BTreeMap::new(),
            uses: BTreeMap::new(),
            progress_revision: 0,
            broken: Vec::new(),
            ended: None,
        }
    }

    fn take(&mut self, response: pb::WatchResponse) {
        let id = response.watch_id;
        if response.created {
            let asked = self.asked.pop_front();
            if asked.is_none() {
                self.broken.push(format!("nobody asked for {response:?}"));
            }
            if !response.canceled {
                let uses = self.uses.entry(id).or_default();
                let seen = Seen {
                    asked: asked.unwrap_or_default(),
                    ..Seen::default()
                };
                self.watches.insert((id, *uses), seen);
                *uses += 1;
            }
        }
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.created || response.canceled {
            self.control.push_back(response);
        } else if response.events.is_empty() {
            if revision < self.progress_revision {
                self.broken.push(format!(
                    "progress goes back from {} to {revision}",
                    self.progress_revision
                ));
            }
            self.progress_revision = revision;
        } else {
            let uses = self.uses.get(&id).copied().unwrap_or_default();
            match self.watches.get_mut(&(id, uses.saturating_sub(1))) {
                Some(seen) => seen.take(response, self.kind, &mut self.broken),
                None => self
                    .broken
                    .push(format!("events of no watch: {response:?}")),
            }
        }
    }
}

impl Seen {
    fn take(&mut self, response: pb::WatchResponse, kind: Kind, broken: &mut Vec<String>) {
        let id = response.watch_id;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.fragment && !self.asked.fragment {
            broken.push(format!("watch {id} did not ask for fragments and got one"));
        }
        for (index, event) in response.events.into_iter().enumerate() {
            self.take_event(id, index, event, kind, broken);
        }
        if revision < self.last_revision {
            broken.push(format!(
                "watch {id}: events up to {} under a header of {revision}",
                self.last_revision
            ));
        }
        self.in_fragments = response.fragment;
    }

    fn take_event(
        &mut self,
        id: i64,
        index: usize,
        event: Event,
        kind: Kind,
        broken: &mut Vec<String>,
    ) {
        let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        if revision < self.last_revision {
            broken.push(format!(
                "watch {id}: an event of revision {revision} after one of {}",
                self.last_revision
            ));
        }
        if index == 0 && revision == self.last_revision && !self.in_fragments {
            broken.push(format!(
                "watch {id}: revision {revision} is split over two responses"
            ));
        }
        self.last_revision = revision;
        let mut event = event;
        if !self.asked.prev_kv && kind == Kind::Etcd {
            // etcd 3.7 shares an event between its watches, and adds prev_kv for
            // one of them at a moment when others may not have sent it yet.
            event.prev_kv = None;
        }
        self.events.push(event);
    }
}
