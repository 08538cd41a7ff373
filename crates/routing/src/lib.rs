//! Which pod a request goes to, and when it may go there.
//!
//! A request enters at a node. A [`Policy`] names a pod; the router of the pod's node owns the
//! pod's one [`Queue`], which admits as many requests as the pod serves at once and keeps others in
//! the order in which they came, up to a bound. Where no pod can be named, requests wait in a
//! [`Line`]. [`Standing`] takes pods out that fail, [`Peer`] knows which routers answer, [`Retries`]
//! says what may be sent again, and a [`Budget`] ends it all.
//!
//! This crate is pure: no clock, no I/O, no randomness. Times are microseconds of one monotonic
//! clock of the caller, who also brings random draws.

mod budget;
mod ewma;
mod line;
mod peer;
mod policy;
mod queue;
mod retry;
mod standing;

pub use budget::{Budget, grpc_timeout_us};
pub use ewma::PeakEwma;
pub use line::{Line, Place};
pub use peer::{Health, Peer, PeerTimes};
pub use policy::{Balancer, Candidate, Draw, Policy};
pub use queue::{Admission, Entered, Queue, Refusal};
pub use retry::{Attempt, Progress, Retries, Stop};
pub use standing::{OutlierSettings, Standing};
