//! Pages for operators and probes, over plain HTTP: read only.
//!
//! | path | what it answers |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while the leader's commit cost is known |
//! | `/v1/status` | what is thought of each member, as JSON |

use crate::decide::{Move, Verdict, Why};
use crate::error::Error;
use crate::run::{Opinion, Thought};
use crate::schema::State;
use http::StatusCode;
use metrics::forecast::{ForecastInput, ForecastMember};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;
use wire::Page;

/// A running admin endpoint. It ends when it is dropped.
#[derive(Debug)]
pub struct Admin(wire::Pages);

impl Admin {
    /// Serves what is thought at these addresses, each a `host:port`. `dropped_lines` reads the
    /// log's counter; `version` is orlop's.
    ///
    /// # Errors
    /// An address that cannot be listened on, or no thread.
    pub fn start(
        thoughts: watch::Receiver<Arc<Thought>>,
        addresses: &[String],
        version: &'static str,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Admin, Error> {
        let pages = Pages {
            thoughts,
            version,
            dropped_lines: Box::new(dropped_lines),
        };
        let by_path = move |path: &str| pages.page(path);
        Ok(Admin(wire::Pages::start(
            "orlop forecast",
            addresses,
            None,
            by_path,
        )?))
    }

    /// Where it listens, as URLs.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        self.0.urls()
    }
}

struct Pages {
    thoughts: watch::Receiver<Arc<Thought>>,
    version: &'static str,
    dropped_lines: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Pages {
    fn page(&self, path: &str) -> Option<Page> {
        let thought = self.thoughts.borrow().clone();
        Some(match path {
            "/metrics" => {
                let mut input = input(&thought);
                input.log_lines_dropped = (self.dropped_lines)();
                let page = metrics::forecast::encode(self.version, &input);
                Page::new(metrics::CONTENT_TYPE, page)
            }
            "/healthz" => Page::text(StatusCode::OK, "ok"),
            "/readyz" => {
                let mut members = thought.members.iter();
                match members.any(|m| m.leads && m.cost.total_us.is_some()) {
                    true => Page::text(StatusCode::OK, "ok"),
                    false => Page::text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "what the leader's commits cost is not known",
                    ),
                }
            }
            "/v1/status" => Page::json(&status(&thought, self.version)),
            _ => return None,
        })
    }
}

/// What is published of moves.
const OUTCOMES: [&str; 4] = ["made", "failed", "not_begun", "would"];
/// Every reason, so that series are there before they are used.
const REASONS: [Why; 15] = [
    Why::NoLeader,
    Why::Down(0),
    Why::Lagging(0),
    Why::MembersChange,
    Why::CostUnknown,
    Why::BestAlready,
    Why::StateUnknown,
    Why::LoadFollows,
    Why::NotLongEnough,
    Why::Settling,
    Why::CoolDown,
    Why::Shadow,
    Why::NotActor,
    Why::Stopped,
    Why::GivenUp,
];

fn why_of(thought: &Thought) -> Option<Why> {
    match thought.verdict? {
        Verdict::Hold(why) | Verdict::Would(_, why) => Some(why),
        Verdict::Move(_) => None,
        Verdict::GiveUp(_) => Some(Why::GivenUp),
    }
}

fn input(thought: &Thought) -> ForecastInput {
    let seconds = |us: Option<f64>| us.map(|us| us / 1e6);
    let why = why_of(thought).map(Why::name);
    let member = |m: &Opinion| ForecastMember {
        name: m.name.clone(),
        leads: m.leads,
        cost_s: [
            seconds(m.cost.total_us),
            seconds(m.cost.client_us),
            seconds(m.cost.sync_us),
            seconds(m.cost.quorum_us),
        ],
        state: m.state.map(State::name),
        likely: m.likely.map_or(Vec::new(), |likely| {
            State::ALL.iter().map(|s| s.name()).zip(likely).collect()
        }),
    };
    ForecastInput {
        members: thought.members.iter().map(member).collect(),
        acts: thought.gates.acts,
        is_actor: thought.gates.is_actor,
        stopped: thought.gates.stopped,
        gave_up: thought.gates.given_up,
        rounds: thought.rounds,
        missing: thought.missing,
        moves: OUTCOMES.into_iter().zip(thought.moves).collect(),
        would_gain_s: thought.would_gain_us / 1e6,
        holds: REASONS
            .iter()
            .map(|r| (r.name(), Some(r.name()) == why))
            .collect(),
        log_lines_dropped: 0,
    }
}

