//! TCP sockets: their options, and connections to members.
//!
//! Options are set through `socket2`, which has safe functions for each of them.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use upstream::Endpoint;

use crate::relay::{Dial, Side};

/// Unanswered questions of TCP keepalive after which a peer is given up.
const KEEPALIVE_RETRIES: u32 = 3;

impl Side for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        TcpStream::try_read(self, into)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        TcpStream::try_write(self, bytes)
    }

    fn end_writes(&self) -> io::Result<()> {
        match SockRef::from(self).shutdown(Shutdown::Write) {
            // The peer has gone already, which a read will tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        }
    }

    fn cork(&self, on: bool) {
        // It leaves at once if this fails.
        let _ = SockRef::from(self).set_tcp_cork(on);
    }
}

/// How dead peers are found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Liveness {
    /// A silent peer is asked this often.
    pub(crate) keepalive: Duration,
    /// A peer that acknowledges nothing for so long is given up.
    pub(crate) user_timeout: Duration,
}

impl Liveness {
    /// Sets the options of a connection's socket.
    pub(crate) fn set(self, socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive)
            .with_interval(self.keepalive)
            .with_retries(KEEPALIVE_RETRIES);
        let socket = SockRef::from(socket);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }
}

/// Connects to members over TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpDial(pub(crate) Liveness);

impl Dial for TcpDial {
    type Side = TcpStream;

    fn dial(&self, to: &Endpoint) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        let (to, liveness) = (to.clone(), self.0);
        async move {
            let mut failed = None;
            for address in to.resolve().await? {
                match connect(address, liveness).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(|| io::Error::other("its name has no address")))
        }
    }
}

async fn connect(address: SocketAddr, liveness: Liveness) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    liveness.set(&stream)?;
    Ok(stream)
}
