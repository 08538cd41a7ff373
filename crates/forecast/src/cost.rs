//! What a commit would cost a client, for each member that could lead.
//!
//! Commit cost of member j = the clients' way to j and back + the longer of j's own sync and the
//! quorum-th shortest of (the way from j to a peer and back + that peer's sync).
//!
//! All of it is measured from outside: the clients' way by serializable reads, the leader's way
//! to its quorum by what a linearizable read takes longer, a follower's way to the leader by what
//! it takes longer still. The way between two followers is nobody's to measure at once: members
//! measure it every 30 s. To that is added what each of both was found to be slower than usual
//! towards the leader; what all of the leader's ways have in common is the leader's own fault,
//! and no follower's.

use crate::history::{History, Signal};
use std::collections::BTreeMap;

/// What a commit would cost with a member as the leader.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The member.
    pub member: u64,
    /// All of it, in microseconds; `None` where it cannot be told.
    pub total_us: Option<f64>,
    /// The clients' way to it and back.
    pub client_us: Option<f64>,
    /// Its own sync.
    pub sync_us: Option<f64>,
    /// Until a quorum of its peers has synced.
    pub quorum_us: Option<f64>,
}

/// What one client says of its way to each member.
#[derive(Clone, Debug, PartialEq)]
pub struct Ways {
    /// How much it counts: calls, connections.
    pub weight: f64,
    /// By member, in microseconds.
    pub us: BTreeMap<u64, f64>,
}

/// The commit cost of every voter. `others` are the ways of other clients, `own_weight` is what
/// our own count beside them.
#[must_use]
pub fn costs(
    history: &History,
    voters: &[u64],
    leader: Option<u64>,
    others: &[Ways],
    own_weight: f64,
) -> Vec<Cost> {
    let signal = |member: u64, signal: Signal| history.of(member)?.signal(signal);
    let ways = leader.and_then(|leader| Between::around(history, voters, leader));
    // Each voter but the leader itself.
    let needed = voters.len() / 2;
    let one = |member: u64| {
        let own = signal(member, Signal::ClientUs);
        let client_us = weighed(member, own, others, own_weight);
        let sync_us = signal(member, Signal::SyncUs);
        let quorum_us = ways.as_ref().and_then(|ways| {
            let mut peers: Vec<f64> = voters
                .iter()
                .filter(|peer| **peer != member)
                .filter_map(|peer| {
                    Some(ways.between(member, *peer)? + signal(*peer, Signal::SyncUs)?)
                })
                .collect();
            peers.sort_by(f64::total_cmp);
            match needed {
                0 => Some(0.0),
                nth => peers.get(nth - 1).copied(),
            }
        });
        let total_us = match (client_us, sync_us, quorum_us) {
            (Some(client), Some(sync), Some(quorum)) => Some(client + sync.max(quorum)),
            _ => None,
        };
        Cost {
            member,
            total_us,
            client_us,
            sync_us,
            quorum_us,
        }
    };
    voters.iter().map(|member| one(*member)).collect()
}

fn weighed(member: u64, own: Option<f64>, others: &[Ways], own_weight: f64) -> Option<f64> {
    let others = others
        .iter()
        .filter_map(|ways| Some((ways.weight, *ways.us.get(&member)?)));
    let all = own.map(|us| (own_weight, us)).into_iter().chain(others);
    let (weights, sum) = all
        .filter(|(weight, us)| *weight > 0.0 && us.is_finite())
        .fold((0.0, 0.0), |(weights, sum), (weight, us)| {
            (weights + weight, sum + weight * us)
        });
    (weights > 0.0).then(|| sum / weights)
}

/// Ways between members and back, as they are now.
struct Between<'a> {
    history: &'a History,
    leader: u64,
    /// From the leader to each other voter.
    from_leader: BTreeMap<u64, f64>,
    /// How much slower than usual each other voter is, through no fault of the leader.
    slower: BTreeMap<u64, f64>,
}

impl<'a> Between<'a> {
    fn around(history: &'a History, voters: &[u64], leader: u64) -> Option<Self> {
        let to_quorum = history.of(leader)?.signal(Signal::QuorumUs)?;
        let others = voters.iter().copied().filter(|member| *member != leader);
        let from_leader: BTreeMap<u64, f64> = others
            .filter_map(|member| {
                // A follower asks the leader, which asks its quorum.
                let whole = history.of(member)?.signal(Signal::QuorumUs)?;
                Some((member, (whole - to_quorum).max(0.0)))
            })
            .collect();
        let more = |member: u64, us: f64| Some((us - history.way_us(leader, member)?).max(0.0));
        let excess: BTreeMap<u64, f64> = from_leader
            .iter()
            .filter_map(|(member, us)| Some((*member, more(*member, *us)?)))
            .collect();
        // One way alone does not tell which end of it is slow: then it is the follower's.
        let common = match excess.len() {
            0 | 1 => 0.0,
            _ => excess.values().copied().fold(f64::INFINITY, f64::min),
        };
        let slower = excess.into_iter().map(|(member, us)| (member, us - common));
        Some(Between {
            history,
            leader,
            slower: slower.collect(),
            from_leader,
        })
    }

