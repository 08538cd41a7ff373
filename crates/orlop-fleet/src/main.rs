//! The orlop-fleet command: functions near their users.
//!
//! One file a subcommand. A command of its own, so that the store's command keeps a dependency
//! tree without a Kubernetes client.

mod cluster;
mod explain;
mod latency;
// One text for both commands: how what runs logs, and how it ends.
#[path = "../../orlop/src/log_flags.rs"]
mod log_flags;
mod place;
mod router;
mod seika;
mod simulate;
#[path = "../../orlop/src/stop_signals.rs"]
mod stop_signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Places functions near their users.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say where the pods of a service are wanted, and why.
    Explain(explain::Args),
    /// Measure this node's round trips to the other nodes, and answer theirs.
    Latency(latency::Args),
    /// Decide on which nodes the pods of services are, and write it into their Seikas.
    Place(place::Args),
    /// Route requests to pods near by, through the routers of their nodes.
    Router(router::Args),
    /// Keep so many pods of a template on each node: the controller of the resource Seika.
    Seika(seika::Args),
    /// Simulate a scenario under several policies: what placement is worth there.
    Simulate(simulate::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Explain(args) => explain::run(&args),
        Command::Latency(args) => latency::run(&args),
        Command::Place(args) => place::run(&args),
        Command::Router(args) => router::run(&args),
        Command::Seika(args) => seika::run(args),
        Command::Simulate(args) => simulate::run(&args),
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
