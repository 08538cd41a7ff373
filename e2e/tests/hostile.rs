//! Clients that mean harm, or are broken, against the real program. Each attack runs
//! beside a client that behaves; the server must not end, must not take more memory than
//! it should, and must go on serving the one that behaves.

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/fuzz.rs"]
mod fuzz;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/slow.rs"]
mod slow;
#[path = "hostile/tls.rs"]
mod tls;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::hostile::good::Good;
use e2e::hostile::node::Node;
use e2e::kube::{Result, ensure};

/// A put of the well-behaved client may take so long at most. The machine is shared with
/// the attack itself and with other tests; without an attack it is a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Memory that an attack may cost, in bytes, where nothing else is said.
const MEMORY_BYTES: u64 = 256 << 20;

/// Runs `attack` on `node` beside a well-behaved client.
async fn survives<F>(node: &mut Node, name: &str, attack: F) -> Result<()>
where
    F: Future<Output = Result<String>>,
{
    survives_with(node, name, MEMORY_BYTES, attack).await
}

/// The same, where the attack may cost `memory_bytes`.
async fn survives_with<F>(node: &mut Node, name: &str, memory_bytes: u64, attack: F) -> Result<()>
where
    F: Future<Output = Result<String>>,
{
    let before = node.resident_bytes()?;
    let good = Good::start(node.url(), 16, 100, Duration::from_millis(2));
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut peak = before;
    let mut attack = std::pin::pin!(attack);
    let said = loop {
        tokio::select! {
            said = &mut attack => break said?,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                node.check_running()?;
                peak = peak.max(node.resident_bytes()?);
            }
        }
    };
    node.check_running()?;
    peak = peak.max(node.resident_bytes()?);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let latency = good.finish()?;
    println!(
        "{name}: {:.1} s, {said}; good client: {} puts, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; \
         memory {} -> {} MiB",
        began.elapsed().as_secs_f64(),
        latency.count(),
        latency.quantile(0.5).as_secs_f64() * 1e3,
        latency.quantile(0.99).as_secs_f64() * 1e3,
        latency.quantile(1.0).as_secs_f64() * 1e3,
        before >> 20,
        peak >> 20,
    );
    ensure(latency.count() > 0, || format!("{name}: no put"))?;
    ensure(latency.quantile(1.0) < PATIENCE, || {
        format!("{name}: a put took {:?}", latency.quantile(1.0))
    })?;
    ensure(peak < before + memory_bytes, || {
        format!("{name}: memory went from {before} to {peak} bytes")
    })
}

async fn node(dir: &Path) -> Result<Node> {
    Node::start("orlop", dir, &[]).await
}
