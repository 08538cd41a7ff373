//! A follower that keeps a server's snapshot and log on its own disk, and what makes a server's
//! directory of that.
//!
//! [`Keeper`] takes a server's messages ([`copies::message`]) and brings them to a data directory,
//! which `orlop check` reads and which, promoted ([`promote()`]), a server starts from. Calls
//! block on the disk, so a caller gives it a thread. Who runs it ([`run`]) brings the messages
//! over the network.

mod error;
mod kept;
mod promote;
mod reseed;
pub mod run;

pub use error::Error;
pub use kept::{Checkpoint, Guards, Keeper, Options, Standing};
pub use promote::{Exact, Promotion, Request, promote};
