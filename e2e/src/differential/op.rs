//! What can be done to a store, what it answers, and what is known about it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;

/// Watch streams that are open at a time.
pub const STREAMS: usize = 3;

/// One step of a sequence. Steps are done one after the other, by both stores at once.
#[derive(Debug, Clone)]
pub enum Op {
    /// KV.Range.
    Range(pb::RangeRequest),
    /// KV.RangeStream; its chunks are merged before they are compared.
    RangeStream(pb::RangeRequest),
    /// KV.Put.
    Put(pb::PutRequest),
    /// KV.DeleteRange.
    DeleteRange(pb::DeleteRangeRequest),
    /// KV.Txn.
    Txn(pb::TxnRequest),
    /// KV.Compact, after [`Op::Settle`], because whether a watch that is behind sees
    /// an event or the compaction is a race in any store, and once earlier
    /// compactions are physically done.
    Compact(pb::CompactionRequest),
    /// Maintenance.HashKV, once earlier compactions are physically done.
    HashKv(pb::HashKvRequest),
    /// Lease.LeaseGrant with a chosen id.
    LeaseGrant(pb::LeaseGrantRequest),
    /// Lease.LeaseGrant without an id; the lease is revoked again, because the
    /// ids that the stores choose differ.
    LeaseGrantAnyId {
        /// Time to live, in seconds.
        ttl_s: i64,
    },
    /// Lease.LeaseRevoke.
    LeaseRevoke(pb::LeaseRevokeRequest),
    /// Lease.LeaseTimeToLive.
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    /// Lease.LeaseLeases.
    LeaseLeases,
    /// One request on a stream of Lease.LeaseKeepAlive.
    LeaseKeepAlive {
        /// The lease's id.
        id: i64,
    },
    /// Grants a lease of the shortest life, attaches keys and waits for its end.
    LeaseExpire {
        /// The lease's id.
        id: i64,
        /// Time to live asked for, in seconds.
        ttl_s: i64,
        /// The keys to attach.
        keys: Vec<Bytes>,
    },
    /// Opens a watch on a stream.
    WatchCreate {
        /// Which stream.
        stream: usize,
        /// What to watch.
        request: pb::WatchCreateRequest,
    },
    /// Cancels a watch, existing or not.
    WatchCancel {
        /// Which stream.
        stream: usize,
        /// Which watch.
        watch_id: i64,
        /// Whether all its events must have arrived before.
        settle: bool,
    },
    /// Asks for progress on a stream.
    WatchProgress {
        /// Which stream.
        stream: usize,
    },
    /// Opens a watch below the compaction on a stream of its own.
    WatchCompacted(pb::WatchCreateRequest),
    /// Ends a stream with its watches, after [`Op::Settle`].
    StreamReset {
        /// Which stream.
        stream: usize,
    },
    /// Waits until the watches of both stores have seen everything and compares
    /// what they saw.
    Settle,
}

/// What a store answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Of Range, and of RangeStream merged.
    Range(pb::RangeResponse),
    /// Of Put.
    Put(pb::PutResponse),
    /// Of DeleteRange.
    DeleteRange(pb::DeleteRangeResponse),
    /// Of Txn.
    Txn(pb::TxnResponse),
    /// Of Compact.
    Compact(pb::CompactionResponse),
    /// Of HashKV.
    HashKv(pb::HashKvResponse),
    /// Of LeaseGrant.
    LeaseGrant(pb::LeaseGrantResponse),
    /// Of LeaseRevoke.
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// Of LeaseTimeToLive.
    LeaseTimeToLive(pb::LeaseTimeToLiveResponse),
    /// Of LeaseLeases.
    LeaseLeases(pb::LeaseLeasesResponse),
    /// Of LeaseKeepAlive.
    LeaseKeepAlive(pb::LeaseKeepAliveResponse),
    /// On a watch stream, when a watch begins or ends.
    Watch(pb::WatchResponse),
    /// An error.
    Failed {
        /// Its gRPC code.
        code: tonic::Code,
        /// Its text.
        message: String,
    },
    /// Nothing came, though it might have.
    Nothing,
}

/// A watch that is open.
#[derive(Debug, Clone)]
pub struct OpenWatch {
    /// Its start revision.
    pub start_revision: i64,
}

