//! Calls that stay with one member, for who reads a history piece by piece: what one member has
//! said another may not know yet.

use super::Client;
use crate::endpoint::Endpoint;
use crate::view::Health;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::transport::Channel;

/// The given endpoints, one of which is in use until it fails. Clones share which one.
#[derive(Clone, Debug)]
pub struct Pinned {
    client: Client,
    endpoints: Arc<[Endpoint]>,
    at: Arc<AtomicUsize>,
}

impl Pinned {
    /// The first of `endpoints` is in use.
    #[must_use]
    pub fn new(client: Client, endpoints: Vec<Endpoint>) -> Self {
        Pinned {
            client,
            endpoints: endpoints.into(),
            at: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// All endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The number of the one in use.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// Uses that one.
    pub fn set(&self, at: usize) {
        self.at.store(at, Ordering::Relaxed);
    }

    /// The connection to one of them. What goes over it has no token.
    #[must_use]
    pub fn channel(&self, at: usize) -> Channel {
        self.client.channel(&self.endpoints[at])
    }

    /// Goes on with the next one after `from` has failed: in their order, and leaving out those
    /// that are known not to answer, if any does. Returns the one in use then; `None` if another
    /// call has gone on before.
    #[must_use]
    pub fn turn(&self, from: usize) -> Option<usize> {
        self.client.suspect(&self.endpoints[from]);
        let view = self.client.view();
        let silent = |at: &usize| {
            let member = view.at(&self.endpoints[*at]);
            member.is_some_and(|m| matches!(m.health, Health::Unhealthy { .. }))
        };
        let n = self.endpoints.len();
        let others = || (1..=n).map(|step| (from + step) % n);
        let next = others().find(|at| *at != from && !silent(at));
        let next = next.or_else(|| others().next())?;
        self.at
            .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| next)
    }
}
