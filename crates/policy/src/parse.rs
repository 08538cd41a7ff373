//! Reads rule files.

use crate::change::{ChangeKind, ChangeKinds};
use crate::class::Class;
use crate::duration::{self, DEFAULT_REPLICATED_SYNC_WITHIN_MS, DEFAULT_SYNC_WITHIN_MS};
use crate::error::{RuleError, RuleErrors};
use crate::pattern::{Pattern, normal_prefix};
use crate::rule::{OwnerKind, Rule};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A rule file is at most this long; the shipped ones are a few KiB.
const MAX_BYTES: usize = 1 << 20;
/// Rules, and items of any list in one, at most.
const MAX_ITEMS: usize = 1000;

/// How many shards have a replicated write, unless its rule says otherwise.
const DEFAULT_COPIES: u8 = 2;
/// And at most.
const MAX_COPIES: u8 = 8;

const FILE_KEYS: &str = "etcd_prefix, power_loss and [[rule]]";
const RULE_KEYS: &str = "name, prefix, key, change, owner, labels, finalizers, claims, durability, sync_within and copies";

/// A rule file's content.
pub(crate) struct File {
    /// Empty if the file does not say.
    pub(crate) kube_prefixes: Vec<String>,
    /// What a power loss may take, in the file's own words.
    pub(crate) power_loss: Option<String>,
    /// In their order.
    pub(crate) rules: Vec<Rule>,
}

/// Reads a rule file, or says all that is wrong with it.
pub(crate) fn file(name: &str, text: &str) -> Result<File, RuleErrors> {
    let mut reader = Reader {
        text,
        errors: Vec::new(),
    };
    let file = reader.file();
    let mut errors = reader.errors;
    if errors.is_empty() {
        return Ok(file);
    }
    errors.sort_by_key(|e| (e.line, e.column));
    Err(RuleErrors {
        file: name.to_string(),
        errors,
    })
}

