//! Which member a call goes to.

use crate::endpoint::Endpoint;
use crate::view::{Health, MemberView, View};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It may change something.
    Write,
    /// It reads what the cluster has agreed on.
    Read,
    /// It reads what one member has, which may be of the past.
    SerializableRead,
    /// It watches. What one member has is as good as another's; it may only come later.
    Watch,
}

impl Work {
    /// Whether it may be made twice.
    pub(super) fn reads(self) -> bool {
        self != Work::Write
    }

    /// Whether the leader has to be asked in the end, whoever is asked first.
    pub(super) fn wants_leader(self) -> bool {
        matches!(self, Work::Write | Work::Read)
    }
}

/// Which member calls go to that any member may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The leader: what it has is the newest.
    #[default]
    Leader,
    /// The one with the shortest round trip.
    Nearest,
    /// All in turns.
    Spread,
}

/// Where calls go that need not go to the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Serializable reads.
    pub serializable: Policy,
    /// Watches.
    pub watches: Policy,
}

/// Another member is nearer only if it is so by this part of the round trip: else calls would
/// go to and fro.
const NEARER_PART: u64 = 8;

/// Chooses for one caller after the other.
#[derive(Debug, Default)]
pub(super) struct Picker {
    turn: usize,
    nearest: Option<u64>,
}

impl Picker {
    /// The endpoint that a call goes to. `failed` are those that have failed it; they are asked
    /// again only if there is no other. `None` if nobody can be asked.
    ///
    /// Writes and reads go to the leader; in turns to those that answer while nobody leads, or
    /// while the leader does not take the call: they pass it on.
    pub(super) fn pick(
        &mut self,
        view: &View,
        work: Work,
        routes: Routes,
        failed: &[Endpoint],
    ) -> Option<Endpoint> {
        let policy = match work {
            Work::Write | Work::Read => Policy::Leader,
            Work::SerializableRead => routes.serializable,
            Work::Watch => routes.watches,
        };
        let fresh = |member: &&MemberView| !failed.contains(&member.endpoint);
        let chosen = match policy {
            Policy::Leader => view.leading().filter(fresh),
            Policy::Nearest => self.nearest(view, failed),
            Policy::Spread => None,
        };
        if let Some(member) = chosen {
            return Some(member.endpoint.clone());
        }
        // A learner answers hardly anything.
        let voters = || view.members.iter().filter(|member| !member.learner);
        let healthy: Vec<_> = voters().filter(|m| m.health.is_healthy()).collect();
        let unknown = || voters().filter(|m| m.health == Health::Unknown);
        for group in [
            healthy.iter().copied().filter(fresh).collect(),
            healthy.clone(),
            unknown().filter(fresh).collect::<Vec<_>>(),
        ] {
            if !group.is_empty() {
                self.turn = self.turn.wrapping_add(1);
                return Some(group[self.turn % group.len()].endpoint.clone());
            }
        }
        None
    }

    fn nearest<'a>(&mut self, view: &'a View, failed: &[Endpoint]) -> Option<&'a MemberView> {
        let measured = view.members.iter().filter(|member| {
            !member.learner && member.health.is_healthy() && !failed.contains(&member.endpoint)
        });
        let trip = |member: &MemberView| member.round_trip.smoothed_us;
        let measured: Vec<_> = measured.filter(|member| trip(member).is_some()).collect();
        let best = *measured.iter().min_by_key(|member| trip(member))?;
        let kept = measured
            .iter()
            .find(|member| member.member_id.is_some() && member.member_id == self.nearest);
        let nearer = |kept: &MemberView| {
            let kept_us = trip(kept).unwrap_or(u64::MAX);
            trip(best).unwrap_or(u64::MAX) < kept_us - kept_us / NEARER_PART
        };
        let chosen = match kept {
            Some(kept) if !nearer(kept) => kept,
            _ => best,
        };
        self.nearest = chosen.member_id;
        Some(chosen)
    }
}

