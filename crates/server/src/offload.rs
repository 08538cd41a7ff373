//! Work that takes milliseconds, taken off the worker: long ranges and hashes.
//!
//! It would keep the worker's processor from others for as long: its own connections could have
//! their turns in between, but the committer, woken on that processor, would wait. The threads
//! here are few. Their work rests as long as it works (`pace`), holds nothing while it waits
//! for a thread, and ends when nobody waits for it any more.

use crate::status;
use std::sync::Arc;
use tokio::sync::Semaphore;
use wire::{Status, Unread};

/// So much goes on at once for a worker.
const AT_ONCE: usize = 2;

/// Room that an answer is given before it is known how large it is, in bytes: it is made here
/// because it is large. What it takes beyond that counts when it is there.
const ANSWER_BYTES: usize = 32 << 20;

/// What is taken off one worker.
pub(crate) struct Offload(Arc<Semaphore>);

impl Default for Offload {
    fn default() -> Self {
        Offload(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Offload {
    /// Runs `work` on a thread of its own, when there is one; for an answer to a client not
    /// while that leaves much unread, and without holding up others meanwhile. The work can ask
    /// whether it is unwanted.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        unread: Option<&Unread>,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let _claim = match unread {
            Some(unread) => Some(unread.claim(ANSWER_BYTES).await),
            None => None,
        };
        let permit = self.0.clone().acquire_owned().await;
        let permit = permit.map_err(|_| status::stopped())?;
        let wanted = Arc::new(());
        let asked = Arc::downgrade(&wanted);
        // The permit comes back with the result: if nobody takes that, it goes first.
        let thread = tokio::task::spawn_blocking(move || {
            let result = work(&|| asked.strong_count() == 0);
            (result, permit)
        });
        let (result, _permit) = thread.await.map_err(|_| status::failed())?;
        drop(wanted);
        result
    }
}
