//! What of Kubernetes' objects is kept, and the table that they make.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use router::table::{NodeEntry, PodEntry, Protocol, ServiceEntry, Table};
use routing::Policy;

/// The annotation of a Service that is routed: the Service of its namespace that selects the pods.
pub const ROUTE_TO: &str = "orlop.io/route-to";
/// The name of that Service's port, where it has several.
pub const PORT: &str = "orlop.io/port";
/// How a pod is chosen.
pub const POLICY: &str = "orlop.io/policy";
/// How pods are spoken to.
pub const PROTOCOL: &str = "orlop.io/protocol";
/// Requests that a pod serves at once.
pub const CONCURRENCY: &str = "orlop.io/concurrency";
/// Requests that wait for one pod.
pub const QUEUE: &str = "orlop.io/queue";
/// Requests that wait while no pod can be used.
pub const WAITING: &str = "orlop.io/waiting";
/// Milliseconds until an answer has to begin.
pub const TIMEOUT_MS: &str = "orlop.io/timeout-ms";
/// Further hosts, separated by commas.
pub const HOSTS: &str = "orlop.io/hosts";

/// The label of a slice that names its Service.
const OF_SERVICE: &str = "kubernetes.io/service-name";

/// A Service that is routed.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// The key of the Service that selects its pods.
    pub route_to: String,
    /// The port's name, if it is said.
    pub port: Option<String>,
    /// All but its pods, or what is wrong with its annotations.
    pub entry: Result<ServiceEntry, String>,
}

/// Keeps a Service if it is routed.
#[must_use]
pub fn service(service: &Service) -> Option<ServiceFacts> {
    let annotations = service.metadata.annotations.as_ref()?;
    let to = annotations.get(ROUTE_TO)?;
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    Some(ServiceFacts {
        route_to: format!("{namespace}/{to}"),
        port: annotations.get(PORT).cloned(),
        entry: entry(&follow::key(service), annotations),
    })
}

fn number<T: std::str::FromStr>(
    annotations: &BTreeMap<String, String>,
    name: &str,
) -> Result<Option<T>, String> {
    let Some(text) = annotations.get(name) else {
        return Ok(None);
    };
    let number = text
        .parse()
        .map_err(|_| format!("annotation {name} is {text:?}"))?;
    Ok(Some(number))
}

fn entry(key: &str, annotations: &BTreeMap<String, String>) -> Result<ServiceEntry, String> {
    let mut entry = ServiceEntry::new(key);
    let wrong = |name: &str, text: &str| Err(format!("annotation {name} is {text:?}"));
    if let Some(text) = annotations.get(POLICY) {
        entry.policy = match text.as_str() {
            "latency-weighted" => Policy::LatencyWeighted,
            "least-request" => Policy::LeastRequest,
            "round-robin" => Policy::RoundRobin,
            "local-first" => Policy::LocalFirst,
            _ => return wrong(POLICY, text),
        };
    }
    if let Some(text) = annotations.get(PROTOCOL) {
        entry.protocol = match text.as_str() {
            "http1" => Protocol::Http1,
            "h2c" => Protocol::H2c,
            _ => return wrong(PROTOCOL, text),
        };
    }
    entry.concurrency = number::<NonZeroU32>(annotations, CONCURRENCY)?;
    entry.queue = number(annotations, QUEUE)?.unwrap_or(entry.queue);
    entry.waiting = number(annotations, WAITING)?.unwrap_or(entry.waiting);
    entry.timeout_ms = number(annotations, TIMEOUT_MS)?.unwrap_or(entry.timeout_ms);
    if let Some(hosts) = annotations.get(HOSTS) {
        let hosts = hosts.split(',').map(|host| host.trim().to_owned());
        entry.hosts = hosts.filter(|host| !host.is_empty()).collect();
    }
    Ok(entry)
}

/// A slice of a Service's ready endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceFacts {
    /// The key of its Service.
    pub of: String,
    /// Ports with their names.
    pub ports: Vec<(String, u16)>,
    /// Ready pods: name, node, address.
    pub pods: Vec<(String, String, IpAddr)>,
}

/// Keeps a slice of TCP endpoints. Those that are not ready, and those of which nobody says on
/// which node they are, are left out.
#[must_use]
pub fn slice(slice: &EndpointSlice) -> Option<SliceFacts> {
    let service = slice.metadata.labels.as_ref()?.get(OF_SERVICE)?;
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let is_tcp = port
            .protocol
            .as_deref()
            .is_none_or(|protocol| protocol == "TCP");
        let number = u16::try_from(port.port?).ok().filter(|_| is_tcp)?;
        Some((port.name.clone().unwrap_or_default(), number))
    });
    let pods = slice.endpoints.iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // As the API has it: not said means ready.
        let ready = conditions
            .and_then(|conditions| conditions.ready)
            .unwrap_or(true);
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let name = endpoint
            .target_ref
            .as_ref()
            .and_then(|target| target.name.clone());
        let name = name.unwrap_or_else(|| address.to_string().replace(':', "-"));
        ready.then_some((name, endpoint.node_name.clone()?, address))
    });
    Some(SliceFacts {
        of: format!("{namespace}/{service}"),
        ports: ports.collect(),
        pods: pods.collect(),
    })
}

/// Keeps the address of a node.
#[must_use]
pub fn node(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses
        .iter()
        .find(|address| address.type_ == "InternalIP")?;
    internal.address.parse().ok()
}

