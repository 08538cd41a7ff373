//! Agents of `orlop-fleet latency`: in network namespaces with delays between them, and one with
//! 200 peers.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "node_latency/delay.rs"]
mod delay;
#[path = "node_latency/networks.rs"]
mod networks;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use delay::Delay;
use e2e::fleet;
use e2e::kube::metrics::Metrics;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::{Result, ensure, fail};
use networks::Networks;
use serde_json::Value;

/// On two cores that other tests may use too.
const PATIENCE: Duration = Duration::from_secs(90);
const PORT: u16 = 2387;

/// A page of an agent, as plain HTTP: the agents are in networks of their own.
fn page(at: SocketAddr, path: &str) -> Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return fail(format!("half an answer: {text}"));
    };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.unwrap_or(0), body.to_owned()))
}

fn metrics(at: SocketAddr) -> Result<Metrics> {
    let (code, body) = page(at, "/metrics")?;
    ensure(code == 200, || format!("HTTP {code}: {body}"))?;
    Ok(Metrics::new(body))
}

/// The value of a series with a label `to`; none if it is absent.
fn value(page: &Metrics, name: &str, to: &str) -> Option<f64> {
    let to = format!("to=\"{to}\"");
    page.series(name, &[&to]).next().map(|(_, value)| value)
}

