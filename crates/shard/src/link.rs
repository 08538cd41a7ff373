//! The connection to a server: messages there and back.

use bytes::Bytes;
use copies::message::{MessageError, Refused};
use copies::shards::message::{Said, Told};
use copies::shards::{MAX_SAID_BYTES, METHOD, memory::ShardError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use upstream::plain;

/// How long a server may take to answer at all.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// What is said waits for the connection at most so often.
const TOLD_AHEAD: usize = 64;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The server refused, with a reason.
    #[error("the server refuses: {}", .0.text)]
    Refused(Refused),
    /// The connection, or the server's end of it.
    #[error("{}", upstream::explain(.0))]
    Status(Box<Status>),
    /// No answer came.
    #[error("no answer from the server within {} s", OPEN_TIMEOUT.as_secs())]
    NoAnswer,
    /// The server ended the stream.
    #[error("the server ended the stream")]
    Ended,
    /// It said what is not understood.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It said what the shard does not do.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// It said something out of turn.
    #[error("the server does not begin with a welcome, or begins twice")]
    OutOfTurn,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Broken::Status(Box::new(status))
    }
}

/// A connection.
pub(crate) struct Link {
    said: Streaming<Bytes>,
    told: mpsc::Sender<Bytes>,
}

impl Link {
    /// Connects, and says who is there.
    pub(crate) async fn open(channel: Channel, hello: Told) -> Result<Link, Broken> {
        let first = hello.into_bytes();
        let open = plain::open(channel, METHOD, first, TOLD_AHEAD, MAX_SAID_BYTES);
        match tokio::time::timeout(OPEN_TIMEOUT, open).await {
            Ok(opened) => {
                let (said, told) = opened?;
                Ok(Link { said, told })
            }
            Err(_) => Err(Broken::NoAnswer),
        }
    }

    /// What comes next. It loses nothing if it is dropped.
    pub(crate) async fn next(&mut self) -> Result<Said, Broken> {
        let message = self.said.message().await?.ok_or(Broken::Ended)?;
        match Said::from_bytes(message)? {
            Said::Refused(refused) => Err(Broken::Refused(refused)),
            said => Ok(said),
        }
    }

    /// Says something.
    pub(crate) async fn tell(&self, told: Told) -> Result<(), Broken> {
        let sent = self.told.send(told.into_bytes()).await;
        sent.map_err(|_| Broken::Ended)
    }
}
