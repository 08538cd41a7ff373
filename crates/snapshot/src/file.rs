//! A snapshot file, or the database file of a stopped etcd, open for reading.

use crate::error::Error;
use crate::names::{KEY, META};
use aws_lc_rs::digest::{Context, SHA256};
use bbolt::{Bucket, Database, Entry};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Length of the SHA-256 behind the database.
const HASH_BYTES: u64 = 32;
/// etcd tells by this whether a file has a hash: pages are multiples of it.
const SECTOR_BYTES: u64 = 512;

/// A snapshot, opened. Nothing of it is in memory but its meta page.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    pub(crate) db: Database<File>,
    /// Kept for its lock, and to read the hash.
    file: File,
    bytes: u64,
    stated_hash: Option<[u8; HASH_BYTES as usize]>,
}

impl Snapshot {
    /// Opens a file that `etcdctl snapshot save` wrote, or an etcd's `member/snap/db`; locks
    /// it against an etcd that would begin to write it.
    ///
    /// # Errors
    /// If it is no etcd database, is cut off, or is in use by a running etcd.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io_error = |source| Error::Io {
            action: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        // Other errors: not every file system has locks, and a snapshot may well be read from
        // one without.
        if let Err(rustix::io::Errno::WOULDBLOCK) =
            flock(&file, FlockOperation::NonBlockingLockShared)
        {
            return Err(Error::InUse {
                path: path.to_owned(),
            });
        }
        let length = file.metadata().map_err(io_error)?.len();
        let (bytes, stated_hash) = match length % SECTOR_BYTES {
            HASH_BYTES => {
                let bytes = length - HASH_BYTES;
                let mut hash = [0; HASH_BYTES as usize];
                bbolt::ReadAt::read_exact_at(&file, &mut hash, bytes).map_err(io_error)?;
                (bytes, Some(hash))
            }
            _ => (length, None),
        };
        let database = |source| Error::Database {
            path: path.to_owned(),
            source,
        };
        let again = file.try_clone().map_err(io_error)?;
        let db = Database::open(again, bytes).map_err(database)?;
        if stated_hash.is_none() && length % SECTOR_BYTES != 0 {
            return Err(Error::Length {
                path: path.to_owned(),
                bytes: length,
            });
        }
        let snapshot = Snapshot {
            path: path.to_owned(),
            db,
            file,
            bytes,
            stated_hash,
        };
        for name in [KEY, META] {
            if snapshot.bucket(name)?.is_none() {
                return Err(snapshot.not_etcd(name)?);
            }
        }
        Ok(snapshot)
    }

    fn not_etcd(&self, missing: &[u8]) -> Result<Error, Error> {
        const SHOWN: usize = 5;
        let mut names = Vec::new();
        let mut cursor = self.db.buckets().map_err(self.database())?;
        while let Some(entry) = cursor.next_entry().map_err(self.database())? {
            if names.len() == SHOWN {
                names.push("...".to_owned());
                break;
            }
            names.push(format!("\"{}\"", entry.key().escape_ascii()));
        }
        Ok(Error::NotEtcd {
            path: self.path.clone(),
            missing: missing.escape_ascii().to_string(),
            found: if names.is_empty() {
                "it has no bucket at all".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            },
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it ends with a SHA-256: one that was saved does, a copied database does not.
    pub fn has_hash(&self) -> bool {
        self.stated_hash.is_some()
    }

    /// Bytes of the database's pages in use by the file, as `etcdutl` counts them.
    pub fn bytes(&self) -> u64 {
        self.db.meta().bytes()
    }

    /// Compares the SHA-256, if there is one, with the file.
    ///
    /// # Errors
    /// [`Error::Hash`] if they differ.
    pub fn verify_hash(&self) -> Result<(), Error> {
        let Some(stated) = self.stated_hash else {
            return Ok(());
        };
        let found = hash(&self.file, self.bytes).map_err(self.io("read"))?;
        if found == stated {
            return Ok(());
        }
        Err(Error::Hash {
            path: self.path.clone(),
            stated: hex(&stated),
            found: hex(&found),
            bytes: self.bytes,
        })
    }

    /// Walks all pages; every fault ends it. [`load`](Snapshot::load) does the same on its way.
    ///
    /// # Errors
    /// [`Error::Database`] with what is wrong and where.
    pub fn verify_pages(&self) -> Result<bbolt::Report, Error> {
        self.db.check().map_err(self.database())
    }

    /// A sentence if the file's newer meta page is damaged, so that an older state may be
    /// what is read.
    pub fn warning(&self) -> Option<String> {
        let error = self.db.damaged_meta()?;
        Some(format!(
            "one of the two meta pages is not valid ({error}); the other one was read, and what \
             it stands for may be older than the file"
        ))
    }

    pub(crate) fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, Error> {
        self.db.bucket(name).map_err(self.database())
    }

    /// Goes over a bucket in key order; one that is missing is empty.
    pub(crate) fn each(
        &self,
        name: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), Error> {
        let Some(bucket) = self.bucket(name)? else {
            return Ok(());
        };
        let mut cursor = self.db.cursor(&bucket, None).map_err(self.database())?;
        while let Some(entry) = cursor.next_entry().map_err(self.database())? {
            self.visit_entry(name, entry, &mut visit)?;
        }
        Ok(())
    }

    /// As [`each`](Snapshot::each), and verifies all pages of the file on the way.
    pub(crate) fn each_verified(
        &self,
        name: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), Error> {
        /// What ends the walk.
        enum Fault {
            Pages(bbolt::Error),
            Content(Error),
        }
        impl From<bbolt::Error> for Fault {
            fn from(error: bbolt::Error) -> Self {
                Fault::Pages(error)
            }
        }
        let walked = self.db.check_each(|bucket, entry| match bucket == name {
            true => self
                .visit_entry(name, entry, &mut visit)
                .map_err(Fault::Content),
            false => Ok(()),
        });
        match walked {
            Ok(_) => Ok(()),
            Err(Fault::Pages(error)) => Err(self.database()(error)),
            Err(Fault::Content(error)) => Err(error),
        }
    }

    fn visit_entry(
        &self,
        bucket: &[u8],
        entry: Entry<'_>,
        visit: &mut impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), Error> {
        // A bucket within a bucket, which etcd has none of, counts as no value.
        let value = if entry.is_bucket() {
            &[]
        } else {
            entry.value()
        };
        visit(entry.key(), value).map_err(|what| Error::Content {
            path: self.path.clone(),
            bucket: bucket.escape_ascii().to_string(),
            page: entry.page(),
            offset: entry.offset(),
            what,
        })
    }

    pub(crate) fn database(&self) -> impl Fn(bbolt::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Database {
            path: path.clone(),
            source,
        }
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

/// SHA-256 of the first `bytes` of a file.
fn hash(file: &File, bytes: u64) -> io::Result<[u8; HASH_BYTES as usize]> {
    const PIECE_BYTES: usize = 1 << 20;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let piece = usize::try_from(bytes - offset).map_or(PIECE_BYTES, |n| n.min(PIECE_BYTES));
        bbolt::ReadAt::read_exact_at(file, &mut buffer[..piece], offset)?;
        context.update(&buffer[..piece]);
        offset += piece as u64;
    }
    let mut out = [0; HASH_BYTES as usize];
    out.copy_from_slice(context.finish().as_ref());
    Ok(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
