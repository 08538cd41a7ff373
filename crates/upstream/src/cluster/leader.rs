//! Who leads.
//!
//! Raft elects at most one leader in a term, and a leader of a later term was elected by a
//! majority that follows no earlier one any more. So of all that is claimed the highest term is
//! right, and a leader of a lower term can commit nothing. What is claimed may be of the past,
//! though: then its own word and its peers' say so. See decision 20.

use super::Cluster;
use super::address::Statement;
use crate::view::{Health, Leader};
use std::time::Instant;

/// The highest term in which somebody was seen to lead: nobody leads in a lower one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) term: u64,
    /// When a member was last heard in this term or a later one.
    heard: Instant,
}

/// That a member leads in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    term: u64,
    member_id: u64,
}

impl Cluster {
    /// Finds the leader anew.
    pub(super) fn decide(&mut self, now: Instant) {
        let claims = self.claims(now);
        self.raise_floor(claims.last().copied(), now);
        let lowest = self.floor.map_or(0, |floor| floor.term);
        let leading = claims
            .into_iter()
            .rev()
            .take_while(|claim| claim.term >= lowest)
            .find(|claim| self.holds(*claim, now));
        self.leader = leading.and_then(|claim| self.as_leader(claim));
        match &self.leader {
            None => {
                self.lost.get_or_insert(now);
            }
            Some(leader) => {
                self.lost = None;
                let before = self.last_leader.replace(leader.member_id);
                if before.is_some_and(|before| before != leader.member_id) {
                    self.changes += 1;
                }
            }
        }
    }

    /// Remembers the highest term that somebody leads in, while somebody is in that term or a
    /// later one, and for a while after.
    fn raise_floor(&mut self, highest: Option<Claim>, now: Instant) {
        let memory = self.timing.memory();
        let words = self.known().into_iter();
        let said = words.filter_map(|(id, _)| Some(self.word_of(id, now)?.answer.term));
        let newest = said.max().unwrap_or(0);
        let known = self.floor.take().and_then(|floor| {
            let heard = if newest >= floor.term {
                now
            } else {
                floor.heard
            };
            let counts = now.saturating_duration_since(heard) <= memory;
            counts.then_some(Floor { heard, ..floor })
        });
        let claimed = highest.map(|claim| Floor {
            term: claim.term,
            heard: now,
        });
        self.floor = known.into_iter().chain(claimed).max_by_key(|f| f.term);
    }

    /// The newest word of a member, if it is not too old to count.
    fn word_of(&self, member_id: u64, now: Instant) -> Option<&Statement> {
        let said = self.addresses.iter().filter_map(|at| at.statement.as_ref());
        said.filter(|said| said.answer.member_id == member_id)
            .max_by_key(|said| said.asked)
            .filter(|said| now.saturating_duration_since(said.asked) <= self.timing.lifetime())
    }

    /// Members, and whether they vote. Without a list they are those that have answered.
    fn known(&self) -> Vec<(u64, bool)> {
        if let Some(list) = &self.list {
            return list.iter().map(|m| (m.member_id, !m.learner)).collect();
        }
        let said = self.addresses.iter().filter_map(|at| at.statement.as_ref());
        let mut known: Vec<_> = said
            .map(|said| (said.answer.member_id, !said.answer.learner))
            .collect();
        known.sort_unstable();
        known.dedup_by_key(|(id, _)| *id);
        known
    }

    /// All claims of members that are not too old, the lowest term first. Who is claimed to lead
    /// may be nobody that the list has as a voter: then the list is old, and the claim is right
    /// in that nobody leads in a lower term.
    fn claims(&self, now: Instant) -> Vec<Claim> {
        let words = self.known().into_iter();
        let mut claims: Vec<Claim> = words
            .filter_map(|(id, _)| {
                let said = &self.word_of(id, now)?.answer;
                Some(Claim {
                    term: said.term,
                    member_id: said.follows?,
                })
            })
            .collect();
        claims.sort_unstable();
        claims.dedup();
        claims
    }

    /// Whether nothing speaks against a claim: neither the word of the member itself, nor those
    /// of so many voters that the others are no majority. A word of an earlier term does not: it
    /// was said before the election.
    fn holds(&self, claim: Claim, now: Instant) -> bool {
        let denies = |member_id: u64| {
            self.word_of(member_id, now).is_some_and(|said| {
                said.answer.term >= claim.term && said.answer.follows != Some(claim.member_id)
            })
        };
        if denies(claim.member_id) {
            return false;
        }
        let voters: Vec<u64> = self
            .known()
            .into_iter()
            .filter_map(|(id, votes)| votes.then_some(id))
            .collect();
        let against = voters.iter().filter(|id| denies(**id)).count();
        voters.len() - against > voters.len() / 2
    }

    /// A claim with the place where its member answers; `None` if it does not, or is no voter
    /// that is known.
    fn as_leader(&self, claim: Claim) -> Option<Leader> {
        if !self.known().contains(&(claim.member_id, true)) {
            return None;
        }
        let at = self.address_of(claim.member_id)?;
        if let Health::Unhealthy { .. } = at.health {
            return None;
        }
        Some(Leader {
            member_id: claim.member_id,
            term: claim.term,
            endpoint: at.endpoint.clone(),
        })
    }
}
