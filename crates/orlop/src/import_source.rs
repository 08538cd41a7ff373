//! A running etcd (or orlop) as a client sees it: what `import` and `export` ask of it.

use bytes::Bytes;
use etcd_api::etcdserverpb::{self as pb, watch_request::RequestUnion};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call other than a stream may take; a hash goes over all of the data.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A silent connection is asked for a sign of life this often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A call is tried this often when the connection fails.
const ATTEMPTS: u32 = 10;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The longest message taken: a fragment of a watch is a few MiB, an answer about a lease
/// has its keys.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
const WINDOW_BYTES: u32 = 4 << 20;

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

/// A status for an operator: code, text, and the cause below, where TLS faults hide.
fn explain(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let error_text = error.to_string();
        if !text.contains(&error_text) {
            text.push_str(": ");
            text.push_str(&error_text);
        }
        cause = error.source();
    }
    text
}

/// Options of a client, named as etcdctl's.
#[derive(clap::Args)]
pub(crate) struct TlsArgs {
    /// Verify the server by this CA bundle (PEM).
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Identify by this client certificate (PEM).
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    fn config(&self) -> Result<ClientTlsConfig, SourceError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                SourceError::Argument(format!("cannot read {}: {error}", path.display()))
            })
        };
        let Some(cacert) = &self.cacert else {
            return Err(SourceError::Argument(
                "an https endpoint needs --cacert, the CA that signed the server's certificate \
                 (kubeadm: /etc/kubernetes/pki/etcd/ca.crt)"
                    .to_owned(),
            ));
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(cacert)?));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }
}

/// A server, by one of its endpoints: all of an import comes from one member.
#[derive(Clone)]
pub(crate) struct Source {
    url: String,
    channel: Channel,
    cluster_id: u64,
}

/// What a watch brings.
pub(crate) struct Watching {
    stream: Streaming<pb::WatchResponse>,
    /// Kept open: its end would end the watch.
    _requests: mpsc::Sender<pb::WatchRequest>,
}

