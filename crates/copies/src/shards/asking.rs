//! Whom a start asks after a power loss, and what to say of each.

use super::Guards;
use journal::Holder;

/// A shard that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present<'a> {
    /// Its connection.
    pub session: u64,
    /// Its name.
    pub name: &'a str,
    /// Which run of it.
    pub incarnation: u64,
}

/// How one of the set stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be asked, by this connection.
    There(u64),
    /// It was started anew, and has lost what it held.
    StartedAnew,
    /// It is not connected.
    Absent,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Standing::There(_) => "connected",
            Standing::StartedAnew => "was started anew since, and has lost what it held",
            Standing::Absent => "did not connect",
        })
    }
}

/// How each holder of a set stands.
pub fn standings(
    holders: &[Holder],
    present: &[Present<'_>],
    guards: Guards,
) -> Vec<(Holder, Standing)> {
    let standing = |holder: &Holder| {
        let mut named = present.iter().filter(|one| one.name == holder.name);
        let same =
            |one: &&Present<'_>| one.incarnation == holder.incarnation || !guards.incarnation;
        match named.clone().find(same) {
            Some(one) => Standing::There(one.session),
            None if named.next().is_some() => Standing::StartedAnew,
            None => Standing::Absent,
        }
    };
    let with = |holder: &Holder| (holder.clone(), standing(holder));
    holders.iter().map(with).collect()
}

/// Whether waiting longer is of no use: each was started anew.
pub fn is_hopeless(standings: &[(Holder, Standing)]) -> bool {
    standings
        .iter()
        .all(|(_, standing)| *standing == Standing::StartedAnew)
}

/// All of it in sentences.
pub fn told(standings: &[(Holder, Standing)]) -> String {
    let one = |(holder, standing): &(Holder, Standing)| format!("{} {standing}.", holder.name);
    let sentences: Vec<String> = standings.iter().map(one).collect();
    sentences.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_started_anew_is_another() {
        let holder = |name: &str, incarnation| Holder {
            name: name.to_owned(),
            incarnation,
        };
        let set = [holder("a", 1), holder("b", 2), holder("c", 3)];
        let here = |session, name, incarnation| Present {
            session,
            name,
            incarnation,
        };
        let present = [here(9, "a", 1), here(8, "b", 7), here(5, "d", 3)];
        let found = standings(&set, &present, Guards::default());
        let each: Vec<Standing> = found.iter().map(|(_, standing)| *standing).collect();
        assert_eq!(
            each,
            [Standing::There(9), Standing::StartedAnew, Standing::Absent]
        );
        assert_eq!(
            told(&found),
            "a connected. b was started anew since, and has lost what it held. c did not connect."
        );
        assert!(!is_hopeless(&found[1..]) && is_hopeless(&found[1..2]));
    }
}
