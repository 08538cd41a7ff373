//! Which files make up the log: segments by their headers, and the snapshot that they join.

use crate::Lsn;
use crate::dir::{self, Format, Layout};
use crate::error::OpenError;
use crate::frame::PAGE;
use crate::load::{self, Snapshot};
use crate::segment::{self, FirstPage, SegmentHeader};
use crate::snapshot;
use files::{File, FileSystem, read_full};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A segment file that a header was read from.
pub(crate) struct Link {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    /// Last LSN in it, `first_lsn - 1` if it has none. Set by the replay.
    pub(crate) last_lsn: Lsn,
    /// Where its frames end. Set by the replay.
    pub(crate) end_offset: u64,
}

/// Segments by what their first pages say, by id.
#[derive(Default)]
pub(crate) struct Headers {
    /// In use, now or once.
    pub(crate) started: Vec<Link>,
    /// Made ahead.
    pub(crate) unused: Vec<u64>,
    /// Without a header.
    pub(crate) damaged: Vec<u64>,
}

/// Reads every segment's first page: those in use by id, those unused, those damaged.
pub(crate) fn read_headers(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
    files: &dir::LogFiles,
) -> Result<Headers, OpenError> {
    let Headers {
        mut started,
        mut unused,
        mut damaged,
    } = Headers::default();
    let mut in_use = Vec::new();
    for &id in &files.segments {
        let path = segment::path(&layout.log, id);
        let read = || -> io::Result<_> {
            let file = fs.open(&path, false)?;
            let mut page = vec![0; PAGE as usize];
            let n = read_full(&*file, &mut page, 0)?;
            page.truncate(n);
            let bytes = file.len()?;
            Ok((file, page, bytes))
        };
        let (file, page, bytes) = read().map_err(OpenError::io("read", &path))?;
        match segment::parse(&page, format.salt) {
            FirstPage::Damaged if page.len() < segment::HEADER => {
                return Err(cut_off(&path, bytes, "more"));
            }
            FirstPage::Damaged => damaged.push(id),
            FirstPage::UnknownVersion(version) => {
                return Err(OpenError::UnknownVersion {
                    path,
                    found: version.to_string(),
                    known: segment::VERSION,
                });
            }
            FirstPage::Header(header) => {
                if header.id != id || header.cluster_id != format.identity.cluster_id {
                    return Err(OpenError::mismatch(
                        &path,
                        format!(
                            "it is segment {} of cluster {:016x}, and its name or its directory \
                             says otherwise: it was renamed, copied while orlop was running, or \
                             comes from another directory; restore a copy of the whole directory",
                            header.id, header.cluster_id
                        ),
                    ));
                }
                if header.first_lsn == 0 {
                    in_use.push((path, header.previous));
                    unused.push(id);
                    continue;
                }
                if bytes < header.bytes {
                    return Err(cut_off(&path, bytes, &header.bytes.to_string()));
                }
                let (last_lsn, end_offset) = (header.first_lsn - 1, PAGE);
                started.push(Link {
                    header,
                    path,
                    file,
                    last_lsn,
                    end_offset,
                });
            }
        }
    }
    let newest = started.last().map_or(0, |link| link.header.id);
    for (path, id) in in_use {
        // Superseded segments go, the last one in use never does.
        if id > newest && !files.segments.contains(&id) && !files.spares.contains(&id) {
            return Err(OpenError::mismatch(
                path,
                format!(
                    "it was made while segment {id} was in use, and that one is missing, with the \
                     newest frames: restore a copy of the whole directory, made while orlop was \
                     stopped"
                ),
            ));
        }
    }
    Ok(Headers {
        started,
        unused,
        damaged,
    })
}

fn cut_off(path: &Path, bytes: u64, of: &str) -> OpenError {
    OpenError::damaged(
        path,
        bytes,
        format!("the file is cut off: {bytes} bytes of {of} are left"),
        "what was in the rest of it",
    )
}

/// The newest snapshot that is whole and that the log joins, and the index of the first
/// segment needed with it.
pub(crate) fn choose_snapshot(
    fs: &dyn FileSystem,
    layout: &Layout,
    format: &Format,
    snapshots: &[Lsn],
    started: &[Link],
    damaged: &[u64],
    warnings: &mut Vec<String>,
) -> Result<(Option<Snapshot>, usize), OpenError> {
    let first_for = |lsn: Lsn| started.iter().rposition(|l| l.header.first_lsn <= lsn + 1);
    let mut first_error = None;
    for &lsn in snapshots.iter().rev() {
        let path = snapshot::path(&layout.snap, lsn);
        match load::open(fs, &path) {
            Ok(found)
                if found.header.lsn != lsn
                    || found.header.cluster_id != format.identity.cluster_id =>
            {
                return Err(OpenError::mismatch(
                    path,
                    "it was renamed, or comes from another directory; restore a copy of the whole \
                     directory",
                ));
            }
            Ok(found) => {
                if let Some(first) = first_for(lsn) {
                    return Ok((Some(found), first));
                }
            }
            Err(error @ OpenError::Damaged(_)) => {
                warnings.push(format!("passed over a snapshot: {error}"));
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (first_for(0), first_error) {
        (Some(first), _) => Ok((None, first)),
        (None, Some(error)) => Err(error),
        (None, None) => {
            let reach = snapshots.last().map_or_else(
                || "there is no snapshot".to_owned(),
                |lsn| format!("the newest snapshot ends with frame {lsn}"),
            );
            let log = started.first().map_or_else(
                || {
                    if damaged.is_empty() {
                        "there is no segment in use".to_owned()
                    } else {
                        "no segment has a readable header".to_owned()
                    }
                },
                |link| format!("the log begins with frame {}", link.header.first_lsn),
            );
            Err(OpenError::mismatch(
                &layout.dir,
                format!(
                    "{reach}, but {log}: files are missing; restore a copy of the whole directory, \
                     made while orlop was stopped"
                ),
            ))
        }
    }
}

/// Every segment has to follow the one before it. One that was begun before the one before it
/// was synced may have outlived that one's header: from there on the segments are taken out
/// of `chain`, and returned.
pub(crate) fn check_chain(
    layout: &Layout,
    chain: &mut Vec<Link>,
    unused: &[u64],
    damaged: &[u64],
) -> Result<Vec<Link>, OpenError> {
    for (index, pair) in chain.windows(2).enumerate() {
        let (before, after) = (&pair[0].header, &pair[1].header);
        if after.previous == before.id && after.first_lsn >= before.first_lsn {
            continue;
        }
        let headless = damaged.contains(&after.previous) || unused.contains(&after.previous);
        if after.unsynced > 0 && headless && after.previous > before.id {
            return Ok(chain.split_off(index + 1));
        }
        let lost = format!(
            "frames from {} to {}",
            before.first_lsn,
            after.first_lsn - 1
        );
        if damaged.contains(&after.previous) {
            let path = segment::path(&layout.log, after.previous);
            return Err(OpenError::damaged(
                path,
                0,
                "the segment's header cannot be read",
                lost,
            ));
        }
        return Err(OpenError::mismatch(
            &pair[1].path,
            format!(
                "it follows segment {}, and the segment before it here is {} ({lost} may be \
                 missing): a segment is missing, or old and new files are mixed; restore a copy of \
                 the whole directory, made while orlop was stopped",
                after.previous, before.id
            ),
        ));
    }
    Ok(Vec::new())
}