fn status(thought: &Thought, version: &str) -> Value {
    let us = |us: Option<f64>| us.map(|us| us.round() as u64);
    let members = thought.members.iter().map(|m| {
        json!({
            "id": format!("{:x}", m.cost.member),
            "name": m.name,
            "leads": m.leads,
            "state": m.state.map(State::name),
            "likely": m.likely.map(|likely| {
                let named = State::ALL.iter().map(|s| s.name()).zip(likely);
                named.collect::<std::collections::BTreeMap<_, _>>()
            }),
            "commit_cost_us": {
                "all": us(m.cost.total_us),
                "client": us(m.cost.client_us),
                "sync": us(m.cost.sync_us),
                "quorum": us(m.cost.quorum_us),
            },
        })
    });
    let (wanted, why) = match thought.verdict {
        Some(Verdict::Would(wanted, why)) => (Some(wanted), Some(why)),
        Some(Verdict::Move(wanted)) => (Some(wanted), None),
        _ => (None, why_of(thought)),
    };
    let a_move = |wanted: Move| {
        json!({
            "from": format!("{:x}", wanted.from),
            "to": format!("{:x}", wanted.to),
            "gain_us": wanted.gain_us.round() as u64,
        })
    };
    let moves: std::collections::BTreeMap<_, _> = OUTCOMES.into_iter().zip(thought.moves).collect();
    json!({
        "version": version,
        "acts": thought.gates.acts,
        "is_actor": thought.gates.is_actor,
        "stopped": thought.gates.stopped,
        "gave_up": thought.gates.given_up,
        "gave_up_because": thought.said,
        "rounds": thought.rounds,
        "missing": thought.missing,
        "leader": thought.leader.map(|id| format!("{id:x}")),
        "members": members.collect::<Vec<_>>(),
        "wanted": wanted.map(a_move),
        "holds": why.map(Why::name),
        "holds_because": why.map(Why::text),
        "moves": moves,
        "would_gain_us": thought.would_gain_us.round() as u64,
        "futile_moves": thought.futile,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;

    #[test]
    fn pages_say_what_would_be_done_and_why_not() {
        let cost = Cost {
            member: 0xab,
            total_us: Some(93_500.0),
            client_us: Some(45_500.0),
            sync_us: Some(2_000.0),
            quorum_us: None,
        };
        let wanted = Move {
            from: 0xab,
            to: 0xcd,
            cost_us: 93_500.0,
            gain_us: 90_000.0,
        };
        let thought = Thought {
            leader: Some(0xab),
            members: vec![Opinion {
                name: "a".to_owned(),
                leads: true,
                cost,
                state: Some(State::Network),
                likely: None,
            }],
            verdict: Some(Verdict::Would(wanted, Why::Shadow)),
            moves: [0, 0, 0, 1],
            ..Thought::default()
        };
        let status = status(&thought, "0.1.0");
        assert_eq!(status["wanted"]["to"], "cd");
        assert_eq!(status["holds"], "shadow");
        assert_eq!(status["members"][0]["commit_cost_us"]["all"], 93_500);
        let page = metrics::forecast::encode("0.1.0", &input(&thought));
        for line in [
            "orlop_forecast_holds{reason=\"shadow\"} 1",
            "orlop_forecast_holds{reason=\"cool_down\"} 0",
            "orlop_forecast_moves_total{outcome=\"would\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
