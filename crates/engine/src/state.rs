//! The store's state, and how records change it, live and at replay.

use crate::Error;
use crate::compaction::Progress;
use crate::hash::CompactionHashes;
use crate::history::{Event, History};
use crate::index::Index;
use crate::lease::{DueLease, LeaseView, Leases};
use crate::limits::Limits;
use crate::pin::Pins;
use crate::record::{Effect, Record, Revision};
use crate::sequencer::Sequencer;
use crate::tail::{self, Fields, Key};
use std::collections::BTreeSet;
use std::sync::Arc;

/// etcd's alarm numbers.
pub(crate) const ALARM_NOSPACE: i32 = 1;
/// CORRUPT.
pub(crate) const ALARM_CORRUPT: i32 = 2;

/// What an empty store takes, in bytes, roughly. Never 0: etcdctl divides by the size.
const EMPTY_BYTES: usize = 4096;

/// What the store holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Everything retained.
    pub total_bytes: usize,
    /// Keys that exist now, and leases.
    pub data_bytes: usize,
    /// The rest: superseded versions, tombstones, events.
    pub history_bytes: usize,
}

/// The store. `W` is how the caller finds who waits for an answer.
#[derive(Debug)]
pub struct Engine<W> {
    pub(crate) limits: Limits,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) index: Index,
    pub(crate) history: History,
    pub(crate) leases: Leases,
    pub(crate) alarms: BTreeSet<i32>,
    pub(crate) disk_full: bool,
    over_quota: bool,
    pub(crate) pins: Pins,
    pub(crate) compaction: Progress,
    pub(crate) compaction_hashes: CompactionHashes,
    pub(crate) seq: Sequencer<W>,
    pub(crate) now_ms: u64,
    pub(crate) rules: u64,
    /// For encoding, so that it allocates once.
    scratch: Vec<u8>,
}

impl<W> Engine<W> {
    /// An empty store: revision 1, never compacted, as a new etcd.
    pub fn new(limits: Limits) -> Self {
        Engine {
            limits,
            revision: 1,
            compact_revision: -1,
            index: Index::default(),
            history: History::default(),
            leases: Leases::default(),
            alarms: BTreeSet::new(),
            disk_full: false,
            over_quota: false,
            pins: Pins::default(),
            compaction: Progress::default(),
            compaction_hashes: CompactionHashes::default(),
            seq: Sequencer::new(),
            now_ms: 0,
            rules: 0,
            scratch: Vec::new(),
        }
    }

    /// Tells the time, in milliseconds of the caller's clock: pins have an age.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// The revision of the last visible write.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compact revision, -1 if there was no compaction.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Sets the generation of the rules in force: writes that others classified, and that are
    /// not admitted yet, are durable.
    pub fn set_rules(&mut self, generation: u64) {
        self.rules = generation;
    }

    /// A key's version, for a caller that asks which class a change of it has.
    pub fn version_of(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.index.live(key).map(|(_, tail)| tail.clone())
    }

    /// Number of keys that exist.
    pub fn keys(&self) -> usize {
        // A bump record is the version of a key without a name, which no one can see.
        let bump = self.index.live(&[]).is_some();
        self.index.live_keys() - usize::from(bump)
    }

    /// Sizes in bytes.
    pub fn sizes(&self) -> Sizes {
        let data_bytes = self.index.live_bytes()
            + self.index.live_keys() * crate::index::VERSION_OVERHEAD_BYTES
            + self.leases.bytes();
        let kept_bytes = self.index.total_bytes() + self.history.bytes() + self.leases.bytes();
        Sizes {
            total_bytes: EMPTY_BYTES + kept_bytes,
            data_bytes,
            history_bytes: kept_bytes.saturating_sub(data_bytes),
        }
    }

    /// The revision to compact at so that about `bytes` of history go, taking its events
    /// for equally large; at most the current one. `None` if a compaction would free
    /// nothing.
    pub fn revision_to_free(&self, bytes: usize) -> Option<i64> {
        let share = bytes as f64 / self.sizes().history_bytes.max(1) as f64;
        let r = self.history.revision_to_free(share)?.min(self.revision);
        (r > self.compact_revision).then_some(r)
    }

    /// Number of events retained.
    pub fn history_len(&self) -> usize {
        self.history.len()
    }

    /// Whether puts are refused.
    pub fn no_space(&self) -> bool {
        self.disk_full || self.over_quota || self.alarms.contains(&ALARM_NOSPACE)
    }

    /// Whether everything is refused.
    pub fn is_corrupt(&self) -> bool {
        self.alarms.contains(&ALARM_CORRUPT)
    }

    /// Active alarms (etcd's numbers).
    pub fn alarms(&self) -> Vec<i32> {
        let mut alarms = self.alarms.clone();
        if self.no_space() {
            alarms.insert(ALARM_NOSPACE);
        }
        alarms.into_iter().collect()
    }

