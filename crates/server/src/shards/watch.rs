//! The thread that watches over shards: whether they answer in time, and that a set is noted
//! before it counts.

use super::Shards;
use crate::commit_log::Errand;
use crate::shared::Shared;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How often it looks whether all answer.
const LOOK: Duration = Duration::from_millis(50);

/// Runs until the server stops.
pub(crate) fn watch(shared: &Arc<Shared>, shards: &Arc<Shards>) {
    let Some(to_count) = shards.to_count.lock().take() else {
        return;
    };
    while !shared.stopping() {
        match to_count.recv_timeout(LOOK) {
            Ok(holders) => {
                let names: Vec<String> = holders.iter().map(|of| of.name.clone()).collect();
                let (to, set) = channel();
                if shared.log.order(Errand::Count { holders, to }).is_err() {
                    return;
                }
                let set = set.try_recv().ok().flatten();
                match (&set, names.is_empty()) {
                    (None, _) => {}
                    (Some(set), false) => tracing::info!(
                        shards = names.join(","),
                        set = set.number,
                        after = set.after,
                        "these shards hold the newest writes from here on"
                    ),
                    (Some(_), true) => tracing::warn!(
                        copies = shards.copies().unwrap_or(0) as u64,
                        "there are not enough shards: replicated writes are durable until there are"
                    ),
                }
                shards.counted(set.as_ref());
            }
            Err(RecvTimeoutError::Timeout) => shards.tick(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