/// Waits until `holds` of an agent's page.
fn until(what: &str, at: SocketAddr, holds: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
    let began = Instant::now();
    loop {
        let page = metrics(at);
        if let Ok(page) = &page
            && holds(page)
        {
            return Ok(Metrics::new(page.text().to_owned()));
        }
        if began.elapsed() > PATIENCE {
            let said = match page {
                Ok(page) => page.text().to_owned(),
                Err(error) => error.to_string(),
            };
            return fail(format!("not in time: {what}; the page: {said}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Agents {
    networks: Networks,
    processes: Vec<Option<Process>>,
    // Held for their threads.
    _delays: Vec<Delay>,
}

/// One-way delays between the nodes a, b and c, in ms.
const ONE_WAY_MS: [[u64; 3]; 3] = [[0, 20, 60], [20, 0, 40], [60, 40, 0]];
const NAMES: [&str; 3] = ["a", "b", "c"];

impl Agents {
    /// Three nodes; each reaches the others by ways that take their time.
    fn start(dir: &Path) -> Result<Self> {
        let networks = Networks::make(NAMES.len())?;
        let mut agents = Self {
            processes: NAMES.map(|_| None).into(),
            _delays: Vec::new(),
            networks,
        };
        for from in 0..NAMES.len() {
            let mut lines = String::new();
            for to in 0..NAMES.len() {
                let address = match from == to {
                    true => agents.address(to),
                    false => {
                        let way = Duration::from_millis(ONE_WAY_MS[from][to]);
                        let host = agents.networks.host();
                        let delay = Delay::start(host, agents.address(to), way)?;
                        let address = delay.address();
                        agents._delays.push(delay);
                        address
                    }
                };
                lines.push_str(&format!("{} {address} zone-{to}\n", NAMES[to]));
            }
            std::fs::write(dir.join(format!("peers-{}", NAMES[from])), lines)?;
            agents.run(dir, from)?;
        }
        Ok(agents)
    }

    fn address(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.networks.address(node), PORT)
    }

    fn run(&mut self, dir: &Path, node: usize) -> Result<()> {
        let address = self.address(node);
        let mut command = self.networks.command(node, &fleet::program()?);
        command
            .args(["latency", "--period=1", "--window=10", "--timeout-ms=1000"])
            .arg(format!("--node={}", NAMES[node]))
            .arg(format!(
                "--peers={}",
                dir.join(format!("peers-{}", NAMES[node])).display()
            ))
            .arg(format!("--listen={address}"))
            .arg(format!("--metrics-addr={address}"));
        let process = Process::start(&format!("agent-{}", NAMES[node]), dir, &mut command)?;
        self.processes[node] = Some(process);
        Ok(())
    }
}

fn in_networks(dir: &Path) -> Result<()> {
    let mut agents = Agents::start(dir)?;
    // Every way is measured, with its delay there and back, and not with another one's.
    for from in 0..NAMES.len() {
        let at = agents.address(from);
        let page = until("all peers are measured", at, |page| {
            (0..NAMES.len()).filter(|to| *to != from).all(|to| {
                value(page, "latency_between_nodes", NAMES[to]).is_some()
                    && value(page, "orlop_latency_p99_ms", NAMES[to]).is_some()
            })
        })?;
        for to in (0..NAMES.len()).filter(|to| *to != from) {
            let least = (2 * ONE_WAY_MS[from][to]) as f64;
            let measured = value(&page, "latency_between_nodes", NAMES[to]).unwrap_or(0.0);
            ensure(measured >= least, || {
                format!("{from} to {to}: {measured} ms, not {least}")
            })?;
        }
        ensure(
            value(&page, "latency_between_nodes", NAMES[from]).is_none(),
            || "a node measures itself".into(),
        )?;
        ensure(
            page_code(at, "/readyz")? == 200 && page_code(at, "/healthz")? == 200,
            || "an agent that measures is not ready".into(),
        )?;
    }
    // On a machine that is not asleep, a is nearer to b than to c.
    until("a is nearer to b than to c", agents.address(0), |page| {
        let to = |name| value(page, "latency_between_nodes", name);
        to("b") < to("c") && to("b").is_some()
    })?;
    histograms_are_local(agents.address(0))?;

    // c dies: its values go, its losses are counted, and the page is whole.
    if let Some(process) = &mut agents.processes[2] {
        process.kill();
    }
    let page = until("c is down", agents.address(0), |page| {
        value(page, "latency_between_nodes", "c").is_none()
            && value(page, "orlop_latency_peer_up", "c") == Some(0.0)
    })?;
    ensure(value(&page, "latency_between_nodes", "b").is_some(), || {
        "b is not measured beside a dead peer".into()
    })?;
    let lost = |page: &Metrics| {
        page.sum(
            "orlop_latency_probes_total",
            &["to=\"c\"", "result=\"lost\""],
        )
    };
    let before = lost(&page);
    ensure(before > 0.0, || "no probe of a dead peer was lost".into())?;
    until("losses are counted", agents.address(0), |page| {
        lost(page) > before
    })?;

    // It comes back.
    agents.run(dir, 2)?;
    until("c is measured again", agents.address(0), |page| {
        value(page, "latency_between_nodes", "c").is_some()
            && value(page, "orlop_latency_peer_up", "c") == Some(1.0)
    })?;

    // A link goes down and comes back: between b and everybody.
    agents.networks.link(1, false)?;
    until("b is down", agents.address(0), |page| {
        value(page, "orlop_latency_peer_up", "b") == Some(0.0)
    })?;
    agents.networks.link(1, true)?;
    until("b is measured again", agents.address(0), |page| {
        value(page, "latency_between_nodes", "b").is_some()
    })?;

    // A node leaves the list; a line that is wrong changes nothing.
    let list = dir.join("peers-a");
    let text = std::fs::read_to_string(&list)?;
    let without: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("c "))
        .collect();
    std::fs::write(&list, format!("{}\n", without.join("\n")))?;
    until("c is gone", agents.address(0), |page| {
        value(page, "orlop_latency_probes_total", "c").is_none()
    })?;
    std::fs::write(&list, "b\n")?;
    let page = until("the list is wrong", agents.address(0), |page| {
        page.series("orlop_latency_nodes_current", &[])
            .any(|(_, value)| value == 0.0)
    })?;
    ensure(value(&page, "latency_between_nodes", "b").is_some(), || {
        "a list that cannot be read ends measuring".into()
    })
}

fn page_code(at: SocketAddr, path: &str) -> Result<u16> {
    Ok(page(at, path)?.0)
}

fn histograms_are_local(at: SocketAddr) -> Result<()> {
    let (_, text) = page(at, "/v1/histograms")?;
    let json: Value = serde_json::from_str(&text)?;
    let counts = json["peers"]["b"].as_array().cloned().unwrap_or_default();
    let sum: u64 = counts.iter().filter_map(Value::as_u64).sum();
    ensure(sum > 0, || format!("no histogram: {text}"))?;
    let page = metrics(at)?;
    ensure(!page.text().contains("_bucket"), || {
        "a histogram is in the series".into()
    })
}

#[test]
fn agents_in_networks_of_their_own_measure_delays_and_live_with_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let result = in_networks(dir.path());
    conclude(dir, result);
}

/// Sends what no peer sends; nothing comes back that is larger, and not without end.
fn strangers(dir: &Path) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut command = Command::new(fleet::program()?);
    command
        .args(["latency", "--node=a", "--peer=b=127.0.0.2"])
        .arg(format!("--listen={address}"))
        .arg(format!("--metrics-addr={address}"));
    let _agent = Process::start("agent", dir, &mut command)?;
    until("the agent runs", address, |_| true)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut question = *b"OLAT\x01\x01\0\0................";
    let mut buffer = [0; 2048];
    // A question has its answer, of its size.
    socket.send_to(&question, address)?;
    let (size, _) = socket.recv_from(&mut buffer)?;
    ensure(size == question.len() && buffer[5] == 2, || {
        "no answer".into()
    })?;
    ensure(buffer[8..24] == question[8..24], || "another nonce".into())?;
    // Anything else has none.
    for wrong in [&question[..23], &[0; 1400], b"", b"GET / HTTP/1.1"] {
        socket.send_to(wrong, address)?;
    }
    question[5] = 2;
    socket.send_to(&question, address)?;
    ensure(socket.recv_from(&mut buffer).is_err(), || {
        "an answer to no question".into()
    })?;
    // A flood is answered in part, and the agent goes on.
    question[5] = 1;
    let sent = 5_000;
    for _ in 0..sent {
        socket.send_to(&question, address)?;
    }
    let page = until("the flood was seen", address, |page| {
        page.sum("orlop_latency_packets_total", &["what=\"refused\""]) > 0.0
    })?;
    let count = |what: &str| {
        page.sum(
            "orlop_latency_packets_total",
            &[&format!("what=\"{what}\"")],
        )
    };
    ensure(count("stray") >= 1.0 && count("unknown") >= 3.0, || {
        page.text().to_owned()
    })?;
    Ok(())
}

