//! `orlop bench kube`: what a store is worth to the users of a Kubernetes cluster.
//!
//! The load patterns are those of T. A. Ionita's thesis on two-tier storage for Kubernetes
//! (Waterloo, 2022): Deployments are asked for in an open loop, and latency runs from the
//! moment a request was due to what a client sees. It speaks to Kubernetes as any client
//! does; of the store it knows processes and published metrics only.
//!
//! A reader follows a run from [`cli`] through `run` (a fresh cluster) and `load` (requests,
//! watches) to `track` (what became of each), and back through `result`, `report` and `html`.

pub mod cli;
mod client;
mod html;
mod limit;
mod load;
mod manifest;
mod progress;
mod proto;
mod report;
mod result;
mod run;
mod sample;
mod start;
mod stores;
mod track;

pub use cli::{Args, run};

/// Result of everything here.
pub(crate) type Result<T> = std::result::Result<T, crate::Error>;

/// In milliseconds. Divided from a whole number, so that 27.4 ms are shown as that.
pub(crate) fn ms(duration: std::time::Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

/// The store's name among the components.
pub(crate) const STORE: &str = "store";
/// The benchmark's own name among them.
pub(crate) const LOAD_GENERATOR: &str = "load generator";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn tenths_of_a_millisecond_read_well() {
        let text = super::ms(Duration::from_micros(27_400)).to_string();
        assert_eq!(text, "27.4");
    }
}
