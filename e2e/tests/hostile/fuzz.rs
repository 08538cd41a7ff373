//! Any bytes as any method's request, through the whole server.
//!
//! `ORLOP_FUZZ_S=N` fuzzes for N seconds (default 8), `ORLOP_FUZZ_SEED=S` with that seed.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::differential::rng::Rng;
use e2e::env::number;
use e2e::hostile::call::{METHODS, call};
use e2e::hostile::node::Node;
use e2e::hostile::raw::garbage;
use e2e::kube::proc::conclude;
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use prost::Message;
use tonic::Code;

/// Calls at once.
const AT_ONCE: usize = 16;
/// A stream may stay open without an answer; so long is waited for one.
const WAIT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn any_bytes_in_any_method() {
    let dir = tempfile::tempdir().unwrap();
    let result = fuzz(dir.path()).await;
    conclude(dir, result);
}

/// A request that some method understands, to be spoilt a little.
fn seedling(random: &mut Rng) -> Vec<u8> {
    let key = Bytes::from(garbage(random, 20));
    let end = if random.chance(50) {
        Bytes::from(garbage(random, 3))
    } else {
        Bytes::new()
    };
    let number = random.pick(&[0, 1, -1, 7, i64::MAX, i64::MIN]);
    let put = pb::PutRequest {
        key: key.clone(),
        value: Bytes::from(garbage(random, 200)),
        lease: if random.chance(20) { number } else { 0 },
        prev_kv: random.chance(50),
        ..Default::default()
    };
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    match random.below(7) {
        0 => put.encode_to_vec(),
        1 => pb::RangeRequest {
            key,
            range_end: end,
            limit: number,
            revision: if random.chance(30) { number } else { 0 },
            sort_order: random.below(5) as i32 - 1,
            sort_target: random.below(8) as i32 - 1,
            min_mod_revision: number,
            ..Default::default()
        }
        .encode_to_vec(),
        2 => pb::DeleteRangeRequest {
            key,
            range_end: end,
            prev_kv: true,
        }
        .encode_to_vec(),
        3 => {
            let mut txn = pb::TxnRequest {
                compare: vec![pb::Compare {
                    result: random.below(6) as i32 - 1,
                    target: random.below(7) as i32 - 1,
                    key: key.clone(),
                    range_end: end,
                    target_union: Some(pb::compare::TargetUnion::Lease(number)),
                }],
                success: vec![op(pb::request_op::Request::RequestPut(put))],
                failure: vec![pb::RequestOp { request: None }],
            };
            for _ in 0..random.below(200) {
                txn = pb::TxnRequest {
                    success: vec![op(pb::request_op::Request::RequestTxn(txn))],
                    ..Default::default()
                };
            }
            txn.encode_to_vec()
        }
        4 => pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
                pb::WatchCreateRequest {
                    key,
                    range_end: end,
                    start_revision: number,
                    watch_id: number,
                    filters: vec![random.below(4) as i32],
                    fragment: true,
                    ..Default::default()
                },
            )),
        }
        .encode_to_vec(),
        5 => pb::LeaseGrantRequest {
            ttl: number,
            id: random.below(9) as i64,
        }
        .encode_to_vec(),
        _ => pb::CompactionRequest {
            revision: number,
            physical: true,
        }
        .encode_to_vec(),
    }
}

fn message(random: &mut Rng) -> Vec<u8> {
    let mut bytes = if random.chance(30) {
        garbage(random, 300)
    } else {
        seedling(random)
    };
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(4) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 if at < bytes.len() => bytes.insert(at, random.bits() as u8),
            3 if at < bytes.len() => bytes[at] = random.pick(&[0, 0x7f, 0x80, 0xff]),
            _ => {}
        }
    }
    bytes
}

async fn fuzz(dir: &Path) -> Result<()> {
    let seconds = number("ORLOP_FUZZ_S")?.unwrap_or(8);
    let seed = number("ORLOP_FUZZ_SEED")?.unwrap_or(1);
    let mut node = Node::start("orlop", dir, &[]).await?;
    let before = node.resident_bytes()?;
    let began = Instant::now();
    let mut random = Rng::new(seed);
    let (mut calls, mut answered, mut open) = (0, 0, 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        let mut round = tokio::task::JoinSet::new();
        let channel = node.channel()?;
        for _ in 0..AT_ONCE * 8 {
            let method = random.pick(&METHODS);
            let bytes = Bytes::from(message(&mut random));
            let channel = channel.clone();
            round.spawn(async move {
                (
                    method,
                    tokio::time::timeout(WAIT, call(channel, method, bytes)).await,
                )
            });
        }
        while let Some(done) = round.join_next().await {
            let (method, result) =
                done.or_else(|error| fail(format!("seed {seed}: a call ended: {error}")))?;
            calls += 1;
            match result {
                Ok(Ok(_)) => answered += 1,
                Ok(Err(status)) => ensure(
                    !matches!(status.code(), Code::Unknown | Code::Unavailable)
                        || !status.message().contains("transport"),
                    || format!("seed {seed}, {method}: the connection broke: {status}"),
                )?,
                Err(_) => open += 1,
            }
        }
        node.check_running()?;
        // An alarm is a thing that a client may set; with it the rest would be refused.
        disarm(&node).await?;
    }
    let after = node.resident_bytes()?;
    println!(
        "{calls} calls in {seconds} s, {answered} answered, {open} streams left open; \
         memory {} -> {} MiB",
        before >> 20,
        after >> 20
    );
    ensure(!node.said().contains("panicked"), || {
        "something panicked".to_owned()
    })?;
    let put = pb::PutRequest {
        key: "still".into(),
        value: "here".into(),
        ..Default::default()
    };
    let answer = KvClient::new(node.channel()?).put(put).await;
    answer
        .map(drop)
        .or_else(|status| fail(format!("put: {status}")))?;
    // What it was made to write can be read again.
    node.stop()?;
    node.run().await?;
    node.stop().map(drop)
}

async fn disarm(node: &Node) -> Result<()> {
    let mut client = MaintenanceClient::new(node.channel()?);
    let get = pb::AlarmRequest::default();
    let answer = client.alarm(get).await;
    let active = answer.or_else(|status| fail(format!("alarm: {status}")))?;
    for member in active.into_inner().alarms {
        let clear = pb::AlarmRequest {
            action: pb::alarm_request::AlarmAction::Deactivate.into(),
            alarm: member.alarm,
            ..Default::default()
        };
        let answer = client.alarm(clear).await;
        answer
            .map(drop)
            .or_else(|status| fail(format!("alarm: {status}")))?;
    }
    Ok(())
}
