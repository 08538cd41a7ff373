//! What was measured, whoever measured it.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use crate::Error;

/// Round trips between nodes, by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latencies {
    /// From, to, ms.
    pub round_trips: Vec<(String, String, f64)>,
    /// From, to: probes that way are not answered.
    pub down: Vec<(String, String)>,
    /// From, zone, ms: for nodes of the zone that are not measured from there.
    pub zones: Vec<(String, String, f64)>,
}

/// Traffic of one service over a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceTraffic {
    /// Requests that entered, by node.
    pub entered: BTreeMap<String, f64>,
    /// Requests that were served, by the pod's node: their mean time there in ms, without the
    /// network, and how many.
    pub served: BTreeMap<String, (f64, f64)>,
}

/// Traffic of all services, by `namespace/name`. A service that is not here is one of which
/// nothing is known; one without traffic has an entry without requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// By service.
    pub services: BTreeMap<String, ServiceTraffic>,
    /// Over which it was counted, in seconds.
    pub window_s: f64,
}

/// Who knows round trips.
pub trait Distances: Send + Sync {
    /// Reads them.
    ///
    /// # Errors
    /// Why they cannot be had now.
    fn read(&self) -> BoxFuture<'_, Result<Latencies, Error>>;
}

/// Who knows traffic and serving times: a Prometheus, or the routers.
pub trait Meter: Send + Sync {
    /// Reads them.
    ///
    /// # Errors
    /// Why they cannot be had now.
    fn read(&self) -> BoxFuture<'_, Result<Traffic, Error>>;
}
