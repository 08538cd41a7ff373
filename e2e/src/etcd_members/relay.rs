//! Relays before the peer ports of a cluster: one member is cut off from the others by them, in both
//! directions, and from nobody else.

use crate::kube::Result;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The head of a request between members is some hundred bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What stands before a peer port.
#[derive(Debug)]
pub(super) struct Relay {
    /// Where it listens.
    pub(super) port: u16,
    /// Whose port that is; 0 before it is known.
    pub(super) own: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Relay {
    pub(super) async fn start(
        port: u16,
        to: u16,
        cut: watch::Receiver<Option<u64>>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let (own, id) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (id, cut) = (id.clone(), cut.clone());
                // A connection that fails is made again by who wanted it.
                tokio::spawn(async move { relay(from, to, &id, cut).await.ok() });
            }
        });
        Ok(Relay {
            port,
            own,
            accepting,
        })
    }
}

/// Relays one connection, until one of its ends is cut off.
async fn relay(
    mut from: TcpStream,
    to: u16,
    own: &watch::Receiver<u64>,
    mut cut: watch::Receiver<Option<u64>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
        if from.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let caller = caller_of(&head);
    let (mut own, mut ended) = (own.clone(), own.clone());
    let is_cut =
        |cut: &Option<u64>, own: u64| cut.is_some() && (*cut == Some(own) || *cut == caller);
    if is_cut(&cut.borrow_and_update(), *own.borrow_and_update()) {
        return Ok(());
    }
    let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
    target.write_all(&head).await?;
    tokio::select! {
        done = copy_bidirectional(&mut from, &mut target) => done.map(drop),
        _ = cut.wait_for(|cut| is_cut(cut, *own.borrow())) => Ok(()),
        // The relay's end is its connections' end.
        () = async { while ended.changed().await.is_ok() {} } => Ok(()),
    }
}

/// The id in etcd's header.
fn caller_of(head: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(head);
    let line = text.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("x-server-from:")
            .map(str::to_owned)
    })?;
    u64::from_str_radix(line.trim(), 16).ok()
}
