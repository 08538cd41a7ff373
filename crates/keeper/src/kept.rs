//! The copy itself: a log and the store that it comes to, fed by a server's messages.

use crate::error::Error;
use crate::reseed::Reseed;
use copies::VERSION;
use copies::message::{Ack, Batch, End, Hello, Position, Role as FollowerRole, Rules, Welcome};
use engine::record::{Record, SnapshotItem, SnapshotMeta};
use engine::snapshot::SnapshotCursor;
use engine::{Engine, Limits};
use files::FileSystem;
use journal::{
    Allocator, DirState, Followed, Identity, Journal, NewDirectory, Proof, Replay, Role,
    RulesChoice, SnapshotError, SnapshotInfo, SnapshotWriter, inspect,
};
use parking_lot::Mutex;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records that are taken together come to about so many bytes at most.
const MAX_COMMIT_BYTES: usize = 8 << 20;
/// Versions taken from the store between two writes of a checkpoint.
pub(crate) const VERSIONS_AT_ONCE: usize = 4096;
/// The log grows by at least so much between checkpoints.
const MIN_CHECKPOINT_BYTES: u64 = 256 << 20;

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// A server of an earlier term than one that was seen is refused.
    pub term: bool,
    /// Entries are taken only without a gap and once.
    pub contiguity: bool,
    /// The position is in the frame of its records.
    pub position: bool,
    /// What a clean stop proved is void once a server answers.
    pub proof: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            term: true,
            contiguity: true,
            position: true,
            proof: true,
        }
    }
}

/// How to keep a copy.
#[derive(Clone, Debug)]
pub struct Options {
    /// The keeper's name, unlike that of any other follower.
    pub name: String,
    /// A random number for a new directory; see [`NewDirectory::salt`].
    pub salt: u64,
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    #[doc(hidden)]
    pub guards: Guards,
}

/// The store as the keeper has it: nobody waits for anything in it.
pub(crate) type Store = Engine<()>;

/// Where a copy stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The store's revision.
    pub revision: i64,
    /// What the log says of the server's stream; `None` before the first snapshot is whole.
    pub followed: Option<Followed>,
}

/// A copy on disk.
pub struct Keeper {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    options: Options,
    /// `None` before a server was heard: whose copy it is, is not known.
    open: Option<Open>,
    /// What came and is not committed.
    pending: Pending,
    /// What the server says of itself, for the next note.
    waits: bool,
}

struct Open {
    journal: Journal,
    store: Arc<Mutex<Store>>,
    followed: Option<Followed>,
    /// The stream that messages come from now.
    stream: Option<u64>,
}

#[derive(Default)]
struct Pending {
    records: Vec<Record>,
    bytes: usize,
    /// Revisions that the records take: counted as they come, for each batch asks.
    revisions: i64,
    last: Option<Followed>,
}

/// A snapshot of the copy that is to be written beside the log.
pub struct Checkpoint {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    at: journal::Position,
    cursor: SnapshotCursor,
    head: Vec<SnapshotItem>,
    store: Arc<Mutex<Store>>,
    allocator: Allocator,
}

/// A start's store, with the position that the log tells.
struct Replayed {
    store: Store,
    followed: Option<Followed>,
}

impl Replay for Replayed {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        Replay::snapshot(&mut self.store, meta)
    }

    fn item(&mut self, item: SnapshotItem) -> Result<(), String> {
        Replay::item(&mut self.store, item)
    }

    fn end_of_snapshot(&mut self) -> Result<(), String> {
        Replay::end_of_snapshot(&mut self.store)
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        Replay::record(&mut self.store, record)
    }

    fn revision(&self) -> i64 {
        self.store.revision()
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.store.jump(revision)
    }

    fn followed(&mut self, followed: Followed) {
        self.followed = Some(followed);
    }
}

pub(crate) fn new_store() -> Store {
    Engine::new(Limits::default())
}

