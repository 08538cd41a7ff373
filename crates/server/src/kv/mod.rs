//! The KV service: requests checked and converted, sent to the store, answers encoded.

mod check;
mod convert;
mod long;
mod slow;

use crate::encode::{self, Ids};
use crate::service::Service;
use crate::status;
use crate::store::Read;
use bytes::Bytes;
use engine::op::{RangeOp, RangeReply, SortTarget, Write};
use engine::tail::KeyValue;
use etcd_api::etcdserverpb as pb;
use long::LARGE_ANSWER_BYTES;
use metrics::{ApplyOp, RequestType};
use prost::Message;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wire::{Call, Frame, LocalFuture, Outbound, Reply, Status};

/// A piece of a RangeStream is sent when it holds about so many bytes.
const STREAM_PIECE_BYTES: usize = 512 << 10;

/// Longest that a RangeStream waits for its client to read.
const STREAM_STALL: Duration = Duration::from_secs(60);

/// What etcd's raft envelope adds to a request, which its size limit includes.
const ENVELOPE_BYTES: usize = 24;

impl Service {
    pub(crate) fn range(self: &Rc<Self>, call: &Call, message: Bytes) -> Reply {
        let request = match pb::RangeRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        if let Err(s) = check::range(&request) {
            return Reply::Now(Err(s));
        }
        self.shared.metrics.range.inc();
        // Not since the call came: it may have waited for its client to read other answers.
        let started = Instant::now();
        let read = match self.shared.store.read(convert::range(request)) {
            Ok(r) => r,
            Err(e) => {
                self.range_done(started.elapsed(), false);
                return Reply::Now(Err(status::of(e)));
            }
        };
        if read.cursor.is_done() && read.cursor.bytes() < LARGE_ANSWER_BYTES {
            return Reply::Now(self.answer_read(started, read));
        }
        let (this, unread) = (self.clone(), call.unread());
        Reply::Later(Box::pin(async move {
            let mut read = read;
            if long::short(&mut read).await {
                return this.answer_read(started, read);
            }
            // Read again: what is kept while others are served would have no limit.
            let op = read.cursor.op().clone();
            drop(read);
            let (store, ids) = (&this.shared.store, this.shared.ids);
            let answer = long::answer(&this.beside, store, ids, op.clone(), &unread).await;
            // As in etcd, without what it takes to hand the answer over.
            let took = answer
                .as_ref()
                .map_or_else(|_| started.elapsed(), |a| a.took);
            this.range_done(took, answer.is_ok());
            let answer = answer?;
            if this.is_slow(took) {
                let bytes = answer.frame.message().len();
                this.warn_slow_range(took, &slow::range(&op), answer.keys, bytes);
            }
            Ok(answer.frame)
        }))
    }

    /// The answer of a short range.
    fn answer_read(&self, started: Instant, read: Read) -> Result<Frame, Status> {
        let took = started.elapsed();
        self.range_done(took, true);
        let request = self.is_slow(took).then(|| slow::range(read.cursor.op()));
        let outcome = read.finish();
        if let Some(request) = request {
            let bytes = encode::reply_bytes(&self.shared.ids, &outcome);
            self.warn_slow_range(took, &request, outcome.reply.kvs(), bytes);
        }
        encode::reply(&self.shared.ids, &outcome)
    }

