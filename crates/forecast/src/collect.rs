//! Samples of all members, once an interval.
//!
//! Members are asked side by side, each within its part of the interval, so that one that is
//! silent delays no sample of another. What it did not answer is missing from its sample.

use crate::error::Error;
use crate::page::Page;
use crate::probe::{PROBE_DEADLINE, Probes};
use crate::schema::{Column, Sample};
use crate::scrape::Scraper;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use upstream::{Client, Endpoint, MemberView, Routes, Settings, View};
use wire::ClientTls;

/// The shortest interval: a scrape takes a member some milliseconds of its processor.
pub const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Members that are looked at; etcd has seven or fewer.
const MAX_MEMBERS: usize = 16;

/// What is collected, and from whom.
#[derive(Clone, Debug)]
pub struct Source {
    /// The cluster.
    pub cluster: Settings,
    /// Where members serve `/metrics`, if not on their client URLs. Whose a page is, it says.
    pub metrics: Vec<Endpoint>,
    /// From one sample of a member to the next.
    pub interval: Duration,
    /// Pairs of reads through each member an interval.
    pub probes: u32,
}

impl Source {
    /// A cluster, with a sample every `interval` and three probes in each.
    #[must_use]
    pub fn new(cluster: Settings, interval: Duration) -> Self {
        Source {
            cluster,
            metrics: Vec::new(),
            interval,
            probes: 3,
        }
    }
}

/// One turn's samples, and what was known of the cluster then.
#[derive(Clone, Debug)]
pub struct Round {
    /// One of each known member, by its id.
    pub samples: Vec<Sample>,
    /// The cluster.
    pub view: Arc<View>,
    /// What was not to be had, for the log.
    pub missing: Vec<String>,
}

struct Watched {
    /// None while it scrapes.
    scraper: Option<Scraper>,
    scraping: Option<JoinHandle<Scraped>>,
    page: Option<Page>,
    probes: Probes,
}

struct Scraped {
    scraper: Scraper,
    page: Result<Page, String>,
    took: Duration,
}

impl Watched {
    fn new(at: Endpoint, tls: Option<Arc<ClientTls>>) -> Self {
        Watched {
            scraper: Some(Scraper::new(at, tls)),
            scraping: None,
            page: None,
            probes: Probes::default(),
        }
    }

    /// Begins to scrape, unless it does. One that takes longer than an interval is not begun
    /// anew: a member that is far would never be known.
    fn begin(&mut self) {
        if let Some(mut scraper) = self.scraper.take() {
            self.scraping = Some(tokio::spawn(async move {
                let began = Instant::now();
                let page = scraper.page(PROBE_DEADLINE).await;
                Scraped {
                    page: page.map(|text| Page::read(&text)),
                    took: began.elapsed(),
                    scraper,
                }
            }));
        }
    }

    /// The page, if the scrape has ended; `None` while it goes on.
    async fn take(&mut self) -> Option<(Result<Page, String>, Duration)> {
        let done = self.scraping.take_if(|scraping| scraping.is_finished())?;
        // It ends otherwise only with the runtime.
        let scraped = done.await.ok()?;
        self.scraper = Some(scraped.scraper);
        Some((scraped.page, scraped.took))
    }
}

/// Collects; within a runtime.
pub struct Collector {
    source: Source,
    client: Client,
    tls: Option<Arc<ClientTls>>,
    members: HashMap<Endpoint, Watched>,
    /// Scrapers of addresses that only have metrics.
    apart: Vec<Watched>,
    next: Instant,
}

impl Collector {
    /// Begins to ask who leads.
    ///
    /// # Errors
    /// If the settings cannot be used, or TLS files not be read.
    pub fn new(source: Source) -> Result<Self, Error> {
        if source.interval < INTERVAL_MIN {
            let ms = INTERVAL_MIN.as_millis();
            return Err(Error::Refused(format!(
                "the interval must be {ms} ms or more"
            )));
        }
        let tls = match &source.cluster.tls {
            Some(config) => Some(ClientTls::load(config.clone(), b"http/1.1")?),
            None => None,
        };
        let client = Client::new(&source.cluster, Routes::default())?;
        let apart = source.metrics.iter();
        let apart = apart.map(|at| Watched::new(at.clone(), tls.clone()));
        Ok(Collector {
            apart: apart.collect(),
            client,
            tls,
            members: HashMap::new(),
            next: Instant::now(),
            source,
        })
    }

