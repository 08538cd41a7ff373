//! What comes in: answers, failures, lists of members, hints.

use crate::endpoint::Endpoint;

/// A member's answer to Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its cluster.
    pub cluster_id: u64,
    /// Itself.
    pub member_id: u64,
    /// Its raft term.
    pub term: u64,
    /// Whom it takes for the leader of that term; itself, if it leads. `None` if it knows none.
    pub follows: Option<u64>,
    /// It has no vote.
    pub learner: bool,
    /// The last entry that it knows to be committed.
    pub raft_index: u64,
    /// The last entry that it applied.
    pub raft_applied_index: u64,
    /// The size of its database's file.
    pub db_size_bytes: u64,
    /// What of that file is in use.
    pub db_size_in_use_bytes: u64,
    /// etcd's version.
    pub version: String,
    /// What it says to be wrong.
    pub errors: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection: refused, reset, no TLS. Why, for an operator.
    Unreachable(String),
    /// Nothing came within the deadline.
    Silent,
    /// It answered with an error. Which, for an operator.
    Refused(String),
}

/// A member, as the member list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub member_id: u64,
    /// Its name; empty if it has not started yet.
    pub name: String,
    /// Its client URLs, those that are endpoints.
    pub advertised: Vec<Endpoint>,
    /// It has no vote.
    pub learner: bool,
}

/// How a member list was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// A majority has confirmed it.
    Majority,
    /// It is what one member has, which may be of the past.
    OneMember,
}

/// What a call has met that says something about who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// An answer's header has this term.
    Term(u64),
    /// A connection failed, or a member said that it has no leader or does not lead.
    Suspect,
}
