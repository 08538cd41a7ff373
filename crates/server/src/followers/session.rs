//! One follower's connection, from its first message to its last.

use super::feed::frame;
use super::send::{self, Piece};
use super::{Give, Place};
use crate::commit_log::{AtPoint, Errand};
use crate::shared::{Shared, unix_ms};
use crate::storage::Source;
use copies::admission::{self, Guards, Host, Start};
use copies::message::{Heartbeat, Hello, Reason, Refused, Rules, Said, Told, Welcome};
use ledger::Account;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use wire::{Call, Code, Inbound, Outbound, Status, Transfer};

/// A follower says who it is within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it hears how far the server is.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A follower that takes nothing of what is queued for it is not told of more.
const HEARTBEAT_BELOW_BYTES: usize = 1 << 20;

/// Where a follower begins.
enum Beginning {
    After { stream: u64, after: u64 },
    Snapshot { stream: u64, at: Box<AtPoint> },
}

fn stopping() -> Refused {
    later("the server stops")
}

fn later(why: &str) -> Refused {
    Refused {
        reason: Reason::Later.into(),
        text: why.to_owned(),
    }
}

/// Serves one follower until it is gone, cut off, or the server stops.
pub(super) async fn follow(
    shared: Arc<Shared>,
    call: Call,
    mut inbound: Inbound,
    outbound: Outbound,
) -> Result<(), Status> {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, inbound.next()).await {
        Ok(message) => match message?.map(Told::from_bytes) {
            Some(Ok(Told::Hello(hello))) => hello,
            _ => {
                return Err(Status::new(
                    Code::InvalidArgument,
                    "orlop: a follower first says who it is",
                ));
            }
        },
        Err(_) => return Err(Status::deadline_exceeded()),
    };
    let address = call.peer.address.clone();
    let name = hello.name.clone();
    let refused = match receive(&shared, &hello, &address).await {
        Ok((place, beginning)) => {
            let session = Session {
                shared,
                place,
                name,
                outbound,
                rules: None,
            };
            return session.run(&call, inbound, beginning).await;
        }
        Err(refused) => refused,
    };
    tracing::warn!(
        follower = %name,
        remote = %address,
        reason = %refused.text,
        "a follower was refused"
    );
    let replaced = refused.reason() == Reason::Term;
    outbound.push(frame(Said::Refused(refused)));
    if replaced {
        let shared = shared.clone();
        // It ends the process.
        let _ = tokio::task::spawn_blocking(move || shared.log.order(Errand::Replaced)).await;
    }
    Ok(())
}

/// Whether a follower may follow, and from where.
async fn receive(
    shared: &Arc<Shared>,
    hello: &Hello,
    address: &str,
) -> Result<(Place, Beginning), Refused> {
    admission::check(&host_of(shared, 0), hello, Guards::default())?;
    let place = Place::take(shared, &hello.name, address).ok_or_else(|| Refused {
        reason: Reason::Full.into(),
        text: "as many follow as may (--max-followers)".to_owned(),
    })?;
    let (of_work, position) = (shared.clone(), hello.position);
    // The committer is waited for.
    let work = move || {
        let shared = &of_work;
        let stream = shared.followers.begin(shared).map_err(|_| stopping())?;
        let revision = shared.store.lock().revision();
        let covers = |has| {
            let state = shared.followers.state.lock();
            let at = state.stream.as_ref().filter(|at| at.id == stream);
            at.is_some_and(|at| at.backlog.covers(has))
        };
        match admission::start(
            &host_of(shared, revision),
            position,
            stream,
            covers,
            Guards::default(),
        )? {
            Start::After(after) => Ok(Beginning::After { stream, after }),
            Start::Snapshot => {
                let (to, at) = channel();
                shared
                    .log
                    .order(Errand::Point(to))
                    .map_err(|_| stopping())?;
                let at = at.try_recv().map_err(|_| later("the store is busy"))?;
                Ok(Beginning::Snapshot {
                    stream,
                    at: Box::new(at),
                })
            }
        }
    };
    let beginning = tokio::task::spawn_blocking(work).await;
    let beginning =
        beginning.map_err(|_| later("a bug in the server; the panic is in its log"))??;
    Ok((place, beginning))
}

