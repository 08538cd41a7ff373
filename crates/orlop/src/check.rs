//! `orlop check DATA_DIR`: offline verification.

use crate::data_dir::DataDir;
use files::real::RealFs;
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `orlop check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data_dir: DataDir,
}

/// Changes nothing. Exit code 0: a server can start from it; 1: it is damaged, or could not be checked.
pub(crate) fn run(args: &Args) -> ExitCode {
    let marker_dir = files::real::memory_dir();
    match journal::check(
        Arc::new(RealFs::new()),
        &args.data_dir.path(),
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
