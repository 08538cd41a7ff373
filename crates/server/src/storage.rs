//! The storage rules in force: where they come from, how they outlive a restart, and what
//! class they give a write.

use crate::store::Store;
use config::Config;
use engine::Lane;
use engine::op::{Bound, Class, DeleteOp, Op, PutOp, TxnOp, Write};
use engine::tail;
use journal::{ChoiceError, RulesChoice, RulesKeeper};
use parking_lot::{Mutex, RwLock};
use policy::{Change, Policy, Profile, WhatIf};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A rule file is some kilobytes; a larger one is a mistake.
pub(crate) const LIMIT_BYTES: u64 = 1 << 20;

/// Why storage rules cannot be used. The text is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// There is no such profile.
    #[error("{0}")]
    Profile(String),
    /// The rules have mistakes.
    #[error("the storage rules cannot be used:\n{0}")]
    Rules(String),
    /// The file of rules that the command line names cannot be read.
    #[error("cannot read the storage rules {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The choice that was made at run time cannot be read back, or not be kept.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
}

/// Where rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing was said.
    Default,
    /// `--profile` or `--rules`.
    Flag,
    /// A choice at run time, which wins over the flag until it is reset.
    RunTime,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "the default",
            Source::Flag => "the command line",
            Source::RunTime => "a choice at run time",
        })
    }
}

/// Rules in force.
pub(crate) struct InForce {
    pub(crate) policy: Policy,
    pub(crate) source: Source,
    generation: u64,
    /// Shards may connect.
    shards: bool,
}

impl InForce {
    /// Says what a power loss may take, unless that is nothing.
    pub(crate) fn warn(&self) {
        if self.policy.copies().is_some() && !self.shards {
            tracing::warn!(
                profile = self.policy.name(),
                "the rules ask for shards, and none may connect (--max-shards is 0): what is to be replicated is durable"
            );
        }
        if let Some(sentence) = self.policy.power_loss() {
            tracing::warn!(
                profile = self.policy.name(),
                source = %self.source,
                "{sentence}"
            );
        }
    }
}

/// What the profiles that are not in force would have spared; of sampled writes.
#[derive(Debug, Default)]
pub(crate) struct Spared {
    pub(crate) writes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) writes_in: [AtomicU64; WhatIf::PROFILES.len()],
    pub(crate) syncs_in: [AtomicU64; WhatIf::PROFILES.len()],
}

/// The write was looked at for [`Spared`].
const SAMPLED: u8 = 1;
/// Bit of the first profile that would make it volatile.
const IN_PROFILE: u8 = 2;

/// One slice of time in so many is sampled.
const SAMPLE_EVERY: u64 = 16;
/// Length of a slice, as a power of two of milliseconds: longer than most syncs, so that
/// whole batches fall into it.
const SLICE_SHIFT: u32 = 6;

/// All about storage rules.
pub(crate) struct Storage {
    keeper: Arc<dyn RulesKeeper>,
    kube_prefix: Option<String>,
    flag: Option<RulesChoice>,
    current: RwLock<Arc<InForce>>,
    /// As `current` says, without a lock.
    strict: AtomicBool,
    /// Held through a switch.
    pub(crate) switching: Mutex<()>,
    what_if: WhatIf,
    /// Shards may hold what is not on the disk; without them what is to be replicated is durable.
    shards: bool,
    pub(crate) spared: Spared,
}

fn parse(name: &str, text: &str, prefix: Option<&str>) -> Result<Policy, RulesError> {
    Policy::parse(name, text, prefix).map_err(|e| RulesError::Rules(e.to_string()))
}

/// The rules of a start without a choice at run time.
fn of_flag(
    flag: Option<&RulesChoice>,
    prefix: Option<&str>,
) -> Result<(Policy, Source), RulesError> {
    Ok(match flag {
        None => (Policy::strict(), Source::Default),
        Some(n) => (parse(&n.name, &n.text, prefix)?, Source::Flag),
    })
}

