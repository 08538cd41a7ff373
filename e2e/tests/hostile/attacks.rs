//! Wrong bytes, wrong frames, too much of everything.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use e2e::differential::rng::Rng;
use e2e::hostile::call::{PUT, RANGE, call};
use e2e::hostile::node::Node;
use e2e::hostile::raw::{self, pour, pour_and_drain, whole};
use e2e::kube::Result;
use e2e::kube::proc::conclude;
use etcd_api::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio_stream::StreamExt as _;

use crate::{node, survives};

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn wrong_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let result = wrong(dir.path()).await;
    conclude(dir, result);
}

async fn wrong(dir: &Path) -> Result<()> {
    let mut node = node(dir).await?;
    let port = node.port();
    survives(&mut node, "garbage for a preface", async move {
        let mut random = Rng::new(1);
        for _ in 0..500 {
            drop(raw::open(port, &raw::garbage(&mut random, 4000)).await?);
        }
        Ok("500 connections".to_owned())
    })
    .await?;
    survives(&mut node, "garbage for frames", async move {
        let mut random = Rng::new(2);
        for _ in 0..500 {
            let bytes = [raw::hello(), raw::garbage(&mut random, 4000)].concat();
            drop(raw::open(port, &bytes).await?);
        }
        Ok("500 connections".to_owned())
    })
    .await?;
    survives(&mut node, "half-open connections", async move {
        let headers = whole(raw::HEADERS, raw::END_HEADERS, 1, &raw::call_headers(PUT));
        let half_call = [
            raw::hello(),
            headers,
            raw::frame(raw::DATA, 0, 1, 1000, b"12"),
        ]
        .concat();
        let starts: [&[u8]; 6] = [
            b"",
            &raw::PREFACE[..10],
            raw::PREFACE,
            b"GET /health HTT",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\nabc",
            &half_call,
        ];
        let mut open = Vec::new();
        for n in 0..600 {
            open.push(raw::open(port, starts[n % starts.len()]).await?);
        }
        tokio::time::sleep(FLOOD).await;
        Ok(format!("{} connections", open.len()))
    })
    .await?;
    survives(&mut node, "frames that claim too much", async move {
        let headers = whole(raw::HEADERS, raw::END_HEADERS, 1, &raw::call_headers(PUT));
        let mut sent = 0;
        for tail in [
            raw::frame(raw::DATA, 0, 1, (1 << 24) - 1, &[0; 1000]),
            raw::frame(raw::HEADERS, 4, 3, (1 << 24) - 1, &[0; 1000]),
            raw::frame(raw::SETTINGS, 0, 0, (1 << 24) - 1, &[0; 1000]),
            whole(raw::DATA, 0, 1, &raw::message(u32::MAX, &[0; 1000])),
        ] {
            let start = [raw::hello(), headers.clone(), tail].concat();
            let mut connection = raw::open(port, &start).await?;
            let more = whole(raw::DATA, 0, 1, &[0; 16_000]);
            sent += pour(&mut connection, &more, FLOOD / 4).await;
        }
        Ok(format!("{sent} bytes"))
    })
    .await?;
    node.stop().map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn floods() {
    let dir = tempfile::tempdir().unwrap();
    let result = flood(dir.path()).await;
    conclude(dir, result);
}

async fn flood(dir: &Path) -> Result<()> {
    let mut node = node(dir).await?;
    let port = node.port();
    let headers = |stream: u32, flags: u8| {
        whole(
            raw::HEADERS,
            raw::END_HEADERS | flags,
            stream,
            &raw::call_headers(RANGE),
        )
    };
    survives(&mut node, "rapid reset", async move {
        let mut sent = 0;
        for _ in 0..4 {
            let connection = raw::open(port, &raw::hello()).await?;
            let mut bytes = Vec::new();
            for n in 0..20_000 {
                let stream = 1 + 2 * n;
                bytes.extend(headers(stream, 0));
                bytes.extend(whole(raw::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            sent += pour_and_drain(connection, &bytes, FLOOD / 4).await;
        }
        Ok(format!("{sent} bytes of streams opened and reset"))
    })
    .await?;
    for (name, bytes) in [
        ("pings", whole(raw::PING, 0, 0, b"pingping").repeat(500)),
        ("settings", whole(raw::SETTINGS, 0, 0, b"").repeat(500)),
        (
            "empty data",
            [headers(1, 0), whole(raw::DATA, 0, 1, b"").repeat(500)].concat(),
        ),
        (
            "window updates",
            whole(raw::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(500),
        ),
        (
            "headers without end",
            [
                whole(raw::HEADERS, 0, 1, &raw::call_headers(RANGE)),
                whole(
                    raw::CONTINUATION,
                    0,
                    1,
                    &[0x40, 1, b'a', 1, b'b'].repeat(1000),
                )
                .repeat(50),
            ]
            .concat(),
        ),
    ] {
        survives(&mut node, name, async move {
            let connection = raw::open(port, &raw::hello()).await?;
            let mut silent = raw::open(port, &raw::hello()).await?;
            let sent = pour_and_drain(connection, &bytes, FLOOD / 2).await
                + pour(&mut silent, &bytes, FLOOD / 2).await;
            Ok(format!("{sent} bytes"))
        })
        .await?;
    }
    let channel = node.channel()?;
    survives(&mut node, "requests over the limit", async move {
        let mut refused = 0;
        for bytes in [3 << 20, 64 << 20] {
            let put = [&b"\x0a\x01k\x12"[..], &vec![b'v'; bytes]].concat();
            let answer = call(channel.clone(), PUT, Bytes::from(put)).await;
            refused += usize::from(answer.is_err());
        }
        Ok(format!("{refused} of 2 refused"))
    })
    .await?;
    node.stop().map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_streams_and_watches() {
    let dir = tempfile::tempdir().unwrap();
    let result = idle(dir.path()).await;
    conclude(dir, result);
}

async fn idle(dir: &Path) -> Result<()> {
    let mut node = node(dir).await?;
    let channels = (0..10)
        .map(|_| node.channel())
        .collect::<Result<Vec<_>>>()?;
    let held = channels.clone();
    survives(&mut node, "idle streams", async move {
        // They end with this set.
        let mut open = tokio::task::JoinSet::new();
        for n in 0..5000 {
            // Half of them watch a key that nobody writes; the others never say anything,
            // and so are never answered.
            let create = pb::WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                    key: format!("nobody/{n}").into(),
                    ..Default::default()
                })),
            };
            let first = (n % 2 == 0).then_some(create);
            let requests = tokio_stream::iter(first).chain(tokio_stream::pending());
            let mut client = WatchClient::new(held[n % held.len()].clone());
            open.spawn(async move {
                let stream = client.watch(requests).await;
                tokio::time::sleep(5 * FLOOD).await;
                drop(stream);
            });
        }
        tokio::time::sleep(2 * FLOOD).await;
        Ok(format!("{} streams", open.len()))
    })
    .await?;
    drop(channels);
    leftovers(&mut node).await
}

/// When hostile clients are gone, what they held is free.
async fn leftovers(node: &mut Node) -> Result<()> {
    survives(node, "afterwards", async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok("nothing".to_owned())
    })
    .await?;
    node.stop().map(drop)
}
