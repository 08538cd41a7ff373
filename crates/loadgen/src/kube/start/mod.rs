//! `orlop bench kube --mode start`: how long a control plane takes to start on an empty store
//! that is some way off, and a large install on it.
//!
//! It measures what two theses of the University of Thessaly did with real machines: from the
//! start of kube-apiserver until the control plane is there (I. Iliadis, 2022), and until
//! `helm install` of kube-prometheus-stack, once or twice at once, has returned (K.
//! Kotsiaridis, 2023). The install is of that chart's size, and generated (`chart`, `schema`).

mod chart;
mod install;
mod report;
mod run;
mod schema;
mod words;

pub(crate) use report::StartReport;
pub(crate) use run::{StartBench, Way};
