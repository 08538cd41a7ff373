//! Watches a cluster, says what it thinks of it, and moves the lead if it may.

use crate::actor::{Actor, Moved};
use crate::collect::{Collector, Round, Source, unix_ms};
use crate::cost::{Cost, Ways, costs};
use crate::decide::{Decider, Ended, Gates, Move, Observation, Rule, Seen, Verdict, Why};
use crate::error::Error;
use crate::guard::Board;
use crate::history::{History, Signal};
use crate::schema::{Column, State};
use crate::thresholds;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use upstream::View;

/// A scrape that fails again and again is logged this often.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// A member lags when it has not applied what the leader had committed so many samples before.
const LAG_SAMPLES: usize = 2;

/// How it watches, and what it may do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is collected.
    pub source: Source,
    /// When a move is worth while.
    pub rule: Rule,
    /// It may move the lead.
    pub act: bool,
    /// It tells other actors of its ways, by a key in the cluster. An actor does so anyway.
    pub tell: bool,
    /// How much its ways count beside those of others: calls, connections.
    pub weight: f64,
    /// Where the keys are; it ends in a slash.
    pub prefix: String,
    /// Its name for other actors.
    pub name: String,
    /// How long others wait for an actor that is gone.
    pub time_to_live: Duration,
}

impl Settings {
    /// One that looks on.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Settings {
            source,
            rule: Rule::default(),
            act: false,
            tell: false,
            weight: 1.0,
            prefix: crate::guard::PREFIX.to_owned(),
            name: "orlop-forecast".to_owned(),
            time_to_live: Duration::from_secs(15),
        }
    }
}

/// What is thought of a member.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Its name.
    pub name: String,
    /// It leads.
    pub leads: bool,
    /// What it would cost.
    pub cost: Cost,
    /// The state that it is in; `None` if that is not known.
    pub state: Option<State>,
    /// How likely each state is, by the model.
    pub likely: Option<[f64; State::ALL.len()]>,
}

/// What is thought of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Thought {
    /// Samples taken since the start.
    pub rounds: u64,
    /// Pages that were not to be had since the start.
    pub missing: u64,
    /// Who leads.
    pub leader: Option<u64>,
    /// All voters.
    pub members: Vec<Opinion>,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// Whether it may act, does, and what keys say.
    pub gates: Gates,
    /// Why an actor has given up, or been stopped.
    pub said: Option<String>,
    /// Moves that were made, failed, were not begun, and would have been right.
    pub moves: [u64; 4],
    /// What moves that were not allowed would have saved, in microseconds of commit cost.
    pub would_gain_us: f64,
    /// Moves in a row that did not help.
    pub futile: u32,
}

/// A forecast that runs until its last receiver or this is dropped.
#[derive(Debug)]
pub struct Forecast {
    /// What is thought, after each sample.
    pub thoughts: watch::Receiver<Arc<Thought>>,
    /// Sets its weight.
    pub weight: watch::Sender<f64>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Forecast {
    /// Begins; within a runtime.
    ///
    /// # Errors
    /// If the settings cannot be used, or TLS files not be read.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        if !settings.prefix.ends_with('/') {
            let prefix = &settings.prefix;
            return Err(Error::Refused(format!(
                "the prefix {prefix:?} must end in a slash"
            )));
        }
        let collector = Collector::new(settings.source.clone())?;
        // Two processes of one name are two.
        let who = format!("{}-{:08x}", settings.name, rand::random::<u32>());
        let actor = Actor::new(
            collector.client().clone(),
            &settings.prefix,
            &who,
            settings.time_to_live,
        );
        let (thoughts, receiver) = watch::channel(Arc::default());
        let (stop, stopped) = watch::channel(false);
        let (weight, weights) = watch::channel(settings.weight);
        let watcher = Watcher {
            decider: Decider::new(settings.rule),
            settings,
            actor,
            history: History::default(),
            thought: Thought::default(),
            began: Instant::now(),
            said: HashMap::new(),
            would: None,
            gave_up: false,
            weights,
        };
        let task = tokio::spawn(watcher.run(collector, thoughts, stopped));
        Ok(Forecast {
            thoughts: receiver,
            weight,
            stop,
            task,
        })
    }

    /// Ends it, in order: another may act at once.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}

struct Watcher {
    settings: Settings,
    decider: Decider,
    actor: Actor,
    history: History,
    thought: Thought,
    began: Instant,
    /// What was logged of late.
    said: HashMap<String, Instant>,
    /// The move that was last said to be right, and when.
    would: Option<(u64, u64, Why, Instant)>,
    gave_up: bool,
    weights: watch::Receiver<f64>,
}

