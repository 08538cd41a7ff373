//! Reading history for many watchers at once: which of them want which events.

use super::encode::Batch;
use super::watchers::{Place, WatcherId, Watchers};
use engine::history::Event;
use std::sync::Arc;

/// How many pairs of watcher and event a batch may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matches {
    /// With so many it takes no further revision.
    pub(super) many: usize,
    /// Within one revision no more than about so many are noted.
    pub(super) most: usize,
}

/// How much a cursor, or a turn, may still do. A step is an event looked at, an answer made, a
/// watcher moved: some hundred nanoseconds, and 4 KiB of an answer are one, too.
#[derive(Debug)]
pub(super) struct Steps {
    limit: usize,
    taken: usize,
}

impl Steps {
    pub(super) fn new(limit: usize) -> Self {
        Steps { limit, taken: 0 }
    }

    pub(super) fn take(&mut self, steps: usize) {
        self.taken += steps;
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn any(&self) -> bool {
        self.taken < self.limit
    }
}

/// A place in history that watchers share.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Its watchers have been sent what is below, but for what `state` has yet to send.
    pub(super) next_revision: i64,
    pub(super) state: State,
}

/// What a cursor does next.
#[derive(Debug)]
pub(super) enum State {
    /// It reads a batch of events.
    Reading,
    /// It sends a batch.
    Sending(Sending),
    /// History was compacted before it was read here: each of its watchers is dealt with by
    /// itself.
    Dissolving,
}

impl Cursor {
    pub(super) fn new(next_revision: i64) -> Self {
        Cursor {
            next_revision,
            state: State::Reading,
        }
    }

    /// Whether nothing is on its way to its watchers.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading)
    }

    pub(super) fn is_dissolving(&self) -> bool {
        matches!(self.state, State::Dissolving)
    }
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) batch: Batch,
    /// The revision that it reaches.
    pub(super) reached: i64,
    recipients: Recipients,
}

#[derive(Debug)]
enum Recipients {
    /// With the events that each of them wants.
    Known(std::vec::IntoIter<(WatcherId, Vec<u32>)>),
    /// Too many pairs to note: what each of them wants is found when it is its turn.
    Each {
        watchers: std::vec::IntoIter<WatcherId>,
        /// The events, by key.
        by_key: Vec<u32>,
    },
}

impl Sending {
    /// Finds who wants the events. Takes the first revisions among them, at least one, as many
    /// as can be dealt with at a time.
    pub(super) fn find(
        watchers: &mut Watchers,
        cursor: Place,
        mut events: Vec<Arc<Event>>,
        limit: Matches,
        steps: &mut Steps,
    ) -> Self {
        let revision = |i: usize| events[i].revision.main;
        let mut known: Vec<(WatcherId, Vec<u32>)> = Vec::new();
        let mut found = Vec::new();
        // Pairs, and where the revision at hand begins.
        let (mut pairs, mut begin) = (0, 0);
        let mut kept = events.len();
        let mut overflow = false;
        for (i, e) in events.iter().enumerate() {
            if i > 0 && revision(i) != revision(i - 1) {
                if pairs >= limit.many {
                    kept = i;
                    break;
                }
                begin = i;
            }
            found.clear();
            watchers.matching(cursor, &e.key, |id| found.push(id));
            steps.take(1 + found.len());
            for &id in &found {
                let Some((watcher, seat)) = watchers.seat(id) else {
                    continue;
                };
                if !watcher.wants(e) {
                    continue;
                }
                pairs += 1;
                match known.get_mut(*seat as usize) {
                    Some((who, indices)) if *who == id => indices.push(i as u32),
                    _ => {
                        *seat = known.len() as u32;
                        known.push((id, vec![i as u32]));
                    }
                }
            }
            if pairs > limit.most {
                overflow = true;
                break;
            }
        }
        let recipients = if !overflow {
            Recipients::Known(known.into_iter())
        } else if begin > 0 {
            // The revision that is too much is left for the next time.
            kept = begin;
            for (_, indices) in &mut known {
                let of_before = indices.partition_point(|&i| (i as usize) < begin);
                indices.truncate(of_before);
            }
            known.retain(|(_, indices)| !indices.is_empty());
            Recipients::Known(known.into_iter())
        } else {
            let first = revision(0);
            kept = events.partition_point(|e| e.revision.main == first);
            let mut by_key: Vec<u32> = (0..kept as u32).collect();
            by_key.sort_by(|&a, &b| events[a as usize].key.cmp(&events[b as usize].key));
            let watchers = watchers.all_of(cursor);
            steps.take(kept + watchers.len() / 16);
            Recipients::Each {
                watchers: watchers.into_iter(),
                by_key,
            }
        };
        events.truncate(kept);
        let reached = events.last().map_or(0, |e| e.revision.main);
        Sending {
            batch: Batch::new(events),
            reached,
            recipients,
        }
    }

    /// The next watcher, with the events that it wants: perhaps none.
    pub(super) fn next(
        &mut self,
        watchers: &Watchers,
        steps: &mut Steps,
    ) -> Option<(WatcherId, Vec<u32>)> {
        steps.take(1);
        match &mut self.recipients {
            Recipients::Known(known) => known.next(),
            Recipients::Each {
                watchers: ids,
                by_key,
            } => {
                let id = ids.next()?;
                let Some(w) = watchers.get(id) else {
                    return Some((id, Vec::new()));
                };
                let events = self.batch.events();
                let key = |i: &u32| events[*i as usize].key.as_ref();
                let from = by_key.partition_point(|i| key(i) < w.range.key.as_ref());
                let of_range = by_key[from..].iter();
                let of_range = of_range.take_while(|i| w.range.contains(key(i)));
                let mut wanted: Vec<u32> = of_range
                    .copied()
                    .filter(|&i| w.wants(&events[i as usize]))
                    .collect();
                wanted.sort_unstable();
                steps.take(wanted.len());
                Some((id, wanted))
            }
        }
    }
}
