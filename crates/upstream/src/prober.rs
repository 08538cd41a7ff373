//! Asks the members, and publishes what is known.
//!
//! One task has the state machine. Each address is asked on its own, one question at a time, so
//! that a silent member delays nobody.

use crate::auth::{self, Auth};
use crate::cluster::{Agreed, Answer, Cluster, Failure, Hint, Listed, Timing};
use crate::endpoint::Endpoint;
use crate::error::{Error, explain};
use crate::line::{Dialer, Line};
use crate::settings::Settings;
use crate::view::{Health, View};
use etcd_api::etcdserverpb as pb;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use wire::ClientTls;

/// A member is not asked again before this, whoever suspects it.
const MIN_GAP: Duration = Duration::from_millis(50);
/// Hints that wait; what more there is says nothing new.
const MAX_HINTS: usize = 64;
/// Questions come this much early or late, so that many askers do not ask at once.
const JITTER: f64 = 0.1;

/// Keeps members being asked; they are until its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    hints: mpsc::Sender<Hint>,
}

impl Handle {
    /// A connection to this endpoint failed, or it is said not to lead: everybody is asked now,
    /// but not more often than every 50 ms.
    pub fn suspect(&self, endpoint: &Endpoint) {
        tracing::debug!(%endpoint, "suspected");
        self.hint(Hint::Suspect);
    }

    /// Takes what a call has met.
    pub fn hint(&self, hint: Hint) {
        // Where there is no room, others have said so.
        let _ = self.hints.try_send(hint);
    }
}

/// Asks the members of a cluster from now on, on the runtime that this is called in.
///
/// # Errors
/// If the settings cannot be used, or TLS files not be read.
pub fn watch(settings: &Settings) -> Result<(Handle, watch::Receiver<Arc<View>>), Error> {
    let parts = Parts::new(settings)?;
    Ok(parts.watch(settings))
}

/// What a prober and a client share.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) dialer: Dialer,
    pub(crate) auth: Option<Arc<Auth>>,
}

impl Parts {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        settings.check()?;
        let tls = match &settings.tls {
            Some(config) => Some(ClientTls::load(config.clone(), b"h2")?),
            None => None,
        };
        Ok(Parts {
            dialer: Dialer::new(tls),
            auth: settings.user.clone().map(|user| Arc::new(Auth::new(user))),
        })
    }

    pub(crate) fn watch(self, settings: &Settings) -> (Handle, watch::Receiver<Arc<View>>) {
        let (hints, incoming) = mpsc::channel(MAX_HINTS);
        let cluster = Cluster::new(settings.endpoints.clone(), settings.timing, now());
        let (views, receiver) = watch::channel(Arc::new(cluster.view()));
        let prober = Prober {
            parts: self,
            timing: settings.timing,
            cluster,
            slots: HashMap::new(),
            listing: false,
            asking: JoinSet::new(),
            views,
        };
        tokio::spawn(prober.run(incoming));
        (Handle { hints }, receiver)
    }
}

/// The runtime's clock, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// An address that is asked.
struct Slot {
    line: Line,
    asked: Option<Instant>,
    in_flight: bool,
    /// It is to be asked as soon as it may be.
    at_once: bool,
    /// What the next question's interval is multiplied by.
    jitter: f64,
}

impl Slot {
    fn due(&self, pace: Duration) -> Option<Instant> {
        let after = if self.at_once {
            MIN_GAP
        } else {
            pace.mul_f64(self.jitter).max(MIN_GAP)
        };
        self.asked.map(|asked| asked + after)
    }
}

enum Asked {
    Status {
        endpoint: Endpoint,
        asked: Instant,
        outcome: Result<Answer, Failure>,
        round_trip: Option<Duration>,
    },
    List {
        asked: Instant,
        agreed: Agreed,
        list: Option<Vec<Listed>>,
    },
}

struct Prober {
    parts: Parts,
    timing: Timing,
    cluster: Cluster,
    slots: HashMap<Endpoint, Slot>,
    listing: bool,
    asking: JoinSet<Asked>,
    views: watch::Sender<Arc<View>>,
}

