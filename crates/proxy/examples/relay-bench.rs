//! What a relay costs: latency that it adds, paired with a direct connection, and bytes that it
//! moves for a second of CPU. The proxy, and HAProxy (if installed) in TCP mode with and without
//! splicing, before the same server of bytes, in one run.
//!
//! `cargo run --release --workspace --example relay-bench -- run [SECONDS] [CONNECTIONS] [ROUNDS]`

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement ends where it fails"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use metrics::ProxyMetrics;
use proxy::{Proxy, Settings};
use tokio::sync::watch;
use upstream::{Leader, MemberView, View};

const MESSAGE_BYTES: usize = 100;
/// Between rounds of the latency measurement: calls of a calm client.
const PAUSE: Duration = Duration::from_micros(200);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let word = |nth: usize| args.get(nth).map_or("", String::as_str);
    let number = |nth: usize, default: usize| word(nth).parse().unwrap_or(default);
    match word(1) {
        "member" => member(),
        "proxy" => relay(word(2)),
        "run" => run(number(2, 3) as u64, number(3, 2), number(4, 10_000)),
        _ => eprintln!("relay-bench run [SECONDS] [CONNECTIONS] [ROUNDS]"),
    }
}

/// Serves bytes: `s` as the first one asks for bytes without an end, `e` for an echo.
fn member() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        thread::spawn(move || {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut wish = [0];
            if stream.read_exact(&mut wish).is_err() {
                return;
            }
            let mut bytes = vec![7; 256 * 1024];
            if wish == *b"s" {
                while stream.write_all(&bytes).is_ok() {}
                return;
            }
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..read]).is_err() {
                    return;
                }
            }
        });
    }
}

/// A proxy whose leader is this address, for ever.
fn relay(to: &str) {
    let endpoint: upstream::Endpoint = format!("http://{to}").parse().unwrap();
    let view = View {
        leader: Some(Leader {
            member_id: 1,
            term: 1,
            endpoint: endpoint.clone(),
        }),
        members: vec![MemberView::new(endpoint)],
        ..View::default()
    };
    let (_view, views) = watch::channel(Arc::new(view));
    let settings = Settings {
        workers: 1,
        ..Settings::default()
    };
    let metrics = Arc::new(ProxyMetrics::new(1, "bench"));
    let listen = ["127.0.0.1:0".to_owned()];
    let proxy = Proxy::start(settings, &listen, views, Box::new(|_| {}), metrics).unwrap();
    println!("{}", proxy.listens()[0]);
    loop {
        thread::park();
    }
}

/// A process and where it listens; it ends with this.
struct Path {
    name: String,
    address: String,
    child: Option<Child>,
}

impl Drop for Path {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Path {
    /// This program in another role, which prints its address.
    fn own(name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        Path {
            name: name.to_owned(),
            address: line.trim().to_owned(),
            child: Some(child),
        }
    }

    fn haproxy(name: &str, to: &str, options: &str) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let file =
            std::env::temp_dir().join(format!("relay-bench-{}-{name}.cfg", std::process::id()));
        let text = format!(
            "global\n  nbthread 1\n  maxconn 1000\ndefaults\n  mode tcp\n{options}  \
             timeout connect 2s\n  timeout client 60s\n  timeout server 60s\nlisten a\n  \
             bind {address}\n  server a {to}\n"
        );
        fs::write(&file, text).unwrap();
        let child = Command::new("haproxy").arg("-f").arg(&file).spawn().ok()?;
        while TcpStream::connect(&address).is_err() {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_file(&file);
        Some(Path {
            name: name.to_owned(),
            address,
            child: Some(child),
        })
    }

    /// CPU seconds that the relay has used.
    fn cpu_s(&self) -> f64 {
        let Some(child) = &self.child else {
            return 0.0;
        };
        let text = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = text
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks = |nth: usize| fields[nth].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / 100.0
    }

    fn connect(&self, wish: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(wish).unwrap();
        stream
    }
}

fn run(seconds: u64, connections: usize, rounds: usize) {
    let member = Path::own("member", &["member"]);
    let direct = Path {
        name: "direct".to_owned(),
        address: member.address.clone(),
        child: None,
    };
    let mut paths = vec![
        direct,
        Path::own("orlop proxy", &["proxy", &member.address]),
    ];
    paths.extend(Path::haproxy("haproxy", &member.address, ""));
    let splice = "  option splice-response\n  option splice-request\n";
    paths.extend(Path::haproxy("haproxy, splicing", &member.address, splice));
    println!("{connections} connections, {seconds} s each, three rounds");
    for _ in 0..3 {
        for path in &paths {
            let (moved, took, cpu) = bytes(path, seconds, connections);
            let gb = moved as f64 / 1e9;
            if path.child.is_some() {
                println!(
                    "{:<20} {:>6.2} GB/s {:>6.2} GB a CPU second",
                    path.name,
                    gb / took,
                    gb / cpu
                );
            } else {
                println!("{:<20} {:>6.2} GB/s", path.name, gb / took);
            }
        }
    }
    println!("{MESSAGE_BYTES} bytes there and back, {rounds} rounds, paired; us");
    latency(&paths, rounds);
}

/// Bytes received, seconds, CPU seconds of the relay.
fn bytes(path: &Path, seconds: u64, connections: usize) -> (u64, f64, f64) {
    let cpu = path.cpu_s();
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let readers: Vec<_> = (0..connections)
        .map(|_| {
            let mut stream = path.connect(b"s");
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 20];
                let mut moved = 0;
                while Instant::now() < end {
                    moved += stream.read(&mut bytes).unwrap() as u64;
                }
                let _ = stream.shutdown(Shutdown::Both);
                moved
            })
        })
        .collect();
    let moved = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .sum();
    (moved, began.elapsed().as_secs_f64(), path.cpu_s() - cpu)
}

fn latency(paths: &[Path], rounds: usize) {
    let mut streams: Vec<_> = paths.iter().map(|path| path.connect(b"e")).collect();
    let mut took_us = vec![Vec::with_capacity(rounds); paths.len()];
    let mut bytes = [1; MESSAGE_BYTES];
    for round in 0..rounds {
        // In turn, each begins as often as the others.
        for nth in 0..paths.len() {
            let nth = (nth + round) % paths.len();
            let began = Instant::now();
            streams[nth].write_all(&bytes).unwrap();
            streams[nth].read_exact(&mut bytes).unwrap();
            took_us[nth].push(began.elapsed().as_secs_f64() * 1e6);
        }
        thread::sleep(PAUSE);
    }
    for (path, took) in paths.iter().zip(&took_us) {
        let over: Vec<f64> = took.iter().zip(&took_us[0]).map(|(a, b)| a - b).collect();
        let [p50, p99] = [0.5, 0.99].map(|q| quantile(took, q));
        let [over50, over99] = [0.5, 0.99].map(|q| quantile(&over, q));
        println!(
            "{:<20} p50 {p50:>7.1} p99 {p99:>7.1}   over direct: p50 {over50:>6.1} p99 {over99:>6.1}",
            path.name
        );
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q) as usize]
}
