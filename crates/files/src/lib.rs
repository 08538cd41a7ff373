//! The file system, as whoever keeps data that must last sees it.
//!
//! A trait, so that the shipped code runs on a simulated one ([`sim`]) that loses, tears
//! and reorders what was not synced. It knows nothing of what the files hold. Paths are plain; a call either happens whole or
//! reports an error, and nothing but a sync makes anything last.

pub mod real;
pub mod sim;

use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file and its length in bytes.
    File(u64),
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// Which file a path names, as far as the system can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// The device's number.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
    /// When the file was made, in nanoseconds since 1970; 0 where nobody knows.
    pub birth_ns: u64,
}

/// An open file. Positions are explicit: no cursor is shared between threads.
pub trait File: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads at `offset`; fewer bytes than asked only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. After an error any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes `length_bytes` of zeros at `offset`, past the page cache where that is
    /// possible: nobody reads them soon. Offset and length are multiples of 4 KiB.
    fn write_zeros(&self, offset: u64, length_bytes: usize) -> io::Result<()> {
        self.write_at(&vec![0; length_bytes], offset)
    }
    /// Reserves room for `length_bytes` from the start, so that writes there cannot run out
    /// of space. `Unsupported` where the file system has no such thing.
    fn allocate(&self, length_bytes: u64) -> io::Result<()>;
    /// Gives back the room of everything from `offset` on, which then reads as zeros; the
    /// length stays. `Unsupported` where the file system has no such thing.
    fn punch(&self, offset: u64) -> io::Result<()>;
    /// Makes the written data and the length last (fdatasync). After an error nothing is
    /// known of what was written since the last good sync, and it must not be called again
    /// to find out: Linux reports such an error once and then calls the pages clean.
    fn sync_data(&self) -> io::Result<()>;
}

/// Holds a directory lock until dropped.
pub trait Lock: Send + Sync {}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Someone else has it; the text that they left in the file.
    Held(String),
    /// The file could not be opened, locked or written.
    Io(io::Error),
}

/// How to lock a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// For a server: creates the file if need be, excludes all others, leaves a text in it.
    Exclusive,
    /// For a reader of a stopped server's files: changes nothing. A missing file is no error.
    Shared,
}

/// The calls that may be made. All of them block.
pub trait FileSystem: Send + Sync {
    /// What `path` names, `None` if nothing.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;
    /// Names in a directory, unsorted.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory (mode 0700) and its missing parents.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a file (mode 0600) that must not exist, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading, and writing if `write`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>>;
    /// Renames within a directory, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory last (fsync of the directory).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Which file or directory `path` names.
    fn file_id(&self, path: &Path) -> io::Result<FileId>;
    /// Whether what is in this directory is in memory: it outlives a process, and nothing else.
    fn in_memory(&self, path: &Path) -> io::Result<bool>;
    /// Names the machine's run since it was switched on.
    fn boot_id(&self) -> io::Result<String>;
    /// Locks a file without waiting; `text` is left in it for whoever comes second.
    fn lock(&self, path: &Path, mode: LockMode, text: &str) -> Result<Box<dyn Lock>, LockError>;
}

/// Whether an error means that the disk or a disk quota is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Reads exactly `buffer.len()` bytes, or fewer if the file ends before; returns how many.
///
/// # Errors
/// Those of the file system.
pub fn read_full(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads a whole small file, at most `limit_bytes` of it: that guards against a wrong one.
///
/// # Errors
/// Those of the file system.
pub fn read_small(fs: &dyn FileSystem, path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path, false)?;
    let mut bytes = vec![0; file.len()?.min(limit_bytes) as usize];
    let n = read_full(&*file, &mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Writes the small file `name` in `dir` whole: as `NAME.tmp`, synced, renamed, the entry
/// synced. After a crash it is there as it was before or as it is to be.
///
/// # Errors
/// Those of the file system. The old file is then still there, or the new one is and may not
/// outlive a power loss.
pub fn replace_small(fs: &dyn FileSystem, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    if fs.kind(&temporary)?.is_some() {
        fs.remove(&temporary)?;
    }
    let file = fs.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    fs.rename(&temporary, &dir.join(name))?;
    fs.sync_dir(dir)
}