fn host_of(shared: &Shared, revision: i64) -> Host {
    Host {
        cluster_id: shared.ids.cluster_id,
        raft_term: shared.ids.raft_term,
        revision,
    }
}

struct Session {
    shared: Arc<Shared>,
    place: Place,
    name: String,
    outbound: Outbound,
    /// The rules that it was told of, by their digest.
    rules: Option<u64>,
}

impl Session {
    async fn run(
        mut self,
        call: &Call,
        inbound: Inbound,
        beginning: Beginning,
    ) -> Result<(), Status> {
        let (stream, after, pieces) = match beginning {
            Beginning::After { stream, after } => {
                self.welcome(stream, after, None);
                tracing::info!(follower = %self.name, remote = %call.peer.address, "a follower goes on where it stood");
                (stream, after, None)
            }
            Beginning::Snapshot { stream, at } => {
                let bytes = self.shared.store.lock().sizes().data_bytes as u64;
                let Ok(place) = self.shared.sending_snapshots.begin(bytes) else {
                    self.shared.ledger.count_refused(Account::Snapshots);
                    self.outbound.push(frame(Said::Refused(later(
                        "as many snapshots as allowed are being sent",
                    ))));
                    return Ok(());
                };
                let after = at.point.sequence;
                let revision = at.cursor.meta.revision;
                self.welcome(stream, after, Some(revision));
                tracing::info!(follower = %self.name, remote = %call.peer.address, revision, "a follower gets a snapshot");
                self.shared.followers.state.lock().snapshots += 1;
                let pieces = send::begin(&self.shared, place, *at).map_err(|error| {
                    Status::new(
                        Code::ResourceExhausted,
                        format!("orlop: no thread: {error}"),
                    )
                })?;
                (stream, after, Some(pieces))
            }
        };
        self.place.with(|session| {
            session.acked.stream = stream;
            session.acked.synced = after;
        });
        if let Some(pieces) = pieces {
            self.send_pieces(call, pieces).await?;
        }
        self.place.with(|session| session.joining = false);
        let ended = self.send_entries(call, inbound, stream, after).await;
        match &ended {
            Ok(()) => tracing::info!(follower = %self.name, "a follower is gone"),
            Err(status) => {
                tracing::warn!(follower = %self.name, reason = %status.message, "a follower was ended");
            }
        }
        ended
    }

    fn welcome(&self, stream: u64, after: u64, snapshot_revision: Option<i64>) {
        let ids = &self.shared.ids;
        self.outbound.push(frame(Said::Welcome(Welcome {
            version: copies::VERSION,
            cluster_id: ids.cluster_id,
            member_id: ids.member_id,
            name: self.shared.member.name.clone(),
            raft_term: ids.raft_term,
            stream,
            after,
            snapshot: snapshot_revision.is_some(),
            revision: snapshot_revision.unwrap_or(0),
        })));
    }

    async fn send_pieces(&self, call: &Call, mut pieces: Receiver<Piece>) -> Result<(), Status> {
        let closing = call.closing();
        let mut transfer = Transfer::bounded();
        loop {
            let piece = tokio::select! {
                () = closing.wait() => return Err(crate::status::stopped()),
                piece = pieces.recv() => piece,
            };
            let (frame, last) = match piece {
                Some(Piece::Part(frame)) => (frame, false),
                Some(Piece::Last(frame)) => (frame, true),
                None => {
                    let text = "orlop: the snapshot was not made to its end";
                    return Err(Status::new(Code::Aborted, text));
                }
            };
            tokio::select! {
                () = closing.wait() => return Err(crate::status::stopped()),
                sent = transfer.send(&self.outbound, frame) => {
                    sent.map_err(crate::status::of_slow)?;
                }
            }
            self.note_queued();
            if last {
                return Ok(());
            }
        }
    }

