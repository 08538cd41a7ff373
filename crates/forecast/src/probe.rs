//! Reads of our own through a member: how far it is, and how far the quorum is from it.
//!
//! A serializable read is answered by the member alone. A linearizable one waits until the leader
//! has heard from a quorum. The difference of both is the member's way to the quorum.

use etcd_api::etcdserverpb::{RangeRequest, kv_client::KvClient};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;
use upstream::{Client, Endpoint};

/// A read that takes longer is lost.
pub(crate) const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Reads of a kind that may be under way at a member; then none is begun.
const MAX_PENDING: usize = 16;
/// The key that is read: nobody has it. A user who may not read it is refused after the read is
/// made, which serves as well.
const KEY: &str = "/orlop/forecast/probe";

/// What reads of one kind took since they were last looked at, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Took {
    pub(crate) min_us: Option<f64>,
    pub(crate) mean_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
    pub(crate) lost: u32,
}

#[derive(Debug, Default)]
struct Book {
    done_us: Vec<f64>,
    lost: u32,
    pending: Vec<Instant>,
}

impl Book {
    /// What was done since the last look. If nothing was, what is pending for longest says how
    /// long at least it takes.
    fn take(&mut self, now: Instant) -> Took {
        let mut us = std::mem::take(&mut self.done_us);
        if us.is_empty() {
            let ages = self
                .pending
                .iter()
                .map(|began| now.saturating_duration_since(*began));
            us.extend(ages.max().map(|age| age.as_secs_f64() * 1e6));
        }
        let n = us.len() as f64;
        Took {
            min_us: us.iter().copied().reduce(f64::min),
            mean_us: (n > 0.0).then(|| us.iter().sum::<f64>() / n),
            max_us: us.iter().copied().reduce(f64::max),
            lost: std::mem::take(&mut self.lost),
        }
    }
}

/// The reads of one member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    books: Arc<[Mutex<Book>; 2]>,
}

impl Probes {
    /// Begins a read of each kind, unless too many are under way; within a runtime.
    pub(crate) fn begin(&self, client: &Client, endpoint: &Endpoint) {
        for serializable in [true, false] {
            let began = Instant::now();
            {
                let mut book = self.books[usize::from(serializable)].lock();
                if book.pending.len() >= MAX_PENDING {
                    continue;
                }
                book.pending.push(began);
            }
            let (books, client, endpoint) = (self.books.clone(), client.clone(), endpoint.clone());
            tokio::spawn(async move {
                let read = read(&client, &endpoint, serializable);
                let answered = tokio::time::timeout(PROBE_DEADLINE, read).await;
                let took_us = began.elapsed().as_secs_f64() * 1e6;
                let mut book = books[usize::from(serializable)].lock();
                if let Some(at) = book.pending.iter().position(|other| *other == began) {
                    book.pending.swap_remove(at);
                }
                match answered {
                    Ok(true) => book.done_us.push(took_us),
                    _ => book.lost += 1,
                }
            });
        }
    }

    /// What serializable and linearizable reads took since the last look.
    pub(crate) fn take(&self) -> (Took, Took) {
        let now = Instant::now();
        let take = |serializable: bool| self.books[usize::from(serializable)].lock().take(now);
        (take(true), take(false))
    }
}

/// Reads, and says whether the member answered what it was asked.
async fn read(client: &Client, endpoint: &Endpoint, serializable: bool) -> bool {
    let Ok(attempt) = client.at(endpoint).await else {
        return false;
    };
    let request = attempt.request(RangeRequest {
        key: KEY.into(),
        serializable,
        keys_only: true,
        ..RangeRequest::default()
    });
    match KvClient::new(attempt.channel).range(request).await {
        Ok(_) => true,
        Err(status) => status.code() == Code::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_counts_where_nothing_is_done() {
        let now = Instant::now();
        let mut book = Book {
            done_us: vec![3.0, 1.0, 2.0],
            lost: 2,
            pending: vec![now],
        };
        let took = book.take(now + Duration::from_millis(700));
        assert_eq!(
            (took.min_us, took.mean_us, took.max_us),
            (Some(1.0), Some(2.0), Some(3.0))
        );
        assert_eq!(took.lost, 2);
        let took = book.take(now + Duration::from_millis(900));
        assert_eq!((took.min_us, took.lost), (Some(900_000.0), 0));
        book.pending.clear();
        assert_eq!(book.take(now), Took::default());
    }
}
