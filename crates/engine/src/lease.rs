//! Leases: which keys hang on them and when they run out. The caller passes time in.

use crate::error::Error;
use crate::tail::Key;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

/// etcd's largest time to live, in seconds.
pub const MAX_TTL_S: i64 = 9_000_000_000;

/// A lease as `TimeToLive` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Granted time to live in seconds.
    pub granted_ttl_s: i64,
    /// What is left of it, in whole seconds, the rest cut off as in etcd; negative when it
    /// is overdue by a second or more.
    pub remaining_ttl_s: i64,
    /// Attached keys in order.
    pub keys: Vec<Key>,
}

/// A lease that was found to have run out. The time at which it did tells it from a later one
/// of the same id: such a one runs out later, or it has run out too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DueLease {
    /// Lease id.
    pub id: i64,
    /// When it ran out, in milliseconds on the caller's clock.
    pub expired_at_ms: u64,
}

/// Bytes that a lease costs, and a key that is attached to one; part of what the quota counts.
const LEASE_BYTES: usize = 160;
/// See [`LEASE_BYTES`].
const ATTACHED_BYTES: usize = 48;

#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    expires_at_ms: u64,
    keys: BTreeSet<Key>,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: HashMap<i64, Lease>,
    by_expiry: BTreeSet<(u64, i64)>,
    /// Keys attached to leases.
    attached: usize,
}

fn expiry_ms(now_ms: u64, ttl_s: i64) -> u64 {
    now_ms.saturating_add((ttl_s.max(0) as u64).saturating_mul(1000))
}

impl Leases {
    /// Number of leases.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// What all of them cost, in bytes.
    pub fn bytes(&self) -> usize {
        self.by_id.len() * LEASE_BYTES + self.attached * ATTACHED_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether `id` exists.
    pub fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Grants a lease. Granting one that exists (a log that overlaps its snapshot) keeps
    /// its keys.
    pub(crate) fn grant(&mut self, id: i64, ttl_s: i64, now_ms: u64) {
        let expires_at_ms = expiry_ms(now_ms, ttl_s);
        let lease = self.by_id.entry(id).or_insert_with(|| Lease {
            ttl_s,
            expires_at_ms,
            keys: BTreeSet::new(),
        });
        self.by_expiry.remove(&(lease.expires_at_ms, id));
        lease.ttl_s = ttl_s;
        lease.expires_at_ms = expires_at_ms;
        self.by_expiry.insert((expires_at_ms, id));
    }

    pub(crate) fn remove(&mut self, id: i64) {
        if let Some(l) = self.by_id.remove(&id) {
            self.by_expiry.remove(&(l.expires_at_ms, id));
            self.attached -= l.keys.len();
        }
    }

    pub(crate) fn attach(&mut self, id: i64, key: Key) {
        if let Some(l) = self.by_id.get_mut(&id) {
            self.attached += usize::from(l.keys.insert(key));
        }
    }

    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(l) = self.by_id.get_mut(&id) {
            self.attached -= usize::from(l.keys.remove(key));
        }
    }

    /// The keys of a lease, in order.
    pub fn keys(&self, id: i64) -> Vec<Key> {
        self.by_id
            .get(&id)
            .map(|l| l.keys.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// The keys of a lease, in order, where they are.
    pub(crate) fn attached(&self, id: i64) -> impl ExactSizeIterator<Item = &[u8]> {
        static NONE: BTreeSet<Key> = BTreeSet::new();
        let keys = self.by_id.get(&id).map_or(&NONE, |l| &l.keys);
        keys.iter().map(AsRef::as_ref)
    }

    /// Keys of a lease that come after `after` (from the first one on without), in order, at
    /// most `max`; fewer are the last. `None` if there is no such lease.
    pub fn keys_after(&self, id: i64, after: Option<&Key>, max: usize) -> Option<Vec<Key>> {
        let keys = &self.by_id.get(&id)?.keys;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = keys.range::<Key, _>((from, Bound::Unbounded));
        Some(range.take(max).cloned().collect())
    }

    /// Renews a lease from now on; returns its time to live in seconds. One that has run
    /// out is as good as gone, though its revocation may still be under way: a renewal
    /// that is answered with a time to live must hold.
    pub fn keep_alive(&mut self, id: i64, now_ms: u64) -> Result<i64, Error> {
        let l = self.by_id.get_mut(&id).ok_or(Error::LeaseNotFound)?;
        if l.expires_at_ms <= now_ms {
            return Err(Error::LeaseNotFound);
        }
        self.by_expiry.remove(&(l.expires_at_ms, id));
        l.expires_at_ms = expiry_ms(now_ms, l.ttl_s);
        self.by_expiry.insert((l.expires_at_ms, id));
        Ok(l.ttl_s)
    }

    /// Gives every lease its full time again, as etcd does after a change of leader.
    pub fn renew_all(&mut self, now_ms: u64) {
        self.by_expiry.clear();
        for (&id, l) in &mut self.by_id {
            l.expires_at_ms = expiry_ms(now_ms, l.ttl_s);
            self.by_expiry.insert((l.expires_at_ms, id));
        }
    }

    /// What `TimeToLive` shows of a lease.
    pub fn view(&self, id: i64, now_ms: u64, with_keys: bool) -> Option<LeaseView> {
        let l = self.by_id.get(&id)?;
        let remaining_ms = l.expires_at_ms as i64 - now_ms as i64;
        Some(LeaseView {
            granted_ttl_s: l.ttl_s,
            remaining_ttl_s: remaining_ms / 1000,
            keys: if with_keys {
                l.keys.iter().cloned().collect()
            } else {
                Vec::new()
            },
        })
    }

    /// Ids in order of expiry, soonest first, as etcd lists them.
    pub fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.by_expiry.iter().map(|&(_, id)| id)
    }

    /// Leases that have run out, soonest first, at most `max`.
    pub fn due(&self, now_ms: u64, max: usize) -> Vec<DueLease> {
        self.by_expiry
            .iter()
            .take_while(|(t, _)| *t <= now_ms)
            .take(max)
            .map(|&(expired_at_ms, id)| DueLease { id, expired_at_ms })
            .collect()
    }

    /// Whether the lease of that id is still the one that was due.
    pub(crate) fn is_due_still(&self, due: DueLease) -> bool {
        self.by_id
            .get(&due.id)
            .is_some_and(|l| l.expires_at_ms == due.expired_at_ms)
    }

    /// Every lease with its granted time to live, by id.
    pub fn all(&self) -> Vec<(i64, i64)> {
        let mut v: Vec<_> = self.by_id.iter().map(|(&id, l)| (id, l.ttl_s)).collect();
        v.sort_unstable();
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_slices_also_while_they_change() {
        let mut leases = Leases::default();
        assert_eq!(leases.keys_after(7, None, 3), None);
        leases.grant(7, 60, 0);
        assert_eq!(leases.keys_after(7, None, 3), Some(Vec::new()));
        let key = |n: u8| Key::from(&[n][..]);
        (0..7).for_each(|n| leases.attach(7, key(n)));
        let first = leases.keys_after(7, None, 3).unwrap();
        assert_eq!(first, [key(0), key(1), key(2)]);
        // The last one is gone, and so is one to come.
        leases.detach(7, &[2]);
        leases.detach(7, &[4]);
        let second = leases.keys_after(7, first.last(), 3).unwrap();
        assert_eq!(second, [key(3), key(5), key(6)]);
        assert_eq!(leases.keys_after(7, second.last(), 3), Some(Vec::new()));
    }
}