    /// The client that it has of the cluster.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Probes and scrapes for the rest of the interval: the next samples.
    pub async fn round(&mut self) -> Round {
        let interval = self.source.interval;
        let now = Instant::now();
        self.next += interval;
        if self.next < now + interval / 2 {
            // Time that was missed is not made up for: that would be a burst.
            self.next = now + interval;
        }
        let probes = self.source.probes.max(1);
        let gap = (self.next - now) / probes;
        for nth in 0..probes {
            tokio::time::sleep_until(now + gap * nth).await;
            self.follow();
            if nth == 0 {
                let apart = !self.apart.is_empty();
                let members = self.members.values_mut().filter(|_| !apart);
                members.chain(&mut self.apart).for_each(Watched::begin);
            }
            for (endpoint, watched) in &self.members {
                watched.probes.begin(&self.client, endpoint);
            }
        }
        tokio::time::sleep_until(self.next).await;
        self.samples().await
    }

    /// Takes up the members that there are now.
    fn follow(&mut self) {
        let view = self.client.view();
        let known = |endpoint: &Endpoint| view.at(endpoint).is_some();
        self.members.retain(|endpoint, _| known(endpoint));
        for member in view.members.iter().take(MAX_MEMBERS) {
            let tls = &self.tls;
            self.members
                .entry(member.endpoint.clone())
                .or_insert_with(|| Watched::new(member.endpoint.clone(), tls.clone()));
        }
    }

    async fn samples(&mut self) -> Round {
        let view = self.client.view();
        let at_ms = unix_ms();
        let mut missing = Vec::new();
        let mut samples = Vec::new();
        // Pages of addresses that only have metrics: whose they are, they say.
        let mut apart = Vec::new();
        for watched in &mut self.apart {
            match watched.take().await {
                Some((Ok(page), took)) => {
                    apart.push((watched.page.replace(page.clone()), page, took));
                }
                Some((Err(why), _)) => missing.push(why),
                None => {}
            }
        }
        for member in view.members.iter().take(MAX_MEMBERS) {
            let Some(id) = member.member_id else {
                missing.push(format!("{}: it has not said who it is", member.endpoint));
                continue;
            };
            let mut sample = begun(at_ms, id, member, &view);
            let Some(watched) = self.members.get_mut(&member.endpoint) else {
                samples.push(sample);
                continue;
            };
            fill_probes(&watched.probes, &mut sample);
            let mut fill = |before: Option<&Page>, page: &Page, took: Duration| {
                page.fill(before, &mut sample);
                sample.set(Column::ScrapeUs, Some(took.as_secs_f64() * 1e6));
            };
            if self.apart.is_empty() {
                match watched.take().await {
                    Some((Ok(page), took)) => {
                        fill(watched.page.as_ref(), &page, took);
                        watched.page = Some(page);
                    }
                    Some((Err(why), _)) => missing.push(why),
                    None => missing.push(format!("{}/metrics: no answer yet", member.endpoint)),
                }
            } else {
                match apart.iter().find(|(_, page, _)| page.server_id == Some(id)) {
                    Some((before, page, took)) => fill(before.as_ref(), page, *took),
                    None => missing.push(format!(
                        "{}: no page of metrics is its own",
                        member.endpoint
                    )),
                }
            }
            samples.push(sample);
        }
        samples.sort_by_key(|sample| sample.member);
        Round {
            samples,
            view,
            missing,
        }
    }
}

/// A sample with what the member has said in Status.
fn begun(at_ms: u64, id: u64, member: &MemberView, view: &View) -> Sample {
    let mut sample = Sample::new(at_ms, id, member.name.clone());
    let leader = view.leader.as_ref();
    sample.leads = leader.is_some_and(|leader| leader.member_id == id);
    if member.health.is_healthy() {
        for (column, value) in [
            (Column::Term, member.term),
            (Column::RaftIndex, member.raft_index),
            (Column::AppliedIndex, member.raft_applied_index),
            (Column::DbBytes, member.db_size_bytes),
        ] {
            sample.set(column, Some(value as f64));
        }
    }
    sample
}

fn fill_probes(probes: &Probes, sample: &mut Sample) {
    let (serializable, linearizable) = probes.take();
    let lost = serializable.lost + linearizable.lost;
    for (column, value) in [
        (Column::SerializableMinUs, serializable.min_us),
        (Column::SerializableMeanUs, serializable.mean_us),
        (Column::SerializableMaxUs, serializable.max_us),
        (Column::LinearizableMinUs, linearizable.min_us),
        (Column::LinearizableMeanUs, linearizable.mean_us),
        (Column::LinearizableMaxUs, linearizable.max_us),
        (Column::ProbesLost, Some(f64::from(lost))),
    ] {
        sample.set(column, value);
    }
}

/// Milliseconds of Unix time.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
