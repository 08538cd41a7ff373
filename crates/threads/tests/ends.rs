//! What ends a process, and what does not: each case in a process of its own.
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;

const CASE: &str = "THREADS_TEST_CASE";
const SIGABRT: i32 = 6;

static LOCK: Mutex<()> = Mutex::new(());

/// Runs a case in this test's own program.
fn end_of(case: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "victim"]).env(CASE, case);
    child.output().unwrap().status
}

/// What the processes do; nothing as a test.
#[test]
fn victim() {
    let fail = || panic!("on purpose");
    match std::env::var(CASE).as_deref() {
        Ok("vital") => drop(threads::spawn_vital("victim", fail).unwrap().join()),
        Ok("job") => drop(threads::spawn_job("victim", fail, drop).unwrap().join()),
        Ok("critical job") => {
            let work = || {
                let _critical = threads::critical();
                panic!("on purpose");
            };
            drop(threads::spawn_job("victim", work, drop).unwrap().join());
        }
        Ok("contained") => {
            let body = move || drop(threads::contain(fail));
            drop(threads::spawn_vital("victim", body).unwrap().join());
        }
        Ok("contained and critical") => {
            let body = move || {
                let _critical = threads::critical();
                drop(threads::contain(fail));
            };
            drop(threads::spawn_vital("victim", body).unwrap().join());
        }
        Ok("before unwinding") => {
            let body = move || {
                // A lock that is released, and what it guards seen, would exit with success.
                struct Seen;
                impl Drop for Seen {
                    fn drop(&mut self) {
                        std::process::exit(0);
                    }
                }
                let _held = LOCK.lock();
                let _seen = Seen;
                fail();
            };
            drop(threads::spawn_vital("victim", body).unwrap().join());
        }
        _ => {}
    }
}

#[test]
fn a_panic_that_cannot_be_survived_ends_the_process_where_it_happens() {
    for case in [
        "vital",
        "critical job",
        "contained and critical",
        "before unwinding",
    ] {
        assert_eq!(end_of(case).signal(), Some(SIGABRT), "{case}");
    }
}

#[test]
fn a_panic_of_a_job_or_of_what_is_contained_does_not() {
    for case in ["job", "contained"] {
        assert!(end_of(case).success(), "{case}");
    }
}
