//! From a keeper's copy to a server's directory.

use crate::error::Error;
use crate::kept::{Keeper, Options, Store, new_store};
use engine::record::SnapshotItem;
use files::FileSystem;
use journal::{CheckReport, Followed, Journal, Proof, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Versions of keys compared at a time.
const VERSIONS_AT_ONCE: usize = 4096;

/// The revision of a store that nothing was written to, as in etcd.
const EMPTY_REVISION: i64 = 1;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The operator says that the old server is gone, and stays gone.
    pub old_server_is_gone: bool,
    /// The old server's directory, stopped, to compare with.
    pub old_data_dir: Option<PathBuf>,
    /// A directory in memory, as the old server on this machine had it, to judge that directory by.
    pub marker_dir: Option<PathBuf>,
    /// By how much the revision rises where the copy is not proven complete.
    pub jump_by: i64,
}

/// Why a copy is known to be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// The old server stopped in order, and the copy has all up to its end.
    Stopped,
    /// The old server showed nothing that the copy does not have.
    Waited,
    /// The old server's directory holds the same.
    Compared,
}

/// What a promotion came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The cluster, as before.
    pub cluster_id: u64,
    /// The copy's revision.
    pub revision: i64,
    /// How far it has come in the old server's stream.
    pub followed: Followed,
    /// Why it is complete; `None` if that is not known.
    pub exact: Option<Exact>,
    /// Where the revision went, if it is not.
    pub jumped_to: Option<i64>,
    /// The term that the new server shows.
    pub raft_term: u64,
}

/// Makes a server's directory of a copy that no keeper uses. A promotion that was cut short can be
/// repeated.
///
/// # Errors
/// [`Error::Refused`] with what to do; and those of the directory and the disk.
pub fn promote(
    fs: Arc<dyn FileSystem>,
    dir: &Path,
    options: Options,
    request: &Request,
) -> Result<Promotion, Error> {
    if !request.old_server_is_gone {
        return Err(Error::Refused(
            "a promoted copy and the old server would both take writes, and nothing could join the \
             two again: stop the old server, see to it that nothing starts it (its unit, its static \
             pod), and say so with --old-server-is-gone"
                .to_owned(),
        ));
    }
    let keeper = Keeper::open(fs.clone(), dir, options)?;
    let Some((mut journal, store, followed)) = keeper.into_parts() else {
        return Err(Error::Refused(format!(
            "{} holds no copy: it is missing or empty",
            dir.display()
        )));
    };
    let mut store = store.lock();
    let revision = store.revision();
    // Without a position but with a snapshot: the keeper died when it had just come.
    let copied = followed.or((revision > EMPTY_REVISION).then(Followed::default));
    let Some(followed) = copied else {
        return Err(Error::Refused(format!(
            "{} holds no whole copy yet: the keeper never got all of a server's snapshot",
            dir.display()
        )));
    };
    let mut least = revision;
    let mut exact = match followed.proof {
        Proof::Stopped => Some(Exact::Stopped),
        Proof::Waits => Some(Exact::Waited),
        Proof::None => None,
    };
    if let Some(old) = &request.old_data_dir {
        let compared = compare(fs, old, request.marker_dir.as_deref(), &journal, &store)?;
        exact = match compared {
            Compared::Same => Some(Exact::Compared),
            // The old server was started again after it had stopped, or put back.
            Compared::Unproven { shown_up_to } => {
                least = least.max(shown_up_to);
                None
            }
        };
    }
    let jumped_to = match exact {
        Some(_) => None,
        None => Some(jump(&mut journal, &mut store, least, request.jump_by)?),
    };
    let identity = journal.identity().clone();
    let raft_term = identity.raft_term + 1;
    // From here on the directory is a server's.
    journal.set_identity(raft_term, Role::Server)?;
    let last = store.revision();
    drop(store);
    journal.close(last)?;
    Ok(Promotion {
        cluster_id: identity.cluster_id,
        revision,
        followed,
        exact,
        jumped_to,
        raft_term,
    })
}

/// Leaves behind every revision that the old server may have shown.
fn jump(journal: &mut Journal, store: &mut Store, least: i64, jump_by: i64) -> Result<i64, Error> {
    let target = least.checked_add(jump_by).filter(|_| jump_by > 0);
    let Some(target) = target else {
        return Err(Error::Refused(format!(
            "revision {least} cannot rise by {jump_by}"
        )));
    };
    journal.jump(store.revision(), target)?;
    store.jump(target).map_err(Error::Refused)?;
    Ok(target)
}

/// What a comparison with the old directory says.
enum Compared {
    /// It holds the same, and nothing that was shown is missing there.
    Same,
    /// It cannot tell all that was shown.
    Unproven { shown_up_to: i64 },
}

fn compare(
    fs: Arc<dyn FileSystem>,
    old_dir: &Path,
    marker_dir: Option<&Path>,
    journal: &Journal,
    store: &Store,
) -> Result<Compared, Error> {
    let mut old = new_store();
    let report: CheckReport = journal::read(fs, old_dir, marker_dir, &mut old)?;
    let (theirs, own) = (&report.identity, journal.identity());
    let shown = old_dir.display();
    if theirs.cluster_id != own.cluster_id || theirs.role != Role::Server {
        return Err(Error::Refused(format!(
            "{shown} is not the directory of the server that this is a copy of (cluster {:x}, the \
             copy's is {:x})",
            theirs.cluster_id, own.cluster_id
        )));
    }
    if theirs.raft_term != own.raft_term {
        return Err(Error::Refused(format!(
            "{shown} is of term {}, and the copy follows term {}: name the directory of the server \
             that the keeper followed last",
            theirs.raft_term, own.raft_term
        )));
    }
    if report.epoch.as_ref().is_some_and(|epoch| !epoch.trusted) {
        // It would jump itself.
        return Ok(Compared::Unproven {
            shown_up_to: old.revision(),
        });
    }
    let (own, theirs) = (store.revision(), old.revision());
    if theirs > own {
        return Err(Error::Refused(format!(
            "{shown} is at revision {theirs}, and the copy at {own}: the old directory has {} \
             revisions that the copy does not have. Start a server from it (move it to this machine \
             whole, while nothing runs there) instead of promoting the copy",
            theirs - own
        )));
    }
    match same(store, &old) {
        true => Ok(Compared::Same),
        false => Ok(Compared::Unproven { shown_up_to: own }),
    }
}

/// Whether two stores hold the same, history, leases and alarms included.
fn same(a: &Store, b: &Store) -> bool {
    let ((mut at_a, head_a), (mut at_b, head_b)) = (a.snapshot_open(), b.snapshot_open());
    if at_a.meta != at_b.meta || head_a != head_b {
        return false;
    }
    let step = |store: &Store, cursor: &mut _| -> (bool, Vec<SnapshotItem>) {
        let mut keys = Vec::new();
        let done = store.snapshot_step(cursor, VERSIONS_AT_ONCE, &mut keys);
        (done, keys.into_iter().map(|key| key.into_item()).collect())
    };
    loop {
        let ((done_a, keys_a), (done_b, keys_b)) = (step(a, &mut at_a), step(b, &mut at_b));
        if done_a != done_b || keys_a != keys_b {
            return false;
        }
        if done_a {
            return true;
        }
    }
}
