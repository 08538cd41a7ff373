//! A running etcd (or orlop) as a client sees it: what `import` and `export` ask of it.

use crate::failure::say;
use crate::import_members::{TlsArgs, members, turn};
use bytes::Bytes;
use etcd_api::etcdserverpb::{self as pb, watch_request::RequestUnion};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use upstream::{Endpoint, Pinned, explain};

/// How long a call other than a stream may take; a hash goes over all of the data.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a server may take to say what it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// A call that fails for a reason that may pass is made again for this long, and at least
/// once at each endpoint.
const RETRIED_FOR: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The longest message taken: a fragment of a watch is a few MiB, an answer about a lease
/// has its keys.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// What etcd's clients send to be refused by a member without a leader.
const REQUIRE_LEADER: (&str, &str) = ("hasleader", "true");

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The arguments do not name one that could be.
    #[error("{0}")]
    Argument(String),
    /// None of the endpoints answered.
    #[error("no endpoint answers: {0}")]
    Connect(String),
    /// The server wants a user.
    #[error(
        "{url} has auth enabled. orlop has no users: every client that can connect could read and \
         write everything. Restrict access by client certificates, then end auth there (etcdctl \
         auth disable) and try again; or take a snapshot (etcdctl snapshot save) and restore it \
         with orlop snapshot restore --drop-auth"
    )]
    Auth {
        /// The endpoint.
        url: String,
    },
    /// A call failed.
    #[error("{url}: {call} failed: {}", explain(.status))]
    Call {
        /// The endpoint.
        url: String,
        /// The method.
        call: &'static str,
        /// The server's answer.
        status: Box<Status>,
    },
    /// How far the source is cannot be known.
    #[error(
        "{url} cannot say what the cluster has agreed on ({}): it has no leader, or is cut off \
         from the others. Nothing is kept. Get a majority of the members to run (etcdctl endpoint \
         status --cluster), name all of them in --from, and import again",
        explain(.status)
    )]
    NoAgreement {
        /// The endpoint.
        url: String,
        /// The server's answer.
        status: Box<Status>,
    },
    /// The server compacted what was to be watched.
    #[error("the server has compacted its history up to revision {compact_revision}")]
    Compacted {
        /// Its compact revision.
        compact_revision: i64,
    },
    /// The server answered what it should not.
    #[error("{url}: {what}")]
    Odd {
        /// The endpoint.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The file for the snapshot.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A server, by its endpoints. One of them is asked, until it does not answer.
#[derive(Clone)]
pub(crate) struct Source {
    members: Pinned,
    cluster_id: u64,
}

/// What a watch brings.
pub(crate) struct Watching {
    /// The endpoint.
    at: usize,
    stream: Streaming<pb::WatchResponse>,
    /// Kept open: its end would end the watch.
    _requests: mpsc::Sender<pb::WatchRequest>,
}

impl Source {
    /// Asks all endpoints; the first that answers is used. Returns it with its status.
    ///
    /// # Errors
    /// [`SourceError`] if none answers, or they are not of one cluster.
    pub(crate) async fn connect(
        endpoints: &str,
        tls: &TlsArgs,
    ) -> Result<(Self, pb::StatusResponse), SourceError> {
        let members = members(endpoints, tls)?;
        let cluster_of = |status: &pb::StatusResponse| {
            let header = status.header.as_ref();
            header.map_or(0, |header| header.cluster_id)
        };
        let mut first: Option<(usize, pb::StatusResponse)> = None;
        let mut failures = Vec::new();
        for (at, endpoint) in members.endpoints().iter().enumerate() {
            match (status_of(members.channel(at)).await, &first) {
                (Ok(status), None) => first = Some((at, status)),
                (Ok(status), Some((other, known))) if cluster_of(&status) != cluster_of(known) => {
                    return Err(SourceError::Argument(format!(
                        "{endpoint} is of cluster {:x}, and {} of cluster {:x}: name members of one \
                         cluster",
                        cluster_of(&status),
                        members.endpoints()[*other],
                        cluster_of(known)
                    )));
                }
                (Ok(_), Some(_)) => {}
                (Err(status), _) if wants_user(&status) => {
                    let url = endpoint.to_string();
                    return Err(SourceError::Auth { url });
                }
                (Err(status), _) => {
                    let text = explain(&status);
                    let hint = tls.hint(endpoint, &text);
                    failures.push(format!("{endpoint}: {text}{hint}"));
                }
            }
        }
        let Some((at, status)) = first else {
            return Err(SourceError::Connect(failures.join("; ")));
        };
        for failure in failures {
            say!("note: no answer from {failure}");
        }
        members.set(at);
        let cluster_id = cluster_of(&status);
        let source = Source {
            members,
            cluster_id,
        };
        Ok((source, status))
    }

    /// The endpoint in use.
    pub(crate) fn url(&self) -> String {
        self.endpoint(self.members.at()).to_string()
    }

    fn endpoint(&self, at: usize) -> &Endpoint {
        &self.members.endpoints()[at]
    }

    /// Whether a watch is at the endpoint in use.
    pub(crate) fn is_at(&self, watching: &Watching) -> bool {
        watching.at == self.members.at()
    }

    fn channel(&self) -> Channel {
        self.members.channel(self.members.at())
    }

    fn fails(&self, at: usize, call: &'static str, status: Status) -> SourceError {
        SourceError::Call {
            url: self.endpoint(at).to_string(),
            call,
            status: Box::new(status),
        }
    }

    fn odd(&self, what: impl Into<String>) -> SourceError {
        SourceError::Odd {
            url: self.url(),
            what: what.into(),
        }
    }

    /// Calls until there is an answer, for a limited time, by one endpoint after the other.
    async fn call<A>(
        &self,
        call: &'static str,
        mut once: impl AsyncFnMut() -> Result<A, Status>,
    ) -> Result<A, SourceError> {
        let began = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut tried = 0;
        loop {
            let at = self.members.at();
            let result = tokio::time::timeout(CALL_TIMEOUT, once())
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
            tried += 1;
            let again = tried < self.members.endpoints().len() || began.elapsed() < RETRIED_FOR;
            match result {
                Ok(answer) => return Ok(answer),
                Err(status) if again && is_passing(&status) => {
                    let why = format!("{call} failed: {}", explain(&status));
                    turn(&self.members, at, &why);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(MAX_WAIT);
                }
                Err(status) => return Err(self.fails(at, call, status)),
            }
        }
    }

    /// Refuses answers of another cluster: the address may have been given away.
    fn check(&self, header: Option<&pb::ResponseHeader>) -> Result<i64, SourceError> {
        let header = header.ok_or_else(|| self.odd("an answer without a header"))?;
        if self.cluster_id != 0 && header.cluster_id != self.cluster_id {
            return Err(self.odd(format!(
                "it answers for cluster {:x} now, before it was {:x}: its data was replaced; start \
                 over",
                header.cluster_id, self.cluster_id
            )));
        }
        Ok(header.revision)
    }

    fn maintenance(&self) -> pb::maintenance_client::MaintenanceClient<Channel> {
        pb::maintenance_client::MaintenanceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn leases_client(&self) -> pb::lease_client::LeaseClient<Channel> {
        pb::lease_client::LeaseClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The revision that all members have agreed on by now: nothing that any of them has
    /// answered before comes after it. One member's own word may be of the past, if it is cut
    /// off from the others.
    ///
    /// # Errors
    /// [`SourceError::NoAgreement`] if there is none for a while.
    pub(crate) async fn revision(&self) -> Result<i64, SourceError> {
        let header = self
            .call("Range", async || {
                let mut client = pb::kv_client::KvClient::new(self.channel());
                // Of any key: linearizable reads wait for what was agreed on.
                let get = pb::RangeRequest {
                    key: Bytes::from_static(b"\0"),
                    keys_only: true,
                    ..Default::default()
                };
                Ok(client.range(get).await?.into_inner().header)
            })
            .await
            .map_err(|error| match error {
                SourceError::Call { url, status, .. } if is_passing(&status) => {
                    SourceError::NoAgreement { url, status }
                }
                other => other,
            })?;
        self.check(header.as_ref())
    }

    /// Refuses a server that has users.
    ///
    /// # Errors
    /// [`SourceError::Auth`], or that it cannot be asked.
    pub(crate) async fn refuse_auth(&self) -> Result<(), SourceError> {
        let answer = self
            .call("AuthStatus", async || {
                let mut client = pb::auth_client::AuthClient::new(self.channel());
                match client.auth_status(pb::AuthStatusRequest::default()).await {
                    Ok(answer) => Ok(answer.into_inner().enabled),
                    Err(status) if wants_user(&status) => Ok(true),
                    Err(status) => Err(status),
                }
            })
            .await?;
        if answer {
            let url = self.url();
            return Err(SourceError::Auth { url });
        }
        Ok(())
    }

    /// Alarms as member and etcd's `AlarmType` number.
    pub(crate) async fn alarms(&self) -> Result<Vec<(u64, i32)>, SourceError> {
        let answer = self
            .call("Alarm", async || {
                let get = pb::AlarmRequest::default();
                Ok(self.maintenance().alarm(get).await?.into_inner())
            })
            .await?;
        let alarms = answer.alarms.into_iter().map(|a| (a.member_id, a.alarm));
        Ok(alarms.collect())
    }

    /// Hash, its revision and compact revision, of the store as it is now.
    pub(crate) async fn hash(&self) -> Result<SourceHash, SourceError> {
        let answer = self
            .call("HashKV", async || {
                // Revision 0: an etcd answers at a named one with the hash of a compaction
                // there, if there was one.
                let now = pb::HashKvRequest { revision: 0 };
                Ok(self.maintenance().hash_kv(now).await?.into_inner())
            })
            .await?;
        Ok(SourceHash {
            revision: self.check(answer.header.as_ref())?,
            compact_revision: answer.compact_revision,
            hash: answer.hash,
        })
    }

    /// Ids of the leases that exist.
    pub(crate) async fn leases(&self) -> Result<Vec<i64>, SourceError> {
        let answer = self
            .call("LeaseLeases", async || {
                let all = pb::LeaseLeasesRequest::default();
                Ok(self.leases_client().lease_leases(all).await?.into_inner())
            })
            .await?;
        self.check(answer.header.as_ref())?;
        Ok(answer.leases.into_iter().map(|lease| lease.id).collect())
    }

    /// A lease's granted time to live in seconds; `None` if it does not exist.
    pub(crate) async fn lease_ttl_s(&self, id: i64) -> Result<Option<i64>, SourceError> {
        let answer = self
            .call("LeaseTimeToLive", async || {
                let ask = pb::LeaseTimeToLiveRequest { id, keys: false };
                Ok(self
                    .leases_client()
                    .lease_time_to_live(ask)
                    .await?
                    .into_inner())
            })
            .await?;
        Ok((answer.ttl >= 0 && answer.granted_ttl > 0).then_some(answer.granted_ttl))
    }

    /// Saves a snapshot with its SHA-256 to a new file, synced; returns its bytes. `progress`
    /// is told the bytes had and those still to come. Begins anew at the next endpoint when
    /// one fails.
    pub(crate) async fn save(
        &self,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<u64, SourceError> {
        const TRIES: usize = 3;
        let tries = self.members.endpoints().len().max(TRIES);
        let mut tried = 0;
        loop {
            let at = self.members.at();
            tried += 1;
            match self.save_once(at, path, &mut progress).await {
                Err(SourceError::Call { status, .. }) if tried < tries && is_passing(&status) => {
                    let why = format!("Snapshot failed: {}", explain(&status));
                    turn(&self.members, at, &why);
                    tokio::time::sleep(FIRST_WAIT * tried as u32).await;
                }
                other => return other,
            }
        }
    }

    async fn save_once(
        &self,
        at: usize,
        path: &Path,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<u64, SourceError> {
        let write_error = |source| SourceError::Write {
            path: path.to_owned(),
            source,
        };
        let fails = |status| self.fails(at, "Snapshot", status);
        let mut file = private_file(path).map_err(write_error)?;
        let request = pb::SnapshotRequest::default();
        let mut stream = self
            .maintenance()
            .snapshot(request)
            .await
            .map_err(fails)?
            .into_inner();
        let mut bytes = 0;
        loop {
            let next = tokio::time::timeout(CALL_TIMEOUT, stream.message())
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no data")));
            let Some(part) = next.map_err(fails)? else {
                break;
            };
            file.write_all(&part.blob).map_err(write_error)?;
            bytes += part.blob.len() as u64;
            progress(bytes, part.remaining_bytes);
        }
        file.sync_all().map_err(write_error)?;
        Ok(bytes)
    }

    /// Watches every key from a revision on. A member that has lost its leader ends the watch.
    pub(crate) async fn watch(&self, start_revision: i64) -> Result<Watching, SourceError> {
        let at = self.members.at();
        let (requests, receiver) = mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision,
            fragment: true,
            ..Default::default()
        };
        // There is room for one.
        let _ = requests.try_send(pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        });
        let mut client = pb::watch_client::WatchClient::new(self.members.channel(at))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut request = Request::new(receiver);
        let (name, value) = REQUIRE_LEADER;
        let value = MetadataValue::from_static(value);
        request.metadata_mut().insert(name, value);
        let stream = client.watch(request).await.map_err(|status| {
            self.lost_watch(at, &status);
            self.fails(at, "Watch", status)
        })?;
        Ok(Watching {
            at,
            stream: stream.into_inner(),
            _requests: requests,
        })
    }

    fn lost_watch(&self, at: usize, status: &Status) {
        let why = format!("the watch ended: {}", explain(status));
        turn(&self.members, at, &why);
    }

    /// The next response of a watch; `None` if the connection was lost, and it should be
    /// opened anew.
    pub(crate) async fn next(
        &self,
        watching: &mut Watching,
    ) -> Result<Option<pb::WatchResponse>, SourceError> {
        let response = match watching.stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => {
                self.lost_watch(watching.at, &Status::unavailable("by the server"));
                return Ok(None);
            }
            Err(status) if is_passing(&status) => {
                self.lost_watch(watching.at, &status);
                return Ok(None);
            }
            Err(status) => return Err(self.fails(watching.at, "Watch", status)),
        };
        self.check(response.header.as_ref())?;
        if response.compact_revision > 0 {
            return Err(SourceError::Compacted {
                compact_revision: response.compact_revision,
            });
        }
        if response.canceled {
            return Err(self.odd(format!("it ended the watch: {}", response.cancel_reason)));
        }
        Ok(Some(response))
    }
}

/// What a server says of itself.
async fn status_of(channel: Channel) -> Result<pb::StatusResponse, Status> {
    let mut client = pb::maintenance_client::MaintenanceClient::new(channel);
    let answer = client.status(pb::StatusRequest::default());
    match tokio::time::timeout(STATUS_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

/// A HashKV answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceHash {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) hash: u32,
}

/// For files that only their owner may read: they may hold Secrets.
fn private() -> std::fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// An empty private file.
pub(crate) fn private_file(path: &Path) -> std::io::Result<File> {
    private().create(true).truncate(true).open(path)
}

/// The same, if there is none yet.
pub(crate) fn new_private_file(path: &Path) -> std::io::Result<File> {
    private().create_new(true).open(path)
}

/// Whether the same call may do better in a while.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    ) || (status.code() == Code::Internal && std::error::Error::source(status).is_some())
}

fn wants_user(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::Unauthenticated
    ) || status.message().contains("user name is empty")
}
