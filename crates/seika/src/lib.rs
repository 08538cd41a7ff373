//! Seika: a resource that says how many pods of a template are wanted on each node, and the
//! controller that keeps them.
//!
//! What is to be done is decided by a pure function, [`decide`]; [`facts`], [`index`], [`claim`],
//! [`obstacles`], [`parts`] and [`status`] are what goes in and comes out of it, without I/O and without a
//! clock too. Only [`run`] speaks to an apiserver, by `kube`.
//!
//! It may not know of latencies or of placement's decisions: who writes the resource decides how
//! many pods are where. Of `placement` it uses the rules by which a template fits a node.

#[allow(
    clippy::duplicated_attributes,
    reason = "each printed column has attributes of its own"
)]
pub mod api;
pub mod claim;
pub mod crd;
pub mod decide;
mod error;
pub mod facts;
pub mod index;
pub mod obstacles;
pub mod parts;
pub mod queue;
pub mod reason;
pub mod run;
mod schema;
pub mod slim;
pub mod status;
pub mod template;

pub use error::Error;
