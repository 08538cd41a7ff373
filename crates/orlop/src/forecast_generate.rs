//! `orlop forecast generate`: members of a real etcd on this machine are put into states drawn
//! at random, and what is seen of them is recorded with what was done.

use crate::forecast::{Failed, Log};
use crate::forecast_load::{Cgroups, Tools, end};
use crate::stop_signals::StopSignals;
use forecast::collect::{Collector, Round, Source};
use forecast::dataset::Writer;
use forecast::experiment::{Period, plan};
use forecast::schema::{Row, State, Truth};
use playground::args::time;
use playground::cli::start_guard;
use playground::cluster::etcd_program;
use playground::members::{Members, Setup};
use playground::pki::private_dir;
use playground::proc::Process;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use upstream::{Endpoint, Settings};

/// The members.
const MEMBERS: usize = 3;
/// How often a delay that changes is set anew.
const TURN: Duration = Duration::from_millis(50);
/// How long `orlop bench` goes on at most; the light load begins anew then.
const LOAD_MAX: Duration = PERIOD_MAX.saturating_mul(2);
/// The longest period: an overload lasts longer than it.
const PERIOD_MAX: Duration = Duration::from_secs(1800);
/// The longest run.
const RUN_MAX: Duration = Duration::from_secs(48 * 3600);
/// How long the first sample of all members may take, and an election.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How often it is asked who leads while that is not known.
const LOOK: Duration = Duration::from_millis(200);

/// Arguments of `orlop forecast generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each state lasts: 20s, 5m.
    #[arg(long, default_value = "60s", value_parser = time)]
    period: Duration,
    /// At the beginning nothing is done for so long: what is quiet is learned from it.
    #[arg(long, default_value = "40s", value_parser = time)]
    quiet: Duration,
    /// From one sample to the next: 1s, 500ms.
    #[arg(long, default_value = "1s", value_parser = time)]
    interval: Duration,
    /// Periods of each state.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    periods_per_class: u32,
    /// What the states, their order, and how they go are drawn from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The name of the run in the data set; otherwise it has the seed.
    #[arg(long)]
    run: Option<String>,
    /// etcd's executable; otherwise the pinned one.
    #[arg(long, value_name = "FILE")]
    etcd_bin: Option<PathBuf>,
    /// Where the members' data goes; it is removed at the end.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The data set, a file that is not there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    pub(crate) log: Log,
}

impl Args {
    /// The plan; or what is wrong with the arguments.
    pub(crate) fn plan(&self) -> Result<Vec<Period>, String> {
        if self.interval < forecast::collect::INTERVAL_MIN || self.period < self.interval * 5 {
            return Err("--interval is 200ms or more, and --period five of it or more".to_owned());
        }
        if self.period > PERIOD_MAX {
            return Err("--period is 30m or less".to_owned());
        }
        let periods = plan(self.seed, self.periods_per_class);
        // Both are bounded: at most 50,000 times half an hour.
        let all = self.quiet + self.period * periods.len() as u32;
        match all <= RUN_MAX {
            true => Ok(periods),
            false => Err("the periods take more than 48 hours".to_owned()),
        }
    }
}

/// Carries out the plan. It ends by itself, or in order on a signal.
pub(crate) fn run(args: &Args, periods: &[Period]) -> Result<(), Failed> {
    let file = Writer::create(&args.out)?;
    let orlop = std::env::current_exe()?;
    // Whatever is started ends with this process, however it ends.
    let mut guard = start_guard()?;
    let etcd = etcd_program(args.etcd_bin.as_deref(), &mut |line| {
        tracing::info!("{line}")
    })?;
    let dir = private_dir("orlop-forecast-", &std::path::absolute(&args.dir)?)?;
    guard.remove_at_end(dir.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = StopSignals::new()?;
        let work = generate(args, periods, &etcd, &orlop, dir.path(), file);
        tokio::select! {
            done = work => done,
            name = signals.wait() => {
                tracing::info!(signal = name, "received signal; the data set has the periods until now");
                Ok(())
            }
        }
    })
}

