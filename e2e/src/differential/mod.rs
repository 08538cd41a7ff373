//! Two stores side by side: the same operations, made out of chance under a seed,
//! go to both, and both must answer the same, show their watches the same, and
//! have the same hash. With a real etcd as one of them, this finds where the other
//! behaves differently.
//!
//! It knows nothing of either store but the client API. What may differ is taken
//! out in [`normalise`], and nowhere else; what is a race in etcd itself, the
//! operations avoid (see [`op::Op`]).

pub mod generate;
mod generate_txn;
pub mod kubernetes;
pub mod normalise;
pub mod op;
pub mod rng;
pub mod side;
pub mod watch;

use std::fmt::Write as _;

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use etcd_api::mvccpb::Event;

use crate::kube::store::Store;
use crate::kube::{Result, fail};
use generate::Generator;
use kubernetes::Objects;
use op::{Answer, Op, STREAMS, State};
use side::Side;

/// Flags that both stores are started with. The limit of a request is low, so that
/// sequences reach it; nothing is synced, because nothing here is about crashes.
pub const FLAGS: [&str; 2] = ["--max-request-bytes=16384", "--unsafe-no-fsync=true"];

/// What is printed of one answer or operation at most, in characters.
const SHOWN_CHARS: usize = 6000;
/// Key that is written to make revisions pass; no watch or range is about it only.
const FILLER_KEY: &[u8] = b"~";

/// Two stores and what is known about them.
#[derive(Debug)]
pub struct Pair {
    left: Side,
    right: Side,
    state: State,
    /// Watches that were cancelled while events could still be on their way; of
    /// those, one store may have sent more than the other.
    cut_short: Vec<(usize, i64)>,
    /// Whether a watch was opened since the watches last saw everything.
    new_watch: bool,
    /// Differences that are still only printed.
    tolerated: usize,
    /// Whether each operation is printed.
    shown: bool,
    /// Keys and values as kube-apiserver's.
    objects: Option<Objects>,
}

/// What a run did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    /// Operations done and found equal.
    pub ops: usize,
    /// Events of watches found equal.
    pub events: usize,
    /// Operations that both stores refused, with the same error.
    pub refused: usize,
}

