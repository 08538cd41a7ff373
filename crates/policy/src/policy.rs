//! A compiled rule file, and the question that it answers for each write.

use crate::change::Change;
use crate::class::Class;
use crate::duration::Ms;
use crate::error::RuleErrors;
use crate::explain::{Explanation, KeyExplanation, KeyStep, Step};
use crate::facts::Facts;
use crate::parse;
use crate::pattern::normal_prefix;
use crate::profile::Profile;
use crate::rule::{Outcome, Rule};

/// What the API server puts before its keys unless it is told otherwise.
const DEFAULT_KUBE_PREFIX: &str = "/registry";

/// Compiled rules: names the class of every write.
///
/// Immutable. Share it in an `Arc` and swap the `Arc` to change the rules.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    source: String,
    digest: u64,
    /// What goes before the API server's keys: a slash first and none at the end.
    kube_prefixes: Vec<String>,
    power_loss: Option<String>,
    rules: Vec<Rule>,
    is_strict: bool,
}

impl Policy {
    /// No rule: every write is durable.
    pub fn strict() -> Policy {
        let source = Profile::Strict.text();
        let kube_prefixes = vec![DEFAULT_KUBE_PREFIX.to_string()];
        Policy {
            name: Profile::Strict.name().to_string(),
            digest: digest(source, &kube_prefixes),
            source: source.to_string(),
            kube_prefixes,
            power_loss: None,
            rules: Vec::new(),
            is_strict: true,
        }
    }

    /// A profile that ships with orlop. `kube_prefix` is the API server's `--etcd-prefix`, if
    /// it has another than `/registry`.
    ///
    /// # Errors
    /// Those of [`Policy::parse`]; with a `kube_prefix` that is none.
    pub fn profile(profile: Profile, kube_prefix: Option<&str>) -> Result<Policy, RuleErrors> {
        Policy::parse(profile.name(), profile.text(), kube_prefix)
    }

    /// Compiles a rule file. `name` is what messages call it. `kube_prefix`, the API server's
    /// `--etcd-prefix`, goes before the file's own `etcd_prefix`.
    ///
    /// # Errors
    /// Every mistake of the file, with line, column and reason.
    pub fn parse(name: &str, text: &str, kube_prefix: Option<&str>) -> Result<Policy, RuleErrors> {
        let file = parse::file(name, text)?;
        let kube_prefixes: Vec<String> = match (kube_prefix, file.kube_prefixes) {
            (Some(prefix), _) => vec![normal_prefix(prefix)],
            (None, prefixes) if prefixes.is_empty() => vec![DEFAULT_KUBE_PREFIX.to_string()],
            (None, prefixes) => prefixes,
        };
        Ok(Policy {
            name: name.to_string(),
            digest: digest(text, &kube_prefixes),
            source: text.to_string(),
            kube_prefixes,
            power_loss: file.power_loss,
            is_strict: file.rules.iter().all(|rule| rule.class().is_durable()),
            rules: file.rules,
        })
    }

    /// Whether no rule weakens anything.
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Whether some write to the key may be volatile. If not, its class is `Durable` whatever
    /// the values are. Under `strict` this reads one flag.
    #[inline]
    pub fn may_be_volatile(&self, key: &[u8]) -> bool {
        if self.is_strict {
            return false;
        }
        for rule in self.rules_for(key) {
            if !rule.class.is_durable() {
                return true;
            }
            if rule.is_unconditional() {
                return false;
            }
        }
        false
    }

    /// Whether the class of a write to the key depends on the value before it, or on whether
    /// there was one. If not, [`Policy::class`] may be asked with `old: None`.
    pub fn needs_old(&self, key: &[u8]) -> bool {
        if self.is_strict {
            return false;
        }
        self.rules_for(key)
            .next()
            .is_some_and(|rule| !rule.is_unconditional())
    }

    /// The class of a write. Never fails: what is not understood is durable.
    #[inline]
    pub fn class(&self, key: &[u8], change: Change<'_>) -> Class {
        if self.is_strict {
            return Class::Durable;
        }
        self.class_of(key, &mut Facts::new(change))
    }