impl Prober {
    async fn run(mut self, mut hints: mpsc::Receiver<Hint>) {
        loop {
            let wake = self.ask_who_is_due();
            self.publish();
            tokio::select! {
                () = tokio::time::sleep_until(wake.into()) => {}
                Some(done) = self.asking.join_next(), if !self.asking.is_empty() => {
                    if let Ok(asked) = done {
                        self.take(asked);
                    }
                }
                hint = hints.recv() => match hint {
                    Some(hint) => self.cluster.hint(&hint),
                    None => return,
                },
            }
        }
    }

    /// Asks, and says when somebody is due next.
    fn ask_who_is_due(&mut self) -> Instant {
        let now = now();
        self.cluster.tick(now);
        let wanted = self.cluster.to_ask();
        self.slots.retain(|endpoint, _| wanted.contains(endpoint));
        for endpoint in wanted {
            let line = || self.parts.dialer.line(&endpoint);
            self.slots.entry(endpoint.clone()).or_insert_with(|| Slot {
                line: line(),
                asked: None,
                in_flight: false,
                at_once: false,
                jitter: 1.0,
            });
        }
        if self.cluster.take_ask() {
            self.slots.values_mut().for_each(|slot| slot.at_once = true);
        }
        let pace = self.cluster.pace(now);
        let mut wake = now + self.timing.interval;
        for (endpoint, slot) in &mut self.slots {
            if slot.in_flight {
                continue;
            }
            match slot.due(pace) {
                Some(due) if due > now => wake = wake.min(due),
                _ => {
                    slot.in_flight = true;
                    slot.at_once = false;
                    slot.asked = Some(now);
                    slot.jitter = rand::random_range(1.0 - JITTER..1.0 + JITTER);
                    let asking = ask(
                        endpoint.clone(),
                        slot.line.clone(),
                        self.parts.auth.clone(),
                        self.timing.deadline,
                    );
                    self.asking.spawn(asking);
                }
            }
        }
        if !self.listing
            && let Some((endpoint, agreed)) = self.cluster.list_from(now)
            && let Some(slot) = self.slots.get(&endpoint)
        {
            self.listing = true;
            let (line, auth) = (slot.line.clone(), self.parts.auth.clone());
            self.asking
                .spawn(ask_list(line, auth, agreed, self.timing.deadline));
        }
        wake
    }

    fn take(&mut self, asked: Asked) {
        match asked {
            Asked::Status {
                endpoint,
                asked,
                outcome,
                round_trip,
            } => {
                if let Some(slot) = self.slots.get_mut(&endpoint) {
                    slot.in_flight = false;
                    if outcome == Err(Failure::Silent) && slot.line.connected() > 0 {
                        // Whatever stands between may have forgotten the connection.
                        slot.line = self.parts.dialer.line(&endpoint);
                    }
                }
                self.cluster
                    .report(&endpoint, asked, outcome, round_trip, now());
            }
            Asked::List {
                asked,
                agreed,
                list,
            } => {
                self.listing = false;
                match list {
                    Some(list) => self.cluster.listed(list, agreed, asked, now()),
                    None => self.cluster.not_listed(asked),
                }
            }
        }
    }

    fn publish(&self) {
        let next = self.cluster.view();
        let before = self.views.borrow().clone();
        if *before != next {
            log(&before, &next);
            self.views.send_replace(Arc::new(next));
        }
    }
}

/// Says who leads, and who does not answer, when that changes.
fn log(before: &View, next: &View) {
    match (&before.leader, &next.leader) {
        (Some(was), None) => tracing::warn!(
            member = format!("{:x}", was.member_id),
            endpoint = %was.endpoint,
            "the cluster has no leader that answers"
        ),
        (was, Some(is))
            if was.as_ref().map(|l| (l.member_id, l.term)) != Some((is.member_id, is.term)) =>
        {
            tracing::info!(
                member = format!("{:x}", is.member_id),
                endpoint = %is.endpoint,
                term = is.term,
                "the cluster's leader"
            );
        }
        _ => {}
    }
    for member in &next.members {
        let was = before.at(&member.endpoint).map(|member| &member.health);
        match &member.health {
            Health::Unhealthy { why, .. } if !matches!(was, Some(Health::Unhealthy { why: known, .. }) if known == why) =>
            {
                tracing::warn!(endpoint = %member.endpoint, %why, "a member does not answer");
            }
            Health::Healthy if matches!(was, Some(Health::Unhealthy { .. })) => {
                tracing::info!(endpoint = %member.endpoint, "a member answers again");
            }
            _ => {}
        }
    }
}

