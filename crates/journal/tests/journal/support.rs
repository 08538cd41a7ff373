//! A store that remembers what it is given, and small makers of records.

use bytes::Bytes;
use engine::record::{Effect, PutItem, Record, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use files::sim::SimFs;
use journal::{
    CommitError, CommitInfo, Followed, Journal, NewDirectory, OpenError, OpenReport, Options,
    Position, Replay, SnapshotError, SnapshotWriter,
};
use std::path::{Path, PathBuf};

pub(crate) const DIR: &str = "/data";

pub(crate) fn dir() -> PathBuf {
    PathBuf::from(DIR)
}

pub(crate) fn options() -> Options {
    let mut options = Options::new(NewDirectory {
        cluster_id: 0xc1,
        member_id: 0x3e,
        name: "default".to_owned(),
        salt: 0x5a17,
        ..NewDirectory::default()
    });
    options.segment_bytes = 32 * 1024;
    options
}

/// All records in order: the simplest state there is. Its snapshot is the list itself, one
/// key a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) records: Vec<Record>,
    pub(crate) revision: i64,
    pub(crate) in_snapshot: bool,
    /// After how many records the revision jumped, and to where.
    pub(crate) jumps: Vec<(usize, i64)>,
    /// How far the log says that it followed another server.
    pub(crate) followed: Option<Followed>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Store {
            revision: 1,
            ..Store::default()
        }
    }

    pub(crate) fn apply(&mut self, record: Record) {
        self.revision += i64::from(record.takes_revision());
        self.records.push(record);
    }
}

impl Replay for Store {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.revision = meta.revision;
        self.in_snapshot = true;
        Ok(())
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        let SnapshotItem::Key { key, versions } = item else {
            return Ok(());
        };
        let value = versions
            .last()
            .and_then(|v| v.put.clone())
            .ok_or("no value")?
            .value;
        let versions = versions.len() as i64;
        self.records.push(match key.first() {
            Some(b'p') => Record::Txn(vec![Effect::Put {
                key,
                value,
                lease: versions,
            }]),
            Some(b'd') => Record::Txn(vec![Effect::Delete { key }]),
            Some(b'c') => Record::Compact { revision: versions },
            _ => return Err("what?".to_owned()),
        });
        Ok(())
    }

    fn end_of_snapshot(&mut self) -> Result<(), String> {
        self.in_snapshot = false;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        assert!(!self.in_snapshot);
        self.apply(record);
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.revision = revision;
        self.jumps.push((self.records.len(), revision));
        Ok(())
    }

    fn followed(&mut self, followed: Followed) {
        self.followed = Some(followed);
    }
}

pub(crate) fn put(key: &str, value: &[u8]) -> Record {
    Record::Txn(vec![Effect::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value),
        lease: 1,
    }])
}

/// A journal and what was acknowledged by it.
pub(crate) struct Server {
    pub(crate) journal: Journal,
    pub(crate) store: Store,
}

impl Server {
    pub(crate) fn open(fs: &SimFs) -> Result<(Server, OpenReport), OpenError> {
        Server::open_with(fs, options())
    }

    pub(crate) fn open_with(
        fs: &SimFs,
        options: Options,
    ) -> Result<(Server, OpenReport), OpenError> {
        let mut store = Store::new();
        let (journal, report) = Journal::open(fs.shared(), Path::new(DIR), options, &mut store)?;
        Ok((Server { journal, store }, report))
    }

    pub(crate) fn commit(&mut self, records: Vec<Record>) -> Result<CommitInfo, CommitError> {
        let revision = self.store.revision;
        let (info, ()) = self.journal.commit(&records, || revision, || ())?;
        records
            .into_iter()
            .for_each(|record| self.store.apply(record));
        Ok(info)
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) -> CommitInfo {
        self.commit(vec![put(key, value)]).unwrap()
    }

    pub(crate) fn close(self) -> Result<(), CommitError> {
        self.journal.close(self.store.revision)
    }
}

/// The items of a store's snapshot.
pub(crate) fn items(store: &Store) -> Vec<SnapshotItem> {
    let version = |value: Bytes| VersionItem {
        revision: Revision { main: 2, sub: 0 },
        put: Some(PutItem {
            create_revision: 2,
            version: 1,
            lease: 0,
            value,
        }),
    };
    store
        .records
        .iter()
        .map(|record| match record {
            Record::Txn(effects) => match &effects[0] {
                Effect::Put { key, value, lease } => SnapshotItem::Key {
                    key: key.clone(),
                    versions: vec![version(value.clone()); *lease as usize],
                },
                Effect::Delete { key } => SnapshotItem::Key {
                    key: key.clone(),
                    versions: vec![version(Bytes::new())],
                },
            },
            Record::Compact { revision } => SnapshotItem::Key {
                key: Bytes::from_static(b"c"),
                versions: vec![version(Bytes::new()); *revision as usize],
            },
            other => panic!("the tests make no {other:?}"),
        })
        .collect()
}

pub(crate) fn snapshot(fs: &SimFs, store: &Store, at: Position) -> Result<(), SnapshotError> {
    let meta = SnapshotMeta {
        revision: store.revision,
        compact_revision: -1,
    };
    let mut writer = SnapshotWriter::create(fs.shared(), Path::new(DIR), meta, at)?;
    for item in items(store) {
        writer.push(&item)?;
    }
    writer.finish().map(drop)
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs every seed, and fails with the first that did not hold.
pub(crate) fn all_hold(
    seeds: impl Iterator<Item = u64>,
    mut run: impl FnMut(u64) -> Result<(), String>,
) {
    let failed: Vec<_> = seeds.filter_map(|seed| run(seed).err()).collect();
    assert!(
        failed.is_empty(),
        "{} seeds failed, first: {}",
        failed.len(),
        failed[0]
    );
}
