//! The Maintenance, Cluster, Auth and Health services: what makes sense for one member.

use crate::encode;
use crate::service::Service;
use crate::shared::Shared;
use crate::status;
use crate::store::SLICE_KEYS;
use bytes::Bytes;
use engine::hash::KvHash;
use engine::op::Write;
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::alarm_request::AlarmAction;
use etcd_api::etcdserverpb::downgrade_request::DowngradeAction;
use etcd_api::health;
use etcd_api::health::health_check_response::ServingStatus;
use etcd_api::{CLUSTER_MINOR_VERSION, CLUSTER_VERSION, ETCD_VERSION};
use prost::Message;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use threads::Pace;
use wire::{Call, Code, Frame, Outbound, Reply, Status};

/// Longest that Defragment waits for the journal's snapshot.
const DEFRAGMENT_TIMEOUT: Duration = Duration::from_secs(300);

impl Service {
    pub(crate) fn status(&self) -> Frame {
        let shared = &self.shared;
        let (revision, sizes, alarms) = {
            let engine = shared.store.lock();
            (engine.revision(), engine.sizes(), engine.alarms())
        };
        let member_id = shared.ids.member_id;
        let errors = alarms.iter().map(|&a| alarm_text(member_id, a)).collect();
        let index = shared.log.committed_lsn();
        encode::message(&pb::StatusResponse {
            header: Some(self.header_at(revision)),
            version: ETCD_VERSION.into(),
            db_size: sizes.total_bytes as i64,
            leader: member_id,
            raft_index: index,
            raft_term: shared.ids.raft_term,
            raft_applied_index: index,
            errors,
            db_size_in_use: sizes.total_bytes as i64,
            is_learner: false,
            storage_version: CLUSTER_VERSION.into(),
            db_size_quota: shared.settings.quota.shown_bytes(),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    pub(crate) fn alarm(self: &Rc<Self>, message: Bytes) -> Reply {
        let r = match pb::AlarmRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let member_id = this.shared.ids.member_id;
            let member = |alarm| pb::AlarmMember { member_id, alarm };
            let active = this.shared.store.lock().alarms();
            let none = pb::AlarmType::None as i32;
            let alarms = match r.action() {
                AlarmAction::Get => active
                    .into_iter()
                    .filter(|&a| r.alarm == none || a == r.alarm)
                    .collect(),
                AlarmAction::Activate if r.alarm == none => Vec::new(),
                // etcd would note an alarm of a member that does not exist, and obey it.
                AlarmAction::Activate if ![0, member_id].contains(&r.member_id) => {
                    return Err(status::member_not_found());
                }
                AlarmAction::Activate => {
                    this.set_alarm(r.alarm, true).await?;
                    vec![r.alarm]
                }
                AlarmAction::Deactivate => {
                    // Another's alarm is not there to be cleared; etcd says so by success.
                    if r.member_id == member_id && active.contains(&r.alarm) {
                        this.set_alarm(r.alarm, false).await?;
                        vec![r.alarm]
                    } else {
                        Vec::new()
                    }
                }
            };
            let alarms = alarms.into_iter().map(member).collect();
            Ok(encode::message(&pb::AlarmResponse {
                header: this.header(),
                alarms,
            }))
        }))
    }

    async fn set_alarm(&self, alarm: i32, active: bool) -> Result<(), Status> {
        let write = Write::Alarm { alarm, active };
        self.shared
            .write(write, &self.slots)
            .await
            .map_err(status::of)?;
        Ok(())
    }

