//! The storage rules that were chosen at run time: text that outlives a restart beside the log.
//!
//! What the rules mean is not known here. A journal that is not in files of its own keeps them
//! where it is: hence the trait.

use files::{FileSystem, Kind, read_small, replace_small};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file's name in the data directory.
const FILE: &str = "storage-rules";
/// Its first line after the checksum.
const TITLE: &str = "orlop storage rules";

/// Rules as they were written, and what they go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesChoice {
    /// A profile's name, or that of a file.
    pub name: String,
    /// The TOML.
    pub text: String,
}

/// Why a choice was not read or not kept.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The file system refused a call.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{} is damaged: it holds the storage rules chosen with `orlop profile set` or `orlop rules apply`; restore it, or remove it to go back to --profile or --rules (without either everything is durable)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// Where a choice outlives a restart. Both calls wait for a disk.
pub trait RulesKeeper: Send + Sync {
    /// The choice that was kept last, if there is one. Rules that are longer than `limit_bytes`
    /// are taken for damage.
    ///
    /// # Errors
    /// [`ChoiceError`].
    fn read(&self, limit_bytes: u64) -> Result<Option<RulesChoice>, ChoiceError>;

    /// Keeps a choice, or that there is none; when it returns, that outlives any crash.
    ///
    /// # Errors
    /// [`ChoiceError::Io`]; then the one before is still kept, or this one.
    fn keep(&self, choice: Option<&RulesChoice>) -> Result<(), ChoiceError>;
}

/// A choice in the data directory.
pub(crate) struct InDirectory {
    files: Arc<dyn FileSystem>,
    dir: PathBuf,
}

impl InDirectory {
    pub(crate) fn new(files: Arc<dyn FileSystem>, dir: &Path) -> Self {
        InDirectory {
            files,
            dir: dir.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> ChoiceError {
        let path = self.path();
        move |source| ChoiceError::Io {
            action,
            path: path.clone(),
            source,
        }
    }
}

impl RulesKeeper for InDirectory {
    fn read(&self, limit_bytes: u64) -> Result<Option<RulesChoice>, ChoiceError> {
        let (path, failed) = (self.path(), self.failed("read"));
        match self.files.kind(&path).map_err(&failed)? {
            None => Ok(None),
            Some(Kind::File(_)) => {
                // Its own lines come on top of the text.
                let bytes = read_small(&*self.files, &path, limit_bytes + 4096).map_err(failed)?;
                let choice = decode(&bytes);
                choice.map(Some).ok_or(ChoiceError::Damaged { path })
            }
            Some(_) => Err(ChoiceError::Damaged { path }),
        }
    }

    fn keep(&self, choice: Option<&RulesChoice>) -> Result<(), ChoiceError> {
        let (path, failed) = (self.path(), self.failed("record the choice in"));
        let fs = &*self.files;
        let Some(choice) = choice else {
            if fs.kind(&path).map_err(&failed)?.is_some() {
                fs.remove(&path).map_err(&failed)?;
                fs.sync_dir(&self.dir).map_err(&failed)?;
            }
            return Ok(());
        };
        replace_small(fs, &self.dir, FILE, encode(choice).as_bytes()).map_err(failed)
    }
}

fn encode(choice: &RulesChoice) -> String {
    let name: String = choice.name.escape_default().collect();
    let body = format!("{TITLE}\nversion 1\nname {name}\n\n{}", choice.text);
    let crc = crc32c::crc32c(body.as_bytes());
    format!("crc {crc:08x}\n{body}")
}

/// The choice in `bytes`.
fn decode(bytes: &[u8]) -> Option<RulesChoice> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (crc, body) = text.strip_prefix("crc ")?.split_once('\n')?;
    if u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
        return None;
    }
    let rest = body
        .strip_prefix(TITLE)?
        .strip_prefix("\nversion 1\nname ")?;
    let (name, text) = rest.split_once("\n\n")?;
    Some(RulesChoice {
        name: name.to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::sim::SimFs;

    fn choice() -> RulesChoice {
        RulesChoice {
            name: "a\nb".to_owned(),
            text: "x = 1\n\ny = 2\n".to_owned(),
        }
    }

    #[test]
    fn a_choice_reads_back_and_a_changed_byte_is_noticed() {
        let text = encode(&choice());
        let read = decode(text.as_bytes()).unwrap();
        assert_eq!((&read.name[..], &read.text), ("a\\nb", &choice().text));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            assert_eq!(decode(&changed), None, "byte {at}");
            assert_eq!(decode(&text.as_bytes()[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_choice_that_was_kept_outlives_a_power_loss_and_so_does_that_there_is_none() {
        let fs = SimFs::new(1);
        let dir = Path::new("/d");
        fs.shared().create_dir(dir).unwrap();
        fs.shared().sync_dir(Path::new("/")).unwrap();
        let keeper = |fs: &SimFs| InDirectory::new(fs.shared(), dir);
        assert_eq!(keeper(&fs).read(100).unwrap(), None);
        keeper(&fs).keep(Some(&choice())).unwrap();
        let after = fs.power_loss(2);
        let read = keeper(&after).read(100).unwrap().unwrap();
        assert_eq!(read.text, choice().text);
        keeper(&after).keep(None).unwrap();
        assert_eq!(keeper(&after.power_loss(3)).read(100).unwrap(), None);
        // Rules beyond the limit are a mistake.
        let long = RulesChoice {
            text: "x".repeat(9000),
            ..choice()
        };
        keeper(&fs).keep(Some(&long)).unwrap();
        assert!(keeper(&fs).read(100).is_err());
    }
}
