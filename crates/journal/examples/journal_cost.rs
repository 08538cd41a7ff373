//! What the journal costs: `cargo run --release -p journal --example journal_cost [DIR]`.
//!
//! DIR should be on the disk in question (default: the current directory); it is used for
//! a temporary data directory. Prints the cost of encoding, of a commit, of a snapshot and
//! of a replay.

use bytes::Bytes;
use engine::record::{Effect, PutItem, Record, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use files::FileSystem;
use files::real::RealFs;
use journal::{Journal, NewDirectory, Options, Replay, SnapshotWriter};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Counter {
    revision: i64,
    records: u64,
    items: u64,
}

impl Replay for Counter {
    fn snapshot(&mut self, meta: SnapshotMeta) -> Result<(), String> {
        self.revision = meta.revision;
        Ok(())
    }

    fn item(&mut self, _: SnapshotItem) -> Result<(), String> {
        self.items += 1;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), String> {
        self.revision += i64::from(record.takes_revision());
        self.records += 1;
        Ok(())
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn jump(&mut self, revision: i64) -> Result<(), String> {
        self.revision = revision;
        Ok(())
    }
}

fn open(dir: &Path, no_fsync: bool) -> Result<(Journal, Counter), Box<dyn Error>> {
    let mut options = Options::new(NewDirectory {
        salt: 1,
        ..NewDirectory::default()
    });
    options.no_fsync = no_fsync;
    options.marker_dir = files::real::memory_dir();
    let mut counter = Counter {
        revision: 1,
        ..Counter::default()
    };
    let (journal, _) = Journal::open(Arc::new(RealFs::new()), dir, options, &mut counter)?;
    Ok((journal, counter))
}

/// Volatile writes, with a sync every 100 ms as a server would have.
fn volatile(
    journal: &mut Journal,
    records: &[Record],
    revision: &mut i64,
) -> Result<(), Box<dyn Error>> {
    journal.allow_volatile();
    journal.upkeep(|| *revision)?;
    let writer = journal.volatile();
    let within = Duration::from_millis(100);
    let mut times = Vec::new();
    for _ in 0..20_000 {
        let began = Instant::now();
        writer.write(records, within, || *revision, || ())?;
        times.push(began.elapsed().as_nanos() as u64);
        *revision += records.len() as i64;
        journal.upkeep(|| *revision)?;
    }
    times.sort_unstable();
    println!(
        "volatile write 1 x 1 KiB, marker {}: p50 {} ns, p99 {} ns",
        journal.volatile_status().marker.is_some(),
        percentile(&times, 0.5),
        percentile(&times, 0.99)
    );
    Ok(())
}

fn percentile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let dir = PathBuf::from(parent).join(format!("journal-cost-{}", std::process::id()));
    let result = measure(&dir);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure(dir: &Path) -> Result<(), Box<dyn Error>> {
    // Uncompressible, so that the snapshot's figures are honest.
    let mut noise = files::sim::Random::new(1);
    let batch: Vec<Record> = (0..100)
        .map(|n| {
            let value: Vec<u8> = (0..128)
                .flat_map(|_| noise.next_u64().to_le_bytes())
                .collect();
            let key = Bytes::from(format!("/registry/pods/default/pod-{n:08}"));
            Record::Txn(vec![Effect::Put {
                key,
                value: value.into(),
                lease: 0,
            }])
        })
        .collect();

    let began = Instant::now();
    let (mut journal, mut counter) = open(dir, false)?;
    println!("make a directory and open it: {:?}", began.elapsed());
    let allocator = journal.allocator();
    let ahead = std::thread::spawn(move || allocator.run(|_| ()));

    for (name, size, rounds) in [("1 x 1 KiB", 1, 2000), ("100 x 1 KiB", 100, 1000)] {
        let (mut total, mut sync, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let began = Instant::now();
            let (info, ()) = journal.commit(&batch[..size], || counter.revision, || ())?;
            let all = began.elapsed().as_micros() as u64;
            counter.revision += size as i64;
            total.push(all);
            sync.push(info.write_us + info.sync_us);
            rest.push(all.saturating_sub(info.write_us + info.sync_us));
        }
        for (what, mut values) in [
            ("all", total),
            ("write and fdatasync", sync),
            ("encoding and the rest", rest),
        ] {
            values.sort_unstable();
            println!(
                "commit {name}, {what}: p50 {} us, p99 {} us, max {} us",
                percentile(&values, 0.5),
                percentile(&values, 0.99),
                percentile(&values, 1.0)
            );
        }
    }
    volatile(&mut journal, &batch[..1], &mut counter.revision)?;
    journal.close(counter.revision)?;
    ahead
        .join()
        .map_err(|_| "the allocator's thread panicked")?;

    let (mut journal, mut counter) = open(dir, true)?;
    let allocator = journal.allocator();
    let ahead = std::thread::spawn(move || allocator.run(|_| ()));
    let began = Instant::now();
    for _ in 0..9000 {
        journal.commit(&batch, || counter.revision, || ())?;
        counter.revision += batch.len() as i64;
    }
    println!("900,000 x 1 KiB without fsync: {:?}", began.elapsed());

    let fs: Arc<dyn FileSystem> = Arc::new(RealFs::new());
    let at = journal.snapshot_position(|| ())?.0;
    journal.close(counter.revision)?;
    ahead
        .join()
        .map_err(|_| "the allocator's thread panicked")?;

    let began = Instant::now();
    let (journal, mut counter) = open(dir, false)?;
    let took = began.elapsed();
    println!("replay of {} records of 1 KiB: {took:?}", counter.records);

    counter.revision += 0;
    let began = Instant::now();
    let meta = SnapshotMeta {
        revision: counter.revision,
        compact_revision: -1,
    };
    let mut writer = SnapshotWriter::create(fs, dir, meta, at)?;
    let count = 200_000usize;
    for n in 0..count {
        let Record::Txn(effects) = &batch[n % 100] else {
            continue;
        };
        let Effect::Put { value, .. } = &effects[0] else {
            continue;
        };
        writer.push(&SnapshotItem::Key {
            key: Bytes::from(format!("/registry/pods/default/pod-{n:08}")),
            versions: vec![VersionItem {
                revision: Revision { main: 2, sub: 0 },
                put: Some(PutItem {
                    create_revision: 2,
                    version: 1,
                    lease: 0,
                    value: value.clone(),
                }),
            }],
        })?;
    }
    let info = writer.finish()?;
    println!(
        "snapshot of {count} x 1 KiB ({} MiB): {:?}",
        info.bytes >> 20,
        began.elapsed()
    );
    let began = Instant::now();
    journal.allocator().retire(at)?;
    println!("retire: {:?}", began.elapsed());
    drop(journal);
    let began = Instant::now();
    let (_, counter) = open(dir, false)?;
    println!(
        "load of a snapshot of {} items: {:?}",
        counter.items,
        began.elapsed()
    );
    Ok(())
}
