//! Means to treat a server badly, and to see how it takes that: a server process whose
//! flags, environment and end the test decides ([`node`]).

pub mod node;
