//! Looks for a contradiction in what was seen.

use std::collections::{BTreeMap, HashMap};

use super::observer::Seen;
use super::{Answer, Asked, Entry, Start};
use crate::kube::{Result, ensure, fail};

/// What a history that holds together consisted of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Answers that promise something.
    pub acknowledged: usize,
    /// Operations without an answer.
    pub unknown: usize,
    /// Those of them that happened.
    pub happened: usize,
    /// Revisions.
    pub revisions: i64,
}

/// A key's history: what it was from each revision on.
type Versions<'a> = BTreeMap<i64, Option<&'a str>>;

/// All keys' histories, as the watch of everything showed them.
struct Truth<'a> {
    keys: HashMap<&'a str, Versions<'a>>,
    /// Which revision put a value.
    values: HashMap<&'a str, (i64, &'a str)>,
    last: i64,
}

impl<'a> Truth<'a> {
    fn new(events: &'a [Seen], first: i64) -> Result<Self> {
        let mut truth = Truth {
            keys: HashMap::new(),
            values: HashMap::new(),
            last: first - 1,
        };
        for event in events {
            let revision = event.revision;
            ensure(revision == truth.last || revision == truth.last + 1, || {
                format!(
                    "gap in the watch of everything: after revision {} came {revision}",
                    truth.last
                )
            })?;
            truth.last = revision;
            let versions = truth.keys.entry(&event.key).or_default();
            versions.insert(revision, event.value.as_deref());
            if let Some(value) = &event.value
                && let Some((before, _)) = truth.values.insert(value, (revision, &event.key))
            {
                return fail(format!(
                    "one put happened twice, at {before} and {revision}: {}",
                    short(value)
                ));
            }
        }
        Ok(truth)
    }

    /// What `key` was after `revision`: value and mod revision.
    fn at(&self, key: &str, revision: i64) -> Option<(&'a str, i64)> {
        let (at, value) = self.keys.get(key)?.range(..=revision).next_back()?;
        value.map(|value| (value, *at))
    }

    /// The revision that `entry` happened at, if it did.
    fn revision_of(&self, entry: &Entry) -> Option<i64> {
        match (&entry.answer, &entry.asked) {
            (Answer::Done { revision, .. }, _) => Some(*revision),
            (Answer::Refused, _) => None,
            (Answer::Unknown, Asked::Put { value, .. } | Asked::Cas { value, .. }) => {
                self.values.get(value.as_str()).map(|(at, _)| *at)
            }
            (Answer::Unknown, _) => None,
        }
    }
}

fn short(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}

/// Checks `entries` against `events`, which are all events from revision `first` on, and
/// against the clock. Keys without entries are nobody's business here.
///
/// # Errors
/// The first contradiction found.
pub fn check(entries: &[Entry], events: &[Seen], starts: &[Start], first: i64) -> Result<Summary> {
    let truth = Truth::new(events, first)?;
    let mut summary = Summary {
        revisions: truth.last,
        ..Summary::default()
    };
    for entry in entries {
        match entry.answer {
            Answer::Done { .. } => summary.acknowledged += 1,
            Answer::Unknown => {
                summary.unknown += 1;
                summary.happened += usize::from(truth.revision_of(entry).is_some());
            }
            Answer::Refused => {}
        }
        explained(entry, &truth).or_else(|why| fail(format!("{why}\n  by {}", describe(entry))))?;
    }
    nothing_unasked(entries, &truth)?;
    in_order(entries, &truth)?;
    within_lives(entries, &truth, starts)?;
    Ok(summary)
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{entry:?}");
    text.truncate(400);
    text
}