/// Calls with a token, and once more with a new one.
async fn with_token<A, F>(
    line: &Line,
    auth: Option<&Auth>,
    mut once: impl FnMut(Option<auth::Token>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<A, Status>>,
{
    let Some(auth) = auth else {
        return once(None).await;
    };
    // Without a majority there is no token, and Status may be answered without one.
    let _ = auth.ready(&line.channel).await;
    let token = auth.token();
    match once(token.clone()).await {
        Err(status) if auth::wants_token(&status) => {
            auth.renew(token.as_ref(), &line.channel).await?;
            once(auth.token()).await
        }
        other => other,
    }
}

async fn ask(endpoint: Endpoint, line: Line, auth: Option<Arc<Auth>>, deadline: Duration) -> Asked {
    let asked = now();
    let connected = line.connected();
    let status = with_token(&line, auth.as_deref(), |token| {
        let mut request = Request::new(pb::StatusRequest::default());
        auth::show(&mut request, token.as_ref());
        let mut client = pb::maintenance_client::MaintenanceClient::new(line.channel.clone());
        async move {
            let began = now();
            let answer = client.status(request).await?.into_inner();
            Ok((answer, now().saturating_duration_since(began)))
        }
    });
    let outcome = tokio::time::timeout(deadline, status).await;
    let same_line = connected > 0 && line.connected() == connected;
    let (outcome, round_trip) = match outcome {
        Ok(Ok((answer, took))) => (Ok(answer_of(answer)), same_line.then_some(took)),
        Ok(Err(status)) => (Err(failure_of(&status)), None),
        Err(_) => (Err(Failure::Silent), None),
    };
    Asked::Status {
        endpoint,
        asked,
        outcome,
        round_trip,
    }
}

async fn ask_list(
    line: Line,
    auth: Option<Arc<Auth>>,
    agreed: Agreed,
    deadline: Duration,
) -> Asked {
    let asked = now();
    let linearizable = agreed == Agreed::Majority;
    let list = with_token(&line, auth.as_deref(), |token| {
        let mut request = Request::new(pb::MemberListRequest { linearizable });
        auth::show(&mut request, token.as_ref());
        let mut client = pb::cluster_client::ClusterClient::new(line.channel.clone());
        async move { Ok(client.member_list(request).await?.into_inner()) }
    });
    let list = match tokio::time::timeout(deadline, list).await {
        Ok(Ok(list)) => Some(list.members.into_iter().map(listed_of).collect()),
        Ok(Err(status)) => {
            tracing::debug!(reason = %explain(&status), "no member list");
            None
        }
        Err(_) => None,
    };
    Asked::List {
        asked,
        agreed,
        list,
    }
}

fn failure_of(status: &Status) -> Failure {
    // What has a cause comes from this side of the connection.
    if std::error::Error::source(status).is_some() || status.code() == Code::Unavailable {
        Failure::Unreachable(explain(status))
    } else {
        Failure::Refused(explain(status))
    }
}

fn answer_of(status: pb::StatusResponse) -> Answer {
    let header = status.header.unwrap_or_default();
    Answer {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        term: status.raft_term,
        follows: (status.leader != 0).then_some(status.leader),
        learner: status.is_learner,
        raft_index: status.raft_index,
        raft_applied_index: status.raft_applied_index,
        db_size_bytes: u64::try_from(status.db_size).unwrap_or(0),
        db_size_in_use_bytes: u64::try_from(status.db_size_in_use).unwrap_or(0),
        version: status.version,
        errors: status.errors,
    }
}

fn listed_of(member: pb::Member) -> Listed {
    let urls = member.client_ur_ls.iter();
    Listed {
        member_id: member.id,
        name: member.name,
        // Others, such as Unix sockets, are on the member's own machine.
        advertised: urls.filter_map(|url| url.parse().ok()).collect(),
        learner: member.is_learner,
    }
}
