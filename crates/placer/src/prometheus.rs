//! Round trips and traffic from a Prometheus, by its query API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::Error;
use crate::input::{Distances, Latencies, Meter, ServiceTraffic, Traffic};

/// An answer is no larger: the round trips of 500 nodes with 200 peers each are some 20 MB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A Prometheus.
#[derive(Clone, Debug)]
pub struct Prometheus {
    base: String,
    timeout: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// One element of a query's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Element {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

impl Prometheus {
    /// A Prometheus at `url`. A query may take `timeout`.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn new(url: &str, timeout: Duration) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Url {
            url: url.to_owned(),
            why: why.to_owned(),
        };
        let parsed: Uri = url.parse().map_err(|_| wrong("it cannot be read"))?;
        if parsed.scheme_str() != Some("http") {
            return Err(wrong("only http is spoken"));
        }
        if parsed.authority().is_none() || parsed.query().is_some() {
            return Err(wrong("there is no host, or there is a query"));
        }
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            timeout,
            client: Client::builder(TokioExecutor::new()).build_http(),
        })
    }

    /// The elements of an instant query.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Refused`] or [`Error::Answer`].
    pub async fn query(&self, query: &str) -> Result<Vec<Element>, Error> {
        let silent = |why: String| Error::Silent {
            url: self.base.clone(),
            why,
        };
        let asked = tokio::time::timeout(self.timeout, self.ask(query)).await;
        let body = match asked {
            Ok(body) => body.map_err(silent)?,
            Err(_) => {
                let ms = self.timeout.as_millis();
                return Err(silent(format!("no answer within {ms} ms")));
            }
        };
        elements(query, &body)
    }

    async fn ask(&self, query: &str) -> Result<Bytes, String> {
        let request = Request::post(format!("{}/api/v1/query", self.base))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(format!("query={}", escaped(query))))
            .map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| telemetry::with_causes(&error))?;
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes())
    }
}

/// Percent-encodes a form's value.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn elements(query: &str, body: &[u8]) -> Result<Vec<Element>, Error> {
    let unusable = |why: String| Error::Answer {
        query: query.to_owned(),
        why,
    };
    let answer: Answer =
        serde_json::from_slice(body).map_err(|error| unusable(error.to_string()))?;
    let data = match answer.data {
        Some(data) if answer.status == "success" => data,
        _ => {
            return Err(Error::Refused {
                query: query.to_owned(),
                why: answer.error,
            });
        }
    };
    if data.result_type != "vector" {
        return Err(unusable(format!(
            "it is a {}, not a vector",
            data.result_type
        )));
    }
    Ok(data
        .result
        .into_iter()
        .filter_map(|series| {
            let value: f64 = series.value.1.parse().ok()?;
            value.is_finite().then_some(Element {
                labels: series.metric,
                value,
            })
        })
        .collect())
}

/// Round trips as the agents of `orlop-fleet latency` publish them.
#[derive(Clone, Debug)]
pub struct AgentSeries {
    prometheus: Prometheus,
    max_age_s: f64,
}

impl AgentSeries {
    /// From this Prometheus; values that are older than `max_age_s` are none.
    #[must_use]
    pub fn new(prometheus: Prometheus, max_age_s: f64) -> Self {
        Self {
            prometheus,
            max_age_s,
        }
    }

    /// A query for values of a series that were scraped lately: Prometheus itself shows those of
    /// an agent that is gone for minutes.
    fn fresh(&self, series: &str) -> String {
        format!(
            "{series} and (time() - timestamp({series}) < {})",
            self.max_age_s
        )
    }
}

impl Distances for AgentSeries {
    fn read(&self) -> BoxFuture<'_, Result<Latencies, Error>> {
        Box::pin(async move {
            let ask = |series: &'static str| {
                let query = self.fresh(series);
                async move { self.prometheus.query(&query).await }
            };
            let pair = |element: &Element, to: &str| {
                Some((
                    element.label("from")?.to_owned(),
                    element.label(to)?.to_owned(),
                ))
            };
            let measured = ask("latency_between_nodes").await?;
            let up = ask("orlop_latency_peer_up").await?;
            let zones = ask("orlop_latency_zone_ms").await?;
            let with_ms = |elements: &[Element], to: &str| {
                let all = elements.iter().filter_map(|element| {
                    let (from, to) = pair(element, to)?;
                    Some((from, to, element.value))
                });
                all.collect::<Vec<_>>()
            };
            Ok(Latencies {
                round_trips: with_ms(&measured, "to"),
                down: up
                    .iter()
                    .filter(|element| element.value == 0.0)
                    .filter_map(|element| pair(element, "to"))
                    .collect(),
                zones: with_ms(&zones, "zone"),
            })
        })
    }
}

/// Queries for traffic. `$window` in them is replaced by the window, as `10s`. Each has to give
/// elements with the labels `namespace`, `service` and `node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries {
    /// Requests that entered at the node in the window.
    pub entered: String,
    /// Requests that pods of the node served in the window.
    pub served: String,
    /// The sum of their times in the pods of the node, in seconds.
    pub serving_seconds: String,
}

