//! Each transition of a connection's life, by itself.

use std::time::Duration;

use tokio::time::Instant;
use upstream::Endpoint;

use crate::life::{End, FirstBytes, Life, State, Step, Traffic, Who};
use crate::route::{Route, Service};
use crate::settings::{Fallback, Settings};

const MS: Duration = Duration::from_millis(1);

fn member(name: &str) -> Endpoint {
    format!("https://{name}:2379").parse().unwrap()
}

fn route(leader: Option<&str>) -> Route {
    Route {
        leader: leader.map(member),
        lost: Vec::new(),
        others: Vec::new(),
        service: Service::On,
    }
}

fn settings() -> Settings {
    Settings {
        wait: 10_000 * MS,
        dial_timeout: 2_000 * MS,
        handover_gap: 10 * MS,
        handover_limit: 1_000 * MS,
        idle_timeout: Some(3_600_000 * MS),
        half_closed_timeout: 60_000 * MS,
        ..Settings::default()
    }
}

/// A life and its clock.
struct Trial {
    now: Instant,
    life: Life,
}

impl Trial {
    fn with(settings: &Settings) -> Self {
        let now = Instant::now();
        Trial {
            now,
            life: Life::new(settings, now),
        }
    }

    fn look(&mut self, route: &Route) -> Step {
        self.life.look(self.now, route)
    }

    fn after(&mut self, ms: u32) -> &mut Self {
        self.now += ms * MS;
        self
    }

    /// Bytes of one side arrive now.
    fn says(&mut self, by: Who, first: FirstBytes) -> &mut Self {
        let mut traffic = Traffic::new(self.now);
        traffic.by = Some(by);
        self.life.moved(traffic, first);
        self
    }

    /// Connected to the leader of the route, and answered.
    fn relaying(settings: &Settings, route: &Route) -> Self {
        let mut trial = Trial::opening(settings, route);
        trial.says(Who::Client, FirstBytes::Kept);
        trial.says(Who::Member, FirstBytes::Gone);
        assert!(matches!(trial.life.state(), State::Relaying { .. }));
        trial
    }

    fn opening(settings: &Settings, route: &Route) -> Self {
        let mut trial = Trial::with(settings);
        let leader = route.leader.clone().unwrap();
        assert_eq!(trial.look(route), Step::Connect(leader));
        trial.life.connected(trial.now);
        trial
    }

    fn at(&self, ms: u32) -> Option<Instant> {
        Some(self.now + ms * MS)
    }
}

#[test]
fn waits_for_a_leader_and_is_refused_in_the_end() {
    let mut trial = Trial::with(&settings());
    let none = route(None);
    let end = trial.at(10_000);
    assert_eq!(trial.look(&none), Step::Wait(end));
    assert_eq!(trial.after(9_999).look(&none), Step::Wait(end));
    assert_eq!(trial.after(1).look(&none), Step::End(End::NoLeader));
    // It stays ended.
    assert_eq!(trial.look(&route(Some("a"))), Step::End(End::NoLeader));
}

#[test]
fn goes_to_a_leader_that_appears_while_it_waits() {
    let mut trial = Trial::with(&settings());
    trial.look(&route(None));
    let step = trial.after(9_000).look(&route(Some("b")));
    assert_eq!(step, Step::Connect(member("b")));
}

#[test]
fn connects_again_with_growing_pauses_and_reports_the_member() {
    let mut trial = Trial::with(&settings());
    let a = route(Some("a"));
    let mut pauses = Vec::new();
    loop {
        match trial.look(&a) {
            Step::Connect(_) => {
                assert_eq!(trial.life.failed(trial.now), Some(member("a")));
            }
            Step::Wait(Some(at)) => {
                pauses.push((at - trial.now).as_millis());
                trial.now = at;
            }
            step => {
                assert_eq!(step, Step::End(End::Unreachable));
                break;
            }
        }
    }
    assert_eq!(pauses[..6], [20, 40, 80, 160, 320, 500]);
    assert!(pauses.len() < 30, "{pauses:?}");
    assert_eq!(pauses.iter().sum::<u128>(), 10_000);
}

#[test]
fn an_attempt_that_hangs_ends_and_follows_the_leader() {
    let mut trial = Trial::with(&settings());
    assert_eq!(trial.look(&route(Some("a"))), Step::Connect(member("a")));
    let by = trial.at(2_000);
    assert_eq!(trial.after(100).look(&route(Some("a"))), Step::Wait(by));
    // Nobody leads: what was begun may still succeed.
    assert_eq!(trial.look(&route(None)), Step::Wait(by));
    assert_eq!(trial.look(&route(Some("b"))), Step::Connect(member("b")));
    let step = trial.after(2_000).look(&route(Some("b")));
    assert_eq!(step, Step::Suspect(member("b")));
    assert!(matches!(trial.life.state(), State::Waiting { .. }));
}

