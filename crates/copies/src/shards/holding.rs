//! Which shards hold the log's newest frames, and whether that counts: the server's side, as a
//! state machine without connections and clock.
//!
//! It is told who comes, goes and acknowledges, and says what to do ([`Act`]). A set counts when it
//! is noted in the directory; when one of it is lost, nothing counts at once, so that writes wait
//! for the disk, until the next set is noted.

use super::Guards;
use super::message::Ack;
use super::select::{self, Candidate};
use journal::{Holder, HolderSet, Lsn};
use std::collections::BTreeMap;

/// How long a set that could not be noted is not tried again.
const RETRY_MS: u64 = 1000;

/// What is asked of shards.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many hold each frame; at least 1.
    pub copies: usize,
    /// A shard that owes an acknowledgement for longer than this is lost, in milliseconds.
    pub health_ms: u64,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// From now on frames are safe when they are on disk.
    DiskOnly,
    /// Note these in the directory, and have them count: the answer is
    /// [`Holding::counted`]. None: note that nobody has to be asked.
    Count(Vec<Holder>),
    /// Tell a shard that it is one of a set.
    Begin {
        /// Its connection.
        session: u64,
        /// The set.
        set: u64,
        /// The last frame before it.
        after: Lsn,
    },
    /// All of a set have the log up to there.
    Held {
        /// The set.
        set: u64,
        /// The frame.
        lsn: Lsn,
    },
    /// End a connection.
    Close {
        /// Which.
        session: u64,
        /// Why, in words.
        why: &'static str,
    },
}

/// A shard that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Which run of it.
    pub incarnation: u64,
    /// Its failure domain; empty if it has none but itself.
    pub zone: String,
    /// It is about to stop.
    pub leaving: bool,
}

/// One of the set that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    session: u64,
    held: Lsn,
    /// Since when it owes something.
    behind_since_ms: Option<u64>,
}

/// Where the set is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing counts. `nobody`: the directory says that nobody has to be asked.
    DiskOnly { nobody: bool, retry_at_ms: u64 },
    /// These are being noted.
    Noting { sessions: Vec<u64> },
    /// These count.
    Counting { set: u64, holders: Vec<Counted> },
}

/// How it stands, for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many are to hold each frame.
    pub copies: usize,
    /// Writes are acknowledged when shards have them; else they wait for the disk.
    pub counting: bool,
    /// The set that counts, 0 if none does.
    pub set: u64,
    /// All that are connected, with how far they have the set, if they are of it.
    pub members: Vec<(Member, Option<Lsn>)>,
    /// How often a set was lost.
    pub lost: u64,
}

/// All shards of a server.
#[derive(Debug)]
pub struct Holding {
    settings: Settings,
    members: BTreeMap<u64, Member>,
    phase: Phase,
    last_set: u64,
    lost: u64,
    guards: Guards,
}

impl Holding {
    /// Nobody is there yet.
    pub fn new(settings: Settings) -> Self {
        Holding {
            settings,
            members: BTreeMap::new(),
            phase: Phase::DiskOnly {
                nobody: false,
                retry_at_ms: 0,
            },
            last_set: 0,
            lost: 0,
            guards: Guards::default(),
        }
    }

    /// The same with protections switched off.
    #[doc(hidden)]
    #[must_use]
    pub fn with_guards(self, guards: Guards) -> Self {
        Holding { guards, ..self }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let (set, holders) = match &self.phase {
            Phase::Counting { set, holders } => (*set, holders.as_slice()),
            _ => (0, &[][..]),
        };
        let held = |session: &u64| {
            let one = holders.iter().find(|one| one.session == *session);
            one.map(|one| one.held)
        };
        let members = self.members.iter();
        Standing {
            copies: self.settings.copies,
            counting: set != 0,
            set,
            members: members.map(|(at, of)| (of.clone(), held(at))).collect(),
            lost: self.lost,
        }
    }

    /// A shard has connected. An older connection of the same name ends.
    pub fn joined(&mut self, session: u64, member: Member, now_ms: u64) -> Vec<Act> {
        let same = self.members.iter().find(|(_, of)| of.name == member.name);
        let same = same.map(|(session, _)| *session);
        let mut acts = Vec::new();
        if let Some(session) = same {
            let why = "another connection of this name came";
            acts.push(Act::Close { session, why });
            self.members.remove(&session);
        }
        self.members.insert(session, member);
        self.plan(now_ms, &mut acts);
        acts
    }

    /// A connection has ended.
    pub fn left(&mut self, session: u64, now_ms: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.members.remove(&session).is_some() {
            self.plan(now_ms, &mut acts);
        }
        acts
    }

    /// A shard is about to stop.
    pub fn leaving(&mut self, session: u64, now_ms: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        if let Some(member) = self.members.get_mut(&session) {
            member.leaving = true;
            self.plan(now_ms, &mut acts);
        }
        acts
    }

