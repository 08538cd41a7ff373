//! The data directory: its layout, its identity, its lock.
//!
//! ```text
//! DIR/member    a regular file with a sentence: etcd wants a directory of this name, and
//!               so fails here instead of starting empty beside orlop's data
//! DIR/format    version, ids, name, salt; written last when a directory is made
//! DIR/lock      locked while a server runs; says whose it is
//! DIR/restoring there while a restore fills the directory: every start refuses it
//! DIR/holders   who holds the log's newest frames in memory, if anybody ever did
//! DIR/log/      ID.seg (segments), ID.spare (retired, to be used again), reserve (room for a
//!               start on a full disk)
//! DIR/snap/     LSN.snap
//! ```
//! Names ending in `.tmp` are unfinished, and removed at the next start.

use crate::error::OpenError;
use crate::segment;
use files::{FileSystem, Kind, Lock, LockError, LockMode, read_small, replace_small};
use std::io;
use std::path::{Path, PathBuf};

/// The version of the directory's format.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MEMBER_TEXT: &str = "This is an orlop data directory. etcd cannot use it, and this file \
                           keeps it from trying: please leave it here.\n";
/// A format file is far smaller; a longer one is not ours.
const FORMAT_LIMIT_BYTES: u64 = 64 * 1024;

/// etcd's raft term after the first election of a lone member: that of every directory until its
/// store goes over to another server.
pub const FIRST_RAFT_TERM: u64 = 2;

/// Whose log a directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A server's own.
    #[default]
    Server,
    /// A keeper's: it copies a server's, and no server starts from it before it is promoted.
    Keeper,
    /// That of a server whose followers went over to another one: nothing starts from it.
    Replaced,
}

/// What a new directory is given. The numbers should be random; they are used only if
/// the directory is new.
#[derive(Clone, Debug, Default)]
pub struct NewDirectory {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
    /// The member's name at creation.
    pub name: String,
    /// Starts every checksum, so that no client can put bytes into a value that pass for a
    /// part of the log. It never leaves the directory.
    pub salt: u64,
    /// The term that its server shows; at least [`FIRST_RAFT_TERM`], which 0 stands for.
    pub raft_term: u64,
    /// Whose log it holds.
    pub role: Role,
}

/// Who a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
    /// The member's name when the directory was made.
    pub name: String,
    /// The term that its server shows: it rises when a store goes over to another server.
    pub raft_term: u64,
    /// Whose log it holds.
    pub role: Role,
}

/// What is in a directory, before anything is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirState {
    /// It does not exist.
    Absent,
    /// It has nothing of orlop's or etcd's.
    Empty,
    /// orlop's data.
    Orlop,
    /// etcd's data.
    Etcd,
    /// Not a directory.
    NotADirectory,
}

/// A file that is there while a restore fills the directory.
pub(crate) const RESTORING: &str = "restoring";

/// The reserve's name in `log/`.
const RESERVE: &str = "reserve";

/// Says what is in a directory. Changes nothing and takes no lock.
///
/// # Errors
/// Those of the file system.
pub fn inspect(fs: &dyn FileSystem, dir: &Path) -> io::Result<DirState> {
    Ok(match fs.kind(dir)? {
        None => DirState::Absent,
        Some(Kind::Directory) => {
            if fs.kind(&dir.join("member"))? == Some(Kind::Directory) {
                DirState::Etcd
            } else if fs.kind(&dir.join("format"))?.is_some() {
                DirState::Orlop
            } else {
                DirState::Empty
            }
        }
        Some(_) => DirState::NotADirectory,
    })
}

/// Paths in a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) snap: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        Layout {
            dir: dir.to_owned(),
            log: dir.join("log"),
            snap: dir.join("snap"),
        }
    }

    /// The file that keeps room for a start on a full disk.
    pub(crate) fn reserve(&self) -> PathBuf {
        self.log.join(RESERVE)
    }
}

/// A directory's format file, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) identity: Identity,
    pub(crate) salt: u64,
}

