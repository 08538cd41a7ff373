//! A log that ends within an epoch: what its last durable frames get for revisions, and
//! whether the revision jumps.

use crate::dir::{Format, Layout};
use crate::error::OpenError;
use crate::marker::{self, Verdict};
use crate::open::Guards;
use crate::order::{Held, Refusal};
use crate::record::Note;
use crate::recover::Complete;
use crate::recovery::Recovered;
use crate::replay::Replay;
use files::FileSystem;
use std::path::Path;

/// The last process left an epoch open: it was killed, or the machine lost power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochReport {
    /// No revision above this was shown before.
    pub bound: i64,
    /// Nothing that was visible is missing: the store is as it was.
    pub trusted: bool,
    /// Why, or why not; a sentence.
    pub reason: String,
    /// Where the store's revision and its compact revision went, if volatile writes may be
    /// missing: every watcher relists.
    pub jumped_to: Option<i64>,
    /// Durable frames that were on disk without the revisions that they were answered with,
    /// if they were, and got new ones below [`jumped_to`](EpochReport::jumped_to).
    pub restamped_frames: u64,
}

/// What a start has to note in the log before anyone is served.
pub(crate) struct Settled {
    pub(crate) notes: Vec<Note>,
    pub(crate) revision_before: i64,
    pub(crate) report: EpochReport,
}

/// Gives the store what is left at the end of a log within an epoch; `None` if there is no
/// open epoch. Changes no file.
pub(crate) fn settle(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
    (marker_dir, guards, complete): (Option<&Path>, Guards, Option<&Complete>),
    found: &mut Recovered,
    store: &mut dyn Replay,
) -> Result<Option<Settled>, OpenError> {
    let Some(epoch) = found.order.epoch else {
        return Ok(None);
    };
    let Verdict { trusted, reason } = marker::judge(
        fs,
        marker_dir,
        layout,
        format.identity.cluster_id,
        epoch,
        found.end.lsn,
        guards.marker,
    );
    let end = found.end.lsn;
    let complete = complete.filter(|complete| !trusted && complete.lsn <= end);
    let (trusted, reason) = match complete {
        Some(complete) => (true, format!("{reason}; {}", complete.reason)),
        None => (trusted, reason),
    };
    let path = layout.log.clone();
    let refused = |Refusal(reason)| OpenError::Replay {
        path,
        offset: 0,
        lsn: end,
        reason,
    };
    let mut settled = Settled {
        notes: Vec::new(),
        revision_before: store.revision(),
        report: EpochReport {
            bound: epoch.bound,
            trusted,
            reason,
            jumped_to: None,
            restamped_frames: 0,
        },
    };
    let held = std::mem::take(&mut found.order.held).into();
    if trusted {
        go_on(held, store, &mut settled).map_err(refused)?;
    } else {
        go_beyond(held, store, &mut settled).map_err(refused)?;
    }
    settled.notes.push(Note::EpochEnd);
    Ok(Some(settled))
}

/// Gives the last frames the next revisions, in log order: all that was visible before them is
/// in the log.
fn go_on(held: Vec<Held>, store: &mut dyn Replay, settled: &mut Settled) -> Result<(), Refusal> {
    for frame in held {
        frame.apply(store)?;
    }
    settled.revision_before = store.revision();
    Ok(())
}

/// Gives the last frames new revisions, above all that were ever shown, and goes on above
/// those: what the frames were answered with is not known.
fn go_beyond(
    held: Vec<Held>,
    store: &mut dyn Replay,
    Settled { notes, report, .. }: &mut Settled,
) -> Result<(), Refusal> {
    let bound = report.bound.max(store.revision());
    if !held.is_empty() {
        notes.push(Note::Jump { revision: bound });
        store.jump(bound).map_err(Refusal)?;
    }
    for frame in held {
        notes.push(Note::Stamp {
            lsn: frame.lsn,
            revision_before: store.revision(),
        });
        frame.apply(store)?;
        report.restamped_frames += 1;
    }
    let to = bound.max(store.revision()) + 2;
    notes.push(Note::Jump { revision: to });
    store.jump(to).map_err(Refusal)?;
    report.jumped_to = Some(to);
    Ok(())
}
