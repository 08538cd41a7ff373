//! The server's own store as what [`backups`] saves and sends.

use crate::service::Service;
use crate::shared::Shared;
use crate::status;
use crate::store::SLICE_KEYS;
use backups::{STORAGE_VERSION, Scheduled, Source, Told};
use config::ScheduledSnapshots;
use engine::versions::{StoreHead, VersionsCursor};
use files::FileSystem;
use ledger::Account;
use metrics::Metrics;
use snapshot::Origin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use wire::{Call, LocalFuture, Outbound, Status};

/// On the journal's own disk so many of its segments are left room for.
const SEGMENTS_LEFT: u64 = 4;

impl Source for Shared {
    fn open(&self) -> (VersionsCursor, StoreHead) {
        self.store.lock().export_open()
    }

    fn step(&self, cursor: &mut VersionsCursor) -> bool {
        self.store.lock().versions_step(cursor, SLICE_KEYS)
    }

    fn origin(&self) -> Origin {
        Origin {
            member_id: self.ids.member_id,
            raft_term: self.ids.raft_term,
            raft_index: self.log.committed_lsn(),
            storage_version: STORAGE_VERSION,
        }
    }

    fn cluster_id(&self) -> u64 {
        self.ids.cluster_id
    }

    fn data_bytes(&self) -> u64 {
        self.store.lock().sizes().data_bytes as u64
    }
}

/// How saving goes, as metrics.
struct Counted(Arc<Metrics>);

impl Told for Counted {
    fn last(&self, unix_s: i64) {
        self.0.scheduled_snapshot_last_unix_s.set(unix_s);
    }

    fn saved(&self, bytes: u64, took: Duration) {
        self.0.scheduled_snapshot.observe(took);
        self.0.scheduled_snapshot_bytes.set(bytes as i64);
    }

    fn failed(&self) {
        self.0.scheduled_snapshot_failures.inc();
    }
}

/// What saves snapshots by itself: `--snapshot-dir`.
pub(crate) fn scheduled(
    shared: &Arc<Shared>,
    files: Arc<dyn FileSystem>,
    config: &ScheduledSnapshots,
) -> Scheduled {
    let settings = backups::Settings {
        dir: config.dir.clone(),
        interval: config.interval,
        keep: config.keep,
        log_dir: shared.log.dir().to_owned(),
        leave_bytes: SEGMENTS_LEFT * shared.log.segment_bytes(),
    };
    let (source, stops) = (shared.clone(), shared.clone());
    let current = move || Some(source.clone() as Arc<dyn Source>);
    let stopping = move || stops.stopping();
    let told = Counted(shared.metrics.clone());
    Scheduled::new(files, settings, current, stopping, told)
}

impl Service {
    pub(crate) fn snapshot(
        self: &Rc<Self>,
        call: Call,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let place = match shared.sending_snapshots.begin(shared.data_bytes()) {
                Ok(place) => place,
                Err(none) => {
                    shared.ledger.count_refused(Account::Snapshots);
                    return Err(status::too_many_snapshots(&none));
                }
            };
            let (keeper, metrics) = (shared.clone(), shared.metrics.clone());
            let keep = move |thread| keeper.lifecycle.keep(thread);
            let took = move |took| metrics.backend_snapshot.observe(took);
            let sent = backups::send(shared, place, call, outbound, keep, took).await;
            sent.map_err(|error| status::of_snapshot(&error))
        })
    }
}
