//! Whether the lead should move: a state machine without input, output and clock.
//!
//! It is told what was observed and answers with a verdict. What it never does: move within a
//! cool-down, with a member down or lagging, or while members change; on what it does not know;
//! or again and again when moves do not help.

use crate::schema::State;

/// When it is worth while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// A move must gain so many microseconds of commit cost, and
    pub margin_us: f64,
    /// so large a part of what it is (from 0 to 1),
    pub margin_part: f64,
    /// in so many observations, one after the other.
    pub samples: u32,
    /// No move within this of the last change of the leader, whoever made it.
    pub cool_down_ms: u64,
    /// How long after a move its worth is looked at.
    pub settle_ms: u64,
    /// After so many moves in a row that did not help it gives up.
    pub futile_moves: u32,
    /// No move within this of a change of the members.
    pub members_quiet_ms: u64,
}

impl Default for Rule {
    fn default() -> Self {
        Rule {
            margin_us: 5_000.0,
            margin_part: 0.3,
            samples: 3,
            cool_down_ms: 120_000,
            settle_ms: 15_000,
            futile_moves: 3,
            members_quiet_ms: 60_000,
        }
    }
}

/// A member, as it was observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its id.
    pub member: u64,
    /// It has a vote.
    pub voter: bool,
    /// It answers.
    pub healthy: bool,
    /// It is behind what the leader had committed some time before.
    pub lagging: bool,
    /// What a commit would cost with it, in microseconds.
    pub cost_us: Option<f64>,
    /// The state that it is in; `None` if that is not known.
    pub state: Option<State>,
}

/// What else keeps it from moving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// It may act at all; else it only says what it would do.
    pub acts: bool,
    /// It is the one actor of the cluster.
    pub is_actor: bool,
    /// Somebody has moved the lead, or it has moved by itself, of late.
    pub cools_down: bool,
    /// An operator has stopped all actors.
    pub stopped: bool,
    /// An actor has given up.
    pub given_up: bool,
}

/// What was observed at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// When, in milliseconds of any clock that only goes forward.
    pub at_ms: u64,
    /// Who leads and answers.
    pub leader: Option<u64>,
    /// All members.
    pub members: Vec<Seen>,
    /// What else counts.
    pub gates: Gates,
}

/// Why the lead stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody is known to lead.
    NoLeader,
    /// This member does not answer.
    Down(u64),
    /// This member is behind.
    Lagging(u64),
    /// Members were added, removed or promoted of late, or there is a learner.
    MembersChange,
    /// What the leader costs is not known.
    CostUnknown,
    /// Nobody else is better by the margin.
    BestAlready,
    /// The leader is in no state that is known: its measures are unlike all that was learned from.
    StateUnknown,
    /// The leader is overloaded, and load follows the lead.
    LoadFollows,
    /// Another was better in fewer observations than are asked for.
    NotLongEnough,
    /// A move is being made, or its worth is not known yet.
    Settling,
    /// The lead has moved of late.
    CoolDown,
    /// It only looks on.
    Shadow,
    /// Another process is the actor.
    NotActor,
    /// An operator has stopped it.
    Stopped,
    /// Moves did not help.
    GivenUp,
}