struct Reader<'t> {
    text: &'t str,
    errors: Vec<RuleError>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'t> Reader<'t> {
    /// Line and column of a place, from 1.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    fn error(&mut self, span: Range<usize>, reason: impl Into<String>) {
        let (line, column) = self.position(span.start);
        self.errors.push(RuleError {
            line,
            column,
            reason: reason.into(),
        });
    }

    fn file(&mut self) -> File {
        let mut file = File {
            kube_prefixes: Vec::new(),
            power_loss: None,
            rules: Vec::new(),
        };
        if self.text.len() > MAX_BYTES {
            self.error(
                0..0,
                format!("a rule file is at most {MAX_BYTES} bytes long"),
            );
            return file;
        }
        let (table, errors) = DeTable::parse_recoverable(self.text);
        if !errors.is_empty() {
            for error in errors {
                self.error(
                    error.span().unwrap_or_default(),
                    format!("not TOML: {}", error.message()),
                );
            }
            return file;
        }
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                "etcd_prefix" => {
                    let prefixes = self.strings(value, "etcd_prefix");
                    file.kube_prefixes = prefixes.iter().map(|(p, _)| normal_prefix(p)).collect();
                }
                "power_loss" => file.power_loss = self.string(value, "power_loss"),
                "rule" => file.rules = self.rules(value),
                other => {
                    let reason = format!("a rule file has no {other:?}; it has {FILE_KEYS}");
                    self.error(key.span(), reason);
                }
            }
        }
        file
    }

    fn rules(&mut self, value: &Value<'t>) -> Vec<Rule> {
        let DeValue::Array(items) = value.get_ref() else {
            self.error(
                value.span(),
                "rule is a list of tables; each starts with [[rule]]",
            );
            return Vec::new();
        };
        if items.len() > MAX_ITEMS {
            self.error(
                value.span(),
                format!("{} rules; at most {MAX_ITEMS}", items.len()),
            );
            return Vec::new();
        }
        let mut rules = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match item.get_ref() {
                DeValue::Table(table) => rules.extend(self.rule(i + 1, item.span(), table)),
                _ => self.error(item.span(), "a rule is a table; it starts with [[rule]]"),
            }
        }
        rules
    }

    fn rule(&mut self, number: usize, span: Range<usize>, table: &DeTable<'t>) -> Option<Rule> {
        let before = self.errors.len();
        let mut rule = Rule {
            name: None,
            number,
            line: self.position(span.start).0,
            keys: Vec::new(),
            changes: ChangeKinds::EMPTY.with(ChangeKind::Any),
            owners: Vec::new(),
            labels: Vec::new(),
            finalizers: None,
            claims: None,
            class: Class::Durable,
        };
        let mut durability = None;
        let mut sync_within = None;
        let mut copies = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "name" => rule.name = self.string(value, "name"),
                "prefix" => self.patterns(value, "prefix", Pattern::prefix, &mut rule.keys),
                "key" => self.patterns(value, "key", Pattern::key, &mut rule.keys),
                "change" => rule.changes = self.changes(value),
                "owner" => {
                    for (owner, span) in self.strings(value, "owner") {
                        match OwnerKind::parse(&owner) {
                            Ok(owner) => rule.owners.push(owner),
                            Err(reason) => self.error(span, reason),
                        }
                    }
                }
                "labels" => rule.labels = self.labels(value),
                "finalizers" => {
                    let names = self.strings_or_none(value, "finalizers");
                    rule.finalizers = Some(names.into_iter().map(|(name, _)| name).collect());
                }
                "claims" => match value.get_ref() {
                    DeValue::Boolean(claims) => rule.claims = Some(*claims),
                    _ => self.error(value.span(), "claims is true or false"),
                },
                "durability" => durability = self.durability(value),
                "sync_within" => {
                    if let Some(text) = self.string(value, "sync_within") {
                        match duration::parse_sync_within(&text) {
                            Ok(ms) => sync_within = Some((ms, key.span())),
                            Err(reason) => self.error(value.span(), reason),
                        }
                    }
                }
                "copies" => {
                    copies = self.copies(value).map(|copies| (copies, key.span()));
                }
                other => {
                    self.error(
                        key.span(),
                        format!("a rule has no {other:?}; it has {RULE_KEYS}"),
                    );
                }
            }
        }
        if self.errors.len() > before {
            return None;
        }
        if rule.keys.is_empty() {
            self.error(
                span.clone(),
                "the rule has neither prefix nor key, so it would take nothing",
            );
        }
        if let (Some((_, at)), Some(Durability::Durable | Durability::Volatile)) =
            (&copies, durability)
        {
            let at = at.clone();
            self.error(at, "copies goes with durability = \"replicated\" only");
        }
        match (durability, sync_within) {
            (None, _) => {
                self.error(
                    span,
                    "the rule has no durability; write durability = \"durable\", \"replicated\" or \"volatile\"",
                );
            }
            (Some(Durability::Durable), Some((_, at))) => {
                self.error(at, "sync_within goes with durability = \"volatile\" or \"replicated\" only; a durable write is synced before it is answered");
            }
            (Some(Durability::Durable), None) => {}
            (Some(Durability::Volatile), ms) => {
                let sync_within_ms = ms.map_or(DEFAULT_SYNC_WITHIN_MS, |(ms, _)| ms);
                rule.class = Class::Volatile { sync_within_ms };
            }
            (Some(Durability::Replicated), ms) => {
                rule.class = Class::Replicated {
                    copies: copies.map_or(DEFAULT_COPIES, |(copies, _)| copies),
                    sync_within_ms: ms.map_or(DEFAULT_REPLICATED_SYNC_WITHIN_MS, |(ms, _)| ms),
                };
            }
        }
        (self.errors.len() == before).then_some(rule)
    }

    fn durability(&mut self, value: &Value<'t>) -> Option<Durability> {
        let text = self.string(value, "durability")?;
        match text.as_str() {
            "durable" => return Some(Durability::Durable),
            "volatile" => return Some(Durability::Volatile),
            "replicated" => return Some(Durability::Replicated),
            _ => self.error(
                value.span(),
                format!("durability {text:?} does not exist; it is \"durable\", \"replicated\" or \"volatile\""),
            ),
        }
        None
    }

    fn copies(&mut self, value: &Value<'t>) -> Option<u8> {
        let copies = match value.get_ref() {
            DeValue::Integer(copies) => copies.as_str().parse().ok(),
            _ => None,
        };
        let copies = copies.filter(|copies| (1..=MAX_COPIES).contains(copies));
        if copies.is_none() {
            let reason = format!("copies is a number from 1 to {MAX_COPIES}");
            self.error(value.span(), reason);
        }
        copies
    }

    fn changes(&mut self, value: &Value<'t>) -> ChangeKinds {
        let mut changes = ChangeKinds::EMPTY;
        for (name, span) in self.strings(value, "change") {
            match ChangeKind::from_name(&name) {
                Some(kind) => changes = changes.with(kind),
                None => {
                    let names: Vec<&str> = ChangeKind::ALL.iter().map(|k| k.name()).collect();
                    let reason = format!(
                        "change {name:?} does not exist; it is one of {}",
                        names.join(", ")
                    );
                    self.error(span, reason);
                }
            }
        }
        changes
    }

    fn labels(&mut self, value: &Value<'t>) -> Vec<(String, Option<String>)> {
        let DeValue::Table(table) = value.get_ref() else {
            self.error(value.span(), "labels is a table, as in labels = { app = \"web\" }; the value \"*\" stands for any");
            return Vec::new();
        };
        if table.is_empty() {
            self.error(value.span(), "labels is empty, so it would ask for nothing");
        }
        let mut labels = Vec::new();
        for (key, value) in table {
            if let Some(text) = self.string(value, "a label's value") {
                labels.push((
                    key.get_ref().to_string(),
                    Some(text).filter(|text| text != "*"),
                ));
            }
        }
        labels
    }

    fn patterns(
        &mut self,
        value: &Value<'t>,
        what: &str,
        parse: fn(&str) -> Result<Pattern, String>,
        patterns: &mut Vec<Pattern>,
    ) {
        for (text, span) in self.strings(value, what) {
            match parse(&text) {
                Ok(pattern) => patterns.push(pattern),
                Err(reason) => self.error(span, reason),
            }
        }
    }

    fn string(&mut self, value: &Value<'t>, what: &str) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => {
                self.error(value.span(), format!("{what} is a string, in quotes"));
                None
            }
        }
    }

    /// One string, or a list of at least one.
    fn strings(&mut self, value: &Value<'t>, what: &str) -> Vec<(String, Range<usize>)> {
        if matches!(value.get_ref(), DeValue::Array(items) if items.is_empty()) {
            self.error(
                value.span(),
                format!("{what} is an empty list, so the rule would take nothing"),
            );
        }
        self.strings_or_none(value, what)
    }

    fn strings_or_none(&mut self, value: &Value<'t>, what: &str) -> Vec<(String, Range<usize>)> {
        let DeValue::Array(items) = value.get_ref() else {
            return self
                .string(value, what)
                .map(|text| (text, value.span()))
                .into_iter()
                .collect();
        };
        if items.len() > MAX_ITEMS {
            self.error(
                value.span(),
                format!("{what} has more than {MAX_ITEMS} items"),
            );
            return Vec::new();
        }
        items
            .iter()
            .filter_map(|item| self.string(item, what).map(|text| (text, item.span())))
            .collect()
    }
}

#[derive(Clone, Copy)]
enum Durability {
    Durable,
    Replicated,
    Volatile,
}
