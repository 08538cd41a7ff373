//! The disk under a comparison: what one small durable write costs without any server.

use crate::error::Error;
use crate::histogram::{Histogram, Latency};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const WRITES: usize = 200;
const WRITE_BYTES: usize = 1024;
/// File system types that keep nothing: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Appends 1 KiB and syncs, 200 times, to a file in `dir` that vanishes.
pub(crate) fn disk(dir: &Path) -> Result<Latency, Error> {
    let mut file = tempfile::tempfile_in(dir).map_err(Error::file(dir))?;
    let mut histogram = Histogram::new();
    for _ in 0..WRITES {
        let start = Instant::now();
        file.write_all(&[7; WRITE_BYTES])
            .map_err(Error::file(dir))?;
        file.sync_data().map_err(Error::file(dir))?;
        histogram.record(start.elapsed());
    }
    Ok(histogram.latency())
}

/// Whether `dir` is in memory, where a sync costs nothing.
pub(crate) fn is_in_memory(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| IN_MEMORY.contains(&fs.f_type))
}
