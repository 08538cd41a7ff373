//! Explanations for a person.

use crate::class::Class;
use crate::rule::{Outcome, OwnerKind, Rule};
use std::fmt;

/// Which rule takes a write, and why. Prints one line a rule that was asked, and the result.
#[derive(Clone, Debug)]
pub struct Explanation {
    class: Class,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) rule: String,
    pub(crate) outcome: Outcome,
}

impl Explanation {
    pub(crate) fn new(class: Class, steps: Vec<Step>) -> Self {
        Explanation { class, steps }
    }

    /// The write's class.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class)?;
        match self.steps.last().map(|step| (&step.rule, step.outcome)) {
            Some((rule, Outcome::Takes(_))) => writeln!(f, ": {rule}")?,
            Some((rule, Outcome::Unclear(_))) => {
                writeln!(f, ": {rule} cannot be decided, and a doubt is durable")?;
            }
            Some((_, Outcome::Leaves(_))) => writeln!(f, ": no rule takes the write")?,
            None => writeln!(f, ": no rule takes the key")?,
        }
        for Step { rule, outcome } in &self.steps {
            match outcome {
                Outcome::Takes(why) => writeln!(f, "  {rule}: takes it: {why}")?,
                Outcome::Leaves(why) => writeln!(f, "  {rule}: passes: {why}")?,
                Outcome::Unclear(why) => writeln!(f, "  {rule}: undecided: {why}")?,
            }
        }
        Ok(())
    }
}

/// Which rules could take a write to a key. Prints one line a rule.
#[derive(Clone, Debug)]
pub struct KeyExplanation {
    pub(crate) steps: Vec<KeyStep>,
    pub(crate) is_complete: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct KeyStep {
    pub(crate) rule: String,
    pub(crate) condition: String,
    pub(crate) class: Class,
}

impl fmt::Display for KeyExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{}: {}: {}", step.class, step.rule, step.condition)?;
        }
        if self.is_complete {
            return Ok(());
        }
        let which = if self.steps.is_empty() {
            "every write to this key"
        } else {
            "every other write"
        };
        writeln!(f, "durable: {which}: no rule takes it")
    }
}

impl Rule {
    /// What the rule asks besides the key, in words.
    pub fn condition(&self) -> String {
        let mut parts = vec![format!("change {}", self.changes)];
        if !self.owners.is_empty() {
            let owners: Vec<String> = self.owners.iter().map(OwnerKind::to_string).collect();
            parts.push(format!("owner {}", owners.join(" or ")));
        }
        for (key, value) in &self.labels {
            parts.push(match value {
                Some(value) => format!("label {key}={value}"),
                None => format!("label {key}"),
            });
        }
        match self.finalizers.as_deref() {
            Some([]) => parts.push("no finalizer".to_string()),
            Some(known) => parts.push(format!("no finalizer but {}", known.join(", "))),
            None => {}
        }
        match self.claims {
            Some(true) => parts.push("claims a volume or a device".to_string()),
            Some(false) => parts.push("claims no volume or device".to_string()),
            None => {}
        }
        parts.join("; ")
    }
}
