//! Whether a template may run on a node: its node selector, its required node affinity and its
//! tolerations against the node's labels and taints, by Kubernetes' rules.

use std::collections::BTreeMap;

/// Labels of a node.
pub type Labels = BTreeMap<String, String>;

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Not scheduled.
    NoSchedule,
    /// Better elsewhere; no constraint here.
    PreferNoSchedule,
    /// Not scheduled, and evicted.
    NoExecute,
}

/// A node's taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, maybe empty.
    pub value: String,
    /// Effect.
    pub effect: Effect,
}

/// A template's toleration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Key; `None` tolerates every key.
    pub key: Option<String>,
    /// The value that it equals; `None` is the operator `Exists`.
    pub value: Option<String>,
    /// Effect; `None` is every one.
    pub effect: Option<Effect>,
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self
                .value
                .as_ref()
                .is_none_or(|value| *value == taint.value)
    }
}

/// How a requirement compares a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values, or no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is none.
    DoesNotExist,
    /// A number above the first value.
    Gt,
    /// A number below the first value.
    Lt,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether labels meet it.
    #[must_use]
    pub fn met_by(&self, labels: &Labels) -> bool {
        let label = labels.get(&self.key);
        let number = |text: &String| text.parse::<i64>().ok();
        let bound = self.values.first().and_then(number);
        match self.operator {
            Operator::In => label.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => label.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::Gt => label
                .and_then(number)
                .zip(bound)
                .is_some_and(|(value, bound)| value > bound),
            Operator::Lt => label
                .and_then(number)
                .zip(bound)
                .is_some_and(|(value, bound)| value < bound),
        }
    }
}

/// A term of a node affinity: all of its requirements.
pub type Term = Vec<Requirement>;

/// What a template asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Labels with these values.
    pub selector: Labels,
    /// Required node affinity: one of the terms. `None` asks nothing.
    pub affinity: Option<Vec<Term>>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
}

/// Why a template may not run on a node, in words; `None` if it may.
#[must_use]
pub fn misfit(constraints: &Constraints, labels: &Labels, taints: &[Taint]) -> Option<String> {
    for (key, value) in &constraints.selector {
        match labels.get(key) {
            Some(have) if have == value => {}
            Some(have) => {
                return Some(format!(
                    "the template selects nodes with {key}={value}, this one has {key}={have}"
                ));
            }
            None => {
                return Some(format!(
                    "the template selects nodes with {key}={value}, this one has no such label"
                ));
            }
        }
    }
    if let Some(terms) = &constraints.affinity {
        // An empty term matches nothing, as in Kubernetes.
        let met = terms
            .iter()
            .any(|term| !term.is_empty() && term.iter().all(|r| r.met_by(labels)));
        if !met {
            return Some("no term of the template's required node affinity fits".into());
        }
    }
    taints
        .iter()
        .filter(|taint| taint.effect != Effect::PreferNoSchedule)
        .find(|taint| !constraints.tolerations.iter().any(|t| t.covers(taint)))
        .map(|taint| {
            let value = if taint.value.is_empty() {
                String::new()
            } else {
                format!("={}", taint.value)
            };
            format!(
                "the template does not tolerate the taint {}{value}:{:?}",
                taint.key, taint.effect
            )
        })
}
