//! The thread that holds: connect, take what comes, and again for ever.

use crate::link::{Broken, Link};
use crate::view::View;
use copies::shards::memory::Shard;
use copies::shards::message::{Collect, Collected, Frame, Leaving, Said, Told};
use copies::shards::{COLLECTED_BYTES, Fence};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use telemetry::Throttle;
use tokio::sync::watch;
use upstream::{Dialer, Endpoint};
use wire::ClientTls;

/// Pauses between two attempts to connect: the first, and the longest. A server that starts after
/// a power loss waits for its shards.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Who was connected for so long begins again with the first pause.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// A shard that stops waits for so long until others hold what it held.
const LEAVE: Duration = Duration::from_secs(3);
static AGAIN: Throttle = Throttle::new(Duration::from_secs(10));

/// Whom to hold for, and how much.
pub struct Settings {
    /// The server's peer URL.
    pub server: Endpoint,
    /// TLS towards it.
    pub tls: Arc<ClientTls>,
    /// This shard's name, unlike that of any other of the same server.
    pub name: String,
    /// Its failure domain; empty if it has none but itself.
    pub zone: String,
    /// The most that it holds, in bytes.
    pub limit_bytes: u64,
}

/// A shard that runs.
pub struct Running {
    view: Arc<View>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Begins, with nothing in memory.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(settings: Settings) -> io::Result<Running> {
        let server = settings.server.to_string();
        let view = View::new(
            &server,
            &settings.name,
            &settings.zone,
            settings.limit_bytes,
        );
        let view = Arc::new(view);
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let of_thread = view.clone();
        let body = move || runtime.block_on(run(&settings, stopped, &of_thread));
        let thread = threads::spawn_vital("shard", body)?;
        Ok(Running { view, stop, thread })
    }

    /// What it knows of itself.
    pub fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// Stops it: others hold what it held, if there are enough.
    pub fn stop(self) {
        self.stop.send_replace(true);
        // A panic of it has ended the process.
        let _ = self.thread.join();
    }
}

async fn run(settings: &Settings, mut stopped: watch::Receiver<bool>, view: &View) {
    let incarnation = RandomState::new().hash_one(Instant::now()).max(1);
    let mut shard = Shard::new(
        &settings.name,
        &settings.zone,
        incarnation,
        settings.limit_bytes,
    );
    view.holds(&shard);
    let dialer = Dialer::new(Some(settings.tls.clone()));
    let mut pause = PAUSES.0;
    loop {
        let began = Instant::now();
        view.connects();
        let held = hold(settings, &dialer, &mut shard, view);
        let leave = stopped.clone();
        let ended = tokio::select! {
            ended = held.run(leave) => ended,
            () = stop_and(LEAVE, &mut stopped) => return,
        };
        let Err(broken) = ended else { return };
        if *stopped.borrow() {
            return;
        }
        if began.elapsed() >= GOOD_AFTER {
            pause = PAUSES.0;
        }
        if let Some(suppressed) = AGAIN.allow() {
            tracing::warn!(
                server = %settings.server,
                reason = %broken,
                suppressed,
                "holding for no server; trying again"
            );
        }
        view.is_broken(broken.to_string());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Returns so long after the shard was told to stop.
async fn stop_and(wait: Duration, stopped: &mut watch::Receiver<bool>) {
    // Its sender lives as long as the process.
    let _ = stopped.wait_for(|stop| *stop).await;
    tokio::time::sleep(wait).await;
}

struct Hold<'a> {
    settings: &'a Settings,
    dialer: &'a Dialer,
    shard: &'a mut Shard,
    view: &'a View,
}

fn hold<'a>(
    settings: &'a Settings,
    dialer: &'a Dialer,
    shard: &'a mut Shard,
    view: &'a View,
) -> Hold<'a> {
    Hold {
        settings,
        dialer,
        shard,
        view,
    }
}

impl Hold<'_> {
    /// One connection, to its end. Well if it was told to stop, and the server let it go.
    async fn run(self, mut leave: watch::Receiver<bool>) -> Result<(), Broken> {
        let line = self.dialer.line(&self.settings.server);
        let hello = Told::Hello(self.shard.hello());
        let mut link = Link::open(line.channel, hello).await?;
        let Said::Welcome(welcome) = link.next().await? else {
            return Err(Broken::OutOfTurn);
        };
        let fence = self.shard.welcome(&welcome)?;
        self.view.is_taken();
        tracing::info!(
            server = %self.settings.server,
            name = welcome.name,
            %fence,
            "holding for a server"
        );
        let mut leaving = false;
        loop {
            let said = tokio::select! {
                said = link.next() => match said {
                    Err(_) if leaving => return Ok(()),
                    said => said?,
                },
                _ = leave.wait_for(|stop| *stop), if !leaving => {
                    leaving = true;
                    link.tell(Told::Leaving(Leaving {})).await?;
                    continue;
                }
            };
            let ack = match said {
                Said::Begin(begin) => self.shard.begin(fence, &begin)?,
                Said::Frames(frames) => self.shard.take(fence, frames)?,
                Said::Collect(collect) => {
                    give_back(self.shard, fence, &collect, &link).await?;
                    continue;
                }
                Said::Welcome(_) | Said::Refused(_) => return Err(Broken::OutOfTurn),
            };
            link.tell(Told::Ack(ack)).await?;
            self.view.holds(self.shard);
        }
    }
}

async fn give_back(
    shard: &Shard,
    fence: Fence,
    collect: &Collect,
    link: &Link,
) -> Result<(), Broken> {
    let (mut frames, mut bytes, mut count) = (Vec::new(), 0, 0u64);
    let (held_frames, held) = shard.collect(fence, collect)?;
    for frame in held_frames {
        bytes += frame.size_bytes();
        count += 1;
        frames.push(Frame::from(frame.clone()));
        if bytes >= COLLECTED_BYTES {
            let frames = std::mem::take(&mut frames);
            bytes = 0;
            let part = Collected {
                frames,
                last: false,
                held: 0,
            };
            link.tell(Told::Collected(part)).await?;
        }
    }
    tracing::info!(
        frames = count,
        set = collect.set,
        "the server asked for what it lost, and has it back"
    );
    let last = Collected {
        frames,
        last: true,
        held,
    };
    link.tell(Told::Collected(last)).await
}
