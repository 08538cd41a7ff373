//! What a write does to a key.

use std::fmt;

/// What a write does to one key: the stored bytes before and after.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The value before; `None` if the key did not exist.
    pub old: Option<&'a [u8]>,
    /// The value after; `None` if the write deletes the key.
    pub new: Option<&'a [u8]>,
}

impl<'a> Change<'a> {
    /// A key that did not exist gets a value.
    pub fn create(new: &'a [u8]) -> Self {
        Change {
            old: None,
            new: Some(new),
        }
    }

    /// A key's value is replaced.
    pub fn update(old: &'a [u8], new: &'a [u8]) -> Self {
        Change {
            old: Some(old),
            new: Some(new),
        }
    }

    /// A key is deleted.
    pub fn delete(old: &'a [u8]) -> Self {
        Change {
            old: Some(old),
            new: None,
        }
    }
}

/// A kind of change that a rule can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChangeKind {
    /// Every write.
    Any,
    /// The key did not exist.
    Create,
    /// Nothing but the object's status changed (and bookkeeping), and nothing in it that
    /// nobody could compute again.
    Status,
    /// Nothing but the renewal time of a `Lease` changed.
    Renewal,
    /// An update marked the object for deletion.
    Mark,
    /// The key is deleted.
    Delete,
    /// An update changed a field of the status that nobody could compute again, or what
    /// somebody wrote to a pod.
    Authoritative,
}

impl ChangeKind {
    /// All kinds, in the order in which they are documented.
    pub(crate) const ALL: [ChangeKind; 7] = [
        ChangeKind::Any,
        ChangeKind::Create,
        ChangeKind::Status,
        ChangeKind::Renewal,
        ChangeKind::Mark,
        ChangeKind::Delete,
        ChangeKind::Authoritative,
    ];

    /// The name in a rule file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChangeKind::Any => "any",
            ChangeKind::Create => "create",
            ChangeKind::Status => "status",
            ChangeKind::Renewal => "renewal",
            ChangeKind::Mark => "mark",
            ChangeKind::Delete => "delete",
            ChangeKind::Authoritative => "authoritative",
        }
    }

    /// The kind with this name.
    pub(crate) fn from_name(name: &str) -> Option<ChangeKind> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of kinds of change: a rule takes a write of any of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChangeKinds(u8);

impl ChangeKinds {
    /// The set with no kind in it.
    pub(crate) const EMPTY: ChangeKinds = ChangeKinds(0);

    /// This set and one kind more.
    pub(crate) fn with(self, kind: ChangeKind) -> Self {
        ChangeKinds(self.0 | kind.bit())
    }

    /// Whether a kind is in the set.
    pub(crate) fn contains(self, kind: ChangeKind) -> bool {
        self.0 & kind.bit() != 0
    }
}

impl fmt::Display for ChangeKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for kind in ChangeKind::ALL.into_iter().filter(|k| self.contains(*k)) {
            write!(f, "{separator}{}", kind.name())?;
            separator = " or ";
        }
        Ok(())
    }
}
