//! The arguments of `orlop playground`, and its run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::MemberArgs;
use crate::backend::{self, Way};
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

    #[command(flatten)]
    members: MemberArgs,

    /// Reach etcd's members through `orlop proxy`, which follows their leader.
    #[arg(long)]
    proxy: bool,

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
    args.check()?;
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
        if self.proxy {
            crate::proxy::check(&std::env::current_exe()?)?;
        }
        let programs = Programs::find(self.kube_bin.as_deref(), self.nodes, &mut say)?;
        let backend = match self.members.members() {
            Some(members) => self.members_backend(members, &mut say)?,
            None => backend::Setup::store(self.store_setup(&mut say)?),
        };
        Ok(Options {
            programs,
            backend,
            nodes: self.nodes,
            port: self.port,
            private_store: true,
        })
    }

    fn store_setup(&self, say: &mut dyn FnMut(&str)) -> Result<Setup> {
        let mut store = match self.store {
            StoreName::Orlop => Setup::new(Kind::Orlop, std::env::current_exe()?),
            StoreName::Etcd => {
                let program = etcd_program(self.etcd_bin.as_deref(), say)?;
                Setup::new(Kind::Etcd, program)
            }
        };
        if let Some(profile) = &self.profile {
            store.flags.push(format!("--profile={profile}"));
        }
        store.flags.extend(self.store_args.iter().cloned());
        store.port = self.store_port;
        Ok(store)
    }

    fn members_backend(&self, members: usize, say: &mut dyn FnMut(&str)) -> Result<backend::Setup> {
        let program = etcd_program(self.etcd_bin.as_deref(), say)?;
        let mut setups = self.members.setups(&program, members)?.into_iter();
        let (Some(mut members), None) = (setups.next(), setups.next()) else {
            return fail("a playground has one --member-delay and one --peer-delay");
        };
        members.flags.extend(self.store_args.iter().cloned());
        let way = match self.proxy {
            true => Way::Proxy(std::env::current_exe()?),
            false => Way::All,
        };
        Ok(backend::Setup::Members { members, way })
    }

    /// Refuses what would be without effect.
    fn check(&self) -> Result<()> {
        if self.store == StoreName::Etcd && self.profile.is_some() {
            return fail("--profile is for orlop's store; etcd has none");
        }
        let has_members = self.members.members().is_some();
        if self.store == StoreName::Orlop && (self.members.is_given() || self.proxy) {
            return fail("--members, their delays and --proxy are for --store etcd");
        }
        if !has_members && (self.members.is_given() || self.proxy) {
            return fail("delays, --leader and --proxy need --members");
        }
        if has_members && self.store_port != 0 {
            return fail("--store-port is for one server; members take free ports");
        }
        Ok(())
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
    let endpoints = cluster.backend().endpoints();
    println!("  store       {}", endpoints.urls.join(","));
    println!(
        "  etcdctl     etcdctl {}",
        endpoints.etcdctl_flags().join(" ")
    );
    if let Some(members) = cluster.backend().members() {
        let leader = members.leader().await?;
        for n in 0..members.count() {
            let leads = if leader == Some(n) { ", leads" } else { "" };
            let [url, port] = [members.url(n), members.metrics_ports()[n].to_string()];
            println!(
                "  member {}    {url}, metrics http://127.0.0.1:{port}/metrics{leads}",
                n + 1
            );
        }
    }
    if let Some(proxy) = cluster.backend().proxy() {
        println!(
            "  status      orlop proxy status --admin-url http://127.0.0.1:{}",
            proxy.metrics_port()
        );
    }
    match cluster.backend().store() {
        Some(store) if store.kind() == Kind::Orlop => {
            println!("  status      orlop status {}", store.data_dir().display());
        }
        _ => {}
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
