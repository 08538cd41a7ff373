//! Who holds how much memory.
//!
//! Bytes that outlive a call's turn are held for one of a few [`Account`]s. Who holds them has a
//! charge, which counts until it is dropped: what has no charge may not be kept. Each account has
//! a limit for the process ([`Limits`]). A worker gets an equal part of it, a connection a part of
//! its worker's, and both count on their thread without an atomic read-modify-write. The process's
//! totals are added up when somebody asks ([`Ledger::held_bytes`]).
//!
//! Some accounts have one owner that counts by itself, under a lock of its own
//! ([`Ledger::counted_by`]): the store's writes, say. The ledger asks it.
//!
//! It does not say what happens at a limit: who asks does, with the error [`Full`].

mod account;
mod worker;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

pub use account::{Account, Full, Limits};
pub use worker::{Charge, Local, Worker};

use worker::{Page, Total};

/// The accounts of a process. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    totals: Vec<Arc<Total>>,
    /// Of the workers that run.
    pages: Mutex<Vec<Weak<Page>>>,
    owners: [Owner; Account::ALL.len()],
}

/// Who counts for an account, if one does by itself.
#[derive(Default)]
struct Owner(OnceLock<Box<dyn Fn() -> usize + Send + Sync>>);

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Owner")
            .field(&self.0.get().is_some())
            .finish()
    }
}

impl Ledger {
    /// Empty accounts with these limits.
    pub fn new(limits: Limits) -> Self {
        let total = |account| Arc::new(Total::new(account, limits.of(account)));
        Ledger(Arc::new(Inner {
            totals: Account::ALL.into_iter().map(total).collect(),
            pages: Mutex::default(),
            owners: Default::default(),
        }))
    }

    /// Says who counts what is held in an account, in bytes: once, before anybody asks. It holds
    /// the account to its limit, too, and tells [`Ledger::count_refused`] and
    /// [`Ledger::count_shed`].
    pub fn counted_by(
        &self,
        account: Account,
        held_bytes: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        let owner = &self.0.owners[account.index()].0;
        // The first stays.
        let _ = owner.set(Box::new(held_bytes));
    }

    /// Counts something that an account's owner refused because it is full.
    pub fn count_refused(&self, account: Account) {
        self.total(account).refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts holders that an account's owner ended to make room.
    pub fn count_shed(&self, account: Account, holders: u64) {
        self.total(account)
            .shed
            .fetch_add(holders, Ordering::Relaxed);
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
        if let Some(counted) = self.0.owners[account.index()].0.get() {
            return counted();
        }
        let pages = self.0.pages.lock();
        let of_workers = pages
            .iter()
            .filter_map(Weak::upgrade)
            .map(|page| page.held_bytes(account));
        of_workers.sum()
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

    fn ledger(answers: usize) -> Ledger {
        Ledger::new(Limits::none().with(Account::Answers, answers))
    }

    #[test]
    fn a_charge_counts_on_every_level_until_it_is_dropped() {
        let ledger = ledger(1000);
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
        let ledger = ledger(100);
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
    fn an_owner_counts_by_itself() {
        let ledger = Ledger::new(Limits::none().with(Account::Writes, 7));
        let held = Arc::new(std::sync::atomic::AtomicUsize::new(3));
        let counted = held.clone();
        ledger.counted_by(Account::Writes, move || counted.load(Ordering::Relaxed));
        assert_eq!(ledger.held_bytes(Account::Writes), 3);
        held.store(5, Ordering::Relaxed);
        ledger.count_refused(Account::Writes);
        ledger.count_shed(Account::Writes, 2);
        let of = Account::Writes;
        assert_eq!(
            (
                ledger.held_bytes(of),
                ledger.limit_bytes(of),
                ledger.refused(of),
                ledger.shed(of)
            ),
            (5, 7, 1, 2)
        );
    }

    #[test]
    fn workers_add_up_and_go() {
        let ledger = ledger(1000);
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