#[test]
fn first_bytes_that_open_tls_go_to_the_next_leader() {
    let mut trial = Trial::opening(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Kept);
    assert_eq!(trial.after(5).look(&route(Some("b"))), Step::Again);
    assert_eq!(trial.look(&route(Some("b"))), Step::Connect(member("b")));
}

#[test]
fn first_bytes_that_may_be_a_request_do_not() {
    let mut trial = Trial::opening(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Gone);
    let step = trial.after(5).look(&route(Some("b")));
    assert!(matches!(step, Step::Wait(Some(_))), "{step:?}");
    assert!(matches!(trial.life.state(), State::Leaving { .. }));
    assert!(trial.life.lost_member(trial.now));
}

#[test]
fn a_member_that_fails_before_its_first_answer_is_left() {
    let mut trial = Trial::opening(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Kept);
    assert!(!trial.life.lost_member(trial.now));
    assert!(matches!(trial.life.state(), State::Waiting { .. }));
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    assert!(trial.life.lost_member(trial.now));
}

#[test]
fn a_member_that_is_silent_at_first_is_looked_at_once() {
    let a = route(Some("a"));
    let mut trial = Trial::opening(&settings(), &a);
    trial.says(Who::Client, FirstBytes::Kept);
    let at = trial.at(500);
    assert_eq!(trial.look(&a), Step::Wait(at));
    assert_eq!(trial.after(500).look(&a), Step::Suspect(member("a")));
    assert!(matches!(trial.look(&a), Step::Wait(_)));
    // Nobody leads and it does not answer: what was kept waits for the next leader.
    let mut lost = route(None);
    lost.lost.push(member("a"));
    assert_eq!(trial.look(&lost), Step::Again);
}

#[test]
fn leaves_in_a_gap_after_the_members_bytes() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    let b = route(Some("b"));
    let gap = trial.at(10);
    assert_eq!(trial.after(3).look(&b), Step::Wait(gap));
    trial.says(Who::Member, FirstBytes::Gone);
    let gap = trial.at(10);
    assert_eq!(trial.after(7).look(&b), Step::Wait(gap));
    assert_eq!(trial.after(3).look(&b), Step::End(End::Gap));
}

#[test]
fn after_the_clients_bytes_there_is_no_gap_and_the_limit_ends_it() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Gone);
    let b = route(Some("b"));
    let (half, limit) = (trial.at(500), trial.at(1_000));
    assert_eq!(trial.look(&b), Step::Wait(half));
    assert_eq!(trial.after(500).look(&b), Step::Wait(limit));
    assert_eq!(trial.after(499).look(&b), Step::Wait(limit));
    assert_eq!(trial.after(1).look(&b), Step::End(End::Limit));
}

#[test]
fn when_no_gap_comes_the_end_of_an_answer_will_do() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Gone);
    let b = route(Some("b"));
    trial.look(&b);
    let answers = |trial: &mut Trial| {
        let mut traffic = Traffic::new(trial.now);
        (traffic.by, traffic.answers) = (Some(Who::Member), true);
        trial.life.moved(traffic, FirstBytes::Gone);
    };
    answers(&mut trial);
    assert!(!trial.life.wants_answers(trial.now));
    assert!(matches!(trial.look(&b), Step::Wait(_)));
    trial.after(5).says(Who::Client, FirstBytes::Gone);
    assert!(matches!(trial.after(495).look(&b), Step::Wait(_)));
    assert!(trial.life.wants_answers(trial.now));
    answers(&mut trial);
    assert_eq!(trial.look(&b), Step::End(End::Gap));
}

#[test]
fn bytes_that_are_held_are_no_gap() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    let mut traffic = Traffic::new(trial.now);
    (traffic.by, traffic.held) = (Some(Who::Member), true);
    trial.life.moved(traffic, FirstBytes::Gone);
    let (half, limit) = (trial.at(500), trial.at(1_000));
    assert_eq!(trial.look(&route(Some("b"))), Step::Wait(half));
    assert_eq!(trial.after(500).look(&route(Some("b"))), Step::Wait(limit));
}

#[test]
fn a_member_that_does_not_answer_is_left_at_once() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Gone);
    let mut b = route(Some("b"));
    b.lost.push(member("a"));
    assert_eq!(trial.look(&b), Step::End(End::MemberLost));
    // While nobody leads there is nowhere better to go, and it may come back.
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    b.leader = None;
    assert!(matches!(trial.look(&b), Step::Wait(_)));
    assert!(matches!(trial.life.state(), State::Relaying { .. }));
}

