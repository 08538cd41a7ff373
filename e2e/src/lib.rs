//! End-to-end tests of orlop with real clients.

pub mod beside;
pub mod differential;
pub mod env;
pub mod etcd_members;
pub mod fleet;
pub mod hostile;
pub mod kube;
pub mod node;
pub mod power_loss;
pub mod recorder;
pub mod static_pod;
