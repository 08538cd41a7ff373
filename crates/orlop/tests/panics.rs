//! What a panic on each kind of thread comes to.
//!
//! A thread without which the server would lie ends the process, with the panic in the log; a
//! job or a call fails alone, and the next one works. The panics are asked for at places in the
//! code that only a debug build has.
#![allow(clippy::unwrap_used)] // a test
#![cfg(debug_assertions)]

mod running;

use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use running::Running;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const SIGABRT: i32 = 6;

/// Has the next thread that comes by panic there.
fn panic_at(dir: &Path, place: &str) {
    std::fs::create_dir_all(dir.join("panics")).unwrap();
    std::fs::write(dir.join("panics").join(place), b"").unwrap();
}

fn panicked(dir: &Path, place: &str) -> bool {
    !dir.join("panics").join(place).exists()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks a server over a connection of its own.
fn ask<T>(running: &Running, question: impl AsyncFnOnce(Channel) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
        let endpoint = endpoint.timeout(Duration::from_secs(20));
        question(endpoint.connect().await.unwrap()).await
    })
}

fn put(running: &Running, key: &str) -> Result<(), tonic::Status> {
    ask(running, async |channel| {
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        KvClient::new(channel).put(put).await.map(drop)
    })
}

fn count(running: &Running) -> i64 {
    ask(running, async |channel| {
        let all = pb::RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            ..Default::default()
        };
        let answer = KvClient::new(channel).range(all).await.unwrap();
        answer.into_inner().count
    })
}

fn defragment(running: &Running) -> Result<(), tonic::Status> {
    ask(running, async |channel| {
        let mut client = MaintenanceClient::new(channel);
        let request = pb::DefragmentRequest::default();
        client.defragment(request).await.map(drop)
    })
}

/// The bytes of a snapshot, or how its stream ended.
fn snapshot(running: &Running) -> Result<usize, tonic::Status> {
    ask(running, async |channel| {
        let mut client = MaintenanceClient::new(channel);
        let request = pb::SnapshotRequest::default();
        let mut stream = client.snapshot(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(piece) = stream.message().await? {
            bytes += piece.blob.len();
        }
        Ok(bytes)
    })
}

#[test]
fn a_vital_thread_that_dies_at_once_ends_the_process() {
    let vital = [
        "allocator",
        "volatile",
        "committer",
        "upkeep",
        "scheduled",
        "wire-accept",
        "wire-0",
    ];
    for thread in vital {
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("saved");
        std::fs::create_dir(&saved).unwrap();
        panic_at(dir.path(), thread);
        let saved = format!("--snapshot-dir={}", saved.display());
        let (status, log) = Running::fails_to_start(dir.path(), &[&saved]);
        assert_eq!(status.signal(), Some(SIGABRT), "{thread}: {status}\n{log}");
        let said = log.contains("the process ends, so that nothing half done is served");
        let why = log.contains(&format!("asked for at {thread}"));
        assert!(said && why, "{thread}: {log}");
    }
}

#[test]
fn a_vital_thread_that_dies_later_ends_the_process_and_nothing_is_lost() {
    // At work, or with the engine's lock and a batch half way.
    for place in ["committer", "upkeep", "publish", "submit"] {
        let dir = tempfile::tempdir().unwrap();
        let mut running = Running::start(dir.path(), &[]);
        put(&running, "before").unwrap();
        panic_at(dir.path(), place);
        // Whatever it is told, it is not that this is done.
        let unanswered = put(&running, "after");
        let status = running.ended();
        assert_eq!(status.signal(), Some(SIGABRT), "{place}: {}", running.log());
        assert!(running.log().contains(&format!("asked for at {place}")));
        let running = Running::start(dir.path(), &[]);
        let after = count(&running);
        assert!(after == 2 || after == 1 && unanswered.is_err(), "{place}");
    }
}

#[test]
fn the_volatile_writers_end_the_process_too() {
    for place in ["volatile", "publish"] {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules");
        let text =
            "[[rule]]\nname = \"events\"\nprefix = \"/events/\"\ndurability = \"volatile\"\n";
        std::fs::write(&rules, text).unwrap();
        let rules = format!("--rules={}", rules.display());
        let mut running = Running::start(dir.path(), &[&rules]);
        put(&running, "/events/a").unwrap();
        panic_at(dir.path(), place);
        let _ = put(&running, "/events/b");
        if place == "volatile" {
            // A worker may have written it: the thread comes by when it is told to stop.
            running.signal(&["TERM"]);
        }
        let status = running.ended();
        assert_eq!(status.signal(), Some(SIGABRT), "{place}: {}", running.log());
    }
}

#[test]
fn a_handler_that_panics_fails_its_call_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &[]);
    panic_at(dir.path(), "call");
    let failed = put(&running, "a").unwrap_err();
    // Not a code that clients repeat a write on.
    assert_eq!(failed.code(), Code::Internal);
    assert!(failed.message().contains("asked for at call"), "{failed}");
    put(&running, "b").unwrap();
    assert_eq!(count(&running), 1);
    assert!(running.log().contains("asked for at call"));
}

#[test]
fn a_snapshot_of_the_journal_that_panics_is_an_error_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &[]);
    put(&running, "a").unwrap();
    panic_at(dir.path(), "snapshot");
    let failed = defragment(&running).unwrap_err();
    assert!(
        failed.message().contains("asked for at snapshot"),
        "{failed}"
    );
    defragment(&running).unwrap();
}

#[test]
fn a_snapshot_that_panics_does_not_look_like_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &[]);
    put(&running, "a").unwrap();
    panic_at(dir.path(), "send-snapshot");
    assert_eq!(snapshot(&running).unwrap_err().code(), Code::Internal);
    assert!(snapshot(&running).unwrap() > 0);
}

#[test]
fn a_hash_that_panics_is_made_again_and_the_compaction_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &[]);
    for _ in 0..10 {
        put(&running, "a").unwrap();
    }
    panic_at(dir.path(), "hash");
    // It waits until the compaction is through.
    ask(&running, async |channel| {
        let compact = pb::CompactionRequest {
            revision: 9,
            physical: true,
        };
        KvClient::new(channel).compact(compact).await.unwrap();
    });
    assert!(panicked(dir.path(), "hash"));
    assert!(
        running.log().contains("failed to hash"),
        "{}",
        running.log()
    );
}

#[test]
fn a_scheduled_snapshot_that_panics_has_failed_and_the_next_one_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    std::fs::create_dir(&saved).unwrap();

    panic_at(dir.path(), "save");
    let flag = format!("--snapshot-dir={}", saved.display());
    let flags = [&flag[..], "--snapshot-interval=1s"];
    let running = Running::start(dir.path(), &flags);
    until("no snapshot", || {
        std::fs::read_dir(&saved).unwrap().count() > 0
    });
    let log = running.log();
    assert!(log.contains("failed to save a scheduled snapshot"), "{log}");
    assert!(log.contains("asked for at save"), "{log}");
}
