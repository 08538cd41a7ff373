//! Accounts that any thread may charge: what the server holds beside its workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::account::{Account, Full};

/// One account of the process.
#[derive(Debug)]
pub(crate) struct Total {
    pub(crate) account: Account,
    pub(crate) limit_bytes: usize,
    /// What [`Common`] accounts hold; workers have pages of their own.
    held_bytes: AtomicUsize,
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
            held_bytes: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            shed: AtomicU64::new(0),
        }
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }
}

/// An account of the process for holders on any thread. Clones are the same account.
#[derive(Debug, Clone)]
pub struct Common(pub(crate) Arc<Total>);

impl Common {
    /// Charges `bytes` if the account stays within its limit; counts a refusal else.
    pub fn try_charge(&self, bytes: usize) -> Result<CommonCharge, Full> {
        let mut charge = CommonCharge {
            of: self.clone(),
            bytes: 0,
        };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Charges `bytes` whatever the limit: for what exists already. The caller says what bounds
    /// it.
    pub fn charge(&self, bytes: usize) -> CommonCharge {
        self.0.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        CommonCharge {
            of: self.clone(),
            bytes,
        }
    }

    /// What is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    /// The limit, in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes
    }

    /// Counts a holder that was ended to make room.
    pub fn count_shed(&self) {
        self.0.shed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes of a [`Common`] account, held until this is dropped.
#[derive(Debug)]
#[must_use = "a charge ends when it is dropped"]
pub struct CommonCharge {
    of: Common,
    bytes: usize,
}

impl CommonCharge {
    /// Holds `bytes` more if the account stays within its limit; counts a refusal else.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let total = &*self.of.0;
        let taken =
            total
                .held_bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held_bytes| {
                    let sum = held_bytes.checked_add(bytes)?;
                    (sum <= total.limit_bytes).then_some(sum)
                });
        match taken {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(held_bytes) => {
                total.refused.fetch_add(1, Ordering::Relaxed);
                Err(Full {
                    account: total.account,
                    wanted_bytes: bytes,
                    held_bytes,
                    limit_bytes: total.limit_bytes,
                })
            }
        }
    }

    /// Gives back `bytes` of it, at most all.
    pub fn shrink(&mut self, bytes: usize) {
        let less = bytes.min(self.bytes);
        self.bytes -= less;
        self.of.0.held_bytes.fetch_sub(less, Ordering::Relaxed);
    }

    /// What it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CommonCharge {
    fn drop(&mut self) {
        self.of
            .0
            .held_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
