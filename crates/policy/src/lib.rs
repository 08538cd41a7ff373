//! Rules that give each write the durability it needs, and the Kubernetes-aware change
//! detection behind them.
//!
//! A [`Policy`] is a compiled list of rules. [`Policy::class`] names the [`Class`] of a write
//! from its key and, where a rule asks for it, from the old and the new value. It is a pure
//! function: no I/O, no clock, no allocation (a few bytes for a custom resource's JSON). What it
//! does not understand is durable.
//!
//! The crate knows Kubernetes' keys and stored objects; it knows nothing of journals,
//! revisions or connections.

mod change;
mod class;
mod duration;
mod error;
mod explain;
mod facts;
mod json;
mod kinds;
mod object;
mod parse;
mod pattern;
mod policy;
mod printed;
mod profile;
mod proto;
mod rule;
mod unclear;
mod update;
mod what_if;

pub use change::Change;
pub use class::Class;
pub use error::{RuleError, RuleErrors, UnknownProfile};
pub use explain::{Explanation, KeyExplanation};
pub use policy::Policy;
pub use printed::as_stored;
pub use profile::Profile;
pub use rule::Rule;
pub use unclear::Unclear;
pub use what_if::{ProfileSet, WhatIf};
