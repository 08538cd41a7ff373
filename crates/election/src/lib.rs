//! Which of several processes acts, by a Kubernetes Lease.
//!
//! [`rules`] is pure: no I/O, and no clock of its own. [`stand`] takes part for a process, which asks
//! its [`Seat`] before each thing that it does, and [`leave`] gives the Lease back. It knows nothing
//! of what is done by whom.

mod lease;
pub mod rules;

pub use lease::{Place, Seat, leave, stand};
pub use rules::Times;
