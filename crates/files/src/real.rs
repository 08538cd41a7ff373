//! The operating system's file system.

use super::{File, FileId, FileSystem, Kind, Lock, LockError, LockMode};
use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, StatxFlags, makedev};
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Memory alignment that direct writes need at most, in bytes.
const DIRECT_ALIGN_BYTES: usize = 4096;

/// The operating system's file system.
#[derive(Clone, Debug, Default)]
pub struct RealFs {
    sync_delay: Duration,
}

impl RealFs {
    /// The plain file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fault option: every file sync takes this much longer, as on a slower disk.
    /// For tests and benchmarks; the data is synced all the same.
    pub fn with_sync_delay(mut self, delay: Duration) -> Self {
        self.sync_delay = delay;
        self
    }

    fn wrap(&self, file: fs::File) -> Arc<dyn File> {
        Arc::new(RealFile {
            file,
            sync_delay: self.sync_delay,
        })
    }
}

struct RealFile {
    file: fs::File,
    sync_delay: Duration,
}

impl RealFile {
    fn write_zeros_direct(&self, offset: u64, length_bytes: usize) -> io::Result<()> {
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        // Direct writes want memory on a page boundary.
        let buffer = vec![0; length_bytes + DIRECT_ALIGN_BYTES];
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        let zeros = buffer
            .get(start..start + length_bytes)
            .ok_or(io::ErrorKind::Unsupported)?;
        direct.write_all_at(zeros, offset)
    }
}

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_zeros(&self, offset: u64, length_bytes: usize) -> io::Result<()> {
        // Copying zeros through the page cache cost as much as all other work of a put.
        match self.write_zeros_direct(offset, length_bytes) {
            Ok(()) => Ok(()),
            // Not every file system has direct writes; what is really wrong shows here too.
            Err(_) => self.write_at(&vec![0; length_bytes], offset),
        }
    }

    fn allocate(&self, length_bytes: u64) -> io::Result<()> {
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, length_bytes)?;
        Ok(())
    }

    fn punch(&self, offset: u64) -> io::Result<()> {
        let length = self.file.metadata()?.len().saturating_sub(offset);
        if length > 0 {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, offset, length)?;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.sync_delay.is_zero() {
            std::thread::sleep(self.sync_delay);
        }
        self.file.sync_data()
    }
}

/// Held by the open file: the kernel drops it with the process, however that ends.
struct RealLock {
    _file: Option<fs::File>,
}

impl Lock for RealLock {}

impl FileSystem for RealFs {
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Some(Kind::Directory)),
            Ok(meta) if meta.is_file() => Ok(Some(Kind::File(meta.len()))),
            Ok(_) => Ok(Some(Kind::Other)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(self.wrap(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(OpenOptions::new().read(true).write(write).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn file_id(&self, path: &Path) -> io::Result<FileId> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let found = rustix::fs::statx(CWD, path, AtFlags::empty(), wanted)?;
        let birth = found.stx_btime;
        let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
        Ok(FileId {
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            birth_ns: match known {
                true => (birth.tv_sec as u64)
                    .wrapping_mul(1_000_000_000)
                    .wrapping_add(u64::from(birth.tv_nsec)),
                false => 0,
            },
        })
    }

    fn in_memory(&self, path: &Path) -> io::Result<bool> {
        Ok(is_memory(rustix::fs::statfs(path)?.f_type as u64))
    }

    fn boot_id(&self) -> io::Result<String> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(text.trim().to_owned())
    }

    fn lock(&self, path: &Path, mode: LockMode, text: &str) -> Result<Box<dyn Lock>, LockError> {
        let exclusive = mode == LockMode::Exclusive;
        let opened = OpenOptions::new()
            .read(true)
            .write(exclusive)
            .create(exclusive)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if !exclusive && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Box::new(RealLock { _file: None }));
            }
            Err(error) => return Err(LockError::Io(error)),
        };
        let locked = if exclusive {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = Read::by_ref(&mut file)
                    .take(256)
                    .read_to_string(&mut holder);
                return Err(LockError::Held(holder.trim().to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        if exclusive {
            // The text only helps a reader: no reason to refuse a start on a full disk.
            let _ = file
                .set_len(0)
                .and_then(|()| file.write_all(text.as_bytes()));
        }
        Ok(Box::new(RealLock { _file: Some(file) }))
    }
}

/// Whether a file system of this magic number is in memory (tmpfs, ramfs).
fn is_memory(kind: u64) -> bool {
    matches!(kind & 0xffff_ffff, 0x0102_1994 | 0x8584_58f6)
}

/// A directory in memory, for what is to outlive a process and nothing else: `/run/orlop` if
/// there is one, else `/dev/shm`; `None` if this process may write to neither, or they are not
/// in memory. Makes nothing, so that a reader finds what a server found.
pub fn memory_dir() -> Option<PathBuf> {
    let usable = |dir: &Path| {
        RealFs::new().in_memory(dir).unwrap_or(false)
            && rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
    };
    ["/run/orlop", "/dev/shm"]
        .into_iter()
        .map(PathBuf::from)
        .find(|dir| usable(dir))
}

/// A sentence if `path` (or the nearest parent that exists) is on a file system that does
/// not keep data through a power loss, or not under the rules that a log needs.
pub fn fs_warning(path: &Path) -> Option<String> {
    let mut probe = path;
    let kind = loop {
        match rustix::fs::statfs(probe) {
            Ok(stat) => break stat.f_type as u64,
            Err(rustix::io::Errno::NOENT) => {
                probe = probe.parent().unwrap_or(Path::new("/"));
                if probe.as_os_str().is_empty() {
                    probe = Path::new(".");
                }
            }
            Err(_) => return None,
        }
    };
    let place = path.display();
    // Magic numbers of linux/magic.h; some types sign-extend, so compare 32 bits.
    match kind & 0xffff_ffff {
        kind if is_memory(kind) => Some(format!(
            "{place} is in memory (tmpfs): everything in it is gone when the machine restarts; \
             use a directory on a disk"
        )),
        0x794c_7630 => Some(format!(
            "{place} is on an overlay file system, usually a container's own layer: it goes when \
             the container is removed, and syncs may be slow; mount a volume there"
        )),
        kind => {
            let name = match kind {
                0x6969 => "NFS",
                0xff53_4d42 | 0xfe53_4d42 | 0x517b => "SMB",
                0x0102_1997 => "9p",
                0x6573_5546 => "FUSE",
                0x00c3_6400 => "Ceph",
                _ => return None,
            };
            Some(format!(
                "{place} is on a network or user-space file system ({name}): syncs and locks \
                 depend on its server, and are often slow or weaker than on a disk; use a local disk"
            ))
        }
    }
}