    /// A shard says how far it has a set. `written` is the log's end.
    pub fn acked(&mut self, session: u64, ack: Ack, written: Lsn, now_ms: u64) -> Option<Act> {
        let Phase::Counting { set, holders } = &mut self.phase else {
            return None;
        };
        if *set != ack.set {
            return None;
        }
        let one = holders.iter_mut().find(|one| one.session == session)?;
        one.held = one.held.max(ack.held);
        one.behind_since_ms = (one.held < written).then_some(now_ms);
        let all = holders.iter().map(|one| one.held);
        let lsn = match self.guards.all {
            true => all.min()?,
            false => all.max()?,
        };
        Some(Act::Held { set: *set, lsn })
    }

    /// Time passes. `written` is the log's end, and `counts` whether what is held counts there.
    pub fn tick(&mut self, written: Lsn, counts: bool, now_ms: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        let health_ms = self.settings.health_ms;
        if let Phase::Counting { holders, .. } = &mut self.phase {
            for one in holders.iter_mut().filter(|one| one.held < written) {
                let since = *one.behind_since_ms.get_or_insert(now_ms);
                if now_ms.saturating_sub(since) >= health_ms {
                    let (session, why) = (one.session, "it did not acknowledge in time");
                    acts.push(Act::Close { session, why });
                    self.members.remove(&session);
                }
            }
            if !counts {
                // The log has ended its epoch, and begun another one.
                self.stop_counting(&mut acts);
            }
        }
        self.plan(now_ms, &mut acts);
        acts
    }

    /// What [`Act::Count`] came to: the set that counts, or none.
    pub fn counted(&mut self, set: Option<&HolderSet>, now_ms: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        let Phase::Noting { sessions } = &self.phase else {
            return acts;
        };
        let Some(set) = set else {
            self.phase = Phase::DiskOnly {
                nobody: false,
                retry_at_ms: now_ms + RETRY_MS,
            };
            return acts;
        };
        self.last_set = set.number;
        if sessions.is_empty() {
            self.phase = Phase::DiskOnly {
                nobody: true,
                retry_at_ms: now_ms,
            };
        } else {
            let holder = |session: &u64| Counted {
                session: *session,
                held: set.after,
                behind_since_ms: Some(now_ms),
            };
            let begin = |session: &u64| Act::Begin {
                session: *session,
                set: set.number,
                after: set.after,
            };
            acts.extend(sessions.iter().map(begin));
            let holders = sessions.iter().map(holder).collect();
            self.phase = Phase::Counting {
                set: set.number,
                holders,
            };
        }
        self.plan(now_ms, &mut acts);
        acts
    }

    fn stop_counting(&mut self, acts: &mut Vec<Act>) {
        acts.push(Act::DiskOnly);
        self.lost += 1;
        self.phase = Phase::DiskOnly {
            nobody: false,
            retry_at_ms: 0,
        };
    }

    fn is_fit(&self, session: u64) -> bool {
        self.members.get(&session).is_some_and(|of| !of.leaving)
    }