impl Why {
    /// Its name in metrics and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Why::NoLeader => "no_leader",
            Why::Down(_) => "member_down",
            Why::Lagging(_) => "member_lagging",
            Why::MembersChange => "members_change",
            Why::CostUnknown => "cost_unknown",
            Why::BestAlready => "best_already",
            Why::StateUnknown => "state_unknown",
            Why::LoadFollows => "load_follows",
            Why::NotLongEnough => "not_long_enough",
            Why::Settling => "settling",
            Why::CoolDown => "cool_down",
            Why::Shadow => "shadow",
            Why::NotActor => "not_actor",
            Why::Stopped => "stopped",
            Why::GivenUp => "given_up",
        }
    }

    /// For an operator.
    #[must_use]
    pub fn text(self) -> String {
        let member =
            |id: u64, what: &str| format!("member {id:x} {what}: a move waits until all are well");
        match self {
            Why::NoLeader => "nobody is known to lead".into(),
            Why::Down(id) => member(id, "does not answer"),
            Why::Lagging(id) => member(id, "is behind the leader"),
            Why::MembersChange => "members change, or have changed of late".into(),
            Why::CostUnknown => "what a commit costs is not known yet".into(),
            Why::BestAlready => "no other member is better by the margin".into(),
            Why::StateUnknown => "the leader's measures are unlike all that the model knows".into(),
            Why::LoadFollows => "the leader is overloaded, and load would follow the lead".into(),
            Why::NotLongEnough => "another member has not been better for long enough".into(),
            Why::Settling => "a move is under way, or its worth is not known yet".into(),
            Why::CoolDown => "the lead has moved of late".into(),
            Why::Shadow => "it only looks on (no --act)".into(),
            Why::NotActor => "another process acts for this cluster".into(),
            Why::Stopped => "it is stopped (orlop forecast resume ends that)".into(),
            Why::GivenUp => {
                "moves did not help, and it has given up (orlop forecast resume ends that)".into()
            }
        }
    }
}

/// A move, made or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// Who leads.
    pub from: u64,
    /// Who should.
    pub to: u64,
    /// What a commit costs now, in microseconds.
    pub cost_us: f64,
    /// What it would cost less.
    pub gain_us: f64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Hold(Why),
    /// Nothing, though a move would be right but for this.
    Would(Move, Why),
    /// The lead is to be moved; [`Decider::ended`] must be told what came of it.
    Move(Move),
    /// So many moves did not help: an operator must be told, and no more are made.
    GiveUp(u32),
}

/// What came of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was made.
    Made,
    /// It was not begun: somebody else was first.
    NotBegun,
    /// It failed, or nobody knows.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Watching,
    /// The move is being made.
    Moving(Move),
    /// It was made, or failed; looked at when this is reached.
    Settling(Move, u64),
}

/// Who the members are.
#[derive(Clone, Debug)]
struct Members {
    /// Each with whether it votes, in order.
    who: Vec<(u64, bool)>,
    /// When that changed; nothing until it did.
    changed_ms: Option<u64>,
}

/// Decides, for one process.
#[derive(Clone, Debug)]
pub struct Decider {
    rule: Rule,
    doing: Doing,
    /// Leader, better member, and in how many observations it was.
    streak: Option<(u64, u64, u32)>,
    /// Who the members were last.
    members: Option<Members>,
    /// Who led last, and since when. A process that has just started does not know for how long.
    led: Option<(u64, Option<u64>)>,
    futile: u32,
}

