//! The limit on open files: raised as far as it goes, and connections bound to what it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that connections leave to everything else, where the limit is not small.
const RESERVED: u64 = 512;

/// Raises the soft limit to the hard one, which needs no privilege. The limit then, or `None` if
/// there is none.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // The kernel's own limit may lie below a hard limit that says there is none.
    match current != maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        true => maximum,
        false => current,
    }
}

/// How many of so many files connections may take.
pub fn for_connections(files: u64) -> usize {
    let left = files - RESERVED.min(files / 4);
    usize::try_from(left).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_goes_up_to_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let after = raise_limit();
        assert_eq!(after, before.maximum);
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }

    #[test]
    fn the_rest_of_the_server_keeps_some() {
        assert_eq!(for_connections(1024), 768);
        assert_eq!(for_connections(1 << 20), (1 << 20) - 512);
        assert_eq!(for_connections(0), 0);
    }
}
