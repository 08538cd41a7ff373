//! A pod as one router sees it: its queue where it is the node's own, and how it does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use placement::Node;
use routing::{Admission, Entered, OutlierSettings, PeakEwma, Place, Queue, Refusal, Standing};
use tokio::sync::oneshot;

use crate::client::PodClient;
use crate::table::Protocol;

/// How a pod does, and what was counted of it.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) ewma: PeakEwma,
    pub(crate) standing: Standing,
}

/// Counters of a pod, which only grow.
#[derive(Default)]
pub(crate) struct PodCounts {
    /// Answers by the first digit of their code; those that the router made instead are not here.
    pub(crate) answers: [AtomicU64; 6],
    /// Requests admitted to it here, and the microseconds that they waited and took.
    pub(crate) admitted: AtomicU64,
    pub(crate) queued_us: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) serving_us: AtomicU64,
    pub(crate) ejections: AtomicU64,
}

/// A pod of one service.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node_name: String,
    pub(crate) node: Node,
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    /// It is on this router's node, and this router owns its queue.
    pub(crate) local: bool,
    pub(crate) queue: Mutex<Queue<oneshot::Sender<Slot>>>,
    pub(crate) load: Mutex<Load>,
    /// Requests that this router has sent its way.
    pub(crate) in_flight: AtomicU32,
    pub(crate) client: PodClient,
    pub(crate) counts: PodCounts,
}

/// Counts a request that was sent a pod's way.
pub(crate) struct Sent(Arc<Pod>);

impl Sent {
    pub(crate) fn to(pod: &Arc<Pod>) -> Self {
        pod.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(pod.clone())
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that a pod serves. When it is dropped the next one is admitted.
pub(crate) struct Slot {
    pod: Arc<Pod>,
    admission: Option<Admission>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // One that does not wait any more has its admission given on at once.
        while let Some(admission) = self.admission.take() {
            let next = self.pod.queue.lock().finish(admission);
            let Some((admission, waiter)) = next else {
                return;
            };
            let slot = Slot {
                pod: self.pod.clone(),
                admission: Some(admission),
            };
            if let Err(mut unwanted) = waiter.send(slot) {
                self.admission = unwanted.admission.take();
            }
        }
    }
}

/// A place in a pod's queue; it is given up when this is dropped.
struct Waiting<'a> {
    pod: &'a Pod,
    place: Place,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // What was waited with is dropped after the lock is released.
        let left = self.pod.queue.lock().leave(self.place);
        drop(left);
    }
}

impl Pod {
    /// Waits until the pod may serve one more. Bound the wait: who stops waiting has left.
    pub(crate) async fn admit(self: &Arc<Self>) -> Result<Slot, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let entered = self.queue.lock().enter(sender);
        match entered {
            Ok(Entered::Admitted(admission, _)) => Ok(Slot {
                pod: self.clone(),
                admission: Some(admission),
            }),
            Ok(Entered::Waits(place)) => {
                let waiting = Waiting { pod: self, place };
                let slot = receiver.await.map_err(|_| Refusal::Closed);
                drop(waiting);
                slot
            }
            Err((refusal, _)) => Err(refusal),
        }
    }

    /// Other bounds of its queue. Who is admitted by that is told.
    pub(crate) fn resize(
        self: &Arc<Self>,
        concurrency: Option<std::num::NonZeroU32>,
        waiting: usize,
    ) {
        let admitted = self.queue.lock().resize(concurrency, waiting);
        for (admission, waiter) in admitted {
            let slot = Slot {
                pod: self.clone(),
                admission: Some(admission),
            };
            drop(waiter.send(slot));
        }
    }

    /// It is gone: who waits is sent away.
    pub(crate) fn close(&self) {
        let waited = self.queue.lock().close();
        drop(waited);
    }

    /// An answer of it began.
    pub(crate) fn succeeded(&self, ms: f64, now_us: u64) {
        let mut load = self.load.lock();
        load.ewma.observe(ms, now_us);
        load.standing.succeeded();
    }

    /// The way to it failed.
    pub(crate) fn failed(&self, now_us: u64, settings: &OutlierSettings) {
        let ejected = self.load.lock().standing.failed(now_us, settings);
        if ejected {
            self.counts.ejections.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                pod = %self.name, node = %self.node_name, address = %self.address,
                "the way to a pod failed several times in a row: it is left alone for a while"
            );
        }
    }

    pub(crate) fn count_answer(&self, code: u16) {
        let class = usize::from(code / 100).min(5);
        self.counts.answers[class].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "tests fail by panics"
    )]
    use super::*;
    use std::num::NonZeroU32;

    fn pod(concurrency: u32, waiting: usize) -> Arc<Pod> {
        Arc::new(Pod {
            name: "p".into(),
            node_name: "a".into(),
            node: Node(0),
            address: ([127, 0, 0, 1], 1).into(),
            protocol: Protocol::Http1,
            local: true,
            queue: Mutex::new(Queue::new(NonZeroU32::new(concurrency), waiting)),
            load: Mutex::default(),
            in_flight: AtomicU32::new(0),
            client: crate::client::to_pod(([127, 0, 0, 1], 1).into(), Protocol::Http1),
            counts: PodCounts::default(),
        })
    }

    #[tokio::test]
    async fn who_gives_up_is_passed_over_and_nobody_is_lost() {
        let pod = pod(1, 10);
        let first = pod.admit().await.expect("a slot");
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let pod = pod.clone();
                tokio::spawn(async move { pod.admit().await })
            })
            .collect();
        while pod.queue.lock().waiting() < 3 {
            tokio::task::yield_now().await;
        }
        waiting[0].abort();
        let mut waiting = waiting.into_iter();
        let mut next = || waiting.next().unwrap();
        let (gone, second, third) = (next(), next(), next());
        assert!(gone.await.is_err());
        assert_eq!(pod.queue.lock().waiting(), 2);
        drop(first);
        let second = second.await.unwrap().expect("a slot");
        assert_eq!(pod.queue.lock().in_flight(), 1);
        pod.close();
        assert_eq!(third.await.unwrap().err(), Some(Refusal::Closed));
        drop(second);
        assert_eq!(pod.queue.lock().in_flight(), 0);
        assert_eq!(pod.admit().await.err(), Some(Refusal::Closed));
    }
}
