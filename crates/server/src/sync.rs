//! The primitives of what is checked in all interleavings: `loom/` gives the same source
//! loom's.

pub(crate) use parking_lot::{Condvar, Mutex};
pub(crate) use std::sync::atomic::AtomicBool;
