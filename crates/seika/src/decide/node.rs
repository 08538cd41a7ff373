//! One node's part of the decision.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Create, Delete, Input, NodeFinding, Obstacle, PodView, backoff_ms};
use crate::facts::Phase;
use crate::reason::Reason;

/// A scheduler's message has the whole cluster in it; so much of it is kept.
const MESSAGE_BYTES: usize = 256;

/// What is to be done on a node.
pub(super) struct OneNode {
    pub(super) creates: Vec<Create>,
    pub(super) deletes: Vec<Delete>,
    pub(super) finding: NodeFinding,
    pub(super) again_in_ms: Option<u64>,
}

/// The node's pods, by what they count as.
struct Sorted<'a, 'b> {
    /// Live, with the one first that is missed least.
    live: Vec<&'b PodView<'a>>,
    /// Told to end, and still there.
    ending: usize,
    /// Ended, and waiting until their place is given to another.
    holding: Vec<&'b PodView<'a>>,
    /// Ended, and their time is over.
    over: Vec<&'b PodView<'a>>,
}

/// How a pod that has ended counts among those that failed in a row.
fn failures(view: &PodView<'_>) -> u32 {
    match view.pod.phase {
        Phase::Ended { ran_long: true } => 1,
        _ => view.pod.failures.saturating_add(1),
    }
}

/// Who is missed least comes first: as a ReplicaSet has it, and then the highest number, so that
/// numbers stay low.
fn missed(view: &PodView<'_>) -> (u8, bool, Reverse<Option<u32>>) {
    let life = match &view.pod.phase {
        Phase::Pending {
            unschedulable: Some(_),
        } => 0,
        Phase::Pending { .. } => 1,
        Phase::Starting => 2,
        Phase::Ready | Phase::Ended { .. } => 3,
    };
    (life, view.is_updated, Reverse(view.slot))
}

fn sort<'a, 'b>(views: &'b [PodView<'a>]) -> Sorted<'a, 'b> {
    let mut sorted = Sorted {
        live: Vec::new(),
        ending: 0,
        holding: Vec::new(),
        over: Vec::new(),
    };
    for view in views {
        match (view.pod.is_ending, view.pod.has_ended()) {
            (false, false) => sorted.live.push(view),
            // A pod that has ended runs nothing: it takes no room.
            (true, ended) => sorted.ending += usize::from(!ended),
            (false, true) => {
                // A changed template is tried at once.
                let waits = view.is_updated && view.ended_for_ms < backoff_ms(failures(view));
                match waits {
                    true => sorted.holding.push(view),
                    false => sorted.over.push(view),
                }
            }
        }
    }
    sorted.live.sort_by_key(|view| missed(view));
    sorted
}

fn delete(view: &PodView<'_>) -> Delete {
    Delete {
        node: view.pod.node.clone(),
        name: view.pod.name.clone(),
        uid: view.pod.uid.clone(),
    }
}

