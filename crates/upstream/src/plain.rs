//! gRPC messages as the bytes that they are, for streams whose messages others know.

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// Opens a stream of `method`, its service and name, with the first message. What is put into the
/// sender goes out after it, in order; at most `ahead` messages wait there. What comes is at most
/// `max_bytes` long.
///
/// # Errors
/// The server's, or [`tonic::Code::Unavailable`] if there is none.
pub async fn open(
    channel: Channel,
    method: (&str, &str),
    first: Bytes,
    ahead: usize,
    max_bytes: usize,
) -> Result<(Streaming<Bytes>, mpsc::Sender<Bytes>), Status> {
    let (told, messages) = mpsc::channel(ahead.max(1));
    // There is room for the first.
    let _ = told.try_send(first);
    let mut client = Grpc::new(channel).max_decoding_message_size(max_bytes);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(telemetry::with_causes(&error)))?;
    let (service, name) = method;
    let path = http::uri::PathAndQuery::try_from(format!("/{service}/{name}"))
        .map_err(|error| Status::internal(error.to_string()))?;
    let request = Request::new(ReceiverStream::new(messages));
    let said = client.streaming(request, path, Plain).await?;
    Ok((said.into_inner(), told))
}

/// Bytes as they are: what they mean is the stream's own.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
