//! Prints how long puts wait while the server does something large.
//!
//! ```text
//! cargo build --release -p orlop
//! cargo run --release -p e2e --bin stalls [small]
//! ```

use e2e::hostile::node::Node;
use e2e::hostile::stalls::{Row, Scale, measure};
use e2e::hostile::watch_stalls;
use e2e::kube::{Result, fail};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let scale = match std::env::args().nth(1).as_deref() {
        None => Scale::FULL,
        Some("small") => Scale::SMALL,
        Some(other) => return fail(format!("{other}: neither nothing nor `small`")),
    };
    // Not /tmp, which may be in memory.
    let dir = tempfile::tempdir_in(".")?;
    let mut node = Node::start("orlop", dir.path(), &[]).await?;
    let mut rows = measure(&node, scale).await?;
    rows.extend(watch_stalls::measure(&node, scale).await?);
    println!("{}", Row::head());
    for row in &rows {
        println!("{}", row.line(&rows[0].latency));
    }
    node.stop().map(drop)
}
