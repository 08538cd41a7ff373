//! Status and events.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::state::{Key, Known, State, What, now_ms};
use super::write::{Failed, Writer};
use crate::api::SeikaStatus;
use crate::status::{Told, status};

/// A status is written so often at the most.
const STATUS_GAP_MS: u64 = 500;
/// Numbers that change all the time are written after so much longer for each node: who reads a
/// status, and the store of it, have work in proportion to its nodes.
const STATUS_GAP_A_NODE_MS: u64 = 5;
/// Numbers are written after so long at the latest.
const STATUS_GAP_MAX_MS: u64 = 5_000;
/// A status that is shown to be another's is written anew after so long: the watch may be behind.
const SHOWN_MS: u64 = 2_000;
/// What was done is told as an event so often at the most.
const EVENT_GAP_MS: u64 = 10_000;
/// An event's note may have 1 kB.
const NOTE_BYTES: usize = 900;

/// What was told of a Seika.
#[derive(Debug, Default)]
pub(super) struct Memory {
    status: Option<Arc<SeikaStatus>>,
    told_ms: u64,
}

impl Memory {
    /// For how long nothing may be told yet.
    pub(super) fn wait_ms(&self) -> Option<u64> {
        self.wait_for(STATUS_GAP_MS)
    }

    fn wait_for(&self, gap_ms: u64) -> Option<u64> {
        let since_ms = now_ms().saturating_sub(self.told_ms);
        (since_ms < gap_ms).then(|| gap_ms - since_ms)
    }
}

/// After how long a status may follow another one that says the same but for numbers.
fn numbers_gap_ms(nodes: usize) -> u64 {
    let for_nodes = (nodes as u64).saturating_mul(STATUS_GAP_A_NODE_MS);
    STATUS_GAP_MS
        .saturating_add(for_nodes)
        .min(STATUS_GAP_MAX_MS)
}

/// Whether more than numbers has changed: what a condition says, or the spec that it is about.
fn is_news(before: Option<&SeikaStatus>, now: &SeikaStatus) -> bool {
    let said = |status: &SeikaStatus| -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter();
        conditions
            .map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone()))
            .collect()
    };
    before.is_none_or(|before| {
        before.observed_generation != now.observed_generation || said(before) != said(now)
    })
}

/// Counted until the next event.
#[derive(Debug, Default)]
struct Done {
    created: usize,
    deleted: usize,
    told_ms: Option<u64>,
}

/// Tells.
pub(super) struct Teller {
    client: Client,
    recorder: Recorder,
    state: Arc<State>,
    done: parking_lot::Mutex<std::collections::HashMap<String, Done>>,
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Teller")
    }
}

impl Teller {
    pub(super) fn new(client: Client, state: &Arc<State>) -> Self {
        let reporter = Reporter {
            controller: "orlop-seika".into(),
            instance: Some(state.settings.identity.clone()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            state: Arc::clone(state),
            done: parking_lot::Mutex::default(),
        }
    }

    /// Pods were created and deleted. Told in sums: an event a pod would be as much load as the
    /// pods.
    pub(super) async fn did(&self, known: &Known, created: usize, deleted: usize) {
        let now = now_ms();
        let note = {
            let mut all = self.done.lock();
            // Of Seikas that are gone nothing more is told.
            all.retain(|uid, done| {
                *uid == known.uid
                    || done
                        .told_ms
                        .is_none_or(|told| now.saturating_sub(told) < 60 * EVENT_GAP_MS)
            });
            let done = all.entry(known.uid.clone()).or_default();
            done.created += created;
            done.deleted += deleted;
            let is_due = done
                .told_ms
                .is_none_or(|told| now.saturating_sub(told) >= EVENT_GAP_MS);
            if !is_due {
                return;
            }
            let note = format!("{} pods created, {} deleted", done.created, done.deleted);
            *done = Done {
                told_ms: Some(now),
                ..Done::default()
            };
            note
        };
        self.publish(known, EventType::Normal, "Scaled", "Scale", note)
            .await;
    }

    async fn publish(
        &self,
        known: &Known,
        type_: EventType,
        reason: &str,
        action: &str,
        mut note: String,
    ) {
        note.truncate(note.floor_char_boundary(NOTE_BYTES));
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(note),
            action: action.into(),
            secondary: None,
        };
        let published = self.recorder.publish(&event, &known.reference()).await;
        self.state.counters.count(What::Event, published.is_ok());
        if let Err(error) = published {
            tracing::debug!(%error, "an event was not published");
        }
    }

    /// Writes the status, if it is another than was written, and tells what needs somebody as an
    /// event. In how many ms to come again, if it is too early.
    pub(super) async fn tell(
        &self,
        writer: &Writer,
        key: &Key,
        known: &Known,
        told: &Told<'_>,
        memory: &mut Memory,
    ) -> Result<Option<u64>, Failed> {
        let before = match &memory.status {
            Some(status) => Some(status.as_ref()),
            None => known.seika.status.as_ref(),
        };
        let conditions = before.map_or(&[][..], |status| &status.conditions);
        // Whole seconds, as the apiserver gives times back.
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let new = status(told, conditions, &Time(now));
        let is_shown = known.seika.status.as_ref() == Some(&new);
        if is_shown && memory.status.is_none() {
            let new = Arc::new(new);
            self.state.told(key, Arc::clone(&new));
            memory.status = Some(new);
            return Ok(None);
        }
        let is_told = before == Some(&new);
        if is_told && is_shown {
            return Ok(None);
        }
        let gap_ms = match (is_told, is_news(before, &new)) {
            (true, _) => SHOWN_MS,
            (false, true) => STATUS_GAP_MS,
            (false, false) => numbers_gap_ms(told.nodes.len()),
        };
        if let Some(wait_ms) = memory.wait_for(gap_ms) {
            return Ok(Some(wait_ms));
        }
        writer.status(&self.client, known, &new).await?;
        let warnings = news(before, &new);
        let new = Arc::new(new);
        self.state.told(key, Arc::clone(&new));
        *memory = Memory {
            status: Some(new),
            told_ms: now_ms(),
        };
        for (reason, note) in warnings {
            self.publish(known, EventType::Warning, &reason, "Sync", note)
                .await;
        }
        Ok(None)
    }
}

/// Conditions that became false, or false for another reason.
fn news(before: Option<&SeikaStatus>, now: &SeikaStatus) -> Vec<(String, String)> {
    let was = |type_: &str| {
        let conditions = before.map_or(&[][..], |status| &status.conditions);
        conditions.iter().find(|c| c.type_ == type_)
    };
    now.conditions
        .iter()
        .filter(|c| c.type_ != "Ready" && c.status == "False")
        .filter(|c| was(&c.type_).is_none_or(|b| b.status != "False" || b.reason != c.reason))
        .map(|c| (c.reason.clone(), c.message.clone()))
        .collect()
}