#[test]
fn stays_when_the_lead_comes_back() {
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    trial.says(Who::Client, FirstBytes::Gone);
    trial.look(&route(Some("b")));
    assert!(matches!(trial.life.state(), State::Leaving { .. }));
    let step = trial.after(900).look(&route(Some("a")));
    assert!(matches!(step, Step::Wait(_)), "{step:?}");
    assert!(matches!(trial.life.state(), State::Relaying { .. }));
    assert!(matches!(
        trial.after(200).look(&route(Some("a"))),
        Step::Wait(_)
    ));
    // Nor is it cut off while nobody leads.
    trial.look(&route(Some("b")));
    assert!(matches!(trial.life.state(), State::Leaving { .. }));
    let step = trial.after(2_000).look(&route(None));
    assert!(matches!(step, Step::Wait(_)), "{step:?}");
}

#[test]
fn idle_and_half_closed_connections_end() {
    let a = route(Some("a"));
    let mut trial = Trial::relaying(&settings(), &a);
    let idle = trial.at(3_600_000);
    assert_eq!(trial.look(&a), Step::Wait(idle));
    assert_eq!(trial.after(3_600_000).look(&a), Step::End(End::Idle));
    let mut trial = Trial::relaying(&settings(), &a);
    let mut traffic = Traffic::new(trial.now);
    (traffic.by, traffic.half_closed) = (Some(Who::Client), true);
    trial.life.moved(traffic, FirstBytes::Gone);
    assert_eq!(trial.after(60_000).look(&a), Step::End(End::Idle));
    let never = Settings {
        idle_timeout: None,
        ..settings()
    };
    let mut trial = Trial::relaying(&never, &a);
    assert_eq!(trial.look(&a), Step::Wait(None));
}

#[test]
fn a_drain_ends_who_waits_and_lets_others_pause() {
    let mut trial = Trial::with(&settings());
    let mut a = route(Some("a"));
    a.service = Service::DrainBy(trial.now + 3_000 * MS);
    assert_eq!(trial.look(&a), Step::End(End::Drain));
    let mut trial = Trial::relaying(&settings(), &route(Some("a")));
    let by = trial.now + 3_000 * MS;
    a.service = Service::DrainBy(by);
    trial.says(Who::Client, FirstBytes::Gone);
    let half = trial.now + (by - trial.now) / 2;
    assert_eq!(trial.look(&a), Step::Wait(Some(half)));
    trial.after(100).says(Who::Member, FirstBytes::Gone);
    let gap = trial.at(10);
    assert_eq!(trial.look(&a), Step::Wait(gap));
    assert_eq!(trial.after(10).look(&a), Step::End(End::Drain));
}

#[test]
fn with_the_fallback_a_follower_is_better_than_nothing() {
    let follower = Settings {
        fallback: Fallback::Follower,
        ..settings()
    };
    let mut trial = Trial::with(&follower);
    let mut none = route(None);
    none.others = vec![member("b"), member("c")];
    assert!(matches!(trial.look(&none), Step::Wait(_)));
    let step = trial.after(10_000).look(&none);
    assert_eq!(step, Step::Connect(member("b")));
    trial.life.failed(trial.now);
    assert!(matches!(trial.look(&none), Step::Wait(_)));
    assert_eq!(trial.after(20).look(&none), Step::Connect(member("c")));
    trial.life.connected(trial.now);
    trial.says(Who::Member, FirstBytes::Gone);
    assert!(matches!(trial.look(&none), Step::Wait(_)));
    // And leaves it for a leader.
    assert!(matches!(trial.look(&route(Some("a"))), Step::Wait(_)));
    assert_eq!(trial.after(10).look(&route(Some("a"))), Step::End(End::Gap));
}

#[test]
fn a_leader_that_cannot_be_reached_is_not_gone_to_from_a_follower() {
    let follower = Settings {
        fallback: Fallback::Follower,
        ..settings()
    };
    let mut trial = Trial::with(&follower);
    let mut a = route(Some("a"));
    a.others = vec![member("b")];
    let end = trial.now + 10_000 * MS;
    while trial.now < end {
        match trial.look(&a) {
            Step::Connect(to) => {
                assert_eq!(to, member("a"));
                trial.life.failed(trial.now);
            }
            Step::Wait(Some(at)) => trial.now = at,
            step => panic!("{step:?}"),
        }
    }
    let step = trial.after(500).look(&a);
    assert_eq!(step, Step::Connect(member("b")));
    trial.life.connected(trial.now);
    trial.says(Who::Member, FirstBytes::Gone);
    trial.after(60_000).look(&a);
    assert!(matches!(trial.life.state(), State::Relaying { .. }));
}
