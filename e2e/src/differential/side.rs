//! One of the two stores: does operations on it and collects the answers.

use std::future::Future;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::op::{Answer, Op, STREAMS, State};
use super::watch::{Sight, WatchStream};
use crate::kube::store::Kind;
use crate::kube::{Result, fail};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a lease of the shortest life may live.
const EXPIRY_TIMEOUT: Duration = Duration::from_secs(20);
/// Leases are listed in the order of their ends, which are moments of whatever
/// resolution; so no two leases get theirs at once.
const LEASE_PAUSE: Duration = Duration::from_millis(3);
/// Responses may be larger than requests: a watch that starts far back gets much
/// at once.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// A store under test, by its client API.
#[derive(Debug)]
pub struct Side {
    name: String,
    kind: Kind,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    watch: WatchClient<Channel>,
    streams: [Option<WatchStream>; STREAMS],
}

impl Side {
    /// Connects to the store at `url`. `name` is for messages.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn connect(name: &str, kind: Kind, url: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned());
        let connection = match endpoint {
            Ok(endpoint) => endpoint.connect_timeout(CALL_TIMEOUT).connect().await,
            Err(error) => Err(error),
        };
        let channel = match connection {
            Ok(channel) => channel,
            Err(error) => return fail(format!("no connection to {url}: {error:?}")),
        };
        let mut side = Self {
            name: name.to_owned(),
            kind,
            kv: KvClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES),
            streams: [const { None }; STREAMS],
        };
        for stream in 0..STREAMS {
            side.reopen(stream);
        }
        Ok(side)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `op` and collects what the store says.
    ///
    /// # Errors
    /// If the store does not answer at all. A refusal is an answer.
    pub async fn apply(&mut self, op: &Op, state: &State) -> Result<Vec<Answer>> {
        if matches!(op, Op::LeaseGrant(_) | Op::LeaseKeepAlive { .. }) {
            tokio::time::sleep(LEASE_PAUSE).await;
        }
        // A compaction leaves a hash behind only if the last one is done.
        if state.compacting && matches!(op, Op::Compact(_) | Op::HashKv(_)) {
            self.await_compaction(state.compact_revision).await?;
        }
        let answer = match op {
            Op::Range(request) => call(self.kv.range(request.clone()), Answer::Range).await?,
            Op::RangeStream(request) => self.range_stream(request).await?,
            Op::Put(request) => call(self.kv.put(request.clone()), Answer::Put).await?,
            Op::DeleteRange(request) => {
                call(self.kv.delete_range(request.clone()), Answer::DeleteRange).await?
            }
            Op::Txn(request) => call(self.kv.txn(request.clone()), Answer::Txn).await?,
            Op::Compact(request) => call(self.kv.compact(*request), Answer::Compact).await?,
            Op::HashKv(request) => call(self.maintenance.hash_kv(*request), Answer::HashKv).await?,
            Op::LeaseGrant(request) => {
                call(self.lease.lease_grant(*request), Answer::LeaseGrant).await?
            }
            Op::LeaseGrantAnyId { ttl_s } => return self.grant_any_id(*ttl_s).await,
            Op::LeaseRevoke(request) => {
                call(self.lease.lease_revoke(*request), Answer::LeaseRevoke).await?
            }
            Op::LeaseTimeToLive(request) => self.time_to_live(*request).await?,
            Op::LeaseLeases => {
                let request = pb::LeaseLeasesRequest {};
                call(self.lease.lease_leases(request), Answer::LeaseLeases).await?
            }
            Op::LeaseKeepAlive { id } => self.keep_alive(*id).await?,
            Op::LeaseExpire { id, ttl_s, keys } => {
                return self.expire(*id, *ttl_s, keys).await;
            }
            Op::WatchCreate { stream, request } => {
                Answer::Watch(self.stream(*stream)?.create(request.clone()).await?)
            }
            Op::WatchCancel {
                stream, watch_id, ..
            } => {
                self.stream(*stream)?.cancel(*watch_id).await?;
                if state.watches[*stream].contains_key(watch_id) {
                    Answer::Watch(self.stream(*stream)?.control().await?)
                } else {
                    Answer::Nothing
                }
            }
            Op::WatchProgress { stream } => {
                self.stream(*stream)?.ask_progress().await?;
                Answer::Nothing
            }
            Op::WatchCompacted(request) => return self.watch_compacted(request).await,
            Op::StreamReset { stream } => {
                self.reopen(*stream);
                Answer::Nothing
            }
            Op::Settle => {
                self.settle(state).await?;
                Answer::Nothing
            }
        };
        Ok(vec![answer])
    }

    /// What the watches of `stream` saw since the last call.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn look(&self, stream: usize) -> Result<Sight> {
        Ok(self.stream(stream)?.look())
    }

    fn reopen(&mut self, stream: usize) {
        self.streams[stream] = Some(WatchStream::open(self.watch.clone(), self.kind));
    }

    fn stream(&self, stream: usize) -> Result<&WatchStream> {
        match &self.streams[stream] {
            Some(stream) => Ok(stream),
            None => fail(format!("watch stream {stream} is not open")),
        }
    }

    /// Waits until all watches have seen everything.
    async fn settle(&self, state: &State) -> Result<()> {
        for (stream, watches) in state.watches.iter().enumerate() {
            if !watches.is_empty() {
                self.stream(stream)?.reach(state.revision).await?;
            }
        }
        Ok(())
    }

    async fn range_stream(&mut self, request: &pb::RangeRequest) -> Result<Answer> {
        let call = async {
            let mut chunks = self.kv.range_stream(request.clone()).await?.into_inner();
            let mut merged = pb::RangeResponse::default();
            while let Some(chunk) = chunks.message().await? {
                let chunk = chunk.range_response.unwrap_or_default();
                merged.header = chunk.header.or(merged.header);
                merged.kvs.extend(chunk.kvs);
                merged.more |= chunk.more;
                if chunk.count != 0 {
                    merged.count = chunk.count;
                }
            }
            Ok(Response::new(merged))
        };
        self::call(call, Answer::Range).await
    }

    /// A second compaction at the same revision is refused, but if it is physical
    /// only after the first one is done.
    async fn await_compaction(&mut self, revision: i64) -> Result<()> {
        let request = pb::CompactionRequest {
            revision,
            physical: true,
        };
        call(self.kv.compact(request), Answer::Compact).await?;
        Ok(())
    }

    async fn time_to_live(&mut self, request: pb::LeaseTimeToLiveRequest) -> Result<Answer> {
        let answer = self.lease.lease_time_to_live(request);
        call(answer, Answer::LeaseTimeToLive).await
    }

    async fn keep_alive(&mut self, id: i64) -> Result<Answer> {
        let call = async {
            let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
            let mut responses = self.lease.lease_keep_alive(requests).await?.into_inner();
            match responses.message().await? {
                Some(response) => Ok(Response::new(response)),
                None => Err(Status::unknown("the stream ended without an answer")),
            }
        };
        self::call(call, Answer::LeaseKeepAlive).await
    }

    async fn grant_any_id(&mut self, ttl_s: i64) -> Result<Vec<Answer>> {
        let request = pb::LeaseGrantRequest { ttl: ttl_s, id: 0 };
        let granted = call(self.lease.lease_grant(request), Answer::LeaseGrant).await?;
        let Answer::LeaseGrant(response) = &granted else {
            return Ok(vec![granted]);
        };
        let id = response.id;
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let lives = self.time_to_live(request).await?;
        let request = pb::LeaseRevokeRequest { id };
        let revoked = call(self.lease.lease_revoke(request), Answer::LeaseRevoke).await?;
        Ok(vec![granted, lives, revoked])
    }

    async fn expire(&mut self, id: i64, ttl_s: i64, keys: &[bytes::Bytes]) -> Result<Vec<Answer>> {
        let request = pb::LeaseGrantRequest { ttl: ttl_s, id };
        let mut answers = vec![call(self.lease.lease_grant(request), Answer::LeaseGrant).await?];
        if let Some(Answer::Failed { .. }) = answers.last() {
            return Ok(answers);
        }
        for key in keys {
            let request = pb::PutRequest {
                key: key.clone(),
                lease: id,
                ..pb::PutRequest::default()
            };
            answers.push(call(self.kv.put(request), Answer::Put).await?);
        }
        // A lease may count as gone before its keys are, so the keys are awaited.
        let began = Instant::now();
        loop {
            let request = pb::RangeRequest {
                key: keys.first().cloned().unwrap_or_default(),
                ..pb::RangeRequest::default()
            };
            match call(self.kv.range(request), Answer::Range).await? {
                Answer::Range(response) if response.count > 0 => {
                    if began.elapsed() > EXPIRY_TIMEOUT {
                        return fail(format!("{}: lease {id} does not expire", self.name));
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => {
                    answers.push(answer);
                    break;
                }
            }
        }
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        answers.push(self.time_to_live(request).await?);
        Ok(answers)
    }

    async fn watch_compacted(&mut self, request: &pb::WatchCreateRequest) -> Result<Vec<Answer>> {
        let stream = WatchStream::open(self.watch.clone(), self.kind);
        let created = stream.create(request.clone()).await?;
        let refused = created.canceled;
        let mut answers = vec![Answer::Watch(created)];
        if !refused {
            answers.push(Answer::Watch(stream.control().await?));
        }
        Ok(answers)
    }
}

/// Makes an answer of a call's result.
async fn call<T>(
    call: impl Future<Output = std::result::Result<Response<T>, Status>>,
    answer: impl FnOnce(T) -> Answer,
) -> Result<Answer> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(answer(response.into_inner())),
        Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
            fail(format!("the call failed on its way: {status:?}"))
        }
        Ok(Err(status)) => Ok(Answer::Failed {
            code: status.code(),
            message: status.message().to_owned(),
        }),
        Err(_) => fail(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}
