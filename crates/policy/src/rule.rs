//! One rule: which writes it takes, and the class that it gives them.

use crate::change::{ChangeKind, ChangeKinds};
use crate::class::Class;
use crate::facts::Facts;
use crate::object::Owner;
use crate::pattern::Pattern;
use crate::unclear::Unclear;
use crate::update::{Answer, Reason, Verdict};
use std::fmt;

/// A compiled rule.
///
/// A rule that weakens must hold for the object before the write and for the one after it; one
/// that says durable holds if either is as it asks. So a doubt always ends in durable.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(crate) name: Option<String>,
    /// Its place in the rule file, from 1.
    pub(crate) number: usize,
    /// The line of the rule file at which it starts, from 1.
    pub(crate) line: usize,
    pub(crate) keys: Vec<Pattern>,
    pub(crate) changes: ChangeKinds,
    pub(crate) owners: Vec<OwnerKind>,
    pub(crate) labels: Vec<(String, Option<String>)>,
    pub(crate) finalizers: Option<Vec<String>>,
    pub(crate) claims: Option<bool>,
    pub(crate) class: Class,
}

/// A kind of owner that a rule asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum OwnerKind {
    /// No owner reference at all.
    Nobody,
    /// A controller of this kind; of this API group, if one is given.
    Kind { kind: String, group: Option<String> },
}

impl OwnerKind {
    /// Reads `none`, `Kind` or `Kind.group`. The error is a sentence for a person.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(OwnerKind::Nobody);
        }
        let (kind, group) = match text.split_once('.') {
            Some((kind, group)) => (kind, Some(group)),
            None => (text, None),
        };
        let is_kind = kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_kind || group == Some("") {
            return Err(format!(
                "owner {text:?} is not \"none\", a kind (\"ReplicaSet\") or a kind with its API group (\"ReplicaSet.apps\")"
            ));
        }
        Ok(OwnerKind::Kind {
            kind: kind.to_string(),
            group: group.map(str::to_string),
        })
    }

    fn matches(&self, owner: Owner<'_>) -> bool {
        match (self, owner) {
            (OwnerKind::Nobody, Owner::Nobody) => true,
            (
                OwnerKind::Kind { kind, group },
                Owner::Controller {
                    api_version,
                    kind: actual,
                },
            ) => {
                kind.as_bytes() == actual
                    && group
                        .as_ref()
                        .is_none_or(|group| group.as_bytes() == group_of(api_version))
            }
            _ => false,
        }
    }
}

impl fmt::Display for OwnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OwnerKind::Nobody => f.write_str("none"),
            OwnerKind::Kind {
                kind,
                group: Some(group),
            } => write!(f, "{kind}.{group}"),
            OwnerKind::Kind { kind, group: None } => f.write_str(kind),
        }
    }
}

/// `apps` of `apps/v1`; nothing of `v1`.
fn group_of(api_version: &[u8]) -> &[u8] {
    match api_version.iter().position(|b| *b == b'/') {
        Some(slash) => &api_version[..slash],
        None => &[],
    }
}

/// What a rule says of a write whose key it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The rule takes the write.
    Takes(Reason),
    /// The rule leaves it to those after it.
    Leaves(Left),
    /// The rule cannot say, so the write is durable.
    Unclear(Unclear),
}

/// Why a rule leaves a write to those after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// It is another kind of change.
    Change(Reason),
    /// It belongs to somebody else.
    Owner,
    /// It does not have the labels.
    Labels,
    /// It has other finalizers.
    Finalizers,
    /// It claims a volume or a device, or does not.
    Claims(bool),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Change(why) => why.fmt(f),
            Left::Owner => f.write_str("its controller is another, or changed"),
            Left::Labels => f.write_str("its labels are others, or changed"),
            Left::Finalizers => f.write_str("it has a finalizer that the rule does not name"),
            Left::Claims(true) => f.write_str("it claims no volume or device"),
            Left::Claims(false) => f.write_str("it claims a volume or a device"),
        }
    }
}

