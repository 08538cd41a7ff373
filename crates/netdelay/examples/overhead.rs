//! What a link adds by itself: round trips of 128 bytes straight and through it, and bytes a
//! second. `cargo run --release -p netdelay --example overhead`.
#![allow(clippy::unwrap_used, reason = "a measurement may fail")]

use netdelay::{Delays, Network};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 20_000;
const BULK_BYTES: usize = 2 << 30;

fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                // What is longer than a question is only swallowed.
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if read == 128 && stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// p50, p99 and the longest of round trips, in microseconds.
fn round_trips(at: SocketAddr, rounds: usize) -> [f64; 3] {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut took: Vec<f64> = (0..=rounds)
        .map(|_| {
            let began = Instant::now();
            stream.write_all(&[1; 128]).unwrap();
            stream.read_exact(&mut [0; 128]).unwrap();
            began.elapsed().as_secs_f64() * 1e6
        })
        // The first waits until the connection is open.
        .skip(1)
        .collect();
    took.sort_by(f64::total_cmp);
    [rounds / 2, rounds * 99 / 100, rounds - 1].map(|rank| took[rank])
}

fn bulk(at: SocketAddr) -> f64 {
    let mut stream = TcpStream::connect(at).unwrap();
    let chunk = vec![0; 1 << 20];
    let began = Instant::now();
    for _ in 0..BULK_BYTES / chunk.len() {
        stream.write_all(&chunk).unwrap();
    }
    BULK_BYTES as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn main() {
    let network = Network::start().unwrap();
    let target = echo();
    let straight = round_trips(target, ROUNDS);
    println!(
        "straight: p50 {:.0} us, p99 {:.0} us; {:.0} MB/s",
        straight[0],
        straight[1],
        bulk(target)
    );
    for (delay_us, rounds) in [
        (0, ROUNDS),
        (500, 4_000),
        (1_000, 2_000),
        (15_000, 200),
        (45_000, 100),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let delays = Delays {
            forward: Duration::from_micros(delay_us).into(),
            backward: Duration::ZERO.into(),
        };
        network.link(at, target, delays).unwrap();
        let [p50, p99, max] = round_trips(at, rounds).map(|us| us - delay_us as f64);
        println!(
            "{:.1} ms there: p50 {p50:.0} us, p99 {p99:.0} us, max {max:.0} us besides; {:.0} MB/s",
            delay_us as f64 / 1e3,
            bulk(at)
        );
    }
}
