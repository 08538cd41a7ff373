//! A call's write: its class, its way into the sequencer, and who takes it to the log.

use crate::shared::Shared;
use crate::store::{Answer, Open, Store, Waiter};
use engine::op::Write;
use engine::{Error, Lane};
use ledger::Account;
use wire::mailbox::Slots;

impl Shared {
    /// Submits a write of a call; the answer comes at once or through the slot.
    pub(crate) async fn write(&self, write: Write, slots: &Slots<Answer>) -> Answer {
        self.write_classed(write, slots).await.0
    }

    /// The same, and whether the write asked to be volatile.
    ///
    /// Who writes the log is told at the end of the worker's turn: what else the turn brings
    /// shares their write. Told at once, they would take the first alone.
    pub(crate) async fn write_classed(
        &self,
        write: Write,
        slots: &Slots<Answer>,
    ) -> (Answer, bool) {
        let store = &self.store;
        let (slot, pending) = slots.slot();
        let waiter = Waiter::Call(slots.worker(), slot);
        let now_ms = store.now_ms();
        let class = store.storage.classify(store, &write, now_ms);
        let volatile = class.lane == Lane::Volatile;
        let (answer, open) = {
            let mut engine = store.lock();
            threads::fault_point("submit");
            let answer = engine.submit(write, class, waiter, now_ms);
            (answer.map(|(_, a)| a), Open::of(&engine))
        };
        if let Some(answer) = answer {
            if matches!(answer, Err(Error::TooManyRequests)) {
                self.ledger.count_refused(Account::Writes);
            }
            store.raise(open);
            return (answer, volatile);
        }
        if open.any() {
            // Told also if the caller goes away meanwhile: the write is in the batch.
            let mut owed = RaiseOnDrop(store, open);
            tokio::task::yield_now().await;
            if open.volatile && self.log.write_on_worker() {
                owed.1.volatile = false;
            }
        }
        (pending.await, volatile)
    }
}

struct RaiseOnDrop<'a>(&'a Store, Open);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.raise(self.1);
    }
}
