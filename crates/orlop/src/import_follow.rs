//! A copy of a running etcd that follows it: in memory, and in a journal on disk.
//!
//! A watch on all keys brings every change with its main revision, those of one transaction
//! in the order of their sub-revisions. Leases are not in it: one that a key names is asked
//! for when the key comes, and at the end all of them are.

use crate::failure::Failure;
use crate::import_source::{Source, SourceError, SourceHash, Watching};
use engine::record::{Effect, Record};
use engine::{Engine, Limits};
use etcd_api::mvccpb::{Event, event::EventType};
use files::real::RealFs;
use journal::{Journal, Options, Replay};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The watch is opened anew this often in a row.
const RECONNECTS: u32 = 20;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Events and bytes written to the journal at a time; one transaction may be more.
const EVENTS_AT_ONCE: usize = 4096;
const BYTES_AT_ONCE: usize = 8 << 20;
/// Time to live of a lease that was gone before it could be asked for. Its keys go with it
/// at the source, usually at once; if not, here after this time.
const LOST_LEASE_TTL_S: i64 = 60;
/// Versions hashed at a time.
const HASH_STEP: usize = 65536;

/// Where following stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// The copy's revision.
    pub(crate) revision: i64,
    /// By how many revisions the source is ahead, as far as is known.
    pub(crate) behind: i64,
    /// Whether it was said that nothing comes any more.
    pub(crate) quiet: bool,
}

/// The copy.
pub(crate) struct Follower {
    source: Source,
    engine: Engine<()>,
    journal: Journal,
    watching: Option<Watching>,
    failures: u32,
    /// Received and not applied: whole transactions, but for the last while `open`.
    pending: VecDeque<Event>,
    /// The last transaction in `pending` is not complete.
    open: bool,
    source_revision: i64,
    changes: u64,
    last_step: Duration,
}

impl Follower {
    /// Goes on from the source's snapshot, which `dir` has. It is read back from there, so
    /// that what is verified at the end is what a server will read.
    pub(crate) fn open(source: Source, dir: &Path, mut options: Options) -> Result<Self, Failure> {
        // Synced at the end: before that the directory is of no use.
        options.no_fsync = true;
        let mut engine: Engine<()> = Engine::new(Limits::default());
        let (journal, _) = Journal::open(Arc::new(RealFs::new()), dir, options, &mut engine)?;
        let source_revision = engine.revision();
        Ok(Follower {
            source,
            engine,
            journal,
            watching: None,
            failures: 0,
            pending: VecDeque::new(),
            open: false,
            source_revision,
            changes: 0,
            last_step: Duration::ZERO,
        })
    }

    fn revision(&self) -> i64 {
        self.engine.revision()
    }

    /// Keys in the copy.
    pub(crate) fn keys(&self) -> usize {
        self.engine.keys()
    }

    /// Leases in the copy.
    pub(crate) fn leases(&self) -> usize {
        self.engine.lease_count()
    }

    /// Changes of keys since the snapshot.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// How long the last [`finish`](Follower::finish) took.
    pub(crate) fn last_step(&self) -> Duration {
        self.last_step
    }

    /// Where it stands.
    pub(crate) fn progress(&self) -> Progress {
        let revision = self.revision();
        Progress {
            revision,
            behind: (self.source_revision - revision).max(0),
            quiet: false,
        }
    }