    /// Counts a range that has been read, or refused.
    fn range_done(&self, took: Duration, success: bool) {
        let m = &self.shared.metrics;
        let h = match success {
            true => &m.range_duration.success,
            false => &m.range_duration.failure,
        };
        h.observe(took);
        m.request_duration
            .get(RequestType::Range, success)
            .observe(took);
    }

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
            this.send_pieces(op, &outbound).await
        })
    }

    async fn send_pieces(&self, op: RangeOp, outbound: &Outbound) -> Result<(), Status> {
        let mut pieces = Pieces {
            outbound,
            keys_only: op.keys_only,
            held: Vec::new(),
            held_bytes: 0,
        };
        let sorted = op.sort_target != SortTarget::Key;
        let mut left = if op.limit > 0 {
            op.limit as usize
        } else {
            usize::MAX
        };
        if sorted {
            // As in a Range, where no order means ascending; it is known when all is read.
            let outcome = long::read(&self.beside, &self.shared.store, op).await?;
            let header = (&self.shared.ids, outcome.revision);
            let engine::op::Reply::Range(reply) = outcome.reply else {
                return Err(status::stopped());
            };
            pieces.push(reply.kvs).await?;
            return pieces.end(header, reply.more, reply.count).await;
        }
        let mut read = self.shared.store.read(op).map_err(status::of)?;
        let mut more = false;
        loop {
            let mut kvs = read.cursor.take_collected();
            if kvs.len() > left {
                kvs.truncate(left);
                more = true;
            }
            left -= kvs.len();
            pieces.push(kvs).await?;
            if read.cursor.is_done() {
                let header = (&self.shared.ids, read.cursor.header_revision);
                return pieces.end(header, more, read.cursor.count()).await;
            }
            read.step();
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn put(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        self.write(
            call,
            message,
            RequestType::Put,
            ApplyOp::Put,
            |r: pb::PutRequest, this| {
                check::put(&r)?;
                this.shared.metrics.put.inc();
                this.shared
                    .metrics
                    .put_bytes
                    .add((r.key.len() + r.value.len()) as i64);
                Ok(Write::Put(convert::put(r)))
            },
        )
    }

    pub(crate) fn delete_range(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        let build = |r: pb::DeleteRangeRequest, this: &Service| {
            check::delete(&r)?;
            this.shared.metrics.delete.inc();
            Ok(Write::Delete(convert::delete(r)))
        };
        self.write(
            call,
            message,
            RequestType::DeleteRange,
            ApplyOp::DeleteRange,
            build,
        )
    }

    pub(crate) fn txn(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        self.write(
            call,
            message,
            RequestType::Txn,
            ApplyOp::Txn,
            |r: pb::TxnRequest, this| {
                check::txn(&r, this.shared.max_txn_ops)?;
                this.shared.metrics.txn.inc();
                Ok(Write::Txn(convert::txn(r)))
            },
        )
    }

    pub(crate) fn compact(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        let request = match pb::CompactionRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        let started = call.started.into_std();
        Reply::Later(Box::pin(async move {
            let write = Write::Compact {
                revision: request.revision,
            };
            let answer = this.shared.write(write, &this.slots).await;
            // Physical: answer when what compactions free has been freed, also if this one
            // comes too late to free anything.
            while request.physical && this.shared.store.compacting() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            let m = &this.shared.metrics;
            m.request_duration
                .get(RequestType::Compaction, true)
                .observe(started.elapsed());
            encode::reply(&this.shared.ids, &answer.map_err(status::of)?)
        }))
    }

    /// A write: decode, check, submit, and answer when it is durable and visible.
    fn write<R: Message + Default>(
        self: &Rc<Self>,
        call: Call,
        message: Bytes,
        request_type: RequestType,
        apply_op: ApplyOp,
        build: impl FnOnce(R, &Service) -> Result<Write, Status>,
    ) -> Reply {
        let too_large = message.len() + ENVELOPE_BYTES > self.shared.max_request_bytes;
        let write = R::decode(message).map_err(|e| status::undecodable(&e));
        let write = match write.and_then(|r| build(r, self)) {
            Ok(w) => w,
            Err(s) => return Reply::Now(Err(s)),
        };
        if too_large {
            return Reply::Now(Err(status::request_too_large()));
        }
        let reads = match &write {
            Write::Txn(op) if op.only_reads() => Some((op.clone(), Instant::now())),
            _ => None,
        };
        let request_type = match reads {
            Some(_) => RequestType::ReadonlyTxn,
            None => request_type,
        };
        let this = self.clone();
        let started = call.started.into_std();
        // Others have no large answers.
        let unread = matches!(write, Write::Txn(_) | Write::Delete(_)).then(|| call.unread());
        Reply::Later(Box::pin(async move {
            let (answer, volatile) = this.shared.write_classed(write, &this.slots).await;
            let (m, took) = (&this.shared.metrics, started.elapsed());
            m.write_duration.get(volatile).observe(took);
            m.request_duration
                .get(request_type, answer.is_ok())
                .observe(took);
            m.apply_duration.get(apply_op, answer.is_ok()).observe(took);
            let outcome = answer.map_err(status::of)?;
            if let Some((request, began)) = reads
                && this.is_slow(began.elapsed())
            {
                this.warn_slow_txn(began.elapsed(), &request, &outcome);
            }
            long::encode(&this.beside, &this.shared.ids, outcome, unread.as_ref()).await
        }))
    }
}

/// Sends a piece of a RangeStream. A client that stops reading would keep history from
/// being freed: it is waited for only so long.
async fn send_piece(outbound: &Outbound, frame: Frame) -> Result<(), Status> {
    tokio::time::timeout(STREAM_STALL, outbound.send(frame))
        .await
        .map_err(|_| status::timed_out())?
        .map_err(|_| status::stopped())
}

fn check_streamable(op: &RangeOp) -> Result<(), Status> {
    use engine::op::{SortOrder, SortTarget};
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
}

impl Pieces<'_> {
    async fn push(&mut self, kvs: Vec<KeyValue>) -> Result<(), Status> {
        for kv in kvs {
            // A slice of large values is more than one piece.
            if self.held_bytes >= STREAM_PIECE_BYTES {
                self.held_bytes = 0;
                let piece = RangeReply {
                    kvs: std::mem::take(&mut self.held),
                    ..Default::default()
                };
                send_piece(self.outbound, encode::stream_piece(None, &piece)).await?;
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
    async fn end(self, header: (&Ids, i64), more: bool, count: i64) -> Result<(), Status> {
        let piece = RangeReply {
            kvs: self.held,
            more,
            count,
        };
        send_piece(self.outbound, encode::stream_piece(Some(header), &piece)).await
    }
}
