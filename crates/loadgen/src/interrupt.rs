//! Ctrl-C and its relatives: a flag that everything which waits looks at.

use crate::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often a wait looks at the flag.
const SLICE: Duration = Duration::from_millis(20);

/// Whether the user asked to stop. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that SIGINT, SIGTERM and SIGHUP raise.
    ///
    /// # Errors
    /// When the system refuses the thread or the signal handlers.
    pub fn on_signals() -> Result<Interrupt, Error> {
        let interrupt = Interrupt::default();
        let raised = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::system("starting a runtime"))?;
        let mut signals = Vec::new();
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ] {
            let _inside = runtime.enter();
            signals.push(signal(kind).map_err(Error::system("listening for signals"))?);
        }
        // Ends with the process: nothing joins it.
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async move {
                    if let [int, term, hup] = signals.as_mut_slice() {
                        tokio::select! {
                            _ = int.recv() => {}
                            _ = term.recv() => {}
                            _ = hup.recv() => {}
                        }
                    }
                    raised.raise();
                });
            })
            .map_err(Error::system("starting a thread"))?;
        Ok(interrupt)
    }

    /// Asks everything to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Fails when raised.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Waits until `done` or `limit`; says which.
    pub(crate) fn wait(
        &self,
        limit: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        let start = Instant::now();
        loop {
            self.check()?;
            if done() {
                return Ok(true);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}
