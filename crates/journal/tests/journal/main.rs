//! Tests of the journal through its public face, on the simulated and the real file system.

mod basic;
mod crash;
mod damage;
mod fuzz;
mod real;
mod support;
