//! Writes `docs/reference/metrics.md` from the table of series.

use std::{fs, io};

fn main() -> io::Result<()> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/metrics.md"
    );
    fs::write(path, metrics::reference_markdown())
}
