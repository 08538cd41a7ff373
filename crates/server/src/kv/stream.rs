//! RangeStream: a range's answer in pieces, as its client takes them.
//!
//! What is ahead of the client is a few pieces, whatever the range holds. What the read keeps
//! from being freed is given up when history is over its budget: the client is then told that
//! its revision is compacted, as from etcd. A stream in another order than the keys' is known
//! as a whole before its first piece: it has a time in which to be taken.

use super::{check, convert, long};
use crate::encode::{self, Ids};
use crate::read::{Read, Sliced};
use crate::service::Service;
use crate::status;
use crate::store::Store;
use bytes::Bytes;
use engine::op::{RangeOp, RangeReply, Reply, SortOrder, SortTarget};
use engine::pin::Strength;
use engine::tail::KeyValue;
use etcd_api::etcdserverpb as pb;
use prost::Message;
use std::rc::Rc;
use wire::{LocalFuture, Outbound, Status, Transfer};

/// A piece is sent when it holds about so many bytes.
const PIECE_BYTES: usize = 64 << 10;

impl Service {
    pub(crate) fn range_stream(
        self: &Rc<Self>,
        message: Bytes,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let this = self.clone();
        Box::pin(async move {
            let request = pb::RangeRequest::decode(message).map_err(|e| status::undecodable(&e))?;
            check::range(&request)?;
            let op = convert::range(request);
            check_streamable(&op)?;
            this.shared.metrics.range.inc();
            let pieces = Pieces::new(&outbound, op.keys_only);
            match op.sort_target {
                SortTarget::Key => this.stream_by_key(op, pieces).await,
                _ => this.stream_sorted(op, pieces).await,
            }
        })
    }

    /// As in a Range, where no order means ascending; it is known when all is read.
    async fn stream_sorted(&self, op: RangeOp, mut pieces: Pieces<'_>) -> Result<(), Status> {
        let open = move |store: &Store| Read::open(store, op, Strength::Firm);
        let outcome = long::read(&self.offload, &self.shared.store, open).await?;
        let Reply::Range(reply) = outcome.reply else {
            return Err(status::stopped());
        };
        pieces.transfer = Transfer::bounded();
        // What has been sent is given back on the way.
        let mut kvs = reply.kvs.into_iter();
        loop {
            let some: Vec<KeyValue> = kvs.by_ref().take(SORTED_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            pieces.push(some).await?;
            tokio::task::yield_now().await;
        }
        let header = (&self.shared.ids, outcome.revision);
        pieces.end(header, reply.more, reply.count).await
    }

    async fn stream_by_key(&self, op: RangeOp, mut pieces: Pieces<'_>) -> Result<(), Status> {
        let mut left = if op.limit > 0 {
            op.limit as usize
        } else {
            usize::MAX
        };
        let read = Read::open(&self.shared.store, op, Strength::Revocable);
        let mut read = read.map_err(status::of)?;
        read.cursor.pause_at_bytes(PIECE_BYTES);
        let mut more = false;
        loop {
            let mut kvs = read.cursor.take_collected();
            if kvs.len() > left {
                kvs.truncate(left);
                more = true;
            }
            left -= kvs.len();
            pieces.push(kvs).await?;
            if read.is_done() {
                let header = (&self.shared.ids, read.cursor.header_revision);
                return pieces.end(header, more, read.cursor.count()).await;
            }
            tokio::task::yield_now().await;
            read.step(&self.shared.store).map_err(status::of)?;
        }
    }
}

/// Sorted keys handed on in one turn.
const SORTED_AT_ONCE: usize = 256;

fn check_streamable(op: &RangeOp) -> Result<(), Status> {
    let by_key = op.sort_target == SortTarget::Key && op.sort_order == SortOrder::Ascend;
    if op.sort_order != SortOrder::None && !by_key {
        return Err(status::stream_sort());
    }
    let bounds = [
        op.min_mod_revision,
        op.max_mod_revision,
        op.min_create_revision,
        op.max_create_revision,
    ];
    if bounds != [0; 4] {
        return Err(status::stream_filters());
    }
    Ok(())
}

/// The messages of a RangeStream, cut by size.
struct Pieces<'a> {
    outbound: &'a Outbound,
    keys_only: bool,
    held: Vec<KeyValue>,
    held_bytes: usize,
    transfer: Transfer,
}

impl<'a> Pieces<'a> {
    fn new(outbound: &'a Outbound, keys_only: bool) -> Self {
        Pieces {
            outbound,
            keys_only,
            held: Vec::new(),
            held_bytes: 0,
            transfer: Transfer::unbounded(),
        }
    }

    async fn push(&mut self, kvs: Vec<KeyValue>) -> Result<(), Status> {
        for kv in kvs {
            // A slice of large values is more than one piece.
            if self.held_bytes >= PIECE_BYTES {
                self.held_bytes = 0;
                let piece = RangeReply {
                    kvs: std::mem::take(&mut self.held),
                    ..Default::default()
                };
                self.send(None, piece).await?;
            }
            let kv = if self.keys_only {
                kv.without_value()
            } else {
                kv
            };
            self.held_bytes += kv.encoded_len();
            self.held.push(kv);
        }
        Ok(())
    }

    /// The last one, with what is said once.
    async fn end(mut self, header: (&Ids, i64), more: bool, count: i64) -> Result<(), Status> {
        let piece = RangeReply {
            kvs: std::mem::take(&mut self.held),
            more,
            count,
        };
        self.send(Some(header), piece).await
    }

    async fn send(&mut self, header: Option<(&Ids, i64)>, piece: RangeReply) -> Result<(), Status> {
        let frame = encode::stream_piece(header, &piece);
        let sent = self.transfer.send(self.outbound, frame).await;
        sent.map_err(status::of_slow)
    }
}