impl Source {
    /// Connects to the first endpoint that answers; returns it with its status.
    pub(crate) async fn connect(
        endpoints: &str,
        tls: &TlsArgs,
    ) -> Result<(Self, pb::StatusResponse), SourceError> {
        let mut failures = Vec::new();
        for url in endpoints
            .split(',')
            .map(str::trim)
            .filter(|u| !u.is_empty())
        {
            let url = if url.contains("://") {
                url.to_owned()
            } else {
                format!("http://{url}")
            };
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| SourceError::Argument(format!("{url}: {error}")))?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_INTERVAL)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES);
            if url.starts_with("https://") {
                endpoint = endpoint
                    .tls_config(tls.config()?)
                    .map_err(|error| SourceError::Argument(format!("{url}: {error}")))?;
            } else if tls.cacert.is_some() {
                return Err(SourceError::Argument(format!(
                    "{url}: certificates are named, but the endpoint is not https"
                )));
            }
            let mut source = Source {
                url: url.clone(),
                channel: endpoint.connect_lazy(),
                cluster_id: 0,
            };
            match source.status_once().await {
                Ok(status) => {
                    source.cluster_id = status.header.as_ref().map_or(0, |h| h.cluster_id);
                    return Ok((source, status));
                }
                Err(status) if wants_user(&status) => return Err(SourceError::Auth { url }),
                Err(status) => {
                    let text = explain(&status);
                    let hint = if url.starts_with("http://") && text.contains("transport error") {
                        " (if it serves TLS: https:// and --cacert, --cert, --key)"
                    } else if url.starts_with("https://")
                        && tls.cert.is_none()
                        && text.contains("connection")
                    {
                        // What a server without it says depends on when it closes.
                        " (if it wants a client certificate: --cert and --key)"
                    } else {
                        ""
                    };
                    failures.push(format!("{url}: {text}{hint}"));
                }
            }
        }
        Err(SourceError::Connect(if failures.is_empty() {
            "none is named".to_owned()
        } else {
            failures.join("; ")
        }))
    }

    /// The endpoint.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn fails(&self, call: &'static str, status: Status) -> SourceError {
        SourceError::Call {
            url: self.url.clone(),
            call,
            status: Box::new(status),
        }
    }

    fn odd(&self, what: impl Into<String>) -> SourceError {
        SourceError::Odd {
            url: self.url.clone(),
            what: what.into(),
        }
    }

    /// Calls until the connection holds, a limited number of times.
    async fn call<A>(
        &self,
        call: &'static str,
        mut once: impl AsyncFnMut() -> Result<A, Status>,
    ) -> Result<A, SourceError> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let result = tokio::time::timeout(CALL_TIMEOUT, once())
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
            match result {
                Ok(answer) => return Ok(answer),
                Err(status) if attempt < ATTEMPTS && is_passing(&status) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(MAX_WAIT);
                }
                Err(status) => return Err(self.fails(call, status)),
            }
        }
        Err(self.odd("it was asked no more"))
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
        pb::maintenance_client::MaintenanceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn leases_client(&self) -> pb::lease_client::LeaseClient<Channel> {
        pb::lease_client::LeaseClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn status_once(&self) -> Result<pb::StatusResponse, Status> {
        let mut client = self.maintenance();
        let answer = tokio::time::timeout(
            CONNECT_TIMEOUT * 2,
            client.status(pb::StatusRequest::default()),
        );
        match answer.await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        }
    }

    /// The store's revision.
    pub(crate) async fn revision(&self) -> Result<i64, SourceError> {
        let status = self
            .call("Status", async || self.status_once().await)
            .await?;
        self.check(status.header.as_ref())
    }

    /// Refuses a server that has users.
    ///
    /// # Errors
    /// [`SourceError::Auth`], or that it cannot be asked.
    pub(crate) async fn refuse_auth(&self) -> Result<(), SourceError> {
        let answer = self
            .call("AuthStatus", async || {
                let mut client = pb::auth_client::AuthClient::new(self.channel.clone());
                match client.auth_status(pb::AuthStatusRequest::default()).await {
                    Ok(answer) => Ok(answer.into_inner().enabled),
                    Err(status) if wants_user(&status) => Ok(true),
                    Err(status) => Err(status),
                }
            })
            .await?;
        if answer {
            return Err(SourceError::Auth {
                url: self.url.clone(),
            });
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
    /// is told the bytes had and those still to come.
    pub(crate) async fn save(
        &self,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<u64, SourceError> {
        const TRIES: u32 = 3;
        for attempt in 1.. {
            match self.save_once(path, &mut progress).await {
                Err(SourceError::Call { status, .. }) if attempt < TRIES && is_passing(&status) => {
                    tokio::time::sleep(FIRST_WAIT * attempt).await;
                }
                other => return other,
            }
        }
        Err(self.odd("it was asked no more"))
    }

    async fn save_once(
        &self,
        path: &Path,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<u64, SourceError> {
        let write_error = |source| SourceError::Write {
            path: path.to_owned(),
            source,
        };
        let fails = |status| self.fails("Snapshot", status);
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

    /// Watches every key from a revision on.
    pub(crate) async fn watch(&self, start_revision: i64) -> Result<Watching, SourceError> {
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
        let mut client = pb::watch_client::WatchClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let stream = client
            .watch(tokio_stream::wrappers::ReceiverStream::new(receiver))
            .await
            .map_err(|status| self.fails("Watch", status))?
            .into_inner();
        Ok(Watching {
            stream,
            _requests: requests,
        })
    }

    /// The next response of a watch; `None` if the connection was lost, and it should be
    /// opened anew.
    pub(crate) async fn next(
        &self,
        watching: &mut Watching,
    ) -> Result<Option<pb::WatchResponse>, SourceError> {
        let response = match watching.stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(None),
            Err(status) if is_passing(&status) => return Ok(None),
            Err(status) => return Err(self.fails("Watch", status)),
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

/// A HashKV answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceHash {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) hash: u32,
}

/// A new file that only its owner may read: it may hold Secrets.
pub(crate) fn private_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
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
