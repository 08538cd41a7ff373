//! What is known of a cluster, and who leads it: a state machine without input and output.
//!
//! It is told what was answered and when, and says what it thinks and what it wants to be asked.
//! How the leader is found is in [`leader`].

mod address;
mod leader;
mod report;
#[cfg(test)]
mod tests;

pub use report::{Agreed, Answer, Failure, Hint, Listed};

use crate::endpoint::{Endpoint, Scheme};
use crate::view::{Health, Leader, MemberView, View};
use address::{Address, Statement};
use leader::Floor;
use std::time::{Duration, Instant};

/// Addresses that are asked at most; a cluster has seven members or fewer.
const MAX_ADDRESSES: usize = 64;
/// Client URLs of one member that are looked at.
const MAX_ADVERTISED: usize = 4;
/// A lost leader is looked for at the quick pace for so many intervals.
const QUICK_INTERVALS: u32 = 30;
/// The quick pace is this part of the interval.
const QUICK_PART: u32 = 8;

/// How often members are asked, and how long what they say counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one Status of a member to the next.
    pub interval: Duration,
    /// Longest wait for an answer.
    pub deadline: Duration,
    /// From one member list to the next, if nothing calls for one before.
    pub list_interval: Duration,
}

impl Timing {
    /// How long a statement counts after it was asked for: one that is lost is no loss.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        (self.interval * 3).max(self.deadline * 2)
    }

    /// After this without a leader, or without an answer of the cluster, what was known of terms
    /// and of the cluster's id counts no more: it was restored from a copy.
    #[must_use]
    pub fn memory(&self) -> Duration {
        self.lifetime() * 10
    }
}

impl Default for Timing {
    /// Asks every second, and for the members every 30 s.
    fn default() -> Self {
        Timing {
            interval: Duration::from_secs(1),
            deadline: Duration::from_secs(1),
            list_interval: Duration::from_secs(30),
        }
    }
}

/// The state machine. Time is what its caller says it is, and does not go back.
#[derive(Clone, Debug)]
pub struct Cluster {
    timing: Timing,
    /// Given ones first, in their order.
    addresses: Vec<Address>,
    cluster_id: Option<u64>,
    /// When the cluster has answered last.
    heard: Option<Instant>,
    list: Option<Vec<Listed>>,
    list_asked: Option<Instant>,
    /// Lists in a row that were asked for in vain.
    list_failures: usize,
    /// A statement names a member that the list does not have.
    list_is_old: bool,
    floor: Option<Floor>,
    leader: Option<Leader>,
    /// The member that led last, whether it does or not.
    last_leader: Option<u64>,
    /// Since when there is no leader.
    lost: Option<Instant>,
    changes: u64,
    /// Everybody should be asked now.
    ask: bool,
}

impl Cluster {
    /// One of which only addresses are known.
    #[must_use]
    pub fn new(given: Vec<Endpoint>, timing: Timing, now: Instant) -> Self {
        let given = given.into_iter().take(MAX_ADDRESSES);
        Cluster {
            timing,
            addresses: given.map(|endpoint| Address::new(endpoint, true)).collect(),
            cluster_id: None,
            heard: None,
            list: None,
            list_asked: None,
            list_failures: 0,
            list_is_old: false,
            floor: None,
            leader: None,
            last_leader: None,
            lost: Some(now),
            changes: 0,
            ask: true,
        }
    }

    /// Takes what was answered to a Status that was asked at `asked`. `round_trip` is how long
    /// that took, if it tells something: not if a connection had to be made first.
    pub fn report(
        &mut self,
        endpoint: &Endpoint,
        asked: Instant,
        outcome: Result<Answer, Failure>,
        round_trip: Option<Duration>,
        now: Instant,
    ) {
        let Some(at) = self.index(endpoint) else {
            return;
        };
        match outcome {
            Err(failure) => {
                let news = self.addresses[at].failed(&failure, asked);
                self.ask |= news && self.leads(at);
            }
            Ok(answer) if !self.is_of_cluster(&answer, now) => {
                let known = self.cluster_id.unwrap_or(0);
                let why = format!(
                    "it is of cluster {:x}, and the others are of cluster {known:x}",
                    answer.cluster_id
                );
                self.addresses[at].statement = None;
                self.addresses[at].unhealthy(why, now);
            }
            Ok(answer) => {
                self.heard = Some(now);
                if self.is_of_the_past(at, &answer, now) {
                    return;
                }
                self.list_is_old |= self.shows_old_list(&answer);
                self.ask |= self.addresses[at].answered(answer, asked);
                if let Some(round_trip) = round_trip {
                    self.addresses[at].took(round_trip);
                }
            }
        }
        self.decide(now);
    }

