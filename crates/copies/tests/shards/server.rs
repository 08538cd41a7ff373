//! A server's side: its log, what is visible, and who holds what.

use crate::Without;
use copies::shards::Fence;
use copies::shards::holding::{Holding, Settings};
use engine::record::{Effect, Record, SnapshotItem, SnapshotMeta};
use files::sim::SimFs;
use journal::{
    Appended, Complete, Guards, Hold, Holder, Holders, Journal, NewDirectory, OpenError,
    OpenReport, Options, Placed, Replay, VolatileWriter,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const DIR: &str = "/server";
pub(crate) const CLUSTER: u64 = 0xc1;
pub(crate) const COPIES: usize = 2;
pub(crate) const HEALTH_MS: u64 = 1000;

/// All records in order, with the revisions that they have: each is a number.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) list: Vec<(u64, i64)>,
    pub(crate) revision: i64,
}

impl Replay for Store {
    fn snapshot(&mut self, _: SnapshotMeta) -> Result<(), String> {
        Err("there is none".to_owned())
    }

    fn item(&mut self, _: SnapshotItem) -> Result<(), String> {
        Err("there is none".to_owned())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        self.revision += 1;
        self.list.push((number(&record), self.revision));
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.revision = revision;
        Ok(())
    }
}

pub(crate) fn record(number: u64) -> Record {
    Record::Txn(vec![Effect::Put {
        key: number.to_string().into(),
        value: vec![number as u8; 40].into(),
        lease: 0,
    }])
}

fn number(record: &Record) -> u64 {
    let Record::Txn(effects) = record else {
        panic!("{record:?}")
    };
    let Effect::Put { key, .. } = &effects[0] else {
        panic!("{record:?}")
    };
    std::str::from_utf8(key).unwrap().parse().unwrap()
}

/// A write on its way, with how much was visible when it was written.
pub(crate) struct Way<T> {
    pub(crate) step: T,
    pub(crate) number: u64,
    pub(crate) seen: usize,
}

pub(crate) struct Server {
    pub(crate) fs: SimFs,
    pub(crate) journal: Journal,
    pub(crate) volatile: VolatileWriter,
    pub(crate) hold: Arc<Hold>,
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) holding: Holding,
    pub(crate) fence: Fence,
    pub(crate) placed: Option<Way<Placed>>,
    pub(crate) appended: Option<Way<Appended<Vec<Record>>>>,
    /// What each shard was told last: its set, and the last frame that it was sent.
    pub(crate) begun: BTreeMap<u64, (u64, u64)>,
    pub(crate) to_count: Option<Vec<Holder>>,
}

pub(crate) fn guards(without: Without) -> Guards {
    Guards {
        held: !without.held,
        noted_set: !without.noted_set,
        ..Guards::default()
    }
}

impl Server {
    pub(crate) fn open(
        fs: &SimFs,
        fence: Fence,
        complete: Option<Complete>,
        given_up: bool,
        without: Without,
    ) -> Result<(Server, OpenReport), OpenError> {
        let mut options = Options::new(NewDirectory {
            cluster_id: CLUSTER,
            member_id: 7,
            name: "a".to_owned(),
            salt: 11,
            ..NewDirectory::default()
        });
        options.segment_bytes = 24 << 10;
        options.marker_dir = Some(files::sim::MEMORY.into());
        options.guards = guards(without);
        options.holders = match (complete, given_up) {
            (Some(complete), _) => Holders::Complete(complete),
            (None, true) => Holders::GivenUp,
            (None, false) => Holders::NotAsked,
        };
        let mut store = Store {
            list: Vec::new(),
            revision: 1,
        };
        let (mut journal, report) =
            Journal::open(fs.shared(), Path::new(DIR), options, &mut store)?;
        journal.allow_volatile();
        let revision = store.revision;
        let hold = journal.hold().unwrap();
        journal.upkeep(|| revision).unwrap();
        let settings = Settings {
            copies: COPIES,
            health_ms: HEALTH_MS,
        };
        let server = Server {
            fs: fs.clone(),
            volatile: journal.volatile(),
            journal,
            hold,
            store: Arc::new(Mutex::new(store)),
            holding: Holding::new(settings).with_guards(without.shards),
            fence,
            placed: None,
            appended: None,
            begun: BTreeMap::new(),
            to_count: None,
        };
        Ok((server, report))
    }

    pub(crate) fn revision(&self) -> i64 {
        self.store.lock().unwrap().revision
    }

    /// A write that is not durable, if it can go to the log now.
    pub(crate) fn place(&mut self, number: u64, seen: usize) -> bool {
        let store = self.store.clone();
        let revision = move || store.lock().unwrap().revision;
        let within = Duration::from_secs(30);
        let placed = self.volatile.place(&[record(number)], within, revision);
        let Ok(step) = placed else { return false };
        self.placed = Some(Way { step, number, seen });
        true
    }

    /// The write that was placed becomes visible: its number, with the revision.
    pub(crate) fn release(&mut self) -> Option<(Way<()>, i64)> {
        let Way { step, number, seen } = self.placed.take()?;
        let record = record(number);
        let store = self.store.clone();
        let shown = record.clone();
        let publish = move || {
            let mut store = store.lock().unwrap();
            Replay::record(&mut *store, shown).unwrap();
            store.revision
        };
        let (_, revision) = self.volatile.release(step, &[record], publish);
        let way = Way {
            step: (),
            number,
            seen,
        };
        Some((way, revision))
    }

    pub(crate) fn append(&mut self, number: u64, seen: usize) {
        let revision = self.revision_closure();
        let step = self.journal.append(vec![record(number)], revision).unwrap();
        self.appended = Some(Way { step, number, seen });
    }

    fn revision_closure(&self) -> impl Fn() -> i64 + use<> {
        let store = self.store.clone();
        move || store.lock().unwrap().revision
    }

    /// The durable write that was appended becomes visible.
    pub(crate) fn finish(&mut self) -> Option<(Way<()>, i64)> {
        if !self.journal.is_at_rest() {
            return None;
        }
        let Way { step, number, seen } = self.appended.take()?;
        let revision = self.revision_closure();
        let ordered = self.journal.order(step, revision).unwrap();
        let store = self.store.clone();
        let publish = move || {
            let mut store = store.lock().unwrap();
            Replay::record(&mut *store, record(number)).unwrap();
            store.revision
        };
        let (_, revision) = ordered.release(publish);
        let way = Way {
            step: (),
            number,
            seen,
        };
        Some((way, revision))
    }

    /// Notes a set, as the committer does; a write may be placed while it syncs.
    pub(crate) fn count(
        &mut self,
        holders: Vec<Holder>,
        meanwhile: Option<(u64, usize)>,
    ) -> Option<journal::HolderSet> {
        let revision = self.revision_closure();
        let placed: Arc<Mutex<Option<Placed>>> = Arc::default();
        if let (Some((number, _)), None) = (meanwhile, &self.placed) {
            let (volatile, to) = (self.volatile.clone(), placed.clone());
            let revision = self.revision_closure();
            self.fs.during_next_sync(move || {
                let within = Duration::from_secs(30);
                if let Ok(step) = volatile.place(&[record(number)], within, &revision) {
                    *to.lock().unwrap() = Some(step);
                }
            });
        }
        let set = self.journal.count(holders, revision).unwrap();
        self.fs.during_next_sync(|| ());
        if let (Some(step), Some((number, seen))) = (placed.lock().unwrap().take(), meanwhile) {
            self.placed = Some(Way { step, number, seen });
        }
        set
    }
}
