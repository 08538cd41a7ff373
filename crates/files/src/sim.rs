//! A file system in memory that behaves as badly as a real one may.
//!
//! What was not synced may be lost in a power loss: each 512-byte sector by itself, in any
//! order, holes included, any of the versions it had since its last sync; likewise each
//! change of a directory, though a rename is never half done. After a failed sync the bytes
//! stay readable but count as clean: no later sync writes them. Calls fail on demand. All of
//! it follows from a seed. [`MEMORY`] is a directory in memory: a power loss empties it, and
//! neither a full disk nor a failing one concerns it.
//!
//! A [`SimFs`] is a handle: clones share the disk. [`SimFs::power_loss`] and
//! [`SimFs::kill`] give a new disk with what the next process would find; the old handle
//! stays as it was.

mod disk;

pub use disk::{Random, SECTOR};

use self::disk::{Change, Directory, FileState, Inode, apply};
use super::{File, FileId, FileSystem, Kind, Lock, LockError, LockMode};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`File::write_at`]
    Write,
    /// [`File::allocate`]
    Allocate,
    /// [`File::sync_data`]
    SyncData,
    /// [`FileSystem::sync_dir`]
    SyncDir,
    /// [`FileSystem::create`]
    Create,
    /// [`FileSystem::rename`]
    Rename,
    /// [`FileSystem::remove`]
    Remove,
    /// [`File::read_at`]
    Read,
    /// [`File::write_at`] to a file in memory.
    WriteMemory,
}

/// The directory in memory.
pub const MEMORY: &str = "/run";

/// What the disk was asked to do so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// File syncs.
    pub sync_data: u64,
    /// Directory syncs.
    pub sync_dir: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

/// Promises that this disk breaks, to see a test fail without them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// File syncs do nothing and report success.
    pub sync_data: bool,
    /// Directory syncs do nothing and report success.
    pub sync_dir: bool,
}

/// A simulated disk.
#[derive(Clone)]
pub struct SimFs {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// Called within a sync of a file.
type Hook = Box<dyn FnMut() + Send>;

#[derive(Clone)]
struct Fault {
    call: Call,
    after: u64,
    times: u64,
    kind: io::ErrorKind,
}

#[derive(Clone)]
struct State {
    random: Random,
    files: BTreeMap<Inode, FileState>,
    directories: BTreeMap<PathBuf, Directory>,
    next_inode: Inode,
    locks: BTreeSet<PathBuf>,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    lies: Lies,
    counts: Counts,
    steps: u64,
    crash_at: Option<u64>,
    crashed: bool,
    /// Changes with each start of the machine.
    boot: u64,
    /// Changes when the files are copied to another disk.
    device: u64,
}

fn error(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, format!("simulated: {kind}"))
}

impl State {
    fn split(path: &Path) -> io::Result<(PathBuf, String)> {
        match (
            path.parent(),
            path.file_name().and_then(|name| name.to_str()),
        ) {
            (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
            _ => Err(error(io::ErrorKind::InvalidInput)),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<Inode> {
        let (parent, name) = Self::split(path)?;
        let directory = self
            .directories
            .get(&parent)
            .ok_or_else(|| error(io::ErrorKind::NotFound))?;
        directory
            .current
            .get(&name)
            .copied()
            .ok_or_else(|| error(io::ErrorKind::NotFound))
    }

    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories
            .get_mut(path)
            .ok_or_else(|| error(io::ErrorKind::NotFound))
    }

    fn change(&mut self, parent: &Path, change: Change) -> io::Result<()> {
        let directory = self.directory(parent)?;
        apply(&mut directory.current, &change);
        directory.changes.push(change);
        self.collect();
        Ok(())
    }

    /// Forgets files that no name leads to, now or after a power loss.
    fn collect(&mut self) {
        let mut live = BTreeSet::new();
        for directory in self.directories.values() {
            live.extend(directory.current.values().chain(directory.durable.values()));
            live.extend(directory.changes.iter().filter_map(|change| match change {
                Change::Create(_, inode) | Change::Rename(_, _, inode) => Some(*inode),
                _ => None,
            }));
        }
        // Open files without a name are not used by the journal, but must not panic.
        for (inode, file) in &mut self.files {
            if !live.contains(inode) {
                *file = FileState::default();
            }
        }
    }

    /// Counts a call that changes something; says whether the process dies in it.
    fn step(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(error(io::ErrorKind::Other));
        }
        self.steps += 1;
        if self.crash_at.is_some_and(|at| self.steps >= at) {
            self.crashed = true;
        }
        Ok(self.crashed)
    }

    fn fault(&mut self, call: Call) -> Option<io::Error> {
        let mut found = None;
        for fault in self.faults.iter_mut().filter(|fault| fault.call == call) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 && found.is_none() {
                fault.times -= 1;
                found = Some(error(fault.kind));
            }
        }
        found
    }

