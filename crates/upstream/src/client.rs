//! Calls to the right member.

mod calls;
mod pick;
mod pinned;
mod verdict;

pub use calls::{Headed, Watch};
pub use pick::{Policy, Routes, Work};
pub use pinned::Pinned;

use crate::auth::{self, Auth, Token};
use crate::cluster::Hint;
use crate::endpoint::Endpoint;
use crate::error::{CallError, Done, Error};
use crate::line::{Dialer, Line};
use crate::prober::{Handle, Parts};
use crate::settings::Settings;
use crate::view::{Health, Leader, View};
use pick::Picker;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use verdict::Verdict;

/// Attempts of one call at most.
const MAX_ATTEMPTS: u32 = 16;
const FIRST_WAIT: Duration = Duration::from_millis(20);
const MAX_WAIT: Duration = Duration::from_millis(500);
/// What tells etcd to refuse at once where there is no leader, and to propose nothing.
const REQUIRE_LEADER: (&str, &str) = ("hasleader", "true");

/// A client of one cluster. Clones share connections and what is known.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    routes: Routes,
    handle: Handle,
    view: watch::Receiver<Arc<View>>,
    dialer: Dialer,
    auth: Option<Arc<Auth>>,
    lines: Mutex<HashMap<Endpoint, Line>>,
    picker: Mutex<Picker>,
    /// Since when calls to the leader have met none, until one goes well there.
    lost: Mutex<Option<Instant>>,
    /// How long such calls wait for the next leader before they go around it. Followers take
    /// the lost one for theirs for a while: a write that they pass on to it is lost, and its
    /// caller waits in vain.
    grace: Duration,
}

/// One attempt of a call: where it goes, and what goes with it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// To be given to a generated client.
    pub channel: Channel,
    /// The member's endpoint.
    pub endpoint: Endpoint,
    token: Option<Token>,
    deadline: Option<Instant>,
}

impl Attempt {
    /// A request with what etcd wants to know: the token, that a leader is required, and how
    /// long the caller waits.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        auth::show(&mut request, self.token.as_ref());
        let (name, value) = REQUIRE_LEADER;
        let value = tonic::metadata::MetadataValue::from_static(value);
        request.metadata_mut().insert(name, value);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        request
    }
}

impl Client {
    /// A client; within a runtime. The members are asked from now on.
    ///
    /// # Errors
    /// If the settings cannot be used, or TLS files not be read.
    pub fn new(settings: &Settings, routes: Routes) -> Result<Self, Error> {
        let parts = Parts::new(settings)?;
        let (handle, view) = parts.clone().watch(settings);
        Ok(Client {
            shared: Arc::new(Shared {
                routes,
                handle,
                view,
                dialer: parts.dialer,
                auth: parts.auth,
                lines: Mutex::default(),
                picker: Mutex::default(),
                lost: Mutex::default(),
                grace: settings.timing.lifetime(),
            }),
        })
    }