async fn generate(
    args: &Args,
    periods: &[Period],
    etcd: &Path,
    orlop: &Path,
    dir: &Path,
    file: Writer<BufWriter<File>>,
) -> Result<(), Failed> {
    let mut setup = Setup::new(etcd.to_owned(), MEMBERS)?;
    setup.live = true;
    setup.flags = [
        "--log-level=error",
        "--quota-backend-bytes=8589934592",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1m",
    ]
    .map(str::to_owned)
    .to_vec();
    let cgroups = match Cgroups::new() {
        Ok(cgroups) => Some(cgroups),
        Err(why) => {
            tracing::warn!(%why, "no control groups: an overload of one member is felt by all");
            None
        }
    };
    let members = Members::start(setup, dir, None).await?;
    let urls = members.endpoints().urls;
    let cluster = Settings::new(Endpoint::list(&urls.join(","))?);
    let name = args.run.clone();
    let name = name.unwrap_or_else(|| format!("seed-{}", args.seed));
    let mut stage = Stage {
        collector: Collector::new(Source::new(cluster, args.interval))?,
        run: name,
        tools: Tools { orlop, dir },
        members,
        background: None,
        cgroups,
        file,
        began: Instant::now(),
        kept: [0; State::ALL.len()],
        dropped: [0; State::ALL.len()],
    };
    for (name, pid) in stage.members.pids() {
        stage.group(&name, pid)?;
    }
    stage.ready().await?;
    let quiet = Period {
        state: State::Idle,
        leader: true,
        delay: None,
        load: None,
        sync_us: None,
    };
    stage.period(0, &quiet, args.quiet).await?;
    for (nth, period) in periods.iter().enumerate() {
        stage.period(nth as u32 + 1, period, args.period).await?;
        stage.members.check_running()?;
    }
    end(stage.background.take());
    stage.members.stop()?;
    for state in State::ALL {
        let (kept, dropped) = (stage.kept[state.at()], stage.dropped[state.at()]);
        tracing::info!(state = state.name(), kept, dropped, "periods");
    }
    Ok(())
}

/// What an experiment has. Its members end with it, and the groups that they are in after them.
struct Stage<'a> {
    collector: Collector,
    run: String,
    tools: Tools<'a>,
    members: Members,
    background: Option<Process>,
    cgroups: Option<Cgroups>,
    file: Writer<BufWriter<File>>,
    began: Instant,
    kept: [u32; State::ALL.len()],
    dropped: [u32; State::ALL.len()],
}

