//! Snapshots of the copy in etcd's format: for clients, and into a directory. The server notices
//! nothing of them.
//!
//! It is etcd's client API as far as `etcdctl snapshot save`, `etcdctl endpoint status` and `orlop
//! export` need it. Reads and writes are the server's: what the copy has is a little old.

use super::view::View;
use crate::kept::{Store, VERSIONS_AT_ONCE};
use backups::{NoPlace, Scheduled, SendError, Sending, Source, Told};
use bytes::Bytes;
use engine::versions::{StoreHead, VersionsCursor};
use etcd_api::etcdserverpb::{DowngradeInfo, ResponseHeader, StatusResponse};
use files::FileSystem;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use prost::Message;
use snapshot::Origin;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use upstream::Endpoint;
use wire::{
    Address, Call, Code, Frame, Handler, HttpRequest, Inbound, Kind, ListenerConfig, LocalFuture,
    Method, Outbound, Reply, Serves, Status, TlsConfig,
};

/// Clients that save snapshots are few.
const MAX_CONNECTIONS: usize = 16;
const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Room that is left to the log for so many of its segments, on a file system that both share.
const SEGMENTS_LEFT: u64 = 4;

/// Bytes that several may hold: one that begins alone may hold any number.
const ONE_AT_A_TIME: u64 = 0;

const STATUS: u16 = 0;
static METHODS: [Method; 2] = [
    Method {
        service: "etcdserverpb.Maintenance",
        name: "Status",
        kind: Kind::Unary,
        id: STATUS,
    },
    Method {
        service: "etcdserverpb.Maintenance",
        name: "Snapshot",
        kind: Kind::Stream,
        id: 1,
    },
];

/// Snapshots that the keeper saves by itself.
#[derive(Clone, Debug)]
pub struct SaveSettings {
    /// Where the files go. It is not made.
    pub dir: PathBuf,
    /// From one to the next.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
}

/// The store of a copy, and whose it is.
#[derive(Clone)]
pub(crate) struct Copy {
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) origin: Origin,
    pub(crate) cluster_id: u64,
}

impl Source for Copy {
    fn open(&self) -> (VersionsCursor, StoreHead) {
        self.store.lock().export_open()
    }

    fn step(&self, cursor: &mut VersionsCursor) -> bool {
        self.store.lock().versions_step(cursor, VERSIONS_AT_ONCE)
    }

    fn origin(&self) -> Origin {
        self.origin
    }

    fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn data_bytes(&self) -> u64 {
        self.store.lock().sizes().data_bytes as u64
    }
}

/// How saving goes, as the pages say it.
struct Noted(Arc<View>);

impl Told for Noted {
    fn last(&self, unix_s: i64) {
        self.0.saved(|saved| saved.last_unix_s = unix_s);
    }

    fn saved(&self, bytes: u64, _: Duration) {
        self.0.saved(|saved| saved.bytes = bytes);
    }

    fn failed(&self) {
        self.0.saved(|saved| saved.failures += 1);
    }
}

/// What saves snapshots, for a thread of its own. It ends when the view says that the keeper stops.
pub(super) fn scheduled(
    fs: Arc<dyn FileSystem>,
    view: &Arc<View>,
    log_dir: PathBuf,
    segment_bytes: u64,
    settings: SaveSettings,
) -> Scheduled {
    let settings = backups::Settings {
        dir: settings.dir,
        interval: settings.interval,
        keep: settings.keep,
        log_dir,
        leave_bytes: SEGMENTS_LEFT * segment_bytes,
    };
    let (copies, stops) = (view.clone(), view.clone());
    let current = move || copies.copy().map(|copy| Arc::new(copy) as Arc<dyn Source>);
    let stopping = move || stops.stopping();
    Scheduled::new(fs, settings, current, stopping, Noted(view.clone()))
}

/// Serves snapshots to clients that show a certificate, until it is dropped.
#[derive(Debug)]
pub struct Clients(wire::Server);

