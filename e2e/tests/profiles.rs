//! Storage rules of a running server: where they come from, how they are changed, and what
//! clients notice of that (nothing).
#![allow(clippy::unwrap_used, clippy::panic)] // a test

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use e2e::beside::orlop;
use e2e::hostile::node::{Node, put};
use e2e::kube::http::Client;
use e2e::kube::pki::{Authority, Pair};
use e2e::kube::proc::{conclude, free_port};
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use serde_json::Value;
use tonic::transport::Channel;

/// Everything below `v/` is volatile, and below `c/` what comes and goes.
const RULES: &str = r#"
[[rule]]
name = "scratch"
prefix = "v/"
durability = "volatile"
sync_within = "20s"

[[rule]]
prefix = "c/"
change = ["create", "delete"]
durability = "volatile"
sync_within = "5s"
"#;

/// The same for a command about `node` that must succeed.
fn told(node: &Node, args: &[&str]) -> Result<String> {
    let target = format!("--data-dir={}", node.data.display());
    let args: Vec<&str> = args.iter().copied().chain([&target[..]]).collect();
    orlop(&args)?.or_else(|text| fail(format!("{args:?}: {text}")))
}

fn status(node: &Node) -> Result<Value> {
    let text = told(node, &["status", "-w", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

fn profile(node: &Node) -> Result<(String, bool)> {
    let status = status(node)?;
    let name = status["profile"]["name"].as_str().unwrap_or_default();
    let run_time = status["profile"]["run_time_choice"].as_bool();
    Ok((name.to_owned(), run_time.unwrap_or_default()))
}

fn rules_file(dir: &Path, text: &str) -> String {
    let path = dir.join("rules.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Puts if the key is at that revision, as Kubernetes writes; the new revision.
async fn cas(channel: &Channel, key: &str, at: i64, value: Option<&str>) -> Result<i64> {
    let key = bytes::Bytes::copy_from_slice(key.as_bytes());
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(at)),
        ..Default::default()
    };
    let request = match value {
        Some(value) => pb::request_op::Request::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: bytes::Bytes::copy_from_slice(value.as_bytes()),
            ..Default::default()
        }),
        None => pb::request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.clone(),
            ..Default::default()
        }),
    };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp {
            request: Some(request),
        }],
        ..Default::default()
    };
    match KvClient::new(channel.clone()).txn(txn).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            ensure(answer.succeeded, || format!("{key:?} is not at {at}"))?;
            Ok(answer.header.unwrap_or_default().revision)
        }
        Err(status) => fail(format!("transaction on {key:?}: {status}")),
    }
}

async fn contents(channel: &Channel) -> Result<BTreeMap<String, String>> {
    let request = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let Ok(answer) = kv.range(request).await else {
        return fail("range");
    };
    let text = |b: &bytes::Bytes| String::from_utf8_lossy(b).into_owned();
    let kvs = answer.into_inner().kvs;
    Ok(kvs
        .iter()
        .map(|kv| (text(&kv.key), text(&kv.value)))
        .collect())
}

