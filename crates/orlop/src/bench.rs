//! `orlop bench`: a store by itself, several members of one, or a store under a Kubernetes
//! cluster.

use clap::Subcommand;
use std::process::ExitCode;

/// Arguments of `orlop bench`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Args {
    #[command(subcommand)]
    cluster: Option<Cluster>,
    #[command(flatten)]
    store: loadgen::cli::Args,
}

#[derive(Subcommand)]
enum Cluster {
    /// Measure what users of a Kubernetes cluster see, by store.
    Kube(Box<loadgen::kube::Args>),
    /// Measure etcd members that are apart: called in turn, through the proxy, or by the leader.
    Members(Box<loadgen::members::Args>),
}

/// Runs the benchmark asked for.
pub(crate) fn run(args: &Args) -> ExitCode {
    match &args.cluster {
        Some(Cluster::Kube(args)) => loadgen::kube::run(args),
        Some(Cluster::Members(args)) => loadgen::members::run(args),
        None => loadgen::cli::run(&args.store),
    }
}
