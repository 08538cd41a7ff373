//! A closed loop of Puts against a gRPC server, and what they cost it.
//!
//! `cargo run --release -p wire --example load -- --pid SERVER_PID [--port P] [--connections 10]
//! [--in-flight 100] [--seconds 5] [--value-bytes 1024]`
//! Prints calls a second, latency percentiles and the server's CPU time a call, read from /proc.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Options {
    pid: u32,
    port: u16,
    connections: usize,
    in_flight: usize,
    seconds: u64,
    value_bytes: usize,
}

fn options() -> Result<Options> {
    let mut options = Options {
        pid: 0,
        port: 23_790,
        connections: 10,
        in_flight: 100,
        seconds: 5,
        value_bytes: 1024,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match arg.as_str() {
            "--pid" => options.pid = value.parse()?,
            "--port" => options.port = value.parse()?,
            "--connections" => options.connections = value.parse()?,
            "--in-flight" => options.in_flight = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--value-bytes" => options.value_bytes = value.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(options)
}

/// User and kernel CPU time of a process in microseconds.
fn cpu_us(pid: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .ok_or("odd /proc stat")?
        .1
        .split_whitespace()
        .collect();
    // Fields 14 and 15 of proc(5); the clock ticks are hundredths of a second on Linux.
    Ok((
        fields[11].parse::<u64>()? * 10_000,
        fields[12].parse::<u64>()? * 10_000,
    ))
}

fn put_request(key: u64, value_bytes: usize) -> Bytes {
    let mut message = BytesMut::new();
    let key = format!("/registry/load/{key:09}");
    message.put_slice(&[0x0a, key.len() as u8]);
    message.put_slice(key.as_bytes());
    message.put_slice(&[
        0x12,
        (value_bytes & 0x7f) as u8 | 0x80,
        (value_bytes >> 7) as u8,
    ]);
    message.put_bytes(b'v', value_bytes);
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

async fn put(send: &mut SendRequest<Full<Bytes>>, body: Bytes) -> Result<()> {
    let request = Request::post("http://localhost/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "load")
        .body(Full::new(body))?;
    send.ready().await?;
    let response = send.send_request(request).await?;
    let body = response.into_body().collect().await?;
    match body
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"))
    {
        Some(status) if status == "0" => Ok(()),
        other => Err(format!("the call failed: {other:?}").into()),
    }
}

async fn run(options: &Options) -> Result<()> {
    if options.value_bytes >= 1 << 14 || options.value_bytes < 128 {
        return Err("--value-bytes must lie between 128 and 16383".into());
    }
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let latencies = Rc::new(RefCell::new(Vec::<u32>::new()));
    let before = cpu_us(options.pid)?;
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..options.connections {
        let stream = TcpStream::connect(("127.0.0.1", options.port)).await?;
        stream.set_nodelay(true)?;
        let (send, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::task::spawn_local(driver);
        for slot in 0..options.in_flight / options.connections {
            let (mut send, latencies) = (send.clone(), Rc::clone(&latencies));
            let body = put_request((connection * 1000 + slot) as u64, options.value_bytes);
            tasks.push(tokio::task::spawn_local(async move {
                while Instant::now() < until {
                    let begun = Instant::now();
                    put(&mut send, body.clone())
                        .await
                        .map_err(|error| error.to_string())?;
                    latencies
                        .borrow_mut()
                        .push(begun.elapsed().as_micros() as u32);
                }
                Ok::<_, String>(())
            }));
        }
    }
    for task in tasks {
        task.await??;
    }
    let elapsed = begun.elapsed();
    let after = cpu_us(options.pid)?;
    let mut latencies = latencies.borrow_mut();
    latencies.sort_unstable();
    let calls = latencies.len();
    let at = |share: f64| latencies[((calls - 1) as f64 * share) as usize];
    let (user, kernel) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{:.0} calls/s; server CPU {:.2} us a call (user {:.2}, kernel {:.2}); \
         latency us p50 {} p99 {} p99.9 {}",
        calls as f64 / elapsed.as_secs_f64(),
        (user + kernel) as f64 / calls as f64,
        user as f64 / calls as f64,
        kernel as f64 / calls as f64,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    Ok(())
}

fn main() -> Result<()> {
    let options = options()?;
    if options.pid == 0 {
        return Err("give the server's process id with --pid".into());
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?
        .block_on(run(&options))
}
