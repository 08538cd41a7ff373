//! What answers the loop's queries in a Prometheus' place: round trips and traffic as a test says.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What is measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Round trips in ms by pair of nodes, in both directions.
    pub(crate) round_trips: BTreeMap<(&'static str, &'static str), f64>,
    /// Nodes that nobody reaches.
    pub(crate) down: Vec<&'static str>,
    /// Requests in the window by node, of the service default/hello.
    pub(crate) entered: BTreeMap<&'static str, f64>,
    /// Serving time in ms.
    pub(crate) serving_ms: f64,
    /// Round trips are off by up to this part, and counts by some of their standard errors.
    pub(crate) noise: f64,
    /// It answers nothing.
    pub(crate) silent: bool,
    /// There are no series of traffic.
    pub(crate) no_traffic: bool,
}

/// A listener on loopback. It ends with the value.
pub(crate) struct Prometheus {
    port: u16,
    pub(crate) measured: Arc<Mutex<Measured>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Prometheus {
    pub(crate) fn start(measured: Measured) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let measured = Arc::new(Mutex::new(measured));
        let stop = Arc::new(AtomicBool::new(false));
        let (of, ends) = (measured.clone(), stop.clone());
        let draws = AtomicU64::new(0);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let _ = answer(stream, &of, &draws);
                }
            }
        });
        Ok(Self {
            port,
            measured,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Measured)) {
        if let Ok(mut measured) = self.measured.lock() {
            change(&mut measured);
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A number from -1 to 1, another one each time.
fn draw(draws: &AtomicU64) -> f64 {
    let mut x = draws
        .fetch_add(1, Ordering::Relaxed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x % 20_001) as f64 / 10_000.0 - 1.0
}

fn answer(
    mut stream: TcpStream,
    measured: &Mutex<Measured>,
    draws: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let measured = match measured.lock() {
        Ok(measured) => measured.clone(),
        Err(_) => return Ok(()),
    };
    if measured.silent {
        return Ok(());
    }
    let result = elements(&String::from_utf8_lossy(&body), &measured, draws);
    let body = json!({ "status": "success", "data": { "resultType": "vector", "result": result } });
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn elements(query: &str, measured: &Measured, draws: &AtomicU64) -> Vec<Value> {
    let element =
        |labels: Value, value: f64| json!({ "metric": labels, "value": [0, value.to_string()] });
    let mut ways = Vec::new();
    for ((a, b), ms) in &measured.round_trips {
        ways.extend([(*a, *b, *ms), (*b, *a, *ms)]);
    }
    let is_down =
        |from: &str, to: &str| measured.down.contains(&from) || measured.down.contains(&to);
    let traffic = |value: &dyn Fn(f64) -> f64| {
        if measured.no_traffic {
            return Vec::new();
        }
        let nodes = measured.entered.iter();
        nodes
            .map(|(node, requests)| {
                let labels = json!({ "namespace": "default", "service": "hello", "node": node });
                element(labels, value(*requests))
            })
            .collect()
    };
    let noisy_count = |requests: f64| {
        let noise = if measured.noise > 0.0 {
            draw(draws) * 1.5 * requests.sqrt()
        } else {
            0.0
        };
        (requests + noise).max(0.0)
    };
    if query.contains("latency_between_nodes") {
        ways.retain(|(from, to, _)| !is_down(from, to));
        ways.iter()
            .map(|(from, to, ms)| {
                let ms = ms * (1.0 + measured.noise * draw(draws));
                element(json!({ "from": from, "to": to }), ms)
            })
            .collect()
    } else if query.contains("peer_up") {
        ways.iter()
            .map(|(from, to, _)| {
                let up = if is_down(from, to) { 0.0 } else { 1.0 };
                element(json!({ "from": from, "to": to }), up)
            })
            .collect()
    } else if query.contains("requests_total") {
        traffic(&noisy_count)
    } else if query.contains("seconds_count") {
        traffic(&|requests| requests)
    } else if query.contains("seconds_sum") {
        traffic(&|requests| requests * measured.serving_ms / 1e3)
    } else {
        Vec::new()
    }
}
