//! Shorthands for reading configurations in tests.

#![allow(dead_code, reason = "every test file uses some of them")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail the test"
)]

use std::ffi::OsString;
use std::io::Write as _;

use config::{Config, Error, Level, Parsed, Personality, Run};

/// Reads a command line and an environment as `orlop serve`.
pub(crate) fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Parsed, Error> {
    parse_as(Personality::Orlop, args, env)
}

pub(crate) fn parse_as(
    personality: Personality,
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<Parsed, Error> {
    Config::from_args(
        personality,
        args.iter().map(OsString::from),
        env.iter().map(|(name, value)| (name.into(), value.into())),
    )
}

/// Reads a command line that is expected to be fine.
pub(crate) fn run(args: &[&str]) -> Run {
    run_with(args, &[])
}

pub(crate) fn run_with(args: &[&str], env: &[(&str, &str)]) -> Run {
    match parse(args, env) {
        Ok(Parsed::Run(run)) => *run,
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

/// The text of the error that a command line is expected to give.
pub(crate) fn error(args: &[&str]) -> String {
    match parse(args, &[]) {
        Err(error) => error.to_string(),
        Ok(parsed) => panic!("{args:?}: {parsed:?}"),
    }
}

/// Reads a configuration file with this text.
pub(crate) fn parse_file(yaml: &str) -> Result<Parsed, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    parse(&["--config-file", file.path().to_str().unwrap()], &[])
}

pub(crate) fn run_file(yaml: &str) -> Run {
    match parse_file(yaml) {
        Ok(Parsed::Run(run)) => *run,
        other => panic!("{yaml}: {other:?}"),
    }
}

/// The end of a file's error, behind its path.
pub(crate) fn file_error(yaml: &str) -> String {
    match parse_file(yaml) {
        Err(error) => error.to_string(),
        Ok(parsed) => panic!("{yaml}: {parsed:?}"),
    }
}

/// The warnings of a run: message and fields.
pub(crate) fn warnings(run: &Run) -> Vec<String> {
    run.notices
        .iter()
        .filter(|notice| notice.level == Level::Warn)
        .map(|notice| {
            let mut line = notice.message.clone();
            for (key, value) in &notice.fields {
                line.push_str(&format!(" {key}={value}"));
            }
            line
        })
        .collect()
}
