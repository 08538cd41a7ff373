//! What a keeper refuses, and what it does on a full disk.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use bytes::Bytes;
use copies::message::{Batch, Entry, Welcome};
use engine::record::{Effect, Record};
use engine::{Engine, Limits};
use files::sim::SimFs;
use journal::{CommitError, Lane, Position, Proof, SnapshotEncoder};
use keeper::{Error, Guards, Keeper, Options, Request, promote};
use std::path::Path;

const DIR: &str = "/copy";

fn options(guards: Guards) -> Options {
    Options {
        name: "b".to_owned(),
        salt: 5,
        segment_bytes: 64 << 10,
        guards,
    }
}

fn open(fs: &SimFs) -> Keeper {
    Keeper::open(fs.shared(), Path::new(DIR), options(Guards::default())).unwrap()
}

fn put(key: &str) -> Record {
    Record::Txn(vec![Effect::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from_static(&[7; 100]),
        lease: 0,
    }])
}

fn welcome() -> Welcome {
    Welcome {
        version: copies::VERSION,
        cluster_id: 0xc,
        member_id: 1,
        name: "a".to_owned(),
        raft_term: 2,
        stream: 9,
        after: 3,
        snapshot: true,
        revision: 11,
    }
}

/// A store of ten writes, at revision 11.
fn snapshot() -> Vec<u8> {
    let mut store: Engine<()> = Engine::new(Limits::default());
    for n in 0..10 {
        store.apply(put(&format!("k{n}")));
    }
    let (mut cursor, _) = store.snapshot_open();
    let mut encoder = SnapshotEncoder::new(Vec::new(), cursor.meta, Position::default()).unwrap();
    let mut keys = Vec::new();
    while !store.snapshot_step(&mut cursor, 100, &mut keys) {}
    for key in keys {
        encoder.push(&key.into_item()).unwrap();
    }
    encoder.finish().unwrap()
}

fn batch(first: u64, revision_before: i64) -> Batch {
    let entry =
        journal::Entry::for_tests(first, first, revision_before, Lane::Durable, vec![put("x")]);
    Batch {
        first,
        entries: vec![Entry::of(&entry)],
        unix_ms: 4,
        stream: 9,
    }
}

/// A keeper that has the snapshot.
fn joined(fs: &SimFs) -> Keeper {
    let mut keeper = open(fs);
    keeper.welcome(&welcome()).unwrap();
    keeper.snapshot(&welcome(), &snapshot()[..]).unwrap();
    let ack = keeper.ack().unwrap();
    assert_eq!((ack.stream, ack.synced, ack.ended), (9, 3, false));
    keeper
}

#[test]
fn only_its_own_server_is_followed_and_no_earlier_one() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    let again = |change: fn(&mut Welcome)| {
        let mut again = Welcome {
            snapshot: false,
            ..welcome()
        };
        change(&mut again);
        again
    };
    let foreign = again(|w| w.cluster_id = 0xd);
    let refused = keeper.welcome(&foreign).unwrap_err();
    assert!(matches!(refused, Error::ForeignCluster { .. }) && refused.is_final());
    let newer = again(|w| w.version = 99);
    assert!(matches!(
        keeper.welcome(&newer),
        Err(Error::Version { found: 99 })
    ));
    // A server that took over is followed, and from then on the one before is not.
    keeper.welcome(&again(|w| w.raft_term = 3)).unwrap();
    drop(keeper);
    let mut keeper = open(&fs.power_loss(2));
    assert_eq!(keeper.hello().raft_term, 3);
    let old = again(|_| ());
    assert!(matches!(
        keeper.welcome(&old),
        Err(Error::OldServer { server: 2, seen: 3 })
    ));
    assert!(keeper.ack().is_none());
}

/// The guard is what does it.
#[test]
fn without_the_term_an_old_server_would_be_followed() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    let newer = Welcome {
        raft_term: 3,
        snapshot: false,
        ..welcome()
    };
    keeper.welcome(&newer).unwrap();
    drop(keeper);
    let guards = Guards {
        term: false,
        ..Guards::default()
    };
    let mut keeper = Keeper::open(fs.shared(), Path::new(DIR), options(guards)).unwrap();
    let old = Welcome {
        snapshot: false,
        ..welcome()
    };
    keeper.welcome(&old).unwrap();
}