impl Decider {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Decider {
            rule,
            doing: Doing::Watching,
            streak: None,
            members: None,
            led: None,
            futile: 0,
        }
    }

    /// Moves in a row that did not help.
    #[must_use]
    pub fn futile(&self) -> u32 {
        self.futile
    }

    /// Says what came of the move that the last verdict asked for.
    pub fn ended(&mut self, at_ms: u64, how: Ended) {
        if let Doing::Moving(what) = self.doing {
            self.doing = match how {
                Ended::NotBegun => Doing::Watching,
                Ended::Made | Ended::Failed => Doing::Settling(what, at_ms + self.rule.settle_ms),
            };
        }
    }

    /// An operator says that all may begin anew.
    pub fn resume(&mut self) {
        (self.futile, self.doing, self.streak) = (0, Doing::Watching, None);
    }

    /// Decides.
    pub fn step(&mut self, seen: &Observation) -> Verdict {
        self.note(seen);
        if let Some(verdict) = self.review(seen) {
            return verdict;
        }
        let wanted = match self.wanted(seen) {
            Ok(wanted) => wanted,
            Err(why) => {
                self.streak = None;
                return Verdict::Hold(why);
            }
        };
        let streak = match self.streak {
            Some((from, to, n)) if (from, to) == (wanted.from, wanted.to) => n.saturating_add(1),
            _ => 1,
        };
        self.streak = Some((wanted.from, wanted.to, streak));
        if streak < self.rule.samples {
            return Verdict::Hold(Why::NotLongEnough);
        }
        let gates = seen.gates;
        let cooling = self
            .led
            .and_then(|(_, since)| since)
            .is_some_and(|since| seen.at_ms.saturating_sub(since) < self.rule.cool_down_ms);
        let why = match self.doing {
            Doing::Moving(_) | Doing::Settling(..) => Some(Why::Settling),
            Doing::Watching if gates.stopped => Some(Why::Stopped),
            Doing::Watching if gates.given_up => Some(Why::GivenUp),
            Doing::Watching if gates.cools_down || cooling => Some(Why::CoolDown),
            Doing::Watching if !gates.acts => Some(Why::Shadow),
            Doing::Watching if !gates.is_actor => Some(Why::NotActor),
            Doing::Watching => None,
        };
        match why {
            Some(why) => Verdict::Would(wanted, why),
            None => {
                self.doing = Doing::Moving(wanted);
                self.streak = None;
                Verdict::Move(wanted)
            }
        }
    }

    /// Notes who the members are, and who leads.
    fn note(&mut self, seen: &Observation) {
        let mut now: Vec<_> = seen.members.iter().map(|m| (m.member, m.voter)).collect();
        now.sort_unstable();
        match &self.members {
            Some(known) if known.who == now => {}
            // The first list is no change: nothing is known before it.
            known => {
                let changed_ms = known.as_ref().map(|_| seen.at_ms);
                self.members = Some(Members {
                    who: now,
                    changed_ms,
                });
            }
        }
        if let Some(leader) = seen.leader {
            match self.led {
                Some((known, _)) if known == leader => {}
                None => self.led = Some((leader, None)),
                Some(_) => self.led = Some((leader, Some(seen.at_ms))),
            }
        }
    }

    /// Looks at what the last move was worth, when it is time.
    fn review(&mut self, seen: &Observation) -> Option<Verdict> {
        let Doing::Settling(made, until) = self.doing else {
            return None;
        };
        if seen.at_ms < until {
            return None;
        }
        self.doing = Doing::Watching;
        let now = seen.leader.filter(|leader| *leader == made.to);
        let cost = now.and_then(|leader| seen.members.iter().find(|m| m.member == leader)?.cost_us);
        let helped = cost.is_some_and(|cost| cost <= made.cost_us - made.gain_us / 2.0);
        if helped {
            self.futile = 0;
            return None;
        }
        self.futile += 1;
        (self.futile >= self.rule.futile_moves).then_some(Verdict::GiveUp(self.futile))
    }

    /// The move that would be right, by what members cost.
    fn wanted(&self, seen: &Observation) -> Result<Move, Why> {
        let from = seen.leader.ok_or(Why::NoLeader)?;
        if let Some(down) = seen.members.iter().find(|m| !m.healthy) {
            return Err(Why::Down(down.member));
        }
        let changed = self.members.as_ref().and_then(|known| known.changed_ms);
        let changed = changed
            .is_some_and(|since| seen.at_ms.saturating_sub(since) < self.rule.members_quiet_ms);
        if changed || seen.members.iter().any(|m| !m.voter) {
            return Err(Why::MembersChange);
        }
        if let Some(behind) = seen.members.iter().find(|m| m.lagging) {
            return Err(Why::Lagging(behind.member));
        }
        let leader = seen
            .members
            .iter()
            .find(|m| m.member == from)
            .ok_or(Why::NoLeader)?;
        let cost_us = leader.cost_us.ok_or(Why::CostUnknown)?;
        let others = seen.members.iter().filter(|m| m.member != from);
        let costs = others.filter_map(|m| Some((m.cost_us?, m.member)));
        let best = costs.min_by(|a, b| a.0.total_cmp(&b.0));
        let (mut best_us, mut to) = best.ok_or(Why::CostUnknown)?;
        // Of two that are as good, the one that was best before: else neither ever was for long.
        let before = self.streak.filter(|(of, _, _)| *of == from);
        let before = before.and_then(|(_, to, _)| seen.members.iter().find(|m| m.member == to));
        if let Some((us, member)) = before.and_then(|m| Some((m.cost_us?, m.member)))
            && us < best_us + self.rule.margin_us
        {
            (best_us, to) = (us, member);
        }
        let gain_us = cost_us - best_us;
        if gain_us < self.rule.margin_us || gain_us < cost_us * self.rule.margin_part {
            return Err(Why::BestAlready);
        }
        match leader.state {
            None => Err(Why::StateUnknown),
            Some(State::Overload) => Err(Why::LoadFollows),
            Some(_) => Ok(Move {
                from,
                to,
                cost_us,
                gain_us,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        margin_us: 5_000.0,
        margin_part: 0.3,
        samples: 3,
        cool_down_ms: 60_000,
        settle_ms: 10_000,
        futile_moves: 2,
        members_quiet_ms: 30_000,
    };

    fn seen(at_s: u64, leader: u64, costs_ms: [f64; 3]) -> Observation {
        let members = (1..=3u64).map(|member| Seen {
            member,
            voter: true,
            healthy: true,
            lagging: false,
            cost_us: Some(costs_ms[member as usize - 1] * 1e3),
            state: Some(State::Network),
        });
        Observation {
            at_ms: at_s * 1_000,
            leader: Some(leader),
            members: members.collect(),
            gates: Gates {
                acts: true,
                is_actor: true,
                ..Gates::default()
            },
        }
    }

    const BAD: [f64; 3] = [90.0, 4.0, 3.0];

    /// The verdict after the same was seen for long enough.
    fn after(decider: &mut Decider, from_s: u64, change: impl Fn(&mut Observation)) -> Verdict {
        let mut last = None;
        for s in from_s..from_s + u64::from(RULE.samples) {
            let mut now = seen(s, 1, BAD);
            change(&mut now);
            last = Some(decider.step(&now));
        }
        last.unwrap()
    }

    #[test]
    fn the_lead_moves_to_the_best_after_as_many_samples_as_asked_for() {
        let mut decider = Decider::new(RULE);
        assert_eq!(
            decider.step(&seen(0, 1, BAD)),
            Verdict::Hold(Why::NotLongEnough)
        );
        assert_eq!(
            decider.step(&seen(1, 1, BAD)),
            Verdict::Hold(Why::NotLongEnough)
        );
        // Once it was not so: it begins anew.
        assert_eq!(
            decider.step(&seen(2, 1, [4.0; 3])),
            Verdict::Hold(Why::BestAlready)
        );
        let Verdict::Move(made) = after(&mut decider, 3, |_| {}) else {
            panic!()
        };
        assert_eq!((made.from, made.to, made.gain_us), (1, 3, 87_000.0));
        // It is said what came of it before anything else is done.
        assert!(matches!(
            after(&mut decider, 6, |_| {}),
            Verdict::Would(_, Why::Settling)
        ));
    }

    #[test]
    fn two_that_are_as_good_do_not_keep_each_other_from_leading() {
        let mut decider = Decider::new(RULE);
        decider.step(&seen(0, 1, [90.0, 3.0, 3.1]));
        decider.step(&seen(1, 1, [90.0, 3.1, 3.0]));
        let verdict = decider.step(&seen(2, 1, [90.0, 3.0, 3.1]));
        assert!(
            matches!(verdict, Verdict::Move(Move { to: 2, .. })),
            "{verdict:?}"
        );
    }

    #[test]
    fn each_guard_keeps_the_lead_where_it_is() {
        type Change = fn(&mut Observation);
        let guards: [(Change, Why); 9] = [
            (|o| o.leader = None, Why::NoLeader),
            (|o| o.members[1].healthy = false, Why::Down(2)),
            (|o| o.members[2].lagging = true, Why::Lagging(3)),
            (|o| o.members[1].voter = false, Why::MembersChange),
            (|o| o.members[0].cost_us = None, Why::CostUnknown),
            (|o| o.members[0].cost_us = Some(7_900.0), Why::BestAlready),
            (
                |o| {
                    o.members
                        .iter_mut()
                        .for_each(|m| m.cost_us = m.cost_us.map(|us| us + 300_000.0))
                },
                Why::BestAlready,
            ),
            (|o| o.members[0].state = None, Why::StateUnknown),
            (
                |o| o.members[0].state = Some(State::Overload),
                Why::LoadFollows,
            ),
        ];
        for (change, why) in guards {
            assert_eq!(
                after(&mut Decider::new(RULE), 0, change),
                Verdict::Hold(why)
            );
        }
        let gates: [(Change, Why); 5] = [
            (|o| o.gates.acts = false, Why::Shadow),
            (|o| o.gates.is_actor = false, Why::NotActor),
            (|o| o.gates.cools_down = true, Why::CoolDown),
            (|o| o.gates.stopped = true, Why::Stopped),
            (|o| o.gates.given_up = true, Why::GivenUp),
        ];
        for (change, why) in gates {
            let verdict = after(&mut Decider::new(RULE), 0, change);
            assert!(
                matches!(verdict, Verdict::Would(_, told) if told == why),
                "{verdict:?}"
            );
        }
        // A candidate of which nothing is known is none.
        let verdict = after(&mut Decider::new(RULE), 0, |o| o.members[2].cost_us = None);
        assert!(
            matches!(verdict, Verdict::Move(Move { to: 2, .. })),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_change_of_the_leader_by_anybody_is_a_cool_down() {
        let mut decider = Decider::new(RULE);
        decider.step(&seen(0, 2, [4.0; 3]));
        let verdict = after(&mut decider, 1, |_| {});
        assert!(
            matches!(verdict, Verdict::Would(_, Why::CoolDown)),
            "{verdict:?}"
        );
        assert!(matches!(
            decider.step(&seen(60, 1, BAD)),
            Verdict::Would(_, Why::CoolDown)
        ));
        assert!(matches!(decider.step(&seen(61, 1, BAD)), Verdict::Move(_)));
    }

    #[test]
    fn a_change_of_the_members_is_waited_out() {
        let mut decider = Decider::new(RULE);
        let mut four = seen(0, 1, BAD);
        four.members.push(Seen {
            member: 4,
            ..four.members[1].clone()
        });
        decider.step(&four);
        assert_eq!(
            after(&mut decider, 1, |_| {}),
            Verdict::Hold(Why::MembersChange)
        );
        assert!(matches!(after(&mut decider, 31, |_| {}), Verdict::Move(_)));
    }

    #[test]
    fn it_gives_up_when_moves_do_not_help_and_begins_anew_when_told() {
        let mut decider = Decider::new(RULE);
        let mut at = 0;
        let mut fail = |decider: &mut Decider, how| {
            let verdict = after(decider, at, |_| {});
            assert!(matches!(verdict, Verdict::Move(_)), "{verdict:?}");
            decider.ended((at + 3) * 1_000, how);
            at += 13;
            let verdict = decider.step(&seen(at, 1, [4.0; 3]));
            at += 1;
            verdict
        };
        assert_eq!(
            fail(&mut decider, Ended::Failed),
            Verdict::Hold(Why::BestAlready)
        );
        assert_eq!(fail(&mut decider, Ended::Made), Verdict::GiveUp(2));
        decider.resume();
        assert_eq!(decider.futile(), 0);
        assert!(matches!(after(&mut decider, 100, |_| {}), Verdict::Move(_)));
    }

    #[test]
    fn a_move_that_helps_is_forgiven_those_before() {
        let mut decider = Decider::new(RULE);
        assert!(matches!(after(&mut decider, 0, |_| {}), Verdict::Move(_)));
        decider.ended(3_000, Ended::Failed);
        decider.step(&seen(14, 1, [4.0; 3]));
        assert_eq!(decider.futile(), 1);
        assert!(matches!(after(&mut decider, 15, |_| {}), Verdict::Move(_)));
        decider.ended(18_000, Ended::Made);
        assert_eq!(
            decider.step(&seen(29, 3, [90.0, 4.0, 3.0])),
            Verdict::Hold(Why::BestAlready)
        );
        assert_eq!(decider.futile(), 0);
    }

    #[test]
    fn a_move_that_was_not_begun_is_none() {
        let mut decider = Decider::new(RULE);
        assert!(matches!(after(&mut decider, 0, |_| {}), Verdict::Move(_)));
        decider.ended(3_000, Ended::NotBegun);
        assert!(matches!(after(&mut decider, 30, |_| {}), Verdict::Move(_)));
        assert_eq!(decider.futile(), 0);
    }
}
