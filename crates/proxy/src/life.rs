//! The life of one connection: what is to be done with it now.
//!
//! Decisions only, of time and [`Route`] alone; who carries them out is in `connection`.
//!
//! ```text
//! Waiting <-> Connecting -> Opening -> Relaying <-> Leaving
//!    ^                         |
//!    +-- first bytes again ----+           (each may end)
//! ```

use std::time::Duration;

use tokio::time::Instant;
use upstream::Endpoint;

use crate::route::{Route, Service};
use crate::settings::{Fallback, Settings};

/// The pause after the first failed attempt to connect; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// A member that has not answered a client's first bytes for so long is asked whether it is there.
const SUSPECT_AFTER: Duration = Duration::from_millis(500);

/// Why a connection was ended or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// Both sides have sent all they had.
    Done,
    /// The client's side failed: reset, or silent to TCP itself.
    ClientFailed,
    /// The member's side failed.
    MemberFailed,
    /// The leader is another member, in a gap.
    Gap,
    /// The leader is another member, and no gap came in time.
    Limit,
    /// The leader is another member, and this one does not answer any more.
    MemberLost,
    /// Nothing was sent for too long.
    Idle,
    /// The proxy stops.
    Drain,
    /// Refused: nobody led in time.
    NoLeader,
    /// Refused: no attempt to connect to the leader succeeded in time.
    Unreachable,
}

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The client.
    Client,
    /// The member.
    Member,
}

/// What was sent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// When; at first when the connection came about.
    pub(crate) last: Instant,
    /// By whom, if anybody has.
    pub(crate) by: Option<Who>,
    /// Bytes of it are still held, because the other side does not take them.
    pub(crate) held: bool,
    /// One side has ended.
    pub(crate) half_closed: bool,
    /// The member's bytes went to the client at this very moment, all that there were.
    pub(crate) answers: bool,
}

impl Traffic {
    /// Of a connection that came about now.
    pub(crate) fn new(now: Instant) -> Self {
        Traffic {
            last: now,
            by: None,
            held: false,
            half_closed: false,
            answers: false,
        }
    }

    /// From when on it is a gap, if nothing is sent until then. After a client's bytes there is
    /// none: they may ask for something, and the silence is the member at work on the answer.
    fn gap_at(&self, gap: Duration) -> Option<Instant> {
        let answered = self.by != Some(Who::Client) && !self.held;
        answered.then(|| self.last + gap)
    }
}

/// Whether a client's bytes so far could be sent to another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// They open a TLS session, and are kept.
    Kept,
    /// They may ask for something, or are too many.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no member.
    Waiting { retry_at: Option<Instant> },
    /// A connection to a member is being made.
    Connecting { to: Endpoint, by: Instant },
    /// The member has sent nothing yet.
    Opening {
        to: Endpoint,
        traffic: Traffic,
        suspected: bool,
    },
    /// Both sides talk.
    Relaying { to: Endpoint, traffic: Traffic },
    /// It has to leave its member.
    Leaving {
        to: Endpoint,
        traffic: Traffic,
        /// Until then a gap is waited for; from then on the end of an answer will do.
        patient_until: Instant,
        by: Instant,
    },
    /// It is over.
    Ended(End),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until something happens or it is so late.
    Wait(Option<Instant>),
    /// Connect to this member; what was connected or tried before is dropped.
    Connect(Endpoint),
    /// Drop the connection to the member, and look again: the first bytes go to another.
    Again,
    /// Have this member looked at, and look again.
    Suspect(Endpoint),
    /// End it.
    End(End),
}

/// One connection's life.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    wait: Duration,
    dial_timeout: Duration,
    gap: Duration,
    limit: Duration,
    fallback: Fallback,
    idle: Option<Duration>,
    half_closed: Duration,
    /// Since when it has had no member that answered.
    since: Instant,
    failures: u32,
    first_bytes: FirstBytes,
    /// The leader that could not be reached, when a follower was taken in its place: as long as it
    /// leads, the connection stays there.
    given_up: Option<Endpoint>,
    state: State,
}

