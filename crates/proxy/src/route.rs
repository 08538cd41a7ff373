//! Where connections belong, as far as they need to know it.
//!
//! The view of the cluster is new with every answer of a member. Connections look at this instead,
//! which changes only when something changes for them.

use tokio::time::Instant;
use upstream::{Endpoint, Health, MemberView, View};

/// Whether the proxy goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// It serves.
    On,
    /// It stops: connections end in a gap, and at this time at the latest.
    DrainBy(Instant),
}

/// Where connections belong now.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The member that leads.
    pub(crate) leader: Option<Endpoint>,
    /// Members that do not answer: nothing is to be hoped for from a connection to them.
    pub(crate) lost: Vec<Endpoint>,
    /// Healthy members with a vote that do not lead, nearest first as of the last change.
    pub(crate) others: Vec<Endpoint>,
    /// Whether the proxy goes on.
    pub(crate) service: Service,
}

impl Route {
    /// What follows from a view.
    pub(crate) fn of(view: &View, service: Service) -> Self {
        let leader = view.leader.as_ref().map(|leader| leader.endpoint.clone());
        let lost = view
            .members
            .iter()
            .filter(|member| matches!(member.health, Health::Unhealthy { .. }))
            .map(|member| member.endpoint.clone())
            .collect();
        let mut others = nearest(&view.members);
        others.retain(|other| Some(other) != leader.as_ref());
        Route {
            leader,
            lost,
            others,
            service,
        }
    }

    /// Whether it says the same. How near members are changes all the time, and is no change.
    pub(crate) fn says_as(&self, other: &Route) -> bool {
        let sorted = |route: &Route| {
            let mut others = route.others.clone();
            others.sort();
            others
        };
        self.leader == other.leader
            && self.lost == other.lost
            && self.service == other.service
            && sorted(self) == sorted(other)
    }

    /// Whether a member does not answer.
    pub(crate) fn has_lost(&self, member: &Endpoint) -> bool {
        self.lost.contains(member)
    }
}

fn nearest(members: &[MemberView]) -> Vec<Endpoint> {
    let mut healthy: Vec<_> = members
        .iter()
        .filter(|member| member.health.is_healthy() && !member.learner)
        .collect();
    healthy.sort_by_key(|member| member.round_trip.smoothed_us.unwrap_or(u64::MAX));
    healthy
        .into_iter()
        .map(|member| member.endpoint.clone())
        .collect()
}

/// Why nobody leads, for a log line: what each member is said to do.
pub(crate) fn why_nobody_leads(view: &View) -> String {
    if view.members.is_empty() {
        return "no member is known".to_owned();
    }
    let each = view.members.iter().map(|member| {
        let says = match &member.health {
            Health::Unknown => "has not answered yet".to_owned(),
            Health::Unhealthy { why, .. } => why.clone(),
            Health::Healthy => match member.follows {
                None => "knows no leader".to_owned(),
                Some(id) => format!("follows {id:x}"),
            },
        };
        format!("{}: {says}", member.endpoint)
    });
    each.collect::<Vec<_>>().join("; ")
}