    /// [`Policy::class`], with what another policy may have found out already.
    pub(crate) fn class_of(&self, key: &[u8], facts: &mut Facts<'_>) -> Class {
        self.decide(key, facts, |_, _| {})
    }

    fn decide<'p>(
        &'p self,
        key: &[u8],
        facts: &mut Facts<'_>,
        mut trace: impl FnMut(&'p Rule, Outcome),
    ) -> Class {
        for rule in self.rules_for(key) {
            let outcome = rule.judge(facts);
            trace(rule, outcome);
            match outcome {
                Outcome::Takes(_) => return rule.class,
                Outcome::Leaves(_) => {}
                Outcome::Unclear(_) => return Class::Durable,
            }
        }
        Class::Durable
    }

    /// The rules that take the key, in their order.
    fn rules_for<'k>(&self, key: &'k [u8]) -> impl Iterator<Item = &Rule> + use<'_, 'k> {
        let below = self.kube_prefixes.iter().find_map(|prefix| {
            key.strip_prefix(prefix.as_bytes())
                .filter(|below| below.first() == Some(&b'/'))
        });
        self.rules
            .iter()
            .filter(move |rule| rule.takes_key(key, below))
    }

    /// Which rule takes a write, and why; for a person.
    pub fn explain(&self, key: &[u8], change: Change<'_>) -> Explanation {
        let mut steps = Vec::new();
        let class = self.decide(key, &mut Facts::new(change), |rule, outcome| {
            steps.push(Step {
                rule: rule.to_string(),
                outcome,
            });
        });
        Explanation::new(class, steps)
    }

    /// Which rules could take a write to the key; for a person.
    pub fn explain_key(&self, key: &[u8]) -> KeyExplanation {
        let mut steps = Vec::new();
        for rule in self.rules_for(key) {
            steps.push(KeyStep {
                rule: rule.to_string(),
                condition: rule.condition(),
                class: rule.class,
            });
            if rule.is_unconditional() {
                return KeyExplanation {
                    steps,
                    is_complete: true,
                };
            }
        }
        KeyExplanation {
            steps,
            is_complete: false,
        }
    }

    /// The profile's name, or what the rule file was called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rule file's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Identifies rules and prefixes: equal for equal text and prefixes, in every version.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The longest that a rule lets a write stay unsynced, in milliseconds; `None` if strict.
    pub fn max_sync_within_ms(&self) -> Option<u32> {
        self.rules
            .iter()
            .filter_map(|rule| rule.class.sync_within_ms())
            .max()
    }

    /// How many shards are to hold what is not on disk: the most that a rule asks for; `None` if no
    /// rule does.
    pub fn copies(&self) -> Option<u8> {
        let copies = self.rules.iter().filter_map(|rule| rule.class.copies());
        copies.max()
    }

    /// What a power loss may take, in one sentence; `None` if nothing, as long as the shards that
    /// rules ask for do not lose power too.
    pub fn power_loss(&self) -> Option<String> {
        let is_volatile = |rule: &&Rule| matches!(rule.class, Class::Volatile { .. });
        let volatile_ms = self.rules.iter().filter(is_volatile);
        let max_ms = volatile_ms
            .filter_map(|rule| rule.class.sync_within_ms())
            .max()?;
        if let Some(sentence) = &self.power_loss {
            return Some(sentence.clone());
        }
        let volatile = self.rules.iter().filter(is_volatile).count();
        Some(format!(
            "A power loss may take the newest acknowledged writes of {volatile} rules of {}: each rule's sync_within, at most {}.",
            self.name,
            Ms(max_ms)
        ))
    }
}

/// FNV-1a, 64 bit: it identifies, it does not protect.
fn digest(text: &str, prefixes: &[String]) -> u64 {
    let parts = std::iter::once(text).chain(prefixes.iter().map(String::as_str));
    let bytes = parts.flat_map(|part| part.bytes().chain(std::iter::once(0)));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