impl Keeper {
    /// Opens the copy in `dir`. A directory that is missing or empty is made once a server was
    /// heard.
    ///
    /// # Errors
    /// The directory is no keeper's, or damaged.
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path, options: Options) -> Result<Self, Error> {
        let state = inspect(&*fs, dir).map_err(|source| journal::OpenError::Io {
            action: "look into",
            path: dir.to_owned(),
            source,
        })?;
        let mut keeper = Keeper {
            fs,
            dir: dir.to_owned(),
            options,
            open: None,
            pending: Pending::default(),
            waits: false,
        };
        if !matches!(state, DirState::Absent | DirState::Empty) {
            keeper.open_as(0, 0, "", 0)?;
        }
        Ok(keeper)
    }

    /// Opens the directory, or makes it one of these ids.
    fn open_as(
        &mut self,
        cluster_id: u64,
        member_id: u64,
        name: &str,
        raft_term: u64,
    ) -> Result<(), Error> {
        let new = NewDirectory {
            cluster_id,
            member_id,
            name: name.to_owned(),
            salt: self.options.salt,
            raft_term,
            role: Role::Keeper,
        };
        let options = journal::Options {
            segment_bytes: self.options.segment_bytes,
            ..journal::Options::new(new)
        };
        let mut replayed = Replayed {
            store: new_store(),
            followed: None,
        };
        let (journal, _) = Journal::open(self.fs.clone(), &self.dir, options, &mut replayed)?;
        self.open = Some(Open {
            journal,
            store: Arc::new(Mutex::new(replayed.store)),
            followed: replayed.followed,
            stream: None,
        });
        Ok(())
    }

    /// Whose copy it is, once that is known.
    pub fn identity(&self) -> Option<&Identity> {
        self.open.as_ref().map(|open| open.journal.identity())
    }

    /// Where it stands on disk.
    pub fn standing(&self) -> Standing {
        self.open
            .as_ref()
            .map_or_else(Standing::default, |open| Standing {
                revision: open.store.lock().revision(),
                followed: open.followed,
            })
    }

    /// The store, for who reads it. With a snapshot of the server's another takes its place.
    pub fn store(&self) -> Option<Arc<Mutex<Engine<()>>>> {
        self.open.as_ref().map(|open| open.store.clone())
    }

    /// What makes the log's segments ahead, for a thread of the caller's.
    pub fn allocator(&self) -> Option<Allocator> {
        self.open.as_ref().map(|open| open.journal.allocator())
    }

    /// Bytes of the log's files.
    pub fn log_bytes(&self) -> u64 {
        self.open
            .as_ref()
            .map_or(0, |open| open.journal.log_bytes())
    }

    /// What to say first to a server.
    pub fn hello(&self) -> Hello {
        let identity = self.identity();
        let position = self.open.as_ref().and_then(|open| {
            open.followed.map(|followed| Position {
                stream: followed.stream,
                sequence: followed.sequence,
                lsn: followed.lsn,
                revision: open.store.lock().revision(),
            })
        });
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            role: FollowerRole::Keeper.into(),
            name: self.options.name.clone(),
            cluster_id: identity.map_or(0, |identity| identity.cluster_id),
            raft_term: identity.map_or(0, |identity| identity.raft_term),
            position,
        }
    }

    /// The server's answer: whether this copy may follow it. If a snapshot comes first, it is
    /// [`Keeper::snapshot`] that takes it; else batches follow.
    ///
    /// # Errors
    /// [`Error::ForeignCluster`], [`Error::OldServer`], [`Error::Ahead`], [`Error::Version`]; and
    /// those of the disk.
    pub fn welcome(&mut self, welcome: &Welcome) -> Result<(), Error> {
        self.forget_pending();
        if welcome.version != VERSION {
            return Err(Error::Version {
                found: welcome.version,
            });
        }
        if self.open.is_none() {
            let Welcome {
                cluster_id,
                member_id,
                ref name,
                raft_term,
                ..
            } = *welcome;
            self.open_as(cluster_id, member_id, name, raft_term)?;
        }
        let guards = self.options.guards;
        let Some(open) = &mut self.open else {
            return Err(Error::OutOfOrder("nothing is open"));
        };
        open.stream = None;
        let identity = open.journal.identity().clone();
        if identity.cluster_id != welcome.cluster_id {
            return Err(Error::ForeignCluster {
                own: identity.cluster_id,
                server: welcome.cluster_id,
            });
        }
        if welcome.raft_term < identity.raft_term && guards.term {
            return Err(Error::OldServer {
                server: welcome.raft_term,
                seen: identity.raft_term,
            });
        }
        let own = open.store.lock().revision();
        if welcome.snapshot {
            if open.followed.is_some() && welcome.revision < own {
                return Err(Error::Ahead {
                    own,
                    server: welcome.revision,
                });
            }
        } else {
            let at = open.followed.map(|at| (at.stream, at.sequence));
            if at != Some((welcome.stream, welcome.after)) {
                return Err(Error::OutOfOrder(
                    "it goes on from a place where this copy is not",
                ));
            }
        }
        if welcome.raft_term > identity.raft_term {
            // Before anything of it is taken: from here on an earlier server is refused.
            open.journal.set_identity(welcome.raft_term, Role::Keeper)?;
        }
        // A server that answers may have gone on since it stopped, or since it said that it waits.
        let proven = open.followed.filter(|at| at.proof != Proof::None);
        if let Some(followed) = proven.filter(|_| guards.proof) {
            open.note(Followed {
                proof: Proof::None,
                ..followed
            })?;
        }
        self.waits = false;
        open.stream = Some(welcome.stream);
        Ok(())
    }

    /// Takes the snapshot that comes after a [`Welcome`] that says so. Until all of it is on disk
    /// the copy there is the one before. After an error this value is of no use: open the
    /// directory again.
    ///
    /// # Errors
    /// Those of the input and of the disk.
    pub fn snapshot(&mut self, welcome: &Welcome, input: impl Read) -> Result<(), Error> {
        let Some(open) = &mut self.open else {
            return Err(Error::OutOfOrder("a snapshot before the welcome"));
        };
        // Another store, not another content: who reads the one before (a checkpoint, a backup) goes
        // on with it to its end. Its memory goes with the last of them.
        open.store = Arc::new(Mutex::new(new_store()));
        open.followed = None;
        let (at, ()) = open.journal.snapshot_position(|| ())?;
        let mut reseed = Reseed::new(self.fs.clone(), &self.dir, at);
        journal::read_snapshot(Path::new("the server's snapshot"), input, &mut reseed)?;
        let store = reseed.finish()?;
        if store.revision() != welcome.revision {
            return Err(Error::OutOfOrder(
                "the snapshot is of another revision than announced",
            ));
        }
        open.journal.restarted_at(store.revision());
        open.store = Arc::new(Mutex::new(store));
        // The first frame after it: without that snapshot a start is refused.
        open.note(Followed {
            stream: welcome.stream,
            sequence: welcome.after,
            lsn: 0,
            unix_ms: 0,
            proof: Proof::None,
        })?;
        // What is left of the earlier copy costs room, and is tried again with the next checkpoint.
        let _ = open.journal.allocator().retire(at);
        Ok(())
    }

    /// Takes a batch, without its being in the log yet: [`Keeper::commit`] puts it there. True if
    /// so much has come that it should.
    ///
    /// # Errors
    /// [`Error::Gap`], [`Error::Diverged`] and undecodable records: the stream is to be begun
    /// again. What was not committed is forgotten.
    pub fn batch(&mut self, batch: &Batch) -> Result<bool, Error> {
        self.take(batch).inspect_err(|_| self.forget_pending())?;
        Ok(self.pending.bytes >= MAX_COMMIT_BYTES)
    }

    fn take(&mut self, batch: &Batch) -> Result<(), Error> {
        let contiguity = self.options.guards.contiguity;
        let proof = self.proof();
        let (Some(open), pending) = (&self.open, &mut self.pending) else {
            return Err(Error::OutOfOrder("records before the welcome"));
        };
        let (Some(stream), Some(followed)) = (open.stream, open.followed) else {
            return Err(Error::OutOfOrder("records before the snapshot"));
        };
        if batch.stream != stream && contiguity {
            return Err(Error::OutOfOrder("records of another stream"));
        }
        let has = pending.last.map_or(followed.sequence, |last| last.sequence);
        if batch.first > has + 1 && contiguity {
            return Err(Error::Gap {
                first: batch.first,
                expected: has + 1,
            });
        }
        let visible = open.store.lock().revision();
        for (sequence, entry) in (batch.first..).zip(&batch.entries) {
            if sequence <= has && contiguity {
                continue;
            }
            let records = entry.decode()?;
            let own = visible + pending.revisions;
            if entry.revision_before != own && contiguity {
                return Err(Error::Diverged {
                    lsn: entry.lsn,
                    expected: entry.revision_before,
                    own,
                });
            }
            pending.revisions += records.iter().filter(|r| r.takes_revision()).count() as i64;
            pending.bytes += entry.records.len();
            pending.records.extend(records);
            pending.last = Some(Followed {
                stream,
                sequence,
                lsn: entry.lsn,
                unix_ms: batch.unix_ms,
                proof,
            });
        }
        Ok(())
    }

    fn proof(&self) -> Proof {
        match self.waits {
            true => Proof::Waits,
            false => Proof::None,
        }
    }

    fn forget_pending(&mut self) {
        self.pending = Pending::default();
    }

    /// Puts what came on disk: one write and one sync. True if there was something.
    ///
    /// # Errors
    /// Those of the disk. With a full one the copy is as before, and the stream is to be begun
    /// again.
    pub fn commit(&mut self) -> Result<bool, Error> {
        let position = self.options.guards.position;
        let pending = std::mem::take(&mut self.pending);
        let (Some(open), Some(last)) = (&mut self.open, pending.last) else {
            return Ok(false);
        };
        if !position {
            // As if the position were kept beside the log: it is on disk a little later.
            open.commit_unplaced(pending.records)?;
            open.note(last)?;
            return Ok(true);
        }
        open.commit(pending.records, last)?;
        Ok(true)
    }

    /// The server says whether it shows nothing that this keeper does not have.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn waits(&mut self, waits: bool) -> Result<(), Error> {
        if self.waits == waits {
            return Ok(());
        }
        self.commit()?;
        self.waits = waits;
        let proof = self.proof();
        match &mut self.open {
            Some(open) => open.prove(proof),
            None => Ok(()),
        }
    }

    /// The server stopped, and says what was its last: noted if the copy is there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn end(&mut self, end: &End) -> Result<(), Error> {
        self.commit()?;
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let whole = open.followed.is_some_and(|at| {
            at.stream == end.stream
                && open.stream == Some(end.stream)
                && at.sequence == end.sequence
                && open.store.lock().revision() == end.revision
        });
        match whole {
            true => open.prove(Proof::Stopped),
            false => Err(Error::OutOfOrder("it ends where this copy is not")),
        }
    }

    /// The server's rules, as far as they were chosen at run time, go along.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rules(&mut self, rules: &Rules) -> Result<(), Error> {
        let Some(open) = &self.open else {
            return Err(Error::OutOfOrder("rules before the welcome"));
        };
        let choice = (!rules.text.is_empty()).then(|| RulesChoice {
            name: rules.name.clone(),
            text: rules.text.clone(),
        });
        Ok(open.journal.rules_keeper().keep(choice.as_ref())?)
    }

    /// How far the copy has the stream, for the server.
    pub fn ack(&self) -> Option<Ack> {
        let open = self.open.as_ref()?;
        let at = open.followed?;
        (Some(at.stream) == open.stream).then_some(Ack {
            stream: at.stream,
            written: at.sequence,
            synced: at.sequence,
            ended: at.proof == Proof::Stopped,
        })
    }

    /// Whether the log has grown so much that a snapshot of the copy is due.
    pub fn checkpoint_due(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let data = open.store.lock().sizes().total_bytes as u64;
            let after = MIN_CHECKPOINT_BYTES
                .max(4 * self.options.segment_bytes)
                .max(data);
            open.followed.is_some() && open.journal.bytes_since_snapshot() >= after
        })
    }

    /// Begins a snapshot of the copy; [`Checkpoint::write`] makes it, on another thread if need
    /// be. `None` before there is a copy.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn checkpoint(&mut self) -> Result<Option<Checkpoint>, Error> {
        let (fs, dir) = (self.fs.clone(), self.dir.clone());
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        let Some(followed) = open.followed else {
            return Ok(None);
        };
        let store = open.store.clone();
        let (at, (cursor, head)) = open
            .journal
            .snapshot_position(|| store.lock().snapshot_open())?;
        // The snapshot itself does not say where in the stream it is.
        open.note(followed)?;
        Ok(Some(Checkpoint {
            fs,
            dir,
            at,
            cursor,
            head,
            store,
            allocator: open.journal.allocator(),
        }))
    }

    /// Closes the log.
    ///
    /// # Errors
    /// Those of the disk: then the next start reads it as after a crash.
    pub fn close(self) -> Result<(), Error> {
        let Some(open) = self.open else {
            return Ok(());
        };
        let revision = open.store.lock().revision();
        Ok(open.journal.close(revision)?)
    }

    /// The parts, for a promotion.
    pub(crate) fn into_parts(self) -> Option<(Journal, Arc<Mutex<Store>>, Option<Followed>)> {
        let open = self.open?;
        Some((open.journal, open.store, open.followed))
    }
}

