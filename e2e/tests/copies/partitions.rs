//! A keeper in a network of its own, whose packets are lost: those to it, those from it, all.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::hostile::node::{Node, contents, put};
use e2e::kube::pki::Authority;
use e2e::kube::proc::{conclude, free_port, run};
use e2e::kube::{Result, ensure, fail};
use serde_json::Value;

use crate::networks::Networks;
use crate::{Keeper, promoted_has};

/// The keeper's network.
const KEEPER: usize = 0;
/// Both sides give up a silent connection after 10 s, and dial for 20 s at most; on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// A page of the keeper's, asked for through its network.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// What the server says. The keeper is heard.
    ToKeeper,
    /// What the keeper says, its acknowledgements of packets too.
    FromKeeper,
    /// Everything: the link is down.
    All,
}

impl Lost {
    fn begin(self, networks: &Networks) -> Result<()> {
        let hook = match self {
            Lost::ToKeeper => "input",
            Lost::FromKeeper => "output",
            Lost::All => return networks.link(KEEPER, false),
        };
        let rule = format!(
            "table inet cut {{ chain cut {{ type filter hook {hook} priority 0; policy drop; }}; }}"
        );
        nft(networks, &rule)
    }

    fn end(self, networks: &Networks) -> Result<()> {
        match self {
            Lost::ToKeeper | Lost::FromKeeper => nft(networks, "delete table inet cut"),
            Lost::All => networks.link(KEEPER, true),
        }
    }
}

fn nft(networks: &Networks, rules: &str) -> Result<()> {
    run(networks.command(KEEPER, Path::new("nft")).arg(rules)).map(drop)
}

/// What the keeper says of itself.
fn status(keeper: SocketAddr) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&keeper, PAGE_TIMEOUT)?;
    stream.set_read_timeout(Some(PAGE_TIMEOUT))?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: keeper\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(serde_json::from_str(body)?),
        None => fail(answer),
    }
}

/// Waits until the keeper follows and has a revision on its disk.
async fn has(keeper: SocketAddr, revision: i64) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = status(keeper).unwrap_or(Value::Null);
        if status["following"] == true && status["revision"].as_i64() >= Some(revision) {
            return Ok(());
        }
        ensure(began.elapsed() < PATIENCE, || {
            format!("revision {revision}: {status}")
        })?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn follow(node: &Node, followers: f64) -> Result<()> {
    let began = Instant::now();
    while node.metrics().await?.sum("orlop_followers", &[]) != followers {
        ensure(began.elapsed() < PATIENCE, || {
            format!("the server never has {followers} followers")
        })?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// No put waits for a keeper that is cut off, the server sees that it is gone, and the keeper has
/// everything when it is heard again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: each partition is found out by silence"]
async fn a_partition_from_the_server_costs_a_keeper_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let result = cut(dir.path()).await;
    conclude(dir, result);
}

async fn cut(dir: &Path) -> Result<()> {
    let networks = Networks::make(1)?;
    let authority = Authority::new(dir, "peers")?;
    let port = free_port()?;
    let mut node = Node::new("a", dir, &[])?;
    node.args.extend(crate::peer_flags(&authority, port)?);
    let host: IpAddr = networks.host();
    node.args[0] = format!("--listen-peer-urls=https://{host}:{port}");
    node.run().await?;

    let mut keeper = Keeper::new("b", dir, format!("https://{host}:{port}"), &authority)?;
    let inside = networks.command(KEEPER, Path::new("env"));
    let launcher = std::iter::once(inside.get_program()).chain(inside.get_args());
    keeper.beside.launcher = launcher.map(Into::into).collect();
    let page = SocketAddr::new(networks.address(KEEPER), free_port()?);
    keeper.more = vec![
        "--server-name=localhost".to_owned(),
        format!("--metrics-addr={page}"),
    ];
    keeper.run()?;

    let channel = node.channel()?;
    let mut revision = put(&channel, "first", "v").await?;
    has(page, revision).await?;
    for (round, lost) in [Lost::ToKeeper, Lost::FromKeeper, Lost::All]
        .into_iter()
        .enumerate()
    {
        lost.begin(&networks)?;
        for n in 0..50 {
            revision = put(&channel, &format!("cut{round}/{n}"), "v").await?;
        }
        follow(&node, 0.0).await?;
        for n in 0..50 {
            revision = put(&channel, &format!("alone{round}/{n}"), "v").await?;
        }
        lost.end(&networks)?;
        has(page, revision).await?;
        follow(&node, 1.0).await?;
        let metrics = node.metrics().await?;
        let snapshots = metrics.sum("orlop_followers_snapshots_total", &[]);
        println!("{lost:?}: {snapshots} snapshots so far");
        // One to begin with, and one at most for each time that it came back.
        ensure(snapshots <= round as f64 + 2.0, || {
            format!("{lost:?}: {snapshots} snapshots")
        })?;
    }
    let (before, _) = contents(&channel).await?;
    node.kill();
    keeper.beside.stop()?;
    promoted_has(dir, &keeper.data, &before).await
}
