//! Listening sockets: TCP and Unix, plain and TLS.

use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Error, bind_advice};
use crate::tls::{Certificate, TlsConfig, TlsSource};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; a name must resolve to an address of this machine. Port 0 takes a free one.
    Tcp(String),
    /// The path of a Unix socket. A socket that is already there is replaced, as etcd does; any
    /// other kind of file is an error.
    Unix(PathBuf),
}

/// What a listener answers; etcd splits them with `--listen-client-http-urls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serves {
    /// gRPC calls.
    pub grpc: bool,
    /// Plain HTTP.
    pub http: bool,
}

impl Serves {
    /// Both.
    pub const ALL: Serves = Serves {
        grpc: true,
        http: true,
    };
}

/// Names a listener of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ListenerId(pub(crate) usize);

/// Places for the connections of one listener, or of several.
#[derive(Debug)]
pub(crate) struct Pool {
    open: AtomicUsize,
    pub(crate) limit: usize,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let open = AtomicUsize::new(0);
        Arc::new(Pool { open, limit })
    }

    /// A place, if one is free. One thread asks.
    pub(crate) fn take(self: &Arc<Self>) -> Option<PoolPlace> {
        (self.open.load(Ordering::Relaxed) < self.limit).then(|| {
            self.open.fetch_add(1, Ordering::Relaxed);
            PoolPlace(Arc::clone(self))
        })
    }
}

/// A connection's place in its [`Pool`].
#[derive(Debug)]
pub(crate) struct PoolPlace(Arc<Pool>);

impl Drop for PoolPlace {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One listener.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Where.
    pub address: Address,
    /// With TLS, if given.
    pub tls: Option<TlsConfig>,
    /// What it answers.
    pub serves: Serves,
    /// Permission bits of a Unix socket's file, such as `0o600`; by default what the process's
    /// mask leaves.
    pub unix_mode: Option<u32>,
    /// Lets several processes listen on one TCP address (`SO_REUSEPORT`).
    pub reuse_port: bool,
}

impl ListenerConfig {
    /// A listener that serves everything, with the usual socket options.
    pub fn new(address: Address, tls: Option<TlsConfig>) -> Self {
        ListenerConfig {
            address,
            tls,
            serves: Serves::ALL,
            unix_mode: None,
            reuse_port: false,
        }
    }
}

/// A listener that holds its address but accepts nothing yet.
#[derive(Debug)]
pub struct BoundListener {
    pub(crate) socket: BoundSocket,
    pub(crate) tls: Option<Arc<TlsSource>>,
    pub(crate) serves: Serves,
    unix_path: Option<UnixPath>,
}

#[derive(Debug)]
pub(crate) enum BoundSocket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

/// Removes a socket's file when its listener goes.
#[derive(Debug)]
struct UnixPath {
    path: PathBuf,
    /// What was made there: another server's file may take its place.
    file: Option<(u64, u64)>,
}

/// Device and inode.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if self.file.is_some() && self.file == file_at(&self.path) {
            // Nothing to do about a failure: the next start replaces the file.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl BoundListener {
    /// The address as a URL, with the port that was really taken.
    pub fn url(&self) -> String {
        let secure = if self.tls.is_some() { "s" } else { "" };
        match (&self.unix_path, self.local_addr()) {
            (Some(path), _) => format!("unix{secure}://{}", path.path.display()),
            (None, Some(address)) => format!("http{secure}://{address}"),
            (None, None) => format!("http{secure}://?"),
        }
    }

    /// The TCP socket, to be served by somebody else; `None` for a Unix socket.
    pub fn into_tcp(self) -> Option<StdTcpListener> {
        match self.socket {
            BoundSocket::Tcp(listener) => Some(listener),
            BoundSocket::Unix(_) => None,
        }
    }

    /// Its certificate, if it uses TLS.
    pub fn certificate(&self) -> Option<Certificate> {
        self.tls.clone().map(Certificate)
    }

    /// The TCP address, or `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            BoundSocket::Tcp(listener) => listener.local_addr().ok(),
            BoundSocket::Unix(_) => None,
        }
    }
}

/// Takes all addresses and reads all TLS files, without accepting connections yet.
///
/// On an error none stays taken.
pub fn bind(listeners: Vec<ListenerConfig>) -> Result<Vec<BoundListener>, Error> {
    let bound: Vec<_> = listeners
        .into_iter()
        .map(bind_one)
        .collect::<Result<_, _>>()?;
    let sources = bound.iter().filter_map(|bound| bound.tls.as_ref());
    crate::tls::watch(sources.map(Arc::downgrade).collect()).map_err(Error::Worker)?;
    Ok(bound)
}

fn bind_one(config: ListenerConfig) -> Result<BoundListener, Error> {
    if !config.serves.grpc && !config.serves.http {
        let what = format!("the listener on {:?} serves nothing", config.address);
        return Err(Error::Settings(what));
    }
    let tls = match &config.tls {
        Some(tls) => Some(Arc::new(TlsSource::load(tls, config.serves.http)?)),
        None => None,
    };
    let (socket, unix_path) = match &config.address {
        Address::Tcp(address) => (bind_tcp(address, &config)?, None),
        Address::Unix(path) => (
            bind_unix(path, config.unix_mode)?,
            Some(UnixPath {
                path: path.clone(),
                file: file_at(path),
            }),
        ),
    };
    Ok(BoundListener {
        socket,
        tls,
        serves: config.serves,
        unix_path,
    })
}

fn bind_tcp(address: &str, config: &ListenerConfig) -> Result<BoundSocket, Error> {
    let wrong = |reason: String| Error::Address {
        address: address.to_owned(),
        reason,
    };
    let mut found = address.to_socket_addrs().map_err(|error| {
        wrong(format!(
            "{error}; give host:port, with a host that resolves on this machine"
        ))
    })?;
    let resolved = found
        .next()
        .ok_or_else(|| wrong("the name has no address; check DNS".to_owned()))?;
    let open = || -> io::Result<StdTcpListener> {
        let socket = Socket::new(
            Domain::for_address(resolved),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // While old connections linger; Go, and so etcd, always sets it.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(config.reuse_port)?;
        if resolved.is_ipv6() && !resolved.ip().is_unspecified() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&resolved.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open().map(BoundSocket::Tcp).map_err(|source| Error::Bind {
        address: address.to_owned(),
        advice: bind_advice(&source),
        source,
    })
}

fn bind_unix(path: &Path, mode: Option<u32>) -> Result<BoundSocket, Error> {
    let shown = || format!("unix://{}", path.display());
    let failed = |source: io::Error| Error::Bind {
        address: shown(),
        advice: bind_advice(&source),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match StdUnixStream::connect(path) {
            // Left behind by a server that is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(_) => return Err(failed(io::ErrorKind::AddrInUse.into())),
        },
        Ok(_) => {
            let reason = "a file that is not a socket is there; move it away".to_owned();
            return Err(Error::Address {
                address: shown(),
                reason,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let open = || -> io::Result<StdUnixListener> {
        let Some(mode) = mode else {
            let listener = StdUnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            return Ok(listener);
        };
        // Under another name until nobody else may connect.
        let hidden = path.with_extension("binding");
        match std::fs::remove_file(&hidden) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdUnixListener::bind(&hidden)?;
        std::fs::set_permissions(&hidden, Permissions::from_mode(mode))?;
        std::fs::rename(&hidden, path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map(BoundSocket::Unix).map_err(failed)
}