    /// Takes a member list that was asked for at `asked`. What one member has counts only while
    /// there is no better one.
    pub fn listed(&mut self, members: Vec<Listed>, agreed: Agreed, asked: Instant, now: Instant) {
        self.list_asked = Some(asked);
        self.list_failures = 0;
        if members.is_empty() || (agreed == Agreed::OneMember && self.list.is_some()) {
            return;
        }
        self.list_is_old = false;
        let tls_only = self
            .addresses
            .iter()
            .any(|at| at.given && at.endpoint.scheme == Scheme::Https);
        let mut list: Vec<Listed> = members.into_iter().take(MAX_ADDRESSES).collect();
        for member in &mut list {
            // Passwords and data that were to go over TLS never go without it.
            member
                .advertised
                .retain(|url| !tls_only || url.scheme == Scheme::Https);
            member.advertised.truncate(MAX_ADVERTISED);
        }
        let advertised = |url: &Endpoint| list.iter().any(|m| m.advertised.contains(url));
        self.addresses
            .retain(|at| at.given || advertised(&at.endpoint));
        for url in list.iter().flat_map(|member| &member.advertised) {
            if self.index(url).is_none() && self.addresses.len() < MAX_ADDRESSES {
                self.addresses.push(Address::new(url.clone(), false));
            }
        }
        if self.list.as_ref() != Some(&list) {
            self.ask = true;
            self.list = Some(list);
        }
        self.decide(now);
    }

    /// A member list was asked for, and did not come.
    pub fn not_listed(&mut self, asked: Instant) {
        self.list_asked = Some(asked);
        self.list_failures = self.list_failures.wrapping_add(1);
    }

    /// Takes what a call has met. It changes nothing by itself: the members are asked.
    pub fn hint(&mut self, hint: &Hint) {
        match hint {
            Hint::Term(term) => {
                let known = self.floor.as_ref().map_or(0, |floor| floor.term);
                self.ask |= *term > known;
            }
            Hint::Suspect => self.ask = true,
        }
    }

    /// Lets time pass: what is too old counts no more.
    pub fn tick(&mut self, now: Instant) {
        self.decide(now);
    }

    /// Whether everybody should be asked now. It is said once.
    pub fn take_ask(&mut self) -> bool {
        std::mem::take(&mut self.ask)
    }

    /// How long to wait from one question to the next.
    #[must_use]
    pub fn pace(&self, now: Instant) -> Duration {
        let quick = self.timing.interval * QUICK_INTERVALS;
        match self.lost {
            Some(lost) if now.saturating_duration_since(lost) < quick => {
                self.timing.interval / QUICK_PART
            }
            _ => self.timing.interval,
        }
    }

    /// The addresses to be asked: the given ones, and the advertised ones of members that none
    /// of the given ones reaches.
    #[must_use]
    pub fn to_ask(&self) -> Vec<Endpoint> {
        let wanted = |at: &&Address| at.given || !self.has_given(&at.endpoint);
        self.addresses
            .iter()
            .filter(wanted)
            .map(|at| at.endpoint.clone())
            .collect()
    }

    /// Where a member list should be asked for now, and how; `None` if it need not.
    #[must_use]
    pub fn list_from(&self, now: Instant) -> Option<(Endpoint, Agreed)> {
        let age = self.list_asked.map(|at| now.saturating_duration_since(at));
        let every = match (&self.list, self.list_is_old) {
            (Some(_), false) => self.timing.list_interval,
            _ => self.pace(now),
        };
        if age.is_some_and(|age| age < every) {
            return None;
        }
        if let Some(leader) = &self.leader {
            return Some((leader.endpoint.clone(), Agreed::Majority));
        }
        let healthy = self.addresses.iter().filter(|at| at.health.is_healthy());
        let mut healthy: Vec<_> = healthy.collect();
        // Who follows somebody in a high term is hardly cut off; if it does not tell, the next.
        healthy.sort_by_key(|at| {
            let said = at.statement.as_ref().map(|said| &said.answer);
            std::cmp::Reverse(said.map(|said| (said.follows.is_some(), said.term)))
        });
        let turn = self.list_failures.checked_rem(healthy.len())?;
        let agreed = match self.list {
            // The only way to the others, if the given ones do not answer.
            None => Agreed::OneMember,
            Some(_) => Agreed::Majority,
        };
        Some((healthy[turn].endpoint.clone(), agreed))
    }

