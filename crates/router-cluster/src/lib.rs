//! What a cluster's API says that a router routes to.
//!
//! Services with the annotation [`objects::ROUTE_TO`], the ready endpoints of the Services that
//! they name, and nodes: followed by watches, kept in a small form, and made into the router's
//! [`Table`]. While the API does not answer, what was known before stays. It writes nothing.

pub mod objects;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use follow::Shared;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use router::Router;
use router::table::Table;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use objects::{ServiceFacts, SliceFacts};

/// Changes that come together are taken together.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Known {
    services: Shared<ServiceFacts>,
    slices: Shared<SliceFacts>,
    nodes: Shared<IpAddr>,
}

impl Known {
    /// The table, once all was listed.
    fn table(&self, peer_port: u16) -> Option<(Table, BTreeMap<String, String>)> {
        let (services, slices, nodes) =
            (self.services.lock(), self.slices.lock(), self.nodes.lock());
        let listed = services.listed && slices.listed && nodes.listed;
        listed.then(|| objects::table(&services.items, &slices.items, &nodes.items, peer_port))
    }
}

/// Has `router` route by what the cluster's API says, for ever. Other nodes' routers are at their
/// nodes' addresses and `peer_port`.
pub async fn run(client: Client, router: Arc<Router>, peer_port: u16) {
    let (known, news) = (Known::default(), Arc::new(Notify::new()));
    let mut watches = JoinSet::new();
    let told = |news: &Arc<Notify>| {
        let news = Arc::clone(news);
        move || news.notify_one()
    };
    let config = watcher::Config::default;
    let tell = told(&news);
    watches.spawn(follow::follow(
        Api::<Service>::all(client.clone()),
        config(),
        "services",
        objects::service,
        known.services.clone(),
        move |_| tell(),
    ));
    let tell = told(&news);
    watches.spawn(follow::follow(
        Api::<EndpointSlice>::all(client.clone()),
        config(),
        "endpointslices",
        objects::slice,
        known.slices.clone(),
        move |_| tell(),
    ));
    let tell = told(&news);
    watches.spawn(follow::follow(
        Api::<Node>::all(client),
        config(),
        "nodes",
        objects::node,
        known.nodes.clone(),
        move |_| tell(),
    ));
    let mut last: Option<(Table, BTreeMap<String, String>)> = None;
    loop {
        news.notified().await;
        tokio::time::sleep(GATHER).await;
        let Some(now) = known.table(peer_port) else {
            continue;
        };
        let (before, said) = last
            .as_ref()
            .map_or((None, None), |(t, w)| (Some(t), Some(w)));
        for (service, why) in &now.1 {
            if said.and_then(|said| said.get(service)) != Some(why) {
                tracing::warn!(service, why, "a service is not routed");
            }
        }
        if before != Some(&now.0)
            && let Err(error) = router.apply(&now.0)
        {
            tracing::error!(
                error,
                "what the cluster has cannot be used: staying with the old"
            );
        }
        last = Some(now);
    }
}