impl Rule {
    /// The class of the writes that it takes.
    pub fn class(&self) -> Class {
        self.class
    }

    pub(crate) fn takes_key(&self, key: &[u8], below: Option<&[u8]>) -> bool {
        self.keys.iter().any(|pattern| pattern.matches(key, below))
    }

    /// Whether it takes every write to its keys.
    pub(crate) fn is_unconditional(&self) -> bool {
        self.changes.contains(ChangeKind::Any)
            && self.owners.is_empty()
            && self.labels.is_empty()
            && self.finalizers.is_none()
            && self.claims.is_none()
    }

    /// What it says of a write to one of its keys.
    pub(crate) fn judge(&self, facts: &mut Facts<'_>) -> Outcome {
        let why = match self.judge_change(facts) {
            Ok(Answer { yes: true, why }) => why,
            Ok(Answer { why, .. }) => return Outcome::Leaves(Left::Change(why)),
            Err(why) => return Outcome::Unclear(why),
        };
        let every = !self.class.is_durable();
        let ask = |left, answer: Result<bool, Unclear>| match answer {
            Ok(true) => None,
            Ok(false) => Some(Outcome::Leaves(left)),
            Err(why) => Some(Outcome::Unclear(why)),
        };
        if !self.owners.is_empty() {
            let holds = facts.holds(every, |object| {
                let owner = object.owner()?;
                Ok(self.owners.iter().any(|kind| kind.matches(owner)))
            });
            if let Some(outcome) = ask(Left::Owner, holds) {
                return outcome;
            }
        }
        if !self.labels.is_empty() {
            let holds = facts.holds(every, |object| {
                for (key, value) in &self.labels {
                    if !object.has_label(key, value.as_deref())? {
                        return Ok(false);
                    }
                }
                Ok(true)
            });
            if let Some(outcome) = ask(Left::Labels, holds) {
                return outcome;
            }
        }
        if let Some(known) = &self.finalizers {
            let holds = facts.holds(every, |object| object.finalizers_are_among(known));
            if let Some(outcome) = ask(Left::Finalizers, holds) {
                return outcome;
            }
        }
        if let Some(claims) = self.claims {
            let holds = facts.holds(every, |object| Ok(object.claims()? == claims));
            if let Some(outcome) = ask(Left::Claims(claims), holds) {
                return outcome;
            }
        }
        Outcome::Takes(why)
    }

    /// Whether the write is one of the kinds of change that the rule takes.
    fn judge_change(&self, facts: &mut Facts<'_>) -> Verdict {
        let changes = self.changes;
        let answer = |yes, why| Ok(Answer { yes, why });
        if changes.contains(ChangeKind::Any) {
            return answer(true, Reason::Any);
        }
        let mut last = Reason::NotAnUpdate;
        if changes.contains(ChangeKind::Create) {
            if !facts.existed() {
                return answer(true, Reason::Created);
            }
            last = Reason::NotCreated;
        }
        if changes.contains(ChangeKind::Delete) {
            if !facts.will_exist() {
                return answer(true, Reason::Deleted);
            }
            last = Reason::NotDeleted;
        }
        let mut unclear = None;
        for kind in [
            ChangeKind::Status,
            ChangeKind::Renewal,
            ChangeKind::Mark,
            ChangeKind::Authoritative,
        ] {
            if changes.contains(kind) {
                let update = facts.update();
                let verdict = match kind {
                    ChangeKind::Status => update.status,
                    ChangeKind::Renewal => update.renewal,
                    ChangeKind::Mark => update.mark,
                    _ => update.authoritative,
                };
                match verdict {
                    Ok(Answer { yes: true, why }) => return answer(true, why),
                    Ok(Answer { why, .. }) => last = why,
                    Err(why) => unclear = Some(why),
                }
            }
        }
        unclear.map_or(answer(false, last), Err)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.number)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        write!(f, ", line {}", self.line)
    }
}