    /// What is known.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            cluster_id: self.cluster_id,
            leader: self.leader.clone(),
            members: self.members(),
            changes: self.changes,
        }
    }

    /// Whether a member says what the list does not know: members, or that one votes by now.
    fn shows_old_list(&self, answer: &Answer) -> bool {
        let Some(list) = &self.list else {
            return false;
        };
        let listed = |id: u64| list.iter().find(|member| member.member_id == id);
        listed(answer.member_id).is_none_or(|own| own.learner != answer.learner)
            || answer
                .follows
                .is_some_and(|id| listed(id).is_none_or(|m| m.learner))
    }

    fn index(&self, endpoint: &Endpoint) -> Option<usize> {
        self.addresses
            .iter()
            .position(|at| at.endpoint == *endpoint)
    }

    fn leads(&self, at: usize) -> bool {
        let leader = self.leader.as_ref();
        leader.is_some_and(|leader| leader.endpoint == self.addresses[at].endpoint)
    }

    /// Whether it is the cluster's, which is that of the first answer. When that one has been
    /// silent for long, it was replaced by another.
    fn is_of_cluster(&mut self, answer: &Answer, now: Instant) -> bool {
        let silent = self
            .heard
            .is_none_or(|at| now.saturating_duration_since(at) > self.timing.memory());
        match self.cluster_id {
            Some(id) if id == answer.cluster_id => true,
            Some(_) if !silent => false,
            known => {
                self.cluster_id = Some(answer.cluster_id);
                if known.is_some() {
                    self.list = None;
                    self.list_asked = None;
                    self.floor = None;
                    self.leader = None;
                    self.addresses.retain(|at| at.given);
                    self.addresses.iter_mut().for_each(|at| at.statement = None);
                }
                true
            }
        }
    }

    /// Whether a member has said more by now: terms do not go back.
    fn is_of_the_past(&self, at: usize, answer: &Answer, now: Instant) -> bool {
        let known = self.addresses[at].statement.as_ref();
        known.is_some_and(|known| {
            known.answer.member_id == answer.member_id
                && known.answer.term > answer.term
                && now.saturating_duration_since(known.asked) <= self.timing.lifetime()
        })
    }

    /// Whether an advertised address is of a member that a given one reaches.
    fn has_given(&self, advertised: &Endpoint) -> bool {
        let list = self.list.as_deref().unwrap_or_default();
        let owners = list.iter().filter(|m| m.advertised.contains(advertised));
        let mut reached = owners.map(|member| {
            let best = self.address_of(member.member_id);
            best.is_some_and(|at| at.given && at.health.is_healthy())
        });
        reached
            .next()
            .is_some_and(|first| first && reached.all(|r| r))
    }

    /// Whether an address stands for more than one member.
    fn is_shared(&self, at: &Address) -> bool {
        let list = self.list.as_deref().unwrap_or_default();
        at.other.is_some_and(|other| {
            at.member_id() != Some(other) && list.iter().any(|m| m.member_id == other)
        })
    }

    /// The best address where a member has said that it is this one: one that answers before one
    /// that does not, a given one before an advertised one, one that is shared last.
    fn address_of(&self, member_id: u64) -> Option<&Address> {
        let own = self
            .addresses
            .iter()
            .filter(|at| at.member_id() == Some(member_id));
        own.min_by_key(|at| (self.is_shared(at), !at.health.is_healthy(), !at.given))
    }

    fn members(&self) -> Vec<MemberView> {
        let mut members = Vec::new();
        for listed in self.list.as_deref().unwrap_or_default() {
            let own = self.address_of(listed.member_id);
            let first = listed.advertised.first().and_then(|url| self.index(url));
            let mut view = match (own, first) {
                (Some(at), _) => self.describe(at),
                (None, Some(first)) => self.describe_unconfirmed(first, listed.member_id),
                // It has not started yet.
                (None, None) => continue,
            };
            view.member_id = Some(listed.member_id);
            view.name.clone_from(&listed.name);
            view.learner |= listed.learner;
            members.push(view);
        }
        for at in self.addresses.iter().filter(|at| at.given) {
            let known = members.iter().any(|member: &MemberView| {
                member.endpoint == at.endpoint
                    || (at.member_id().is_some() && member.member_id == at.member_id())
            });
            if known {
                continue;
            }
            let mut view = self.describe(at);
            if let (Some(_), Some(since), true) =
                (&self.list, view.answered, view.health.is_healthy())
            {
                let why = "it is no member of the cluster any more".to_owned();
                view.health = Health::Unhealthy { since, why };
            }
            members.push(view);
        }
        members
    }

    fn describe(&self, at: &Address) -> MemberView {
        let mut view = MemberView::new(at.endpoint.clone());
        view.health.clone_from(&at.health);
        view.round_trip = at.round_trip();
        if let Some(Statement { answer, asked }) = &at.statement {
            view.member_id = Some(answer.member_id);
            view.answered = Some(*asked);
            view.learner = answer.learner;
            view.follows = answer.follows;
            view.term = answer.term;
            view.raft_index = answer.raft_index;
            view.raft_applied_index = answer.raft_applied_index;
            view.db_size_bytes = answer.db_size_bytes;
            view.db_size_in_use_bytes = answer.db_size_in_use_bytes;
            view.version.clone_from(&answer.version);
            view.errors.clone_from(&answer.errors);
        }
        view
    }

    /// A member's advertised address, where it has not answered.
    fn describe_unconfirmed(&self, at: usize, member_id: u64) -> MemberView {
        let at = &self.addresses[at];
        let mut view = MemberView::new(at.endpoint.clone());
        view.health.clone_from(&at.health);
        if let Some(statement) = &at.statement
            && statement.answer.member_id != member_id
            && at.health.is_healthy()
        {
            view.health = Health::Unhealthy {
                since: statement.asked,
                why: format!("member {:x} answers there", statement.answer.member_id),
            };
        }
        view
    }
}