    /// There is nothing to defragment in memory; what a full disk needs is that the log
    /// shrinks. So this saves a snapshot of the journal and removes old segments, beside
    /// the writers.
    pub(crate) fn defragment(self: &Rc<Self>) -> Reply {
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let started = Instant::now();
            tracing::info!("starting defragment");
            let inflight = Inflight::begin(&this.shared);
            let checkpoint = this.shared.log.checkpoint();
            let result = loop {
                if let Some(result) = checkpoint.result() {
                    break result.map_err(|reason| status::no_defragment(&reason));
                }
                if this.shared.stopping() {
                    break Err(status::stopped());
                }
                if started.elapsed() > DEFRAGMENT_TIMEOUT {
                    break Err(status::slow_defragment());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            drop(inflight);
            if let Err(error) = &result {
                tracing::warn!(error = %error.message, "failed to defragment");
            }
            result?;
            this.shared.metrics.defrag.observe(started.elapsed());
            tracing::info!(took = %telemetry::GoDuration(started.elapsed()), "finished defragment");
            Ok(encode::message(&pb::DefragmentResponse { header: None }))
        }))
    }

    /// etcd hashes its database file, whose layout is its own; here it is the hash of the
    /// key space, good for comparing one server with itself.
    pub(crate) fn hash(self: &Rc<Self>) -> Reply {
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let started = Instant::now();
            let (hash, revision) = this.hash_at(0).await?;
            this.shared.metrics.hash.observe(started.elapsed());
            let (header, hash) = (Some(this.header_at(revision)), hash.hash);
            Ok(encode::message(&pb::HashResponse { header, hash }))
        }))
    }

    pub(crate) fn hash_kv(self: &Rc<Self>, message: Bytes) -> Reply {
        let r = match pb::HashKvRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let started = Instant::now();
            let cached = {
                let engine = this.shared.store.lock();
                engine
                    .hash_cached(r.revision)
                    .map(|h| (h, engine.revision()))
            };
            let (hash, revision) = match cached {
                Some(found) => found,
                None => this.hash_at(r.revision).await?,
            };
            this.shared.metrics.hash_rev.observe(started.elapsed());
            Ok(encode::message(&pb::HashKvResponse {
                header: Some(this.header_at(revision)),
                hash: hash.hash,
                compact_revision: hash.compact_revision,
                hash_revision: hash.revision,
            }))
        }))
    }

    /// The hash at a revision (0: now), and the store's revision.
    async fn hash_at(&self, revision: i64) -> Result<(KvHash, i64), Status> {
        let store = self.shared.store.clone();
        // Gigabytes may go through the CRC: on a thread of its own, the store in slices.
        let hash = move |unwanted: &dyn Fn() -> bool| {
            let mut cursor = store.lock().hash_open(revision).map_err(status::of)?;
            let revision = cursor.header_revision;
            let mut pace = Pace::start();
            while !store.lock().hash_step(&mut cursor, SLICE_KEYS) {
                cursor.settle();
                if unwanted() {
                    return Err(status::stopped());
                }
                pace.rest();
            }
            Ok((cursor.finish_hash(&mut || pace.rest()), revision))
        };
        self.offload.run(None, hash).await
    }

    pub(crate) fn move_leader(&self, message: Bytes) -> Result<Frame, Status> {
        let r = pb::MoveLeaderRequest::decode(message).map_err(|e| status::undecodable(&e))?;
        if r.target_id != self.shared.ids.member_id {
            return Err(status::bad_leader_transferee());
        }
        Ok(encode::message(&pb::MoveLeaderResponse { header: None }))
    }

    pub(crate) fn downgrade(&self, message: Bytes) -> Result<Frame, Status> {
        let r = pb::DowngradeRequest::decode(message).map_err(|e| status::undecodable(&e))?;
        match r.action() {
            // There is none to cancel; etcd says so by success.
            DowngradeAction::Cancel => Ok(self.downgrade_answer()),
            action => {
                let (major, minor) =
                    major_minor(&r.version).ok_or_else(status::wrong_downgrade_format)?;
                if (major, minor) != (3, 6) {
                    return Err(status::invalid_downgrade_target());
                }
                if action == DowngradeAction::Enable {
                    return Err(status::no_downgrade());
                }
                Ok(self.downgrade_answer())
            }
        }
    }

    fn downgrade_answer(&self) -> Frame {
        encode::message(&pb::DowngradeResponse {
            header: self.header(),
            version: CLUSTER_MINOR_VERSION.into(),
        })
    }

    pub(crate) fn member_list(&self) -> Result<Frame, Status> {
        let s = &self.shared;
        let member = pb::Member {
            id: s.ids.member_id,
            name: s.member.name.clone(),
            peer_ur_ls: s.member.peer_urls.clone(),
            client_ur_ls: s.member.client_urls.clone(),
            is_learner: false,
        };
        let header = Some(pb::ResponseHeader {
            revision: 0,
            ..self.header_at(0)
        });
        Ok(encode::message(&pb::MemberListResponse {
            header,
            members: vec![member],
        }))
    }

    pub(crate) fn auth_status(&self) -> Frame {
        let header = self.header();
        encode::message(&pb::AuthStatusResponse {
            header,
            enabled: false,
            auth_revision: 1,
        })
    }

    fn serving(&self, service: &str) -> Option<ServingStatus> {
        let corrupt = self.shared.store.lock().is_corrupt();
        service
            .is_empty()
            .then_some(if corrupt || self.shared.stopping() {
                ServingStatus::NotServing
            } else {
                ServingStatus::Serving
            })
    }

    pub(crate) fn health_check(&self, message: Bytes) -> Result<Frame, Status> {
        let r = health::HealthCheckRequest::decode(message).map_err(|e| status::undecodable(&e))?;
        let status = self
            .serving(&r.service)
            .ok_or(Status::new(Code::NotFound, "unknown service"))?;
        Ok(encode::message(&health::HealthCheckResponse {
            status: status as i32,
        }))
    }

    pub(crate) fn health_list(&self) -> Frame {
        let status = self.serving("").unwrap_or(ServingStatus::NotServing) as i32;
        let statuses = [(String::new(), health::HealthCheckResponse { status })].into();
        encode::message(&health::HealthListResponse { statuses })
    }

    pub(crate) async fn health_watch(
        self: &Rc<Self>,
        call: Call,
        message: Bytes,
        outbound: Outbound,
    ) -> Result<(), Status> {
        let r = health::HealthCheckRequest::decode(message).map_err(|e| status::undecodable(&e))?;
        let closing = call.closing();
        let mut last = None;
        loop {
            let now = self
                .serving(&r.service)
                .unwrap_or(ServingStatus::ServiceUnknown);
            if last != Some(now) {
                last = Some(now);
                let answer = health::HealthCheckResponse { status: now as i32 };
                if outbound.send(encode::message(&answer)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                () = closing.wait() => return Err(status::stopped()),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

/// A Defragment under way, for the metrics; also if its client goes away.
struct Inflight(Arc<Shared>);

impl Inflight {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.metrics.defrag_inflight.inc();
        Inflight(shared.clone())
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.metrics.defrag_inflight.dec();
    }
}

/// An alarm as etcd prints it in Status.
fn alarm_text(member_id: u64, alarm: i32) -> String {
    let name = alarm_name(alarm);
    format!("memberID:{member_id}  alarm:{name}")
}

/// etcd's name of an alarm.
pub(crate) fn alarm_name(alarm: i32) -> &'static str {
    pb::AlarmType::try_from(alarm).map_or("UNKNOWN", |a| a.as_str_name())
}

/// Parses `3.6` or `3.6.0` with an optional `v`.
fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let patch = parts.next().is_none_or(|p| p.parse::<u64>().is_ok());
    (patch && parts.next().is_none()).then_some((major, minor))
}

/// What `/metrics` reads at scrape.
pub(crate) fn scrape_input(shared: &Arc<Shared>) -> metrics::ScrapeInput {
    let engine = shared.store.lock();
    let sizes = engine.sizes();
    let alarms = engine.alarms();
    let (revision, compact_revision) = (engine.revision(), engine.compact_revision());
    let (pending, keys, leases) = (engine.pending(), engine.keys(), engine.lease_count());
    let (waiting, pins) = (engine.waiting(), engine.pinned());
    drop(engine);
    let now_ms = shared.store.now_ms();
    let oldest_ms = pins.oldest_ms.map(|since| now_ms.saturating_sub(since));
    let log = shared.log.status();
    let (connections, connections_refused) = shared.connections();
    let volatile = &log.volatile;
    let shards = shared.shards.as_ref().map(|shards| shards.status());
    let shards = shards.unwrap_or_default();
    let followers = shared.followers.status();
    let lag = followers.worst();
    metrics::ScrapeInput {
        has_leader: true,
        is_leader: true,
        proposals_committed: log.committed_records,
        proposals_applied: log.committed_records,
        proposals_pending: pending as u64,
        quota_bytes: shared.settings.quota.shown_bytes(),
        db_total_bytes: sizes.total_bytes as u64,
        db_in_use_bytes: sizes.total_bytes as u64,
        current_revision: revision,
        compact_revision,
        compact_last_unix_s: shared.last_compaction_unix_s.load(Ordering::Relaxed),
        keys: keys as u64,
        watchers: shared.watches.open().max(0) as u64,
        slow_watchers: shared.watches.behind().max(0) as u64,
        watchers_behind: shared.watches.behind().max(0) as u64,
        alarm_nospace: alarms.contains(&(pb::AlarmType::Nospace as i32)),
        alarm_corrupt: alarms.contains(&(pb::AlarmType::Corrupt as i32)),
        leases: leases as u64,
        connections,
        connections_refused,
        ledger: metrics::AccountInput::all(&shared.ledger),
        waiting_operations: waiting as u64,
        open_read_transactions: pins.count as u64,
        pin_oldest_age_s: oldest_ms.map_or(0.0, |ms| ms as f64 / 1000.0),
        pinned_bytes: pins.kept_bytes as u64,
        followers_max: followers.max as u64,
        followers: followers.followers.len() as u64,
        followers_lag_records: lag.records,
        followers_lag_bytes: lag.bytes,
        followers_lag_s: lag.ms as f64 / 1000.0,
        followers_cut_off: followers.cut_off,
        followers_snapshots: followers.snapshots,
        shards_max: shards.max as u64,
        shards: shards.shards.len() as u64,
        shards_copies: shards.copies as u64,
        shards_counting: shards.counting,
        shards_kept_bytes: shards.kept_bytes,
        shards_lost: shards.lost,
        snapshots_sending: shared.sending_snapshots.count() as u64,
        snapshots_held_bytes: shared.sending_snapshots.held_bytes(),
        data_bytes: sizes.data_bytes as u64,
        history_bytes: sizes.history_bytes as u64,
        history_budget_bytes: shared.settings.history_budget_bytes,
        journal_segments: log.segments,
        journal_bytes: log.log_bytes,
        journal_snapshot_lag_bytes: log.since_checkpoint_bytes,
        journal_last_snapshot_unix_s: log.last_checkpoint_unix_s,
        storage_strict: shared.store.storage.is_strict(),
        epoch_open: volatile.epoch_bound.is_some(),
        unsynced_bytes: volatile.unsynced_bytes,
        unsynced_age_s: volatile
            .oldest_unsynced
            .map_or(0.0, |at| at.elapsed().as_secs_f64()),
        certificate_not_after_unix_s: shared
            .certificates
            .iter()
            .map(wire::Certificate::not_after_unix_s)
            .min()
            .unwrap_or(0),
        panics: threads::survived(),
        log_lines_dropped: shared
            .log_counters
            .as_ref()
            .map_or(0, |c| c.dropped_lines()),
        ..Default::default()
    }
}
