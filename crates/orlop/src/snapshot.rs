//! `orlop snapshot status` and `orlop snapshot restore`.

use crate::{snapshot_restore, snapshot_status};
use std::process::ExitCode;

/// Arguments of `orlop snapshot`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Say what a snapshot of etcd or orlop holds: hash, revision, keys, size as etcdutl does.
    Status(snapshot_status::Args),
    /// Make a data directory from a snapshot, from a stopped etcd's data, or from an orlop
    /// directory that a disk or VM snapshot rolled back.
    Restore(snapshot_restore::Args),
}

/// Exit code 0: done; 1: refused or failed, and nothing is left of it.
pub(crate) fn run(args: &Args) -> ExitCode {
    let (name, result) = match &args.command {
        Command::Status(args) => ("status", snapshot_status::run(args)),
        Command::Restore(args) => ("restore", snapshot_restore::run(args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop snapshot {name}: {error}");
            ExitCode::FAILURE
        }
    }
}
