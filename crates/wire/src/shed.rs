//! Makes room where clients do not read: ends the connections that hold most of it.
//!
//! Only while somebody waits at a worker's limit. Who reads is left alone, however slow the whole
//! is: a connection is ended if for a second it took next to nothing of much that waits for it.
//! Its client sees a lost connection. That is safe: etcd's clients repeat reads then, and no
//! write.

use std::rc::{Rc, Weak};
use std::time::Duration;

use telemetry::Throttle;

use crate::memory::{ConnMemory, WorkerMemory};

/// How long a connection is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Who takes less than this meanwhile does not read, in bytes.
const READ_BYTES_MIN: u64 = 64 * 1024;

/// Who has less unread is left alone, in bytes.
const UNREAD_BYTES_MIN: usize = 64 * 1024;

/// The line is logged this often at most.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A connection with much unread, and what its socket had taken.
struct Seen {
    holder: Weak<ConnMemory>,
    written_bytes: u64,
}

/// For as long as the worker runs.
pub(crate) async fn run(worker: Rc<WorkerMemory>) {
    loop {
        worker.pressure.wait().await;
        worker.pressure.clear();
        let seen = look(&worker);
        tokio::time::sleep(WATCHED).await;
        shed(&worker, &seen);
        worker.wake_waiting();
    }
}

/// Who holds much.
fn look(worker: &WorkerMemory) -> Vec<Seen> {
    let mut holders = worker.holders.borrow_mut();
    holders.retain(|holder| holder.strong_count() > 0);
    let alive = holders.iter().filter_map(Weak::upgrade);
    alive
        .filter(|holder| holder.unread_bytes() >= UNREAD_BYTES_MIN)
        .map(|holder| Seen {
            written_bytes: holder.written_bytes.get(),
            holder: Rc::downgrade(&holder),
        })
        .collect()
}

/// Ends those that read nothing since, largest first, until nobody needs to wait.
fn shed(worker: &WorkerMemory, seen: &[Seen]) {
    let mut excess = worker.excess_bytes();
    let mut silent: Vec<Rc<ConnMemory>> = seen
        .iter()
        .filter_map(|seen| {
            let holder = seen.holder.upgrade()?;
            let read = holder.written_bytes.get() - seen.written_bytes;
            (read < READ_BYTES_MIN && holder.unread_bytes() >= UNREAD_BYTES_MIN).then_some(holder)
        })
        .collect();
    silent.sort_by_key(|holder| std::cmp::Reverse(holder.unread_bytes()));
    for holder in silent {
        if excess == 0 {
            return;
        }
        let unread_bytes = holder.unread_bytes();
        excess = excess.saturating_sub(unread_bytes);
        holder.count_shed();
        static LINES: Throttle = Throttle::new(LINE_EVERY);
        if let Some(suppressed) = LINES.allow() {
            tracing::warn!(
                "remote-addr" = %holder.peer_address,
                "unread-bytes" = unread_bytes as u64,
                suppressed,
                "connection ended: its client does not read, and others wait for the memory"
            );
        }
        holder.end.raise();
    }
}
