//! The KV service: requests checked and converted, sent to the store, answers encoded.

mod check;
mod convert;
mod long;
mod size;
mod slow;
mod stream;

use crate::encode;
use crate::read::{Read, ReadTxn, Sliced};
use crate::service::Service;
use crate::status;
use crate::store::Store;
use bytes::Bytes;
use engine::op::{TxnOp, Write};
use engine::pin::Strength;
use etcd_api::etcdserverpb as pb;
use metrics::{ApplyOp, GrpcMethod, RequestType};
use prost::Message;
pub(crate) use slow::SlowCall;
use slow::SlowRead;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wire::{Call, Frame, Reply, Status};

impl Service {
    pub(crate) fn range(self: &Rc<Self>, call: &Call, message: Bytes) -> Reply {
        let request = match pb::RangeRequest::decode(message.clone()) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        if let Err(s) = check::range(&request) {
            return Reply::Now(Err(s));
        }
        self.shared.metrics.range.inc();
        // Not since the call came: it may have waited for its client to read other answers.
        let started = Instant::now();
        let op = convert::range(request);
        let read = match Read::open(&self.shared.store, op, Strength::Firm) {
            Ok(r) => r,
            Err(e) => {
                self.range_done(started.elapsed(), false);
                return Reply::Now(Err(status::of(e)));
            }
        };
        let slow = |call: &Call| SlowCall::new(self, call, GrpcMethod::KvRange, message.clone());
        if read.is_done() && !long::is_large(&read) {
            let took = started.elapsed();
            let answer = self.answer_range(took, &message, read);
            if self.is_slow_call((started + took).duration_since(call.started.into_std())) {
                slow(call).answered(&answer);
            }
            return Reply::Now(answer);
        }
        let (this, unread, slow) = (self.clone(), call.unread(), slow(call));
        Reply::Later(Box::pin(async move {
            let answer = this.long_range(started, read, &message, &unread).await;
            slow.answered(&answer);
            answer
        }))
    }

    /// A range that is not done with its first slice.
    async fn long_range(
        &self,
        started: Instant,
        mut read: Read,
        message: &Bytes,
        unread: &wire::Unread,
    ) -> Result<Frame, Status> {
        let store = &self.shared.store;
        if long::short(store, &mut read).await? {
            return self.answer_range(started.elapsed(), message, read);
        }
        // Read again: what is kept while others are served would have no limit.
        let op = read.cursor.op().clone();
        drop(read);
        let open = move |store: &Store| Read::open(store, op, Strength::Firm);
        let answer = long::answer(&self.offload, store, open, self.shared.ids, unread).await;
        // As in etcd, without what it takes to hand the answer over.
        let took = answer
            .as_ref()
            .map_or_else(|_| started.elapsed(), |a| a.took);
        self.range_done(took, answer.is_ok());
        let answer = answer?;
        self.warn_if_slow(SlowRead::Range, took, message, &answer);
        Ok(answer.frame)
    }

    /// The answer of a short range.
    fn answer_range(&self, took: Duration, message: &Bytes, read: Read) -> Result<Frame, Status> {
        self.range_done(took, true);
        self.answer_short(SlowRead::Range, took, message, read)
    }

