//! Simulated members and time: what is published of a cluster that loses members, connections
//! and leaders, against what is true.
//!
//! Replay a failure: `ORLOP_UPSTREAM_SEED=N cargo test -p upstream --test simulation`; more:
//! `ORLOP_UPSTREAM_SEEDS=100000`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a simulation that is wrong ends"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use upstream::{Agreed, Answer, Cluster, Endpoint, Failure, Health, Hint, Listed, Timing};

const SEEDS: u64 = 200;
/// Length of a run and its step, in milliseconds.
const RUN_MS: u64 = 120_000;
const STEP_MS: u64 = 10;
/// etcd's election timeout.
const ELECTION_MS: u64 = 1000;
/// A member is not asked again before this; as the prober has it.
const MIN_GAP_MS: u64 = 50;
/// After so long without a fault a leader that is reached must be named. Two deadlines pass
/// before a silent one is unhealthy, its peers elect another meanwhile, and one round trip later
/// that is known.
const SETTLED_MS: u64 = 4_500;
/// So long after another was elected, and is reached, nobody but it is named.
const KNOWN_MS: u64 = 1_500;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A simulated member, as far as its Status shows.
struct Member {
    id: u64,
    voter: bool,
    removed: bool,
    /// Its process is there.
    up: bool,
    /// Its process runs (SIGSTOP).
    runs: bool,
    /// Cut off from its peers.
    cut_off: bool,
    /// Cut off from us.
    unreachable: bool,
    /// Without it, who campaigns alone raises its term.
    pre_vote: bool,
    term: u64,
    follows: Option<u64>,
    /// When it last heard of a leader, or as one of a majority.
    heard_ms: u64,
    patience_ms: u64,
}

impl Member {
    fn new(id: u64, voter: bool, rng: &mut Rng) -> Self {
        Member {
            id,
            voter,
            removed: false,
            up: true,
            runs: true,
            cut_off: false,
            unreachable: false,
            pre_vote: rng.chance(70),
            term: 1,
            follows: None,
            heard_ms: 0,
            patience_ms: rng.between(ELECTION_MS, 2 * ELECTION_MS),
        }
    }

    fn takes_part(&self) -> bool {
        self.up && self.runs && !self.removed
    }

    fn status(&self) -> Answer {
        Answer {
            cluster_id: 1,
            member_id: self.id,
            term: self.term,
            follows: self.follows,
            learner: !self.voter,
            ..Answer::default()
        }
    }
}

/// A Status that is under way.
struct Question {
    member: usize,
    asked_ms: u64,
    sampled_ms: u64,
    answered_ms: u64,
    answer: Option<Result<Answer, Failure>>,
}

struct Run {
    rng: Rng,
    start: Instant,
    now_ms: u64,
    members: Vec<Member>,
    /// Who was elected in which term.
    elected: BTreeMap<u64, u64>,
    cluster: Cluster,
    questions: Vec<Question>,
    asked_ms: BTreeMap<usize, u64>,
    at_once: bool,
    /// When the last fault began or ended.
    fault_ms: u64,
    /// When the newest election was.
    election_ms: u64,
    published_term: u64,
    changes: u64,
}

