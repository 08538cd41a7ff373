//! Directories that a restore makes: whole, or refused.

use crate::support::*;
use engine::record::{PutItem, Revision, SnapshotItem, SnapshotMeta, VersionItem};
use files::sim::SimFs;
use journal::{OpenError, SnapshotInfo};
use std::path::Path;

const REVISION: i64 = 1_000_000_007;
const KEYS: usize = 300;

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        revision: REVISION,
        compact_revision: REVISION,
    }
}

fn item(n: usize) -> SnapshotItem {
    SnapshotItem::Key {
        key: format!("p{n:04}").into(),
        versions: vec![VersionItem {
            revision: Revision {
                main: 2 + n as i64,
                sub: 0,
            },
            put: Some(PutItem {
                create_revision: 2 + n as i64,
                version: 1,
                lease: 0,
                value: format!("value {n}").into(),
            }),
        }],
    }
}

fn seed(fs: &SimFs) -> Result<SnapshotInfo, OpenError> {
    journal::seed(fs.shared(), Path::new(DIR), options(), meta(), |out| {
        (0..KEYS).try_for_each(|n| out.push(&item(n)))
    })
}

#[test]
fn a_seeded_directory_opens_as_the_store_and_goes_on() {
    let fs = SimFs::new(1);
    let info = seed(&fs).unwrap();
    assert_eq!(info.items, KEYS as u64);
    let fs = fs.power_loss(2);
    let found = journal::check(fs.shared(), Path::new(DIR), None).unwrap();
    assert_eq!(found.snapshot_lsn, Some(0));
    assert!(
        found
            .to_string()
            .contains("snapshot from a restore: 300 items"),
        "{found}"
    );
    let (mut server, report) = Server::open(&fs).unwrap();
    assert!(!report.created && report.closed && report.warnings.is_empty());
    assert_eq!(server.store.revision, REVISION);
    assert_eq!(server.store.records.len(), KEYS);
    server.put("p", b"after");
    let store = server.store.clone();
    server.close().unwrap();
    let (server, _) = Server::open(&fs).unwrap();
    assert_eq!(server.store, store);
}

#[test]
fn a_lost_or_damaged_snapshot_is_not_an_empty_store() {
    let fs = SimFs::new(1);
    let path = seed(&fs).unwrap().path;
    let lost = fs.power_loss(2);
    lost.lose(&path).unwrap();
    let damaged = fs.power_loss(3);
    damaged.flip_bit(&path, 200, 3).unwrap();
    for fs in [lost, damaged] {
        let error = Server::open(&fs).map(drop).unwrap_err().to_string();
        assert!(error.contains(&REVISION.to_string()), "{error}");
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let fs = SimFs::new(1);
    seed(&fs).unwrap();
    let files = fs.list();
    let error = seed(&fs).unwrap_err().to_string();
    assert!(
        error.contains("/data") && error.contains("not empty"),
        "{error}"
    );
    assert_eq!(fs.list(), files);
}

#[test]
fn a_restore_that_was_cut_short_is_never_served() {
    let (mut whole, mut refused, mut absent) = (0, 0, 0);
    let steps = {
        let fs = SimFs::new(1);
        seed(&fs).unwrap();
        fs.steps()
    };
    for step in 0..=steps {
        let fs = SimFs::new(step);
        fs.crash_after(step);
        let done = seed(&fs).is_ok();
        let fs = fs.power_loss(step);
        match Server::open(&fs) {
            Ok((server, report)) if report.created => {
                assert!(!done);
                assert!(server.store.records.is_empty());
                absent += 1;
                // Nothing had been written then but the directory.
                let written = |p: &&std::path::PathBuf| p.ends_with("restoring");
                assert_eq!(fs.list().iter().filter(written).count(), 0);
            }
            Ok((server, _)) => {
                assert_eq!(server.store.records.len(), KEYS, "step {step}");
                assert_eq!(server.store.revision, REVISION);
                whole += 1;
            }
            Err(error) => {
                assert!(!done, "step {step}: {error}");
                assert!(error.to_string().contains("restore"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(whole > 0 && refused > 0 && absent > 0);
}
