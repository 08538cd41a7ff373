//! How many questions are answered: nodes that are known have a limit each, all others share one,
//! so a flood from elsewhere takes nothing from a node.

use std::collections::HashMap;
use std::net::IpAddr;

/// Questions a second of one known address that are answered. A node asks less than one a second.
pub const KNOWN_PER_S: f64 = 20.0;
/// Questions a second of all other addresses together.
pub const OTHERS_PER_S: f64 = 50.0;
/// So many seconds' worth may come at once.
const BURST_S: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_s: f64,
    tokens: f64,
    filled_us: u64,
}

impl Bucket {
    fn full(per_s: f64, now_us: u64) -> Self {
        Self {
            per_s,
            tokens: per_s * BURST_S,
            filled_us: now_us,
        }
    }

    fn take(&mut self, now_us: u64) -> bool {
        let passed_s = now_us.saturating_sub(self.filled_us) as f64 / 1e6;
        self.filled_us = self.filled_us.max(now_us);
        self.tokens = (self.tokens + passed_s * self.per_s).min(self.per_s * BURST_S);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// The limits of one agent. Its memory is that of the known addresses.
#[derive(Clone, Debug)]
pub struct Limits {
    known: HashMap<IpAddr, Bucket>,
    others: Bucket,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            others: Bucket::full(OTHERS_PER_S, 0),
        }
    }
}

impl Limits {
    /// From now on these addresses are known.
    pub fn know(&mut self, addresses: impl Iterator<Item = IpAddr>, now_us: u64) {
        let before = std::mem::take(&mut self.known);
        self.known = addresses
            .map(|address| {
                let bucket = before.get(&address).copied();
                let bucket = bucket.unwrap_or_else(|| Bucket::full(KNOWN_PER_S, now_us));
                (address, bucket)
            })
            .collect();
    }

    /// Whether a question from `address` is answered now.
    pub fn allow(&mut self, address: IpAddr, now_us: u64) -> bool {
        match self.known.get_mut(&address) {
            Some(bucket) => bucket.take(now_us),
            None => self.others.take(now_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_flood_from_elsewhere_takes_nothing_from_a_node() {
        let mut limits = Limits::default();
        limits.know([ip(1)].into_iter(), 0);
        let mut answered = 0;
        for n in 0..100_000_u64 {
            let from = ip(2 + (n % 200) as u8);
            answered += u64::from(limits.allow(from, n * 100));
        }
        // 10 s of it, and the burst.
        assert!(answered <= 10 * 50 + 100, "{answered}");
        assert!(limits.allow(ip(1), 10_000_000));
    }

    #[test]
    fn a_known_node_has_its_limit_too_and_no_one_elses() {
        let mut limits = Limits::default();
        limits.know([ip(1), ip(2)].into_iter(), 0);
        let answered = (0..1000).filter(|_| limits.allow(ip(1), 0)).count();
        assert_eq!(answered, 40);
        assert!(limits.allow(ip(2), 0));
        assert!(limits.allow(ip(1), 1_000_000));
        // Time that goes back gives nothing.
        let more = (0..1000).filter(|_| limits.allow(ip(1), 0)).count();
        assert!(more < 20, "{more}");
    }
}