impl Clients {
    /// Listens. `tls` names who may be a client. One snapshot is sent at a time: each holds what is
    /// replaced meanwhile.
    ///
    /// # Errors
    /// An address that cannot be listened on, files that cannot be used, or no thread.
    pub fn start(
        view: &Arc<View>,
        urls: &[Endpoint],
        tls: &TlsConfig,
    ) -> Result<Clients, wire::Error> {
        let listener = |url: &Endpoint| ListenerConfig {
            serves: Serves {
                grpc: true,
                http: false,
            },
            ..ListenerConfig::new(Address::Tcp(url.authority()), Some(tls.clone()))
        };
        let bound = wire::bind(urls.iter().map(listener).collect())?;
        let config = wire::Config {
            workers: 1,
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_connections: MAX_CONNECTIONS,
            ..wire::Config::default()
        };
        let sending = Arc::new(Sending::new(ONE_AT_A_TIME));
        let view = view.clone();
        let factory = move |_| Served {
            view: view.clone(),
            sending: sending.clone(),
        };
        Ok(Clients(wire::Server::start(
            bound, config, &METHODS, factory,
        )?))
    }

    /// Where it listens, as URLs.
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

struct Served {
    view: Arc<View>,
    sending: Arc<Sending>,
}

impl Served {
    fn copy(&self) -> Result<Copy, Status> {
        self.view.copy().ok_or_else(|| {
            Status::new(
                Code::Unavailable,
                "orlop: this keeper has no whole copy yet: it is to follow its server first",
            )
        })
    }

    /// As etcd's, as far as a copy can say it: its leader is the server.
    fn status(&self) -> Result<Frame, Status> {
        let copy = self.copy()?;
        let (revision, sizes) = {
            let store = copy.store.lock();
            (store.revision(), store.sizes())
        };
        let Origin {
            member_id,
            raft_term,
            raft_index,
            ..
        } = copy.origin;
        let message = StatusResponse {
            header: Some(ResponseHeader {
                cluster_id: copy.cluster_id,
                member_id,
                revision,
                raft_term,
            }),
            version: etcd_api::ETCD_VERSION.to_owned(),
            db_size: sizes.total_bytes as i64,
            leader: member_id,
            raft_index,
            raft_term,
            raft_applied_index: raft_index,
            db_size_in_use: sizes.total_bytes as i64,
            is_learner: true,
            storage_version: etcd_api::CLUSTER_VERSION.to_owned(),
            downgrade_info: Some(DowngradeInfo::default()),
            ..StatusResponse::default()
        };
        Ok(Frame::encode(message.encoded_len(), |b| {
            message.encode_raw(b);
        }))
    }
}

fn unsent(error: &SendError) -> Status {
    let code = match error {
        SendError::Stopped => Code::Unavailable,
        SendError::Slow(_) => Code::ResourceExhausted,
        SendError::Encode(_) | SendError::Panicked => Code::Internal,
    };
    Status::new(code, format!("orlop: {error}"))
}

fn full(none: &NoPlace) -> Status {
    Status::new(Code::ResourceExhausted, format!("orlop: {none}"))
}

impl Handler for Served {
    fn unary(self: &Rc<Self>, call: Call, _: Bytes) -> Reply {
        Reply::Now(match call.method.id {
            STATUS => self.status(),
            _ => Err(Status::new(
                Code::Unimplemented,
                "orlop: a keeper serves its status and snapshots; ask the server",
            )),
        })
    }

    fn stream(
        self: &Rc<Self>,
        call: Call,
        _: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let this = self.clone();
        Box::pin(async move {
            let copy = this.copy()?;
            let place = this.sending.begin(copy.data_bytes());
            let place = place.map_err(|none| full(&none))?;
            // A thread that outlives its client ends by itself, soon.
            let sent = backups::send(Arc::new(copy), place, call, outbound, drop, |_| ()).await;
            sent.map_err(|error| unsent(&error))
        })
    }

    fn http(self: &Rc<Self>, _: HttpRequest) -> LocalFuture<Response<Bytes>> {
        let mut answer = Response::new(Bytes::from_static(
            b"only etcd's Maintenance service is served here\n",
        ));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        Box::pin(std::future::ready(answer))
    }
}
