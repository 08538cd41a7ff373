//! Accounts of one thread: a worker's, and below it its connections'. No charge costs an atomic
//! read-modify-write.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::account::{Account, Full};

/// What is of one account for the whole process.
#[derive(Debug)]
pub(crate) struct Total {
    account: Account,
    pub(crate) limit_bytes: usize,
    /// How often something was refused because the account was full.
    pub(crate) refused: AtomicU64,
    /// How often a holder was ended to make room.
    pub(crate) shed: AtomicU64,
}

impl Total {
    pub(crate) fn new(account: Account, limit_bytes: usize) -> Self {
        Total {
            account,
            limit_bytes,
            refused: AtomicU64::new(0),
            shed: AtomicU64::new(0),
        }
    }
}

/// What a worker holds in each account, as others see it. One thread writes.
#[derive(Debug, Default)]
pub(crate) struct Page([AtomicUsize; Account::ALL.len()]);

impl Page {
    pub(crate) fn held_bytes(&self, account: Account) -> usize {
        self.0[account.index()].load(Ordering::Relaxed)
    }
}

/// The accounts of one worker. It stays on its thread.
#[derive(Debug, Clone)]
pub struct Worker {
    accounts: Rc<[Local]>,
}

impl Worker {
    /// `limits_bytes` is this worker's part of each total's limit.
    pub(crate) fn new(totals: &[Arc<Total>], page: &Arc<Page>, part_of: usize) -> Self {
        let one = |total: &Arc<Total>| {
            Local(Rc::new(Node {
                held_bytes: Cell::new(0),
                limit_bytes: total.limit_bytes / part_of.max(1),
                total: Arc::clone(total),
                above: Above::Page(Arc::clone(page)),
            }))
        };
        Worker {
            accounts: totals.iter().map(one).collect(),
        }
    }

    /// One of its accounts.
    pub fn account(&self, account: Account) -> Local {
        self.accounts[account.index()].clone()
    }
}

#[derive(Debug)]
struct Node {
    held_bytes: Cell<usize>,
    limit_bytes: usize,
    total: Arc<Total>,
    above: Above,
}

#[derive(Debug)]
enum Above {
    /// A worker's own account: what it holds is published here.
    Page(Arc<Page>),
    /// A part, such as a connection's, of a worker's account.
    Part(Local),
}

impl Node {
    fn add(&self, bytes: usize) {
        let held = self.held_bytes.get() + bytes;
        self.set(held);
        if let Above::Part(above) = &self.above {
            above.0.add(bytes);
        }
    }

    fn sub(&self, bytes: usize) {
        let held = self.held_bytes.get() - bytes;
        self.set(held);
        if let Above::Part(above) = &self.above {
            above.0.sub(bytes);
        }
    }

    fn set(&self, held: usize) {
        self.held_bytes.set(held);
        if let Above::Page(page) = &self.above {
            // Only this thread writes it.
            page.0[self.total.account.index()].store(held, Ordering::Relaxed);
        }
    }
}

/// An account of one thread: a worker's part of the process's, or a connection's part of a
/// worker's. Clones are the same account.
#[derive(Debug, Clone)]
pub struct Local(Rc<Node>);

impl Local {
    /// A part of this account with a limit of its own: what it holds counts in both.
    pub fn part(&self, limit_bytes: usize) -> Local {
        Local(Rc::new(Node {
            held_bytes: Cell::new(0),
            limit_bytes,
            total: Arc::clone(&self.0.total),
            above: Above::Part(self.clone()),
        }))
    }

    /// Why `bytes` more would not fit, here or above.
    pub fn check(&self, bytes: usize) -> Result<(), Full> {
        let node = &*self.0;
        let held_bytes = node.held_bytes.get();
        if held_bytes.saturating_add(bytes) > node.limit_bytes {
            return Err(Full {
                account: node.total.account,
                wanted_bytes: bytes,
                held_bytes,
                limit_bytes: node.limit_bytes,
            });
        }
        match &node.above {
            Above::Part(above) => above.check(bytes),
            Above::Page(_) => Ok(()),
        }
    }

    /// Charges `bytes` if the account and those above stay within their limits; counts a refusal
    /// else.
    pub fn try_charge(&self, bytes: usize) -> Result<Charge, Full> {
        let mut charge = self.charge(0);
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Charges `bytes` whatever the limit: for what exists already. The caller says what bounds
    /// it.
    pub fn charge(&self, bytes: usize) -> Charge {
        self.0.add(bytes);
        Charge {
            of: self.clone(),
            bytes,
        }
    }

    /// What is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes.get()
    }

    /// Its own limit, in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes
    }

    /// Counts something that was refused because the account is full.
    pub fn count_refused(&self) {
        self.0.total.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a holder that was ended to make room.
    pub fn count_shed(&self) {
        self.0.total.shed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes of a [`Local`] account, held until this is dropped.
#[derive(Debug)]
#[must_use = "a charge ends when it is dropped"]
pub struct Charge {
    of: Local,
    bytes: usize,
}

impl Charge {
    /// Holds `bytes` more if the accounts stay within their limits; counts a refusal else.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        if let Err(full) = self.of.check(bytes) {
            self.of.count_refused();
            return Err(full);
        }
        self.of.0.add(bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back `bytes` of it, at most all.
    pub fn shrink(&mut self, bytes: usize) {
        let less = bytes.min(self.bytes);
        self.bytes -= less;
        self.of.0.sub(less);
    }

    /// Takes a part out of it, at most all, as a charge of its own.
    pub fn split(&mut self, bytes: usize) -> Charge {
        let part = bytes.min(self.bytes);
        self.bytes -= part;
        Charge {
            of: self.of.clone(),
            bytes: part,
        }
    }

    /// What it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The account that it is of.
    pub fn account(&self) -> &Local {
        &self.of
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.0.sub(self.bytes);
    }
}
