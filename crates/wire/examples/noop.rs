//! The floor: a server whose Put does nothing, to measure what the transport alone costs a call.
//!
//! `cargo run --release -p wire --example noop -- [--threads N] [--port P] [--later] [--reply-bytes N]`
//! With `--later` each reply waits for another turn of the runtime, as a durable write's does.

use std::rc::Rc;

use bytes::{BufMut, Bytes};
use wire::{
    Address, Call, Config, Frame, Handler, HttpRequest, Inbound, Kind, ListenerConfig, LocalFuture,
    Method, Outbound, Reply, Server, Status,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static METHODS: [Method; 1] = [Method {
    service: "etcdserverpb.KV",
    name: "Put",
    kind: Kind::Unary,
    id: 0,
}];

struct Noop {
    later: bool,
    value_bytes: usize,
}

/// A PutResponse with a header as etcd sends it: cluster, member, revision, term; and, if asked
/// for, a value, for a reply as large as a range's.
fn put_response(value_bytes: usize) -> Frame {
    Frame::encode(40 + value_bytes, |buf| {
        buf.put_slice(b"\x0a\x1b\x08\xd9\x96\xa7\xe3\xd2\xc4\xb1\x91\xd3\x01");
        buf.put_slice(b"\x10\xc3\x95\xa2\xf1\xe4\xd7\xb2\xe8\x5b\x18\xc0\x84\x3d\x20\x02");
        if value_bytes > 0 {
            buf.put_slice(&[0x12, value_bytes as u8 | 0x80, (value_bytes >> 7) as u8]);
            buf.put_bytes(b'v', value_bytes);
        }
    })
}

impl Handler for Noop {
    fn unary(self: &Rc<Self>, _call: Call, _message: Bytes) -> Reply {
        if !self.later {
            return Reply::Now(Ok(put_response(self.value_bytes)));
        }
        let value_bytes = self.value_bytes;
        Reply::Later(Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(put_response(value_bytes))
        }))
    }

    fn stream(
        self: &Rc<Self>,
        _call: Call,
        _inbound: Inbound,
        _outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }

    fn http(self: &Rc<Self>, _request: HttpRequest) -> LocalFuture<http::Response<Bytes>> {
        Box::pin(async { http::Response::new(Bytes::new()) })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut threads = 1;
    let mut port = 23_790;
    let mut later = false;
    let mut value_bytes = 0;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().unwrap_or_default().parse()?,
            "--port" => port = args.next().unwrap_or_default().parse()?,
            "--later" => later = true,
            "--reply-bytes" => value_bytes = args.next().unwrap_or_default().parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if value_bytes != 0 && !(128..1 << 14).contains(&value_bytes) {
        return Err("--reply-bytes must lie between 128 and 16383".into());
    }
    let listener = ListenerConfig::new(Address::Tcp(format!("127.0.0.1:{port}")), None);
    let config = Config {
        workers: threads,
        ..Config::default()
    };
    let server = Server::start(wire::bind(vec![listener])?, config, &METHODS, move |_| {
        Noop { later, value_bytes }
    })?;
    println!("serving on {}", server.urls().join(", "));
    loop {
        std::thread::park();
    }
}