/// Writes to keys of its own until it is stopped; what must be there then.
async fn writer(
    channel: Channel,
    n: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> Result<BTreeMap<String, String>> {
    let mut expected = BTreeMap::new();
    let class = ["v", "c", "d"][n % 3];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let (key, value) = (format!("{class}/{n}/{}", count % 7), format!("{count}"));
        if n.is_multiple_of(2) {
            put(&channel, &key, &value).await?;
            expected.insert(key, value);
        } else {
            // Comes, changes and goes.
            let key = format!("{key}/cas");
            let created = cas(&channel, &key, 0, Some("new")).await?;
            let changed = cas(&channel, &key, created, Some(&value)).await?;
            if count % 5 == 0 {
                let last = format!("{class}/{n}/last");
                put(&channel, &last, &value).await?;
                expected.insert(last, value);
            }
            cas(&channel, &key, changed, None).await?;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(expected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_under_load_loses_nothing_and_no_client_notices() {
    let dir = tempfile::tempdir().unwrap();
    let result = toggle(dir.path()).await;
    conclude(dir, result);
}

async fn toggle(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &["--segment-bytes=4194304"]).await?;
    let rules = rules_file(dir, RULES);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let writers: Vec<_> = (0..6)
        .map(|n| {
            let channel = node.channel()?;
            Ok(tokio::spawn(writer(
                channel,
                n,
                stop.clone(),
                Arc::clone(&done),
            )))
        })
        .collect::<Result<_>>()?;
    for round in 0..8 {
        told(&node, &["rules", "apply", &rules])?;
        let before = done.load(Ordering::Relaxed);
        let began = Instant::now();
        while done.load(Ordering::Relaxed) < before + 50 && began.elapsed().as_secs() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let to: &[&str] = match round % 3 {
            0 => &["profile", "set", "strict"],
            1 => &["profile", "reset"],
            _ => &["profile", "set", "ephemeral"],
        };
        told(&node, to)?;
        let status = status(&node)?;
        let unsynced = &status["unsynced"]["bytes"];
        if round % 3 != 2 {
            ensure(*unsynced == 0 && status["epoch"]["open"] == false, || {
                format!("after {to:?}: {status}")
            })?;
        }
    }
    let volatile = status(&node)?["volatile"]["writes"].as_u64();
    ensure(volatile > Some(100), || format!("volatile: {volatile:?}"))?;
    told(&node, &["rules", "apply", &rules])?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for writer in writers {
        match tokio::time::timeout(Duration::from_secs(20), writer).await {
            Ok(Ok(own)) => expected.extend(own?),
            _ => return fail("a writer hangs"),
        }
    }
    ensure(contents(&node.channel()?).await? == expected, || {
        "what is there differs from what was answered".to_owned()
    })?;
    node.kill();
    node.run().await?;
    ensure(contents(&node.channel()?).await? == expected, || {
        "the kill lost something".to_owned()
    })?;
    let found = profile(&node)?;
    ensure(found == ("rules.toml".to_owned(), true), || {
        format!("after the kill: {found:?}")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_choice_outlives_restarts_and_wins_over_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let result = choices(dir.path()).await;
    conclude(dir, result);
}

async fn choices(dir: &Path) -> Result<()> {
    let mut node = Node::start("orlop", dir, &["--profile=balanced"]).await?;
    let is = |node: &Node, name: &str, run_time: bool| -> Result<()> {
        let found = profile(node)?;
        ensure(found == (name.to_owned(), run_time), || {
            format!("{found:?}, not {name} {run_time}")
        })
    };
    is(&node, "balanced", false)?;
    let socket = std::fs::metadata(node.data.join("admin.sock"))?;
    ensure(socket.permissions().mode() & 0o777 == 0o600, || {
        format!("mode {:o}", socket.permissions().mode())
    })?;
    let warning = "A power loss may take";
    ensure(node.said().contains(warning), || "no warning".to_owned())?;
    told(&node, &["profile", "set", "ephemeral"])?;
    is(&node, "ephemeral", true)?;
    node.stop()?;
    node.run().await?;
    is(&node, "ephemeral", true)?;
    node.kill();
    node.run().await?;
    is(&node, "ephemeral", true)?;
    told(&node, &["profile", "reset"])?;
    is(&node, "balanced", false)?;
    node.stop()?;
    node.run().await?;
    is(&node, "balanced", false)?;
    // What cannot be used changes nothing.
    let wrong = rules_file(dir, "[[rule]]\nprefix = \"a\"\ndurability = \"soft\"\n");
    let target = format!("--data-dir={}", node.data.display());
    for args in [
        &["rules", "apply", &wrong, &target][..],
        &["profile", "set", "none", &target],
    ] {
        match orlop(args)? {
            Ok(text) => return fail(format!("{args:?}: {text}")),
            Err(text) if args[0] == "rules" => {
                ensure(text.contains(":3:"), || format!("no line: {text}"))?;
            }
            Err(text) => ensure(text.contains("ephemeral"), || text)?,
        }
    }
    is(&node, "balanced", false)?;
    node.stop()?;
    // A start with wrong rules is refused, with the line.
    node.args = vec![format!("--rules={wrong}")];
    let (ended, said) = node.run_refused().await?;
    ensure(!ended.success() && said.contains(":3:"), || said)?;
    node.args = vec!["--profile=none".to_owned()];
    let (ended, said) = node.run_refused().await?;
    ensure(!ended.success() && said.contains("balanced"), || said)?;
    // So is one whose choice cannot be read back.
    std::fs::write(node.data.join("storage-rules"), "crc 0\nrubbish")?;
    node.args = Vec::new();
    let (ended, said) = node.run_refused().await?;
    ensure(
        !ended.success() && said.contains("storage-rules is damaged"),
        || said,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volatile_writes_do_not_wait_for_a_slow_disk() {
    let dir = tempfile::tempdir().unwrap();
    let result = slow_disk(dir.path()).await;
    conclude(dir, result);
}

async fn slow_disk(dir: &Path) -> Result<()> {
    const DELAY: Duration = Duration::from_millis(250);
    let rules = format!("--rules={}", rules_file(dir, RULES));
    let flags = ["--fault-sync-delay=250ms", &rules];
    let mut node = Node::start("orlop", dir, &flags).await?;
    let channel = node.channel()?;
    // The first opens the epoch, and waits for that.
    put(&channel, "v/first", "1").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (other, stopped) = (node.channel()?, stop.clone());
    let durable = tokio::spawn(async move {
        let mut took = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            put(&other, "d/1", "1").await?;
            took.push(began.elapsed());
        }
        Ok::<_, e2e::kube::Error>(took)
    });
    let mut took = Vec::new();
    for n in 0..60 {
        let began = Instant::now();
        let revision = put(&channel, &format!("v/{n}"), "1").await?;
        cas(&channel, &format!("c/{n}"), 0, Some("1")).await?;
        took.push(began.elapsed() / 2);
        ensure(revision > 0, || "no revision".to_owned())?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let Ok(durable) = durable.await else {
        return fail("the durable writer failed");
    };
    let durable = durable?;
    took.sort_unstable();
    let p90 = took[took.len() * 9 / 10];
    println!(
        "volatile p50 {:?}, p90 {p90:?}; durable {durable:?}",
        took[took.len() / 2]
    );
    ensure(durable.iter().all(|t| *t >= DELAY), || {
        "durable writes did not wait for the disk".to_owned()
    })?;
    ensure(p90 < DELAY / 4, || {
        format!("nine of ten volatile writes took up to {p90:?}")
    })?;
    let status = status(&node)?;
    ensure(status["unsynced"]["bytes"].is_u64(), || status.to_string())?;
    let text = told(&node, &["status"])?;
    ensure(text.contains("every watcher would list again"), || text)?;
    ensure(node.stop()?.success(), || "the stop failed".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp_only_certificates_of_its_own_authority_administer() {
    let dir = tempfile::tempdir().unwrap();
    let result = over_tcp(dir.path()).await;
    conclude(dir, result);
}

async fn over_tcp(dir: &Path) -> Result<()> {
    let [servers, clients, admins] =
        ["servers", "clients", "admins"].map(|name| Authority::new(dir, name));
    let (servers, clients, admins) = (servers?, clients?, admins?);
    let server = servers.sign("server")?;
    let (client, admin) = (clients.sign("client")?, admins.sign("admin")?);
    let port = free_port()?;
    let url = format!("https://127.0.0.1:{port}");
    let mut node = Node::new("orlop", dir, &["--client-cert-auth"])?;
    node.scheme = "https";
    for (flag, file) in [
        ("cert-file", &server.cert),
        ("key-file", &server.key),
        ("trusted-ca-file", &clients.cert),
        ("admin-trusted-ca-file", &admins.cert),
    ] {
        node.args.push(format!("--{flag}={}", file.display()));
    }
    node.args.push(format!("--listen-admin-urls={url}"));
    node.run().await?;

    // Who asks, and whom they take the server for.
    let by = |who: &Pair, authority: &Authority, words: &[&str]| {
        let file = |path: &Path| path.display().to_string();
        let (ca, cert, key) = (file(&authority.cert), file(&who.cert), file(&who.key));
        let tls = [
            "--admin-url",
            &url,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        orlop(&[words, &tls].concat())
    };
    let admin_says = |words: &[&str]| {
        by(&admin, &servers, words)?.or_else(|text| fail(format!("{words:?}: {text}")))
    };
    let status: Value = serde_json::from_str(&admin_says(&["status", "-w", "json"])?)?;
    ensure(status["profile"]["name"] == "strict", || status.to_string())?;
    admin_says(&["profile", "set", "ephemeral"])?;
    ensure(profile(&node)? == ("ephemeral".to_owned(), true), || {
        "set over TCP, and not seen on the socket".to_owned()
    })?;
    let said = node.said();
    ensure(said.contains("asked to change the storage rules"), || {
        "it was not logged".to_owned()
    })?;

    // Who may write keys may not administer, and nobody may without a certificate.
    for words in [&["status"][..], &["profile", "set", "strict"]] {
        match by(&client, &servers, words)? {
            Ok(text) => return fail(format!("a client's certificate was taken: {text}")),
            Err(text) => ensure(text.contains(&url), || text)?,
        }
    }
    let nobody = Client::tls(port, &servers.cert, "")?;
    let answer = nobody.page("/v1/status").await;
    ensure(answer.is_err(), || format!("without one: {answer:?}"))?;
    let answer = Client::plain(port).page("/v1/status").await;
    ensure(!matches!(answer, Ok((200, _))), || {
        format!("without TLS: {answer:?}")
    })?;
    // Nor does an administrator talk to any server.
    match by(&admin, &clients, &["status"])? {
        Ok(text) => return fail(format!("an unknown server was trusted: {text}")),
        Err(text) => ensure(text.contains("no TLS connection"), || text)?,
    }
    ensure(profile(&node)? == ("ephemeral".to_owned(), true), || {
        "somebody changed the profile".to_owned()
    })?;
    let rules = rules_file(dir, RULES);
    admin_says(&["rules", "apply", &rules])?;
    ensure(profile(&node)?.0 == "rules.toml", || {
        "not applied".to_owned()
    })?;
    let text = admin_says(&["profile", "reset"])?;
    ensure(text.starts_with("strict"), || text)?;
    ensure(node.stop()?.success(), || "the stop failed".to_owned())
}
