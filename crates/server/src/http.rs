//! HTTP on the client port and on the metrics URLs: health, version, metrics, with etcd's
//! paths, parameters and texts.

use crate::maintenance::{alarm_name, scrape_input};
use crate::service::Service;
use bytes::Bytes;
use etcd_api::{CLUSTER_VERSION, ETCD_VERSION};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, Method, Response, StatusCode, header};
use metrics::{Check, Probe};
use parking_lot::Mutex;
use std::io::Write;
use std::rc::Rc;
use wire::HttpRequest;

/// What the JSON gateway's paths answer.
const NO_GATEWAY: &str =
    "orlop: the JSON gateway (/v3/*) is not offered yet; use gRPC (etcdctl, any etcd v3 client)\n";

const LIVEZ: [Check; 1] = [Check::SerializableRead];
const READYZ: [Check; 4] = [
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

fn check_name(c: Check) -> &'static str {
    match c {
        Check::DataCorruption => "data_corruption",
        Check::SerializableRead => "serializable_read",
        Check::LinearizableRead => "linearizable_read",
        Check::NonLearner => "non_learner",
    }
}

impl Service {
    pub(crate) fn http_request(self: &Rc<Self>, r: HttpRequest) -> Response<Bytes> {
        let uri = r.request.uri();
        let query = Query(uri.query().unwrap_or_default());
        let path = uri.path();
        let get = r.request.method() == Method::GET;
        if path.starts_with("/v3/") || path == "/v3" {
            return text(StatusCode::NOT_IMPLEMENTED, NO_GATEWAY);
        }
        if let Some(clean) = cleaned(path) {
            return redirect(&clean, uri.query());
        }
        match path {
            "/health" | "/livez" | "/readyz" | "/version" | "/debug/vars" if !get => {
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
                answer
                    .headers_mut()
                    .insert(header::ALLOW, header::HeaderValue::from_static("GET"));
                answer
            }
            "/health" => self.health(&query),
            "/debug/vars" => debug_vars(),
            "/version" => json(
                StatusCode::OK,
                format!(
                    r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
                ),
            ),
            "/metrics" => {
                let body = self.shared.metrics.encode(&scrape_input(&self.shared));
                let plain = answer(StatusCode::OK, metrics::CONTENT_TYPE, body);
                if takes_gzip(r.request.headers()) {
                    gzipped(plain)
                } else {
                    plain
                }
            }
            _ => match (path.strip_prefix("/livez"), path.strip_prefix("/readyz")) {
                (Some(rest), _) => self.probe(Probe::Livez, &LIVEZ, rest, &query),
                (_, Some(rest)) => self.probe(Probe::Readyz, &READYZ, rest, &query),
                _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
            },
        }
    }

    /// `/health`: false with a reason while an alarm is set that `exclude` does not name.
    fn health(&self, query: &Query<'_>) -> Response<Bytes> {
        let alarms = self.shared.store.lock().alarms();
        self.shared.health_told.look(&alarms);
        let alarm = alarms
            .into_iter()
            .map(alarm_name)
            .find(|a| !query.all("exclude").any(|e| e == *a));
        let m = &self.shared.metrics;
        match alarm {
            None => {
                m.health_success.inc();
                answer(
                    StatusCode::OK,
                    "text/plain; charset=utf-8",
                    r#"{"health":"true","reason":""}"#.into(),
                )
            }
            Some(a) => {
                m.health_failures.inc();
                text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &format!("{{\"health\":\"false\",\"reason\":\"ALARM {a}\"}}\n"),
                )
            }
        }
    }

    /// `/livez`, `/readyz` and their single checks. Reads are answered from memory: neither
    /// a full nor a slow disk, nor NOSPACE, fails them.
    fn probe(
        &self,
        probe: Probe,
        checks: &[Check],
        rest: &str,
        query: &Query<'_>,
    ) -> Response<Bytes> {
        let one = rest.strip_prefix('/');
        if !rest.is_empty() && !checks.iter().any(|&c| Some(check_name(c)) == one) {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let mut failed = false;
        let mut report = String::new();
        for &c in checks {
            let name = check_name(c);
            let wanted = one.map_or(!query.all("exclude").any(|e| e == name), |o| o == name);
            if !wanted {
                continue;
            }
            let corrupt = c == Check::DataCorruption && self.shared.store.lock().is_corrupt();
            self.shared.metrics.healthchecks.record(probe, c, !corrupt);
            if corrupt {
                failed = true;
                report.push_str(&format!("[-]{name} failed: alarm activated: CORRUPT\n"));
            } else {
                report.push_str(&format!("[+]{name} ok\n"));
            }
        }
        if failed {
            return text(StatusCode::SERVICE_UNAVAILABLE, &report);
        }
        let verbose = query.has("verbose");
        text(
            StatusCode::OK,
            &if verbose {
                report + "ok\n"
            } else {
                "ok\n".into()
            },
        )
    }
}

/// The alarms of which the log has said that they make `/health` false: a line when one comes
/// and one when it goes, however often and with whatever exceptions probes ask.
#[derive(Debug, Default)]
pub(crate) struct HealthTold(Mutex<Vec<i32>>);