/// Whether a call that reads is better made elsewhere by now: its member does not answer any
/// more, or it wants the leader, and that is another one, which has not failed it.
pub(super) fn is_better_elsewhere(
    view: &View,
    work: Work,
    to: &Endpoint,
    failed: &[Endpoint],
) -> bool {
    let unhealthy = view
        .at(to)
        .is_none_or(|member| matches!(member.health, Health::Unhealthy { .. }));
    let other = |endpoint: &Endpoint| endpoint != to && !failed.contains(endpoint);
    let led_by_other = view.leader.as_ref().is_some_and(|l| other(&l.endpoint));
    unhealthy || (work.wants_leader() && led_by_other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Leader, RoundTrip};
    use std::time::Instant;

    /// Members 1 to `n`, healthy, member n with a round trip of 100 * n us.
    fn view(n: u64, leader: Option<u64>) -> View {
        let members = (1..=n).map(|id| MemberView {
            member_id: Some(id),
            health: Health::Healthy,
            round_trip: RoundTrip {
                smoothed_us: Some(100 * id),
                ..RoundTrip::default()
            },
            ..MemberView::new(endpoint(id))
        });
        View {
            leader: leader.map(|member_id| Leader {
                member_id,
                term: 1,
                endpoint: endpoint(member_id),
            }),
            members: members.collect(),
            ..View::default()
        }
    }

    fn endpoint(id: u64) -> Endpoint {
        format!("http://m{id}:1").parse().unwrap()
    }

    fn down() -> Health {
        Health::Unhealthy {
            since: Instant::now(),
            why: String::new(),
        }
    }

    fn picked(
        picker: &mut Picker,
        view: &View,
        work: Work,
        policy: Policy,
        failed: &[Endpoint],
    ) -> Option<u64> {
        let routes = Routes {
            serializable: policy,
            watches: policy,
        };
        let to = picker.pick(view, work, routes, failed)?;
        view.at(&to).unwrap().member_id
    }

    #[test]
    fn writes_and_reads_go_to_the_leader_whatever_the_policy() {
        let mut picker = Picker::default();
        let view = view(3, Some(2));
        for policy in [Policy::Leader, Policy::Nearest, Policy::Spread] {
            for work in [Work::Write, Work::Read] {
                assert_eq!(picked(&mut picker, &view, work, policy, &[]), Some(2));
            }
        }
        let leader = picked(&mut picker, &view, Work::Watch, Policy::Leader, &[]);
        assert_eq!(leader, Some(2));
        let nearest = picked(&mut picker, &view, Work::Watch, Policy::Nearest, &[]);
        assert_eq!(nearest, Some(1));
    }

    fn round(picker: &mut Picker, view: &View, work: Work, failed: &[Endpoint]) -> Vec<u64> {
        let mut seen: Vec<u64> = (0..6)
            .filter_map(|_| picked(picker, view, work, Policy::Spread, failed))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn all_that_answer_are_asked_in_turns_while_nobody_leads() {
        let mut picker = Picker::default();
        let mut view = view(4, None);
        view.members[0].learner = true;
        view.members[2].health = down();
        assert_eq!(round(&mut picker, &view, Work::Write, &[]), [2, 4]);
        // Who has failed is asked again only if there is no other.
        assert_eq!(round(&mut picker, &view, Work::Write, &[endpoint(2)]), [4]);
        let failed = [endpoint(2), endpoint(4)];
        assert_eq!(round(&mut picker, &view, Work::Write, &failed), [2, 4]);
        for member in &mut view.members {
            member.health = down();
        }
        assert!(round(&mut picker, &view, Work::Write, &[]).is_empty());
        view.members[3].health = Health::Unknown;
        assert_eq!(round(&mut picker, &view, Work::Write, &[]), [4]);
    }

    #[test]
    fn a_leader_that_failed_the_call_is_gone_around() {
        let mut picker = Picker::default();
        let view = view(3, Some(2));
        assert_eq!(
            round(&mut picker, &view, Work::Write, &[endpoint(2)]),
            [1, 3]
        );
    }

    #[test]
    fn serializable_reads_are_spread_or_go_to_the_nearest() {
        let mut picker = Picker::default();
        let mut view = view(3, Some(3));
        let work = Work::SerializableRead;
        assert_eq!(round(&mut picker, &view, work, &[]), [1, 2, 3]);
        let mut nearest = |view: &View| picked(&mut picker, view, work, Policy::Nearest, &[]);
        assert_eq!(nearest(&view), Some(1));
        // A little nearer is not enough to change.
        view.members[1].round_trip.smoothed_us = Some(95);
        assert_eq!(nearest(&view), Some(1));
        view.members[1].round_trip.smoothed_us = Some(80);
        assert_eq!(nearest(&view), Some(2));
        view.members[1].health = down();
        assert_eq!(nearest(&view), Some(1));
    }

    #[test]
    fn a_read_is_taken_elsewhere_when_its_member_is_silent_or_leads_no_more() {
        let mut view = view(3, Some(2));
        let at = endpoint(2);
        let better =
            |view: &View, work, failed: &[Endpoint]| is_better_elsewhere(view, work, &at, failed);
        assert!(!better(&view, Work::Read, &[]));
        view.leader = None;
        assert!(!better(&view, Work::Read, &[]));
        view = self::view(3, Some(1));
        assert!(better(&view, Work::Read, &[]));
        assert!(!better(&view, Work::Read, &[endpoint(1)]));
        assert!(!better(&view, Work::SerializableRead, &[]));
        view.members[1].health = down();
        assert!(better(&view, Work::SerializableRead, &[]));
        view.members.remove(1);
        assert!(better(&view, Work::Watch, &[]));
    }
}
