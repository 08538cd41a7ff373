//! Which shards hold a set: rendezvous hashing over (set, shard), in different failure domains
//! where there are enough.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// One that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its failure domain; empty if it has none but itself.
    pub zone: &'a str,
}

impl<'a> Candidate<'a> {
    fn domain(&self) -> (bool, &'a str) {
        match self.zone {
            "" => (false, self.name),
            zone => (true, zone),
        }
    }
}

fn weight(set: u64, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (set, name).hash(&mut hasher);
    hasher.finish()
}

/// `copies` of the candidates for a set, by their places in `candidates`, highest weight first:
/// first one a failure domain, then any. Fewer if there are not so many. One candidate more or less
/// changes the choice of one set in so many.
pub fn holders(set: u64, candidates: &[Candidate<'_>], copies: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|at| {
        let name = candidates[*at].name;
        (std::cmp::Reverse(weight(set, name)), name)
    });
    let mut domains = BTreeSet::new();
    let (apart, rest): (Vec<usize>, Vec<usize>) = order
        .into_iter()
        .partition(|at| domains.insert(candidates[*at].domain()));
    apart.into_iter().chain(rest).take(copies).collect()
}

/// How many failure domains these are in.
pub fn domains<'a>(of: impl IntoIterator<Item = Candidate<'a>>) -> usize {
    let domains: BTreeSet<_> = of.into_iter().map(|one| one.domain()).collect();
    domains.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<'a>(set: u64, candidates: &[Candidate<'a>], copies: usize) -> Vec<&'a str> {
        let chosen = holders(set, candidates, copies);
        chosen.into_iter().map(|at| candidates[at].name).collect()
    }

    fn of<'a>(name: &'a str, zone: &'a str) -> Candidate<'a> {
        Candidate { name, zone }
    }

    #[test]
    fn different_failure_domains_come_first() {
        let all = [of("a", "1"), of("b", "1"), of("c", "1"), of("d", "2")];
        for set in 0..100 {
            let chosen = names(set, &all, 2);
            assert!(chosen.contains(&"d") && chosen.len() == 2, "{chosen:?}");
        }
        assert_eq!(names(1, &all[..3], 2).len(), 2);
        assert_eq!(names(1, &all[..1], 2), ["a"]);
        assert_eq!(domains(all), 2);
        // One without a zone is a domain of its own, whatever others call theirs.
        assert_eq!(domains([of("1", ""), of("x", "1")]), 2);
    }

    /// Each shard gets its part, and one that comes takes about 1/N of the sets.
    #[test]
    fn sets_spread_evenly_and_few_move() {
        let name = |n: usize| format!("node-{n}");
        let names_of: Vec<String> = (0..8).map(name).collect();
        let all: Vec<Candidate<'_>> = names_of.iter().map(|name| of(name, "")).collect();
        let mut load = [0; 8];
        let mut moved = 0;
        for set in 0..4000 {
            let with = holders(set, &all, 2);
            let without = holders(set, &all[..7], 2);
            with.iter().for_each(|at| load[*at] += 1);
            moved += with.iter().filter(|at| !without.contains(at)).count();
        }
        assert!(load.iter().all(|n| (800..1200).contains(n)), "{load:?}");
        // One in eight places of 8,000.
        assert!((800..1200).contains(&moved), "{moved}");
    }
}