impl HealthTold {
    /// Says what has changed since the last time.
    fn look(&self, alarms: &[i32]) {
        for (alarm, active) in self.changes(alarms) {
            let alarm = alarm_name(alarm);
            if active {
                tracing::warn!(alarm, "serving /health false due to an alarm");
            } else {
                tracing::info!(
                    alarm,
                    "the alarm is cleared: it no longer makes /health false"
                );
            }
        }
    }

    /// Which alarms have come (true) and gone since the last time.
    fn changes(&self, alarms: &[i32]) -> Vec<(i32, bool)> {
        let mut told = self.0.lock();
        if *told == alarms {
            return Vec::new();
        }
        let come = alarms.iter().filter(|a| !told.contains(a));
        let gone = told.iter().filter(|a| !alarms.contains(a));
        let changes = come.map(|&a| (a, true)).chain(gone.map(|&a| (a, false)));
        let changes = changes.collect();
        alarms.clone_into(&mut told);
        changes
    }
}

/// The query of a URL, as it is written.
pub(crate) struct Query<'a>(pub(crate) &'a str);

impl<'a> Query<'a> {
    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| p.split_once('=').unwrap_or((p, "")))
    }

    /// The values of a parameter.
    pub(crate) fn all(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        self.pairs()
            .filter(move |(k, _)| *k == name)
            .map(|(_, v)| v)
    }

    fn has(&self, name: &'static str) -> bool {
        self.pairs().any(|(k, _)| k == name)
    }
}

/// An answer that no browser takes for anything else.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Bytes> {
    let mut r = Response::new(Bytes::from(body));
    *r.status_mut() = status;
    r.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    r.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    r
}

/// A path without empty and dotted parts, if it has such: Go's server redirects to it.
fn cleaned(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

/// As Go does: the same method again, at another path of this server.
fn redirect(path: &str, query: Option<&str>) -> Response<Bytes> {
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    let mut r = text(StatusCode::TEMPORARY_REDIRECT, "Temporary Redirect\n");
    // Parts of a URI make one again.
    if let Ok(location) = header::HeaderValue::from_str(&format!("{path}{query}")) {
        r.headers_mut().insert(header::LOCATION, location);
    }
    r
}

/// Go's `expvar`, without what there is not (Go's memory) and what is nobody's business (the
/// command line).
fn debug_vars() -> Response<Bytes> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.map_or("null".to_owned(), |n| n.to_string());
    let body = format!("{{\n\"file_descriptor_limit\": {limit}\n}}\n");
    answer(StatusCode::OK, "application/json; charset=utf-8", body)
}

/// Whether `Accept-Encoding` names gzip, and not with weight 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let gzip = parts.next().is_some_and(|c| c.eq_ignore_ascii_case("gzip"));
            let weight = parts.find_map(|p| p.strip_prefix("q=")?.parse::<f32>().ok());
            gzip && weight.is_none_or(|weight| weight > 0.0)
        })
}

/// The same answer, compressed. It stays plain if that fails, which it does not in memory.
fn gzipped(plain: Response<Bytes>) -> Response<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let compressed = encoder
        .write_all(plain.body())
        .and_then(|()| encoder.finish());
    let Ok(compressed) = compressed else {
        return plain;
    };
    let mut r = plain.map(|_| Bytes::from(compressed));
    r.headers_mut().insert(
        header::CONTENT_ENCODING,
        header::HeaderValue::from_static("gzip"),
    );
    r
}

fn text(status: StatusCode, body: &str) -> Response<Bytes> {
    answer(status, "text/plain; charset=utf-8", body.to_string())
}

/// JSON, which the caller has written.
pub(crate) fn json(status: StatusCode, body: String) -> Response<Bytes> {
    answer(status, "application/json", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_gos_server_does() {
        for (path, clean) in [
            ("//health", Some("/health")),
            ("/./health", Some("/health")),
            ("/a/../health", Some("/health")),
            ("/../../health", Some("/health")),
            ("/livez//", Some("/livez/")),
            ("//elsewhere.example/x", Some("/elsewhere.example/x")),
            ("//", Some("/")),
            ("/", None),
            ("/health", None),
            ("/health/", None),
        ] {
            assert_eq!(cleaned(path).as_deref(), clean, "{path}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_ask() {
        let asked = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            takes_gzip(&headers)
        };
        assert!(asked("gzip"));
        assert!(asked("zstd, GZIP;q=0.5"));
        assert!(!asked("gzip;q=0, zstd"));
        assert!(!asked("identity"));
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn an_alarm_is_told_once_and_when_it_is_cleared() {
        let told = HealthTold::default();
        assert_eq!(told.changes(&[]), []);
        assert_eq!(told.changes(&[1]), [(1, true)]);
        for _ in 0..3 {
            assert_eq!(told.changes(&[1]), []);
        }
        assert_eq!(told.changes(&[2]), [(2, true), (1, false)]);
        assert_eq!(told.changes(&[]), [(2, false)]);
    }
}
