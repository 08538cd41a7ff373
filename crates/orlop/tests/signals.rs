//! How `orlop serve` ends when it is told to.
#![allow(clippy::unwrap_used)] // a test

mod running;

use running::Running;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn signals_at_once_are_one_and_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &["--fault-sync-delay=100ms"]);
    running.signal(&["INT", "TERM", "INT"]);
    let status = running.ended();
    assert_eq!(status.code(), Some(0), "{}", running.log());
    let found = running.check();
    assert!(found.contains("the last process closed the log"), "{found}");
}

#[test]
fn a_hangup_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &[]);
    running.signal(&["HUP"]);
    let begun = Instant::now();
    while !running.log().contains("received SIGHUP") {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{}",
            running.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    TcpStream::connect(&running.address).unwrap();
    running.signal(&["TERM", "HUP"]);
    assert_eq!(running.ended().code(), Some(0), "{}", running.log());
    let found = running.check();
    assert!(found.contains("the last process closed the log"), "{found}");
}

#[test]
fn a_later_signal_does_not_wait_for_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &["--fault-sync-delay=400ms"]);
    // A client that does not answer keeps the end waiting for a while.
    let mut client = TcpStream::connect(&running.address).unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    client.read_exact(&mut [0; 9]).unwrap();
    running.signal(&["TERM"]);
    std::thread::sleep(Duration::from_millis(1300));
    running.signal(&["TERM"]);
    let status = running.ended();
    assert_eq!(status.code(), Some(1), "{}", running.log());
    assert!(running.log().contains("received another signal"));
    let found = running.check();
    assert!(found.contains("did not close the log"), "{found}");
}
