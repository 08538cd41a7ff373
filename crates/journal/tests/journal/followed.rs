//! A log that follows another server's: its position, its role, its term.

use crate::support::*;
use files::sim::SimFs;
use journal::{Followed, NewDirectory, Next, OpenError, Options, Point, Proof, Role, check};
use std::path::Path;
use std::time::Duration;

fn keeping() -> Options {
    let own = options();
    Options {
        new: NewDirectory {
            role: Role::Keeper,
            ..own.new
        },
        ..own
    }
}

fn at(sequence: u64, proof: Proof) -> Followed {
    Followed {
        stream: u64::MAX,
        sequence,
        lsn: 3 * sequence,
        unix_ms: 1_700_000_000_000,
        proof,
    }
}

impl Server {
    fn follow(&mut self, key: &str, followed: Followed) {
        let (records, revision) = (vec![put(key, b"v")], self.store.revision);
        let committed = self
            .journal
            .commit_followed(&records, followed, || revision, || ());
        committed.unwrap();
        records.into_iter().for_each(|r| self.store.apply(r));
        self.store.followed = Some(followed);
    }
}

#[test]
fn the_position_is_that_of_the_last_frame_whatever_a_crash_cuts_off() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let (mut server, _) = Server::open_with(&fs, keeping()).unwrap();
        for n in 1..20 {
            server.follow(&format!("p{n}"), at(n, Proof::None));
        }
        let acknowledged = server.store.clone();
        // One more, on its way when the power fails.
        let revision = server.store.revision;
        fs.crash_after(seed % 4 + 1);
        let records = vec![put("p20", b"v")];
        let last = at(20, Proof::Stopped);
        let _ = server
            .journal
            .commit_followed(&records, last, || revision, || ());
        let after = fs.power_loss(seed);
        drop(server);
        let (server, _) = Server::open_with(&after, keeping()).unwrap();
        let has = server.store.records.len() as u64;
        let proof = if has == 20 {
            Proof::Stopped
        } else {
            Proof::None
        };
        assert!(server.store.records.starts_with(&acknowledged.records));
        assert_eq!(server.store.followed, Some(at(has, proof)), "seed {seed}");
    }
}

#[test]
fn a_position_needs_no_records_and_a_jump_is_replayed() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open_with(&fs, keeping()).unwrap();
    server.follow("p1", at(1, Proof::Waits));
    let revision = server.store.revision;
    let noted = at(1, Proof::None);
    server
        .journal
        .commit_followed(&[], noted, || revision, || ())
        .unwrap();
    server.journal.jump(revision, revision + 1000).unwrap();
    server.store.jumps.push((1, revision + 1000));
    server.store.revision = revision + 1000;
    server.store.followed = Some(noted);
    server.put("p2", b"after");
    let expected = server.store.clone();
    server.close().unwrap();
    let (server, _) = Server::open_with(&fs, keeping()).unwrap();
    assert_eq!(server.store, expected);
}

fn refusal(fs: &SimFs, options: Options) -> String {
    match Server::open_with(fs, options) {
        Err(error @ OpenError::Mismatch { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn each_role_opens_its_own_directory_and_the_term_stays() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open_with(&fs, keeping()).unwrap();
    assert_eq!(server.journal.identity().raft_term, 2);
    server.follow("p1", at(1, Proof::None));
    server.journal.set_identity(7, Role::Keeper).unwrap();
    drop(server);
    let text = refusal(&fs, options());
    assert!(text.contains("orlop promote"), "{text}");
    let report = check(fs.shared(), Path::new(DIR), None)
        .unwrap()
        .to_string();
    assert!(report.contains("a keeper's copy"), "{report}");

    let (mut server, report) = Server::open_with(&fs, keeping()).unwrap();
    assert_eq!(report.identity.raft_term, 7);
    server.journal.set_identity(8, Role::Server).unwrap();
    drop(server);
    let text = refusal(&fs, keeping());
    assert!(text.contains("holds a server's data"), "{text}");
    let (mut server, report) = Server::open_with(&fs, options()).unwrap();
    assert_eq!(report.identity.raft_term, 8);
    assert_eq!(server.store.records.len(), 1);

    server.journal.set_identity(8, Role::Replaced).unwrap();
    drop(server);
    for options in [options(), keeping()] {
        let text = refusal(&fs, options);
        assert!(text.contains("was replaced"), "{text}");
    }
}

#[test]
fn entries_are_counted_without_gaps_and_a_point_lies_between_two() {
    let fs = SimFs::new(1);
    let (mut server, _) = Server::open(&fs).unwrap();
    server.put("p0", b"before anybody follows");
    let (follower, ()) = server.journal.follow(1 << 20, || ());
    assert_eq!(follower.after(), 0);
    server.put("p1", b"");
    server.put("p2", b"");
    let point = server.journal.point(|| server.store.revision);
    let (Point { sequence, position }, revision) = point.unwrap();
    assert_eq!((sequence, revision), (2, 4));
    assert_eq!(position.lsn(), server.journal.last_lsn());
    let sequences = |journal: &journal::Follower| {
        let mut found = Vec::new();
        while let Next::Entry(entry) = journal.next(Duration::ZERO) {
            found.push(entry.sequence);
        }
        found
    };
    assert_eq!(sequences(&follower), [1, 2]);
    // What is ordered and not visible comes after its point.
    let revision = server.store.revision;
    let appended = server.journal.append(vec![put("p3", b"")], || revision);
    let appended = appended.unwrap();
    server.journal.settle().unwrap();
    assert!(server.journal.point(|| ()).is_none());
    let ordered = server.journal.order(appended, || revision).unwrap();
    let (point, ()) = ordered.point(|| ());
    assert_eq!((ordered.sequence(), point.sequence), (3, 2));
    let _ = ordered.release(|| ());
    // Closing the log tells who follows, also while others hold it.
    let writer = server.journal.volatile();
    let Server { journal, .. } = server;
    journal.close(revision + 1).unwrap();
    assert_eq!(sequences(&follower), [3]);
    assert!(matches!(follower.next(Duration::ZERO), Next::Closed));
    drop(writer);
}
