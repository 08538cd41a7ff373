//! A proxy on loopback, before members that are not etcd's: what arrives, who waits, who is
//! refused, and what is ended when.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{ProxyEnd, ProxyMetrics, ProxyRefusal};
use proxy::{Admin, Fallback, Proxy, Settings};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use upstream::{Endpoint, Health, Leader, MemberView, View};

const MS: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a member does with a connection.
#[derive(Clone, Copy)]
enum Does {
    /// Sends back what it gets, and ends when its client does.
    Echo,
    /// Reads, and says nothing.
    Nothing,
    /// Says its number for each byte that it gets.
    Number(u8),
    /// Sends without an end, whatever it gets.
    Flood,
}

struct Member {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Member {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, sent) = (Arc::default(), Arc::default());
        let (count, sends) = (Arc::clone(&connections), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                AtomicUsize::fetch_add(&count, 1, Ordering::SeqCst);
                tokio::spawn(serve(stream, does, Arc::clone(&sends)));
            }
        });
        Member {
            address,
            connections,
            sent,
            task,
        }
    }

    fn endpoint(&self) -> Endpoint {
        format!("http://{}", self.address).parse().unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, does: Does, sent: Arc<AtomicUsize>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        if matches!(does, Does::Flood) {
            match stream.write(&bytes).await {
                Ok(n) => sent.fetch_add(n, Ordering::SeqCst),
                Err(_) => return,
            };
            continue;
        }
        let read = match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let answer = match does {
            Does::Echo => bytes[..read].to_vec(),
            Does::Number(number) => vec![number; read],
            Does::Nothing | Does::Flood => continue,
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// A cluster as a test says it is, and a proxy before it.
struct World {
    view: watch::Sender<Arc<View>>,
    suspected: Arc<AtomicUsize>,
    metrics: Arc<ProxyMetrics>,
    proxy: Option<Proxy>,
    at: SocketAddr,
}

fn settings() -> Settings {
    Settings {
        handover_gap: 20 * MS,
        handover_limit: 500 * MS,
        workers: 2,
        ..Settings::default()
    }
}

impl World {
    fn start(settings: Settings) -> Self {
        let (view, views) = watch::channel(Arc::new(View::default()));
        let suspected = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&suspected);
        let suspect = Box::new(move |_: &Endpoint| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let metrics = Arc::new(ProxyMetrics::new(1, "test"));
        let listen = ["127.0.0.1:0".to_owned()];
        let proxy = Proxy::start(settings, &listen, views, suspect, Arc::clone(&metrics)).unwrap();
        World {
            view,
            suspected,
            metrics,
            at: proxy.listens()[0],
            proxy: Some(proxy),
        }
    }

    /// From now on the first of these leads, the others are followers.
    fn lead(&self, members: &[&Endpoint]) {
        self.publish(members, &[]);
    }

    fn publish(&self, members: &[&Endpoint], lost: &[&Endpoint]) {
        let known = |endpoint: &&Endpoint, health: Health| MemberView {
            health,
            ..MemberView::new((*endpoint).clone())
        };
        let why = || Health::Unhealthy {
            since: Instant::now(),
            why: "the test says so".to_owned(),
        };
        let healthy = members.iter().map(|m| known(m, Health::Healthy));
        let lost = lost.iter().map(|m| known(m, why()));
        self.view.send_modify(|view| {
            *view = Arc::new(View {
                leader: members.first().map(|leader| Leader {
                    member_id: 1,
                    term: view.changes + 2,
                    endpoint: (*leader).clone(),
                }),
                members: healthy.chain(lost).collect(),
                changes: view.changes + 1,
                ..View::default()
            });
        });
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    fn ended(&self, why: ProxyEnd) -> u64 {
        self.metrics.ended(why).get()
    }

    fn refused(&self, why: ProxyRefusal) -> u64 {
        self.metrics.refused(why).get()
    }

    /// Waits until a refusal of this kind was counted.
    async fn until_refused(&self, why: ProxyRefusal) {
        let began = Instant::now();
        while self.refused(why) == 0 {
            assert!(began.elapsed() < PATIENCE, "{why:?}");
            sleep(5 * MS).await;
        }
        assert_eq!(self.refused(why), 1);
    }

    /// Waits until an end of this kind was counted so often.
    async fn until_ended(&self, why: ProxyEnd, times: u64) {
        let began = Instant::now();
        while self.ended(why) < times {
            assert!(began.elapsed() < PATIENCE, "{why:?}: {}", self.ended(why));
            sleep(5 * MS).await;
        }
    }
}

/// Sends a byte and reads one.
async fn ask(stream: &mut TcpStream) -> Option<u8> {
    stream.write_all(&[1]).await.ok()?;
    let mut answer = [0];
    match timeout(PATIENCE, stream.read(&mut answer)).await.unwrap() {
        Ok(1) => Some(answer[0]),
        _ => None,
    }
}

/// Reads to the end; how long it took, and what came.
async fn rest(stream: &mut TcpStream) -> (Duration, Vec<u8>) {
    let began = Instant::now();
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    (began.elapsed(), bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_arrive_byte_for_byte_and_may_be_half_closed() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(settings());
    world.lead(&[&member.endpoint()]);
    let streams = (0..40).map(|seed| {
        let at = world.at;
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let length = rng.random_range(0..2_000_000);
            let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            let (mut reader, mut writer) = TcpStream::connect(at).await.unwrap().into_split();
            let sent = bytes.clone();
            let sending = async move {
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let len = rng.random_range(1..=rest.len().min(200_000));
                    writer.write_all(&rest[..len]).await.unwrap();
                    rest = &rest[len..];
                    if rng.random_bool(0.2) {
                        sleep(MS).await;
                    }
                }
                // Half: the echo still comes.
                writer.shutdown().await.unwrap();
                writer
            };
            let mut got = Vec::new();
            let reading = reader.read_to_end(&mut got);
            let (_writer, read) = tokio::join!(sending, timeout(2 * PATIENCE, reading));
            read.unwrap().unwrap();
            assert!(got == bytes, "seed {seed}: other bytes than were sent");
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.unwrap();
    }
    world.until_ended(ProxyEnd::Done, 40).await;
    let (up, down) = (&world.metrics.client_bytes, &world.metrics.member_bytes);
    assert_eq!(up.get(), down.get());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_waits_for_a_leader_and_is_refused_in_the_end() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(Settings {
        wait: 600 * MS,
        ..settings()
    });
    let mut early = world.connect().await;
    early.write_all(b"x").await.unwrap();
    sleep(200 * MS).await;
    world.lead(&[&member.endpoint()]);
    let mut answer = [0];
    timeout(PATIENCE, early.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"x");
    world.lead(&[]);
    // Who is connected stays, whoever leads.
    assert_eq!(ask(&mut early).await, Some(1));
    let (took, _) = rest(&mut world.connect().await).await;
    assert!((500 * MS..5_000 * MS).contains(&took), "{took:?}");
    world.until_refused(ProxyRefusal::NoLeader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_lead_moves_connections_end_in_a_gap_or_at_the_limit() {
    let (old, silent) = (
        Member::start(Does::Number(7)).await,
        Member::start(Does::Nothing).await,
    );
    let new = Member::start(Does::Number(9)).await;
    let world = World::start(Settings {
        handover_limit: 3_000 * MS,
        ..settings()
    });
    world.lead(&[&silent.endpoint(), &new.endpoint()]);
    let mut waits_for_answer = world.connect().await;
    // Not TLS: it may be a request, and cannot be sent again.
    waits_for_answer.write_all(b"request").await.unwrap();
    sleep(50 * MS).await;
    world.lead(&[&old.endpoint(), &new.endpoint(), &silent.endpoint()]);
    let mut idle = world.connect().await;
    assert_eq!(ask(&mut idle).await, Some(7));
    world.lead(&[&new.endpoint(), &old.endpoint(), &silent.endpoint()]);
    let (took, _) = rest(&mut idle).await;
    assert!(took < 2_000 * MS, "not in the gap: {took:?}");
    let (took, bytes) = rest(&mut waits_for_answer).await;
    assert!(bytes.is_empty());
    assert!(
        (500 * MS..10_000 * MS).contains(&took),
        "not at the limit: {took:?}"
    );
    world.until_ended(ProxyEnd::Gap, 1).await;
    world.until_ended(ProxyEnd::Limit, 1).await;
    let mut again = world.connect().await;
    assert_eq!(ask(&mut again).await, Some(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_late_comes_whole_before_the_handover() {
    let old = Member::start(Does::Echo).await;
    let new = Member::start(Does::Number(9)).await;
    // Wide: a machine that is busy may leave the member without its turn for a while, and that is a
    // gap like any other.
    let world = World::start(Settings {
        handover_gap: 1_000 * MS,
        handover_limit: 15_000 * MS,
        ..settings()
    });
    world.lead(&[&old.endpoint(), &new.endpoint()]);
    let mut stream = world.connect().await;
    assert_eq!(ask(&mut stream).await, Some(1));
    // A stream without a gap until it ends.
    let sent = vec![3; 8_000_000];
    let (mut reader, mut writer) = stream.into_split();
    let expected = sent.len();
    let sending = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer
    });
    world.lead(&[&new.endpoint(), &old.endpoint()]);
    let mut got = Vec::new();
    let read = timeout(PATIENCE, reader.read_to_end(&mut got)).await;
    read.unwrap().unwrap();
    let writer = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert_eq!(got.len(), expected);
    assert!(got.iter().all(|byte| *byte == 3));
    drop((reader, writer));
    world.until_ended(ProxyEnd::Gap, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_is_left_at_once_and_first_bytes_of_tls_go_to_the_next() {
    let (dead, new) = (
        Member::start(Does::Nothing).await,
        Member::start(Does::Number(9)).await,
    );
    let world = World::start(Settings {
        handover_limit: 10_000 * MS,
        ..settings()
    });
    world.lead(&[&dead.endpoint(), &new.endpoint()]);
    let mut hello = world.connect().await;
    hello.write_all(b"\x16\x03\x01 hello").await.unwrap();
    let mut request = world.connect().await;
    request.write_all(b"request").await.unwrap();
    sleep(700 * MS).await;
    assert!(
        world.suspected.load(Ordering::SeqCst) >= 2,
        "nobody was suspected"
    );
    world.publish(&[&new.endpoint()], &[&dead.endpoint()]);
    let mut answer = [0; 9];
    timeout(PATIENCE, hello.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, [9; 9]);
    let (took, _) = rest(&mut request).await;
    assert!(took < 5_000 * MS, "{took:?}");
    world.until_ended(ProxyEnd::MemberLost, 1).await;
    assert_eq!(world.metrics.begun_again.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_refuses_is_suspected_and_the_connection_waits() {
    let (gone, new) = (
        Member::start(Does::Echo).await,
        Member::start(Does::Number(9)).await,
    );
    let world = World::start(settings());
    gone.task.abort();
    while TcpStream::connect(gone.address).await.is_ok() {}
    world.lead(&[&gone.endpoint()]);
    let mut stream = world.connect().await;
    stream.write_all(&[1]).await.unwrap();
    sleep(200 * MS).await;
    assert!(world.suspected.load(Ordering::SeqCst) >= 1);
    assert!(world.metrics.connect_failures.get() >= 2);
    world.lead(&[&new.endpoint()]);
    let mut answer = [0];
    timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, [9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_fallback_a_follower_serves_until_somebody_leads() {
    let (follower, new) = (
        Member::start(Does::Number(5)).await,
        Member::start(Does::Number(9)).await,
    );
    let world = World::start(Settings {
        wait: 200 * MS,
        fallback: Fallback::Follower,
        ..settings()
    });
    world.view.send_modify(|view| {
        let member = MemberView {
            health: Health::Healthy,
            ..MemberView::new(follower.endpoint())
        };
        *view = Arc::new(View {
            members: vec![member],
            ..View::default()
        });
    });
    let mut stream = world.connect().await;
    assert_eq!(ask(&mut stream).await, Some(5));
    world.lead(&[&new.endpoint(), &follower.endpoint()]);
    rest(&mut stream).await;
    assert_eq!(ask(&mut world.connect().await).await, Some(9));
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cost_a_bounded_amount_and_stop_nobody() {
    let flood = Member::start(Does::Flood).await;
    let world = World::start(settings());
    world.lead(&[&flood.endpoint()]);
    let mut clients = Vec::new();
    let before = resident();
    for _ in 0..40 {
        clients.push(world.connect().await);
    }
    let began = Instant::now();
    let mut sent = 0;
    loop {
        sleep(500 * MS).await;
        let now = flood.sent.load(Ordering::SeqCst);
        if now == sent && now > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it goes on: {now}");
        sent = now;
    }
    let grown = resident().saturating_sub(before);
    // A buffer a direction, and the rest of this process.
    assert!(
        grown < 40 * 2 * 256 * 1024 + (16 << 20),
        "{grown} bytes more"
    );
    let mut reader = clients.pop().unwrap();
    let mut bytes = vec![0; 8 << 20];
    timeout(PATIENCE, reader.read_exact(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    drop(clients);
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_limits_are_refused_and_places_come_back() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(Settings {
        max_connections: 3,
        max_waiting: 2,
        ..settings()
    });
    let first = world.connect().await;
    let _second = world.connect().await;
    sleep(50 * MS).await;
    let (took, _) = rest(&mut world.connect().await).await;
    assert!(took < 1_000 * MS);
    world.until_refused(ProxyRefusal::Waiting).await;
    world.lead(&[&member.endpoint()]);
    // Those that waited make room.
    while world.metrics.wait.count() < 2 {
        sleep(5 * MS).await;
    }
    sleep(50 * MS).await;
    let mut third = world.connect().await;
    assert_eq!(ask(&mut third).await, Some(1));
    rest(&mut world.connect().await).await;
    world.until_refused(ProxyRefusal::Connections).await;
    drop(first);
    world.until_ended(ProxyEnd::Done, 1).await;
    assert_eq!(ask(&mut world.connect().await).await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_answers_come_and_ends_who_waits() {
    let member = Member::start(Does::Echo).await;
    let mut world = World::start(Settings {
        drain: 1_500 * MS,
        ..settings()
    });
    world.lead(&[&member.endpoint()]);
    let mut idle = world.connect().await;
    assert_eq!(ask(&mut idle).await, Some(1));
    let silent = Member::start(Does::Nothing).await;
    world.lead(&[&silent.endpoint(), &member.endpoint()]);
    rest(&mut idle).await;
    let mut waits = world.connect().await;
    waits.write_all(b"request").await.unwrap();
    sleep(100 * MS).await;
    let proxy = world.proxy.take().unwrap();
    let began = Instant::now();
    let stopping = tokio::task::spawn_blocking(move || proxy.stop());
    sleep(200 * MS).await;
    assert!(
        TcpStream::connect(world.at).await.is_err(),
        "it still accepts"
    );
    let (took, _) = rest(&mut waits).await;
    assert!(took > 500 * MS, "cut off after {took:?}");
    drop(waits);
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
    assert!(began.elapsed() < 4_000 * MS, "{:?}", began.elapsed());
    assert_eq!(world.ended(ProxyEnd::Drain), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_end() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(Settings {
        idle_timeout: Some(200 * MS),
        ..settings()
    });
    world.lead(&[&member.endpoint()]);
    let mut stream = world.connect().await;
    for _ in 0..10 {
        sleep(50 * MS).await;
        assert_eq!(ask(&mut stream).await, Some(1));
    }
    let (took, _) = rest(&mut stream).await;
    assert!((100 * MS..2_000 * MS).contains(&took), "{took:?}");
    world.until_ended(ProxyEnd::Idle, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocols_header_comes_first() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(Settings {
        proxy_protocol: true,
        ..settings()
    });
    world.lead(&[&member.endpoint()]);
    let mut stream = world.connect().await;
    let own = stream.local_addr().unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut got = [0; 28 + 5];
    timeout(PATIENCE, stream.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&got[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(&got[24..26], own.port().to_be_bytes());
    assert_eq!(&got[28..], b"hello");
}

/// A page of the admin endpoint: status and body.
async fn page(url: &str, path: &str) -> (u16, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_tell_who_leads_and_who_is_where() {
    let member = Member::start(Does::Echo).await;
    let world = World::start(settings());
    let listen = ["127.0.0.1:0".to_owned()];
    let admin = Admin::start(world.proxy.as_ref().unwrap(), &listen, "1.2.3", || 4).unwrap();
    let url = admin.urls()[0].clone();
    assert_eq!(page(&url, "/healthz").await.0, 200);
    let (status, text) = page(&url, "/readyz").await;
    assert_eq!(
        (status, text.as_str()),
        (503, "nobody leads: no member is known\n")
    );
    world.lead(&[&member.endpoint()]);
    let mut stream = world.connect().await;
    assert_eq!(ask(&mut stream).await, Some(1));
    assert_eq!(page(&url, "/readyz").await.0, 200);
    assert_eq!(page(&url, "/elsewhere").await.0, 404);
    let (_, text) = page(&url, "/metrics").await;
    let labels = format!("{{member=\"\",endpoint=\"{}\"}}", member.endpoint());
    for line in [
        format!("orlop_proxy_member_connections{labels} 1"),
        format!("orlop_proxy_member_leads{labels} 1"),
        "orlop_proxy_connections{state=\"relaying\"} 1".to_owned(),
        "orlop_proxy_bytes_total{from=\"client\"} 1".to_owned(),
        "orlop_proxy_has_leader 1".to_owned(),
        "orlop_log_lines_dropped_total 4".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
    let (_, text) = page(&url, "/v1/status").await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["leader"]["endpoint"], member.endpoint().to_string());
    assert_eq!(status["connections"]["open"], 1);
    assert_eq!(status["members"][0]["connections"], 1);
    assert_eq!(member.connections(), 1);
}
