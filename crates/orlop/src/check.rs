//! `orlop check DATA_DIR`: offline verification.

use files::real::RealFs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `orlop check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The data directory. Nothing in it is changed.
    data_dir: PathBuf,
}

/// Exit code 0: a server can start from it; 1: it is damaged, or could not be checked.
pub(crate) fn run(args: &Args) -> ExitCode {
    let marker_dir = files::real::memory_dir();
    match journal::check(
        Arc::new(RealFs::new()),
        &args.data_dir,
        marker_dir.as_deref(),
    ) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orlop check: {error}");
            ExitCode::FAILURE
        }
    }
}
