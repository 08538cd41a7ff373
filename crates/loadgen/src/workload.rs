//! The closed loops: each sends its next operation when it has the answer to the last.

use crate::drive::Seat;
use crate::error::Error;
use crate::rpc::{Call, Connection};
use bytes::{BufMut, Bytes, BytesMut};
use etcd_api::etcdserverpb::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest,
    TxnResponse, compare, request_op, response_op,
};
use rand::{Rng, RngCore};
use serde::Serialize;
use std::rc::Rc;
use std::time::Instant;

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Update random keys out of the filled ones.
    Put,
    /// Read one random key, linearizably.
    Range,
    /// As kube-apiserver updates an object: put if the mod revision is still the one last
    /// seen, otherwise read. Every client has keys of its own, so none fails.
    Txn,
    /// Put, and count what arrives at each of many watchers of the prefix.
    Watch,
}

impl Workload {
    /// All of them, in the order in which they run.
    pub const ALL: [Workload; 4] = [
        Workload::Put,
        Workload::Range,
        Workload::Txn,
        Workload::Watch,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::Range => "range",
            Workload::Txn => "txn",
            Workload::Watch => "watch",
        }
    }

    pub(crate) fn prefix(self) -> String {
        format!("/bench/{}/", self.name())
    }
}

/// The keys of a workload, `len` bytes each (or as many as prefix and number need).
pub(crate) fn keys(workload: Workload, count: usize, len: usize) -> Vec<Bytes> {
    let prefix = workload.prefix();
    let digits = len.saturating_sub(prefix.len()).max(9);
    (0..count)
        .map(|n| Bytes::from(format!("{prefix}{n:0digits$}")))
        .collect()
}

/// Values of one length that all differ and do not compress.
pub(crate) struct Values {
    random: Vec<u8>,
}

impl Values {
    pub(crate) fn new(len: usize) -> Values {
        let mut random = vec![0; len];
        rand::rng().fill_bytes(&mut random);
        Values { random }
    }

    /// A value that begins with as many bytes of `head` as it has room for.
    pub(crate) fn starting_with(&self, head: u64) -> Bytes {
        let mut value = BytesMut::with_capacity(self.random.len());
        value.put_slice(&self.random);
        let head = head.to_le_bytes();
        let len = head.len().min(value.len());
        value[..len].copy_from_slice(&head[..len]);
        value.freeze()
    }
}

fn put_request(key: &Bytes, value: Bytes) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value,
        ..Default::default()
    }
}

fn range_request(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..Default::default()
    }
}

/// Writes every key once, shared out among all workers.
pub(crate) async fn fill(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    let values = Values::new(seat.load.value_bytes);
    while seat.running() {
        let next = seat.control.next_key();
        let Some(key) = seat.keys.get(next) else {
            break;
        };
        let put = put_request(key, values.starting_with(next as u64));
        let _: PutResponse = connection.unary(Call::Put, &put).await?;
    }
    Ok(())
}

pub(crate) async fn put(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    let values = Values::new(seat.load.value_bytes);
    let mut revision = 0;
    let mut sent = 0;
    while seat.running() {
        sent += 1;
        let start = Instant::now();
        let put = put_request(seat.random_key(), values.starting_with(sent));
        let response: PutResponse = connection.unary(Call::Put, &put).await?;
        seat.done(start);
        let now = response.header.map_or(0, |h| h.revision);
        if now <= revision {
            return Err(Error::Wrong(format!(
                "a put got revision {now} after {revision}"
            )));
        }
        revision = now;
    }
    Ok(())
}

pub(crate) async fn range(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    while seat.running() {
        let key = seat.random_key();
        let start = Instant::now();
        let response: RangeResponse = connection.unary(Call::Range, &range_request(key)).await?;
        seat.done(start);
        let right = matches!(&response.kvs[..], [kv] if kv.key == key && kv.value.len() == seat.load.value_bytes);
        if !right {
            return Err(Error::Wrong(
                "a key that was put is not there as it was put".into(),
            ));
        }
    }
    Ok(())
}

/// `worker` counts from 0 over all connections: it says which keys are this loop's own.
pub(crate) async fn txn(
    seat: Rc<Seat>,
    connection: Connection,
    worker: usize,
) -> Result<(), Error> {
    let values = Values::new(seat.load.value_bytes);
    let mut own = Vec::new();
    for key in seat.keys.iter().skip(worker).step_by(seat.load.in_flight) {
        let response: RangeResponse = connection.unary(Call::Range, &range_request(key)).await?;
        own.push((
            key.clone(),
            response.kvs.first().map_or(0, |kv| kv.mod_revision),
        ));
    }
    seat.ready().await;
    let mut sent = 0;
    while seat.running() {
        sent += 1;
        let chosen = rand::rng().random_range(0..own.len());
        let (key, revision) = &mut own[chosen];
        let start = Instant::now();
        let request = update(key, *revision, values.starting_with(sent));
        let response: TxnResponse = connection.unary(Call::Txn, &request).await?;
        seat.done(start);
        if !response.succeeded {
            let actual = response
                .responses
                .first()
                .and_then(|op| match &op.response {
                    Some(response_op::Response::ResponseRange(range)) => {
                        range.kvs.first().map(|kv| kv.mod_revision)
                    }
                    _ => None,
                });
            return Err(Error::Wrong(format!(
                "a key that only one client writes is at {actual:?}, not at {revision}"
            )));
        }
        *revision = response.header.map_or(0, |h| h.revision);
    }
    Ok(())
}

/// kube-apiserver's update of one object that it last saw at `revision`.
fn update(key: &Bytes, revision: i64, value: Bytes) -> TxnRequest {
    let op = |request| RequestOp {
        request: Some(request),
    };
    TxnRequest {
        compare: vec![Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(compare::TargetUnion::ModRevision(revision)),
            ..Default::default()
        }],
        success: vec![op(request_op::Request::RequestPut(put_request(key, value)))],
        failure: vec![op(request_op::Request::RequestRange(range_request(key)))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_length_asked_for_and_all_differ() {
        let keys = keys(Workload::Put, 1000, 32);
        assert!(
            keys.iter()
                .all(|key| key.len() == 32 && key.starts_with(b"/bench/put/"))
        );
        let mut distinct = keys.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), 1000);
        assert!(super::keys(Workload::Watch, 1, 1)[0].len() > 1);
    }

    #[test]
    fn values_differ_and_keep_their_length() {
        for len in [0, 3, 8, 1024] {
            let values = Values::new(len);
            assert_eq!(values.starting_with(1).len(), len);
            assert_eq!(len == 0, values.starting_with(1) == values.starting_with(2));
        }
    }
}
