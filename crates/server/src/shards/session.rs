//! One shard's connection, from its first message to its last.

use super::{Held, Sent, Shards};
use crate::encode;
use copies::message::Refused;
use copies::shards::message::{Begin, Frame as HeldFrame, Frames, FromServer, Hello, Said, Told};
use journal::Lsn;
use std::sync::Arc;
use std::time::Duration;
use wire::{Call, Code, Frame, Inbound, Outbound, Status};

/// A shard says who it is within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames in a message take about so much.
const MESSAGE_BYTES: u64 = 1 << 20;

fn frame(said: Said) -> Frame {
    encode::message(&FromServer::from(said))
}

/// A session's place among the others; it ends with this.
struct Place {
    shards: Arc<Shards>,
    session: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shards.left(self.session);
    }
}

/// Serves one shard until it is gone, or is to go.
pub(crate) async fn serve(
    shards: Arc<Shards>,
    call: Call,
    mut inbound: Inbound,
    outbound: Outbound,
) -> Result<(), Status> {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, inbound.next()).await {
        Ok(message) => match message?.map(Told::from_bytes) {
            Some(Ok(Told::Hello(hello))) => hello,
            _ => {
                let text = "orlop: a shard first says who it is";
                return Err(Status::new(Code::InvalidArgument, text));
            }
        },
        Err(_) => return Err(Status::deadline_exceeded()),
    };
    let address = call.peer.address.clone();
    let (place, welcome) = match shards.receive(&hello, &address) {
        Ok((session, welcome)) => {
            let shards = shards.clone();
            (Place { shards, session }, welcome)
        }
        Err(refused) => {
            refuse(&hello, &address, refused, &outbound);
            return Ok(());
        }
    };
    outbound.push(frame(Said::Welcome(welcome)));
    tracing::info!(shard = %hello.name, zone = hello.zone, remote = %address, "a shard is connected");
    shards.join(place.session);
    let ended = run(&shards, place.session, &call, inbound, &outbound).await;
    match &ended {
        Ok(()) => tracing::info!(shard = %hello.name, "a shard is gone"),
        Err(status) => {
            tracing::warn!(shard = %hello.name, reason = %status.message, "a shard was ended");
        }
    }
    ended
}

fn refuse(hello: &Hello, address: &str, refused: Refused, outbound: &Outbound) {
    if refused.reason() != copies::message::Reason::Later {
        tracing::warn!(
            shard = %hello.name,
            remote = %address,
            reason = %refused.text,
            "a shard was refused"
        );
    }
    outbound.push(frame(Said::Refused(refused)));
}

/// What to send next.
enum Give {
    Message(Frame),
    /// Nothing now. `holds`: frames that are written from here on are for it.
    Nothing {
        holds: bool,
    },
    Close(&'static str),
}

impl Shards {
    /// What a session sends next. `synced` is what it was told last of the disk.
    fn give(&self, session: u64, synced: &mut u64) -> Give {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(conn) = state.conns.get_mut(&session) else {
            return Give::Close("it has no place any more");
        };
        if let Some(why) = conn.close {
            return Give::Close(why);
        }
        if let Some((collect, to)) = conn.asked.take() {
            conn.answers = Some(to);
            return Give::Message(frame(Said::Collect(collect)));
        }
        let (Some((set, sent)), Some(held)) = (&mut conn.set, &mut state.held) else {
            return Give::Nothing { holds: false };
        };
        let set = *set;
        if std::mem::take(&mut conn.begins) {
            *synced = *sent;
            return Give::Message(frame(Said::Begin(Begin { set, after: *sent })));
        }
        match held.next(set, (*sent, *synced), conn.retired) {
            Some(next) => {
                (*sent, *synced) = next.has;
                Give::Message(next.message)
            }
            None => Give::Nothing { holds: true },
        }
    }
}

impl Held {
    /// What a holder gets that has so much, and knows so much to be on disk. A retired one is only
    /// told what it may forget.
    fn next(&mut self, set: u64, had: (Lsn, Lsn), retired: bool) -> Option<Sent> {
        let known = self.last_sent.as_ref();
        if let Some(sent) = known.filter(|of| of.set == set && of.had == had && !retired) {
            return Some(sent.clone());
        }
        let mut next = self.hold.after(had.0, MESSAGE_BYTES);
        if retired {
            next.frames.clear();
        }
        if next.frames.is_empty() && next.synced <= had.1 {
            return None;
        }
        let last = next.frames.last().map_or(next.synced, |frame| frame.lsn);
        let sent = Sent {
            set,
            had,
            has: (last.max(had.0), next.synced),
            message: frame(Said::Frames(Frames {
                set,
                synced: next.synced,
                frames: next.frames.into_iter().map(HeldFrame::from).collect(),
            })),
        };
        if !retired {
            self.last_sent = Some(sent.clone());
        }
        Some(sent)
    }
}

async fn run(
    shards: &Arc<Shards>,
    session: u64,
    call: &Call,
    mut inbound: Inbound,
    outbound: &Outbound,
) -> Result<(), Status> {
    let closing = call.closing();
    let (mut fed, mut ordered) = (shards.fed.subscribe(), shards.ordered.subscribe());
    let mut synced = 0;
    loop {
        // Before looking: what comes meanwhile is seen.
        fed.borrow_and_update();
        ordered.borrow_and_update();
        let mut holds = true;
        let room = outbound.limit_bytes() / 2;
        let mut full = outbound.queued_bytes() > room;
        while !full {
            match shards.give(session, &mut synced) {
                Give::Message(message) => {
                    outbound.push(message);
                    full = outbound.queued_bytes() > room;
                }
                Give::Nothing { holds: now } => {
                    holds = now;
                    break;
                }
                Give::Close(why) => {
                    let text = format!("orlop: the connection ends: {why}");
                    return Err(Status::new(Code::Aborted, text));
                }
            }
        }
        tokio::select! {
            () = closing.wait() => return Err(crate::status::stopped()),
            told = inbound.next() => match told?.map(Told::from_bytes) {
                Some(Ok(Told::Ack(ack))) => shards.acked(session, ack),
                Some(Ok(Told::Leaving(_))) => shards.leaving(session),
                Some(Ok(Told::Collected(part))) => shards.collected(session, part),
                Some(_) => {
                    let text = "orlop: a shard says how far it is, and nothing else";
                    return Err(Status::new(Code::InvalidArgument, text));
                }
                None => return Ok(()),
            },
            changed = fed.changed(), if holds => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            changed = ordered.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            ready = outbound.ready_below(room), if full => {
                if ready.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

impl Shards {
    fn collected(&self, session: u64, part: copies::shards::message::Collected) {
        let mut state = self.state.lock();
        if let Some(conn) = state.conns.get_mut(&session)
            && let Some(answers) = &conn.answers
        {
            // Who asked may have given up.
            let _ = answers.send(part);
        }
    }
}
