//! What the engine itself costs, without network or disk: time an update, memory a key,
//! time to replay. Prints one line a figure, with its budget. Times are CPU time of the
//! one thread that works, so that a busy machine does not spoil them.
//!
//!     cargo run --release -p engine --example engine_bench [KEYS]
#![allow(clippy::print_stdout)] // its purpose

use bytes::Bytes;
use engine::op::{Class, Compare, DeleteOp, KeyRange, Op, Operator, PutOp, Target, TxnOp, Write};
use engine::record::{Effect, Record};
use engine::{Engine, Lane, Limits};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The allocator that the server runs with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A point in this thread's CPU time.
struct Instant(Duration);

impl Instant {
    fn now() -> Self {
        let t = clock_gettime(ClockId::ThreadCPUTime);
        Instant(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// An 80-byte key. Neighbours in number are not neighbours in order.
fn key(i: u64) -> Bytes {
    let spread = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = format!("/registry/configmaps/kube-system/{spread:020}-{i:026}");
    assert_eq!(key.len(), 80);
    Bytes::from(key)
}

fn rss_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|p| p.parse().ok());
    pages.unwrap_or(0) * 4096usize
}

fn put(key: Bytes, value: Bytes) -> Write {
    Write::Put(PutOp {
        key,
        value,
        ..PutOp::default()
    })
}

/// Compares on the mod revision and puts, as kube-apiserver updates.
fn cas(key: Bytes, value: Bytes, revision: i64) -> Write {
    Write::Txn(TxnOp {
        compares: vec![Compare {
            range: KeyRange::one(key.clone()),
            target: Target::Mod(revision),
            operator: Operator::NotEqual,
        }],
        success: vec![Op::Put(PutOp {
            key,
            value,
            ..PutOp::default()
        })],
        failure: Vec::new(),
    })
}

/// Submits `n` writes in batches of `batch`; nanoseconds a write. Requests are made just
/// before, as a connection's thread does, and history is compacted now and then, both
/// outside the time.
fn run(engine: &mut Engine<u64>, n: u64, batch: u64, write: impl Fn(u64) -> Write) -> f64 {
    let mut answers = Vec::new();
    let mut spent = Duration::ZERO;
    for group in 0..n / 100 {
        let mut made: Vec<Write> = (0..100).map(|i| write(group * 100 + i)).collect();
        let started = Instant::now();
        while !made.is_empty() {
            for _ in 0..batch {
                if let Some(w) = made.pop() {
                    engine.submit(w, Class::DURABLE, group, 0);
                }
            }
            while let Some(b) = engine.take_batch(Lane::Durable, usize::MAX) {
                assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
            }
            answers.clear();
        }
        spent += started.elapsed();
        if group % 100 == 99 {
            compact(engine);
        }
    }
    spent.as_nanos() as f64 / n as f64
}

/// Longest of `n` single puts of new keys in microseconds: growing must not stall.
fn longest_create_us(engine: &mut Engine<u64>, keys: std::ops::Range<u64>) -> u128 {
    let value = Bytes::from(vec![b'v'; 100]);
    let mut answers = Vec::new();
    let mut longest = 0;
    for i in keys {
        let w = put(key(i), value.clone());
        let started = Instant::now();
        engine.submit(w, Class::DURABLE, i, 0);
        if let Some(b) = engine.take_batch(Lane::Durable, usize::MAX) {
            assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
        }
        longest = longest.max(started.elapsed().as_micros());
        answers.clear();
    }
    longest
}

/// Milliseconds of the two holds of the lock that a transaction needs which is as large as one
/// may be, half of it deletes of existing keys, by key or by range, half of it puts of new ones.
fn largest_txn_ms(engine: &mut Engine<u64>, by_range: bool) -> (f64, f64) {
    const OPS: u64 = 8192;
    let value = Bytes::from(vec![b'v'; 20]);
    let old = |i: u64| key(i + u64::from(by_range) * OPS);
    let nested = |ops: Vec<Op>| {
        Op::Txn(TxnOp {
            success: ops,
            ..TxnOp::default()
        })
    };
    let delete = |i: u64| {
        let key = old(i);
        let end = match by_range {
            true => [&key[..], b"\0"].concat().into(),
            false => Bytes::new(),
        };
        Op::Delete(DeleteOp {
            range: KeyRange { key, end },
            prev_kv: false,
        })
    };
    let put = |i: u64| {
        Op::Put(PutOp {
            key: Bytes::from(format!("new-{by_range}-{i}")),
            value: value.clone(),
            ..PutOp::default()
        })
    };
    let write = Write::Txn(TxnOp {
        success: vec![
            nested((0..OPS / 2).map(put).collect()),
            nested((0..OPS / 2).map(delete).collect()),
        ],
        ..TxnOp::default()
    });
    let mut answers = Vec::new();
    let started = Instant::now();
    engine.submit(write, Class::DURABLE, 0, 0);
    let submitted = started.elapsed();
    let batch = engine.take_batch(Lane::Durable, usize::MAX);
    let started = Instant::now();
    if let Some(b) = batch {
        assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    (ms(submitted), ms(started.elapsed()))
}

fn compact(engine: &mut Engine<u64>) -> (f64, u128) {
    let revision = engine.revision();
    engine.submit(Write::Compact { revision }, Class::DURABLE, 0, 0);
    let mut answers = Vec::new();
    while let Some(b) = engine.take_batch(Lane::Durable, usize::MAX) {
        assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
    }
    let (started, mut steps, mut longest) = (Instant::now(), 0u64, 0);
    while engine.compaction_due() {
        let step = Instant::now();
        engine.compact_step(500);
        longest = longest.max(step.elapsed().as_micros());
        steps += 500;
    }
    (
        started.elapsed().as_nanos() as f64 / steps.max(1) as f64,
        longest,
    )
}

fn main() {
    let n: u64 = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(1_000_000);
    let limits = Limits {
        quota_bytes: usize::MAX,
        ..Limits::default()
    };
    let value = Bytes::from(vec![b'v'; 100]);

    let before = rss_bytes();
    let mut engine: Engine<u64> = Engine::new(limits.clone());
    let mut us = 0;
    for part in 0..100 {
        let keys = part * n / 100..(part + 1) * n / 100;
        us = longest_create_us(&mut engine, keys).max(us);
        // As a cluster does: history is a small part of what is there.
        compact(&mut engine);
    }
    println!("longest of {n} creates: {us} us");
    let rss = rss_bytes() - before;
    let a_key = |bytes: usize| bytes as f64 / n as f64 - 180.0;
    println!(
        "memory a key beyond key and value: {:.0} bytes (budget 110), {:.0} accounted for",
        a_key(rss),
        a_key(engine.sizes().total_bytes),
    );

    let spread = |i: u64| key(i.wrapping_mul(7_919) % n);
    for batch in [1, 100] {
        let ns = run(&mut engine, 500_000, batch, |i| {
            put(spread(i), value.clone())
        });
        println!("put of an existing key, {batch} a batch: {ns:.0} ns (budget 1000)");
    }
    let ns = run(&mut engine, 500_000, 100, |i| {
        cas(spread(i), value.clone(), 0)
    });
    println!("compare and put of an existing key, 100 a batch: {ns:.0} ns (budget 1000)");
    let (ns, longest) = compact(&mut engine);
    println!("compaction: {ns:.0} ns an event, longest step of 500 events {longest} us");

    let started = Instant::now();
    let mut cursor = engine.hash_open(0).ok();
    let mut longest = 0;
    if let Some(c) = cursor.as_mut() {
        loop {
            let step = Instant::now();
            let done = engine.hash_step(c, 500);
            longest = longest.max(step.elapsed().as_micros());
            if done {
                break;
            }
        }
    }
    let stepped = started.elapsed().as_millis();
    let hash = cursor.map(|c| c.finish(&mut || ()));
    println!(
        "hash {hash:x?}: {stepped} ms collecting, longest step {longest} us, {} ms in all",
        started.elapsed().as_millis()
    );

    // Many waiting on one key: each must wait for the one before it.
    let mut answers = Vec::new();
    for i in 0..5_000 {
        engine.submit(cas(key(0), value.clone(), 0), Class::DURABLE, i, 0);
    }
    let mut longest = 0;
    while let Some(b) = engine.take_batch(Lane::Durable, usize::MAX) {
        let step = Instant::now();
        assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
        longest = longest.max(step.elapsed().as_micros());
    }
    println!("longest completion with 5000 waiting for one key: {longest} us");
    // 10,000 wait for one write: they are admitted in slices.
    engine.submit(
        Write::Delete(DeleteOp {
            range: KeyRange {
                key: key(0),
                end: [&key(0)[..], b"\0"].concat().into(),
            },
            prev_kv: false,
        }),
        Class::DURABLE,
        0,
        0,
    );
    let volatile = Class {
        lane: Lane::Volatile,
        ..Class::DURABLE
    };
    for i in 0..10_000 {
        engine.submit(cas(key(0), value.clone(), 0), volatile.clone(), i, 0);
    }
    let mut longest = 0;
    for lane in std::iter::repeat_n([Lane::Durable, Lane::Volatile], 10_001).flatten() {
        let Some(b) = engine.take_batch(lane, usize::MAX) else {
            continue;
        };
        let step = Instant::now();
        assert!(engine.complete(b.ticket, 0, &mut answers).is_ok());
        longest = longest.max(step.elapsed().as_micros());
        while engine.has_ready() {
            let step = Instant::now();
            engine.admit_ready(&mut answers);
            longest = longest.max(step.elapsed().as_micros());
        }
    }
    println!("longest turn with 10000 waiting behind a range: {longest} us");
    for by_range in [false, true] {
        let (submit, complete) = largest_txn_ms(&mut engine, by_range);
        println!(
            "the largest transaction, deletes by range {by_range}: submitted in {submit:.1} ms, visible in {complete:.1} ms (budget 50)"
        );
    }
    drop(engine);

    for (what, ordered) in [("in key order", true), ("in any order", false)] {
        let keys: Vec<Bytes> = if ordered {
            (0..n)
                .map(|i| Bytes::from(format!("/registry/configmaps/kube-system/{i:047}")))
                .collect()
        } else {
            (0..n).map(key).collect()
        };
        let records: Vec<Record> = keys
            .into_iter()
            .map(|key| {
                Record::Txn(vec![Effect::Put {
                    key,
                    value: value.clone(),
                    lease: 0,
                }])
            })
            .collect();
        let mut engine: Engine<u64> = Engine::new(limits.clone());
        let started = Instant::now();
        for r in records {
            engine.apply(r);
        }
        let s = started.elapsed().as_secs_f64() * 1e6 / n as f64;
        println!("replay of creates {what}: {s:.2} s a million records (budget 2)");
    }
}