impl Watcher {
    async fn run(
        mut self,
        mut collector: Collector,
        thoughts: watch::Sender<Arc<Thought>>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            let round = tokio::select! {
                round = collector.round() => round,
                _ = stopped.changed() => break,
            };
            // A move that is under way is seen to its end.
            self.think(round).await;
            if thoughts.send(Arc::new(self.thought.clone())).is_err() {
                break;
            }
        }
        self.actor.leave().await;
    }

    async fn think(&mut self, round: Round) {
        self.history.add(&round.samples);
        self.thought.rounds += 1;
        self.thought.missing += round.missing.len() as u64;
        for missing in &round.missing {
            self.say_once(missing.clone());
        }
        let board = self.board(&round.view).await;
        let seen = self.observe(&round, board.as_ref());
        let verdict = self.decider.step(&seen);
        self.note(&seen, verdict);
        match verdict {
            Verdict::Hold(_) => {}
            Verdict::Would(what, why) => self.would(what, why),
            Verdict::Move(what) => self.make(what, board.as_ref(), &round.view).await,
            Verdict::GiveUp(moves) => self.give_up(moves).await,
        }
    }

    /// The shared keys; `None` where they are not to be had. Then nothing is moved.
    async fn board(&mut self, view: &View) -> Option<Board> {
        let shares = self.settings.act || self.settings.tell;
        let board = match self.actor.board().await {
            Ok(board) => board,
            Err(error) => {
                if shares {
                    self.say_once(format!(
                        "the keys below {} cannot be read: {error}",
                        self.settings.prefix
                    ));
                }
                return None;
            }
        };
        if !shares {
            return Some(board);
        }
        let cool_down = Duration::from_millis(self.settings.rule.cool_down_ms);
        let ways = self.ways();
        let kept = async {
            self.actor.keep(&board, self.settings.act).await?;
            self.actor.tell(&ways).await?;
            self.actor.note_leader(&board, view, cool_down).await
        };
        let kept: Result<(), Error> = kept.await;
        if let Err(error) = kept {
            self.say_once(format!(
                "the keys below {} cannot be written: {error}",
                self.settings.prefix
            ));
        }
        Some(board)
    }

    fn ways(&self) -> Ways {
        let all = self.history.all();
        let us = all.filter_map(|(id, track)| Some((id, track.signal(Signal::ClientUs)?)));
        Ways {
            weight: *self.weights.borrow(),
            us: us.collect(),
        }
    }

    fn observe(&mut self, round: &Round, board: Option<&Board>) -> Observation {
        let view = &round.view;
        let leader = view.leader.as_ref().map(|leader| leader.member_id);
        let members = || view.members.iter().filter_map(|m| Some((m.member_id?, m)));
        let voters: Vec<u64> = members()
            .filter(|(_, m)| !m.learner)
            .map(|(id, _)| id)
            .collect();
        // Its own ways are newer here than there.
        let others = board.into_iter().flat_map(|board| &board.ways);
        let others = others.filter(|(name, _)| *name != self.actor.name());
        let others: Vec<Ways> = others.map(|(_, ways)| ways.clone()).collect();
        let found = costs(
            &self.history,
            &voters,
            leader,
            &others,
            *self.weights.borrow(),
        );
        let by_member: BTreeMap<u64, &Cost> =
            found.iter().map(|cost| (cost.member, cost)).collect();
        let had = leader.and_then(|leader| {
            self.history
                .of(leader)?
                .before(LAG_SAMPLES)?
                .get(Column::RaftIndex)
        });
        let seen = members().map(|(member, m)| Seen {
            member,
            voter: !m.learner,
            healthy: m.health.is_healthy(),
            lagging: had.is_some_and(|had| (m.raft_applied_index as f64) < had),
            cost_us: by_member.get(&member).and_then(|cost| cost.total_us),
            state: thresholds::state(&self.history, member),
        });
        let seen: Vec<Seen> = seen.collect();
        // One of which not even the id is known is down.
        let unknown = view
            .members
            .iter()
            .filter(|m| m.member_id.is_none())
            .map(|_| Seen {
                member: 0,
                voter: true,
                healthy: false,
                lagging: false,
                cost_us: None,
                state: None,
            });
        let opinions = found.iter().map(|cost| {
            let member = members().find(|(id, _)| *id == cost.member);
            Opinion {
                name: member.map(|(_, m)| m.name.clone()).unwrap_or_default(),
                leads: leader == Some(cost.member),
                cost: cost.clone(),
                state: thresholds::state(&self.history, cost.member),
                likely: None,
            }
        });
        self.thought.members = opinions.collect();
        self.thought.leader = leader;
        let is_actor = board.is_some_and(|board| self.actor.acts_since(board).is_some());
        Observation {
            at_ms: self.began.elapsed().as_millis() as u64,
            leader,
            members: seen.into_iter().chain(unknown).collect(),
            gates: Gates {
                acts: self.settings.act,
                is_actor,
                cools_down: board.is_some_and(|board| board.cool_down.is_some()),
                stopped: board.is_some_and(|board| board.stop.is_some()),
                given_up: board.is_some_and(|board| board.gave_up.is_some()),
            },
        }
    }

    fn note(&mut self, seen: &Observation, verdict: Verdict) {
        let before = self.thought.gates;
        if before.stopped != seen.gates.stopped {
            let stopped = seen.gates.stopped;
            tracing::warn!(stopped, "an operator has stopped or resumed all actors");
        }
        if before.given_up && !seen.gates.given_up {
            tracing::info!("told to begin anew");
            self.decider.resume();
            self.gave_up = false;
        }
        if before.is_actor && !seen.gates.is_actor && self.settings.act {
            tracing::warn!(
                "does not act for this cluster any more: its lease is gone, or the keys cannot be read"
            );
        }
        self.thought.gates = seen.gates;
        self.thought.verdict = Some(verdict);
        self.thought.futile = self.decider.futile();
    }

    /// Says what would be done, once a cool-down for the same move and reason.
    fn would(&mut self, what: Move, why: Why) {
        let pause = Duration::from_millis(self.settings.rule.cool_down_ms);
        let said = self.would.is_some_and(|(from, to, was, at)| {
            (from, to, was) == (what.from, what.to, why) && at.elapsed() < pause
        });
        if said || why == Why::Settling {
            return;
        }
        self.would = Some((what.from, what.to, why, Instant::now()));
        self.thought.moves[3] += 1;
        self.thought.would_gain_us += what.gain_us;
        tracing::warn!(
            from = format!("{:x}", what.from),
            to = format!("{:x}", what.to),
            state = self.state_of(what.from),
            cost_ms = ms(what.cost_us),
            gain_ms = ms(what.gain_us),
            kept_by = why.name(),
            "the lead would be moved"
        );
    }

    async fn make(&mut self, what: Move, board: Option<&Board>, view: &View) {
        let why = serde_json::json!({
            "from": format!("{:x}", what.from),
            "to": format!("{:x}", what.to),
            "state": self.state_of(what.from),
            "cost_us": what.cost_us.round(),
            "gain_us": what.gain_us.round(),
            "at_unix_ms": unix_ms(),
        })
        .to_string();
        tracing::warn!(
            from = format!("{:x}", what.from),
            to = format!("{:x}", what.to),
            state = self.state_of(what.from),
            cost_ms = ms(what.cost_us),
            gain_ms = ms(what.gain_us),
            "moving the lead"
        );
        let cool_down = Duration::from_millis(self.settings.rule.cool_down_ms);
        let moved = match board {
            Some(board) => {
                self.actor
                    .move_to(board, view, what.to, cool_down, &why)
                    .await
            }
            None => Moved::NotBegun("the keys cannot be read".to_owned()),
        };
        let (nth, ended) = match moved {
            Moved::Made => {
                tracing::warn!(to = format!("{:x}", what.to), "the lead has moved");
                (0, Ended::Made)
            }
            Moved::Failed(why) => {
                tracing::error!(why, "the lead was not moved, or nobody knows");
                (1, Ended::Failed)
            }
            Moved::NotBegun(why) => {
                tracing::info!(why, "the lead is left where it is");
                (2, Ended::NotBegun)
            }
        };
        self.thought.moves[nth] += 1;
        self.decider
            .ended(self.began.elapsed().as_millis() as u64, ended);
    }

    async fn give_up(&mut self, moves: u32) {
        if std::mem::replace(&mut self.gave_up, true) {
            return;
        }
        let why =
            format!("{moves} moves in a row did not make commits as much cheaper as predicted");
        tracing::error!(
            why,
            "gives up: the lead stays where it is until an operator says otherwise (orlop forecast resume)"
        );
        self.thought.said = Some(why.clone());
        if let Err(error) = self.actor.give_up(&why).await {
            tracing::error!(%error, "other actors could not be told that moves do not help");
        }
    }

    fn state_of(&self, member: u64) -> &'static str {
        let found = self
            .thought
            .members
            .iter()
            .find(|m| m.cost.member == member);
        found.and_then(|m| m.state).map_or("unknown", State::name)
    }

    /// Logs what goes on for long once a minute.
    fn say_once(&mut self, what: String) {
        self.said.retain(|_, at| at.elapsed() < SAY_AGAIN);
        // Texts are few: one a member and kind.
        if self.said.len() < 64 && !self.said.contains_key(&what) {
            tracing::warn!("{what}");
            self.said.insert(what, Instant::now());
        }
    }
}

fn ms(us: f64) -> f64 {
    (us / 10.0).round() / 100.0
}