impl Default for Queries {
    fn default() -> Self {
        let of = |series: &str| {
            format!("sum by (namespace, service, node) (increase({series}[$window]))")
        };
        Self {
            entered: of("orlop_router_requests_total"),
            served: of("orlop_router_serving_seconds_count"),
            serving_seconds: of("orlop_router_serving_seconds_sum"),
        }
    }
}

/// Traffic by queries.
#[derive(Clone, Debug)]
pub struct TrafficSeries {
    prometheus: Prometheus,
    queries: Queries,
    window_s: f64,
}

impl TrafficSeries {
    /// By these queries, over this window.
    #[must_use]
    pub fn new(prometheus: Prometheus, queries: &Queries, window_s: f64) -> Self {
        let window = format!("{}ms", (window_s * 1e3).round());
        let with_window = |query: &str| query.replace("$window", &window);
        Self {
            prometheus,
            queries: Queries {
                entered: with_window(&queries.entered),
                served: with_window(&queries.served),
                serving_seconds: with_window(&queries.serving_seconds),
            },
            window_s,
        }
    }
}

/// Service and node of an element, and its value.
fn place(element: &Element) -> Option<(String, String, f64)> {
    let (namespace, service) = (element.label("namespace")?, element.label("service")?);
    let node = element.label("node")?.to_owned();
    Some((format!("{namespace}/{service}"), node, element.value))
}

impl Meter for TrafficSeries {
    fn read(&self) -> BoxFuture<'_, Result<Traffic, Error>> {
        Box::pin(async move {
            let entered = self.prometheus.query(&self.queries.entered).await?;
            let served = self.prometheus.query(&self.queries.served).await?;
            let seconds = self.prometheus.query(&self.queries.serving_seconds).await?;
            Ok(traffic(&entered, &served, &seconds, self.window_s))
        })
    }
}

fn traffic(entered: &[Element], served: &[Element], seconds: &[Element], window_s: f64) -> Traffic {
    let mut services: BTreeMap<String, ServiceTraffic> = BTreeMap::new();
    for (service, node, requests) in entered.iter().filter_map(place) {
        let of = services.entry(service).or_default();
        *of.entered.entry(node).or_default() += requests.max(0.0);
    }
    let seconds: BTreeMap<(String, String), f64> = seconds
        .iter()
        .filter_map(place)
        .map(|(service, node, seconds)| ((service, node), seconds))
        .collect();
    for (service, node, requests) in served.iter().filter_map(place) {
        let Some(sum) = seconds.get(&(service.clone(), node.clone())) else {
            continue;
        };
        // Of a service of which nobody says where its requests enter nothing is decided.
        if let Some(of) = services.get_mut(&service)
            && requests > 0.0
        {
            of.served
                .insert(node, (sum.max(0.0) / requests * 1e3, requests));
        }
    }
    Traffic { services, window_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(service: &str, node: &str, value: f64) -> Element {
        let labels = [("namespace", "shop"), ("service", service), ("node", node)];
        Element {
            labels: labels
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            value,
        }
    }

    #[test]
    fn an_answer_is_read_and_what_is_none_is_said() {
        let good = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"node":"a"},"value":[1.5,"2.25"]},{"metric":{},"value":[1.5,"NaN"]}]}}"#;
        let found = elements("q", good).unwrap_or_default();
        assert_eq!((found.len(), found[0].value), (1, 2.25));
        let bad = br#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        let said = |body: &[u8]| elements("q", body).err().map(|e| e.to_string());
        assert!(said(bad).unwrap_or_default().contains("parse error"));
        assert!(
            said(b"<html>")
                .unwrap_or_default()
                .contains("cannot be used")
        );
        let scalar = br#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert!(said(scalar).unwrap_or_default().contains("not a vector"));
        assert_eq!(
            escaped("a{b=\"c d\"}[1s]"),
            "a%7Bb%3D%22c%20d%22%7D%5B1s%5D"
        );
    }

    #[test]
    fn serving_times_are_sums_by_counts_and_no_series_is_not_no_traffic() {
        let read = traffic(
            &[element("a", "n1", 40.0), element("a", "n2", 0.0)],
            &[element("a", "n1", 20.0), element("b", "n1", 5.0)],
            &[element("a", "n1", 0.5), element("b", "n1", 0.1)],
            10.0,
        );
        let a = &read.services["shop/a"];
        assert_eq!(a.entered.len(), 2);
        assert_eq!(a.served["n1"], (25.0, 20.0));
        assert!(!read.services.contains_key("shop/b"));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for url in ["prometheus:9090", "https://p", "http://p?x=1", "::"] {
            assert!(
                Prometheus::new(url, Duration::from_secs(1)).is_err(),
                "{url}"
            );
        }
        assert!(Prometheus::new("http://p:9090/prefix/", Duration::from_secs(1)).is_ok());
    }
}
