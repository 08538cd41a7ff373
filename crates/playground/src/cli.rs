//! The arguments of `orlop playground`, and its run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cluster::{Cluster, Options, Programs, etcd_program};
use crate::guard::Guard;
use crate::pki::private_dir;
use crate::store::{Kind, Setup};
use crate::{Result, fail};

/// How often the programs are looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Which store to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StoreName {
    /// This program.
    Orlop,
    /// The real etcd, to compare.
    Etcd,
}

/// Arguments of `orlop playground`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hollow nodes: they run pods without containers.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=5000))]
    nodes: u32,

    /// What keeps the objects.
    #[arg(long, value_enum, default_value = "orlop")]
    store: StoreName,

    /// Storage profile, passed to `orlop serve`.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Directory of kube-apiserver, kube-controller-manager and kube-scheduler (and kubectl
    /// and kwok, if they are there); otherwise pinned ones, built once with Go and cached.
    #[arg(long, value_name = "DIR")]
    kube_bin: Option<PathBuf>,

    /// etcd's executable, for `--store etcd`; otherwise the pinned one.
    #[arg(long, value_name = "FILE")]
    etcd_bin: Option<PathBuf>,

    /// Where the directory with data and logs is made; it is removed at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Leave that directory behind.
    #[arg(long)]
    keep: bool,

    /// Port of the apiserver; 0 for a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,

    /// Port of the store's client API; 0 for a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    store_port: u16,

    /// One more flag for the store; may be repeated.
    #[arg(long = "store-arg", value_name = "FLAG", allow_hyphen_values = true)]
    store_args: Vec<String>,

    /// Build or find the programs, and end.
    #[arg(long)]
    build_only: bool,
}

/// Runs a playground until a signal ends it.
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop playground: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The guard of this program: itself, started with a word that only it uses.
///
/// # Errors
/// If it cannot be started.
pub fn start_guard() -> Result<Guard> {
    Guard::start(Command::new(std::env::current_exe()?).arg(GUARD_COMMAND))
}

/// The subcommand under which this program is a guard.
pub const GUARD_COMMAND: &str = "guard-of-playground";

fn try_run(args: &Args) -> Result<()> {
    if args.store == StoreName::Etcd && args.profile.is_some() {
        return fail("--profile is for orlop's store; etcd has none");
    }
    // Building can take minutes. No signal is caught yet: one ends this process, and the
    // guard then ends the compiler.
    let mut guard = start_guard()?;
    let options = args.options()?;
    if args.build_only {
        eprintln!("everything is built");
        return Ok(());
    }
    let mut dir = args.new_dir()?;
    dir.disable_cleanup(args.keep);
    if !args.keep {
        guard.remove_at_end(dir.path())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        eprintln!("starting Kubernetes on {} ...", args.store_name());
        let began = Instant::now();
        let kubectl = options.programs.kubectl.clone();
        let mut cluster = tokio::select! {
            cluster = Cluster::start(options, dir) => cluster?,
            // What was started is killed and removed with the future.
            () = signals.any() => return Ok(()),
        };
        hello(args, &cluster, kubectl.as_deref(), began.elapsed()).await?;
        loop {
            tokio::select! {
                () = signals.any() => break,
                () = tokio::time::sleep(LOOK) => cluster.check_alive()?,
            }
        }
        eprintln!("stopping ...");
        cluster.stop()
    })
}

/// Ctrl-C and its relatives.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

impl Args {
    fn store_name(&self) -> &'static str {
        match self.store {
            StoreName::Orlop => "orlop",
            StoreName::Etcd => "etcd",
        }
    }

    fn options(&self) -> Result<Options> {
        let mut say = |line: &str| eprintln!("{line}");
        let programs = Programs::find(self.kube_bin.as_deref(), self.nodes, &mut say)?;
        let mut store = match self.store {
            StoreName::Orlop => Setup::new(Kind::Orlop, std::env::current_exe()?),
            StoreName::Etcd => {
                let program = etcd_program(self.etcd_bin.as_deref(), &mut say)?;
                Setup::new(Kind::Etcd, program)
            }
        };
        if let Some(profile) = &self.profile {
            store.flags.push(format!("--profile={profile}"));
        }
        store.flags.extend(self.store_args.iter().cloned());
        store.port = self.store_port;
        Ok(Options {
            programs,
            store,
            nodes: self.nodes,
            port: self.port,
            private_store: true,
        })
    }

    fn new_dir(&self) -> Result<TempDir> {
        // The control plane's files name each other by absolute paths.
        let parent = std::path::absolute(self.dir.clone().unwrap_or_else(std::env::temp_dir))?;
        private_dir("orlop-playground-", &parent).map_err(|error| {
            crate::Error::Failed(format!(
                "no directory can be made in {}: {error}",
                parent.display()
            ))
        })
    }
}

/// What a newcomer needs to go on.
async fn hello(
    args: &Args,
    cluster: &Cluster,
    kubectl: Option<&Path>,
    took: Duration,
) -> Result<()> {
    let version = cluster.api().get("/version").await?;
    let version = version["gitVersion"].as_str().unwrap_or("?");
    let kubeconfig = cluster.kubeconfig().display();
    println!(
        "Kubernetes {version} on {} with {} hollow nodes is ready after {:.1} s",
        args.store_name(),
        args.nodes,
        took.as_secs_f64()
    );
    println!("  kubeconfig  {kubeconfig}");
    let store = cluster.store();
    println!("  store       {}", store.url());
    println!("  etcdctl     etcdctl {}", store.etcdctl_flags().join(" "));
    if store.kind() == Kind::Orlop {
        println!("  status      orlop status {}", store.data_dir().display());
    }
    println!("  files, logs {}", cluster.dir().display());
    println!("  stop        Ctrl-C");
    println!("Type next, in another terminal:");
    println!("  export KUBECONFIG={kubeconfig}");
    if let Some(kubectl) = kubectl {
        println!("  alias kubectl={}", kubectl.display());
    }
    println!("  kubectl create deployment hello --image=hello --replicas=5");
    println!("  kubectl get pods -o wide");
    Ok(())
}
