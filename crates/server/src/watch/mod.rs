//! The Watch service. One task a stream reads the client's requests; one task a worker, the
//! pump, sends all events.

mod cursor;
mod encode;
mod host;
mod hub;
#[cfg(test)]
mod model;
mod progress;
mod watchers;

use self::encode::control;
use self::hub::watch_range;
use self::watchers::Watcher;
use crate::service::Service;
use crate::shared::Shared;
use crate::status;
use crate::store::Answer;
use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::watch_create_request::FilterType;
use etcd_api::etcdserverpb::watch_request::RequestUnion;
use prost::Message;
use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::{Call, Inbound, LocalFuture, Outbound, Slots, Status};

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Requests of a stream that are served before others of the worker have a turn.
const REQUESTS_A_TURN: usize = 64;

/// All watches of a worker.
pub(crate) type Hub = hub::Hub<Arc<Shared>, Outbound>;

/// Closes the stream's part of the hub, however its task ends.
struct Registration {
    hub: Rc<RefCell<Hub>>,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.borrow_mut().close_stream(self.key);
    }
}

impl Service {
    pub(crate) fn watch(
        self: &Rc<Self>,
        call: Call,
        mut inbound: Inbound,
        outbound: Outbound,
    ) -> LocalFuture<Result<(), Status>> {
        let this = self.clone();
        Box::pin(async move {
            let wake = Arc::new(tokio::sync::Notify::new());
            let key = this.hub.borrow_mut().open_stream(
                outbound.clone(),
                wake.clone(),
                call.peer.clone(),
            );
            let own = Registration {
                hub: this.hub.clone(),
                key,
            };
            let closing = call.closing();
            let interval = jittered(this.shared.settings.progress_interval);
            let mut tick = tokio::time::interval_at(Instant::now() + interval, interval);
            // As in etcd, a client may close its half and go on watching.
            let mut asks = true;
            let mut requests = 0;
            loop {
                let waits_below = own.hub.borrow().waits_below(key);
                tokio::select! {
                    message = inbound.next(), if asks => match message.inspect_err(|_| this.receive_failed())? {
                        Some(m) => {
                            // Control answers wait for room: a client that floods requests and
                            // reads no answers stops being read.
                            outbound.ready_below(outbound.limit_bytes()).await
                                .map_err(|_| watch_canceled())?;
                            this.watch_request(key, m, &outbound)?;
                            requests += 1;
                            if requests % REQUESTS_A_TURN == 0 {
                                tokio::task::yield_now().await;
                            }
                        }
                        None => asks = false,
                    },
                    () = closing.wait() => return Err(status::stopped()),
                    _ = tick.tick() => own.hub.borrow_mut().notify_progress(key),
                    () = wake.notified() => {}
                    room = outbound.ready_below(waits_below.unwrap_or_default()), if waits_below.is_some() => {
                        room.map_err(|_| watch_canceled())?;
                        own.hub.borrow_mut().has_room(key);
                    }
                }
            }
        })
    }

    fn receive_failed(&self) {
        let failures = &self.shared.metrics.stream_failures;
        failures
            .get(metrics::Direction::Receive, metrics::StreamApi::Watch)
            .inc();
    }

    fn watch_request(&self, stream: u64, m: Bytes, outbound: &Outbound) -> Result<(), Status> {
        let started = std::time::Instant::now();
        let request = pb::WatchRequest::decode(m).map_err(|e| status::undecodable(&e))?;
        let mut hub = self.hub.borrow_mut();
        match request.request_union {
            Some(RequestUnion::CreateRequest(r)) => self.create(&mut hub, stream, r, outbound),
            Some(RequestUnion::CancelRequest(r)) => {
                if hub.cancel(stream, r.watch_id) {
                    let revision = hub.revision();
                    outbound.push(
                        control(&self.shared.ids, revision, r.watch_id)
                            .canceled("")
                            .frame(),
                    );
                }
            }
            Some(RequestUnion::ProgressRequest(_)) => hub.request_progress(stream),
            None => tracing::info!("invalid watch request type received in gRPC stream"),
        }
        self.shared
            .metrics
            .watch_control_send
            .observe(started.elapsed());
        Ok(())
    }

    fn create(&self, hub: &mut Hub, stream: u64, r: pb::WatchCreateRequest, outbound: &Outbound) {
        let revision = hub.revision();
        let ids = &self.shared.ids;
        let refuse = |reason: &str| {
            outbound.push(
                control(ids, revision, -1)
                    .created()
                    .canceled(reason)
                    .frame(),
            );
        };
        if r.start_revision < 0 {
            return refuse(COMPACTED);
        }
        let filter = |f: FilterType| r.filters.contains(&(f as i32));
        let (no_put, no_delete) = (filter(FilterType::Noput), filter(FilterType::Nodelete));
        let Some(range) = watch_range(r.key, r.range_end) else {
            return refuse(EMPTY_RANGE);
        };
        if let Err(reason) = hub.room_for_watch(stream) {
            return refuse(reason);
        }
        let added = hub.add(Watcher {
            stream,
            watch_id: r.watch_id,
            range,
            no_put,
            no_delete,
            prev_kv: r.prev_kv,
            fragment: r.fragment,
            progress_notify: r.progress_notify,
            quiet: r.progress_notify,
            // 0 means from now on.
            next_revision: if r.start_revision == 0 {
                revision + 1
            } else {
                r.start_revision
            },
        });
        match added {
            // Queued before any event: the hub sends those later, from this thread.
            Ok(id) => outbound.push(control(ids, revision, id).created().frame()),
            Err(watchers::Refused) => refuse(DUPLICATE_ID),
        }
    }
}

/// Runs a worker's pump: sends events whenever the store has advanced, or a stream has something
/// to be done.
pub(crate) async fn run_pump(hub: Rc<RefCell<Hub>>, slots: Slots<Answer>) {
    let wake = hub.borrow().wake();
    let mut seen = slots.nudges();
    loop {
        let more = hub.borrow_mut().turn();
        if more {
            tokio::task::yield_now().await;
        } else {
            tokio::select! {
                nudges = slots.nudged(seen) => seen = nudges,
                () = wake.notified() => {}
            }
        }
    }
}

fn watch_canceled() -> Status {
    Status::new(wire::Code::Canceled, "etcdserver: watch canceled")
}

/// Spreads the notifications of streams opened together over a tenth of the interval.
fn jittered(interval: Duration) -> Duration {
    let part = RandomState::new().hash_one(0u8) % 1000;
    interval + interval / 10 * part as u32 / 1000
}
