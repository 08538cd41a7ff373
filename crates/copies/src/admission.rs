//! How a server receives one who wants to follow: a pure decision from what both say of
//! themselves.

use crate::VERSION;
use crate::message::{Hello, Position, Reason, Refused, Role};

/// What a server says of itself when somebody comes.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its cluster.
    pub cluster_id: u64,
    /// Its term.
    pub raft_term: u64,
    /// Its store's revision.
    pub revision: i64,
}

/// What a follower gets that may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The stream after the entry that it has.
    After(u64),
    /// A snapshot, and the stream from there.
    Snapshot,
}

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// A follower that has seen a later server is not served by an earlier one.
    pub term: bool,
    /// A follower goes on only in the stream that it stands in.
    pub stream: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            term: true,
            stream: true,
        }
    }
}

fn refused<T>(reason: Reason, text: String) -> Result<T, Refused> {
    Err(Refused {
        reason: reason.into(),
        text,
    })
}

/// Whether somebody may follow, before where from: its version, its role, and whether both are of
/// one cluster and one term.
///
/// # Errors
/// [`Refused`]. With [`Reason::Term`] the server itself is the one that must stop.
pub fn check(host: &Host, hello: &Hello, guards: Guards) -> Result<(), Refused> {
    if !(hello.version_min..=hello.version_max).contains(&VERSION) {
        let (min, max) = (hello.version_min, hello.version_max);
        return refused(
            Reason::Version,
            format!(
                "the server speaks version {VERSION} of the copies' stream, and the follower \
                 versions {min} to {max}: upgrade the older one"
            ),
        );
    }
    if hello.role() == Role::Unknown {
        return refused(
            Reason::Version,
            "the server does not know this kind of follower: upgrade the server first".to_owned(),
        );
    }
    if hello.name.is_empty() || hello.name.len() > 256 {
        let text = "a follower needs a name of 1 to 256 bytes".to_owned();
        return refused(Reason::Version, text);
    }
    if hello.cluster_id != 0 && hello.cluster_id != host.cluster_id {
        return refused(
            Reason::Cluster,
            format!(
                "the follower holds a copy of cluster {:x}, and this server is of cluster {:x}: \
                 name the right server, or give it an empty directory",
                hello.cluster_id, host.cluster_id
            ),
        );
    }
    if hello.cluster_id != 0 && hello.raft_term > host.raft_term && guards.term {
        return refused(
            Reason::Term,
            format!(
                "the follower has seen a server of term {}, and this one is of term {}: it was \
                 replaced",
                hello.raft_term, host.raft_term
            ),
        );
    }
    Ok(())
}

/// Where one that may follow begins. `stream` is the server's, and `covers` whether it can go on
/// after an entry of it.
///
/// # Errors
/// [`Refused`]: the follower has what the server has not, and would throw it away.
pub fn start(
    host: &Host,
    position: Option<Position>,
    stream: u64,
    covers: impl FnOnce(u64) -> bool,
    guards: Guards,
) -> Result<Start, Refused> {
    let Some(at) = position else {
        return Ok(Start::Snapshot);
    };
    if (at.stream == stream || !guards.stream) && covers(at.sequence) {
        return Ok(Start::After(at.sequence));
    }
    if at.revision > host.revision {
        return refused(
            Reason::Ahead,
            format!(
                "the follower is at revision {}, and this server at {}: the server lost writes, or \
                 was put back to an older state. The follower keeps what it has. To go on from the \
                 server's state, give the follower an empty directory; to go on from the \
                 follower's, stop the server and promote it",
                at.revision, host.revision
            ),
        );
    }
    Ok(Start::Snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            cluster_id: 0xc,
            raft_term: 3,
            revision: 100,
        }
    }

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            role: Role::Keeper.into(),
            name: "b".to_owned(),
            cluster_id: 0xc,
            raft_term: 3,
            position: None,
        }
    }

    fn why(change: impl FnOnce(&mut Hello)) -> Option<Reason> {
        let mut hello = hello();
        change(&mut hello);
        let refused = check(&host(), &hello, Guards::default()).err()?;
        assert!(refused.text.len() > 20, "{}", refused.text);
        Some(refused.reason())
    }

    #[test]
    fn only_a_follower_of_this_cluster_and_no_later_term_is_received() {
        assert_eq!(why(|_| ()), None);
        // A new one has no cluster, and an older term is one that the server has outlived.
        assert_eq!(why(|h| (h.cluster_id, h.raft_term) = (0, 0)), None);
        assert_eq!(why(|h| h.raft_term = 2), None);
        assert_eq!(why(|h| h.raft_term = 4), Some(Reason::Term));
        // What another cluster has seen says nothing of this one.
        let other = |h: &mut Hello| (h.cluster_id, h.raft_term) = (0xd, 9);
        assert_eq!(why(other), Some(Reason::Cluster));
        let newer = |h: &mut Hello| (h.version_min, h.version_max) = (2, 4);
        assert_eq!(why(newer), Some(Reason::Version));
        assert_eq!(why(|h| h.role = 77), Some(Reason::Version));
        assert_eq!(why(|h| h.name.clear()), Some(Reason::Version));
    }

    #[test]
    fn it_goes_on_where_it_stands_or_gets_a_snapshot_and_never_loses_what_it_has() {
        let at = |stream, sequence, revision| {
            Some(Position {
                stream,
                sequence,
                lsn: 0,
                revision,
            })
        };
        let begin = |position| {
            start(&host(), position, 7, |seq| seq >= 5, Guards::default())
                .map_err(|refused| refused.reason())
        };
        assert_eq!(begin(None), Ok(Start::Snapshot));
        assert_eq!(begin(at(7, 5, 90)), Ok(Start::After(5)));
        assert_eq!(begin(at(7, 4, 90)), Ok(Start::Snapshot));
        assert_eq!(begin(at(8, 5, 90)), Ok(Start::Snapshot));
        assert_eq!(begin(at(8, 5, 101)), Err(Reason::Ahead));
        // In its stream it has what is ordered and not visible yet.
        assert_eq!(begin(at(7, 6, 101)), Ok(Start::After(6)));
    }
}
