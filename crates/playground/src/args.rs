//! Arguments that several commands have: how many members etcd has, and how far away they are.

use std::path::Path;
use std::time::Duration;

use crate::members::{DELAY_MAX, Distances, MEMBERS_MAX, Setup};
use crate::{Result, ensure, fail};

/// How many members, and how far away.
#[derive(Debug, Clone, clap::Args)]
pub struct MemberArgs {
    /// Members of etcd.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MEMBERS_MAX as i64))]
    members: Option<u8>,

    /// Hold for so long what leaves each member, to clients and to other members.
    #[arg(long, value_name = "TIME", value_delimiter = ',', value_parser = delay)]
    member_delay: Vec<Duration>,

    /// The same, one for each member: 250ms,50ms,110ms.
    #[arg(long, value_name = "TIMES", value_delimiter = ',', value_parser = delay, conflicts_with = "member_delay")]
    member_delays: Vec<Duration>,

    /// Hold for so much longer what goes from one member to another.
    #[arg(long, value_name = "TIME", value_delimiter = ',', value_parser = delay)]
    peer_delay: Vec<Duration>,

    /// Which member leads at the beginning, from 1; otherwise whichever is elected.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MEMBERS_MAX as i64))]
    leader: Option<u8>,
}

impl MemberArgs {
    /// How many members, if that was said.
    #[must_use]
    pub fn members(&self) -> Option<usize> {
        self.members.map(usize::from)
    }

    /// Whether anything was said of members.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.members.is_some()
            || self.leader.is_some()
            || !(self.member_delay.is_empty()
                && self.member_delays.is_empty()
                && self.peer_delay.is_empty())
    }

    /// All distances asked for, for `members`: each `--member-delay` with each `--peer-delay`.
    ///
    /// # Errors
    /// If there is not one of `--member-delays` for each member.
    pub fn distances(&self, members: usize) -> Result<Vec<Distances>> {
        if !self.member_delays.is_empty() && self.member_delays.len() != members {
            return fail(format!(
                "--member-delays has {} times for {members} members",
                self.member_delays.len()
            ));
        }
        let nearest = [Duration::ZERO];
        let or_none = |delays: &[Duration]| match delays.is_empty() {
            true => nearest.to_vec(),
            false => delays.to_vec(),
        };
        let mut all = Vec::new();
        for peer in or_none(&self.peer_delay) {
            if !self.member_delays.is_empty() {
                let member = self.member_delays.clone();
                all.push(Distances { member, peer });
                continue;
            }
            for member in or_none(&self.member_delay) {
                all.push(Distances {
                    peer,
                    ..Distances::equal(members, member)
                });
            }
        }
        Ok(all)
    }

    /// `members` of the etcd at `program`, one setup for each of [`MemberArgs::distances`].
    ///
    /// # Errors
    /// If there is no such leader, or no etcdctl.
    pub fn setups(&self, program: &Path, members: usize) -> Result<Vec<Setup>> {
        let leader = self.leader.map(|number| usize::from(number) - 1);
        ensure(leader.is_none_or(|leader| leader < members), || {
            format!("--leader is above the {members} members")
        })?;
        let setup = Setup::new(program.to_owned(), members)?;
        let distances = self.distances(members)?.into_iter();
        let setups = distances.map(|distances| Setup {
            distances,
            leader,
            ..setup.clone()
        });
        Ok(setups.collect())
    }
}

/// A time of at most a day, with its unit: `16ms`, `0.5s`, `5m`, `1h`.
///
/// # Errors
/// In words for a command line.
pub fn time(text: &str) -> std::result::Result<Duration, String> {
    let bad = || format!("`{text}` is no time: write 16ms, 0.5s, 5m or 1h");
    let unit = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(bad()),
    };
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(format!("`{text}` is not between 0 and 24h"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The delay of a link.
fn delay(text: &str) -> std::result::Result<Duration, String> {
    let delay = time(text)?;
    if delay > DELAY_MAX {
        return Err(format!("a delay is {} s at most", DELAY_MAX.as_secs()));
    }
    Ok(delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<MemberArgs, clap::Error> {
        let command = <MemberArgs as clap::Args>::augment_args(clap::Command::new("test"));
        <MemberArgs as clap::FromArgMatches>::from_arg_matches(
            &command.try_get_matches_from(line.split_whitespace())?,
        )
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn distances_are_what_was_asked_for() {
        let none = parse("x").unwrap();
        assert!(!none.is_given() && none.distances(3).unwrap()[0].is_zero());
        let all = parse("x --member-delay 0ms,45ms --peer-delay 1ms,5ms").unwrap();
        let all = all.distances(3).unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!((all[1].of(2), all[1].peer), (ms(45), ms(1)));
        let slide = parse("x --member-delays 250ms,50ms,110ms --leader 2").unwrap();
        assert_eq!(slide.distances(3).unwrap()[0].of(2), ms(110));
        assert!(slide.distances(2).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "x --members 0",
            "x --members 10",
            "x --leader 0",
            "x --member-delay 3s",
            "x --member-delay 5",
            "x --member-delay 1ms --member-delays 1ms",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("12.5ms"), Ok(Duration::from_micros(12_500)));
        assert_eq!(time("0ms"), Ok(Duration::ZERO));
        for bad in ["", "5", "ms", "25h", "-1s", "nans", "infs"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
