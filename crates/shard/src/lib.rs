//! A shard as a process: it holds the newest frames of a server's log in memory until they are on
//! the server's disk, and gives them back to a start after a power loss.
//!
//! What it takes from whom is decided in [`copies::shards::memory`]; here are its connection, which
//! is made again for ever, and pages for operators. It has no engine, reads no record and writes no
//! file.

mod link;
mod pages;
mod run;
mod view;

pub use pages::Pages;
pub use run::{Running, Settings};
pub use view::View;
