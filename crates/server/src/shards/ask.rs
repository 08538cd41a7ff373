//! What a start after a power loss asks of shards: any one that held the newest frames is enough.

use super::Shards;
use copies::shards::asking::{Standing, is_hopeless, standings, told};
use copies::shards::message::{Collect, Collected};
use copies::shards::{Fence, Guards};
use journal::{Asked, Found, HeldFrame, Lsn};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// How often it looks whether one came.
const LOOK: Duration = Duration::from_millis(20);
/// How long a shard that answers may take for its next part.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the log says who is waited for.
const TELL: Duration = Duration::from_secs(5);

impl Shards {
    /// Waits until one of the holders is there and has given back what it holds, or the time is
    /// over. Shards are closed to earlier servers when they are let in, which is before they are
    /// asked.
    pub(crate) fn ask(&self, asked: &Asked, name: &str) -> Found {
        let fence = Fence {
            raft_term: asked.raft_term,
            generation: asked.generation,
        };
        self.open(asked.cluster_id, fence, name);
        let deadline = Instant::now() + self.settings.recovery_timeout;
        let mut tell_at = Instant::now();
        let mut failed = Vec::new();
        tracing::warn!(
            after = asked.after,
            set = asked.set,
            "the machine lost power while shards held the newest writes: asking them"
        );
        loop {
            let found =
                self.present(|present| standings(&asked.holders, present, Guards::default()));
            for (holder, standing) in &found {
                let Standing::There(session) = *standing else {
                    continue;
                };
                if failed.contains(&session) {
                    continue;
                }
                match self.collect(session, asked) {
                    Some((frames, held)) => {
                        tracing::info!(
                            shard = holder.name,
                            frames = frames.len() as u64,
                            shards = told(&found),
                            "a shard gave back what it held"
                        );
                        let holder = holder.clone();
                        return Found::Held {
                            holder,
                            frames,
                            held,
                        };
                    }
                    None => failed.push(session),
                }
            }
            let now = Instant::now();
            if now >= deadline || is_hopeless(&found) {
                return Found::Nobody(told(&found));
            }
            if now >= tell_at {
                tell_at = now + TELL;
                tracing::warn!(shards = told(&found), "waiting for a shard");
            }
            std::thread::sleep(LOOK);
        }
    }

    fn collect(&self, session: u64, asked: &Asked) -> Option<(Vec<HeldFrame>, Lsn)> {
        let (to, parts) = channel();
        let collect = Collect {
            set: asked.set,
            after: asked.after,
        };
        self.state.lock().conns.get_mut(&session)?.asked = Some((collect, to));
        self.ordered.send_replace(());
        let mut frames = Vec::new();
        loop {
            // It ends too when the connection does.
            let Collected {
                frames: part,
                last,
                held,
            } = parts.recv_timeout(PART_TIMEOUT).ok()?;
            frames.extend(part.into_iter().map(HeldFrame::from));
            if last {
                return Some((frames, held));
            }
        }
    }
}
