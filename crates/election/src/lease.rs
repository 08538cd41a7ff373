//! The Lease by which processes agree who acts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::rules::{Candidate, Seen, Step, Times};

/// A process's part in the election, to be asked at any time.
#[derive(Clone, Debug)]
pub struct Seat {
    candidate: Arc<Mutex<Candidate>>,
    /// When the apiserver last answered, in ms since the beginning.
    answered_ms: Arc<AtomicU64>,
    began: Instant,
}

impl Seat {
    /// Of a process with a name that no other has.
    #[must_use]
    pub fn new(me: String, times: Times) -> Self {
        Self {
            candidate: Arc::new(Mutex::new(Candidate::new(me, times))),
            answered_ms: Arc::default(),
            began: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether this process acts now.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.candidate.lock().acts(self.now_ms())
    }

    /// For how long the apiserver has not answered, in ms; at first since the seat was made.
    #[must_use]
    pub fn silent_ms(&self) -> u64 {
        let answered_ms = self.answered_ms.load(Ordering::Relaxed);
        self.now_ms().saturating_sub(answered_ms)
    }
}

/// Where the Lease is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Times of the election.
    pub times: Times,
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    Seen {
        holder: spec
            .and_then(|s| s.holder_identity.clone())
            .unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// Takes part for ever.
pub async fn stand(client: Client, place: Place, seat: Seat) {
    let api: Api<Lease> = Api::namespaced(client, &place.namespace);
    let retry = Duration::from_millis(place.times.retry_ms());
    // A call that takes longer than the deadline is of no use.
    let patience = Duration::from_millis(place.times.deadline_ms() / 2);
    let mut failing = false;
    loop {
        let before = seat.acts();
        let tried = tokio::time::timeout(patience, once(&api, &place, &seat)).await;
        let error = match tried {
            Ok(Ok(())) => {
                seat.answered_ms.store(seat.now_ms(), Ordering::Relaxed);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} ms", patience.as_millis())),
        };
        if let Some(error) = &error
            && !failing
        {
            tracing::warn!(
                error,
                lease = place.name,
                "the Lease cannot be read or written"
            );
        }
        failing = error.is_some();
        match (before, seat.acts()) {
            (false, true) => tracing::info!(lease = place.name, "this process acts"),
            (true, false) => tracing::warn!(lease = place.name, "this process acts no more"),
            _ => {}
        }
        tokio::time::sleep(retry).await;
    }
}

async fn once(api: &Api<Lease>, place: &Place, seat: &Seat) -> Result<(), kube::Error> {
    let lease = api.get_opt(&place.name).await?;
    let step = {
        let mut candidate = seat.candidate.lock();
        candidate.look(lease.as_ref().map(seen), seat.now_ms())
    };
    if step == Step::Wait {
        return Ok(());
    }
    let began_ms = seat.now_ms();
    let me = seat.candidate.lock().me().to_owned();
    let claim = claimed(lease, &me, place);
    // Written only if it is as it was read: of two that claim it one is refused.
    let result = match claim.metadata.resource_version {
        Some(_) => {
            api.replace(&place.name, &PostParams::default(), &claim)
                .await
        }
        None => api.create(&PostParams::default(), &claim).await,
    };
    match result {
        Ok(_) => {
            seat.candidate.lock().claimed(began_ms);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            seat.candidate.lock().outrun();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The Lease with this process as its holder.
fn claimed(lease: Option<Lease>, me: &str, place: &Place) -> Lease {
    let mut lease = lease.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(place.name.clone()),
            namespace: Some(place.namespace.clone()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let now = MicroTime(Timestamp::now());
    let before = lease.spec.take().unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(me);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(place.times.duration_ms.div_ceil(1_000)).ok(),
        acquire_time: match mine {
            true => before.acquire_time,
            false => Some(now.clone()),
        },
        renew_time: Some(now),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!mine)),
        ..LeaseSpec::default()
    });
    lease
}

/// Gives the Lease back, if this process holds it, so that another need not wait.
pub async fn leave(client: Client, place: &Place, seat: &Seat) {
    if !seat.acts() {
        return;
    }
    let api: Api<Lease> = Api::namespaced(client, &place.namespace);
    let given_back = async {
        let mut lease = api.get(&place.name).await?;
        let me = seat.candidate.lock().me().to_owned();
        if let Some(spec) = lease.spec.as_mut()
            && spec.holder_identity.as_deref() == Some(me.as_str())
        {
            spec.holder_identity = Some(String::new());
            api.replace(&place.name, &PostParams::default(), &lease)
                .await?;
        }
        seat.candidate.lock().outrun();
        Ok::<(), kube::Error>(())
    };
    let waited = tokio::time::timeout(Duration::from_secs(3), given_back).await;
    if let Ok(Err(error)) = waited {
        tracing::warn!(error = %error, "the Lease is not given back: another process waits for its end");
    }
}
