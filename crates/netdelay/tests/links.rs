//! Links over real sockets.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use netdelay::{Delays, Network, Route};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// On a busy machine a thread may wait this long for its turn.
const SLACK: Duration = ms(500);

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A server that sends back what it gets, each connection until its end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..read]);
                }
            });
        }
    });
    address
}

fn round_trip(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    began.elapsed()
}

fn is_about(took: Duration, expected: Duration) {
    assert!(
        took >= expected && took < expected + SLACK,
        "{took:?} instead of {expected:?}"
    );
}

#[test]
fn each_direction_has_its_own_delay() {
    let network = Network::start().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free();
    let delays = Delays {
        forward: ms(20).into(),
        backward: ms(700).into(),
    };
    network
        .link(at, server.local_addr().unwrap(), delays)
        .unwrap();
    // When the server had each byte, which it answers at once.
    let serving = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        [(); 2].map(|()| {
            stream.read_exact(&mut [0]).unwrap();
            let had = Instant::now();
            stream.write_all(b"y").unwrap();
            had
        })
    });
    let mut stream = TcpStream::connect(at).unwrap();
    let asked = [(); 2].map(|()| {
        let began = Instant::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        (began, Instant::now())
    });
    let had = serving.join().unwrap();
    // A round trip to open it.
    is_about(had[0] - asked[0].0, ms(720 + 20));
    is_about(had[1] - asked[1].0, ms(20));
    for (had, (_, answered)) in had.iter().zip(asked) {
        is_about(answered - *had, ms(700));
    }
}

#[test]
fn a_side_that_has_said_all_still_hears() {
    let network = Network::start().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free();
    let delays = Delays {
        forward: ms(30).into(),
        backward: ms(30).into(),
    };
    network
        .link(at, server.local_addr().unwrap(), delays)
        .unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        stream.write_all(all.to_uppercase().as_bytes()).unwrap();
    });
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"a question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "A QUESTION");
    serving.join().unwrap();
}

#[test]
fn nobody_behind_it_is_an_end() {
    let network = Network::start().unwrap();
    let at = free();
    network.link(at, free(), Delays::default()).unwrap();
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(ms(5000))).unwrap();
    assert!(matches!(stream.read(&mut [0; 10]), Ok(0) | Err(_)));
}

/// Asks the proxy at `at` for `authority`: the answer's status line and what it took.
fn connect(at: SocketAddr, authority: &str) -> (TcpStream, String, Duration) {
    let mut stream = TcpStream::connect(at).unwrap();
    let began = Instant::now();
    write!(
        stream,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    (
        stream,
        head.lines().next().unwrap().to_owned(),
        began.elapsed(),
    )
}

#[test]
fn the_way_depends_on_who_is_named() {
    let network = Network::start().unwrap();
    let at = free();
    let route = |authority: &str, forward, backward| Route {
        authority: authority.into(),
        target: echo(),
        delays: Delays {
            forward: ms(forward).into(),
            backward: ms(backward).into(),
        },
    };
    let routes = vec![
        route("192.0.2.1:2380", 5, 10),
        route("192.0.2.2:2380", 5, 90),
    ];
    network.egress(at, routes).unwrap();
    for (name, expected) in [("192.0.2.1:2380", ms(15)), ("192.0.2.2:2380", ms(95))] {
        let (mut stream, status, took) = connect(at, name);
        assert!(status.contains(" 200 "), "{status}");
        is_about(took, expected);
        is_about(round_trip(&mut stream), expected);
    }
    let (_, status, _) = connect(at, "192.0.2.3:2380");
    assert!(status.contains(" 502 "), "{status}");
}

#[test]
fn all_ends_with_the_network() {
    let network = Network::start().unwrap();
    let at = free();
    network.link(at, echo(), Delays::default()).unwrap();
    let mut stream = TcpStream::connect(at).unwrap();
    round_trip(&mut stream);
    drop(network);
    stream.set_read_timeout(Some(ms(5000))).unwrap();
    assert!(matches!(stream.read(&mut [0; 10]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn a_delay_changes_while_a_connection_is_open() {
    let network = Network::start().unwrap();
    let at = free();
    let delays = Delays::default();
    network.link(at, echo(), delays.clone()).unwrap();
    let mut stream = TcpStream::connect(at).unwrap();
    is_about(round_trip(&mut stream), ms(0));
    delays.backward.set(ms(600));
    is_about(round_trip(&mut stream), ms(600));
    delays.backward.set(ms(0));
    is_about(round_trip(&mut stream), ms(0));
}
