//! The process's own logging: what only one test of a process can set up.

use std::time::Duration;

use telemetry::{Error, FATAL, Format, Guard, Level, Options, Output};

#[test]
fn events_and_panics_reach_every_output_once() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("one.log"), dir.path().join("two.log")];
    let options = Options {
        level: Level::Info,
        format: Format::Json,
        outputs: paths.iter().cloned().map(Output::File).collect(),
        ..Options::default()
    };
    let guard: Guard = telemetry::init(&options).unwrap();
    assert!(matches!(telemetry::init(&options), Err(Error::AlreadySet)));

    tracing::info!(revision = 7, "ready to serve client requests");
    tracing::debug!("not this");
    let worker = std::thread::Builder::new().name("worker-0".to_owned());
    assert!(
        worker
            .spawn(|| panic!("out of luck"))
            .unwrap()
            .join()
            .is_err()
    );
    tracing::error!(target: FATAL, "the end");
    // It has waited for itself.
    assert!(guard.flush(Duration::ZERO));
    assert_eq!(guard.counters().dropped_lines(), 0);

    for path in &paths {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let levels: Vec<_> = lines
            .iter()
            .map(|line| line["level"].as_str().unwrap())
            .collect();
        assert_eq!(levels, ["info", "panic", "fatal"], "{text}");
        assert_eq!(lines[0]["revision"], 7);
        assert_eq!(lines[1]["msg"], "out of luck");
        assert_eq!(lines[1]["thread"], "worker-0");
        assert!(
            lines[1]["location"]
                .as_str()
                .unwrap()
                .contains("process.rs:")
        );
    }
}

#[test]
fn an_output_that_cannot_be_opened_is_named() {
    let path = std::path::PathBuf::from("/nonexistent/orlop.log");
    let options = Options {
        outputs: vec![Output::File(path)],
        ..Options::default()
    };
    let error = telemetry::init(&options).unwrap_err().to_string();
    assert!(
        error.contains("/nonexistent/orlop.log") && error.contains("--log-outputs"),
        "{error}"
    );
}
