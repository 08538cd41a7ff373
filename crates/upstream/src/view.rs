//! What is known of a cluster, as it is published.

use crate::endpoint::Endpoint;
use std::time::Instant;

/// What is known of an etcd cluster at one moment: published whole, read without a lock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The cluster, once a member has answered. A member of another one is unhealthy.
    pub cluster_id: Option<u64>,
    /// Who leads and answers; `None` while nobody is known to. One that its peers follow, but that
    /// does not answer from here, is not named.
    pub leader: Option<Leader>,
    /// Every known member, learners too; before any answer, one for each given endpoint.
    pub members: Vec<MemberView>,
    /// How often the leader became another one since the start; the first is none. Losing the
    /// leader is none either, finding another after that is one.
    pub changes: u64,
}

/// The member that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its id in the cluster.
    pub member_id: u64,
    /// The term it leads in.
    pub term: u64,
    /// Where it is reached.
    pub endpoint: Endpoint,
}

/// One member.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Its id, once it or the member list has told it.
    pub member_id: Option<u64>,
    /// Its name in the member list; empty before that, and of one that has not started yet.
    pub name: String,
    /// Where it is reached: a given endpoint if one is known to be this member, else what it
    /// advertises.
    pub endpoint: Endpoint,
    /// It has no vote, and can lead nothing.
    pub learner: bool,
    /// Whether it answers.
    pub health: Health,
    /// How long its answers take.
    pub round_trip: RoundTrip,
    /// When it answered last.
    pub answered: Option<Instant>,
    /// Whom it takes for the leader, by its last answer; `None` if it knows none.
    pub follows: Option<u64>,
    /// Its raft term, by its last answer; 0 before that.
    pub term: u64,
    /// The last entry that it knows to be committed, by its last answer.
    pub raft_index: u64,
    /// The last entry that it applied, by its last answer.
    pub raft_applied_index: u64,
    /// The size of its database's file, by its last answer.
    pub db_size_bytes: u64,
    /// What of that file is in use, by its last answer.
    pub db_size_in_use_bytes: u64,
    /// etcd's version, by its last answer; empty before that.
    pub version: String,
    /// What it says to be wrong, by its last answer, such as alarms of the cluster.
    pub errors: Vec<String>,
}

impl MemberView {
    /// One of which nothing is known but where it should be.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        MemberView {
            member_id: None,
            name: String::new(),
            endpoint,
            learner: false,
            health: Health::Unknown,
            round_trip: RoundTrip::default(),
            answered: None,
            follows: None,
            term: 0,
            raft_index: 0,
            raft_applied_index: 0,
            db_size_bytes: 0,
            db_size_in_use_bytes: 0,
            version: String::new(),
            errors: Vec::new(),
        }
    }
}

/// Whether a member answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It was not asked yet, or not answered yet and not given up.
    #[default]
    Unknown,
    /// Its last answer is good.
    Healthy,
    /// It does not answer, or its answer says that it cannot serve.
    Unhealthy {
        /// Since when.
        since: Instant,
        /// Why, for an operator.
        why: String,
    },
}

impl Health {
    /// Whether it is [`Health::Healthy`].
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        matches!(self, Health::Healthy)
    }
}

/// How long answers of a member take, in microseconds: of Status, by which it is probed. `None`
/// where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// Exponentially smoothed.
    pub smoothed_us: Option<u64>,
    /// Half of the last answers came within this.
    pub p50_us: Option<u64>,
    /// 99 of 100 of the last answers came within this.
    pub p99_us: Option<u64>,
}

impl View {
    /// The member that leads.
    #[must_use]
    pub fn leading(&self) -> Option<&MemberView> {
        let leader = self.leader.as_ref()?;
        self.members
            .iter()
            .find(|member| member.member_id == Some(leader.member_id))
    }

    /// The member that is reached at an endpoint.
    #[must_use]
    pub fn at(&self, endpoint: &Endpoint) -> Option<&MemberView> {
        self.members
            .iter()
            .find(|member| member.endpoint == *endpoint)
    }
}
