//! Damage to what was known to be on disk.

use super::{DIR, limits, options};
use bytes::Bytes;
use e2e::differential::rng::Rng;
use engine::Engine;
use engine::record::Record;
use files::sim::SimFs;
use journal::{Guards, Journal, OpenError};
use std::path::Path;

/// Damages the last commit but for its mark, and starts; whether the start was refused.
pub(crate) fn damage_is_noticed(seed: u64, mark: bool) -> Result<bool, String> {
    let fs = SimFs::new(seed);
    let mut random = Rng::new(seed);
    let guards = Guards {
        mark,
        ..Guards::default()
    };
    let open = |fs: &SimFs, engine: &mut Engine<u64>| {
        Journal::open(fs.shared(), Path::new(DIR), options(65_536, guards), engine)
    };
    let mut engine = Engine::<u64>::new(limits());
    let (mut journal, _) = open(&fs, &mut engine).map_err(|e| e.to_string())?;
    let commits = random.between(1, 6);
    for n in 0..commits {
        let key = Bytes::from(format!("k{n}"));
        let effect = engine::record::Effect::Put {
            key,
            value: Bytes::from_static(b"value"),
            lease: 0,
        };
        journal
            .commit(&[Record::Txn(vec![effect])], || 1 + n, || ())
            .map_err(|e| e.to_string())?;
    }
    journal.mark(|| 1 + commits).map_err(|e| e.to_string())?;
    // The mark reaches the disk in its own time; here it does.
    let fs = fs.kill(seed);
    let segments = fs.list().into_iter();
    let used = |path: &std::path::PathBuf| {
        let bytes = fs.contents(path).unwrap_or_default();
        let pages: Vec<usize> = bytes
            .chunks(4096)
            .enumerate()
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .map(|(n, _)| n)
            .collect();
        pages
    };
    let log = segments
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .max_by_key(|path| used(path).len())
        .ok_or("no segment")?;
    let pages = used(&log);
    let last_commit = pages[pages.len() - 2] * 4096;
    fs.flip_bit(
        &log,
        last_commit + 40 + random.below(20),
        random.below(8) as u8,
    )
    .map_err(|e| e.to_string())?;
    match open(&fs, &mut Engine::new(limits())) {
        Err(OpenError::Damaged(_)) => Ok(true),
        Err(error) => Err(format!("seed {seed}: {error}")),
        Ok(_) => Ok(false),
    }
}
