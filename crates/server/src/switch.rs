//! Changing the storage rules while the server runs.

use crate::commit_log::{Errand, Stopping};
use crate::shared::Shared;
use crate::storage::{InForce, RulesError, Source, profile_text};
use engine::Lane;
use policy::Policy;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// How often a switch looks whether earlier volatile writes are through.
const LOOK: Duration = Duration::from_millis(1);

/// What to switch to.
pub(crate) enum Choice {
    /// A profile, by name.
    Profile(String),
    /// A text of rules, with the name that they go by.
    Rules {
        /// What status and log call them.
        name: String,
        /// The TOML.
        text: String,
    },
    /// What the command line says.
    Reset,
}

/// Why a switch did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    /// The rules cannot be used.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The server ends.
    #[error("the server is stopping; the choice is recorded and in force after the next start")]
    Stopping,
}

impl From<Stopping> for SwitchError {
    fn from(_: Stopping) -> Self {
        SwitchError::Stopping
    }
}

/// Puts other rules in force, and records the choice. Blocks until everything that they call
/// durable, and that was answered before, is on disk.
pub(crate) fn switch(shared: &Shared, choice: Choice) -> Result<Arc<InForce>, SwitchError> {
    let store = &shared.store;
    let storage = &store.storage;
    let _one_at_a_time = storage.switching.lock();
    let (policy, source) = match choice {
        Choice::Profile(name) => {
            let text = profile_text(&name)?;
            (storage.check(&name, text)?, Source::RunTime)
        }
        Choice::Rules { name, text } => (storage.check(&name, &text)?, Source::RunTime),
        Choice::Reset => storage.of_flag()?,
    };
    // First: what is answered as done must outlive a crash.
    let recorded: Option<&Policy> = (source == Source::RunTime).then_some(&policy);
    storage.record(recorded)?;
    let strict = policy.is_strict();
    if !strict {
        shared.log.order(Errand::AllowVolatile)?;
    }
    let copies = storage.copies_of(&policy);
    if let (Some(shards), Some(copies)) = (&shared.shards, copies)
        && shards.copies() != Some(copies)
    {
        let (to, hold) = channel();
        shared.log.order(Errand::Hold(to))?;
        shards.begin(hold.try_recv().map_err(|_| Stopping)?, copies);
    }
    let before = storage.current();
    let now = storage.enforce(store, policy, source);
    // What was admitted by the rules before goes through as volatile, and is synced then.
    let (admitted, _) = store.lock().lane_progress(Lane::Volatile);
    while store.lock().lane_progress(Lane::Volatile).1 < admitted {
        if shared.stopping() {
            return Err(SwitchError::Stopping);
        }
        std::thread::sleep(LOOK);
    }
    if let Some(shards) = shared.shards.as_ref().filter(|_| copies.is_none()) {
        shards.end();
        shared.log.order(Errand::HoldNoMore)?;
    }
    let errand = if strict {
        Errand::EndVolatile
    } else {
        Errand::Sync
    };
    shared.log.order(errand)?;
    tracing::info!(
        profile = now.policy.name(),
        rules = %format_args!("{:016x}", now.policy.digest()),
        source = %now.source,
        before = before.policy.name(),
        "the storage rules have changed"
    );
    now.warn();
    Ok(now)
}
