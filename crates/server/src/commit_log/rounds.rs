//! Checkpoints, one at a time: who waits for which, and what came of it.

use parking_lot::Mutex;

/// Checkpoints by number, from 1.
#[derive(Debug, Default)]
pub(super) struct Rounds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: bool,
    wanted: bool,
    begun: u64,
    /// The last that was saved.
    good: u64,
    /// Why the last that was not saved was not.
    reason: String,
}

impl Rounds {
    /// Asks for one that has not begun yet: one that runs has missed what is there by now.
    /// Returns its number.
    pub(super) fn want(&self) -> u64 {
        let mut state = self.0.lock();
        state.wanted = true;
        state.begun + 1
    }

    /// Whether one is asked for and can begin.
    pub(super) fn wanted(&self) -> bool {
        let state = self.0.lock();
        state.wanted && !state.running
    }

    /// Begins one, unless one runs.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.0.lock();
        if state.running {
            return false;
        }
        state.running = true;
        state.wanted = false;
        state.begun += 1;
        true
    }

    /// Ends it, with the reason if it was not saved. Returns whether another is asked for.
    pub(super) fn end(&self, result: Result<(), String>) -> bool {
        let mut state = self.0.lock();
        state.running = false;
        match result {
            Ok(()) => state.good = state.begun,
            Err(reason) => state.reason = reason,
        }
        state.wanted
    }

    /// What came of a number, once it has ended. A later one that was saved is as good.
    pub(super) fn result(&self, number: u64) -> Option<Result<(), String>> {
        let state = self.0.lock();
        let ended = state.begun - u64::from(state.running);
        if state.good >= number {
            Some(Ok(()))
        } else if ended >= number {
            Some(Err(state.reason.clone()))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_waits_for_one_that_begins_afterwards() {
        let rounds = Rounds::default();
        assert!(rounds.begin() && !rounds.begin());
        // The first runs: it is not the one.
        let second = rounds.want();
        assert!(!rounds.wanted() && rounds.result(second).is_none());
        assert!(rounds.end(Ok(())));
        assert_eq!(rounds.result(1), Some(Ok(())));
        assert!(rounds.wanted() && rounds.result(second).is_none());
        assert!(rounds.begin() && !rounds.wanted() && rounds.result(second).is_none());
        // Two that ask meanwhile share the next.
        let third = rounds.want();
        assert_eq!(rounds.want(), third);
        assert!(rounds.end(Err("full".into())));
        assert_eq!(rounds.result(second), Some(Err("full".into())));
        assert!(rounds.begin());
        assert_eq!(rounds.result(second), Some(Err("full".into())));
        assert!(!rounds.end(Ok(())));
        assert_eq!(rounds.result(third), Some(Ok(())));
        assert_eq!(rounds.result(third + 1), None);
    }
}
