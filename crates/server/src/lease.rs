//! The Lease service.

use crate::encode;
use crate::service::Service;
use crate::status;
use crate::store::SLICE_KEYS;
use bytes::Bytes;
use engine::Error;
use engine::op::Write;
use etcd_api::etcdserverpb as pb;
use prost::Message;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use wire::{Call, Frame, Inbound, LocalFuture, Outbound, Reply, Status};

/// Tries at a free random id before giving up; ids have 63 bits.
const ID_TRIES: u32 = 16;

impl Service {
    /// The header of an answer that shows the store as it is now.
    pub(crate) fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.header_at(self.shared.store.lock().revision()))
    }

    pub(crate) fn header_at(&self, revision: i64) -> pb::ResponseHeader {
        let ids = &self.shared.ids;
        pb::ResponseHeader {
            cluster_id: ids.cluster_id,
            member_id: ids.member_id,
            revision,
            raft_term: ids.raft_term,
        }
    }

    pub(crate) fn lease_grant(self: &Rc<Self>, message: Bytes) -> Reply {
        let request = match pb::LeaseGrantRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let mut tries = 0;
            loop {
                let id = if request.id == 0 {
                    random_id()
                } else {
                    request.id
                };
                let write = Write::LeaseGrant {
                    id,
                    ttl_s: request.ttl,
                };
                match this.shared.write(write, &this.slots).await {
                    Err(Error::LeaseExists) if request.id == 0 && tries < ID_TRIES => tries += 1,
                    Err(e) => return Err(status::of(e)),
                    Ok(o) => {
                        this.shared.metrics.lease_granted.inc();
                        this.shared
                            .metrics
                            .lease_ttl_s
                            .observe_value(request.ttl as f64);
                        return encode::reply(&this.shared.ids, &o);
                    }
                }
            }
        }))
    }

    pub(crate) fn lease_revoke(self: &Rc<Self>, message: Bytes) -> Reply {
        let request = match pb::LeaseRevokeRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let write = Write::LeaseRevoke { id: request.id };
            let o = this
                .shared
                .write(write, &this.slots)
                .await
                .map_err(status::of)?;
            this.shared.metrics.lease_revoked.inc();
            encode::reply(&this.shared.ids, &o)
        }))
    }

    pub(crate) fn lease_time_to_live(self: &Rc<Self>, message: Bytes) -> Reply {
        let request = match pb::LeaseTimeToLiveRequest::decode(message) {
            Ok(r) => r,
            Err(e) => return Reply::Now(Err(status::undecodable(&e))),
        };
        if !request.keys {
            return Reply::Now(Ok(self.time_to_live(request.id, Some(Vec::new()))));
        }
        let this = self.clone();
        Reply::Later(Box::pin(async move {
            let keys = this.lease_keys(request.id).await;
            Ok(this.time_to_live(request.id, keys))
        }))
    }

    /// What is said of a lease as it is now; without `keys` it was gone before.
    fn time_to_live(&self, id: i64, keys: Option<Vec<Bytes>>) -> Frame {
        let store = &self.shared.store;
        let view = store.lock().lease(id, store.now_ms(), false);
        // A lease that is overdue but not yet revoked counts as gone, as in etcd.
        let view = view.filter(|v| v.remaining_ttl_s >= 0);
        let answer = match view.zip(keys) {
            Some((v, keys)) => pb::LeaseTimeToLiveResponse {
                header: self.header(),
                id,
                ttl: v.remaining_ttl_s,
                granted_ttl: v.granted_ttl_s,
                keys,
            },
            None => pb::LeaseTimeToLiveResponse {
                header: self.header(),
                id,
                ttl: -1,
                ..Default::default()
            },
        };
        encode::message(&answer)
    }

    /// A lease's keys, copied in slices; `None` if it is gone.
    async fn lease_keys(&self, id: i64) -> Option<Vec<Bytes>> {
        let mut keys = Vec::new();
        let mut last = None;
        loop {
            let store = &self.shared.store;
            let slice = store.lock().lease_keys(id, last.as_ref(), SLICE_KEYS)?;
            keys.extend(slice.iter().map(|k| Bytes::copy_from_slice(k)));
            if slice.len() < SLICE_KEYS {
                return Some(keys);
            }
            last = slice.last().cloned();
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn lease_leases(&self) -> Result<Frame, Status> {
        let ids = self.shared.store.lock().lease_ids();
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(encode::message(&pb::LeaseLeasesResponse {
            header: self.header(),
            leases,
        }))
    }

    pub(crate) fn lease_keep_alive(
        self: &Rc<Self>,
        call: Call,
        mut inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let this = self.clone();
        Box::pin(async move {
            let closing = call.closing();
            loop {
                let message = tokio::select! {
                    m = inbound.next() => m?,
                    () = closing.wait() => return Err(status::stopped()),
                };
                let Some(message) = message else {
                    return Ok(());
                };
                let r = pb::LeaseKeepAliveRequest::decode(message)
                    .map_err(|e| status::undecodable(&e))?;
                let store = &this.shared.store;
                // The header is read before the renewal: it never shows more than the renewed
                // lease has seen.
                let (revision, ttl) = {
                    let mut engine = store.lock();
                    (engine.revision(), engine.keep_alive(r.id, store.now_ms()))
                };
                if ttl.is_ok() {
                    this.shared.metrics.lease_renewed.inc();
                }
                let answer = pb::LeaseKeepAliveResponse {
                    header: Some(this.header_at(revision)),
                    id: r.id,
                    // etcd: a lease that is gone is answered with 0.
                    ttl: ttl.unwrap_or(0),
                };
                if outbound.send(encode::message(&answer)).await.is_err() {
                    return Ok(());
                }
            }
        })
    }
}

/// A random positive id.
fn random_id() -> i64 {
    let seed = RandomState::new().hash_one(std::time::Instant::now());
    ((seed & (i64::MAX as u64)) as i64).max(1)
}
