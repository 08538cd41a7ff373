//! The admin endpoint: HTTP with JSON on a Unix socket, and on TCP with client certificates
//! if asked for. Who reaches it may change how durable writes are.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /v1/status` | the rules in force, rates by class, what a power loss would take |
//! | `GET /v1/rules` | the rules in force, as TOML |
//! | `POST /v1/profile` `{"profile": "NAME"}` | puts a profile in force, until it is reset |
//! | `DELETE /v1/profile` | back to what the command line says |
//! | `POST /v1/rules?name=NAME` and TOML | puts rules in force, until they are reset |
//!
//! A page in a browser whose user holds a client certificate must not reach it: what a browser
//! sends for a page of another origin (an `Origin`, or a body of a type that needs no leave) is
//! refused.

use crate::http::{Query, answer as http_answer, json as json_text};
use crate::rates::Rate;
use crate::shared::Shared;
use crate::switch::{Choice, SwitchError, switch};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use ledger::Account;
use policy::WhatIf;
use serde_json::{Value, json};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use wire::{Call, Frame, Handler, HttpRequest, Inbound, LocalFuture, Outbound, Reply, Status};

/// What bodies may be. None of them is among the types that a page may send without leave.
const BODY_TYPES: [&str; 2] = ["application/json", "application/toml"];

/// The socket's name in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// The handler of the endpoint's one worker.
pub(crate) struct Admin(pub(crate) Arc<Shared>);

impl Handler for Admin {
    fn unary(self: &Rc<Self>, _: Call, _: Bytes) -> Reply {
        Reply::Now(Err::<Frame, _>(Status::new(
            wire::Code::Unimplemented,
            "orlop: the admin endpoint speaks HTTP",
        )))
    }

    fn stream(
        self: &Rc<Self>,
        _: Call,
        _: Inbound,
        _: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        Box::pin(async {
            Err(Status::new(
                wire::Code::Unimplemented,
                "orlop: the admin endpoint speaks HTTP",
            ))
        })
    }

    fn http(self: &Rc<Self>, request: HttpRequest) -> LocalFuture<Response<Bytes>> {
        let shared = self.0.clone();
        let HttpRequest { request, peer } = request;
        let who = peer.tls.as_ref().and_then(|tls| tls.common_name.clone());
        let from = peer.address.clone();
        Box::pin(async move {
            // A switch waits for the disk, and status for locks.
            let work = move || answer(&shared, &request, &from, who.as_deref());
            match tokio::task::spawn_blocking(work).await {
                Ok(answer) => answer,
                Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
            }
        })
    }
}

fn answer(
    shared: &Arc<Shared>,
    request: &http::Request<Bytes>,
    from: &str,
    who: Option<&str>,
) -> Response<Bytes> {
    if let Some(refusal) = refuse_pages(request) {
        return refusal;
    }
    // At most as long as rules may be: the transport refuses more.
    let body = request.body();
    let choice = match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/status") => return json_answer(StatusCode::OK, &status(shared)),
        (&Method::GET, "/v1/rules") => {
            let text = shared.store.storage.current().policy.source().to_owned();
            return http_answer(StatusCode::OK, "application/toml", text);
        }
        (&Method::DELETE, "/v1/profile") => Choice::Reset,
        (&Method::POST, "/v1/profile") => match profile_of(body) {
            Some(name) => Choice::Profile(name),
            None => {
                let text = "the body must be {\"profile\": \"NAME\"}";
                return error(StatusCode::BAD_REQUEST, text);
            }
        },
        (&Method::POST, "/v1/rules") => match std::str::from_utf8(body) {
            Ok(text) => Choice::Rules {
                name: name_of(&Query(request.uri().query().unwrap_or_default())),
                text: text.to_owned(),
            },
            Err(_) => return error(StatusCode::BAD_REQUEST, "the rules are not UTF-8"),
        },
        (_, "/v1/status" | "/v1/rules" | "/v1/profile") => {
            return error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not for this path",
            );
        }
        _ => return error(StatusCode::NOT_FOUND, "there is no such path"),
    };
    tracing::info!(
        from,
        who = who.unwrap_or("-"),
        "asked to change the storage rules"
    );
    match switch(shared, choice) {
        Ok(_) => json_answer(StatusCode::OK, &status(shared)),
        Err(e @ SwitchError::Rules(_)) => {
            tracing::warn!(error = %e, "the storage rules stay as they are");
            error(StatusCode::UNPROCESSABLE_ENTITY, &e.to_string())
        }
        Err(e @ SwitchError::Stopping) => error(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()),
    }
}

