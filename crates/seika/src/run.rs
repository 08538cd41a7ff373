//! The controller: watches, an election, and passes over Seikas.
//!
//! While it leads it has watches on Seikas, pods and nodes; what they show goes to the index and
//! asks for passes. A pass decides and carries out. When it leads no more all of that is dropped,
//! calls that are under way included, and it waits to lead again, with nothing in memory.

mod pages;
mod pass;
mod state;
mod tell;
mod watch;
mod write;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use election::{Place, Times};
use kube::Client;
use tokio::task::JoinSet;

pub use pages::Pages;
pub use state::State;

/// Passes at a time.
const WORKERS: usize = 4;
/// The longest that a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls to the apiserver that change something, at a time.
const WRITES_AT_A_TIME: usize = 128;

/// How the controller runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This process's name in the election, as nobody else has it.
    pub identity: String,
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// Name of the Lease.
    pub lease_name: String,
    /// Times of the election.
    pub times: Times,
    /// Watch only Seikas and pods of this namespace; `None`: all.
    pub namespace: Option<String>,
}

/// Runs until `stop`, then gives the lease back.
pub async fn run(client: Client, state: Arc<State>, stop: impl Future<Output = ()>) {
    let mut elections = JoinSet::new();
    let place = Place {
        namespace: state.settings.lease_namespace.clone(),
        name: state.settings.lease_name.clone(),
        times: state.settings.times,
    };
    let seat = state.seat.clone();
    elections.spawn(election::stand(client.clone(), place.clone(), seat.clone()));
    let work = async {
        loop {
            state.wait_to_lead().await;
            tracing::info!(identity = %state.settings.identity, "leads");
            let mut tasks = JoinSet::new();
            state.begin();
            watch::start(&client, &state, &mut tasks);
            let passes = Arc::new(pass::Passes::new(client.clone(), Arc::clone(&state)));
            for _ in 0..WORKERS {
                tasks.spawn(Arc::clone(&passes).work());
            }
            tokio::select! {
                () = state.wait_to_lead_no_more() => {}
                // None of them ends by itself, but by a panic.
                ended = tasks.join_next() => {
                    if let Some(Err(error)) = ended {
                        tracing::error!(%error, "a part of the controller failed; it begins anew");
                    }
                }
            }
            tasks.shutdown().await;
            state.end();
            tracing::warn!(identity = %state.settings.identity, "does not lead or begins anew");
        }
    };
    tokio::select! {
        () = work => {}
        () = stop => {}
    }
    elections.shutdown().await;
    election::leave(client, &place, &seat).await;
}
