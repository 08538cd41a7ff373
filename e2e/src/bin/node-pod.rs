//! What containers of a test run on a real node: `pause` waits for ever, `web` answers every
//! request with the host's name, `get HOST:PORT PATH` prints what such a server answers.
//!
//! `pause -v` prints a version: `kubeadm upgrade` asks for it in a Job.

use std::io::{Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Where `web` listens.
const PORT: u16 = 8080;
/// How long one step of a request may take.
const LIMIT: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["pause"] => loop {
            std::thread::park();
        },
        ["pause", "-v"] => {
            println!("node-pod {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        ["web"] => web(),
        ["get", host, path] => get(host, path),
        _ => Err(std::io::Error::other(
            "usage: node-pod pause [-v] | web | get HOST:PORT PATH",
        )),
    }
}

fn web() -> Result<()> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    for stream in TcpListener::bind(("0.0.0.0", PORT))?.incoming() {
        // One that goes away is no reason to end.
        let _ = stream.and_then(|stream| answer(stream, &name));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, text: &str) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    // A request without a body fits into one read.
    let _ = stream.read(&mut [0; 4096])?;
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}

fn get(host: &str, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => {
            print!("{body}");
            Ok(())
        }
        _ => Err(std::io::Error::other(text)),
    }
}