impl Life {
    /// Of a connection that was accepted now.
    pub(crate) fn new(settings: &Settings, now: Instant) -> Self {
        Life {
            wait: settings.wait,
            dial_timeout: settings.dial_timeout,
            gap: settings.handover_gap,
            limit: settings.handover_limit,
            fallback: settings.fallback,
            idle: settings.idle_timeout,
            half_closed: settings.half_closed_timeout,
            since: now,
            failures: 0,
            first_bytes: FirstBytes::Kept,
            given_up: None,
            state: State::Waiting { retry_at: None },
        }
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Its member, once it is connected to one.
    pub(crate) fn member(&self) -> Option<&Endpoint> {
        match &self.state {
            State::Opening { to, .. } | State::Relaying { to, .. } | State::Leaving { to, .. } => {
                Some(to)
            }
            _ => None,
        }
    }

    /// Whether it is to be told of the end of each answer.
    pub(crate) fn wants_answers(&self, now: Instant) -> bool {
        matches!(self.state, State::Leaving { patient_until, .. } if now >= patient_until)
    }

    /// How long it has been without a member that answered.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The connection to the member has come about.
    pub(crate) fn connected(&mut self, now: Instant) {
        if let State::Connecting { to, .. } = &self.state {
            self.state = State::Opening {
                to: to.clone(),
                traffic: Traffic::new(now),
                suspected: false,
            };
        }
    }

    /// It has not. Returns the member, which is to be looked at.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<Endpoint> {
        let State::Connecting { to, .. } = &self.state else {
            return None;
        };
        let to = to.clone();
        self.state = State::Waiting {
            retry_at: Some(now + self.pause()),
        };
        Some(to)
    }

    /// The pause before the next attempt, which grows.
    fn pause(&mut self) -> Duration {
        let pause = RETRY_FIRST * 2u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        pause.min(RETRY_MAX)
    }

    /// Bytes have moved, or a side has ended.
    pub(crate) fn moved(&mut self, traffic: Traffic, first_bytes: FirstBytes) {
        self.first_bytes = first_bytes;
        let answered = traffic.by == Some(Who::Member);
        match &mut self.state {
            State::Opening { to, .. } if answered => {
                self.state = State::Relaying {
                    to: to.clone(),
                    traffic,
                };
            }
            State::Opening { traffic: known, .. }
            | State::Relaying { traffic: known, .. }
            | State::Leaving { traffic: known, .. } => *known = traffic,
            _ => {}
        }
    }

    /// The member's side has ended or failed. Whether that ends the connection; if not, the first
    /// bytes go to another member.
    pub(crate) fn lost_member(&mut self, now: Instant) -> bool {
        if !self.may_begin_again() {
            return true;
        }
        // One that was at rest there has not waited for anything yet.
        if let State::Opening { traffic, .. } = &self.state
            && now.saturating_duration_since(traffic.last) >= self.wait
        {
            self.begin_to_wait(now);
        }
        self.state = State::Waiting {
            retry_at: Some(now + self.pause()),
        };
        false
    }

    fn begin_to_wait(&mut self, now: Instant) {
        (self.since, self.failures) = (now, 0);
    }

    fn may_begin_again(&self) -> bool {
        matches!(self.state, State::Opening { .. }) && self.first_bytes == FirstBytes::Kept
    }

    /// It is over.
    pub(crate) fn end(&mut self, end: End) {
        self.state = State::Ended(end);
    }

    /// What is to be done now. Called after every event; once it says to wait, it says the same
    /// until something happens.
    pub(crate) fn look(&mut self, now: Instant, route: &Route) -> Step {
        let step = match &self.state {
            State::Waiting { retry_at } => {
                let retry_at = *retry_at;
                self.find(retry_at, now, route)
            }
            State::Connecting { to, by } => {
                let (to, by) = (to.clone(), *by);
                self.connecting(&to, by, now, route)
            }
            State::Opening { .. } | State::Relaying { .. } => self.stay(now, route),
            // It leads again, or nobody does: then there is nowhere better to go.
            State::Leaving { to, traffic, .. }
                if route.service == Service::On
                    && route.leader.as_ref().is_none_or(|leader| leader == to) =>
            {
                self.state = State::Relaying {
                    to: to.clone(),
                    traffic: *traffic,
                };
                self.stay(now, route)
            }
            State::Leaving {
                to,
                traffic,
                patient_until,
                by,
            } => self.leave(to, traffic, (*patient_until, *by), now, route),
            State::Ended(end) => Step::End(*end),
        };
        match &step {
            Step::End(end) => self.end(*end),
            Step::Connect(to) => {
                self.state = State::Connecting {
                    to: to.clone(),
                    by: now + self.dial_timeout,
                };
            }
            Step::Again => {
                self.begin_to_wait(now);
                self.state = State::Waiting { retry_at: None };
            }
            Step::Wait(_) | Step::Suspect(_) => {}
        }
        step
    }

    fn find(&mut self, retry_at: Option<Instant>, now: Instant, route: &Route) -> Step {
        if matches!(route.service, Service::DrainBy(_)) {
            return Step::End(End::Drain);
        }
        let give_up_at = self.since + self.wait;
        if now >= give_up_at {
            return self.fall_back(give_up_at, retry_at, now, route);
        }
        let Some(leader) = &route.leader else {
            return Step::Wait(Some(give_up_at));
        };
        match retry_at {
            Some(at) if at > now => Step::Wait(Some(at.min(give_up_at))),
            _ => Step::Connect(leader.clone()),
        }
    }

