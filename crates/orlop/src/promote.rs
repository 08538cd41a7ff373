//! `orlop promote`: a server's directory of a keeper's copy.

use crate::failure::say;
use files::real::RealFs;
use journal::Proof;
use keeper::{Exact, Promotion, Request};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Arguments of `orlop promote`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The keeper's directory. No keeper may be running on it.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// You say that the old server does not run, and that nothing will start it: two servers of
    /// one cluster would each take writes that the other does not have.
    #[arg(long)]
    old_server_is_gone: bool,
    /// The old server's data directory, stopped, if it can be reached from here: if it holds the
    /// same as the copy, no revision is skipped.
    #[arg(long, value_name = "DIR")]
    old_data_dir: Option<PathBuf>,
    /// By how much the store's revision rises if the copy is not proven complete: it must be more
    /// than the old server can have given after the copy's last record.
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000)]
    bump_revision: i64,
}

/// Exit code 0: a server starts from the directory; 1: it is as before.
pub(crate) fn run(args: &Args) -> ExitCode {
    let request = Request {
        old_server_is_gone: args.old_server_is_gone,
        old_data_dir: args.old_data_dir.clone(),
        marker_dir: files::real::memory_dir(),
        jump_by: args.bump_revision,
    };
    let options = crate::keeper::options("promote");
    match keeper::promote(Arc::new(RealFs::new()), &args.data_dir, options, &request) {
        Ok(promotion) => {
            say!("{}", told(args, &promotion, unix_ms()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orlop promote: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// What a person is told.
fn told(args: &Args, promotion: &Promotion, now_ms: u64) -> String {
    let Promotion {
        cluster_id,
        revision,
        followed,
        exact,
        jumped_to,
        raft_term,
    } = promotion;
    let mut text = format!(
        "{} is a server's directory now: cluster {cluster_id:x}, term {raft_term}.\n",
        args.data_dir.display()
    );
    text.push_str(&match (exact, jumped_to) {
        (Some(exact), _) => format!(
            "Nothing is missing, and no watcher has to list again: {}. The store's revision is \
             {revision}.\n",
            match exact {
                Exact::Stopped => "the old server stopped in order, and the copy had all up to its end",
                Exact::Waited => "the old server showed nothing that the copy did not have",
                Exact::Compared => "the old server's directory holds the same",
            }
        ),
        (None, Some(to)) => {
            let since = match followed.unix_ms {
                0 => "the snapshot that the copy began with".to_owned(),
                ms => format!(
                    "the copy's last record, which the old server sent {} ms ago by its clock",
                    now_ms.saturating_sub(ms)
                ),
            };
            format!(
                "The copy is not proven complete: what the old server acknowledged after {since} \
                 (entry {} of its stream, frame {} of its log) is missing, if there was any. So the \
                 store's revision jumps from {revision} to {to}, and every watcher lists again.\n",
                followed.sequence, followed.lsn
            )
        }
        (None, None) => String::new(),
    });
    if followed.proof == Proof::None && exact.is_none() && args.old_data_dir.is_none() {
        text.push_str(
            "Had the old directory been at hand, --old-data-dir would have compared the two.\n",
        );
    }
    text.push_str(
        "This assumes that the old server does not come back. Keepers that follow the new one refuse \
         it, and it stops when one of them tells it; without such a keeper nothing can.\n",
    );
    text.push_str(&format!(
        "Start: orlop serve --data-dir={} with the old server's other flags, and let clients find it \
         (its address, its certificates).",
        args.data_dir.display()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::Followed;

    fn args() -> Args {
        Args {
            data_dir: "/d".into(),
            old_server_is_gone: true,
            old_data_dir: None,
            bump_revision: 5,
        }
    }

    #[test]
    fn says_what_is_missing_or_why_nothing_is() {
        let mut promotion = Promotion {
            cluster_id: 0xc,
            revision: 70,
            followed: Followed {
                stream: 1,
                sequence: 9,
                lsn: 11,
                unix_ms: 1_000,
                proof: Proof::None,
            },
            exact: None,
            jumped_to: Some(75),
            raft_term: 3,
        };
        let text = told(&args(), &promotion, 3_500);
        for part in ["2500 ms ago", "from 70 to 75", "--old-data-dir", "term 3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        promotion.exact = Some(Exact::Stopped);
        promotion.jumped_to = None;
        let text = told(&args(), &promotion, 3_500);
        assert!(text.contains("no watcher has to list again"), "{text}");
        assert!(!text.contains("jumps"), "{text}");
    }
}
