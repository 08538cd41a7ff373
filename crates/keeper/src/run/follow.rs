//! The thread that follows a server: connect, take what comes, and again for ever.

use super::Settings;
use super::link::{Broken, Link, Parts};
use super::view::View;
use crate::error::Error;
use crate::kept::{Checkpoint, Keeper};
use copies::message::{Reason, Said, Told, Welcome};
use files::FileSystem;
use journal::CommitError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use telemetry::Throttle;
use tokio::runtime::Handle;
use tokio::sync::watch;
use upstream::Dialer;

/// Pauses between two attempts to follow: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Who has followed for so long begins again with the first pause.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// A checkpoint's thread rests after each piece.
const CHECKPOINT_REST: Duration = Duration::from_micros(200);
static AGAIN: Throttle = Throttle::new(Duration::from_secs(10));

/// Why an attempt ended.
enum Ended {
    Broken(Broken),
    Failed(Error),
}

impl From<Broken> for Ended {
    fn from(broken: Broken) -> Self {
        Ended::Broken(broken)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Failed(error)
    }
}

struct Follow<'a> {
    fs: Arc<dyn FileSystem>,
    settings: Settings,
    handle: &'a Handle,
    stopped: watch::Receiver<bool>,
    view: &'a View,
    dialer: Dialer,
    checkpointing: Arc<AtomicBool>,
    allocating: bool,
}