/// The answer is what the order of revisions gives.
fn explained(entry: &Entry, truth: &Truth<'_>) -> Result<()> {
    let key = entry.key.as_str();
    let at = truth.revision_of(entry);
    match (&entry.asked, &entry.answer) {
        (Asked::Put { value, .. } | Asked::Cas { value, .. }, Answer::Refused) => {
            ensure(!truth.values.contains_key(value.as_str()), || {
                format!("a write that was refused happened: {}", short(value))
            })
        }
        (_, Answer::Done { revision, .. }) if *revision > truth.last => fail(format!(
            "revision {revision} was shown, and the last one is {}",
            truth.last
        )),
        (
            Asked::Put { value, .. } | Asked::Cas { value, .. },
            Answer::Done { changed: true, .. } | Answer::Unknown,
        ) => {
            let Some(at) = at else { return Ok(()) };
            ensure(truth.values.get(value.as_str()) == Some(&(at, key)), || {
                format!("an acknowledged write is lost: revision {at} does not have it")
            })?;
            if let Asked::Cas { expected, .. } = &entry.asked {
                let before = truth.at(key, at - 1).map_or(0, |(_, revision)| revision);
                ensure(before == *expected, || {
                    format!("revision {at}: the comparison with {expected} held at {before}")
                })?;
            }
            Ok(())
        }
        (
            Asked::Delete,
            Answer::Done {
                revision, changed, ..
            },
        ) if *changed => {
            let versions = truth.keys.get(key);
            ensure(
                versions.and_then(|v| v.get(revision)) == Some(&None),
                || format!("an acknowledged delete is lost: revision {revision} does not have it"),
            )
        }
        (
            _,
            Answer::Done {
                revision,
                changed: false,
                found,
            },
        ) => {
            let state = truth.at(key, *revision);
            let found = found.as_ref().map(|(value, at)| (value.as_str(), *at));
            // A delete that found nothing says no more than that.
            ensure(state == found, || {
                format!("at revision {revision} it was {state:?}, not {found:?}")
            })?;
            match entry.asked {
                Asked::Cas { expected, .. } => {
                    ensure(state.map_or(0, |(_, at)| at) != expected, || {
                        format!("revision {revision}: the comparison with {expected} failed")
                    })
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Nothing happened to the keys that nobody asked for.
fn nothing_unasked(entries: &[Entry], truth: &Truth<'_>) -> Result<()> {
    let mut asked_values = HashMap::new();
    let mut deletes: HashMap<&str, (Vec<i64>, usize)> = HashMap::new();
    for entry in entries {
        let (done, unknown) = deletes.entry(&entry.key).or_default();
        match (&entry.asked, &entry.answer) {
            (Asked::Put { value, .. } | Asked::Cas { value, .. }, _) => {
                asked_values.insert(value.as_str(), entry.key.as_str());
            }
            (
                Asked::Delete,
                Answer::Done {
                    revision,
                    changed: true,
                    ..
                },
            ) => done.push(*revision),
            (Asked::Delete, Answer::Unknown) => *unknown += 1,
            _ => {}
        }
    }
    for (key, (done, unknown)) in deletes {
        for (revision, value) in truth.keys.get(key).into_iter().flatten() {
            ensure(
                value.is_none_or(|value| asked_values.get(value) == Some(&key)),
                || format!("revision {revision} put into {key} what nobody asked for"),
            )?;
        }
        let versions = truth.keys.get(key).into_iter().flatten();
        let unexplained = versions
            .filter(|(revision, value)| value.is_none() && !done.contains(revision))
            .count();
        ensure(unexplained <= unknown, || {
            format!(
                "{key} was deleted {unexplained} times more than acknowledged, and {unknown} deletes had no answer"
            )
        })?;
    }
    Ok(())
}

/// What was over before something else began has the lower revision.
fn in_order(entries: &[Entry], truth: &Truth<'_>) -> Result<()> {
    let mut by_begin: Vec<&Entry> = entries.iter().collect();
    by_begin.sort_by_key(|entry| entry.from_us);
    let mut by_end: Vec<(u64, i64)> = Vec::new();
    for entry in entries {
        if let Answer::Done { revision, .. } = entry.answer {
            by_end.push((entry.to_us, revision));
        }
    }
    by_end.sort_unstable();
    let mut ended = by_end.into_iter().peekable();
    let mut highest = 0;
    for entry in by_begin {
        while let Some((_, revision)) = ended.next_if(|(to_us, _)| *to_us < entry.from_us) {
            highest = highest.max(revision);
        }
        let Some(at) = truth.revision_of(entry) else {
            continue;
        };
        let write = !matches!(entry.answer, Answer::Done { changed: false, .. });
        ensure(at > highest || (at == highest && !write), || {
            format!(
                "revision {highest} was shown before this began, and it has {at}:\n  {}",
                describe(entry)
            )
        })?;
    }
    Ok(())
}

/// What had no answer when its server died happened before the next one started, or never.
fn within_lives(entries: &[Entry], truth: &Truth<'_>, starts: &[Start]) -> Result<()> {
    for entry in entries {
        let Some(at) = truth.revision_of(entry) else {
            continue;
        };
        let next = starts.iter().find(|start| entry.to_us <= start.down_us);
        ensure(next.is_none_or(|start| at <= start.revision), || {
            format!(
                "this happened after the server that it was asked of had died:\n  {}",
                describe(entry)
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str, answer: Answer, from_us: u64, to_us: u64) -> Entry {
        Entry {
            key: "k".to_owned(),
            asked: Asked::Put {
                value: value.to_owned(),
                lease: 0,
            },
            answer,
            from_us,
            to_us,
        }
    }

    fn read(found: Option<(&str, i64)>, revision: i64, from_us: u64, to_us: u64) -> Entry {
        Entry {
            asked: Asked::Read,
            ..put(
                "",
                Answer::Done {
                    revision,
                    changed: false,
                    found: found.map(|(value, at)| (value.to_owned(), at)),
                },
                from_us,
                to_us,
            )
        }
    }

    fn done(revision: i64) -> Answer {
        Answer::Done {
            revision,
            changed: true,
            found: None,
        }
    }

    fn event(revision: i64, value: Option<&str>) -> Seen {
        Seen {
            revision,
            key: "k".to_owned(),
            value: value.map(str::to_owned),
        }
    }

    fn contradiction(entries: &[Entry], events: &[Seen], starts: &[Start]) -> String {
        check(entries, events, starts, 2).unwrap_err().to_string()
    }

    #[test]
    fn a_true_history_holds() {
        let events = [event(2, Some("a")), event(3, Some("b")), event(4, None)];
        let entries = [
            put("a", done(2), 0, 10),
            put("b", Answer::Unknown, 5, 20),
            put("never", Answer::Unknown, 5, 20),
            read(Some(("a", 2)), 2, 11, 12),
            Entry {
                asked: Asked::Delete,
                ..put("", done(4), 22, 23)
            },
            read(None, 4, 24, 25),
        ];
        let summary = check(&entries, &events, &[], 2).unwrap();
        assert_eq!((summary.acknowledged, summary.happened), (4, 1));
    }

    #[test]
    fn finds_each_lie() {
        let a = event(2, Some("a"));
        let b = event(3, Some("b"));
        let ab = [a.clone(), b.clone()];
        let both = [put("a", done(2), 0, 1), put("b", done(3), 2, 3)];
        let with = |entry: Entry| [both[0].clone(), both[1].clone(), entry];
        for (entries, events, starts, text) in [
            // Lost, or at another revision.
            (
                both.to_vec(),
                vec![a.clone()],
                vec![],
                "revision 3 was shown",
            ),
            (
                vec![put("x", done(2), 0, 1)],
                vec![a.clone()],
                vec![],
                "is lost",
            ),
            // A gap; a value twice; one that nobody put; one that was refused.
            (
                both.to_vec(),
                vec![a.clone(), event(4, Some("b"))],
                vec![],
                "gap",
            ),
            (
                both.to_vec(),
                vec![a.clone(), event(3, Some("a"))],
                vec![],
                "twice",
            ),
            (
                with(read(None, 1, 0, 9)).to_vec(),
                [&ab[..], &[event(4, Some("z"))]].concat(),
                vec![],
                "nobody asked",
            ),
            (
                vec![put("a", Answer::Refused, 0, 1)],
                vec![a.clone()],
                vec![],
                "refused",
            ),
            (
                both.to_vec(),
                [&ab[..], &[event(4, None)]].concat(),
                vec![],
                "deleted 1 times more",
            ),
            // A read of what was not so, and one of the past.
            (
                with(read(Some(("a", 2)), 3, 2, 9)).to_vec(),
                ab.to_vec(),
                vec![],
                "at revision 3 it was",
            ),
            (
                with(read(Some(("a", 2)), 2, 4, 9)).to_vec(),
                ab.to_vec(),
                vec![],
                "revision 3 was shown before",
            ),
            // Two writes in the wrong order.
            (
                vec![put("b", done(3), 0, 1), put("a", done(2), 2, 3)],
                ab.to_vec(),
                vec![],
                "revision 3 was shown before",
            ),
            // A comparison that could not hold, and one that had to.
            (
                with(Entry {
                    asked: Asked::Cas {
                        expected: 2,
                        value: "c".to_owned(),
                    },
                    ..put("", done(4), 4, 5)
                })
                .to_vec(),
                [&ab[..], &[event(4, Some("c"))]].concat(),
                vec![],
                "held at 3",
            ),
            (
                with(Entry {
                    asked: Asked::Cas {
                        expected: 3,
                        value: "c".to_owned(),
                    },
                    ..read(Some(("b", 3)), 3, 4, 5)
                })
                .to_vec(),
                ab.to_vec(),
                vec![],
                "failed",
            ),
            // A write that came to life in the next server.
            (
                vec![both[0].clone(), put("b", Answer::Unknown, 2, 3)],
                ab.to_vec(),
                vec![Start {
                    down_us: 4,
                    at_us: 5,
                    revision: 2,
                }],
                "had died",
            ),
        ] {
            let found = contradiction(&entries, &events, &starts);
            assert!(found.contains(text), "{text}: {found}");
        }
    }
}