    /// The journal has no room, or has room again.
    pub fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
    }

    /// Takes the measure of data against the quota. It raises NOSPACE above the quota and
    /// clears it below 95 % of it, so that it does not flap. Returns whether that changed.
    pub fn check_quota(&mut self) -> bool {
        let was = self.over_quota;
        let (data, quota) = (self.sizes().data_bytes, self.limits.quota_bytes);
        self.over_quota = data > if was { quota / 20 * 19 } else { quota };
        was != self.over_quota
    }

    /// A lease as `TimeToLive` shows it.
    pub fn lease(&self, id: i64, now_ms: u64, with_keys: bool) -> Option<LeaseView> {
        self.leases.view(id, now_ms, with_keys)
    }

    /// Keys of a lease in slices: those after `after`, in order, at most `max`; fewer are the
    /// last. `None` if there is no such lease (any more). Keys may come and go in between.
    pub fn lease_keys(&self, id: i64, after: Option<&Key>, max: usize) -> Option<Vec<Key>> {
        self.leases.keys_after(id, after, max)
    }

    /// Ids of all leases, soonest to expire first.
    pub fn lease_ids(&self) -> Vec<i64> {
        self.leases.ids().collect()
    }

    /// Number of leases.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// Renews a lease; returns its time to live in seconds.
    pub fn keep_alive(&mut self, id: i64, now_ms: u64) -> Result<i64, Error> {
        self.leases.keep_alive(id, now_ms)
    }

    /// Gives every lease its full time to live from now on: after a start.
    pub fn renew_leases(&mut self, now_ms: u64) {
        self.leases.renew_all(now_ms);
    }

    /// Leases that have run out.
    pub fn due_leases(&self, now_ms: u64, max: usize) -> Vec<DueLease> {
        self.leases.due(now_ms, max)
    }

    pub(crate) fn put_key(&mut self, key: &[u8], value: &[u8], lease: i64, at: Revision) {
        let mut old_lease = 0;
        let mut new = None;
        let scratch = &mut self.scratch;
        let mut created = false;
        let pushed = self.index.push(key, at, |old| {
            let old = old.map(|t| tail::decode(t));
            created = old.is_none();
            old_lease = old.map_or(0, |o| o.lease);
            let (create_revision, version) =
                old.map_or((at.main, 1), |o| (o.create_revision, o.version + 1));
            let tail = tail::encode_with(
                scratch,
                &Fields {
                    create_revision,
                    mod_revision: at.main,
                    version,
                    value,
                    lease,
                },
            );
            new = Some(tail.clone());
            Some(tail)
        });
        if old_lease != lease {
            if old_lease != 0 {
                self.leases.detach(old_lease, key);
            }
            if lease != 0 {
                self.leases.attach(lease, pushed.key.clone());
            }
        }
        self.history.push(Event {
            revision: at,
            key: pushed.key,
            tail: new,
            // As in etcd, a create has none, also if the same transaction deleted the key.
            prev: pushed.prev.filter(|_| !created),
        });
    }

    pub(crate) fn delete_key(&mut self, key: &[u8], at: Revision) {
        let Some(lease) = self.index.live(key).map(|(_, t)| tail::decode(t).lease) else {
            return;
        };
        if lease != 0 {
            self.leases.detach(lease, key);
        }
        let pushed = self.index.push(key, at, |_| None);
        self.history.push(Event {
            revision: at,
            key: pushed.key,
            tail: None,
            prev: pushed.prev,
        });
    }

    /// Moves the store to a revision at which nothing is changed (a bump record, as etcd's
    /// tools write it), and marks all up to there compacted: every watcher lists again.
    ///
    /// # Errors
    /// A sentence, if that would be a step back.
    pub fn jump(&mut self, revision: i64) -> Result<(), String> {
        if revision < self.revision {
            return Err(format!(
                "it jumps to revision {revision}, and the store is at revision {} already",
                self.revision
            ));
        }
        if revision > self.revision {
            let at = Revision {
                main: revision,
                sub: 0,
            };
            self.index.push(&[], at, |_| Some(Arc::from(&[][..])));
            self.index.forget(&[], revision);
            self.revision = revision;
        }
        self.compact_revision = self.compact_revision.max(revision);
        Ok(())
    }

    /// Applies a record that is in the log: at replay, and for what has no effects to plan.
    pub fn apply(&mut self, record: Record) {
        let takes_revision = record.takes_revision();
        let main = self.revision + 1;
        match record {
            Record::Txn(effects) => {
                for (sub, e) in effects.into_iter().enumerate() {
                    let at = Revision {
                        main,
                        sub: sub as i64,
                    };
                    match e {
                        Effect::Put { key, value, lease } => self.put_key(&key, &value, lease, at),
                        Effect::Delete { key } => self.delete_key(&key, at),
                    }
                }
            }
            Record::LeaseGrant { id, ttl_s } => self.leases.grant(id, ttl_s, self.now_ms),
            Record::LeaseRevoke { id, keys } => {
                for (sub, key) in keys.into_iter().enumerate() {
                    self.delete_key(
                        &key,
                        Revision {
                            main,
                            sub: sub as i64,
                        },
                    );
                }
                self.leases.remove(id);
            }
            Record::Compact { revision } => {
                self.compact_revision = self.compact_revision.max(revision);
            }
            Record::Alarm {
                alarm,
                active: true,
            } => {
                self.alarms.insert(alarm);
            }
            Record::Alarm {
                alarm,
                active: false,
            } => {
                self.alarms.remove(&alarm);
            }
        }
        if takes_revision {
            self.revision = main;
        }
    }
}