    fn note_queued(&self) {
        let queued = self.outbound.queued_bytes() as u64;
        self.place.with(|session| session.queued_bytes = queued);
    }

    async fn send_entries(
        &mut self,
        call: &Call,
        mut inbound: Inbound,
        stream: u64,
        after: u64,
    ) -> Result<(), Status> {
        let closing = call.closing();
        let shared = self.shared.clone();
        let followers = &shared.followers;
        let mut fed = followers.fed.subscribe();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut has = after;
        let mut ended = false;
        loop {
            // Before looking: what comes meanwhile is seen.
            fed.borrow_and_update();
            let mut full = false;
            loop {
                match followers.give(self.place.id, stream, has) {
                    Give::Entries { frame, last } => match self.outbound.try_send(frame) {
                        Ok(()) => has = last,
                        Err(wire::Refused::Full(_)) => {
                            full = true;
                            break;
                        }
                        Err(wire::Refused::Closed) => return Ok(()),
                    },
                    Give::End(frame) => {
                        if !std::mem::replace(&mut ended, true) {
                            self.outbound.push(frame);
                        }
                        break;
                    }
                    Give::Nothing => break,
                    Give::CutOff => {
                        followers.state.lock().cut_off += 1;
                        let text = "orlop: the follower is further behind than is kept for it";
                        return Err(Status::new(Code::ResourceExhausted, text));
                    }
                    Give::Over => {
                        let text =
                            "orlop: the stream is over, or this follower has another connection";
                        return Err(Status::new(Code::Aborted, text));
                    }
                }
            }
            self.note_queued();
            let room = self.outbound.limit_bytes() / 2;
            tokio::select! {
                () = closing.wait() => return Err(crate::status::stopped()),
                told = inbound.next() => match told?.map(Told::from_bytes) {
                    Some(Ok(Told::Ack(ack))) if ack.stream == stream => {
                        self.place.with(|session| session.acked = ack);
                    }
                    Some(Ok(Told::Ack(_))) => {}
                    Some(_) => {
                        let text = "orlop: a follower says how far it is, and nothing else";
                        return Err(Status::new(Code::InvalidArgument, text));
                    }
                    None => return Ok(()),
                },
                changed = fed.changed(), if !full => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                ready = self.outbound.ready_below(room), if full => {
                    if ready.is_err() {
                        return Ok(());
                    }
                }
                _ = beat.tick() => self.beat(),
            }
        }
    }

    /// Says how far the server is, and what rules it has if they are others than before.
    fn beat(&mut self) {
        if self.outbound.queued_bytes() > HEARTBEAT_BELOW_BYTES {
            return;
        }
        let followers = &self.shared.followers;
        let now_ms = followers.now_ms();
        let lag = {
            let state = followers.state.lock();
            let own = state.sessions.get(&self.place.id);
            own.zip(state.stream.as_ref()).map(|(own, stream)| {
                let backlog = &stream.backlog;
                (backlog.sequence(), backlog.lag(own.acked.synced, now_ms))
            })
        };
        let Some((sequence, lag)) = lag else { return };
        self.outbound.push(frame(Said::Heartbeat(Heartbeat {
            sequence,
            lag_records: lag.records,
            lag_bytes: lag.bytes,
            lag_ms: lag.ms,
            unix_ms: unix_ms(),
            waits: false,
        })));
        let current = self.shared.store.storage.current();
        let chosen = current.source == Source::RunTime;
        let digest = if chosen { current.policy.digest() } else { 0 };
        if self.rules.replace(digest) != Some(digest) {
            let rules = match chosen {
                true => Rules {
                    name: current.policy.name().to_owned(),
                    text: current.policy.source().to_owned(),
                },
                false => Rules::default(),
            };
            self.outbound.push(frame(Said::Rules(rules)));
        }
    }
}

/// A stream as the transport wants it.
pub(super) fn boxed(
    shared: Arc<Shared>,
    call: Call,
    inbound: Inbound,
    outbound: Outbound,
) -> wire::LocalFuture<Result<(), Status>> {
    Box::pin(follow(shared, call, inbound, outbound))
}
