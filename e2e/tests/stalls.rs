//! No large operation holds writes up. The figures that are promised are measured by
//! `cargo run --release -p e2e --bin stalls`; this is the same, small, with a limit that
//! also an unoptimised server on a busy machine keeps.

use std::time::Duration;

use e2e::hostile::node::Node;
use e2e::hostile::stalls::{Row, Scale, measure};
use e2e::hostile::watch_stalls;
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure};

/// No put may wait longer.
const LONGEST: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_large_operation_stalls_writes() {
    let dir = tempfile::tempdir().unwrap();
    let result = small(dir.path()).await;
    conclude(dir, result);
}

async fn small(dir: &std::path::Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &[]).await?;
    let mut rows = measure(&node, Scale::SMALL).await?;
    rows.extend(watch_stalls::measure(&node, Scale::SMALL).await?);
    println!("{}", Row::head());
    for row in &rows {
        println!("{}", row.line(&rows[0].latency));
        ensure(row.latency.quantile(1.0) < LONGEST, || {
            format!(
                "beside {} a put took {:?}",
                row.beside,
                row.latency.quantile(1.0)
            )
        })?;
    }
    node.stop().map(drop)
}
