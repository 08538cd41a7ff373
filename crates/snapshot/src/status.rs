//! What `etcdutl snapshot status` prints.

use crate::error::Error;
use crate::file::Snapshot;
use crate::names::KEY;
use crate::revision;
use engine::tail;
use std::collections::HashSet;

/// A snapshot's status, as `etcdutl` counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// CRC32C over every bucket's name, keys and values.
    pub hash: u32,
    /// The last entry's revision.
    pub revision: i64,
    /// Keys that exist; a bump record counts as one.
    pub total_keys: usize,
    /// Bytes of the database, without the SHA-256.
    pub total_bytes: u64,
    /// `storageVersion`, empty before etcd 3.6.
    pub version: String,
}

impl Snapshot {
    /// Reads all of the file. Memory grows with the number of keys.
    ///
    /// # Errors
    /// [`Error::Content`] if an entry is not what etcd writes.
    pub fn status(&self) -> Result<Status, Error> {
        let mut names = Vec::new();
        let mut cursor = self.db.buckets().map_err(self.database())?;
        while let Some(entry) = cursor.next_entry().map_err(self.database())? {
            names.push(entry.key().to_vec());
        }
        let mut hash = crc32c::crc32c(b"");
        let mut last = 0;
        let mut keys: HashSet<Vec<u8>> = HashSet::new();
        for name in names {
            hash = crc32c::crc32c_append(hash, &name);
            self.each(&name, |key, value| {
                hash = crc32c::crc32c_append(hash, key);
                hash = crc32c::crc32c_append(hash, value);
                if name != KEY {
                    return Ok(());
                }
                let (revision, tombstone) =
                    revision::decode(key).ok_or("its key is not a revision")?;
                last = revision.main;
                let key = if value.is_empty() {
                    &[][..]
                } else {
                    tail::decode_kv(value).map_err(|error| error.to_string())?.0
                };
                if tombstone {
                    keys.remove(key);
                } else if !keys.contains(key) {
                    keys.insert(key.to_vec());
                }
                Ok(())
            })?;
        }
        Ok(Status {
            hash,
            revision: last,
            total_keys: keys.len(),
            total_bytes: self.bytes(),
            version: self.contents()?.storage_version.unwrap_or_default(),
        })
    }
}

/// Bytes as etcd's tools print them: `20 kB`, in steps of 1000.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_as_etcdutl_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20480, "20 kB"),
            (1_250_000, "1.3 MB"),
            (9_999_999, "10 MB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
