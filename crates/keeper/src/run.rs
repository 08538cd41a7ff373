//! A keeper as a process: one thread that follows a server, reconnecting for ever, and pages for
//! operators.

mod backups;
mod follow;
mod link;
mod pages;
mod view;

pub use backups::{Clients, SaveSettings};
pub use pages::Pages;
pub use view::View;

use crate::error::Error;
use crate::kept::{Keeper, Options};
use files::FileSystem;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use upstream::Endpoint;
use wire::ClientTls;

/// Whom to follow, and where the copy is.
pub struct Settings {
    /// The server's peer URL.
    pub server: Endpoint,
    /// TLS towards it.
    pub tls: Arc<ClientTls>,
    /// The copy's directory.
    pub data_dir: PathBuf,
    /// How to keep it.
    pub options: Options,
    /// Snapshots that it saves by itself.
    pub save: Option<SaveSettings>,
}

/// A keeper that runs.
pub struct Running {
    view: Arc<View>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
    saves: Option<JoinHandle<()>>,
    failed: watch::Receiver<bool>,
    /// Where connections live.
    _runtime: Runtime,
}

impl Running {
    /// Opens the copy and begins to follow. Within any thread but a runtime's.
    ///
    /// # Errors
    /// The directory is no keeper's, damaged, or in use; or the system has no thread.
    pub fn start(fs: Arc<dyn FileSystem>, settings: Settings) -> Result<Running, Error> {
        let keeper = Keeper::open(fs.clone(), &settings.data_dir, settings.options.clone())?;
        let view = Arc::new(View::new(&settings.server.to_string()));
        view.stands(&keeper);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("link")
            .enable_all()
            .build()
            .map_err(thread)?;
        let (stop, stopped) = watch::channel(false);
        let (fails, failed) = watch::channel(false);
        let saves = match settings.save.clone() {
            Some(save) => {
                let dir = settings.data_dir.clone();
                let segment_bytes = settings.options.segment_bytes;
                let scheduled = backups::scheduled(fs.clone(), &view, dir, segment_bytes, save);
                let run = move || scheduled.run();
                Some(threads::spawn_vital("scheduled", run).map_err(thread)?)
            }
            None => None,
        };
        let handle = runtime.handle().clone();
        let of_thread = view.clone();
        let body = move || {
            let ended = follow::run(fs, settings, keeper, &handle, stopped, &of_thread);
            if let Err(error) = ended {
                tracing::error!(target: telemetry::FATAL, %error, "the keeper ends");
                fails.send_replace(true);
            }
        };
        let thread = threads::spawn_vital("keeper", body).map_err(thread)?;
        Ok(Running {
            view,
            stop,
            thread,
            saves,
            failed,
            _runtime: runtime,
        })
    }

    /// What it knows of itself.
    pub fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// True once it has ended by itself: it will not try again.
    pub fn failed(&self) -> watch::Receiver<bool> {
        self.failed.clone()
    }

    /// Stops it: what came is on disk, and the log is closed.
    pub fn stop(self) {
        self.stop.send_replace(true);
        self.view.stops();
        // A panic of theirs has ended the process.
        let _ = self.thread.join();
        let _ = self.saves.map(JoinHandle::join);
    }
}

fn thread(source: io::Error) -> Error {
    Error::Refused(format!("the system has no thread for the keeper: {source}"))
}