impl Stage<'_> {
    fn group(&mut self, name: &str, pid: u32) -> Result<(), Failed> {
        if let Some(cgroups) = &mut self.cgroups {
            cgroups.put(name, pid)?;
        }
        Ok(())
    }

    /// Waits until all members are known and one leads.
    async fn ready(&mut self) -> Result<(), Failed> {
        while self.began.elapsed() < READY_LIMIT {
            let round = self.collector.round().await;
            let leads = round.samples.iter().any(|sample| sample.leads);
            if leads && round.samples.len() == MEMBERS {
                return Ok(());
            }
        }
        Err("not all members were seen within 30 s".into())
    }

    /// Who leads (from 0); a member under load may be late with its answer.
    async fn leader(&self) -> Result<usize, Failed> {
        let began = Instant::now();
        loop {
            match self.members.leader().await {
                Ok(Some(leader)) => return Ok(leader),
                Ok(None) if began.elapsed() > READY_LIMIT => return Err("no member leads".into()),
                Err(error) if began.elapsed() > READY_LIMIT => return Err(error.into()),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Begins the light load, and begins it anew if it has ended: a call of it may fail.
    fn background(&mut self) -> Result<(), Failed> {
        if let Some(running) = &mut self.background {
            match running.ended()? {
                None => return Ok(()),
                Some(status) => tracing::warn!(%status, "the light load ended, and begins anew"),
            }
        }
        // It is ended; a limit that is far keeps it from running on.
        let urls = self.members.endpoints().urls;
        let running = self.tools.background(&urls, LOAD_MAX)?;
        self.group("background", running.id())?;
        self.background = Some(running);
        Ok(())
    }

    async fn period(&mut self, nth: u32, period: &Period, span: Duration) -> Result<(), Failed> {
        self.background()?;
        let leader = self.leader().await?;
        let target = match period.leader {
            true => leader,
            false => (leader + 1 + nth as usize % (MEMBERS - 1)) % MEMBERS,
        };
        let name = format!("etcd-{}", target + 1);
        let tools = self.inject(period, target, span)?;
        let began = Instant::now();
        let mut rows = Vec::new();
        while began.elapsed() < span {
            let round = self.round(period, target, began, span).await?;
            let since = began.elapsed();
            let delay = period.delay_at(part(since, span), 0.5);
            for sample in round.samples {
                let hit = sample.name == name;
                let delay_us = delay.filter(|_| hit).map_or(0.0, |d| d.as_secs_f64() * 1e6);
                rows.push(Row {
                    run: self.run.clone(),
                    period: nth,
                    since_ms: since.as_millis() as u64,
                    truth: Truth {
                        label: Some(if hit { period.state } else { State::Idle }),
                        delay_us: Some(delay_us),
                        sync_us: Some(period.sync_us.filter(|_| hit).unwrap_or(0.0)),
                    },
                    sample,
                });
            }
        }
        self.members.hold(target, Duration::ZERO)?;
        tools.into_iter().for_each(|tool| end(Some(tool)));
        let stayed = self.leader().await? == leader;
        let of: Vec<&Row> = rows.iter().filter(|row| row.sample.name == name).collect();
        let held = match stayed {
            true => period.verify(&of),
            false => Err("the leader has changed".to_owned()),
        };
        let counts = match &held {
            Ok(()) => &mut self.kept,
            Err(_) => &mut self.dropped,
        };
        counts[period.state.at()] += 1;
        if let Err(why) = held {
            // Its rows stay, so that rates and quiet values go on; nobody learns from them.
            tracing::warn!(period = nth, state = period.state.name(), %why, "dropped");
            rows.iter_mut().for_each(|row| row.truth = Truth::default());
        }
        rows.iter().try_for_each(|row| self.file.add(row))?;
        self.file.flush()?;
        Ok(())
    }

    fn inject(
        &mut self,
        period: &Period,
        target: usize,
        span: Duration,
    ) -> Result<Vec<Process>, Failed> {
        let mut tools = Vec::new();
        if let Some(load) = period.load {
            // It ends before, or is ended; it begins by writing its keys.
            let tool = self
                .tools
                .overload(load, &self.members.url(target), span * 2)?;
            self.group("load", tool.id())?;
            tools.push(tool);
        }
        if let Some(us) = period.sync_us {
            let pid = self.members.pids().get(target).map(|(_, pid)| *pid);
            let pid = pid.ok_or("a member has ended")?;
            let more = Duration::from_micros(us as u64);
            tools.push(self.tools.slow_syncs(pid, more)?);
        }
        Ok(tools)
    }

    /// One turn's samples, while the delay goes as it is to.
    async fn round(
        &mut self,
        period: &Period,
        target: usize,
        began: Instant,
        span: Duration,
    ) -> Result<Round, Failed> {
        let round = self.collector.round();
        tokio::pin!(round);
        let mut turns = tokio::time::interval(TURN);
        let mut nth = 0u64;
        loop {
            tokio::select! {
                round = &mut round => return Ok(round),
                _ = turns.tick() => {}
            }
            nth += 1;
            // A chance that needs no state: the fraction of multiples of the golden ratio.
            let seed = nth as f64 + began.elapsed().as_secs_f64();
            let chance = (seed * 0.618_033_988_75).fract();
            if let Some(delay) = period.delay_at(part(began.elapsed(), span), chance) {
                self.members.hold(target, delay)?;
            }
        }
    }
}

fn part(since: Duration, span: Duration) -> f64 {
    (since.as_secs_f64() / span.as_secs_f64()).min(1.0)
}