/// The table that all of that makes, and what is wrong with services that are left out.
#[must_use]
pub fn table(
    services: &BTreeMap<String, ServiceFacts>,
    slices: &BTreeMap<String, SliceFacts>,
    nodes: &BTreeMap<String, IpAddr>,
    peer_port: u16,
) -> (Table, BTreeMap<String, String>) {
    let mut of: BTreeMap<&str, Vec<&SliceFacts>> = BTreeMap::new();
    for slice in slices.values() {
        of.entry(&slice.of).or_default().push(slice);
    }
    let nodes = nodes.iter().map(|(name, address)| NodeEntry {
        name: name.clone(),
        peer: SocketAddr::new(*address, peer_port),
    });
    let mut wrong = BTreeMap::new();
    let mut entries = Vec::new();
    for (key, facts) in services {
        let slices = of
            .get(facts.route_to.as_str())
            .map_or(&[][..], Vec::as_slice);
        match with_pods(facts, slices) {
            Ok(entry) => entries.push(entry),
            Err(why) => {
                wrong.insert(key.clone(), why);
            }
        }
    }
    let (table, conflicts) = Table::of_good(nodes.collect(), entries);
    wrong.extend(conflicts);
    (table, wrong)
}

fn with_pods(facts: &ServiceFacts, slices: &[&SliceFacts]) -> Result<ServiceEntry, String> {
    let mut entry = facts.entry.clone()?;
    let mut pods: BTreeMap<&str, PodEntry> = BTreeMap::new();
    for slice in slices {
        let port = match (&facts.port, slice.ports.as_slice()) {
            (Some(name), ports) => ports.iter().find(|(port, _)| port == name),
            (None, [port]) => Some(port),
            (None, []) => None,
            (None, _) => {
                return Err(format!(
                    "{} has several ports: say which by {PORT}",
                    facts.route_to
                ));
            }
        };
        let Some((_, port)) = port else { continue };
        for (name, node, address) in &slice.pods {
            let pod = PodEntry {
                name: name.clone(),
                node: node.clone(),
                address: SocketAddr::new(*address, *port),
            };
            // A pod may be in two slices for a moment, while it moves from one to the other.
            pods.entry(name).or_insert(pod);
        }
    }
    entry.pods = pods.into_values().collect();
    Ok(entry)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panics")]
    use super::*;
    use serde_json::json;

    fn routed(name: &str, annotations: serde_json::Value) -> (String, ServiceFacts) {
        let object =
            json!({"metadata": {"namespace": "shop", "name": name, "annotations": annotations}});
        let object: Service = serde_json::from_value(object).unwrap();
        (follow::key(&object), service(&object).unwrap())
    }

    fn endpoints(name: &str, ready: Option<bool>) -> (String, SliceFacts) {
        let object = json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "pods"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": [
                {"addresses": ["10.0.0.7"], "nodeName": "a", "targetRef": {"kind": "Pod", "name": "p"}, "conditions": {"ready": ready}},
                {"addresses": ["10.0.0.8"], "conditions": {"ready": true}},
            ],
        });
        let object: EndpointSlice = serde_json::from_value(object).unwrap();
        (follow::key(&object), slice(&object).unwrap())
    }

    #[test]
    fn a_service_has_its_private_ones_ready_pods_and_what_its_annotations_say() {
        let services = BTreeMap::from([routed(
            "cart",
            json!({ROUTE_TO: "pods", CONCURRENCY: "2", POLICY: "local-first", HOSTS: "a.example, b.example"}),
        )]);
        let nodes = BTreeMap::from([("a".to_owned(), "10.1.0.1".parse().unwrap())]);
        for (ready, count) in [(None, 1), (Some(true), 1), (Some(false), 0)] {
            // The same pod in two slices is one pod.
            let slices = BTreeMap::from([endpoints("s-1", ready), endpoints("s-2", ready)]);
            let (table, wrong) = table(&services, &slices, &nodes, 2392);
            assert!(wrong.is_empty(), "{wrong:?}");
            let cart = &table.services[0];
            assert_eq!((cart.pods.len(), cart.name.as_str()), (count, "shop/cart"));
            assert_eq!(
                (cart.policy, cart.concurrency),
                (Policy::LocalFirst, NonZeroU32::new(2))
            );
            assert_eq!(cart.hosts, ["a.example", "b.example"]);
            if let Some(pod) = cart.pods.first() {
                assert_eq!(pod.address, "10.0.0.7:8080".parse().unwrap());
            }
            assert_eq!(table.nodes[0].peer, "10.1.0.1:2392".parse().unwrap());
        }
    }

    #[test]
    fn one_that_is_wrong_is_left_out_and_said_and_the_others_stay() {
        let services = BTreeMap::from([
            routed("a", json!({ROUTE_TO: "pods", CONCURRENCY: "0"})),
            routed("b", json!({ROUTE_TO: "pods", POLICY: "nearest"})),
            routed("c", json!({ROUTE_TO: "pods", HOSTS: "d.shop"})),
            routed("d", json!({ROUTE_TO: "pods"})),
            routed("e", json!({ROUTE_TO: "none"})),
        ]);
        let (table, wrong) = table(&services, &BTreeMap::new(), &BTreeMap::new(), 1);
        let good: Vec<_> = table.services.iter().map(|s| s.name.as_str()).collect();
        // Nobody takes the name of another.
        assert_eq!(good, ["shop/d", "shop/e"]);
        let wrong: Vec<_> = wrong.keys().map(String::as_str).collect();
        assert_eq!(wrong, ["shop/a", "shop/b", "shop/c"]);
        let plain: Service = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
        assert_eq!(service(&plain), None);
    }
}
