//! Prints how long puts wait while the server does something large.
//!
//! ```text
//! cargo build --release -p orlop
//! cargo run --release -p e2e --bin stalls [small|watches]
//! ```

use e2e::hostile::node::Node;
use e2e::hostile::stalls::{Row, Scale, measure};
use e2e::hostile::watch_stalls;
use e2e::kube::{Result, fail};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (scale, all) = match std::env::args().nth(1).as_deref() {
        None => (Scale::FULL, true),
        Some("small") => (Scale::SMALL, true),
        Some("watches") => (Scale::FULL, false),
        Some(other) => {
            return fail(format!("{other}: neither nothing, `small` nor `watches`"));
        }
    };
    // Not /tmp, which may be in memory.
    let dir = tempfile::tempdir_in(".")?;
    let mut node = Node::start("orlop", dir.path(), &[]).await?;
    let mut rows = if all {
        measure(&node, scale).await?
    } else {
        Vec::new()
    };
    rows.extend(watch_stalls::measure(&node, scale).await?);
    println!("{}", Row::head());
    for row in &rows {
        println!("{}", row.line(&rows[0].latency));
    }
    node.stop().map(drop)
}
