//! Load on an etcd v3 endpoint, measured: rates, latency percentiles, and what the server's
//! processor spends on an operation.
//!
//! The library behind `orlop bench`. It may start and stop servers (to compare two on the same
//! disk) and read `/proc`; it knows nothing of the insides of either server, so that whatever
//! it says of orlop it could say of etcd in the same words.
//!
//! A reader follows a run from [`cli`] (arguments) through `compare` (servers in turn, rounds)
//! and `drive` (client threads, warm-up, measured span) to `workload` and `watch` (the loops
//! that put the load), and back through `report` (medians, ratios, table, JSON).

pub mod cli;
mod compare;
mod drive;
mod error;
mod histogram;
mod interrupt;
pub mod kube;
pub mod members;
mod paired;
mod probe;
mod procfs;
mod report;
mod rpc;
mod server;
mod watch;
mod workload;

pub use compare::{Plan, against, endpoint};
pub use drive::{Load, Outcome, Span, Usage};
pub use error::Error;
pub use histogram::{Histogram, Latency};
pub use interrupt::Interrupt;
pub use paired::{Ratio, ratio};
pub use report::{Report, Row, Summary, median};
pub use server::Program;
pub use workload::Workload;

/// The orlop that was named, or this executable.
fn orlop_program(named: Option<&std::path::Path>) -> Result<std::path::PathBuf, Error> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => std::env::current_exe().map_err(Error::system("finding this executable")),
    }
}
