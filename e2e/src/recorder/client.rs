//! A client that writes and reads a few keys and notes what it is told.

use std::time::Duration;

use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::request_op::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::world::World;
use super::{Answer, Asked, Entry, Recorder};
use crate::differential::rng::Rng;

/// How long an answer may take; a server that was killed gives none.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A client.
#[derive(Debug)]
pub struct Client {
    kv: KvClient<Channel>,
    recorder: Recorder,
    random: Rng,
    name: String,
    count: u64,
    keys: usize,
    /// What its keys and values look like.
    pub world: World,
    /// Leases to attach.
    pub leases: Vec<i64>,
}

impl Client {
    /// A client called `name`, of whom there is one, that works on `keys` keys, which it
    /// may share with others.
    #[must_use]
    pub fn new(channel: Channel, recorder: Recorder, seed: u64, name: String, keys: usize) -> Self {
        Self {
            kv: KvClient::new(channel),
            recorder,
            random: Rng::new(seed),
            name,
            count: 0,
            keys,
            world: World::default(),
            leases: Vec::new(),
        }
    }

    fn value(&mut self, key: &str) -> String {
        self.count += 1;
        let pad = match self.random.below(20) {
            0 => 20_000,
            1..4 => 3_000,
            _ => 40,
        };
        let text = format!("{}/{}/{:pad$}", self.name, self.count, "", pad = pad);
        self.world.value(key, text)
    }

    /// Does one operation.
    pub async fn step(&mut self) {
        let key = self.world.key(self.random.below(self.keys));
        let asked = match self.random.below(10) {
            0..4 => Asked::Put {
                value: self.value(&key),
                lease: match self.random.below(4) {
                    0 if !self.leases.is_empty() => self.random.pick(&self.leases),
                    _ => 0,
                },
            },
            4..7 => {
                // Read, then write if nobody did in between; that is how Kubernetes writes.
                let expected = match self.note(&key, Asked::Read).await {
                    Answer::Done { found, .. } => found.map_or(0, |(_, revision)| revision),
                    _ => return,
                };
                Asked::Cas {
                    expected,
                    value: self.value(&key),
                }
            }
            7 => Asked::Delete,
            _ => Asked::Read,
        };
        self.note(&key, asked).await;
    }

    async fn note(&mut self, key: &str, asked: Asked) -> Answer {
        let from_us = self.recorder.now_us();
        let call = ask(&mut self.kv, key, &asked);
        let answer = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => refused(&status),
            Err(_) => Answer::Unknown,
        };
        self.recorder.note(Entry {
            key: key.to_owned(),
            asked,
            answer: answer.clone(),
            from_us,
            to_us: self.recorder.now_us(),
        });
        if answer == Answer::Unknown {
            // The server is down; there is no use in asking without pause.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        answer
    }
}

/// Only these say that nothing happened.
fn refused(status: &Status) -> Answer {
    match status.code() {
        Code::NotFound | Code::ResourceExhausted | Code::InvalidArgument | Code::OutOfRange => {
            Answer::Refused
        }
        _ => Answer::Unknown,
    }
}

/// A value and its mod revision, as read.
fn found(kvs: &[etcd_api::mvccpb::KeyValue]) -> Option<(String, i64)> {
    let kv = kvs.first()?;
    Some((
        String::from_utf8_lossy(&kv.value).into_owned(),
        kv.mod_revision,
    ))
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

async fn ask(kv: &mut KvClient<Channel>, key: &str, asked: &Asked) -> Result<Answer, Status> {
    let bytes = bytes::Bytes::copy_from_slice(key.as_bytes());
    let range = pb::RangeRequest {
        key: bytes.clone(),
        ..Default::default()
    };
    Ok(match asked {
        Asked::Put { value, lease } => {
            let put = pb::PutRequest {
                key: bytes,
                value: value.clone().into(),
                lease: *lease,
                ..Default::default()
            };
            let reply = kv.put(put).await?.into_inner();
            Answer::Done {
                revision: revision(reply.header.as_ref()),
                changed: true,
                found: None,
            }
        }
        Asked::Cas { expected, value } => {
            let compare = pb::Compare {
                result: pb::compare::CompareResult::Equal.into(),
                target: pb::compare::CompareTarget::Mod.into(),
                key: bytes.clone(),
                target_union: Some(pb::compare::TargetUnion::ModRevision(*expected)),
                ..Default::default()
            };
            let put = Request::RequestPut(pb::PutRequest {
                key: bytes,
                value: value.clone().into(),
                ..Default::default()
            });
            let op = |request| pb::RequestOp {
                request: Some(request),
            };
            let txn = pb::TxnRequest {
                compare: vec![compare],
                success: vec![op(put)],
                failure: vec![op(Request::RequestRange(range))],
            };
            let reply = kv.txn(txn).await?.into_inner();
            let read = reply.responses.iter().find_map(|r| match &r.response {
                Some(pb::response_op::Response::ResponseRange(r)) => found(&r.kvs),
                _ => None,
            });
            Answer::Done {
                revision: revision(reply.header.as_ref()),
                changed: reply.succeeded,
                found: read,
            }
        }
        Asked::Delete => {
            let delete = pb::DeleteRangeRequest {
                key: bytes,
                ..Default::default()
            };
            let reply = kv.delete_range(delete).await?.into_inner();
            Answer::Done {
                revision: revision(reply.header.as_ref()),
                changed: reply.deleted > 0,
                found: None,
            }
        }
        Asked::Read => {
            let reply = kv.range(range).await?.into_inner();
            Answer::Done {
                revision: revision(reply.header.as_ref()),
                changed: false,
                found: found(&reply.kvs),
            }
        }
    })
}