/// What is known of the stores from their answers, which agree.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Current revision.
    pub revision: i64,
    /// Revision of the last compaction, 0 before the first.
    pub compact_revision: i64,
    /// Whether the last compaction may still be under way.
    pub compacting: bool,
    /// Leases that exist.
    pub leases: BTreeSet<i64>,
    /// At which revision keys were seen last, as far as that is cheap to know: it may have
    /// changed since.
    pub read_at: BTreeMap<Bytes, i64>,
    /// Open watches of each stream, by id.
    pub watches: [BTreeMap<i64, OpenWatch>; STREAMS],
}

impl State {
    /// Learns from the answers to an operation.
    pub fn learn(&mut self, op: &Op, answers: &[Answer]) {
        for answer in answers {
            if let Some(header) = answer.header() {
                self.revision = self.revision.max(header.revision);
            }
        }
        match (op, answers) {
            (Op::Compact(request), [Answer::Compact(_)]) => {
                self.compact_revision = request.revision;
                self.compacting = !request.physical;
            }
            (Op::HashKv(_), [Answer::HashKv(response)]) => {
                self.compacting = false;
                // Stores that are not new may have been compacted before.
                self.compact_revision = self.compact_revision.max(response.compact_revision);
            }
            (Op::Compact(_) | Op::HashKv(_), _) => self.compacting = false,
            (Op::LeaseGrant(_), [Answer::LeaseGrant(response)]) => {
                self.leases.insert(response.id);
            }
            (Op::LeaseRevoke(request), [Answer::LeaseRevoke(_)]) => {
                self.leases.remove(&request.id);
            }
            (Op::WatchCreate { stream, request }, [Answer::Watch(response)])
                if !response.canceled =>
            {
                let start_revision = request.start_revision;
                self.watches[*stream].insert(response.watch_id, OpenWatch { start_revision });
            }
            (
                Op::WatchCancel {
                    stream, watch_id, ..
                },
                _,
            ) => {
                self.watches[*stream].remove(watch_id);
            }
            (Op::StreamReset { stream }, _) => self.watches[*stream].clear(),
            (Op::Put(request), [Answer::Put(response)]) => {
                let at = response.header.as_ref().map_or(0, |h| h.revision);
                self.read_at.insert(request.key.clone(), at);
            }
            (Op::Txn(request), [Answer::Txn(response)]) => self.learn_txn(request, response),
            _ => {}
        }
    }

    /// Learns from a guarded write (see the generator) where its key is now.
    fn learn_txn(&mut self, request: &pb::TxnRequest, response: &pb::TxnResponse) {
        use pb::request_op::Request;
        use pb::response_op::Response;

        let ([compare], [write]) = (&request.compare[..], &request.success[..]) else {
            return;
        };
        let at = response.header.as_ref().map_or(0, |h| h.revision);
        let answer = response.responses.first().and_then(|r| r.response.as_ref());
        let at = match (&write.request, answer) {
            (Some(Request::RequestPut(_)), _) if response.succeeded => at,
            (Some(Request::RequestDeleteRange(_)), _) if response.succeeded => 0,
            (_, Some(Response::ResponseRange(found))) => {
                found.kvs.first().map_or(0, |kv| kv.mod_revision)
            }
            _ => return,
        };
        self.read_at.insert(compare.key.clone(), at);
    }
}

impl Answer {
    /// The header, of a success.
    #[must_use]
    pub fn header(&self) -> Option<&pb::ResponseHeader> {
        match self {
            Self::Range(response) => response.header.as_ref(),
            Self::Put(response) => response.header.as_ref(),
            Self::DeleteRange(response) => response.header.as_ref(),
            Self::Txn(response) => response.header.as_ref(),
            Self::Compact(response) => response.header.as_ref(),
            Self::HashKv(response) => response.header.as_ref(),
            Self::LeaseGrant(response) => response.header.as_ref(),
            Self::LeaseRevoke(response) => response.header.as_ref(),
            Self::LeaseTimeToLive(response) => response.header.as_ref(),
            Self::LeaseLeases(response) => response.header.as_ref(),
            Self::LeaseKeepAlive(response) => response.header.as_ref(),
            Self::Watch(response) => response.header.as_ref(),
            Self::Failed { .. } | Self::Nothing => None,
        }
    }
}
