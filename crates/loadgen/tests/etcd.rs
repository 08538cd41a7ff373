//! Every workload against a real etcd, as `orlop bench` would run it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use loadgen::{Interrupt, Load, Plan, Program, Report, Span, Workload, against, endpoint};
use std::path::PathBuf;
use std::time::Duration;

/// etcd as `e2e/build-bins etcd` built it.
fn etcd() -> PathBuf {
    match playground::binaries("etcd") {
        Ok(dir) => dir.join("etcd"),
        Err(error) => panic!("{error}"),
    }
}

fn program(name: &str) -> Program {
    let after = vec!["--unsafe-no-fsync".into()];
    Program {
        name: name.into(),
        path: etcd(),
        before: Vec::new(),
        after,
    }
}

fn load(workload: Workload) -> Load {
    Load {
        workload,
        connections: 3,
        in_flight: 9,
        client_threads: 2,
        keys: 50,
        key_bytes: 32,
        value_bytes: 256,
        watchers: 7,
        watch_rate: 0,
    }
}

fn plan(loads: Vec<Load>) -> Plan {
    let span = Span {
        warmup: Duration::from_millis(50),
        duration: Duration::from_millis(500),
        requests: None,
    };
    Plan {
        loads,
        span,
        rounds: 2,
    }
}

fn run(programs: &[Program], plan: &Plan) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    let mut progress = |line: &str| lines.push(line.to_owned());
    let report = against(
        programs,
        dir.path(),
        plan,
        &Interrupt::default(),
        &mut progress,
    )
    .unwrap();
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "data was left behind"
    );
    assert!(lines.len() >= report.rows.len());
    report
}

#[test]
fn two_servers_in_turn_give_rows_and_ratios() {
    let plan = plan(Workload::ALL.map(load).into());
    let report = run(&[program("one"), program("two")], &plan);
    let order: Vec<(usize, &str)> = report
        .rows
        .iter()
        .map(|row| (row.round, row.server.as_str()))
        .collect();
    let expected = [(1, "one"), (1, "two"), (2, "one"), (2, "two")];
    assert_eq!(order, expected.map(|of| [of; 4]).concat());
    for row in &report.rows {
        let outcome = &row.outcome;
        assert!(outcome.operations > 10, "{row}");
        assert!(
            outcome.latency.p50_us > 0.0 && outcome.latency.max_us < 5e6,
            "{row}"
        );
        assert!(outcome.latency.p50_us <= outcome.latency.p999_us, "{row}");
        assert!(outcome.server.unwrap().memory_bytes > 1 << 20, "{row}");
    }
    assert_eq!(report.versions["one"], "3.7.3");
    assert_eq!(report.ratios().len(), 4);
}

#[test]
fn a_paced_watch_delivers_what_was_put() {
    let paced = Load {
        watch_rate: 100,
        ..load(Workload::Watch)
    };
    let mut plan = plan(vec![paced]);
    plan.rounds = 1;
    plan.span.duration = Duration::from_secs(2);
    let report = run(&[program("one")], &plan);
    let outcome = &report.rows[0].outcome;
    // 100 puts a second, 7 watchers; a busy machine may be late, never early.
    assert!(
        (700..=1450).contains(&outcome.operations),
        "{}",
        report.rows[0]
    );
}

#[test]
fn a_span_by_requests_ends_when_they_are_done() {
    let mut plan = plan(vec![load(Workload::Range)]);
    plan.rounds = 1;
    plan.span.requests = Some(200);
    plan.span.duration = Duration::from_secs(3600);
    let report = run(&[program("one")], &plan);
    assert!(report.rows[0].outcome.operations >= 200);
}

#[test]
fn an_endpoint_where_nothing_listens_is_an_error_that_says_so() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoints = [format!("127.0.0.1:{port}")];
    let plan = plan(vec![load(Workload::Put)]);
    let error = endpoint(&endpoints, None, &plan, &Interrupt::default(), &mut |_| ());
    let text = error.err().unwrap().to_string();
    assert!(text.contains(&endpoints[0]), "{text}");
}

#[test]
fn an_interrupt_stops_the_server_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    let mut plan = plan(vec![load(Workload::Put)]);
    plan.span.duration = Duration::from_secs(600);
    let raiser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        raised.raise();
    });
    let result = against(
        &[program("one")],
        dir.path(),
        &plan,
        &interrupt,
        &mut |_| (),
    );
    assert!(matches!(result, Err(loadgen::Error::Interrupted)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    raiser.join().unwrap();
}