/// Follows until the keeper stops, or cannot go on.
pub(super) fn run(
    fs: Arc<dyn FileSystem>,
    settings: Settings,
    keeper: Keeper,
    handle: &Handle,
    stopped: watch::Receiver<bool>,
    view: &View,
) -> Result<(), Error> {
    let dialer = Dialer::new(Some(settings.tls.clone()));
    let mut follow = Follow {
        fs,
        settings,
        handle,
        stopped,
        view,
        dialer,
        checkpointing: Arc::default(),
        allocating: false,
    };
    let mut keeper = keeper;
    let mut pause = PAUSES.0;
    loop {
        let began = Instant::now();
        let (copy, ended) = follow.once(keeper);
        if began.elapsed() >= GOOD_AFTER {
            pause = PAUSES.0;
        }
        let text = match ended {
            Ended::Broken(Broken::Stopping) => {
                return match copy {
                    Some(copy) => copy.close(),
                    None => Ok(()),
                };
            }
            Ended::Broken(Broken::Refused(refused)) if refused.reason() == Reason::Cluster => {
                return Err(Error::Refused(refused.text));
            }
            Ended::Broken(broken) => broken.to_string(),
            Ended::Failed(error) if error.is_final() => return Err(error),
            Ended::Failed(error) => {
                if matches!(error, Error::Commit(CommitError::NoSpace { .. })) {
                    pause = PAUSES.1;
                }
                error.to_string()
            }
        };
        if let Some(suppressed) = AGAIN.allow() {
            tracing::warn!(
                server = %follow.settings.server,
                reason = %text,
                suppressed,
                "not following the server; trying again"
            );
        }
        view.is_broken(text);
        keeper = match copy {
            Some(copy) => copy,
            None => follow.reopen()?,
        };
        view.stands(&keeper);
        if follow.rest(pause) {
            return keeper.close();
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

impl Follow<'_> {
    /// Waits; true if the keeper is to stop.
    fn rest(&mut self, pause: Duration) -> bool {
        let stopped = &mut self.stopped;
        self.handle.block_on(async {
            tokio::time::timeout(pause, stopped.wait_for(|stop| *stop))
                .await
                .is_ok()
        })
    }

    /// A copy whose memory is of no use any more, from its disk.
    fn reopen(&mut self) -> Result<Keeper, Error> {
        let options = self.settings.options.clone();
        self.allocating = false;
        Keeper::open(self.fs.clone(), &self.settings.data_dir, options)
    }

    /// One connection, to its end. Without the keeper if what it has in memory is of no use.
    fn once(&mut self, mut keeper: Keeper) -> (Option<Keeper>, Ended) {
        let began = self.begin(&mut keeper);
        let (mut link, welcome) = match began {
            Ok(begun) => begun,
            Err(ended) => return (Some(keeper), ended),
        };
        if welcome.snapshot {
            tracing::info!(
                server = %self.settings.server,
                revision = welcome.revision,
                "taking a snapshot of the server"
            );
            self.view.joins();
            let began = Instant::now();
            let mut parts = Parts::new(&mut link);
            let taken = keeper.snapshot(&welcome, &mut parts);
            let broken = parts.broken.take();
            match (taken, broken) {
                (Ok(()), _) => {}
                (Err(_), Some(broken)) => return (None, Ended::Broken(broken)),
                (Err(error), None) => return (None, Ended::Failed(error)),
            }
            tracing::info!(
                revision = welcome.revision,
                took = %telemetry::GoDuration(began.elapsed()),
                "the server's snapshot is on disk"
            );
        } else {
            tracing::info!(server = %self.settings.server, "going on where the copy stands");
        }
        self.view.follows(welcome.snapshot);
        self.view.stands(&keeper);
        match self.take(&mut keeper, &mut link) {
            Ok(never) => match never {},
            Err(ended) => (Some(keeper), ended),
        }
    }

    fn begin(&mut self, keeper: &mut Keeper) -> Result<(Link, Welcome), Ended> {
        self.view.connects();
        let line = {
            let _within = self.handle.enter();
            self.dialer.line(&self.settings.server)
        };
        let hello = Told::Hello(keeper.hello());
        let mut link = Link::open(self.handle, line.channel, hello, self.stopped.clone())?;
        let Said::Welcome(welcome) = link.next()? else {
            return Err(Error::OutOfOrder("it does not begin with a welcome").into());
        };
        keeper.welcome(&welcome)?;
        if !self.allocating
            && let Some(allocator) = keeper.allocator()
        {
            // It ends with the journal.
            let run = move || allocator.run(|_| ());
            self.allocating = threads::spawn_job("allocator", run, |_| ()).is_ok();
        }
        Ok((link, welcome))
    }

    fn take(
        &mut self,
        keeper: &mut Keeper,
        link: &mut Link,
    ) -> Result<std::convert::Infallible, Ended> {
        link.tell_ack(keeper)?;
        loop {
            // What has come meanwhile goes to the disk together.
            let mut said = Some(link.next()?);
            let mut records = 0;
            while let Some(message) = said {
                let full = match message {
                    Said::Batch(batch) => {
                        records += batch
                            .entries
                            .iter()
                            .map(|e| u64::from(e.count))
                            .sum::<u64>();
                        keeper.batch(&batch)?
                    }
                    Said::Heartbeat(heartbeat) => {
                        self.view.heard(&heartbeat);
                        keeper.waits(heartbeat.waits)?;
                        false
                    }
                    Said::Rules(rules) => {
                        keeper.rules(&rules)?;
                        false
                    }
                    Said::End(end) => {
                        keeper.end(&end)?;
                        tracing::info!(
                            revision = end.revision,
                            "the server has stopped, and the copy has all up to its end"
                        );
                        true
                    }
                    Said::Welcome(_) | Said::Refused(_) | Said::Snapshot(_) => {
                        return Err(Error::OutOfOrder("it begins again in the middle").into());
                    }
                };
                said = if full { None } else { link.ready()? };
            }
            keeper.commit()?;
            self.view.took(records);
            self.view.stands(keeper);
            link.tell_ack(keeper)?;
            self.checkpoint_if_due(keeper)?;
        }
    }

    fn checkpoint_if_due(&mut self, keeper: &mut Keeper) -> Result<(), Error> {
        if !keeper.checkpoint_due() || self.checkpointing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let Some(checkpoint) = keeper.checkpoint()? else {
            self.checkpointing.store(false, Ordering::Release);
            return Ok(());
        };
        let running = self.checkpointing.clone();
        let ended = move |_| running.store(false, Ordering::Release);
        if let Err(error) = threads::spawn_job("checkpoint", move || write(checkpoint), ended) {
            self.checkpointing.store(false, Ordering::Release);
            tracing::warn!(%error, "no checkpoint of the copy: the system has no thread");
        }
        Ok(())
    }
}

fn write(checkpoint: Checkpoint) {
    let began = Instant::now();
    match checkpoint.write(|| std::thread::sleep(CHECKPOINT_REST)) {
        Ok(info) => tracing::info!(
            bytes = info.bytes,
            items = info.items,
            took = %telemetry::GoDuration(began.elapsed()),
            "saved a snapshot of the copy"
        ),
        Err(error) => tracing::warn!(
            %error,
            "failed to save a snapshot of the copy; its log is kept and it is tried again later"
        ),
    }
}

impl Link {
    fn tell_ack(&self, keeper: &Keeper) -> Result<(), Broken> {
        match keeper.ack() {
            Some(ack) => self.tell(Told::Ack(ack)),
            None => Ok(()),
        }
    }
}
