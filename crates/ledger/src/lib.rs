//! Who holds how much memory.
//!
//! Bytes that outlive a call's turn are held for one of a few [`Account`]s. Who holds them has a
//! charge, which counts until it is dropped: what has no charge may not be kept. Each account has
//! a limit for the process ([`Limits`]). A worker gets an equal part of it, a connection a part of
//! its worker's, and both count on their thread without an atomic read-modify-write; what other
//! threads hold counts in a [`Common`] account. The process's totals are added up when somebody
//! asks ([`Ledger::held_bytes`]).
//!
//! It does not say what happens at a limit: who asks does, with the error [`Full`].

mod account;
mod common;
mod worker;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub use account::{Account, Full, Limits};
pub use common::{Common, CommonCharge};
pub use worker::{Charge, Local, Worker};

use common::Total;
use worker::Page;

/// The accounts of a process. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    totals: Vec<Arc<Total>>,
    /// Of the workers that run.
    pages: Mutex<Vec<Weak<Page>>>,
}

impl Ledger {
    /// Empty accounts with these limits.
    pub fn new(limits: Limits) -> Self {
        let total = |account| Arc::new(Total::new(account, limits.of(account)));
        Ledger(Arc::new(Inner {
            totals: Account::ALL.into_iter().map(total).collect(),
            pages: Mutex::default(),
        }))
    }

    /// The account for holders on any thread. Its charges and the workers' do not see each
    /// other: each account is charged either here or by workers.
    pub fn common(&self, account: Account) -> Common {
        Common(Arc::clone(self.total(account)))
    }

    /// Accounts for one of `workers` threads, each with an equal part of the limits. Call it on
    /// that thread.
    pub fn worker(&self, workers: usize) -> Worker {
        let page = Arc::<Page>::default();
        let mut pages = self.0.pages.lock();
        pages.retain(|page| page.strong_count() > 0);
        pages.push(Arc::downgrade(&page));
        Worker::new(&self.0.totals, &page, workers)
    }

    /// What the process holds in an account, in bytes.
    pub fn held_bytes(&self, account: Account) -> usize {
        let pages = self.0.pages.lock();
        let of_workers = pages
            .iter()
            .filter_map(Weak::upgrade)
            .map(|page| page.held_bytes(account));
        self.total(account).held_bytes() + of_workers.sum::<usize>()
    }

    /// An account's limit for the process, in bytes.
    pub fn limit_bytes(&self, account: Account) -> usize {
        self.total(account).limit_bytes
    }

    /// How often something was refused because an account was full.
    pub fn refused(&self, account: Account) -> u64 {
        self.total(account).refused.load(Ordering::Relaxed)
    }

    /// How often a holder was ended to make room in an account.
    pub fn shed(&self, account: Account) -> u64 {
        self.total(account).shed.load(Ordering::Relaxed)
    }

    fn total(&self, account: Account) -> &Arc<Total> {
        &self.0.totals[account.index()]
    }
}

impl Default for Ledger {
    /// Without limits.
    fn default() -> Self {
        Ledger::new(Limits::none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(answers: usize, writes: usize) -> Ledger {
        let limits = Limits::none()
            .with(Account::Answers, answers)
            .with(Account::Writes, writes);
        Ledger::new(limits)
    }

    #[test]
    fn a_charge_counts_on_every_level_until_it_is_dropped() {
        let ledger = ledger(1000, 0);
        let worker = ledger.worker(2);
        let answers = worker.account(Account::Answers);
        let (one, other) = (answers.part(400), answers.part(400));
        let first = one.try_charge(300).unwrap();
        // A connection's limit.
        let full = one.try_charge(200).unwrap_err();
        assert_eq!((full.held_bytes, full.limit_bytes), (300, 400));
        // The worker's: half of the process's.
        let full = other.try_charge(250).unwrap_err();
        assert_eq!((full.held_bytes, full.limit_bytes), (300, 500));
        let second = other.try_charge(200).unwrap();
        assert_eq!((answers.held_bytes(), other.held_bytes()), (500, 200));
        assert_eq!(ledger.held_bytes(Account::Answers), 500);
        assert_eq!(ledger.refused(Account::Answers), 2);
        drop(first);
        assert_eq!((answers.held_bytes(), one.held_bytes()), (200, 0));
        // What exists already counts whatever the limit.
        let third = one.charge(900);
        assert_eq!(ledger.held_bytes(Account::Answers), 1100);
        drop((second, third));
        assert_eq!(ledger.held_bytes(Account::Answers), 0);
    }

    #[test]
    fn charges_grow_shrink_and_split() {
        let ledger = ledger(100, 0);
        let worker = ledger.worker(1);
        let mut charge = worker.account(Account::Answers).try_charge(40).unwrap();
        charge.grow(60).unwrap();
        assert!(charge.grow(1).is_err());
        charge.shrink(10);
        let part = charge.split(50);
        assert_eq!((charge.bytes(), part.bytes()), (40, 50));
        assert_eq!(ledger.held_bytes(Account::Answers), 90);
        drop(charge);
        assert_eq!(ledger.held_bytes(Account::Answers), 50);
        assert_eq!(part.account().held_bytes(), 50);
    }

    #[test]
    fn threads_share_an_account_within_its_limit() {
        let ledger = ledger(0, 1000);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let writes = ledger.common(Account::Writes);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        let charges: Vec<_> = (0..4).map(|_| writes.try_charge(100)).collect();
                        assert!(writes.held_bytes() <= writes.limit_bytes());
                        drop(charges);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(ledger.held_bytes(Account::Writes), 0);
        let writes = ledger.common(Account::Writes);
        let mut charge = writes.try_charge(1000).unwrap();
        assert!(writes.try_charge(1).is_err());
        assert!(writes.try_charge(usize::MAX).is_err());
        charge.shrink(1);
        assert!(charge.grow(1).is_ok() && ledger.refused(Account::Writes) >= 2);
        let past = writes.charge(5);
        assert_eq!(writes.held_bytes(), 1005);
        drop((past, charge));
        writes.count_shed();
        assert_eq!(ledger.shed(Account::Writes), 1);
    }

    #[test]
    fn workers_add_up_and_go() {
        let ledger = ledger(1000, 0);
        let other = ledger.clone();
        let (a, b) = (ledger.worker(2), ledger.worker(2));
        let charges = [&a, &b].map(|w| w.account(Account::Answers).charge(10));
        let held = std::thread::spawn(move || other.held_bytes(Account::Answers));
        assert_eq!(held.join().unwrap(), 20);
        drop((charges, a, b));
        assert_eq!(ledger.held_bytes(Account::Answers), 0);
        let _ = ledger.worker(1);
        assert!(ledger.0.pages.lock().len() <= 1);
    }
}
