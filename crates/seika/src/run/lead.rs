//! The election's calls.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use super::state::{State, now_ms};
use crate::elect::{Act, Elector, Record};

/// How long giving back may take.
const LAST_CALL: Duration = Duration::from_secs(3);

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    Record {
        holder: spec
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn leases(client: Client, state: &State) -> Api<Lease> {
    Api::namespaced(client, &state.settings.lease_namespace)
}

/// Takes part in the election for ever.
pub(super) async fn elect(client: Client, state: Arc<State>) {
    let api = leases(client, &state);
    let times = state.settings.times;
    let mut elector = Elector::new(state.settings.identity.clone(), times);
    let mut holder = String::new();
    loop {
        let deadline = Duration::from_millis(times.deadline_ms);
        match timeout(deadline, one_try(&api, &state, &mut elector)).await {
            Ok(Ok(())) => state.answered(),
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = %state.settings.lease_name, "the Lease cannot be had");
            }
            Err(_) => tracing::warn!("the Lease cannot be had: no answer in time"),
        }
        state.leads_until(elector.leads_until_ms());
        if let Some(now) = elector.holder()
            && now != holder
        {
            tracing::info!(holder = now, "who leads");
            holder = now.to_owned();
        }
        sleep(Duration::from_millis(times.retry_ms)).await;
    }
}

async fn one_try(
    api: &Api<Lease>,
    state: &State,
    elector: &mut Elector,
) -> Result<(), kube::Error> {
    let name = &state.settings.lease_name;
    let began_ms = now_ms();
    let found = api.get_opt(name).await?;
    let act = elector.see(found.as_ref().map(record), now_ms());
    let now = MicroTime(Timestamp::now());
    let params = PostParams::default();
    let written = match (act, found) {
        (Act::Wait, _) => {
            elector.lost();
            return Ok(());
        }
        (Act::Create, _) | (_, None) => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(spec(elector, &now, None)),
            };
            api.create(&params, &lease).await
        }
        (_, Some(mut lease)) => {
            // The resource version in it is the condition: one of two wins.
            lease.spec = Some(spec(elector, &now, lease.spec));
            api.replace(name, &params, &lease).await
        }
    };
    match written {
        Ok(lease) => {
            elector.see(Some(record(&lease)), now_ms());
            elector.holds(began_ms);
            Ok(())
        }
        // Another was first. Whether it was, the next try sees.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

fn spec(elector: &Elector, now: &MicroTime, before: Option<LeaseSpec>) -> LeaseSpec {
    let before = before.unwrap_or_default();
    let is_mine = before.holder_identity.as_deref() == Some(elector.me());
    let transitions = before.lease_transitions.unwrap_or(0);
    let duration_s = elector.times().duration_ms.div_ceil(1000);
    LeaseSpec {
        holder_identity: Some(elector.me().to_owned()),
        lease_duration_seconds: i32::try_from(duration_s).ok(),
        renew_time: Some(now.clone()),
        acquire_time: match is_mine {
            true => before.acquire_time,
            false => Some(now.clone()),
        },
        lease_transitions: Some(transitions + i32::from(!is_mine)),
        ..before
    }
}

/// Gives the lease back if it is this process's, so that another need not wait.
pub(super) async fn give_back(client: Client, state: &State) {
    if !state.leads() {
        return;
    }
    state.leads_until(None);
    let api = leases(client, state);
    let name = &state.settings.lease_name;
    let give = async {
        let Some(mut lease) = api.get_opt(name).await? else {
            return Ok(());
        };
        if record(&lease).holder != state.settings.identity {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        api.replace(name, &PostParams::default(), &lease)
            .await
            .map(|_| ())
    };
    match timeout(LAST_CALL, give).await {
        Ok(Ok(())) => tracing::info!("the Lease is given back"),
        Ok(Err(error)) => tracing::warn!(%error, "the Lease is not given back; it runs out"),
        Err(_) => tracing::warn!("the Lease is not given back in time; it runs out"),
    }
}