    fn candidate(member: &Member) -> Candidate<'_> {
        Candidate {
            name: &member.name,
            zone: &member.zone,
        }
    }

    /// The shards of the next set: enough of them, or none.
    fn choose(&self) -> Vec<u64> {
        let fit: Vec<(u64, Candidate<'_>)> = self
            .members
            .iter()
            .filter(|(_, of)| !of.leaving)
            .map(|(session, of)| (*session, Self::candidate(of)))
            .collect();
        let candidates: Vec<Candidate<'_>> = fit.iter().map(|(_, of)| *of).collect();
        let chosen = select::holders(self.last_set + 1, &candidates, self.settings.copies);
        match chosen.len() == self.settings.copies {
            true => chosen.into_iter().map(|at| fit[at].0).collect(),
            false => Vec::new(),
        }
    }

    fn domains(&self, sessions: impl Iterator<Item = u64>) -> usize {
        let members = sessions.filter_map(|session| self.members.get(&session));
        select::domains(members.map(Self::candidate))
    }

    fn plan(&mut self, now_ms: u64, acts: &mut Vec<Act>) {
        if let Phase::Counting { holders, .. } = &self.phase {
            let sessions: Vec<u64> = holders.iter().map(|one| one.session).collect();
            let fit = sessions.iter().all(|session| self.is_fit(*session));
            let next = self.choose();
            // In more failure domains than now, if that is possible now.
            let better = self.domains(next.into_iter()) > self.domains(sessions.into_iter());
            if fit && !better {
                return;
            }
            self.stop_counting(acts);
        }
        let Phase::DiskOnly {
            nobody,
            retry_at_ms,
        } = self.phase
        else {
            return;
        };
        let sessions = self.choose();
        if now_ms < retry_at_ms || (sessions.is_empty() && nobody) {
            return;
        }
        let holder = |session: &u64| {
            let member = self.members.get(session)?;
            Some(Holder {
                name: member.name.clone(),
                incarnation: member.incarnation,
            })
        };
        let holders = sessions.iter().filter_map(holder).collect();
        self.phase = Phase::Noting { sessions };
        acts.push(Act::Count(holders));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, zone: &str) -> Member {
        Member {
            name: name.to_owned(),
            incarnation: 7,
            zone: zone.to_owned(),
            leaving: false,
        }
    }

    fn set(number: u64, after: Lsn, count: &Act) -> HolderSet {
        let Act::Count(holders) = count else {
            panic!("{count:?}")
        };
        HolderSet {
            number,
            opened: 1,
            after,
            holders: holders.clone(),
        }
    }

    fn ack(set: u64, held: Lsn) -> Ack {
        Ack {
            set,
            held,
            bytes: 0,
        }
    }

    fn holding() -> Holding {
        Holding::new(Settings {
            copies: 2,
            health_ms: 1000,
        })
    }

    /// Two shards count as set 3, after frame 10.
    fn counting() -> Holding {
        let mut all = holding();
        let nobody = all.joined(1, member("a", ""), 0);
        assert_eq!(nobody, [Act::Count(vec![])]);
        assert_eq!(all.joined(2, member("b", ""), 0), []);
        // The second came while that was noted.
        let next = all.counted(Some(&set(2, 9, &nobody[0])), 0);
        let begun = all.counted(Some(&set(3, 10, &next[0])), 0);
        let sessions: Vec<u64> = begun
            .iter()
            .map(|act| match act {
                Act::Begin {
                    session,
                    set: 3,
                    after: 10,
                } => *session,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sessions.len(), 2);
        all
    }

    #[test]
    fn a_frame_is_held_when_all_of_the_set_have_it() {
        let mut all = counting();
        let held = |lsn| Some(Act::Held { set: 3, lsn });
        assert_eq!(all.acked(1, ack(3, 14), 14, 0), held(10));
        assert_eq!(all.acked(2, ack(3, 12), 14, 0), held(12));
        assert_eq!(all.acked(2, ack(2, 14), 14, 0), None);
        assert_eq!(all.acked(9, ack(3, 14), 14, 0), None);
        assert_eq!(all.acked(2, ack(3, 15), 15, 0), held(14));
        assert!(all.standing().counting);
    }

    #[test]
    fn one_that_is_lost_or_silent_counts_no_more_at_once() {
        let mut all = counting();
        let lost = all.left(2, 5);
        assert_eq!(lost, [Act::DiskOnly, Act::Count(vec![])]);
        assert!(!all.standing().counting);
        assert_eq!(all.acked(1, ack(3, 20), 20, 5), None);
        assert_eq!(all.counted(Some(&set(4, 20, &lost[1])), 6), []);
        assert_eq!(all.tick(20, false, 9000), []);

        let mut all = counting();
        all.acked(1, ack(3, 11), 11, 100);
        all.acked(2, ack(3, 11), 11, 100);
        assert_eq!(all.tick(12, true, 200), []);
        all.acked(1, ack(3, 12), 12, 210);
        assert_eq!(all.tick(12, true, 1199), []);
        let acts = all.tick(12, true, 1200);
        assert!(matches!(acts[0], Act::Close { session: 2, .. }));
        assert_eq!(acts[1], Act::DiskOnly);
    }

    #[test]
    fn a_third_takes_the_place_of_one_that_goes() {
        let mut all = counting();
        assert_eq!(all.joined(3, member("c", ""), 0), []);
        let acts = all.leaving(1, 0);
        let Act::Count(holders) = &acts[1] else {
            panic!("{acts:?}")
        };
        let mut names: Vec<&str> = holders.iter().map(|h| h.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "c"]);
        // One of them goes while the set is noted: it never counts.
        assert_eq!(all.left(2, 0), []);
        let acts = all.counted(Some(&set(4, 12, &acts[1])), 0);
        assert!(acts.contains(&Act::DiskOnly) && acts.contains(&Act::Count(vec![])));
    }

    #[test]
    fn another_failure_domain_begins_the_next_set() {
        let mut all = holding();
        let first = all.joined(1, member("a", "x"), 0);
        all.joined(2, member("b", "x"), 0);
        let next = all.counted(Some(&set(1, 0, &first[0])), 0);
        all.counted(Some(&set(2, 0, &next[0])), 0);
        assert!(all.standing().counting);
        let acts = all.joined(3, member("c", "y"), 0);
        assert_eq!(acts[0], Act::DiskOnly);
        assert!(matches!(&acts[1], Act::Count(holders) if holders.len() == 2));
    }

    #[test]
    fn what_could_not_be_noted_is_tried_again_later() {
        let mut all = holding();
        assert_eq!(all.tick(0, false, 0), [Act::Count(vec![])]);
        assert_eq!(all.counted(None, 10), []);
        assert_eq!(all.tick(0, false, 1009), []);
        assert_eq!(all.tick(0, false, 1010), [Act::Count(vec![])]);
    }

    /// The log ended its epoch: the set has to be noted anew.
    #[test]
    fn a_set_of_an_epoch_that_is_over_is_noted_anew() {
        let mut all = counting();
        let acts = all.tick(10, false, 50);
        assert_eq!(acts[0], Act::DiskOnly);
        assert!(matches!(&acts[1], Act::Count(holders) if holders.len() == 2));
    }
}
