//! `orlop-fleet router`: three routers on loopback and pods of the test, without a cluster.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "router/backend.rs"]
mod backend;
#[path = "router/cluster.rs"]
mod cluster;
#[path = "router/hostile.rs"]
mod hostile;
#[path = "router/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backend::Backend;
use bytes::Bytes;
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure};
use http_body_util::Full;
use rig::{PATIENCE, Rig, get, request, send};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HOST: &str = "cart.shop";
const CART: &str = "name = \"shop/cart\"\n";

fn quick() -> Duration {
    Duration::from_millis(1)
}

/// Runs a test with these routers.
macro_rules! with_rig {
    ($names:expr, $flags:expr, $body:expr) => {{
        let dir = tempfile::tempdir().unwrap();
        let result = async {
            let mut rig = Rig::start(dir.path(), $names, $flags).await?;
            $body(&mut rig).await
        };
        let result = result.await;
        conclude(dir, result);
    }};
}

async fn counts(port: u16, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut pods = BTreeMap::new();
    for _ in 0..requests {
        let answer = get(port, "/", HOST).await?;
        ensure(answer.status == 200, || format!("{answer:?}"))?;
        ensure(!answer.headers.contains_key("orlop-failed"), || {
            "a pod's own header".to_owned()
        })?;
        *pods.entry(answer.pod).or_default() += 1;
    }
    Ok(pods)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_to_near_pods_by_weight_and_through_the_routers_of_their_nodes() {
    with_rig!(&["a", "b", "c"], &[], async |rig: &mut Rig| {
        let pods = [
            Backend::start("p-a", quick()).await,
            Backend::start("p-b", quick()).await,
            Backend::start("p-c", Duration::from_millis(40)).await,
        ];
        let placed = [(&pods[0], "a"), (&pods[1], "b"), (&pods[2], "c")];
        rig.apply(&[(CART, &placed)]).await?;
        counts(rig.nodes[0].port, 60).await?;
        // Until the slow node is known for that.
        rig.until(0, "c is known to be slow", |page| {
            page.sum("orlop_router_weight_percent", &["to=\"c\""]) < 25.0
        })
        .await?;
        let page = rig.metrics(0).await?;
        let seen = counts(rig.nodes[0].port, 300).await?;
        for (pod, node) in [("p-a", "a"), ("p-b", "b"), ("p-c", "c")] {
            let to = format!("to=\"{node}\"");
            let before = page.sum("orlop_router_weight_percent", &[&to]);
            let after = rig
                .metrics(0)
                .await?
                .sum("orlop_router_weight_percent", &[&to]);
            let share = seen.get(pod).copied().unwrap_or(0) as f64 / 3.0;
            // Four standard errors of 300 draws, around weights that move a little meanwhile.
            let (low, high) = (before.min(after) - 12.0, before.max(after) + 12.0);
            ensure((low..high).contains(&share), || {
                format!("{pod}: {share} % not in {low}..{high}")
            })?;
        }
        // Each pod is counted where it is: nobody went past the router of its node.
        for (at, pod) in pods.iter().enumerate() {
            let page = rig.metrics(at).await?;
            let served = page.sum("orlop_router_serving_seconds_count", &[]);
            ensure(served == f64::from(pod.all()), || {
                format!("{}: {served}", pod.name)
            })?;
        }
        let entered = rig
            .metrics(0)
            .await?
            .sum("orlop_router_requests_total", &[]);
        ensure(entered == 360.0, || format!("{entered} entered"))?;

        // The other policies.
        let local = format!("{CART}policy = \"local-first\"");
        rig.apply(&[(&local, &placed)]).await?;
        let seen = counts(rig.nodes[1].port, 20).await?;
        ensure(seen == BTreeMap::from([("p-b".to_owned(), 20)]), || {
            format!("{seen:?}")
        })?;
        let robin = format!("{CART}policy = \"round-robin\"");
        rig.apply(&[(&robin, &placed)]).await?;
        let seen = counts(rig.nodes[1].port, 30).await?;
        ensure(seen.values().all(|n| *n == 10), || format!("{seen:?}"))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_never_has_more_than_its_concurrency_and_its_queue_is_bounded() {
    with_rig!(&["a", "b"], &[], async |rig: &mut Rig| {
        let pod = Backend::start("p", Duration::from_millis(150)).await;
        let lines = format!("{CART}concurrency = 1\nqueue = 3");
        rig.apply(&[(&lines, &[(&pod, "b")])]).await?;
        let ports = [rig.nodes[0].port, rig.nodes[1].port];
        // They enter at both nodes; b's router owns the one queue.
        let all = (0..12).map(|n| tokio::spawn(get(ports[n % 2], "/", HOST)));
        let mut statuses = BTreeMap::new();
        for answer in all.collect::<Vec<_>>() {
            *statuses.entry(answer.await.unwrap()?.status).or_insert(0) += 1;
        }
        let served = statuses.get(&200).copied().unwrap_or(0);
        // One served and three that wait at any moment; a busy machine may send them apart.
        ensure((4..12).contains(&served), || format!("{statuses:?}"))?;
        ensure(statuses.get(&503) == Some(&(12 - served)), || {
            format!("{statuses:?}")
        })?;
        let most = pod.counts.most.load(Ordering::SeqCst);
        ensure(most == 1, || format!("{most} at once"))?;
        let page = rig.metrics(1).await?;
        let queued = page.sum("orlop_router_queue_seconds_sum", &[]);
        ensure(queued > 0.1, || format!("{queued} s in the queue"))?;
        // A client that goes gives its place up.
        let gone = tokio::spawn(get(ports[0], "/", HOST));
        tokio::time::sleep(Duration::from_millis(40)).await;
        gone.abort();
        rig.until(1, "nothing is under way", |page| {
            page.sum("orlop_router_pod_in_flight", &[]) + page.sum("orlop_router_pod_queued", &[])
                == 0.0
        })
        .await?;
        let answer = get(ports[0], "/", HOST).await?;
        ensure(answer.status == 200, || format!("{answer:?}"))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_pod_requests_wait_in_a_bounded_queue_until_there_is_one() {
    with_rig!(&["a", "b"], &[], async |rig: &mut Rig| {
        let lines = format!("{CART}waiting = 5\ntimeout_ms = 50000");
        rig.apply(&[(&lines, &[])]).await?;
        let port = rig.nodes[0].port;
        let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(get(port, "/", HOST))).collect();
        rig.until(0, "five wait", |page| {
            page.sum("orlop_router_waiting", &[]) == 5.0
        })
        .await?;
        let refused = get(port, "/", HOST).await?;
        ensure(refused.status == 503, || format!("{refused:?}"))?;
        ensure(refused.headers.contains_key("retry-after"), || {
            format!("{refused:?}")
        })?;
        let pod = Backend::start("p", quick()).await;
        rig.services(&[(&lines, &[(&pod, "b")])]);
        for answer in waiting {
            let answer = answer.await.unwrap()?;
            ensure((answer.status, &*answer.pod) == (200, "p"), || {
                format!("{answer:?}")
            })?;
        }
        // The time of a request ends its waiting.
        let short = format!("{CART}timeout_ms = 300");
        rig.apply(&[(&short, &[])]).await?;
        let late = get(port, "/", HOST).await?;
        ensure(late.status == 504, || format!("{late:?}"))?;
        let stranger = get(port, "/", "nobody.shop").await?;
        ensure(stranger.status == 404, || format!("{stranger:?}"))
    });
}

/// Asks to switch, and has bytes come back.
async fn switch(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!(
        "GET /switch HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        answer.extend(byte);
    }
    for n in 0..50_u32 {
        let sent = vec![n as u8; 10_000];
        stream.write_all(&sent).await?;
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).await?;
        ensure(back == sent, || "other bytes came back".to_owned())?;
    }
    Ok(String::from_utf8_lossy(&answer).to_lowercase())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_streams_and_grpc_pass_a_hop() {
    with_rig!(&["a", "b"], &[], async |rig: &mut Rig| {
        let (web, rpc) = (
            Backend::start("web", quick()).await,
            Backend::start("rpc", quick()).await,
        );
        let grpc = "name = \"shop/rpc\"\nprotocol = \"h2c\"\n";
        let cart = format!("{CART}concurrency = 1");
        rig.apply(&[(&cart, &[(&web, "b")]), (grpc, &[(&rpc, "b")])])
            .await?;
        for node in &rig.nodes {
            let head = tokio::time::timeout(PATIENCE, switch(node.port)).await;
            let head = head.map_err(|_| e2e::kube::Error::Failed("no switch".to_owned()))??;
            ensure(head.starts_with("http/1.1 101"), || head.clone())?;
            ensure(
                head.contains("upgrade: websocket") && head.contains("pod: web"),
                || head.clone(),
            )?;
            ensure(!head.contains("orlop-"), || head.clone())?;
        }
        // The tunnels have ended: the pod's one place is free.
        let body = Bytes::from(vec![7_u8; 3 << 20]);
        for h2 in [false, true] {
            let host = if h2 {
                format!("http://{HOST}/echo")
            } else {
                "/echo".to_owned()
            };
            let echo = request("POST", &host, HOST)
                .body(Full::new(body.clone()))
                .unwrap();
            let answer = send(rig.nodes[0].port, echo, h2).await?;
            ensure(answer.status == 200 && answer.body == body, || {
                format!("{}", answer.status)
            })?;
        }
        let call = http::Request::post("http://rpc.shop/shop.Cart/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")))
            .unwrap();
        let answer = send(rig.nodes[0].port, call, true).await?;
        let status = answer
            .trailers
            .as_ref()
            .and_then(|trailers| trailers.get("grpc-status"));
        ensure(status.is_some_and(|status| status == "0"), || {
            format!("{answer:?}")
        })?;
        ensure(&answer.body[..] == b"\0\0\0\0\x02hi", || {
            format!("{answer:?}")
        })?;
        // What is passed on, and what is not.
        let mut asked = request("GET", "/headers?q=1", "Cart.Shop:8080");
        for (name, value) in [
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("orlop-pod", "another"),
            ("connection", "x-secret"),
            ("x-secret", "1"),
        ] {
            asked = asked.header(name, value);
        }
        let answer = send(
            rig.nodes[0].port,
            asked.body(Full::<bytes::Bytes>::default()).unwrap(),
            false,
        )
        .await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        for (part, there) in [
            ("/headers?q=1", true),
            (
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                true,
            ),
            ("\"host\": \"Cart.Shop:8080\"", true),
            ("\"x-forwarded-for\": \"127.0.0.1\"", true),
            ("x-secret", false),
            ("orlop-", false),
        ] {
            ensure(text.contains(part) == there, || format!("{part}: {text}"))?;
        }
        Ok(())
    });
}

/// Sends GETs until told to stop; how many there were, and what failed.
struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<(u32, Vec<String>)>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(async move {
            let (mut count, mut failed) = (0, Vec::new());
            while !*stopped.borrow() {
                count += 1;
                match get(port, "/", HOST).await {
                    Ok(answer) if answer.status == 200 => {}
                    other => failed.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (count, failed)
        });
        Self { stop, task }
    }

    async fn end(self, what: &str) -> Result<()> {
        self.stop.send_replace(true);
        let (count, failed) = self.task.await.unwrap();
        ensure(failed.is_empty(), || {
            format!("{what}: {} of {count}: {failed:?}", failed.len())
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_is_avoided_and_requests_that_may_be_repeated_do_not_fail() {
    with_rig!(&["a", "b", "c"], &[], async |rig: &mut Rig| {
        let pods = [
            Backend::start("p-a", quick()).await,
            Backend::start("p-b", quick()).await,
            Backend::start("p-c", quick()).await,
        ];
        let [a, b, c] = pods;
        rig.apply(&[(CART, &[(&a, "a"), (&b, "b"), (&c, "c")])])
            .await?;
        let port = rig.nodes[0].port;

        let load = Load::start(port);
        drop(c);
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        load.end("a pod is gone").await?;
        let page = rig.metrics(2).await?;
        let ejected = page.sum("orlop_router_pod_ejections_total", &["pod=\"p-c\""]);
        ensure(ejected >= 1.0, || format!("{ejected} ejections"))?;

        // A router that is stopped: it is silent, as one whose machine or link is gone.
        let load = Load::start(port);
        let stopped = rig.nodes[1].process.as_ref().map(|process| process.id());
        let stopped = stopped.and_then(|id| Pid::from_raw(id as i32)).unwrap();
        kill_process(stopped, Signal::STOP).unwrap();
        let began = Instant::now();
        rig.until(0, "b's router is down", |page| {
            page.sum("orlop_router_peer_up", &["to=\"b\""]) == 0.0
        })
        .await?;
        println!("a silent router is known after {:?}", began.elapsed());
        let before = b.all();
        tokio::time::sleep(Duration::from_millis(500)).await;
        load.end("a router is silent").await?;
        ensure(b.all() == before, || "requests still went there".to_owned())?;
        kill_process(stopped, Signal::CONT).unwrap();
        rig.until(0, "b's router is back", |page| {
            page.sum("orlop_router_peer_up", &["to=\"b\""]) == 1.0
        })
        .await?;

        let load = Load::start(port);
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.nodes[1].process.take().unwrap().kill();
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        load.end("a router is killed").await?;
        rig.run(1).await?;
        let before = b.all();
        rig.until(0, "b's router is back", |page| {
            page.sum("orlop_router_peer_up", &["to=\"b\""]) == 1.0
        })
        .await?;
        counts(port, 60).await?;
        ensure(b.all() > before, || "nothing goes there again".to_owned())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_may_have_seen_is_sent_again_only_if_it_may_be_repeated() {
    with_rig!(&["a", "b"], &[], async |rig: &mut Rig| {
        // It takes a request, and breaks the connection.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = seen.clone();
        let breaks = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    continue;
                };
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let mut broken = Backend::start("broken", quick()).await;
        broken.address = address;
        let good = Backend::start("good", quick()).await;
        let robin = format!("{CART}policy = \"round-robin\"");
        for node in ["a", "b"] {
            rig.apply(&[(&robin, &[(&broken, node), (&good, node)])])
                .await?;
            let before = seen.load(Ordering::SeqCst);
            let mut failed = 0;
            for _ in 0..4 {
                let post = request("POST", "/", HOST)
                    .body(Full::new(Bytes::from("x")))
                    .unwrap();
                let answer = send(rig.nodes[0].port, post, false).await?;
                ensure([200, 502].contains(&answer.status), || {
                    format!("{answer:?}")
                })?;
                failed += u32::from(answer.status == 502);
            }
            // Each POST that reached it failed, and none reached anybody twice.
            let reached = seen.load(Ordering::SeqCst) - before;
            ensure(reached == failed && failed == 2, || {
                format!("{reached} reached, {failed} failed")
            })?;
            let all = good.all();
            let answers = counts(rig.nodes[0].port, 4).await?;
            ensure(answers.values().sum::<usize>() == 4, || {
                format!("{answers:?}")
            })?;
            ensure(good.all() == all + 4, || {
                format!("{} and {all}", good.all())
            })?;
        }
        breaks.abort();
        Ok(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_ends_lets_what_is_under_way_end() {
    with_rig!(&["a", "b"], &[], async |rig: &mut Rig| {
        let (a, b) = (
            Backend::start("p-a", quick()).await,
            Backend::start("p-b", quick()).await,
        );
        let robin = format!("{CART}policy = \"round-robin\"");
        rig.apply(&[(&robin, &[(&a, "a"), (&b, "b")])]).await?;
        let port = rig.nodes[0].port;
        let slow = || {
            request("GET", "/", HOST)
                .header("takes-ms", "2000")
                .body(Full::<bytes::Bytes>::default())
        };
        // One at b itself, and two over a, of which one goes to b's pod.
        let ports = [rig.nodes[1].port, port, port];
        let under_way = ports.map(|port| tokio::spawn(send(port, slow().unwrap(), false)));
        let began = Instant::now();
        while a.counts.now.load(Ordering::SeqCst) + b.counts.now.load(Ordering::SeqCst) < 3 {
            ensure(began.elapsed() < PATIENCE, || {
                "they are not under way".to_owned()
            })?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let load = Load::start(port);
        let mut process = rig.nodes[1].process.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || process.terminate(PATIENCE));
        for answer in under_way {
            let answer = answer.await.unwrap()?;
            ensure(answer.status == 200, || format!("{answer:?}"))?;
        }
        let status = ended.await.unwrap()?;
        ensure(status.success(), || format!("{status}"))?;
        load.end("a router drains").await
    });
}
