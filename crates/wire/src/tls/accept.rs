//! TLS of a server that has a transport of its own.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use super::{TlsConfig, TlsSource, files};
use crate::Error;

/// Shakes hands as a listener does, for who accepts connections without one of this crate's: the
/// same settings, the same checks of clients, files that are read again when they change.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<TlsSource>);

impl ServerTls {
    /// Reads the files, and has a thread look at them once a second until this is dropped.
    /// `offers_http1`: whether HTTP/1.1 may be agreed on beside HTTP/2.
    ///
    /// # Errors
    /// If a file cannot be read or used, or the thread not be started.
    pub fn load(config: &TlsConfig, offers_http1: bool) -> Result<Self, Error> {
        let source = Arc::new(TlsSource::load(config, offers_http1)?);
        files::watch(vec![Arc::downgrade(&source)]).map_err(Error::Worker)?;
        Ok(Self(source))
    }

    /// Shakes hands with a client, and checks its certificate. Bound the wait: a client that is
    /// silent is waited for.
    ///
    /// # Errors
    /// If the handshake fails, or the client is refused.
    pub async fn accept<S>(&self, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = self.0.acceptor();
        let stream = acceptor.accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        self.0.check_client(chain).map_err(std::io::Error::other)?;
        Ok(stream)
    }
}