pub(super) fn decide(node: &str, input: &Input<'_>) -> OneNode {
    let wanted = input.wanted.get(node).copied().unwrap_or(0);
    let views = input.pods.get(node).map_or(&[][..], Vec::as_slice);
    let obstacle = input.obstacles.get(node);
    let room = input.rolling.room(wanted);
    let want = wanted as usize;
    let mut pods = sort(views);

    let live = pods.live.len();
    let is_updated = |view: &&PodView<'_>| view.is_updated;
    let updated = pods.live.iter().copied().filter(is_updated).count();
    let ready = pods.live.iter().filter(|v| v.pod.is_ready()).count();
    let waits_for_room = pods
        .live
        .iter()
        .find_map(|v| v.pod.unschedulable().filter(|_| v.is_updated));
    // Where nothing can be created nothing is replaced.
    let rolls = updated < live && obstacle.is_none() && want > 0;
    let surge = if rolls { room.surge as usize } else { 0 };

    // What is too much goes, whoever is missed least.
    let excess = live.saturating_sub(want + surge);
    let mut deletes: Vec<Delete> = pods.live.drain(..excess).map(delete).collect();
    if rolls {
        let ready_left = pods.live.iter().filter(|v| v.pod.is_ready()).count();
        let least = want.saturating_sub(room.unavailable as usize);
        let mut spare = ready_left.saturating_sub(least);
        for view in pods.live.iter().filter(|v| !v.is_updated) {
            // One that serves nobody can go at once.
            if view.pod.is_ready() {
                if spare == 0 {
                    continue;
                }
                spare -= 1;
            }
            deletes.push(delete(view));
        }
    }

    // An ended pod keeps its place until another one is there in its stead: that one counts on from
    // it. So there are never more than wanted, and the one that failed most often stays.
    let places = want.saturating_sub(updated);
    let stays = |views: &mut Vec<&PodView<'_>>, n: usize, deletes: &mut Vec<Delete>| {
        views.sort_by_key(|view| Reverse(failures(view)));
        deletes.extend(views.drain(n.min(views.len())..).map(delete));
    };
    stays(&mut pods.holding, places, &mut deletes);
    let holding = pods.holding.len();
    stays(&mut pods.over, places - holding, &mut deletes);
    let failed_before = pods.over.iter().map(|view| failures(view)).max();
    let next = pods.holding.iter().map(|view| {
        let all_ms = backoff_ms(failures(view));
        (all_ms.saturating_sub(view.ended_for_ms), failures(view))
    });
    let next = next.min();

    let create = match obstacle.is_some() || waits_for_room.is_some() {
        true => 0,
        false => {
            let missing = places - holding;
            let by_live = (want + surge).saturating_sub(live);
            // Those that end have room of their node until they are gone.
            let by_all = (want + room.surge as usize).saturating_sub(live + pods.ending);
            missing.min(by_live).min(by_all)
        }
    };
    let creates = free_slots(node, input, views)
        .take(create)
        .map(|slot| Create {
            node: node.to_owned(),
            slot,
            failures: failed_before.unwrap_or(0),
        })
        .collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let finding = NodeFinding {
        node: node.to_owned(),
        wanted,
        current: count(live),
        ready: count(ready),
        updated: count(updated),
        trouble: trouble(&Seen {
            want,
            live,
            ready,
            updated,
            ending: pods.ending,
            holding,
            failures: next.map_or(0, |(_, failures)| failures),
            waits_for_room,
            obstacle,
        }),
    };
    OneNode {
        creates,
        deletes,
        finding,
        again_in_ms: next.map(|(wait_ms, _)| wait_ms),
    }
}

/// Numbers that no pod of the node has, from 0.
fn free_slots(node: &str, input: &Input<'_>, views: &[PodView<'_>]) -> impl Iterator<Item = u32> {
    let mut taken: BTreeSet<u32> = views.iter().filter_map(|view| view.slot).collect();
    let of_node = (node.to_owned(), 0)..=(node.to_owned(), u32::MAX);
    taken.extend(input.avoid.range(of_node).map(|(_, slot)| *slot));
    (0..).filter(move |slot| !taken.contains(slot))
}

struct Seen<'a> {
    want: usize,
    live: usize,
    ready: usize,
    updated: usize,
    ending: usize,
    holding: usize,
    /// How often in a row those have failed whose turn is next.
    failures: u32,
    waits_for_room: Option<&'a str>,
    obstacle: Option<&'a Obstacle>,
}

/// Why the node's pods are not as wanted; what needs somebody comes first.
fn trouble(seen: &Seen<'_>) -> Option<Obstacle> {
    let say = |reason, message| Some(Obstacle { reason, message });
    let to_create = seen.want.saturating_sub(seen.updated);
    if seen.live > seen.want && (seen.updated == seen.live || seen.want == 0) {
        let more = seen.live - seen.want;
        return say(
            Reason::ScalingDown,
            format!("{more} more than wanted are being deleted"),
        );
    }
    if to_create > 0
        && let Some(obstacle) = seen.obstacle
    {
        return Some(obstacle.clone());
    }
    if seen.want > 0
        && let Some(words) = seen.waits_for_room
    {
        return say(Reason::Unschedulable, shortened(words));
    }
    if to_create > 0 && seen.holding > 0 {
        let wait_s = backoff_ms(seen.failures) / 1000;
        return say(
            Reason::PodsFailing,
            format!(
                "{} failed, {} times in a row; the next try waits {wait_s} s",
                seen.holding, seen.failures
            ),
        );
    }
    if seen.updated < seen.live {
        let old = seen.live - seen.updated;
        return say(
            Reason::Updating,
            format!("{old} are of an earlier template"),
        );
    }
    if seen.live < seen.want && seen.ending > 0 {
        return say(
            Reason::PodsEnding,
            format!("{} that end still take room", seen.ending),
        );
    }
    if seen.ready < seen.want {
        let missing = seen.want - seen.ready;
        return say(Reason::Starting, format!("{missing} are not ready yet"));
    }
    None
}

/// The beginning of `words`, of some length.
fn shortened(words: &str) -> String {
    if words.len() <= MESSAGE_BYTES {
        return words.to_owned();
    }
    let end = words.floor_char_boundary(MESSAGE_BYTES);
    format!("{}...", &words[..end])
}
