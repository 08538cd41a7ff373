//! systemd's readiness protocol: one datagram to the socket in `NOTIFY_SOCKET`.
//!
//! Facts: `sd_notify(3)`. A value that begins with `@` names a socket in the
//! abstract namespace; without the variable nobody listens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::Error;

/// How long the service manager may take to accept the datagram.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What the service manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Requests are served.
    Ready,
    /// The server is shutting down.
    Stopping,
}

impl Notify {
    fn message(self) -> &'static [u8] {
        match self {
            Notify::Ready => b"READY=1",
            Notify::Stopping => b"STOPPING=1",
        }
    }
}

/// Tells the service manager. Returns whether there is one.
///
/// # Errors
/// If `NOTIFY_SOCKET` is set and cannot be written to.
pub fn notify(state: Notify) -> Result<bool, Error> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) if !socket.is_empty() => send(&socket, state.message())
            .map(|()| true)
            .map_err(|source| Error::Notify {
                socket: socket.display().to_string(),
                source,
            }),
        _ => Ok(false),
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(TIMEOUT))?;
    datagram.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(datagram: &UnixDatagram) -> Vec<u8> {
        datagram
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut message = [0; 64];
        let len = datagram.recv(&mut message).unwrap();
        message[..len].to_vec()
    }

    #[test]
    fn a_path_is_notified() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), Notify::Ready.message()).unwrap();
        assert_eq!(receive(&manager), b"READY=1");
        send(path.as_os_str(), Notify::Stopping.message()).unwrap();
        assert_eq!(receive(&manager), b"STOPPING=1");
    }

    #[test]
    fn an_abstract_name_is_notified() {
        let name = format!("orlop-telemetry-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), Notify::Ready.message()).unwrap();
        assert_eq!(receive(&manager), b"READY=1");
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(send(OsStr::new("/nonexistent/notify"), b"READY=1").is_err());
    }
}
