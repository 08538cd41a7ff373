//! Storage classes.

use crate::duration;
use std::cmp::Ordering;
use std::fmt;

/// How a write is kept.
///
/// Ordered by strength: a transaction takes the [strongest](Class::strongest) class of its
/// writes. `Durable` is the greatest; a replicated class is stronger than a volatile one, and the
/// stronger the more copies it asks for; else the one with the shorter bound is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Answered when it is in the log's file; synced to the disk later.
    Volatile {
        /// The longest that it may stay unsynced: 1 to 30,000 ms.
        sync_within_ms: u32,
    },
    /// Answered when so many shards have it in memory; synced to the disk later. With fewer shards
    /// there, answered when it is on the disk.
    Replicated {
        /// How many: 1 to 8.
        copies: u8,
        /// The longest that it may stay unsynced: 1 to 30,000 ms.
        sync_within_ms: u32,
    },
    /// Answered when it is on the disk.
    Durable,
}

impl Class {
    /// Whether the write is answered only when it is on the disk.
    pub fn is_durable(self) -> bool {
        self == Class::Durable
    }

    /// The longest that the write may stay unsynced, in milliseconds; `None` for a durable one.
    pub fn sync_within_ms(self) -> Option<u32> {
        match self {
            Class::Volatile { sync_within_ms } | Class::Replicated { sync_within_ms, .. } => {
                Some(sync_within_ms)
            }
            Class::Durable => None,
        }
    }

    /// How many shards are to have the write in memory; `None` if it does not ask for any.
    pub fn copies(self) -> Option<u8> {
        match self {
            Class::Replicated { copies, .. } => Some(copies),
            Class::Volatile { .. } | Class::Durable => None,
        }
    }

    /// The stronger of two: the class of a transaction that makes both writes.
    pub fn strongest(self, other: Class) -> Class {
        self.max(other)
    }
}

impl Ord for Class {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.sync_within_ms(), other.sync_within_ms()) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => self.copies().cmp(&other.copies()).then(b.cmp(&a)),
        }
    }
}

impl PartialOrd for Class {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Durable => write!(f, "durable"),
            Class::Replicated {
                copies,
                sync_within_ms,
            } => {
                let within = duration::Ms(*sync_within_ms);
                write!(f, "replicated to {copies} shards, synced within {within}")
            }
            Class::Volatile { sync_within_ms } => {
                write!(
                    f,
                    "volatile, synced within {}",
                    duration::Ms(*sync_within_ms)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Class;

    #[test]
    fn the_strongest_class_wins() {
        let slow = Class::Volatile {
            sync_within_ms: 30_000,
        };
        let fast = Class::Volatile {
            sync_within_ms: 100,
        };
        assert!(slow < fast && fast < Class::Durable);
        let [one, two] = [1, 2].map(|copies| Class::Replicated {
            copies,
            sync_within_ms: 30_000,
        });
        assert!(fast < one && one < two && two < Class::Durable);
        assert_eq!(slow.strongest(fast), fast);
        assert_eq!(Class::Durable.strongest(fast), Class::Durable);
        assert_eq!(fast.strongest(fast), fast);
    }
}