impl Format {
    fn encode(&self) -> Vec<u8> {
        let Identity {
            cluster_id,
            member_id,
            name,
            raft_term,
            role,
        } = &self.identity;
        let mut text = format!(
            "orlop data directory\nversion {FORMAT_VERSION}\ncluster_id {cluster_id:016x}\n\
             member_id {member_id:016x}\nsalt {:016x}\nname {}\n",
            self.salt, name
        );
        // A directory that was never followed is as releases before followers made it.
        if *raft_term != FIRST_RAFT_TERM {
            text.push_str(&format!("raft_term {raft_term:016x}\n"));
        }
        match role {
            Role::Server => {}
            Role::Keeper => text.push_str("role keeper\n"),
            Role::Replaced => text.push_str("role replaced\n"),
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc {crc:08x}\n"));
        text.into_bytes()
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, OpenError> {
        let damaged = || {
            OpenError::damaged(
                path,
                0,
                "this is not the format file that orlop wrote",
                "the directory's ids and salt, without which its log cannot be read",
            )
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let mut lines = text.lines();
        if lines.next() != Some("orlop data directory") {
            return Err(damaged());
        }
        let version = lines
            .next()
            .and_then(|l| l.strip_prefix("version "))
            .ok_or_else(damaged)?;
        if version.parse() != Ok(FORMAT_VERSION) && version.parse::<u32>().is_ok() {
            return Err(OpenError::UnknownVersion {
                path: path.to_owned(),
                found: version.to_owned(),
                known: FORMAT_VERSION,
            });
        }
        let (body, crc) = text.rsplit_once("crc ").ok_or_else(damaged)?;
        let crc = crc.strip_suffix('\n').unwrap_or(crc);
        if u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
            return Err(damaged());
        }
        let field = |name: &str| {
            body.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        };
        let hex_if_there = |name: &str| -> Result<Option<u64>, OpenError> {
            field(name)
                .map(|value| u64::from_str_radix(value, 16).map_err(|_| damaged()))
                .transpose()
        };
        let hex = |name: &str| hex_if_there(name)?.ok_or_else(damaged);
        let name = body
            .lines()
            .find_map(|line| line.strip_prefix("name "))
            .unwrap_or_default();
        Ok(Format {
            identity: Identity {
                cluster_id: hex("cluster_id")?,
                member_id: hex("member_id")?,
                name: name.to_owned(),
                raft_term: match hex_if_there("raft_term")? {
                    Some(term) if term > FIRST_RAFT_TERM => term,
                    Some(_) => return Err(damaged()),
                    None => FIRST_RAFT_TERM,
                },
                role: match field("role") {
                    None => Role::Server,
                    Some("keeper") => Role::Keeper,
                    Some("replaced") => Role::Replaced,
                    Some(_) => return Err(damaged()),
                },
            },
            salt: hex("salt")?,
        })
    }
}

/// A directory that is locked, with its format if it has one.
pub(crate) struct Opened {
    pub(crate) layout: Layout,
    pub(crate) format: Option<Format>,
    pub(crate) lock: Box<dyn Lock>,
}

/// Checks, makes (as far as needed) and locks a directory for a server.
pub(crate) fn open(fs: &dyn FileSystem, dir: &Path) -> Result<Opened, OpenError> {
    let state = inspect(fs, dir).map_err(OpenError::io("look into", dir))?;
    refuse(state, dir)?;
    if state == DirState::Absent {
        fs.create_dir(dir).map_err(OpenError::io("create", dir))?;
    }
    let lock = take_lock(fs, dir, LockMode::Exclusive)?;
    Ok(Opened {
        format: read_format(fs, dir)?,
        layout: Layout::new(dir),
        lock,
    })
}

/// Checks and locks a directory for reading only.
pub(crate) fn open_read_only(fs: &dyn FileSystem, dir: &Path) -> Result<Opened, OpenError> {
    let state = inspect(fs, dir).map_err(OpenError::io("look into", dir))?;
    refuse(state, dir)?;
    if state == DirState::Absent {
        return Err(OpenError::mismatch(dir, "there is no such directory"));
    }
    let lock = take_lock(fs, dir, LockMode::Shared)?;
    Ok(Opened {
        format: read_format(fs, dir)?,
        layout: Layout::new(dir),
        lock,
    })
}

fn refuse(state: DirState, dir: &Path) -> Result<(), OpenError> {
    match state {
        DirState::Etcd => Err(OpenError::EtcdDirectory {
            path: dir.to_owned(),
        }),
        DirState::NotADirectory => Err(OpenError::NotADirectory {
            path: dir.to_owned(),
        }),
        DirState::Absent | DirState::Empty | DirState::Orlop => Ok(()),
    }
}

fn take_lock(fs: &dyn FileSystem, dir: &Path, mode: LockMode) -> Result<Box<dyn Lock>, OpenError> {
    let path = dir.join("lock");
    let text = format!("process {}\n", std::process::id());
    fs.lock(&path, mode, &text).map_err(|error| match error {
        LockError::Held(holder) => OpenError::Locked {
            path: dir.to_owned(),
            holder: if holder.is_empty() {
                "a process unknown".to_owned()
            } else {
                holder
            },
        },
        LockError::Io(source) => OpenError::io("lock", path)(source),
    })
}

fn read_format(fs: &dyn FileSystem, dir: &Path) -> Result<Option<Format>, OpenError> {
    let path = dir.join("format");
    match fs.kind(&path).map_err(OpenError::io("look at", &path))? {
        None => refuse_unfinished(fs, dir).map(|()| None),
        Some(_) => {
            let bytes =
                read_small(fs, &path, FORMAT_LIMIT_BYTES).map_err(OpenError::io("read", &path))?;
            Format::parse(&path, &bytes).map(Some)
        }
    }
}

fn refuse_unfinished(fs: &dyn FileSystem, dir: &Path) -> Result<(), OpenError> {
    let marker = fs.kind(&dir.join(RESTORING));
    match marker.map_err(OpenError::io("look into", dir))? {
        None => Ok(()),
        Some(_) => Err(OpenError::mismatch(
            dir,
            "a restore into it was not finished: empty it, and restore again",
        )),
    }
}

/// Lays out a directory that has no format file yet, all but that file. What a start that
/// did not finish left behind is removed; anything that looks like data is a refusal.
pub(crate) fn lay_out(fs: &dyn FileSystem, layout: &Layout) -> Result<(), OpenError> {
    sync_parents(fs, &layout.dir)?;
    for sub in [&layout.log, &layout.snap] {
        if fs
            .kind(sub)
            .map_err(OpenError::io("look at", sub))?
            .is_none()
        {
            fs.create_dir(sub).map_err(OpenError::io("create", sub))?;
        }
        for name in fs.read_dir(sub).map_err(OpenError::io("list", sub))? {
            let path = sub.join(&name);
            if name.ends_with(".snap") || (name.ends_with(".seg") && has_frames(fs, &path)?) {
                return Err(OpenError::mismatch(
                    &layout.dir,
                    format!(
                        "it has data ({}) but no file `format`, without which that cannot be read: \
                         restore the file, or restore a copy of the whole directory",
                        path.display()
                    ),
                ));
            }
            if name.ends_with(".seg") || name.ends_with(".tmp") || name.ends_with(".spare") {
                fs.remove(&path).map_err(OpenError::io("remove", &path))?;
            }
        }
    }
    if fs
        .kind(&layout.dir.join("member"))
        .map_err(OpenError::io("look at", &layout.dir))?
        .is_none()
    {
        replace(fs, &layout.dir, "member", MEMBER_TEXT.as_bytes())?;
    }
    Ok(())
}

/// Makes the directory's own name last, and those of parents that were made for it.
fn sync_parents(fs: &dyn FileSystem, dir: &Path) -> Result<(), OpenError> {
    for parent in dir.ancestors().skip(1) {
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        match fs.sync_dir(parent) {
            Ok(()) => {}
            // A parent that may not even be read was not made by us.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(error) => return Err(OpenError::io("sync", parent)(error)),
        }
        if fs.read_dir(parent).is_ok_and(|names| names.len() > 1) {
            break;
        }
    }
    Ok(())
}

fn has_frames(fs: &dyn FileSystem, path: &Path) -> Result<bool, OpenError> {
    let read = || -> io::Result<bool> {
        let file = fs.open(path, false)?;
        let mut page = vec![0; 64];
        let n = files::read_full(&*file, &mut page, crate::frame::PAGE)?;
        Ok(page[..n].iter().any(|byte| *byte != 0))
    };
    read().map_err(OpenError::io("read", path))
}

/// Writes the format file: from here on the directory is orlop's.
pub(crate) fn write_format(
    fs: &dyn FileSystem,
    layout: &Layout,
    new: &NewDirectory,
) -> Result<Format, OpenError> {
    let format = new_format(new);
    replace_format(fs, layout, &format)?;
    Ok(format)
}

/// Writes another format file in the place of the one that is there.
pub(crate) fn replace_format(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
) -> Result<(), OpenError> {
    replace(fs, &layout.dir, "format", &format.encode())
}

/// Refuses a directory that holds another's log than is asked for.
pub(crate) fn check_role(dir: &Path, identity: &Identity, role: Role) -> Result<(), OpenError> {
    let why = match (identity.role, role) {
        (Role::Keeper, Role::Server) => {
            "it is a keeper's copy of a server's data, and no server starts from it as long as \
             that server may be there: once it is gone for good, `orlop promote` makes a server's \
             directory of it"
        }
        (Role::Replaced, _) => {
            "its server was replaced: a follower had seen the one that took its place, which goes \
             on with the data. To keep a copy of that one here, move this directory away and start \
             a keeper with an empty one"
        }
        (Role::Server, Role::Keeper) => {
            "it holds a server's data, which a keeper would overwrite: name an empty directory for \
             the keeper, and move this one away if it is of no use any more"
        }
        _ => return Ok(()),
    };
    Err(OpenError::mismatch(dir, why))
}

/// The format that a new directory will have.
pub(crate) fn new_format(new: &NewDirectory) -> Format {
    Format {
        identity: Identity {
            cluster_id: new.cluster_id,
            member_id: new.member_id,
            name: new.name.escape_default().to_string(),
            raft_term: new.raft_term.max(FIRST_RAFT_TERM),
            role: new.role,
        },
        salt: new.salt,
    }
}

/// Writes a small file whole; see [`replace_small`].
pub(crate) fn replace(
    fs: &dyn FileSystem,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), OpenError> {
    replace_small(fs, dir, name, bytes).map_err(OpenError::io("write", dir.join(name)))
}

/// Segment files and leftovers in `log/`.
#[derive(Debug, Default)]
pub(crate) struct LogFiles {
    /// Ids of `.seg` files, ascending.
    pub(crate) segments: Vec<u64>,
    /// Ids of `.spare` files, ascending.
    pub(crate) spares: Vec<u64>,
    /// Unfinished files.
    pub(crate) temporary: Vec<PathBuf>,
    /// There is a reserve.
    pub(crate) reserve: bool,
}

/// Lists `log/`. Names that are not ours are left alone.
pub(crate) fn list_log(fs: &dyn FileSystem, layout: &Layout) -> Result<LogFiles, OpenError> {
    let mut files = LogFiles::default();
    for name in fs
        .read_dir(&layout.log)
        .map_err(OpenError::io("list", &layout.log))?
    {
        if let Some(id) = segment::id_of(&name) {
            files.segments.push(id);
        } else if let Some(id) = name
            .strip_suffix(".spare")
            .and_then(|hex| segment::id_of(&format!("{hex}.seg")))
        {
            files.spares.push(id);
        } else if name == RESERVE {
            files.reserve = true;
        } else if name.ends_with(".tmp") {
            files.temporary.push(layout.log.join(name));
        }
    }
    files.segments.sort_unstable();
    files.spares.sort_unstable();
    Ok(files)
}

/// The file of a retired segment that waits to be used again.
pub(crate) fn spare_path(log_dir: &Path, id: u64) -> PathBuf {
    log_dir.join(format!("{id:016x}.spare"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_file_reads_back_and_a_changed_byte_is_noticed() {
        let format = new_format(&NewDirectory {
            cluster_id: 1,
            member_id: u64::MAX,
            name: "a\nb crc ü".to_owned(),
            salt: 7,
            raft_term: 9,
            role: Role::Keeper,
        });
        let bytes = format.encode();
        assert_eq!(Format::parse(Path::new("f"), &bytes).unwrap(), format);
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(
                Format::parse(Path::new("f"), &changed).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_its_version() {
        let text = b"orlop data directory\nversion 2\nanything else\n";
        let error = Format::parse(Path::new("f"), text).unwrap_err();
        assert!(matches!(error, OpenError::UnknownVersion { .. }), "{error}");
    }
}