impl Open {
    fn commit(&mut self, records: Vec<Record>, followed: Followed) -> Result<(), Error> {
        let (store, published) = (self.store.clone(), self.store.clone());
        let encoded = &records;
        let applied = records.clone();
        let publish = move || {
            let mut store = published.lock();
            applied
                .into_iter()
                .try_for_each(|record| Replay::record(&mut *store, record))
        };
        let revision = || store.lock().revision();
        let (_, applied) = self
            .journal
            .commit_followed(encoded, followed, revision, publish)?;
        // An engine takes every record of its own version.
        applied.map_err(|_| Error::OutOfOrder("the store does not take a record"))?;
        self.followed = Some(followed);
        Ok(())
    }

    fn commit_unplaced(&mut self, records: Vec<Record>) -> Result<(), Error> {
        let (store, published) = (self.store.clone(), self.store.clone());
        let encoded = records.clone();
        let publish = move || {
            let mut store = published.lock();
            records.into_iter().for_each(|record| store.apply(record));
        };
        let revision = || store.lock().revision();
        self.journal.commit(&encoded, revision, publish)?;
        Ok(())
    }

    /// Notes a position, without records.
    fn note(&mut self, followed: Followed) -> Result<(), Error> {
        self.commit(Vec::new(), followed)
    }