/// Refuses what a browser sends for a page. A page cannot send the types that are taken here
/// without asking first (a preflight), and asking is refused like every unknown method.
fn refuse_pages(request: &http::Request<Bytes>) -> Option<Response<Bytes>> {
    let headers = request.headers();
    let by_a_page = ["origin", "sec-fetch-site"]
        .iter()
        .any(|name| headers.contains_key(*name));
    if by_a_page {
        return Some(error(
            StatusCode::FORBIDDEN,
            "the admin endpoint is for programs, and this was sent by a browser",
        ));
    }
    if request.method() != Method::POST {
        return None;
    }
    let given = headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    let kind = given.and_then(|given| given.split(|&b| b == b';').next());
    let known = kind.is_some_and(|kind| {
        BODY_TYPES
            .iter()
            .any(|known| kind.trim_ascii().eq_ignore_ascii_case(known.as_bytes()))
    });
    if known {
        return None;
    }
    Some(error(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "set the header content-type to application/json, or to application/toml for rules",
    ))
}

fn profile_of(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    Some(value.get("profile")?.as_str()?.to_owned())
}

/// What applied rules are called: the query's `name`, in plain characters.
fn name_of(query: &Query<'_>) -> String {
    let name = query.all("name").next();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let name: String = name
        .unwrap_or("rules")
        .chars()
        .filter(|&c| plain(c))
        .collect();
    if name.is_empty() {
        "rules".to_owned()
    } else {
        name
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Everything that `orlop status` shows.
fn status(shared: &Shared) -> Value {
    let store = &shared.store;
    let storage = &store.storage;
    let current = storage.current();
    let volatile = shared.log.status().volatile;
    let rate = shared.rates.now(&shared.metrics);
    let m = &shared.metrics;
    let (revision, pending) = {
        let engine = store.lock();
        (engine.revision(), engine.pending())
    };
    let age_ms = volatile.oldest_unsynced.map_or(0, |at| {
        Instant::now().saturating_duration_since(at).as_millis() as u64
    });
    let class = |writes: u64, bytes: u64, per_s: f64, bytes_per_s: f64| {
        json!({
            "writes": writes,
            "bytes": bytes,
            "writes_per_second": round(per_s),
            "bytes_per_second": round(bytes_per_s),
        })
    };
    let Rate {
        seconds,
        durable_writes,
        volatile_writes,
        durable_bytes,
        volatile_bytes,
        syncs,
    } = rate;
    json!({
        "name": shared.member.name,
        "version": env!("CARGO_PKG_VERSION"),
        "revision": revision,
        "pending_writes": pending,
        "profile": {
            "name": current.policy.name(),
            "source": current.source.to_string(),
            "run_time_choice": current.source == crate::storage::Source::RunTime,
            "command_line": storage.flag_name(),
            "digest": format!("{:016x}", current.policy.digest()),
            "rules": current.policy.rules().len(),
            "strict": current.policy.is_strict(),
            "power_loss": current.policy.power_loss(),
            "max_sync_within_ms": current.policy.max_sync_within_ms(),
        },
        "rates_over_seconds": round(seconds),
        "durable": class(
            m.writes.durable.get(), m.write_bytes.durable.get(), durable_writes, durable_bytes,
        ),
        "volatile": class(
            m.writes.volatile.get(), m.write_bytes.volatile.get(), volatile_writes, volatile_bytes,
        ),
        "syncs": m.wal_fsync.count(),
        "syncs_per_second": round(syncs),
        "unsynced": {
            "bytes": volatile.unsynced_bytes,
            "batches": volatile.unsynced_frames,
            "age_ms": age_ms,
        },
        "epoch": {
            "open": volatile.epoch_bound.is_some(),
            "revision_bound": volatile.epoch_bound,
            "marker": volatile.marker.map(|path| path.display().to_string()),
        },
        "memory": memory(shared),
        "followers": followers(shared),
        "shards": shards(shared),
        "spared": if storage.is_strict() { spared(shared) } else { Value::Null },
    })
}

/// Who keeps copies, and how far each is behind.
fn shards(shared: &Shared) -> Value {
    let Some(shards) = &shared.shards else {
        return json!({ "max": 0, "copies": 0, "counting": false, "shards": [] });
    };
    let status = shards.status();
    let one = |shard: &crate::shards::ShardStatus| {
        json!({
            "name": shard.name,
            "zone": shard.zone,
            "address": shard.address,
            "connected_s": shard.connected_s,
            "holds": shard.holds,
            "bytes": shard.bytes,
            "behind_frames": shard.behind_frames,
        })
    };
    json!({
        "max": status.max,
        "copies": status.copies,
        "counting": status.counting,
        "set": status.set,
        "kept_bytes": status.kept_bytes,
        "lost": status.lost,
        "shards": status.shards.iter().map(one).collect::<Vec<_>>(),
    })
}

fn followers(shared: &Shared) -> Value {
    let status = shared.followers.status();
    let one = |follower: &crate::followers::FollowerStatus| {
        json!({
            "name": follower.name,
            "address": follower.address,
            "connected_s": follower.connected_s,
            "joining": follower.joining,
            "lag_records": follower.lag.records,
            "lag_bytes": follower.lag.bytes,
            "lag_ms": follower.lag.ms,
        })
    };
    json!({
        "max": status.max,
        "raft_term": shared.ids.raft_term,
        "backlog_bytes": status.backlog_bytes,
        "backlog_limit_bytes": status.backlog_limit_bytes,
        "cut_off": status.cut_off,
        "snapshots": status.snapshots,
        "followers": status.followers.iter().map(one).collect::<Vec<_>>(),
    })
}

/// Where memory is: what is stored, and each account of what is held for clients.
fn memory(shared: &Shared) -> Value {
    let sizes = shared.store.lock().sizes();
    let ledger = &shared.ledger;
    let account = |account: Account| {
        let held = json!({
            "bytes": ledger.held_bytes(account),
            "limit_bytes": ledger.limit_bytes(account),
            "refused": ledger.refused(account),
            "shed": ledger.shed(account),
        });
        (account.name().to_owned(), held)
    };
    let accounts: serde_json::Map<_, _> = Account::ALL.into_iter().map(account).collect();
    json!({
        "data_bytes": sizes.data_bytes,
        "quota_bytes": shared.settings.quota.shown_bytes(),
        "history_bytes": sizes.history_bytes,
        "history_budget_bytes": shared.settings.history_budget_bytes,
        "clients": accounts,
    })
}

/// What the other profiles would have spared, of the writes that were looked at.
fn spared(shared: &Shared) -> Value {
    let s = &shared.store.storage.spared;
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let (writes, syncs) = (load(&s.writes), load(&s.syncs));
    let percent = |n: u64, of: u64| match of {
        0 => Value::Null,
        of => json!(round(n as f64 * 100.0 / of as f64)),
    };
    let profiles = WhatIf::PROFILES.iter().zip(&s.writes_in).zip(&s.syncs_in);
    let profiles: Vec<Value> = profiles
        .map(|((profile, in_writes), in_syncs)| {
            json!({
                "profile": profile.name(),
                "writes_percent": percent(load(in_writes), writes),
                "syncs_percent": percent(load(in_syncs), syncs),
            })
        })
        .collect();
    json!({
        "sampled_writes": writes,
        "sampled_syncs": syncs,
        "profiles": profiles,
    })
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Bytes> {
    json_text(status, format!("{value}\n"))
}

fn error(status: StatusCode, text: &str) -> Response<Bytes> {
    json_answer(status, &json!({ "error": text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(method: Method, headers: &[(&str, &str)]) -> u16 {
        let mut request = http::Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Bytes::new()).unwrap();
        refuse_pages(&request).map_or(200, |refusal| refusal.status().as_u16())
    }

    #[test]
    fn what_a_page_of_another_origin_can_send_is_refused() {
        let json = ("content-type", "Application/JSON; charset=utf-8");
        assert_eq!(sent(Method::POST, &[json]), 200);
        assert_eq!(
            sent(Method::POST, &[("content-type", "application/toml")]),
            200
        );
        assert_eq!(sent(Method::GET, &[]), 200);
        // The types that a page may send without leave.
        for simple in [
            "text/plain",
            "text/plain; x=application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=a",
        ] {
            assert_eq!(
                sent(Method::POST, &[("content-type", simple)]),
                415,
                "{simple}"
            );
        }
        assert_eq!(sent(Method::POST, &[]), 415);
        for method in [Method::POST, Method::DELETE, Method::GET] {
            let origin = ("origin", "https://elsewhere.example");
            assert_eq!(sent(method.clone(), &[json, origin]), 403);
            assert_eq!(sent(method, &[json, ("sec-fetch-site", "same-site")]), 403);
        }
    }
}
