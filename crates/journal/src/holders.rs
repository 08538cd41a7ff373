//! Who holds the log's newest frames in memory: noted in the directory before it counts, so that
//! a start after a power loss knows whom to ask.

use crate::error::OpenError;
use crate::recover::Complete;
use crate::{Epoch, Lsn};
use files::{FileSystem, Kind, read_small, replace_small};
use std::fmt::Write;
use std::path::Path;

/// The file's name in the data directory.
const FILE: &str = "holders";
/// Its first line after the checksum.
const TITLE: &str = "orlop holders";
/// It is far shorter.
const LIMIT_BYTES: u64 = 1 << 20;

/// One that holds frames in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// A number that it gave itself when it began, with nothing in memory: one that was started
    /// anew is another.
    pub incarnation: u64,
}

/// From some frame on, nothing that was visible is missing from both this disk and the memory of
/// any one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderSet {
    /// Sets of a directory are counted, from 1.
    pub number: u64,
    /// The frame that opened the epoch that this is of.
    pub opened: Lsn,
    /// The last frame before those that they are given. It is on disk.
    pub after: Lsn,
    /// They. None: nothing was visible that was not on disk.
    pub holders: Vec<Holder>,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldersNote {
    /// How often a server that has holders was started here: holders take nothing from an earlier
    /// start than the latest that they have seen.
    pub generation: u64,
    /// The highest number of a set so far.
    pub last_set: u64,
    /// The set that counts, if anything beyond this disk was ever promised in this epoch.
    pub set: Option<HolderSet>,
}

impl HolderSet {
    /// If nobody held anything, all that was visible is on disk.
    pub(crate) fn nobody(&self) -> Option<Complete> {
        self.holders.is_empty().then(|| Complete {
            lsn: self.after,
            frames: 0,
            holder: None,
            reason: "but nothing was visible then that was not on this disk".to_owned(),
        })
    }
}

impl HoldersNote {
    /// The set, if it is of the epoch that a log ends in.
    pub(crate) fn of_epoch(&self, epoch: Option<Epoch>) -> Option<HolderSet> {
        let set = self.set.as_ref().zip(epoch);
        set.filter(|(set, epoch)| set.opened == epoch.opened)
            .map(|(set, _)| set.clone())
    }

    /// The note in a directory; that of a directory that never had holders if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(fs: &dyn FileSystem, dir: &Path) -> Result<HoldersNote, OpenError> {
        let path = dir.join(FILE);
        match fs.kind(&path).map_err(OpenError::io("look at", &path))? {
            None => Ok(HoldersNote::default()),
            Some(Kind::File(_)) => {
                let bytes = read_small(fs, &path, LIMIT_BYTES);
                let bytes = bytes.map_err(OpenError::io("read", &path))?;
                parse(&bytes).ok_or_else(|| {
                    OpenError::mismatch(
                        &path,
                        "it is damaged: it names the shards that hold the newest writes in memory. \
                         Restore it, or remove it and start with --recover-without-shards: writes \
                         of the class `replicated` of the last moments may be missing then",
                    )
                })
            }
            Some(_) => Err(OpenError::mismatch(&path, "it is not a file")),
        }
    }

    /// Puts it in a directory; on disk when this returns.
    ///
    /// # Errors
    /// Those of the file system; then it is as before, or as asked for.
    pub(crate) fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<(), OpenError> {
        let written = replace_small(fs, dir, FILE, self.encode().as_bytes());
        written.map_err(OpenError::io("write", dir.join(FILE)))
    }

    fn encode(&self) -> String {
        let mut body = format!(
            "{TITLE}\nversion 1\ngeneration {}\nlast {}\n",
            self.generation, self.last_set
        );
        if let Some(set) = &self.set {
            // Writing to a string does not fail.
            let _ = writeln!(body, "set {} {} {}", set.number, set.opened, set.after);
            for holder in &set.holders {
                let name = holder.name.escape_default();
                let _ = writeln!(body, "holder {:x} {name}", holder.incarnation);
            }
        }
        let crc = crc32c::crc32c(body.as_bytes());
        format!("crc {crc:08x}\n{body}")
    }
}

fn parse(bytes: &[u8]) -> Option<HoldersNote> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (crc, body) = text.strip_prefix("crc ")?.split_once('\n')?;
    if u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
        return None;
    }
    let mut lines = body
        .strip_prefix(TITLE)?
        .strip_prefix("\nversion 1\n")?
        .lines();
    let mut note = HoldersNote {
        generation: lines.next()?.strip_prefix("generation ")?.parse().ok()?,
        last_set: lines.next()?.strip_prefix("last ")?.parse().ok()?,
        set: None,
    };
    for line in lines {
        if let Some(numbers) = line.strip_prefix("set ") {
            let mut numbers = numbers.split(' ').map(str::parse);
            let mut next = || numbers.next()?.ok();
            note.set = Some(HolderSet {
                number: next()?,
                opened: next()?,
                after: next()?,
                holders: Vec::new(),
            });
        } else {
            let (incarnation, name) = line.strip_prefix("holder ")?.split_once(' ')?;
            note.set.as_mut()?.holders.push(Holder {
                name: name.to_owned(),
                incarnation: u64::from_str_radix(incarnation, 16).ok()?,
            });
        }
    }
    Some(note)
}

/// Notes in a directory that a server that has holders begins, and returns how many did so far.
/// Before it asks or tells a holder anything; on disk when this returns.
///
/// # Errors
/// Those of the file system; the note is damaged.
pub(crate) fn next_generation(fs: &dyn FileSystem, dir: &Path) -> Result<u64, OpenError> {
    let mut note = HoldersNote::read(fs, dir)?;
    note.generation += 1;
    note.write(fs, dir)?;
    Ok(note.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_a_changed_byte_is_noticed() {
        let holder = |name: &str, incarnation| Holder {
            name: name.to_owned(),
            incarnation,
        };
        let mut note = HoldersNote {
            generation: 7,
            last_set: 9,
            set: None,
        };
        assert_eq!(parse(note.encode().as_bytes()), Some(note.clone()));
        let mut set = HolderSet {
            number: 9,
            opened: 12,
            after: 130,
            holders: Vec::new(),
        };
        note.set = Some(set.clone());
        assert_eq!(parse(note.encode().as_bytes()), Some(note.clone()));
        set.holders = vec![holder("node 1", u64::MAX), holder("b", 1)];
        note.set = Some(set);
        let text = note.encode();
        assert_eq!(parse(text.as_bytes()), Some(note));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(parse(&bytes), None, "{at}");
        }
    }
}
