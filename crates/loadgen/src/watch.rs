//! The fan-out: one writer, many watchers, and the time from a put's sending to its arrival.

use crate::drive::Seat;
use crate::error::Error;
use crate::rpc::{Call, Connection, Messages};
use crate::workload::{Values, Workload};
use bytes::Bytes;
use etcd_api::etcdserverpb::{
    PutRequest, PutResponse, WatchCreateRequest, WatchRequest, WatchResponse, watch_request,
};
use h2::SendStream;
use prost::Message;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A pace kept to within this counts as kept: the runtime's timers are no better.
const PUNCTUAL: Duration = Duration::from_millis(2);

/// An open watch of the workload's prefix.
pub(crate) struct Watcher {
    /// Dropped, it would end the watch.
    _requests: SendStream<Bytes>,
    responses: Messages,
}

impl Watcher {
    /// Returns when the server has confirmed the watch.
    pub(crate) async fn open(connection: &Connection) -> Result<Watcher, Error> {
        let prefix = Workload::Watch.prefix();
        let create = WatchCreateRequest {
            range_end: Bytes::from(prefix.replace("watch/", "watch0")),
            key: Bytes::from(prefix),
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
        };
        let (_requests, responses) = connection.stream(Call::Watch, &request).await?;
        let mut watcher = Watcher {
            _requests,
            responses,
        };
        if !watcher.next().await?.created {
            return Err(Error::Wrong(
                "a watch began without its confirmation".into(),
            ));
        }
        Ok(watcher)
    }

    async fn next(&mut self) -> Result<WatchResponse, Error> {
        let wrong = |what: &str| Error::Wrong(format!("a watch {what}"));
        let message = self.responses.next().await?.ok_or_else(|| wrong("ended"))?;
        let response =
            WatchResponse::decode(message).map_err(|_| wrong("sent what does not decode"))?;
        if response.canceled {
            return Err(wrong(&format!("was cancelled: {}", response.cancel_reason)));
        }
        Ok(response)
    }

    /// Takes events until the run ends around it.
    pub(crate) async fn run(mut self, seat: Rc<Seat>) -> Result<(), Error> {
        let mut revision = 0;
        loop {
            for event in self.next().await?.events {
                let Some(kv) = event.kv else { continue };
                if kv.mod_revision <= revision {
                    return Err(Error::Wrong(format!(
                        "a watch got revision {} after {revision}",
                        kv.mod_revision
                    )));
                }
                revision = kv.mod_revision;
                if let Some(head) = kv.value.first_chunk() {
                    let sent = Duration::from_nanos(u64::from_le_bytes(*head));
                    seat.done(seat.control.start + sent);
                }
                seat.control.delivered(seat.load.watchers);
            }
        }
    }
}

/// Puts at the load's rate, or, at rate 0, whenever all watchers have the last put.
pub(crate) async fn write(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    if seat.load.watch_rate == 0 {
        write_when_delivered(seat, connection).await
    } else {
        write_at_a_pace(seat, connection).await
    }
}

async fn write_when_delivered(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    let values = Values::new(seat.load.value_bytes);
    let mut sent = 0;
    while seat.running() {
        put(&seat, &connection, &values, sent, Instant::now()).await?;
        sent += 1;
        seat.control.all_delivered(sent * seat.load.watchers).await;
    }
    Ok(())
}

async fn write_at_a_pace(seat: Rc<Seat>, connection: Connection) -> Result<(), Error> {
    let values = Rc::new(Values::new(seat.load.value_bytes));
    let period = Duration::from_secs(1) / seat.load.watch_rate;
    let places = Rc::new(Semaphore::new(seat.load.in_flight));
    let mut due = Instant::now();
    let mut sent = 0;
    while seat.running() {
        tokio::time::sleep_until(due.into()).await;
        // Late for another reason than the timer: the wait counts as latency.
        let start = if due.elapsed() < PUNCTUAL {
            Instant::now()
        } else {
            due
        };
        // Never closed, so it always gives a place.
        let place = Rc::clone(&places);
        let (seat, connection, values) = (Rc::clone(&seat), connection.clone(), Rc::clone(&values));
        while place.available_permits() == 0 {
            if !seat.running() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::spawn_local(async move {
            let _held = place.acquire().await;
            if let Err(error) = put(&seat, &connection, &values, sent, start).await {
                seat.control.fail(error);
            }
        });
        sent += 1;
        due += period;
    }
    Ok(())
}

async fn put(
    seat: &Seat,
    connection: &Connection,
    values: &Values,
    number: usize,
    sent: Instant,
) -> Result<(), Error> {
    let since_start = sent
        .saturating_duration_since(seat.control.start)
        .as_nanos() as u64;
    let put = PutRequest {
        key: seat.keys[number % seat.keys.len()].clone(),
        value: values.starting_with(since_start),
        ..Default::default()
    };
    let _: PutResponse = connection.unary(Call::Put, &put).await?;
    Ok(())
}