    fn used(&self) -> u64 {
        let room = |file: &FileState| file.reserved.max(file.current.len() as u64) - file.punched;
        self.files.values().map(room).sum()
    }

    /// Whether a file is in memory.
    fn in_memory(&self, inode: Inode) -> bool {
        self.directories
            .get(Path::new(MEMORY))
            .is_some_and(|directory| directory.current.values().any(|other| *other == inode))
    }

    fn take_room(&mut self, inode: Inode, bytes: u64) -> io::Result<()> {
        if self.in_memory(inode) {
            return Ok(());
        }
        let used = self.used();
        let capacity = self.capacity;
        let Some(file) = self.files.get_mut(&inode) else {
            return Ok(());
        };
        let has = file.reserved.max(file.current.len() as u64);
        if bytes > has && capacity.is_some_and(|limit| used + (bytes - has) > limit) {
            return Err(error(io::ErrorKind::StorageFull));
        }
        file.reserved = has.max(bytes);
        Ok(())
    }
}

impl SimFs {
    /// An empty disk with a root directory.
    pub fn new(seed: u64) -> Self {
        let mut directories = BTreeMap::new();
        directories.insert(PathBuf::from("/"), Directory::default());
        directories.insert(PathBuf::from(MEMORY), Directory::default());
        SimFs::with(State {
            random: Random::new(seed),
            files: BTreeMap::new(),
            directories,
            next_inode: 1,
            locks: BTreeSet::new(),
            faults: Vec::new(),
            capacity: None,
            lies: Lies::default(),
            counts: Counts::default(),
            steps: 0,
            crash_at: None,
            crashed: false,
            boot: 1,
            device: 1,
        })
    }

    fn with(state: State) -> Self {
        SimFs {
            state: Arc::new(Mutex::new(state)),
            hook: Arc::default(),
        }
    }

    fn hook(&self) -> MutexGuard<'_, Option<Hook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act` within the next sync of a file, before anything is synced: what another
    /// thread would do meanwhile.
    pub fn during_next_sync(&self, act: impl FnMut() + Send + 'static) {
        *self.hook() = Some(Box::new(act));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This disk for a trait object.
    pub fn shared(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.clone())
    }

    /// Makes `times` calls of a kind fail after `after` more that do not.
    pub fn fail(&self, call: Call, after: u64, times: u64, kind: io::ErrorKind) {
        self.state().faults.push(Fault {
            call,
            after,
            times,
            kind,
        });
    }

    /// Ends all failures on demand.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Limits the bytes that all files together may take; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes that all files take.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Breaks promises from now on.
    pub fn lie(&self, lies: Lies) {
        self.state().lies = lies;
    }