#[test]
fn strangers_get_no_more_than_they_send_and_not_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let result = strangers(dir.path());
    conclude(dir, result);
}

/// The cluster's nodes are followed, and measured on while its API is gone: here it never was.
fn without_an_api(dir: &Path) -> Result<()> {
    let kubeconfig = dir.join("kubeconfig");
    let nobody = free_port()?;
    std::fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{nobody}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        ),
    )?;
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut command = Command::new(fleet::program()?);
    command
        .args(["latency", "--node=a"])
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--listen={address}"))
        .arg(format!("--metrics-addr={address}"));
    let mut agent = Process::start("agent", dir, &mut command)?;
    until("the failure is counted", address, |page| {
        page.series("orlop_latency_nodes_failures_total", &[])
            .any(|(_, value)| value > 0.0)
    })?;
    ensure(page_code(address, "/readyz")? == 503, || {
        "ready without a list".into()
    })?;
    ensure(page_code(address, "/healthz")? == 200, || {
        "not healthy".into()
    })?;
    agent.terminate(Duration::from_secs(20))?;
    Ok(())
}

#[test]
fn an_agent_without_an_api_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let result = without_an_api(dir.path());
    conclude(dir, result);
}

/// As 200 agents would, on as many addresses: answers questions, and asks 120 times a second.
fn crowd(agent: SocketAddr, port: u16, stop: &AtomicBool) -> std::io::Result<()> {
    let answers = UdpSocket::bind(("0.0.0.0", port))?;
    answers.set_read_timeout(Some(Duration::from_millis(100)))?;
    let asks = (0..200)
        .map(|n| {
            let socket = UdpSocket::bind((peer_address(n), 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut packet = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((size, from)) = answers.recv_from(&mut packet) {
                    packet[5] = 2;
                    let _ = answers.send_to(&packet[..size], from);
                }
            }
        });
        let question = *b"OLAT\x01\x01\0\0................";
        for socket in asks.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // The answer to the question before is taken away.
            let _ = socket.recv_from(&mut [0; 64]);
            let _ = socket.send_to(&question, agent);
            std::thread::sleep(Duration::from_micros(8_300));
        }
    });
    Ok(())
}

fn peer_address(n: usize) -> IpAddr {
    IpAddr::from([127, 0, 1 + (n / 100) as u8, 1 + (n % 100) as u8])
}

fn with_200_peers(dir: &Path) -> Result<()> {
    let (own, port) = (
        SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        free_port()?,
    );
    let line = |n| format!("node-{n} {}:{port}\n", peer_address(n));
    let peers = dir.join("peers");
    std::fs::write(&peers, (0..200).map(line).collect::<String>())?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| crowd(own, port, &stop));
        let result = measured(dir, own, &peers);
        stop.store(true, Ordering::Relaxed);
        match others.join() {
            Ok(Ok(())) => result,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => fail("the crowd has failed"),
        }
    })
}

fn measured(dir: &Path, own: SocketAddr, peers: &Path) -> Result<()> {
    let mut command = Command::new(fleet::program()?);
    command
        .args(["latency", "--node=agent"])
        .arg(format!("--peers={}", peers.display()))
        .arg(format!("--listen={own}"))
        .arg(format!("--metrics-addr={own}"));
    let mut agent = Process::start("agent", dir, &mut command)?;
    let names: BTreeSet<String> = (0..200).map(|n| format!("node-{n}")).collect();
    let page = until("all 200 are measured", own, |page| {
        let known = |name: &String| value(page, "latency_between_nodes", name).is_some();
        names.iter().all(known)
    })?;
    let before = page.sum("process_cpu_seconds_total", &[]);
    let began = Instant::now();
    let seconds = e2e::env::number("ORLOP_E2E_AGENT_S")?.unwrap_or(5);
    std::thread::sleep(Duration::from_secs(seconds));
    let page = metrics(own)?;
    let cpu = page.sum("process_cpu_seconds_total", &[]) - before;
    let cpu = cpu / began.elapsed().as_secs_f64();
    let resident = page.sum("process_resident_memory_bytes", &[]);
    println!(
        "an agent with 200 peers: {:.2} % of a core, {:.1} MB resident, over {seconds} s",
        cpu * 100.0,
        resident / 1e6
    );
    // Counts, whatever the machine does.
    let answered = page.sum("orlop_latency_packets_total", &["what=\"answered\""]);
    ensure(answered > 200.0, || page.text().to_owned())?;
    ensure(
        page.sum("orlop_latency_packets_total", &["what=\"refused\""]) == 0.0,
        || "a node's questions are refused".into(),
    )?;
    ensure(resident <= 60e6, || {
        format!("{resident} bytes are resident")
    })?;
    agent.terminate(Duration::from_secs(20))?;
    Ok(())
}

#[test]
fn an_agent_with_200_peers_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let result = with_200_peers(dir.path());
    conclude(dir, result);
}