impl Pair {
    /// Connects to two stores. The left one is the reference in messages.
    ///
    /// # Errors
    /// If a store does not answer, or they do not begin at the same revision.
    pub async fn connect(left: &Store, right: &Store) -> Result<Self> {
        let name = |side: &str, store: &Store| format!("{side} ({:?})", store.kind());
        let mut pair = Self {
            left: Side::connect(&name("left", left), left.kind(), &left.url()).await?,
            right: Side::connect(&name("right", right), right.kind(), &right.url()).await?,
            state: State::default(),
            cut_short: Vec::new(),
            new_watch: false,
            tolerated: 0,
            shown: false,
            objects: None,
        };
        let everything = pb::RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            ..pb::RangeRequest::default()
        };
        let mut summary = Summary::default();
        let now = pb::HashKvRequest { revision: 0 };
        for op in [Op::Range(everything), Op::HashKv(now)] {
            pair.step(&op, &mut summary).await?;
        }
        Ok(pair)
    }

    /// Does `steps` operations of `seed`, with `expiries` expiring leases spread
    /// among them, on stores that are new or that ended an earlier run.
    ///
    /// # Errors
    /// At the first difference, with how to see it again, and if a store stops
    /// answering.
    pub async fn run(&mut self, seed: u64, steps: usize, expiries: usize) -> Result<Summary> {
        let mut generator = Generator::new(seed);
        if let Some(objects) = &self.objects {
            generator = generator.on(objects.clone());
        }
        let mut summary = Summary::default();
        let expiry_every = steps / (expiries + 1) + 1;
        for step in 0..steps {
            let op = if step > 0 && step % expiry_every == 0 {
                generator.expire()
            } else {
                generator.op(&self.state)
            };
            self.checked(&op, seed, (step, steps), &mut summary).await?;
        }
        for op in [Op::Settle, Op::HashKv(pb::HashKvRequest { revision: 0 })] {
            self.checked(&op, seed, (steps, steps), &mut summary)
                .await?;
        }
        Ok(summary)
    }

    async fn checked(
        &mut self,
        op: &Op,
        seed: u64,
        (step, steps): (usize, usize),
        summary: &mut Summary,
    ) -> Result<()> {
        if self.shown {
            println!("{step}: {}", show(op));
        }
        let Err(error) = self.step(op, summary).await else {
            return Ok(());
        };
        let text = format!(
            "seed {seed}, step {step}: {error}\n\nAgain: ORLOP_DIFF_SEED={seed} \
             ORLOP_DIFF_STEPS={steps} cargo test -p e2e --test differential"
        );
        if self.tolerated == 0 {
            return fail(text);
        }
        self.tolerated -= 1;
        println!("{text}\n");
        Ok(())
    }

    /// Prints the first `differences` differences and goes on, to see many at
    /// once. What follows the first one may follow from it.
    pub fn tolerate(&mut self, differences: usize) {
        self.tolerated = differences;
    }

    /// Works on Kubernetes' keys and objects from now on.
    pub fn work_on(&mut self, objects: Objects) {
        self.objects = Some(objects);
    }

    /// Prints each operation.
    pub fn show_operations(&mut self) {
        self.shown = true;
    }

    /// Does one operation, and before it what it needs.
    async fn step(&mut self, op: &Op, summary: &mut Summary) -> Result<()> {
        match op {
            Op::Settle | Op::Compact(_) | Op::StreamReset { .. } => self.settle(summary).await?,
            Op::WatchCancel { settle: true, .. } => self.settle(summary).await?,
            Op::WatchCancel {
                stream,
                watch_id,
                settle: false,
            } => self.cut_short.push((*stream, *watch_id)),
            Op::WatchCreate { .. } => self.new_watch = true,
            _ => {}
        }
        self.both(op, summary).await
    }

    async fn both(&mut self, op: &Op, summary: &mut Summary) -> Result<()> {
        let answers = tokio::join!(
            self.left.apply(op, &self.state),
            self.right.apply(op, &self.state)
        );
        let (mut left, mut right) = match answers {
            (Ok(left), Ok(right)) => (left, right),
            (Err(error), _) => {
                return fail(format!("{}: {error}\nat {}", self.left.name(), show(op)));
            }
            (_, Err(error)) => {
                return fail(format!("{}: {error}\nat {}", self.right.name(), show(op)));
            }
        };
        normalise::normalise(op, &mut left, &mut right);
        self.state.learn(op, &left);
        if left != right {
            return fail(format!(
                "different answers to {}\n{}: {}\n{}: {}\n{}",
                show(op),
                self.left.name(),
                show(&left),
                self.right.name(),
                show(&right),
                apart(&left, &right)
            ));
        }
        summary.ops += 1;
        if left
            .iter()
            .any(|answer| matches!(answer, Answer::Failed { .. }))
        {
            summary.refused += 1;
        }
        Ok(())
    }

    /// Lets the watches of both stores see everything and compares what they saw.
    async fn settle(&mut self, summary: &mut Summary) -> Result<()> {
        // No answer to a progress request comes before a watch that starts later
        // has begun. And an answer may be older than a new watch, unless its
        // revision is newer.
        let new_watch = std::mem::take(&mut self.new_watch);
        let goal = self
            .last_start()
            .max(self.state.revision + i64::from(new_watch));
        while self.state.revision < goal {
            let put = pb::PutRequest {
                key: Bytes::from_static(FILLER_KEY),
                ..pb::PutRequest::default()
            };
            self.both(&Op::Put(put), summary).await?;
        }
        self.both(&Op::Settle, summary).await?;
        for stream in 0..STREAMS {
            self.compare_watches(stream, summary)?;
        }
        self.cut_short.clear();
        Ok(())
    }

    fn last_start(&self) -> i64 {
        let watches = self
            .state
            .watches
            .iter()
            .flat_map(|watches| watches.values());
        watches.map(|watch| watch.start_revision).max().unwrap_or(0)
    }

    fn compare_watches(&self, stream: usize, summary: &mut Summary) -> Result<()> {
        let left = self.left.look(stream)?;
        let right = self.right.look(stream)?;
        for (side, sight) in [(&self.left, &left), (&self.right, &right)] {
            if !sight.broken.is_empty() {
                return fail(format!(
                    "{}: watch stream {stream}: {}",
                    side.name(),
                    sight.broken.join("; ")
                ));
            }
        }
        if left.control != right.control {
            return fail(format!(
                "different news on watch stream {stream}\n{}: {}\n{}: {}",
                self.left.name(),
                show(&left.control),
                self.right.name(),
                show(&right.control)
            ));
        }
        let ids = left.events.keys().chain(right.events.keys());
        for id in ids {
            let none = Vec::new();
            let mut of_left = left.events.get(id).unwrap_or(&none).as_slice();
            let mut of_right = right.events.get(id).unwrap_or(&none).as_slice();
            summary.events += of_left.len();
            if self.cut_short.contains(&(stream, id.0)) {
                let common = of_left.len().min(of_right.len());
                of_left = &of_left[..common];
                of_right = &of_right[..common];
            }
            let compacted = self.state.compact_revision;
            let alike = |(a, b): &(&Event, &Event)| a == b || lost_prev(a, b, compacted);
            let same = of_left.iter().zip(of_right).take_while(alike).count();
            if same < of_left.len().max(of_right.len()) {
                return fail(format!(
                    "watch {} (use {}) of stream {stream} saw different events from number {same} \
                     on\n{} ({} events): {}\n{} ({} events): {}",
                    id.0,
                    id.1,
                    self.left.name(),
                    of_left.len(),
                    show(&of_left.get(same)),
                    self.right.name(),
                    of_right.len(),
                    show(&of_right.get(same))
                ));
            }
        }
        Ok(())
    }
}

/// etcd looks a former version up when it sends an event, so a compaction that comes in
/// between takes it away: whether an event that is compacted by now shows it is a race.
fn lost_prev(a: &Event, b: &Event, compacted: i64) -> bool {
    let bare = |e: &Event| Event {
        prev_kv: None,
        ..e.clone()
    };
    let revision = a.kv.as_ref().map_or(i64::MAX, |kv| kv.mod_revision);
    revision <= compacted && (a.prev_kv.is_none() || b.prev_kv.is_none()) && bare(a) == bare(b)
}

/// Prints a value, but not all of a huge one.
fn show(value: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    let _ = write!(text, "{value:?}");
    if text.len() > SHOWN_CHARS {
        let cut = text.floor_char_boundary(SHOWN_CHARS);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// The places where the prints of two values part.
fn apart(left: &impl std::fmt::Debug, right: &impl std::fmt::Debug) -> String {
    const BEFORE: usize = 120;
    const AFTER: usize = 160;
    let left = format!("{left:?}");
    let right = format!("{right:?}");
    let same = left
        .bytes()
        .zip(right.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let around = |text: &str| {
        let from = text.floor_char_boundary(same.saturating_sub(BEFORE));
        let to = text.ceil_char_boundary((same + AFTER).min(text.len()));
        text[from..to].to_owned()
    };
    format!("They part at:\n  {}\n  {}", around(&left), around(&right))
}