    /// The answer of what has been read on the worker.
    fn answer_short(
        &self,
        kind: SlowRead,
        took: Duration,
        message: &Bytes,
        read: impl Sliced,
    ) -> Result<Frame, Status> {
        let outcome = read.finish();
        let frame = encode::reply(&self.shared.ids, &outcome)?;
        if !self.is_slow_read(took) {
            return Ok(frame);
        }
        let keys = long::keys_of(&outcome);
        let answer = long::Answer { frame, keys, took };
        self.warn_if_slow(kind, took, message, &answer);
        Ok(answer.frame)
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

    pub(crate) fn put(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        self.write(
            call,
            message,
            GrpcMethod::KvPut,
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
            GrpcMethod::KvDeleteRange,
            ApplyOp::DeleteRange,
            build,
        )
    }

    pub(crate) fn txn(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        let request = match pb::TxnRequest::decode(message.clone()) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        if let Err(s) = check::txn(&request, self.shared.settings.max_txn_ops) {
            return Reply::Now(Err(s));
        }
        self.shared.metrics.txn.inc();
        // As in etcd, one with a transaction inside goes the way of the writes, and is limited
        // as they are.
        let limited = !size::is_flat_read(&request);
        if limited && self.is_too_large(&message) {
            return Reply::Now(Err(status::request_too_large()));
        }
        let op = convert::txn(request);
        if op.only_reads() {
            return self.read_txn(&call, message, op);
        }
        let slow = SlowCall::new(self, &call, GrpcMethod::KvTxn, message);
        self.submit(call, slow, ApplyOp::Txn, Write::Txn(op))
    }

    /// A transaction that only reads: it needs no place among the writes.
    fn read_txn(self: &Rc<Self>, call: &Call, message: Bytes, op: TxnOp) -> Reply {
        let started = Instant::now();
        let slow = SlowCall::new(self, call, GrpcMethod::KvTxn, message.clone());
        let read = match ReadTxn::open(&self.shared.store, op) {
            Ok(r) => r,
            Err(e) => {
                self.read_txn_done(started.elapsed(), false);
                return Reply::Now(Err(status::of(e)));
            }
        };
        if read.is_done() && !long::is_large(&read) {
            let took = started.elapsed();
            self.read_txn_done(took, true);
            let answer = self.answer_short(SlowRead::Txn, took, &message, read);
            slow.answered(&answer);
            return Reply::Now(answer);
        }
        let (this, unread) = (self.clone(), call.unread());
        Reply::Later(Box::pin(async move {
            let answer = this.long_read_txn(started, read, &message, &unread).await;
            slow.answered(&answer);
            answer
        }))
    }

    async fn long_read_txn(
        &self,
        started: Instant,
        mut read: ReadTxn,
        message: &Bytes,
        unread: &wire::Unread,
    ) -> Result<Frame, Status> {
        let store = &self.shared.store;
        let short = long::short(store, &mut read).await;
        if !matches!(short, Ok(false)) {
            let took = started.elapsed();
            self.read_txn_done(took, short.is_ok());
            short?;
            return self.answer_short(SlowRead::Txn, took, message, read);
        }
        // As a long range.
        drop(read);
        let again = message.clone();
        let open = move |store: &Store| {
            // It has been decoded once.
            let request = pb::TxnRequest::decode(again).unwrap_or_default();
            ReadTxn::open(store, convert::txn(request))
        };
        let answer = long::answer(&self.offload, store, open, self.shared.ids, unread).await;
        let took = answer
            .as_ref()
            .map_or_else(|_| started.elapsed(), |a| a.took);
        self.read_txn_done(took, answer.is_ok());
        let answer = answer?;
        self.warn_if_slow(SlowRead::Txn, took, message, &answer);
        Ok(answer.frame)
    }

    /// Counts a transaction that only reads.
    fn read_txn_done(&self, took: Duration, success: bool) {
        let m = &self.shared.metrics;
        m.request_duration
            .get(RequestType::ReadonlyTxn, success)
            .observe(took);
        m.apply_duration.get(ApplyOp::Txn, success).observe(took);
    }

    pub(crate) fn compact(self: &Rc<Self>, call: Call, message: Bytes) -> Reply {
        let request = match pb::CompactionRequest::decode(message.clone()) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        let started = call.started.into_std();
        let slow = SlowCall::new(self, &call, GrpcMethod::KvCompact, message);
        Reply::Later(Box::pin(async move {
            let write = Write::Compact {
                revision: request.revision,
            };
            let answer = this.shared.write(write, &this.slots).await;
            // Physical: answer when what compactions free has been freed, also if this one
            // comes too late to free anything.
            if request.physical {
                this.shared.store.compacted().await;
            }
            let m = &this.shared.metrics;
            m.request_duration
                .get(RequestType::Compaction, true)
                .observe(started.elapsed());
            let answer = answer.map_err(status::of);
            let answer = answer.and_then(|outcome| encode::reply(&this.shared.ids, &outcome));
            slow.answered(&answer);
            answer
        }))
    }

    /// A write: decode, check, submit, and answer when it is durable and visible.
    fn write<R: Message + Default>(
        self: &Rc<Self>,
        call: Call,
        message: Bytes,
        method: GrpcMethod,
        apply_op: ApplyOp,
        build: impl FnOnce(R, &Service) -> Result<Write, Status>,
    ) -> Reply {
        let write = R::decode(message.clone()).map_err(|e| status::undecodable(&e));
        let write = match write.and_then(|r| build(r, self)) {
            Ok(w) => w,
            Err(s) => return Reply::Now(Err(s)),
        };
        if self.is_too_large(&message) {
            return Reply::Now(Err(status::request_too_large()));
        }
        let slow = SlowCall::new(self, &call, method, message);
        self.submit(call, slow, apply_op, write)
    }

    /// etcd's limit on writes is on what it gives to raft: the request in its envelope.
    fn is_too_large(&self, message: &[u8]) -> bool {
        let shared = &self.shared;
        message.len() + size::envelope_bytes(message.len(), shared.ids.member_id)
            > shared.settings.max_request_bytes
    }

    fn submit(
        self: &Rc<Self>,
        call: Call,
        slow: SlowCall,
        apply_op: ApplyOp,
        write: Write,
    ) -> Reply {
        let this = self.clone();
        let started = call.started.into_std();
        // Others have no large answers.
        let unread = matches!(write, Write::Txn(_) | Write::Delete(_)).then(|| call.unread());
        Reply::Later(Box::pin(async move {
            let (answer, volatile) = this.shared.write_classed(write, &this.slots).await;
            let (m, took) = (&this.shared.metrics, started.elapsed());
            m.write_duration.get(volatile).observe(took);
            m.request_duration
                .get(request_type(slow.method()), answer.is_ok())
                .observe(took);
            m.apply_duration.get(apply_op, answer.is_ok()).observe(took);
            let (store, ids) = (&this.shared.store, &this.shared.ids);
            let answer = match answer {
                Ok(o) => long::encode(&this.offload, store, ids, o, unread.as_ref()).await,
                Err(e) => Err(status::of(e)),
            };
            // What may take long is the write.
            slow.answered_after(took, &answer);
            answer
        }))
    }
}

fn request_type(method: GrpcMethod) -> RequestType {
    match method {
        GrpcMethod::KvPut => RequestType::Put,
        GrpcMethod::KvDeleteRange => RequestType::DeleteRange,
        _ => RequestType::Txn,
    }
}