    /// Notes what is known of the rest, if that is something else than before.
    fn prove(&mut self, proof: Proof) -> Result<(), Error> {
        match self.followed {
            Some(followed) if followed.proof != proof => self.note(Followed { proof, ..followed }),
            _ => Ok(()),
        }
    }
}

impl Checkpoint {
    /// Writes it, giving way to the keeper in between, and lets go of the log that it replaces.
    ///
    /// # Errors
    /// Those of the disk. The copy is whole without it.
    pub fn write(mut self, mut rest: impl FnMut()) -> Result<SnapshotInfo, SnapshotError> {
        let meta = self.cursor.meta;
        let mut out = SnapshotWriter::create(self.fs.clone(), &self.dir, meta, self.at)?;
        for item in &self.head {
            out.push(item)?;
        }
        let mut keys = Vec::new();
        loop {
            let done =
                self.store
                    .lock()
                    .snapshot_step(&mut self.cursor, VERSIONS_AT_ONCE, &mut keys);
            for key in keys.drain(..) {
                out.push(&key.into_item())?;
            }
            if done {
                break;
            }
            rest();
        }
        drop(self.cursor);
        let info = out.finish()?;
        let retired = self.allocator.retire(self.at);
        retired.map_err(|source| SnapshotError::Io {
            path: self.dir.clone(),
            source,
        })?;
        Ok(info)
    }
}
