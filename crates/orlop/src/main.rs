//! The orlop command: an etcd v3 server for Kubernetes.
//!
//! `orlop serve` takes etcd's own flags; started under the name `etcd` it behaves as etcd
//! would. One file a subcommand.

mod admin;
mod bench;
mod certs;
mod check;
mod data_dir;
mod etcd_cluster;
mod export;
mod failure;
mod forecast;
mod forecast_generate;
mod forecast_load;
mod forecast_status;
mod import;
mod import_follow;
mod import_members;
mod import_source;
mod keeper;
mod log_flags;
mod profile;
mod promote;
mod proxy;
mod proxy_status;
mod rules;
mod serve;
mod shard;
mod snapshot;
mod snapshot_feed;
mod snapshot_restore;
mod snapshot_status;
mod status;
mod stop_signals;

use clap::{Parser, Subcommand};
use config::Personality;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

// Measured beside the system's: fewer page faults under churn of small values.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An etcd v3 server that gives each Kubernetes write the durability it needs.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the etcd v3 API; takes etcd's flags (see `orlop serve --help`).
    #[command(disable_help_flag = true)]
    Serve {
        /// etcd's flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Verify a data directory that no server uses, and say in plain words what is there.
    Check(check::Args),
    /// Make an authority and certificates, renew them, and check what others made.
    Certs(certs::Args),
    /// Say what a running server does: rules in force, rates, what a power loss would take.
    Status(status::Args),
    /// Show or change the storage profile of a running server.
    Profile(profile::Args),
    /// Look into snapshots of etcd and orlop, and restore them.
    Snapshot(snapshot::Args),
    /// Take a running etcd over, with its revisions, into a new data directory.
    Import(import::Args),
    /// Write a snapshot that etcd starts from.
    Export(export::Args),
    /// Rules that give each write its durability: check, explain and print them.
    Rules(rules::Args),
    /// Keep a copy of a server's data on this machine's disk, to be promoted when that is gone.
    Keeper(Box<keeper::Args>),
    /// Hold a server's newest writes in memory until they are on its disk, on another machine.
    Shard(Box<shard::Args>),
    /// Make a server's directory of a keeper's copy.
    Promote(promote::Args),
    /// Have every connection to an etcd cluster at the member that leads; any etcd, any client.
    Proxy(Box<proxy::Args>),
    /// Say how well each member of an etcd cluster would lead it, and have the best one lead.
    Forecast(Box<forecast::Args>),
    /// Start a Kubernetes control plane to play with, and hollow nodes.
    Playground(playground::cli::Args),
    /// Ends what a killed playground left; it starts this itself.
    #[command(name = playground::cli::GUARD_COMMAND, hide = true)]
    Guard,
    /// Measure an etcd v3 endpoint, or this server beside etcd.
    Bench(Box<bench::Args>),
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|n| n == "etcd") {
        return serve::run(Personality::Etcd, args);
    }
    // etcd's flags are Go's; they do not go through clap.
    let mut rest = std::env::args_os().skip(1);
    if rest.next().is_some_and(|a| a == "serve") {
        return serve::run(Personality::Orlop, rest);
    }
    match Cli::parse().command {
        Command::Serve { args } => serve::run(Personality::Orlop, args),
        Command::Check(args) => check::run(&args),
        Command::Certs(args) => certs::run(args),
        Command::Status(args) => status::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Rules(args) => rules::run(&args),
        Command::Keeper(args) => keeper::run(&args),
        Command::Shard(args) => shard::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Forecast(args) => forecast::run(&args),
        Command::Playground(args) => playground::cli::run(&args),
        Command::Guard => {
            playground::guard::run();
            ExitCode::SUCCESS
        }
        Command::Bench(args) => bench::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        Cli::command().debug_assert();
    }
}
