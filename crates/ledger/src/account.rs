//! What memory is held for, and how much of it there may be.

use std::fmt;

/// What bytes that outlive a call's turn are held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Account {
    /// Open connections: their buffers and what HTTP/2 keeps for each.
    Connections,
    /// Open calls: headers, tasks, what HTTP/2 keeps for a stream.
    Calls,
    /// Requests that no handler has yet: incomplete ones, and those that wait for their turn.
    Requests,
    /// Answers of unary calls and of plain HTTP that their clients have not read.
    Answers,
    /// Messages of streaming calls that their clients have not read.
    Streams,
    /// Writes that are not visible yet: they wait for the disk, or for each other.
    Writes,
    /// Compacted history that readers keep from being freed.
    Pins,
    /// What snapshots on their way to clients keep, if all of it is replaced meanwhile.
    Snapshots,
    /// The newest records, for those who keep copies of them, and what is on its way to these.
    Followers,
}

impl Account {
    /// All accounts, in the order of their numbers.
    pub const ALL: [Account; 9] = [
        Account::Connections,
        Account::Calls,
        Account::Requests,
        Account::Answers,
        Account::Streams,
        Account::Writes,
        Account::Pins,
        Account::Snapshots,
        Account::Followers,
    ];

    /// Its name in metrics and in `orlop status`.
    pub const fn name(self) -> &'static str {
        match self {
            Account::Connections => "connections",
            Account::Calls => "calls",
            Account::Requests => "requests",
            Account::Answers => "answers",
            Account::Streams => "streams",
            Account::Writes => "writes",
            Account::Pins => "pins",
            Account::Snapshots => "snapshots",
            Account::Followers => "followers",
        }
    }

    /// Its place in tables of all accounts.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// A limit in bytes for each account, for the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([usize; Account::ALL.len()]);

/// Part of the memory in thousandths, least and most bytes. The other accounts have no limit of
/// their own: whoever counts for them says what it is.
const SHARES: [(Account, usize, usize, usize); 5] = [
    (Account::Connections, 20, 32 << 20, 1 << 30),
    (Account::Calls, 30, 32 << 20, 1 << 30),
    (Account::Requests, 20, 32 << 20, 256 << 20),
    (Account::Answers, 50, 64 << 20, 512 << 20),
    (Account::Streams, 50, 64 << 20, 512 << 20),
];

impl Limits {
    /// The limits of a process that may use `memory_bytes`. `docs/operating/limits.md` has the
    /// same table.
    pub fn of_memory(memory_bytes: u64) -> Self {
        let memory = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let mut limits = [usize::MAX; Account::ALL.len()];
        for (account, thousandths, least, most) in SHARES {
            limits[account.index()] = (memory / 1000 * thousandths).clamp(least, most);
        }
        Limits(limits)
    }

    /// No limit in any account: for tools and tests that hold little.
    pub const fn none() -> Self {
        Limits([usize::MAX; Account::ALL.len()])
    }

    /// The same with another limit for one account.
    #[must_use]
    pub const fn with(mut self, account: Account, bytes: usize) -> Self {
        self.0[account.index()] = bytes;
        self
    }

    /// An account's limit in bytes.
    pub const fn of(&self, account: Account) -> usize {
        self.0[account.index()]
    }
}

/// An account has no room for what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Which account.
    pub account: Account,
    /// What was asked for, in bytes.
    pub wanted_bytes: usize,
    /// What was held, in bytes.
    pub held_bytes: usize,
    /// The limit that it would have passed, in bytes: of the process, or of a worker's or a
    /// connection's part of it.
    pub limit_bytes: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no room for {} more bytes of {}: {} of {} are held",
            self.wanted_bytes,
            self.account.name(),
            self.held_bytes,
            self.limit_bytes
        )
    }
}

impl std::error::Error for Full {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_accounts_in_their_order() {
        for (i, account) in Account::ALL.into_iter().enumerate() {
            assert_eq!(account.index(), i);
        }
    }

    #[test]
    fn limits_leave_most_of_the_memory_to_the_data() {
        let sum = |memory: u64| -> usize {
            let limits = Limits::of_memory(memory);
            SHARES.iter().map(|share| limits.of(share.0)).sum()
        };
        assert!(sum(2 << 30) < (2 << 30) / 5);
        assert!(sum(64 << 30) < 4 << 30);
        // A small machine gets the least of each.
        assert_eq!(Limits::of_memory(0).of(Account::Answers), 64 << 20);
        let changed = Limits::none().with(Account::Streams, 7);
        assert_eq!(
            (changed.of(Account::Streams), changed.of(Account::Calls)),
            (7, usize::MAX)
        );
    }
}
