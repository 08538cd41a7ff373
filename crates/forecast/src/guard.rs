//! What actors share, as keys in the cluster itself: who acts, and until when nobody does.
//!
//! | key below the prefix | what it says | its lease |
//! |---|---|---|
//! | `actor` | who acts | the actor's: it goes when that is gone |
//! | `cool-down` | nobody moves the lead | as long as the cool-down |
//! | `led` | leader and term that an actor saw last | none |
//! | `stop` | an operator has stopped all | none |
//! | `gave-up` | an actor has given up | none |
//! | `ways/NAME` | one client's way to each member | that client's |
//!
//! Time is the cluster's own: a cool-down ends when its lease does, so no clocks are compared. A
//! move begins with a transaction that takes the cool-down, and goes through only for the actor,
//! and only while nobody has stopped, given up or moved: two that both think that they act move
//! once.

use crate::cost::Ways;
use etcd_api::etcdserverpb as pb;
use etcd_api::mvccpb::KeyValue;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use std::collections::BTreeMap;

/// Where the keys are, unless told otherwise.
pub const PREFIX: &str = "/orlop/forecast/";
/// Clients whose ways are weighed at most.
const MAX_WAYS: usize = 256;
/// Members of one client's ways.
const MAX_MEMBERS: usize = 16;

/// What the keys say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Board {
    /// Who acts, and the revision at which it began to.
    pub actor: Option<(String, i64)>,
    /// Why nobody may move the lead now.
    pub cool_down: Option<String>,
    /// Leader and term that an actor saw last.
    pub led: Option<String>,
    /// Who has stopped it.
    pub stop: Option<String>,
    /// Why an actor has given up.
    pub gave_up: Option<String>,
    /// The ways of clients, by their names.
    pub ways: BTreeMap<String, Ways>,
}

impl Board {
    /// Reads what a range over the prefix has found. Values that cannot be read count as there,
    /// where that is the careful reading.
    #[must_use]
    pub fn read(prefix: &str, found: &[KeyValue]) -> Board {
        let mut board = Board::default();
        for kv in found {
            let Some(name) = kv.key.strip_prefix(prefix.as_bytes()) else {
                continue;
            };
            let value = String::from_utf8_lossy(&kv.value).into_owned();
            match name {
                b"actor" => board.actor = Some((value, kv.create_revision)),
                b"cool-down" => board.cool_down = Some(value),
                b"led" => board.led = Some(value),
                b"stop" => board.stop = Some(value),
                b"gave-up" => board.gave_up = Some(value),
                _ => {
                    let way = name.strip_prefix(b"ways/").and_then(|name| {
                        let name = String::from_utf8(name.to_vec()).ok()?;
                        Some((name, read_ways(&value)?))
                    });
                    if board.ways.len() < MAX_WAYS {
                        board.ways.extend(way);
                    }
                }
            }
        }
        board
    }
}

/// One client's ways as a value.
#[must_use]
pub fn ways_text(ways: &Ways) -> String {
    let us: BTreeMap<String, f64> = ways
        .us
        .iter()
        .map(|(id, us)| (format!("{id:x}"), *us))
        .collect();
    serde_json::json!({"weight": ways.weight, "us": us}).to_string()
}

fn read_ways(text: &str) -> Option<Ways> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let weight = value["weight"].as_f64().filter(|weight| *weight > 0.0)?;
    let us = value["us"].as_object()?.iter().take(MAX_MEMBERS);
    let us = us.filter_map(|(id, us)| {
        let us = us.as_f64().filter(|us| *us >= 0.0)?;
        Some((u64::from_str_radix(id, 16).ok()?, us))
    });
    Some(Ways {
        weight,
        us: us.collect(),
    })
}

/// All keys of the prefix.
#[must_use]
pub fn board(prefix: &str) -> pb::RangeRequest {
    let mut end = prefix.as_bytes().to_vec();
    // The prefix ends in a slash, so the next byte is one more.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        limit: (MAX_WAYS + 16) as i64,
        ..pb::RangeRequest::default()
    }
}

/// Become the actor, if there is none.
#[must_use]
pub fn claim(prefix: &str, who: &str, lease: i64) -> pb::TxnRequest {
    txn(
        vec![absent(prefix, "actor")],
        vec![put(prefix, "actor", who, lease)],
    )
}

/// Begin a move: only as the actor of that revision, and take the cool-down with it.
#[must_use]
pub fn begin_move(prefix: &str, actor_revision: i64, what: &str, lease: i64) -> pb::TxnRequest {
    txn(
        vec![
            created(prefix, "actor", actor_revision),
            absent(prefix, "cool-down"),
            absent(prefix, "stop"),
            absent(prefix, "gave-up"),
        ],
        vec![put(prefix, "cool-down", what, lease)],
    )
}

/// Note that somebody has moved the lead: a cool-down begins, or is replaced by one as long.
#[must_use]
pub fn note_change(
    prefix: &str,
    actor_revision: i64,
    led: &str,
    why: &str,
    lease: i64,
) -> pb::TxnRequest {
    txn(
        vec![created(prefix, "actor", actor_revision)],
        vec![
            put(prefix, "led", led, 0),
            put(prefix, "cool-down", why, lease),
        ],
    )
}

/// Note who leads, without a cool-down.
#[must_use]
pub fn note_led(prefix: &str, actor_revision: i64, led: &str) -> pb::TxnRequest {
    txn(
        vec![created(prefix, "actor", actor_revision)],
        vec![put(prefix, "led", led, 0)],
    )
}

/// A key with a value, as it is.
#[must_use]
pub fn set(prefix: &str, name: &str, value: &str, lease: i64) -> pb::TxnRequest {
    txn(Vec::new(), vec![put(prefix, name, value, lease)])
}

/// Let actors act again.
#[must_use]
pub fn resume(prefix: &str) -> pb::TxnRequest {
    let delete = |name: &str| {
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: format!("{prefix}{name}").into(),
            ..pb::DeleteRangeRequest::default()
        }))
    };
    txn(Vec::new(), vec![delete("stop"), delete("gave-up")])
}

fn txn(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest {
        compare,
        success,
        ..pb::TxnRequest::default()
    }
}

fn absent(prefix: &str, name: &str) -> pb::Compare {
    created(prefix, name, 0)
}

fn created(prefix: &str, name: &str, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: format!("{prefix}{name}").into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..pb::Compare::default()
    }
}

fn put(prefix: &str, name: &str, value: &str, lease: i64) -> pb::RequestOp {
    op(Request::RequestPut(pb::PutRequest {
        key: format!("{prefix}{name}").into(),
        value: value.to_owned().into(),
        lease,
        ..pb::PutRequest::default()
    }))
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_is_read_from_its_keys() {
        let kv = |key: &str, value: &str| KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision: 7,
            ..KeyValue::default()
        };
        let ways = Ways {
            weight: 2.0,
            us: [(0xab, 1_500.0)].into_iter().collect(),
        };
        let board = Board::read(
            "/p/",
            &[
                kv("/p/actor", "a"),
                kv("/p/cool-down", "x"),
                kv("/p/ways/proxy-1", &ways_text(&ways)),
                kv("/p/ways/bad", "{\"weight\":-1}"),
                kv("/q/stop", "no"),
            ],
        );
        assert_eq!(board.actor, Some(("a".to_owned(), 7)));
        assert_eq!((board.cool_down.as_deref(), board.stop), (Some("x"), None));
        assert_eq!(
            board.ways,
            [("proxy-1".to_owned(), ways)].into_iter().collect()
        );
        assert_eq!(super::board("/p/").range_end, "/p0".as_bytes());
    }
}