    /// Lets the process die within the `steps`th changing call from now; that call and all
    /// after it fail.
    pub fn crash_after(&self, steps: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.steps + steps.max(1));
    }

    /// Whether the process has died.
    pub fn crashed(&self) -> bool {
        self.state().crashed
    }

    /// Changing calls so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// What was asked of the disk so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The disk as it is, apart from this one; locks go with the process that held them.
    fn fork(&self, seed: u64) -> State {
        let mut state = self.state().clone();
        state.random = Random::new(seed);
        state.locks.clear();
        state.faults.clear();
        state.crash_at = None;
        state.crashed = false;
        state.counts = Counts::default();
        state
    }

    /// What a process started after the death of this one finds: all that was written.
    /// What was not synced still is not.
    pub fn kill(&self, seed: u64) -> SimFs {
        SimFs::with(self.fork(seed))
    }

    /// What a machine finds after its power failed: all that was synced, and of the rest
    /// whatever the seed says. Nothing that was in memory.
    pub fn power_loss(&self, seed: u64) -> SimFs {
        let lost = self.lose_cache(seed);
        {
            let mut state = lost.state();
            state.boot += 1;
            state
                .directories
                .insert(PathBuf::from(MEMORY), Directory::default());
            state.collect();
        }
        lost
    }

    /// What the same machine finds after the disk was taken from it and came back, without a
    /// restart: as after a power loss, but what was in memory is there.
    pub fn lose_cache(&self, seed: u64) -> SimFs {
        let mut state = self.fork(seed);
        let mut random = Random::new(seed ^ 0x706f_7765_726c_6f73);
        // Sometimes nearly all arrived, sometimes nearly nothing.
        let portion = [0, 10, 50, 90, 100][random.below(5) as usize];
        let memory = PathBuf::from(MEMORY);
        let kept: BTreeSet<Inode> = state.directories[&memory]
            .current
            .values()
            .copied()
            .collect();
        for directory in state
            .directories
            .iter_mut()
            .filter(|(path, _)| **path != memory)
            .map(|(_, directory)| directory)
        {
            let changes = std::mem::take(&mut directory.changes);
            let ordered = random.one_in(2);
            let prefix = random.below(changes.len() as u64 + 1) as usize;
            for (at, change) in changes.iter().enumerate() {
                if if ordered {
                    at < prefix
                } else {
                    random.below(100) < portion
                } {
                    apply(&mut directory.durable, change);
                }
            }
            directory.current = directory.durable.clone();
        }
        for (_, file) in state
            .files
            .iter_mut()
            .filter(|(inode, _)| !kept.contains(inode))
        {
            file.write_back(&mut random, portion);
            let durable = file.durable.clone();
            *file = FileState {
                reserved: durable.len() as u64,
                punched: file.punched.min(durable.len() as u64),
                current: durable.clone(),
                durable,
                ..FileState::default()
            };
        }
        state.collect();
        SimFs::with(state)
    }

    /// All files copied to another disk of the same machine, while no process runs.
    pub fn copied(&self, seed: u64) -> SimFs {
        let mut state = self.fork(seed);
        state.device += 1;
        SimFs::with(state)
    }

    /// A file's bytes as a process reads them.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.inode(path)?;
        Ok(state.files[&inode].current.to_vec())
    }

    /// Puts a file on the platter, as a person or a failing disk would.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn set_contents(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let (parent, name) = State::split(path)?;
        let inode = match state.inode(path) {
            Ok(inode) => inode,
            Err(_) => {
                let inode = state.next_inode;
                state.next_inode += 1;
                let directory = state.directory(&parent)?;
                directory.current.insert(name.clone(), inode);
                directory.durable.insert(name, inode);
                inode
            }
        };
        let bytes = Arc::new(bytes.to_vec());
        let reserved = bytes.len() as u64;
        let file = FileState {
            current: bytes.clone(),
            durable: bytes,
            reserved,
            ..FileState::default()
        };
        state.files.insert(inode, file);
        Ok(())
    }

    /// Changes one bit of a file on the platter.
    ///
    /// # Errors
    /// If there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) -> io::Result<()> {
        let mut bytes = self.contents(path)?;
        let byte = bytes
            .get_mut(offset)
            .ok_or_else(|| error(io::ErrorKind::InvalidInput))?;
        *byte ^= 1 << (bit % 8);
        self.set_contents(path, &bytes)
    }

    /// Takes a file away, as a person would.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn lose(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (parent, name) = State::split(path)?;
        let directory = state.directory(&parent)?;
        directory.durable.remove(&name);
        directory
            .current
            .remove(&name)
            .map(drop)
            .ok_or_else(|| error(io::ErrorKind::NotFound))
    }

    /// All files, sorted.
    pub fn list(&self) -> Vec<PathBuf> {
        let state = self.state();
        let files = state
            .directories
            .iter()
            .flat_map(|(path, directory)| directory.current.keys().map(|name| path.join(name)));
        files
            .filter(|path| !state.directories.contains_key(path))
            .collect()
    }
}