    fn between(&self, a: u64, b: u64) -> Option<f64> {
        if a == self.leader || b == self.leader {
            let other = if a == self.leader { b } else { a };
            return self.from_leader.get(&other).copied();
        }
        let by_leader = self.from_leader.get(&a)? + self.from_leader.get(&b)?;
        match self.history.way_us(a, b) {
            Some(usual) => {
                let slower = |member| self.slower.get(&member).copied().unwrap_or_default();
                Some(usual + slower(a) + slower(b))
            }
            // Nobody has measured it yet; it is no longer than by the leader.
            None => Some(by_leader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, Sample};

    /// Three members whose interfaces hold what leaves them for `delay_ms`, and whose syncs take
    /// `sync_ms`; `leader` leads. Quiet ways are known to be 1 ms if `measured`.
    fn seen(leader: u64, delay_ms: [f64; 3], sync_ms: [f64; 3], measured: bool) -> History {
        let mut history = History::default();
        let delay = |member: u64| delay_ms[member as usize - 1] * 1e3;
        let way = |a: u64, b: u64| 1_000.0 + delay(a) + delay(b);
        for turn in 1..=4u32 {
            let samples: Vec<Sample> = (1..=3u64)
                .map(|member| {
                    let mut sample = Sample::new(u64::from(turn) * 1_000, member, String::new());
                    let client = 500.0 + delay(member);
                    let others = (1..=3).filter(|other| *other != leader);
                    let quorum = others
                        .map(|other| way(leader, other))
                        .fold(f64::INFINITY, f64::min);
                    let to_leader = if member == leader {
                        0.0
                    } else {
                        way(member, leader)
                    };
                    sample.set(Column::SerializableMinUs, Some(client));
                    sample.set(Column::LinearizableMinUs, Some(client + to_leader + quorum));
                    let syncs = f64::from(turn) * 100.0;
                    sample.set(Column::Fsyncs, Some(syncs));
                    sample.set(
                        Column::FsyncSeconds,
                        Some(syncs * sync_ms[member as usize - 1] / 1e3),
                    );
                    if measured && turn == 1 {
                        let peers = (1..=3).filter(|peer| *peer != member);
                        sample.peer_round_trips = peers.map(|peer| (peer, 1_000.0)).collect();
                    }
                    sample
                })
                .collect();
            history.add(&samples);
        }
        history
    }

    fn totals(history: &History, leader: u64) -> Vec<f64> {
        costs(history, &[1, 2, 3], Some(leader), &[], 1.0)
            .iter()
            .map(|cost| cost.total_us.unwrap().round())
            .collect()
    }

    #[test]
    fn a_leader_that_is_far_costs_its_delay_twice_and_others_do_not() {
        // 500 + 45,000 to it, 46,000 to its quorum, 2,000 for a peer's sync.
        let history = seen(1, [45.0, 0.0, 0.0], [2.0; 3], true);
        assert_eq!(totals(&history, 1), [93_500.0, 3_500.0, 3_500.0]);
    }

    #[test]
    fn a_follower_that_is_far_is_no_leader_and_does_not_make_others_worse() {
        let history = seen(1, [0.0, 45.0, 0.0], [2.0; 3], true);
        assert_eq!(totals(&history, 1), [3_500.0, 93_500.0, 3_500.0]);
        let history = seen(1, [0.0, 45.0, 45.0], [2.0; 3], true);
        // All of the leader's ways are slow: it is taken for its fault, and its clients still
        // have the shortest way to it. What others would cost is not less than that.
        let [own, two, three] = totals(&history, 1)[..] else {
            panic!()
        };
        assert_eq!(own, 500.0 + 46_000.0 + 2_000.0);
        assert!(two >= own && three >= own, "{own} {two} {three}");
    }

    #[test]
    fn without_a_measure_of_the_followers_way_the_leader_stands_between_them() {
        let history = seen(1, [45.0, 0.0, 0.0], [2.0; 3], false);
        // The same as through the leader: 500 + 46,000 + 2,000, still less than the leader's own.
        assert_eq!(totals(&history, 1), [93_500.0, 48_500.0, 48_500.0]);
    }

    #[test]
    fn a_slow_disk_costs_where_it_leads_only() {
        let history = seen(2, [0.0; 3], [2.0, 50.0, 3.0], true);
        assert_eq!(totals(&history, 2), [4_500.0, 50_500.0, 3_500.0]);
    }

    #[test]
    fn clients_are_weighed() {
        let history = seen(1, [0.0; 3], [2.0; 3], true);
        let far = Ways {
            weight: 3.0,
            us: [(1, 10_500.0), (2, 500.0)].into_iter().collect(),
        };
        let costs = costs(&history, &[1, 2, 3], Some(1), &[far], 1.0);
        let client: Vec<_> = costs.iter().map(|cost| cost.client_us).collect();
        assert_eq!(client, [Some(8_000.0), Some(500.0), Some(500.0)]);
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let history = seen(1, [0.0; 3], [2.0; 3], true);
        assert!(
            costs(&history, &[1, 2, 3], None, &[], 1.0)
                .iter()
                .all(|c| c.total_us.is_none())
        );
        // Members 4 and 5 have never answered: the leader's quorum of two peers is known, nothing else.
        let costs = costs(&history, &[1, 2, 3, 4, 5], Some(1), &[], 1.0);
        assert!(costs[0].total_us.is_some() && costs[3].total_us.is_none());
    }
}