/// A profile's rules, by name.
pub(crate) fn profile_text(name: &str) -> Result<&'static str, RulesError> {
    let profile: Profile = name
        .parse()
        .map_err(|e| RulesError::Profile(format!("{e}")))?;
    Ok(profile.text())
}

impl Storage {
    /// Finds the rules for a start; `keeper` has what was chosen at run time.
    pub(crate) fn open(config: &Config, keeper: Arc<dyn RulesKeeper>) -> Result<Self, RulesError> {
        let kube_prefix = config.kube_prefix.clone();
        let prefix = kube_prefix.as_deref();
        let flag = match &config.storage {
            config::Storage::Default => None,
            config::Storage::Profile(name) => Some(RulesChoice {
                name: name.clone(),
                text: profile_text(name)?.to_owned(),
            }),
            config::Storage::Rules(path) => Some(RulesChoice {
                name: path.display().to_string(),
                text: std::fs::read_to_string(path).map_err(|source| RulesError::Io {
                    path: path.clone(),
                    source,
                })?,
            }),
        };
        // Mistakes in what the command line names show also while a choice hides it.
        let of_flag = of_flag(flag.as_ref(), prefix)?;
        let (policy, source) = match keeper.read(LIMIT_BYTES)? {
            Some(n) => (parse(&n.name, &n.text, prefix)?, Source::RunTime),
            None => of_flag,
        };
        let what_if = WhatIf::new(prefix).map_err(|e| RulesError::Rules(e.to_string()))?;
        let shards = config
            .followers
            .as_ref()
            .is_some_and(|of| of.shards.is_some());
        Ok(Storage {
            keeper,
            kube_prefix,
            flag,
            strict: AtomicBool::new(policy.is_strict()),
            current: RwLock::new(Arc::new(InForce {
                policy,
                source,
                generation: 0,
                shards,
            })),
            switching: Mutex::new(()),
            what_if,
            shards,
            spared: Spared::default(),
        })
    }

    /// The rules in force.
    pub(crate) fn current(&self) -> Arc<InForce> {
        self.current.read().clone()
    }