    /// Ends the journal; the directory is complete and synced then.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let revision = self.revision();
        Ok(self.journal.close(revision)?)
    }

    /// Takes all that was received.
    pub(crate) async fn take_all(&mut self) -> Result<(), Failure> {
        self.take(i64::MAX).await
    }

    /// Follows until it is where the source was a moment ago, and verifies.
    pub(crate) async fn catch_up(&mut self) -> Result<SourceHash, Failure> {
        let ahead = self.source.revision().await?;
        while self.revision() < ahead {
            self.receive().await?;
            self.take_all().await?;
        }
        self.finish().await
    }

    /// Goes to the source's revision of now and stays there: leases, then the hash.
    pub(crate) async fn finish(&mut self) -> Result<SourceHash, Failure> {
        let began = Instant::now();
        let agreed = self.source.revision().await?;
        let theirs = self.newest_hash(agreed).await?;
        loop {
            self.take(theirs.revision).await?;
            if self.revision() >= theirs.revision {
                break;
            }
            self.receive().await?;
        }
        self.take_leases().await?;
        if theirs.compact_revision > self.engine.compact_revision() {
            self.apply(vec![Record::Compact {
                revision: theirs.compact_revision,
            }])?;
        }
        let ours = self.hash();
        if ours != theirs {
            return Err(Failure::Refused(format!(
                "the copy is not equal to the source: HashKV is {:08x} there and {:08x} here, at \
                 revision {} and {}, compacted at {} and {}. Nothing is kept. Import again; if it \
                 is so again, compare the source's members with each other: etcdctl endpoint hashkv \
                 --cluster",
                theirs.hash,
                ours.hash,
                theirs.revision,
                ours.revision,
                theirs.compact_revision,
                ours.compact_revision
            )));
        }
        self.last_step = began.elapsed();
        Ok(theirs)
    }

    fn hash(&self) -> SourceHash {
        let engine = &self.engine;
        let mut found = SourceHash {
            revision: engine.revision(),
            compact_revision: engine.compact_revision(),
            hash: 0,
        };
        // Revision 0 is always there.
        if let Ok(mut cursor) = engine.hash_open(0) {
            while !engine.hash_step(&mut cursor, HASH_STEP) {}
            found.hash = cursor.finish_hash(&mut || ()).hash;
        }
        found
    }

    /// A hash that is older neither than the copy nor than `agreed`: members may lag.
    async fn newest_hash(&self, agreed: i64) -> Result<SourceHash, Failure> {
        const TRIES: u32 = 50;
        let wanted = self.revision().max(agreed);
        for _ in 0..TRIES {
            let theirs = self.source.hash().await?;
            if theirs.revision >= wanted {
                return Ok(theirs);
            }
            tokio::time::sleep(FIRST_WAIT).await;
        }
        Err(Failure::Refused(format!(
            "{} answers from before revision {wanted}, which the cluster has reached; name the \
             members' own addresses",
            self.source.url()
        )))
    }

    /// Receives one response, with a new watch if there is none. May be dropped while it
    /// waits: nothing is lost by that.
    pub(crate) async fn receive(&mut self) -> Result<(), Failure> {
        // A call may have gone on to another endpoint: this one has no answers any more.
        if let Some(watching) = &self.watching
            && !self.source.is_at(watching)
        {
            self.end_watch();
        }
        let next = match &mut self.watching {
            Some(watching) => self.source.next(watching).await?,
            None => {
                let from = self.pending.back().map_or(self.revision(), main_of) + 1;
                match self.source.watch(from).await {
                    Ok(watching) => {
                        self.watching = Some(watching);
                        return Ok(());
                    }
                    Err(error) if self.failures >= RECONNECTS => return Err(error.into()),
                    Err(_) => None,
                }
            }
        };
        let Some(response) = next else {
            return self.lost().await;
        };
        self.failures = 0;
        if let Some(header) = &response.header {
            self.source_revision = self.source_revision.max(header.revision);
        }
        let had = self.revision().max(self.pending.back().map_or(0, main_of));
        if !self.open
            && response
                .events
                .first()
                .is_some_and(|e| main_of(e) != had + 1)
        {
            return Err(Failure::Refused(format!(
                "the source left out changes after revision {had}; nothing is kept: import again"
            )));
        }
        if !response.events.is_empty() {
            self.open = response.fragment;
        }
        self.pending.extend(response.events);
        Ok(())
    }

    /// Forgets the watch and what may be half, so that a new watch begins.
    fn end_watch(&mut self) {
        self.watching = None;
        if self.open {
            self.open = false;
            if let Some(half) = self.pending.back().map(main_of) {
                self.pending.retain(|event| main_of(event) < half);
            }
        }
    }

    /// The connection is lost: waits, and lets a new watch begin.
    async fn lost(&mut self) -> Result<(), Failure> {
        self.end_watch();
        self.failures += 1;
        if self.failures > RECONNECTS {
            return Err(Failure::Refused(format!(
                "{} cannot be reached any more; nothing is kept: import again when it answers",
                self.source.url()
            )));
        }
        let wait = (FIRST_WAIT * 2u32.pow(self.failures.min(6))).min(MAX_WAIT);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Applies whole transactions up to a revision.
    async fn take(&mut self, upto: i64) -> Result<(), Failure> {
        let half = self.pending.back().filter(|_| self.open).map(main_of);
        let upto = half.map_or(upto, |half| upto.min(half - 1));
        loop {
            let mut records = Vec::new();
            let (mut events, mut bytes) = (0, 0);
            let mut revision = self.revision();
            while let Some(main) = self.pending.front().map(main_of)
                && main <= upto
                && events < EVENTS_AT_ONCE
                && bytes < BYTES_AT_ONCE
            {
                if main != revision + 1 {
                    return Err(Failure::Refused(format!(
                        "the source sent revision {main} after {revision}; nothing is kept: import \
                         again"
                    )));
                }
                let n = self
                    .pending
                    .iter()
                    .take_while(|e| main_of(e) == main)
                    .count();
                let mut effects = Vec::with_capacity(n);
                for event in self.pending.drain(..n) {
                    let kv = event.kv.as_ref();
                    bytes += kv.map_or(0, |kv| kv.key.len() + kv.value.len());
                    effects.extend(effect_of(event));
                }
                revision = main;
                events += n;
                self.changes += n as u64;
                for id in effects.iter().filter_map(lease_of) {
                    self.know_lease(id, &mut records).await?;
                }
                records.push(Record::Txn(effects));
            }
            if records.is_empty() {
                return Ok(());
            }
            self.apply(records)?;
        }
    }

    /// Sees to it that a lease which a key names is there before the key.
    async fn know_lease(&self, id: i64, records: &mut Vec<Record>) -> Result<(), SourceError> {
        let granted =
            |r: &Record| matches!(r, Record::LeaseGrant { id: other, .. } if *other == id);
        if self.engine.lease(id, 0, false).is_some() || records.iter().any(granted) {
            return Ok(());
        }
        let ttl_s = self.source.lease_ttl_s(id).await?;
        records.push(Record::LeaseGrant {
            id,
            ttl_s: ttl_s.unwrap_or(LOST_LEASE_TTL_S),
        });
        Ok(())
    }

    /// Makes the copy's leases those of the source. One that is gone there stays while keys
    /// hang on it: their deletion is still to come, or it comes here when the lease ends.
    async fn take_leases(&mut self) -> Result<(), Failure> {
        let theirs = self.source.leases().await?;
        let mut records = Vec::new();
        for &id in &theirs {
            let ours = self.engine.lease(id, 0, false);
            let ours = ours.map(|lease| lease.granted_ttl_s);
            if let Some(ttl_s) = self.source.lease_ttl_s(id).await?
                && ours != Some(ttl_s)
            {
                records.push(Record::LeaseGrant { id, ttl_s });
            }
        }
        let known: std::collections::HashSet<i64> = theirs.into_iter().collect();
        for id in self.engine.lease_ids() {
            let without_keys = self
                .engine
                .lease(id, 0, true)
                .is_some_and(|lease| lease.keys.is_empty());
            if !known.contains(&id) && without_keys {
                let keys = Vec::new();
                records.push(Record::LeaseRevoke { id, keys });
            }
        }
        self.apply(records)
    }

    fn apply(&mut self, records: Vec<Record>) -> Result<(), Failure> {
        if records.is_empty() {
            return Ok(());
        }
        let revision = self.revision();
        self.journal.commit(&records, || revision, || ())?;
        for record in records {
            self.engine.record(record).map_err(Failure::Refused)?;
        }
        Ok(())
    }
}

fn main_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn effect_of(event: Event) -> Option<Effect> {
    let is_put = event.r#type() == EventType::Put;
    let kv = event.kv?;
    Some(if is_put {
        Effect::Put {
            key: kv.key,
            value: kv.value,
            lease: kv.lease,
        }
    } else {
        Effect::Delete { key: kv.key }
    })
}

fn lease_of(effect: &Effect) -> Option<i64> {
    match effect {
        Effect::Put { lease, .. } if *lease != 0 => Some(*lease),
        _ => None,
    }
}
