//! A limit on lines of crates that do not limit them themselves: a client can make h2, say, warn
//! with every frame that it sends.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// Different lines of one place in the code that pass in a period. Their words may hold what a
/// client sent, so their number needs a limit as well.
const TEXTS: usize = 4;
/// How long a line is not repeated.
const PERIOD: Duration = Duration::from_secs(10);
/// Places that are told apart; more count as one. Code has far fewer.
const PLACES: usize = 256;

/// What has passed of late, for each place in the code.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    known: HashMap<Identifier, Place>,
    further: Place,
}

#[derive(Debug, Default)]
struct Place {
    began: Option<Instant>,
    passed: Vec<u64>,
    suppressed: u64,
}

impl Repeats {
    /// `Some(n)`: write the line; `n` lines of its place were held back since the last one that
    /// passed. `None`: it is a repetition.
    pub(crate) fn allow(&self, place: Identifier, text: &str) -> Option<u64> {
        self.allow_at(place, text, Instant::now())
    }

    fn allow_at(&self, place: Identifier, text: &str, now: Instant) -> Option<u64> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Places { known, further } = &mut *places;
        let room = known.len() < PLACES || known.contains_key(&place);
        let place = if room {
            known.entry(place).or_default()
        } else {
            further
        };
        if place.began.is_none_or(|began| now - began >= PERIOD) {
            place.began = Some(now);
            place.passed.clear();
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let text = hasher.finish();
        if place.passed.len() >= TEXTS || place.passed.contains(&text) {
            place.suppressed += 1;
            return None;
        }
        place.passed.push(text);
        Some(std::mem::take(&mut place.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Callsite;

    fn places() -> [Identifier; 2] {
        let one = tracing::callsite! {
            name: "one", kind: tracing::metadata::Kind::EVENT, fields: message
        };
        let two = tracing::callsite! {
            name: "two", kind: tracing::metadata::Kind::EVENT, fields: message
        };
        [one.metadata().callsite(), two.metadata().callsite()]
    }

    #[test]
    fn a_repetition_is_counted_and_another_reason_passes() {
        let [one, two] = places();
        let repeats = Repeats::default();
        let now = Instant::now();
        let allow = |place: &Identifier, text: &str, at| repeats.allow_at(place.clone(), text, at);
        assert_eq!(allow(&one, "a", now), Some(0));
        assert_eq!(allow(&one, "a", now), None);
        assert_eq!(allow(&one, "b", now), Some(1));
        assert_eq!(allow(&two, "a", now), Some(0));
        let later = now + PERIOD;
        assert_eq!(allow(&one, "a", later - Duration::from_millis(1)), None);
        assert_eq!(allow(&one, "a", later), Some(1));
    }

    #[test]
    fn words_that_a_client_chooses_are_limited_too() {
        let [one, _] = places();
        let repeats = Repeats::default();
        let now = Instant::now();
        let passed = (0..100_000)
            .filter(|n| {
                repeats
                    .allow_at(one.clone(), &format!("ping {n}"), now)
                    .is_some()
            })
            .count();
        assert_eq!(passed, TEXTS);
        let told = repeats.allow_at(one, "ping", now + PERIOD);
        assert_eq!(told, Some(100_000 - TEXTS as u64));
    }
}