fn url(id: u64) -> Endpoint {
    format!("http://m{id}:1").parse().unwrap()
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let n = [1, 3, 3, 3, 5][rng.below(5) as usize];
        let members: Vec<_> = (1..=n).map(|id| Member::new(id, true, &mut rng)).collect();
        let start = Instant::now();
        let given = members.iter().map(|m| url(m.id)).collect();
        Run {
            rng,
            start,
            now_ms: 0,
            members,
            elected: BTreeMap::new(),
            cluster: Cluster::new(given, Timing::default(), start),
            questions: Vec::new(),
            asked_ms: BTreeMap::new(),
            at_once: false,
            fault_ms: 0,
            election_ms: 0,
            published_term: 0,
            changes: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn instant(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Those that hear each other: all that take part and are not cut off.
    fn majority(&self) -> Option<Vec<usize>> {
        let voters = self
            .members
            .iter()
            .filter(|m| m.voter && !m.removed)
            .count();
        let group: Vec<usize> = (0..self.members.len())
            .filter(|at| self.members[*at].takes_part() && !self.members[*at].cut_off)
            .collect();
        let votes = group.iter().filter(|at| self.members[**at].voter).count();
        (votes > voters / 2).then_some(group)
    }

    /// What raft does in this step.
    fn raft(&mut self) {
        let majority = self.majority();
        let group = majority.clone().unwrap_or_default();
        let leader = group
            .iter()
            .copied()
            .find(|at| self.members[*at].follows == Some(self.members[*at].id));
        if let Some(leader) = leader {
            let (id, term) = (self.members[leader].id, self.members[leader].term);
            // One of a higher term makes it step down, if it does not ask before it votes.
            let higher = group.iter().map(|at| self.members[*at].term).max();
            if let Some(higher) = higher.filter(|higher| *higher > term) {
                self.members[leader].follows = None;
                self.members[leader].term = higher;
            } else {
                for at in &group {
                    // Heartbeats come every 100 ms.
                    if *at == leader || self.rng.chance(STEP_MS) {
                        let now_ms = self.now_ms;
                        let member = &mut self.members[*at];
                        member.term = term;
                        member.follows = Some(id);
                        member.heard_ms = now_ms;
                    }
                }
            }
        }
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            if !member.takes_part() || self.now_ms < member.heard_ms + member.patience_ms {
                continue;
            }
            // It has heard of no leader, or leads nobody.
            member.heard_ms = self.now_ms;
            member.patience_ms = self.rng.between(ELECTION_MS, 2 * ELECTION_MS);
            member.follows = None;
            if !member.voter {
                continue;
            }
            if majority.is_some() && group.contains(&at) {
                self.elect(at, &group);
            } else if !self.members[at].pre_vote {
                self.members[at].term += 1;
            }
        }
    }

    fn elect(&mut self, at: usize, group: &[usize]) {
        let term = group.iter().map(|at| self.members[*at].term).max();
        let term = term.unwrap_or(0).max(self.members[at].term) + 1;
        for voter in group {
            // Those that voted know the term, and not yet who has won.
            if *voter != at {
                self.members[*voter].term = term;
                self.members[*voter].follows = None;
                self.members[*voter].heard_ms = self.now_ms;
            }
        }
        let member = &mut self.members[at];
        member.term = term;
        member.follows = Some(member.id);
        let before = self.elected.insert(term, member.id);
        assert_eq!(before, None, "the simulation elects two in term {term}");
        self.election_ms = self.now_ms;
    }

    /// Now and then something fails, or comes back.
    fn fault(&mut self) {
        if !self.rng.chance(1) || !self.rng.chance(20) {
            return;
        }
        // Half of the time there is quiet, in which it must settle.
        if self.now_ms / 20_000 % 2 == 1 {
            return;
        }
        self.fault_ms = self.now_ms;
        let now_ms = self.now_ms;
        let at = self.rng.below(self.members.len() as u64) as usize;
        let kind = self.rng.below(9);
        let member = &mut self.members[at];
        match kind {
            0 => {
                member.up = !member.up;
                member.follows = None;
                member.heard_ms = now_ms;
            }
            1 | 2 => {
                member.runs = !member.runs;
                // What it thought it thinks still, for a while.
                member.heard_ms = member.heard_ms.max(now_ms.saturating_sub(ELECTION_MS));
            }
            3 | 4 => {
                member.cut_off = !member.cut_off;
                // Then it claims to lead, or to follow, until its patience ends.
            }
            5 => member.unreachable = !member.unreachable,
            6 => self.move_leader(at),
            7 => self.change_members(),
            _ => {
                for member in &mut self.members {
                    member.up = true;
                    member.runs = true;
                    member.cut_off = false;
                    member.unreachable = false;
                }
            }
        }
    }

    fn move_leader(&mut self, to: usize) {
        let Some(group) = self.majority() else {
            return;
        };
        if group.contains(&to) && self.members[to].voter {
            for at in &group {
                self.members[*at].follows = None;
            }
            self.elect(to, &group);
        }
    }

    fn change_members(&mut self) {
        let there = self.members.iter().filter(|m| !m.removed).count();
        if self.majority().is_none() {
            return;
        }
        if there > 3 && self.rng.chance(50) {
            let at = self.rng.below(self.members.len() as u64) as usize;
            self.members[at].removed = true;
        } else if there < 6 {
            let id = self.members.len() as u64 + 1;
            let voter = self.rng.chance(60);
            let mut member = Member::new(id, voter, &mut self.rng);
            member.heard_ms = self.now_ms;
            self.members.push(member);
        } else {
            self.members.iter_mut().for_each(|m| m.voter = true);
        }
    }

    /// Asks as the prober does.
    fn ask(&mut self) {
        self.at_once |= self.cluster.take_ask();
        let pace = self.cluster.pace(self.now()).as_millis() as u64;
        let after = if self.at_once { MIN_GAP_MS } else { pace };
        let mut all = true;
        for endpoint in self.cluster.to_ask() {
            let at = self.members.iter().position(|m| url(m.id) == endpoint);
            let at = at.expect("an address that nobody has");
            let busy = self.questions.iter().any(|q| q.member == at);
            let last = self.asked_ms.get(&at).copied();
            if busy || last.is_some_and(|last| self.now_ms < last + after) {
                all = false;
                continue;
            }
            let trip_ms = if self.rng.chance(90) {
                self.rng.between(1, 30)
            } else {
                self.rng.between(30, 400)
            };
            self.asked_ms.insert(at, self.now_ms);
            self.questions.push(Question {
                member: at,
                asked_ms: self.now_ms,
                sampled_ms: self.now_ms + trip_ms / 2,
                answered_ms: self.now_ms + trip_ms,
                answer: None,
            });
        }
        if all {
            self.at_once = false;
        }
    }

    /// Answers come, or do not.
    fn answer(&mut self) {
        let deadline_ms = Timing::default().deadline.as_millis() as u64;
        let mut questions = std::mem::take(&mut self.questions);
        questions.retain_mut(|question| {
            let member = &self.members[question.member];
            if question.answer.is_none() && self.now_ms >= question.sampled_ms {
                if member.unreachable || !member.runs {
                    // It answers when it goes on.
                } else if member.up {
                    question.answer = Some(Ok(member.status()));
                } else {
                    let why = "connection refused".to_owned();
                    question.answer = Some(Err(Failure::Unreachable(why)));
                }
            }
            let outcome = match &question.answer {
                Some(answer) if self.now_ms >= question.answered_ms => answer.clone(),
                _ if self.now_ms >= question.asked_ms + deadline_ms => Err(Failure::Silent),
                _ => return true,
            };
            let trip = Duration::from_millis(self.now_ms - question.asked_ms);
            let (asked, now) = (self.instant(question.asked_ms), self.now());
            let endpoint = url(member.id);
            self.cluster
                .report(&endpoint, asked, outcome, Some(trip), now);
            false
        });
        self.questions = questions;
    }

    fn list(&mut self) {
        let now = self.now();
        let Some((from, agreed)) = self.cluster.list_from(now) else {
            return;
        };
        let asked = self.members.iter().find(|m| url(m.id) == from).unwrap();
        let answers = asked.takes_part() && !asked.unreachable;
        let agrees = agreed == Agreed::OneMember
            || (self.majority().is_some() && !asked.cut_off && asked.follows.is_some());
        if !answers || !agrees {
            self.cluster.not_listed(now);
            return;
        }
        let members = self.members.iter().filter(|m| !m.removed);
        let list = members.map(|m| Listed {
            member_id: m.id,
            name: format!("m{}", m.id),
            advertised: vec![url(m.id)],
            learner: !m.voter,
        });
        self.cluster.listed(list.collect(), agreed, now, now);
    }

    /// The leader that can commit, if it is reached, and one that follows it is known by name: of
    /// a cluster all of whose members are new nothing can be known.
    fn truth(&self) -> Option<(u64, u64)> {
        let group = self.majority()?;
        let asked = self.cluster.to_ask();
        let known = |at: &usize| {
            let member = &self.members[*at];
            !member.unreachable && asked.contains(&url(member.id))
        };
        if !group.iter().any(known) {
            return None;
        }
        let leads = |at: &usize| self.members[*at].follows == Some(self.members[*at].id);
        let leader = &self.members[group.into_iter().find(|at| leads(at))?];
        (!leader.unreachable).then_some((leader.id, leader.term))
    }

    /// What is published must be so.
    fn check(&mut self) {
        let view = self.cluster.view();
        assert!(view.changes >= self.changes);
        let elected = self.elected.len() as u64;
        assert!(
            view.changes <= elected.saturating_sub(1),
            "{} of {elected}: {:?} {view:#?}",
            view.changes,
            self.elected
        );
        self.changes = view.changes;
        let truth = self.truth();
        let since_fault = self.now_ms - self.fault_ms.max(self.election_ms);
        if let Some(leader) = &view.leader {
            // It was elected in that term, is a member that answers, and no lower term follows.
            assert_eq!(self.elected.get(&leader.term), Some(&leader.member_id));
            assert!(leader.term >= self.published_term, "back to a lower term");
            self.published_term = leader.term;
            let member = view.leading().expect("a leader that is no member");
            assert!(!member.learner);
            assert!(!matches!(member.health, Health::Unhealthy { .. }));
            assert_eq!(view.at(&leader.endpoint), Some(member));
            if let Some((id, term)) = truth
                && since_fault > KNOWN_MS
            {
                assert_eq!((leader.member_id, leader.term), (id, term));
            }
        }
        if let Some((id, term)) = truth
            && since_fault > SETTLED_MS
        {
            let named = view.leader.as_ref().map(|l| (l.member_id, l.term));
            assert_eq!(named, Some((id, term)), "{view:#?}");
        }
    }

    fn run(&mut self) {
        while self.now_ms < RUN_MS {
            self.now_ms += STEP_MS;
            self.fault();
            self.raft();
            if self.rng.chance(1) && self.rng.chance(10) {
                self.cluster.hint(&Hint::Suspect);
            }
            self.cluster.tick(self.now());
            self.answer();
            self.ask();
            self.list();
            self.check();
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn who_is_named_leads_and_who_leads_is_named() {
    let one = number("ORLOP_UPSTREAM_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number("ORLOP_UPSTREAM_SEEDS").unwrap_or(SEEDS),
    };
    let mut changes = 0;
    for seed in seeds {
        let mut run = Run::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.run()));
        assert!(
            outcome.is_ok(),
            "seed {seed} failed at {} ms, after a fault at {} ms and an election at {} ms",
            run.now_ms,
            run.fault_ms,
            run.election_ms
        );
        changes += run.changes;
    }
    println!("{changes} changes of the leader");
    assert!(one.is_some() || changes > 0, "nothing was tested");
}