#[test]
fn what_it_has_is_never_thrown_away_for_an_older_state() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    let older = Welcome {
        stream: 10,
        revision: 10,
        ..welcome()
    };
    assert!(matches!(
        keeper.welcome(&older),
        Err(Error::Ahead {
            own: 11,
            server: 10
        })
    ));
    drop(keeper);
    assert_eq!(open(&fs).standing().revision, 11);
}

#[test]
fn entries_come_once_without_gaps_and_where_they_belong() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    assert!(matches!(
        keeper.batch(&batch(5, 11)),
        Err(Error::Gap {
            first: 5,
            expected: 4
        })
    ));
    assert!(matches!(
        keeper.batch(&batch(4, 12)),
        Err(Error::Diverged { .. })
    ));
    keeper.batch(&batch(4, 11)).unwrap();
    // It comes twice.
    keeper.batch(&batch(4, 11)).unwrap();
    assert_eq!(keeper.ack().unwrap().synced, 3);
    assert!(keeper.commit().unwrap());
    assert_eq!(keeper.ack().unwrap().synced, 4);
    assert_eq!(keeper.standing().revision, 12);
    let other = Batch {
        stream: 10,
        ..batch(5, 12)
    };
    assert!(keeper.batch(&other).is_err());
}

#[test]
fn a_full_disk_stops_it_and_it_goes_on_where_it_stood() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    fs.set_capacity(Some(fs.used()));
    let mut sequence = 3;
    let full = loop {
        sequence += 1;
        keeper.batch(&batch(sequence, sequence as i64 + 7)).unwrap();
        if let Err(error) = keeper.commit() {
            break error;
        }
        assert!(sequence < 10_000);
    };
    assert!(matches!(full, Error::Commit(CommitError::NoSpace { .. })) && !full.is_final());
    let at = keeper.standing().followed.unwrap();
    assert_eq!((at.sequence, at.proof), (sequence - 1, Proof::None));
    fs.set_capacity(None);
    // As after a new connection.
    let again = Welcome {
        snapshot: false,
        after: at.sequence,
        ..welcome()
    };
    keeper.welcome(&again).unwrap();
    keeper.batch(&batch(sequence, sequence as i64 + 7)).unwrap();
    keeper.commit().unwrap();
    assert_eq!(keeper.ack().unwrap().synced, sequence);
}

#[test]
fn a_promotion_asks_for_what_it_assumes() {
    let fs = SimFs::new(1);
    let request = |gone| Request {
        old_server_is_gone: gone,
        old_data_dir: None,
        marker_dir: None,
        jump_by: 1000,
    };
    let run = |gone| {
        let options = options(Guards::default());
        promote(fs.shared(), Path::new(DIR), options, &request(gone))
    };
    let text = |result: Result<_, Error>| match result {
        Ok::<keeper::Promotion, _>(_) => panic!("promoted"),
        Err(error) => error.to_string(),
    };
    assert!(text(run(true)).contains("holds no copy"));
    let mut keeper = open(&fs);
    keeper.welcome(&welcome()).unwrap();
    let half = &snapshot()[..100];
    assert!(keeper.snapshot(&welcome(), half).is_err());
    drop(keeper);
    assert!(text(run(true)).contains("no whole copy yet"));
    drop(joined(&fs));
    assert!(text(run(false)).contains("--old-server-is-gone"));
    let promotion = run(true).unwrap();
    assert_eq!((promotion.exact, promotion.jumped_to), (None, Some(1011)));
    assert_eq!(promotion.raft_term, 3);
    // It is a server's now.
    assert!(text(run(true)).contains("holds a server's data"));
}

/// A checkpoint or a backup that was begun is of the copy that there was, whatever comes meanwhile.
#[test]
fn a_snapshot_of_the_servers_takes_nothing_from_who_reads_the_copy() {
    let fs = SimFs::new(1);
    let mut keeper = joined(&fs);
    let store = keeper.store().unwrap();
    let (mut cursor, head) = store.lock().export_open();
    let checkpoint = keeper.checkpoint().unwrap().unwrap();

    let again = Welcome {
        stream: 10,
        ..welcome()
    };
    keeper.welcome(&again).unwrap();
    keeper.snapshot(&again, &snapshot()[..]).unwrap();

    while !store.lock().versions_step(&mut cursor, 1) {}
    assert_eq!(head.revision, 11);
    assert_eq!(cursor.finish(&mut || ()).len(), 10);
    assert_eq!(checkpoint.write(|| ()).unwrap().items, 10);
    assert_eq!(keeper.standing().revision, 11);
}