    /// Whether everything is durable.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict.load(Ordering::Acquire)
    }

    /// How many shards are to hold what is not on the disk, by the rules in force; `None` if they
    /// ask for none, or there are no shards.
    pub(crate) fn copies(&self) -> Option<usize> {
        self.copies_of(&self.current().policy)
    }

    /// The same of other rules.
    pub(crate) fn copies_of(&self, policy: &Policy) -> Option<usize> {
        policy.copies().filter(|_| self.shards).map(usize::from)
    }

    /// What the command line chose, by name.
    pub(crate) fn flag_name(&self) -> &str {
        self.flag
            .as_ref()
            .map_or(Profile::Strict.name(), |n| n.name.as_str())
    }

    /// The rules of a text, checked.
    pub(crate) fn check(&self, name: &str, text: &str) -> Result<Policy, RulesError> {
        parse(name, text, self.kube_prefix.as_deref())
    }

    /// The rules that are in force when there is no choice at run time.
    pub(crate) fn of_flag(&self) -> Result<(Policy, Source), RulesError> {
        of_flag(self.flag.as_ref(), self.kube_prefix.as_deref())
    }

    /// Keeps a choice, or that there is none: it outlives a restart.
    pub(crate) fn record(&self, policy: Option<&Policy>) -> Result<(), RulesError> {
        let choice = policy.map(|policy| RulesChoice {
            name: policy.name().to_owned(),
            text: policy.source().to_owned(),
        });
        Ok(self.keeper.keep(choice.as_ref())?)
    }

    /// Puts rules in force for every write that is not admitted yet.
    pub(crate) fn enforce(&self, store: &Store, policy: Policy, source: Source) -> Arc<InForce> {
        let mut current = self.current.write();
        let generation = current.generation + 1;
        let strict = policy.is_strict();
        let next = Arc::new(InForce {
            policy,
            source,
            generation,
            shards: self.shards,
        });
        *current = next.clone();
        self.strict.store(strict, Ordering::Release);
        store.lock().set_rules(generation);
        next
    }

    /// The class of a write, found from what is visible now.
    pub(crate) fn classify(&self, store: &Store, write: &Write, now_ms: u64) -> Class {
        if self.is_strict() {
            return Class {
                tags: self.sample(store, write, now_ms),
                ..Class::DURABLE
            };
        }
        let current = self.current();
        let mut old = Olds::new(store);
        match found(&current.policy, &mut old, write) {
            Some(policy::Class::Replicated { .. }) if !self.shards => Class::DURABLE,
            Some(
                policy::Class::Volatile { sync_within_ms }
                | policy::Class::Replicated { sync_within_ms, .. },
            ) => Class {
                lane: Lane::Volatile,
                sync_within_ms,
                rules: current.generation,
                bound: old.bound,
                tags: 0,
            },
            Some(policy::Class::Durable) | None => Class::DURABLE,
        }
    }

    /// Under `strict`, now and then: which profiles would make a write volatile.
    fn sample(&self, store: &Store, write: &Write, now_ms: u64) -> u8 {
        // Slices at odd intervals, so that what clients do in step with a clock is met too.
        let slice = (now_ms >> SLICE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let reads = matches!(write, Write::Txn(op) if op.only_reads());
        if !slice.is_multiple_of(SAMPLE_EVERY) || reads {
            return 0;
        }
        let mut tags = SAMPLED;
        self.spared.writes.fetch_add(1, Ordering::Relaxed);
        if let Some((key, new)) = one_key(write) {
            let needed = new.is_none() || self.what_if.needs_old(key);
            let before = if needed {
                store.lock().version_of(key)
            } else {
                None
            };
            let before = before.as_deref().map(|t| tail::decode(t).value);
            let set = self.what_if.volatile_in(key, Change { old: before, new });
            for (n, count) in self.spared.writes_in.iter().enumerate() {
                if set.contains(n) {
                    tags |= IN_PROFILE << n;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        tags
    }

    /// A batch was synced whose writes all had `tags`.
    pub(crate) fn synced(&self, tags: u8) {
        if tags & SAMPLED == 0 {
            return;
        }
        self.spared.syncs.fetch_add(1, Ordering::Relaxed);
        for (n, count) in self.spared.syncs_in.iter().enumerate() {
            count.fetch_add(u64::from(tags & (IN_PROFILE << n) != 0), Ordering::Relaxed);
        }
    }
}

/// Former values that a classification asks for. A class can hang on one key at most.
struct Olds<'a> {
    store: &'a Store,
    bound: Option<Bound>,
}

impl<'a> Olds<'a> {
    fn new(store: &'a Store) -> Self {
        Olds { store, bound: None }
    }

    /// The key's version now.
    fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.store.lock().version_of(key)
    }
}

/// The class of one key's change; `None` if it cannot be told, which means durable.
fn of_change(
    policy: &Policy,
    olds: &mut Olds<'_>,
    key: &bytes::Bytes,
    new: Option<&[u8]>,
) -> Option<policy::Class> {
    if !policy.may_be_volatile(key) {
        return None;
    }
    let asks = policy.needs_old(key);
    if !asks && new.is_some() {
        return Some(policy.class(key, Change { old: None, new }));
    }
    let tail = olds.get(key);
    let fields = tail.as_deref().map(tail::decode);
    if asks {
        let bound = Bound {
            key: key.clone(),
            mod_revision: fields.map_or(0, |f| f.mod_revision),
        };
        match &olds.bound {
            None => olds.bound = Some(bound),
            Some(known) if *known == bound => {}
            // A class hangs on one version only: more is not worth the bookkeeping.
            Some(_) => return None,
        }
    }
    let old = fields.map(|f| f.value);
    if old.is_none() && new.is_none() {
        // Nothing to delete: there will be no record.
        return None;
    }
    Some(policy.class(key, Change { old, new }))
}

fn found(policy: &Policy, olds: &mut Olds<'_>, write: &Write) -> Option<policy::Class> {
    match write {
        Write::Put(op) => of_put(policy, olds, op),
        Write::Delete(op) if op.range.is_one() => of_change(policy, olds, &op.range.key, None),
        Write::Txn(op) => of_txn(policy, olds, op),
        // Ranges, leases, compactions, alarms.
        _ => None,
    }
}

fn of_put(policy: &Policy, olds: &mut Olds<'_>, op: &PutOp) -> Option<policy::Class> {
    // What it puts is not known here.
    if op.ignore_value {
        return None;
    }
    of_change(policy, olds, &op.key, Some(&op.value))
}

/// The strongest class of either branch. Of a transaction that compares a key's mod revision
/// and then changes that key, as Kubernetes' do, one branch only changes anything.
fn of_txn(policy: &Policy, olds: &mut Olds<'_>, op: &TxnOp) -> Option<policy::Class> {
    let mut strongest = None;
    for o in op.success.iter().chain(&op.failure) {
        let class = match o {
            Op::Range(_) => continue,
            Op::Put(p) => of_put(policy, olds, p)?,
            Op::Delete(d) if d.range.is_one() => of_change(policy, olds, &d.range.key, None)?,
            Op::Delete(_) | Op::Txn(_) => return None,
        };
        if class.is_durable() {
            return None;
        }
        strongest = Some(strongest.map_or(class, |s: policy::Class| s.strongest(class)));
    }
    strongest
}

/// The one key that a write changes, and its new value; for sampling.
fn one_key(write: &Write) -> Option<(&[u8], Option<&[u8]>)> {
    fn put(op: &PutOp) -> Option<(&[u8], Option<&[u8]>)> {
        (!op.ignore_value).then_some((&op.key[..], Some(&op.value[..])))
    }
    fn delete(op: &DeleteOp) -> Option<(&[u8], Option<&[u8]>)> {
        op.range.is_one().then_some((&op.range.key[..], None))
    }
    match write {
        Write::Put(op) => put(op),
        Write::Delete(op) => delete(op),
        Write::Txn(t) => {
            let ops = t.success.iter().chain(&t.failure);
            let mut changes = ops.filter(|o| !matches!(o, Op::Range(_)));
            let one = match changes.next()? {
                Op::Put(op) => put(op),
                Op::Delete(op) => delete(op),
                Op::Range(_) | Op::Txn(_) => None,
            };
            one.filter(|_| changes.next().is_none())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{Parsed, Personality};

    /// Keeps a choice elsewhere than in the data directory.
    #[derive(Default)]
    struct Elsewhere(Mutex<Option<RulesChoice>>);

    impl RulesKeeper for Elsewhere {
        fn read(&self, _: u64) -> Result<Option<RulesChoice>, ChoiceError> {
            Ok(self.0.lock().clone())
        }

        fn keep(&self, choice: Option<&RulesChoice>) -> Result<(), ChoiceError> {
            *self.0.lock() = choice.cloned();
            Ok(())
        }
    }

    #[test]
    fn a_choice_is_read_back_from_wherever_it_is_kept() {
        let keeper = Arc::new(Elsewhere::default());
        let args = ["--data-dir=/nowhere".into()];
        let parsed = Config::from_args(Personality::Orlop, args, std::iter::empty());
        let Parsed::Run(run) = parsed.unwrap() else {
            unreachable!("help was not asked for")
        };
        let config = run.config;
        let open = || Storage::open(&config, keeper.clone()).unwrap();
        let storage = open();
        assert_eq!(storage.current().source, Source::Default);
        let chosen = storage.check("ephemeral", profile_text("ephemeral").unwrap());
        storage.record(Some(&chosen.unwrap())).unwrap();
        let again = open();
        assert_eq!(again.current().source, Source::RunTime);
        assert_eq!(again.current().policy.name(), "ephemeral");
        again.record(None).unwrap();
        assert!(open().is_strict());
    }
}