struct SimFile {
    fs: SimFs,
    inode: Inode,
    write: bool,
}

impl SimFile {
    fn with<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut State, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        if !self.write {
            return Err(error(io::ErrorKind::PermissionDenied));
        }
        let mut state = self.fs.state();
        let dies = state.step()?;
        let call = match call {
            Call::Write if state.in_memory(self.inode) => Call::WriteMemory,
            call => call,
        };
        let fault = state.fault(call);
        let failing = dies || fault.is_some();
        let result = act(&mut state, failing);
        match fault {
            Some(error) => Err(error),
            None if dies => Err(error(io::ErrorKind::Other)),
            None => result,
        }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.state().files[&self.inode].current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.fs.state();
        if let Some(error) = state.fault(Call::Read) {
            return Err(error);
        }
        let bytes = &state.files[&self.inode].current;
        let from = (offset as usize).min(bytes.len());
        let n = buffer.len().min(bytes.len() - from);
        buffer[..n].copy_from_slice(&bytes[from..from + n]);
        state.counts.read_bytes += n as u64;
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let inode = self.inode;
        self.with(Call::Write, |state, failing| {
            state.counts.writes += 1;
            state.counts.bytes += bytes.len() as u64;
            if !failing {
                state.take_room(inode, offset + bytes.len() as u64)?;
            }
            let mut random = state.random;
            // A write that fails may have been done in part, from its beginning.
            let sectors = bytes.len().div_ceil(SECTOR) as u64;
            let part = match failing {
                false => bytes.len(),
                true => bytes.len().min(random.below(sectors + 1) as usize * SECTOR),
            };
            state.random = random;
            if let Some(file) = state.files.get_mut(&inode).filter(|_| part > 0) {
                file.write(&bytes[..part], offset as usize);
            }
            Ok(())
        })
    }

    fn allocate(&self, length_bytes: u64) -> io::Result<()> {
        let inode = self.inode;
        self.with(Call::Allocate, |state, failing| {
            if failing {
                return Ok(());
            }
            state.take_room(inode, length_bytes)?;
            if let Some(file) = state.files.get_mut(&inode)
                && (file.current.len() as u64) < length_bytes
            {
                file.extend(length_bytes as usize);
            }
            Ok(())
        })
    }

    fn punch(&self, offset: u64) -> io::Result<()> {
        let inode = self.inode;
        self.with(Call::Write, |state, failing| {
            if let Some(file) = state.files.get_mut(&inode).filter(|_| !failing) {
                let length = file.current.len();
                file.write(
                    &vec![0; length.saturating_sub(offset as usize)],
                    offset as usize,
                );
                file.punched = (length as u64).saturating_sub(offset);
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let hook = self.fs.hook().take();
        if let Some(mut act) = hook {
            act();
        }
        let inode = self.inode;
        self.with(Call::SyncData, |state, failing| {
            state.counts.sync_data += 1;
            let (lies, mut random) = (state.lies, state.random);
            if let Some(file) = state.files.get_mut(&inode) {
                if failing {
                    let portion = random.below(101);
                    file.write_back(&mut random, portion);
                    if !state.crashed {
                        // Linux: what could not be written is clean from now on.
                        file.dirty.clear();
                        file.length_dirty = false;
                    }
                } else if !lies.sync_data {
                    file.sync();
                }
            }
            state.random = random;
            Ok(())
        })
    }
}

struct SimLock {
    fs: SimFs,
    path: PathBuf,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.fs.state().locks.remove(&self.path);
    }
}

impl SimFs {
    fn call<T>(&self, call: Call, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let dies = state.step()?;
        if let Some(error) = state.fault(call) {
            return Err(error);
        }
        // Dying within the call: it was made or not.
        if dies && state.random.one_in(2) {
            return Err(error(io::ErrorKind::Other));
        }
        let result = act(&mut state);
        if dies {
            Err(error(io::ErrorKind::Other))
        } else {
            result
        }
    }

    fn handle(&self, inode: Inode, write: bool) -> Arc<dyn File> {
        Arc::new(SimFile {
            fs: self.clone(),
            inode,
            write,
        })
    }
}

impl FileSystem for SimFs {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        let state = self.state();
        if state.directories.contains_key(path) {
            return Ok(Some(Kind::Directory));
        }
        Ok(state
            .inode(path)
            .ok()
            .map(|inode| Kind::File(state.files[&inode].current.len() as u64)))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        Ok(self
            .state()
            .directory(path)?
            .current
            .keys()
            .cloned()
            .collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // Directories last at once: the journal makes them only for an empty store.
        self.call(Call::Create, |state| {
            for ancestor in path.ancestors() {
                state.directories.entry(ancestor.to_owned()).or_default();
            }
            Ok(())
        })
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode = self.call(Call::Create, |state| {
            let (parent, name) = State::split(path)?;
            if state.inode(path).is_ok() {
                return Err(error(io::ErrorKind::AlreadyExists));
            }
            let inode = state.next_inode;
            state.next_inode += 1;
            state.files.insert(inode, FileState::default());
            state.change(&parent, Change::Create(name, inode))?;
            Ok(inode)
        })?;
        Ok(self.handle(inode, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let inode = self.state().inode(path)?;
        Ok(self.handle(inode, write))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename, |state| {
            let (parent, from_name) = State::split(from)?;
            let (_, to_name) = State::split(to)?;
            let inode = state.inode(from)?;
            state.change(&parent, Change::Rename(from_name, to_name, inode))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove, |state| {
            let (parent, name) = State::split(path)?;
            state.inode(path)?;
            state.change(&parent, Change::Remove(name))
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::SyncDir, |state| {
            state.counts.sync_dir += 1;
            let lies = state.lies.sync_dir;
            let directory = state.directory(path)?;
            if !lies {
                directory.durable = directory.current.clone();
                directory.changes.clear();
            }
            state.collect();
            Ok(())
        })
    }

    fn file_id(&self, path: &Path) -> io::Result<FileId> {
        let state = self.state();
        if state.directories.contains_key(path) {
            let name = path.as_os_str().as_encoded_bytes();
            let inode = 1 << 40 | u64::from(crc32c::crc32c(name));
            return Ok(FileId {
                device: state.device,
                inode,
                birth_ns: 1,
            });
        }
        Ok(FileId {
            device: state.device,
            inode: state.inode(path)?,
            birth_ns: 1,
        })
    }

    fn in_memory(&self, path: &Path) -> io::Result<bool> {
        Ok(path.starts_with(MEMORY))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot {}", self.state().boot))
    }

    fn lock(&self, path: &Path, mode: LockMode, text: &str) -> Result<Box<dyn Lock>, LockError> {
        let mut state = self.state();
        if state.crashed {
            return Err(LockError::Io(error(io::ErrorKind::Other)));
        }
        if state.locks.contains(path) {
            return Err(LockError::Held(text.trim().to_owned()));
        }
        if mode == LockMode::Exclusive {
            state.locks.insert(path.to_owned());
        }
        drop(state);
        Ok(Box::new(SimLock {
            fs: self.clone(),
            path: path.to_owned(),
        }))
    }
}