    /// What is known of the cluster now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.borrow().clone()
    }

    /// To wait for what is known next.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.clone()
    }

    /// An attempt at one endpoint, for callers who choose themselves. It has no deadline but
    /// the caller's own.
    ///
    /// # Errors
    /// If there is a user, and no token to be had.
    pub async fn at(&self, endpoint: &Endpoint) -> Result<Attempt, Status> {
        let channel = self.channel(endpoint);
        if let Some(auth) = &self.shared.auth {
            auth.ready(&channel).await?;
        }
        Ok(Attempt {
            token: self.shared.auth.as_ref().and_then(|auth| auth.token()),
            channel,
            endpoint: endpoint.clone(),
            deadline: None,
        })
    }

    /// Says that a call at an endpoint has failed, so that the members are asked.
    pub fn suspect(&self, endpoint: &Endpoint) {
        self.shared.handle.suspect(endpoint);
    }

    /// Makes a call until it has an answer, for at most `timeout`. `once` makes one attempt.
    ///
    /// What only reads is made again when it was lost, and is taken elsewhere when its member
    /// falls silent. A write is made again only if it was provably not made; else the caller
    /// learns that it may have been.
    ///
    /// # Errors
    /// The last failure.
    pub async fn call<A, F>(
        &self,
        work: Work,
        timeout: Duration,
        mut once: impl FnMut(Attempt) -> F,
    ) -> Result<A, CallError>
    where
        A: Headed,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + timeout;
        let mut failed: Vec<Endpoint> = Vec::new();
        let mut last = None;
        let mut wait = FIRST_WAIT;
        for attempt in 0..MAX_ATTEMPTS {
            let Some(to) = self.pick(work, &failed, deadline).await else {
                break;
            };
            let status = match self.attempt(work, &to, &failed, deadline, &mut once).await {
                Ok(answer) => {
                    if work.wants_leader() {
                        *self.lost() = None;
                    }
                    self.look_at(&answer);
                    return Ok(answer.into_inner());
                }
                Err(status) => status,
            };
            let verdict = Verdict::of(&status);
            if verdict::speaks_of_leader(&status) {
                self.suspect(&to);
            }
            let again = verdict.allows_another(work.reads()) && attempt + 1 < MAX_ATTEMPTS;
            last = Some((to.clone(), status, verdict));
            if !again || Instant::now() >= deadline {
                break;
            }
            if verdict != Verdict::NoToken && !failed.contains(&to) {
                failed.push(to);
                // The next member is asked at once.
                if self.is_fresh(&failed) {
                    continue;
                }
            }
            let jittered = wait.mul_f64(rand::random_range(0.5..1.0));
            if Instant::now() + jittered >= deadline {
                break;
            }
            self.pause(jittered).await;
            wait = (wait * 2).min(MAX_WAIT);
            failed.clear();
        }
        Err(self.failure(last))
    }

    /// Waits for a while, or until somebody else leads.
    async fn pause(&self, wait: Duration) {
        let mut views = self.views();
        let leader = views.borrow_and_update().leader.clone();
        let other = views.wait_for(|view| view.leader.is_some() && view.leader != leader);
        // It does not matter which of them it was.
        let _ = tokio::time::timeout(wait, other).await;
    }

    /// Whether a member that answers has not failed yet.
    fn is_fresh(&self, failed: &[Endpoint]) -> bool {
        self.view().members.iter().any(|member| {
            !member.learner && member.health.is_healthy() && !failed.contains(&member.endpoint)
        })
    }

    fn lost(&self) -> MutexGuard<'_, Option<Instant>> {
        let lost = &self.shared.lost;
        lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks a member; while there is none, waits for one.
    async fn pick(&self, work: Work, failed: &[Endpoint], deadline: Instant) -> Option<Endpoint> {
        let mut views = self.views();
        loop {
            let view = views.borrow_and_update().clone();
            let leads = |l: &Leader| !failed.contains(&l.endpoint);
            if work.wants_leader() && !view.leader.as_ref().is_some_and(leads) {
                let now = Instant::now();
                let until = *self.lost().get_or_insert(now) + self.shared.grace;
                if now < until.min(deadline) {
                    // What becomes of it, the next look tells.
                    let _ = tokio::time::timeout_at(until.min(deadline), views.changed()).await;
                    continue;
                }
            }
            let picked = {
                let picker = &self.shared.picker;
                let mut picker = picker.lock().unwrap_or_else(PoisonError::into_inner);
                picker.pick(&view, work, self.shared.routes, failed)
            };
            if picked.is_some() {
                return picked;
            }
            match tokio::time::timeout_at(deadline, views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    async fn attempt<A, F>(
        &self,
        work: Work,
        to: &Endpoint,
        failed: &[Endpoint],
        deadline: Instant,
        once: &mut impl FnMut(Attempt) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let channel = self.channel(to);
        let whole = async {
            if let Some(auth) = &self.shared.auth {
                auth.ready(&channel).await?;
            }
            let token = self.shared.auth.as_ref().and_then(|auth| auth.token());
            let made = once(Attempt {
                channel: channel.clone(),
                endpoint: to.clone(),
                token: token.clone(),
                deadline: Some(deadline),
            });
            let outcome = made.await;
            if let (Err(status), Some(auth)) = (&outcome, &self.shared.auth)
                && auth::wants_token(status)
            {
                auth.renew(token.as_ref(), &channel).await?;
            }
            outcome
        };
        tokio::select! {
            outcome = whole => outcome,
            () = tokio::time::sleep_until(deadline) => {
                Err(Status::deadline_exceeded("no answer in time"))
            }
            () = self.until_better_elsewhere(work, to, failed), if work.reads() => {
                Err(Status::unavailable("it does not answer, or leads no more"))
            }
        }
    }

    async fn until_better_elsewhere(&self, work: Work, to: &Endpoint, failed: &[Endpoint]) {
        let mut views = self.views();
        let better = views.wait_for(|view| pick::is_better_elsewhere(view, work, to, failed));
        if better.await.is_err() {
            // Nobody looks any more, so nobody knows better.
            std::future::pending::<()>().await;
        }
    }

    /// Learns from an answer.
    fn look_at<A: Headed>(&self, answer: &Response<A>) {
        let Some(header) = answer.get_ref().header() else {
            return;
        };
        let known = self.shared.view.borrow().leader.as_ref().map(|l| l.term);
        if known.is_some_and(|known| header.raft_term > known) {
            self.shared.handle.hint(Hint::Term(header.raft_term));
        }
    }

    fn channel(&self, endpoint: &Endpoint) -> Channel {
        let view = self.view();
        let lines = &self.shared.lines;
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has fallen silent may never say that it is gone.
        lines.retain(|to, _| {
            to == endpoint
                || view
                    .at(to)
                    .is_some_and(|m| !matches!(m.health, Health::Unhealthy { .. }))
        });
        let line = lines
            .entry(endpoint.clone())
            .or_insert_with(|| self.shared.dialer.line(endpoint));
        line.channel.clone()
    }

    fn failure(&self, last: Option<(Endpoint, Status, Verdict)>) -> CallError {
        match last {
            Some((endpoint, status, verdict)) => CallError::Failed {
                endpoint,
                status: Box::new(status),
                done: if verdict.may_be_made() {
                    Done::Maybe
                } else {
                    Done::No
                },
            },
            None => {
                let view = self.view();
                let reasons = view.members.iter().map(|member| match &member.health {
                    Health::Unhealthy { why, .. } => format!("{}: {why}", member.endpoint),
                    _ => format!("{}: not asked yet", member.endpoint),
                });
                CallError::Nobody(reasons.collect::<Vec<_>>().join("; "))
            }
        }
    }
}
