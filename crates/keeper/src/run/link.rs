//! The connection to a server: messages as bytes, there and back.

use bytes::{Buf, Bytes};
use copies::message::{MessageError, Refused, Said, Told};
use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use upstream::plain;

/// How long a server may take to answer at all.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// A server says something every 250 ms; after so long without it is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// A batch is 256 KiB of entries and one more, which is a frame of the server's log at most; a
/// longer message is no server's of ours.
const MAX_MESSAGE_BYTES: usize = journal::MAX_PAYLOAD_BYTES as usize + (1 << 20);
/// What is said waits for the connection at most so often, and so long.
const TOLD_AHEAD: usize = 16;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The server refused, with a reason.
    #[error("the server refuses: {}", .0.text)]
    Refused(Refused),
    /// The connection, or the server's end of it.
    #[error("{}", upstream::explain(.0))]
    Status(Box<Status>),
    /// Nothing came.
    #[error("nothing came from the server for {} s", SILENCE.as_secs())]
    Silent,
    /// No answer came.
    #[error("no answer from the server within {} s", OPEN_TIMEOUT.as_secs())]
    NoAnswer,
    /// The server ended the stream.
    #[error("the server ended the stream")]
    Ended,
    /// It said what is not understood.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The keeper stops.
    #[error("the keeper stops")]
    Stopping,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Broken::Status(Box::new(status))
    }
}

/// A connection. Its calls wait, and end early when the keeper stops.
pub(crate) struct Link {
    handle: Handle,
    said: Streaming<Bytes>,
    told: mpsc::Sender<Bytes>,
    stopped: watch::Receiver<bool>,
}

impl Link {
    /// Connects, and says who is there.
    pub(crate) fn open(
        handle: &Handle,
        channel: Channel,
        hello: Told,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Link, Broken> {
        let first = hello.into_bytes();
        let open = plain::open(
            channel,
            copies::METHOD,
            first,
            TOLD_AHEAD,
            MAX_MESSAGE_BYTES,
        );
        let (said, told) = handle.block_on(async {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => Err(Broken::Stopping),
                opened = tokio::time::timeout(OPEN_TIMEOUT, open) => match opened {
                    Ok(opened) => Ok(opened?),
                    Err(_) => Err(Broken::NoAnswer),
                },
            }
        })?;
        Ok(Link {
            handle: handle.clone(),
            said,
            told,
            stopped,
        })
    }

    /// What comes next, waiting for it.
    pub(crate) fn next(&mut self) -> Result<Said, Broken> {
        let Link {
            handle,
            said,
            stopped,
            ..
        } = self;
        let message = handle.block_on(async {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => Err(Broken::Stopping),
                message = tokio::time::timeout(SILENCE, said.message()) => match message {
                    Ok(message) => message?.ok_or(Broken::Ended),
                    Err(_) => Err(Broken::Silent),
                },
            }
        })?;
        known(message)
    }

    /// What has come already.
    pub(crate) fn ready(&mut self) -> Result<Option<Said>, Broken> {
        let Link { handle, said, .. } = self;
        let message = handle.block_on(poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut *said).poll_next(cx) {
                Poll::Ready(Some(message)) => Some(message.map_err(Broken::from)),
                Poll::Ready(None) => Some(Err(Broken::Ended)),
                Poll::Pending => None,
            })
        }));
        message.transpose()?.map(known).transpose()
    }

    /// Says something.
    pub(crate) fn tell(&self, told: Told) -> Result<(), Broken> {
        let sending = self.told.send(told.into_bytes());
        match self
            .handle
            .block_on(async { tokio::time::timeout(SILENCE, sending).await })
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Broken::Ended),
            Err(_) => Err(Broken::Silent),
        }
    }
}

fn known(message: Bytes) -> Result<Said, Broken> {
    match Said::from_bytes(message)? {
        Said::Refused(refused) => Err(Broken::Refused(refused)),
        said => Ok(said),
    }
}

/// A snapshot's parts, read one after the other. It ends with the empty part.
pub(crate) struct Parts<'a> {
    link: &'a mut Link,
    part: Bytes,
    ended: bool,
    /// Why it broke off.
    pub(crate) broken: Option<Broken>,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(link: &'a mut Link) -> Self {
        Parts {
            link,
            part: Bytes::new(),
            ended: false,
            broken: None,
        }
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() && !self.ended {
            match self.link.next() {
                Ok(Said::Snapshot(part)) => {
                    self.ended = part.is_empty();
                    self.part = part;
                }
                Ok(_) => return Err(io::Error::other("another message within the snapshot")),
                Err(broken) => {
                    let error = io::Error::other(broken.to_string());
                    self.broken = Some(broken);
                    return Err(error);
                }
            }
        }
        let n = out.len().min(self.part.len());
        self.part.copy_to_slice(&mut out[..n]);
        Ok(n)
    }
}
