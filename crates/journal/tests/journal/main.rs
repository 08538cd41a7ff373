//! Tests of the journal through its public face, on the simulated and the real file system.

#![allow(clippy::unwrap_used, clippy::panic)] // the helpers of tests are tests
mod basic;
mod classes;
mod crash;
mod damage;
mod followed;
mod fuzz;
mod held;
mod real;
mod seed;
mod steps;
mod support;
mod volatile;