    /// It has waited long enough.
    fn fall_back(
        &mut self,
        give_up_at: Instant,
        retry_at: Option<Instant>,
        now: Instant,
        route: &Route,
    ) -> Step {
        let tries = self.fallback == Fallback::Follower
            && !route.others.is_empty()
            && now < give_up_at + self.dial_timeout;
        if tries {
            if let Some(at) = retry_at.filter(|at| *at > now) {
                return Step::Wait(Some(at));
            }
            self.given_up = route.leader.clone();
            let turn = self.failures as usize % route.others.len();
            return Step::Connect(route.others[turn].clone());
        }
        match &route.leader {
            // One attempt, if none was made yet.
            Some(leader) if self.failures == 0 => Step::Connect(leader.clone()),
            Some(_) => Step::End(End::Unreachable),
            None => Step::End(End::NoLeader),
        }
    }

    fn connecting(&mut self, to: &Endpoint, by: Instant, now: Instant, route: &Route) -> Step {
        if matches!(route.service, Service::DrainBy(_)) {
            return Step::End(End::Drain);
        }
        match &route.leader {
            Some(leader) if leader != to && self.given_up.as_ref() != Some(leader) => {
                Step::Connect(leader.clone())
            }
            _ if now >= by => {
                self.failed(now);
                Step::Suspect(to.clone())
            }
            _ => Step::Wait(Some(by)),
        }
    }

    fn stay(&mut self, now: Instant, route: &Route) -> Step {
        let begins_again = self.may_begin_again();
        let (to, traffic, opening) = match &mut self.state {
            State::Opening {
                to,
                traffic,
                suspected,
            } => (to, *traffic, Some(suspected)),
            State::Relaying { to, traffic } => (to, *traffic, None),
            _ => return Step::Wait(None),
        };
        let given_up = &self.given_up;
        let elsewhere = route
            .leader
            .as_ref()
            .is_some_and(|leader| leader != to && given_up.as_ref() != Some(leader));
        let hopeless = route.leader.is_none() && route.has_lost(to);
        let by = match route.service {
            Service::DrainBy(by) => Some(by),
            Service::On if begins_again && (elsewhere || hopeless) => return Step::Again,
            Service::On if elsewhere => Some(now + self.limit),
            Service::On => None,
        };
        if let Some(by) = by {
            let to = to.clone();
            let patient_until = now + by.saturating_duration_since(now) / 2;
            let step = self.leave(&to, &traffic, (patient_until, by), now, route);
            self.state = State::Leaving {
                to,
                traffic,
                patient_until,
                by,
            };
            return step;
        }
        let idle = match traffic.half_closed {
            true => Some(self.half_closed),
            false => self.idle,
        };
        let idle_at = idle.map(|idle| traffic.last + idle);
        if idle_at.is_some_and(|at| now >= at) {
            return Step::End(End::Idle);
        }
        let suspect_at = traffic.last + SUSPECT_AFTER;
        match opening {
            Some(suspected) if !*suspected && traffic.by == Some(Who::Client) => {
                if now >= suspect_at {
                    *suspected = true;
                    return Step::Suspect(to.clone());
                }
                Step::Wait(Some(idle_at.map_or(suspect_at, |at| at.min(suspect_at))))
            }
            _ => Step::Wait(idle_at),
        }
    }

    fn leave(
        &self,
        to: &Endpoint,
        traffic: &Traffic,
        (patient_until, by): (Instant, Instant),
        now: Instant,
        route: &Route,
    ) -> Step {
        let drains = matches!(route.service, Service::DrainBy(_));
        let leads = route.leader.as_ref() == Some(to);
        // What a member that does not answer still owes is not worth waiting for.
        if route.has_lost(to) && !leads {
            return Step::End(End::MemberLost);
        }
        let gap_at = traffic.gap_at(self.gap);
        // A client that asks again as soon as it is answered leaves no gap. Its connection ends with
        // an answer: of one call at a time, none is under way then.
        let after_answer = traffic.answers && !traffic.held && now >= patient_until;
        let end = |end| Step::End(if drains { End::Drain } else { end });
        if after_answer || gap_at.is_some_and(|at| now >= at) {
            return end(End::Gap);
        }
        if now >= by {
            return end(End::Limit);
        }
        let next = if now < patient_until {
            patient_until
        } else {
            by
        };
        Step::Wait(Some(gap_at.map_or(next, |at| at.min(next))))
    }
}
