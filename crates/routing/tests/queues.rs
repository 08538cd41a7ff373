//! Queues against a model: what a list and a few counters say must hold.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panics")]

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use proptest::prelude::*;
use routing::{Admission, Entered, Line, Place, Queue, Refusal};

#[derive(Clone, Debug)]
enum Op {
    Enter,
    Finish(usize),
    Leave(usize),
    Resize(u32, usize),
    Close,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => Just(Op::Enter),
        6 => any::<usize>().prop_map(Op::Finish),
        3 => any::<usize>().prop_map(Op::Leave),
        1 => (0..4_u32, 0..6_usize).prop_map(|(c, w)| Op::Resize(c, w)),
        1 => Just(Op::Close),
    ];
    proptest::collection::vec(op, 1..200)
}

/// The oracle: all that a queue is, written down naively. How each request ended is noted.
#[derive(Default)]
struct Model {
    concurrency: Option<u32>,
    max_waiting: usize,
    closed: bool,
    waiting: VecDeque<u32>,
    serving: Vec<u32>,
    ended: BTreeMap<u32, &'static str>,
}

impl Model {
    fn end(&mut self, who: u32, how: &'static str) {
        assert!(self.ended.insert(who, how).is_none(), "{who} ended twice");
    }

    fn slot(&self) -> bool {
        self.concurrency
            .is_none_or(|c| (self.serving.len() as u32) < c)
    }

    fn fill(&mut self) -> Vec<u32> {
        let mut told = Vec::new();
        while self.slot() {
            let Some(who) = self.waiting.pop_front() else {
                break;
            };
            self.serving.push(who);
            told.push(who);
        }
        told
    }
}

fn concurrency(c: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(c)
}

proptest! {
    #[test]
    fn a_queue_does_what_its_model_does(c in 0..4_u32, w in 0..6_usize, ops in ops()) {
        let mut queue = Queue::new(concurrency(c), w);
        let mut model = Model { concurrency: concurrency(c).map(NonZeroU32::get), max_waiting: w, ..Model::default() };
        let mut admissions: BTreeMap<u32, Admission> = BTreeMap::new();
        let mut places: BTreeMap<u32, Place> = BTreeMap::new();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Enter => {
                    let who = next;
                    next += 1;
                    match queue.enter(who) {
                        Ok(Entered::Admitted(admission, back)) => {
                            prop_assert_eq!(back, who);
                            prop_assert!(!model.closed && model.waiting.is_empty() && model.slot());
                            model.serving.push(who);
                            admissions.insert(who, admission);
                        }
                        Ok(Entered::Waits(place)) => {
                            prop_assert!(!model.closed && model.waiting.len() < model.max_waiting);
                            prop_assert!(!model.slot());
                            model.waiting.push_back(who);
                            places.insert(who, place);
                        }
                        Err((Refusal::Full, back)) => {
                            prop_assert_eq!(back, who);
                            prop_assert!(!model.slot() && model.waiting.len() >= model.max_waiting);
                            model.end(who, "full");
                        }
                        Err((Refusal::Closed, _)) => {
                            prop_assert!(model.closed);
                            model.end(who, "closed");
                        }
                    }
                }
                Op::Finish(n) => {
                    if model.serving.is_empty() { continue }
                    let at = n % model.serving.len();
                    let who = model.serving.remove(at);
                    model.end(who, "served");
                    let told = queue.finish(admissions.remove(&who).unwrap());
                    let should = match model.slot() {
                        true => model.waiting.pop_front(),
                        false => None,
                    };
                    prop_assert_eq!(told.as_ref().map(|(_, who)| *who), should);
                    if let Some((admission, who)) = told {
                        model.serving.push(who);
                        admissions.insert(who, admission);
                    }
                }
                Op::Leave(n) => {
                    if next == 0 { continue }
                    let who = n as u32 % next;
                    let Some(place) = places.get(&who) else { continue };
                    let at = model.waiting.iter().position(|w| *w == who);
                    prop_assert_eq!(queue.leave(*place), at.map(|_| who));
                    if let Some(at) = at {
                        model.waiting.remove(at);
                        model.end(who, "left");
                    }
                }
                Op::Resize(c, w) => {
                    model.concurrency = concurrency(c).map(NonZeroU32::get);
                    model.max_waiting = w;
                    let told = queue.resize(concurrency(c), w);
                    let should = model.fill();
                    prop_assert_eq!(told.iter().map(|(_, who)| *who).collect::<Vec<_>>(), should);
                    admissions.extend(told.into_iter().map(|(a, who)| (who, a)));
                }
                Op::Close => {
                    model.closed = true;
                    let sent_away = queue.close();
                    let should: Vec<u32> = model.waiting.drain(..).collect();
                    prop_assert_eq!(&sent_away, &should);
                    for who in sent_away { model.end(who, "closed"); }
                }
            }
            prop_assert_eq!(queue.in_flight() as usize, model.serving.len());
            prop_assert_eq!(queue.waiting(), model.waiting.len());
        }
        // Each request that came has ended once, waits, or is served: none is lost.
        let there = model.waiting.len() + model.serving.len();
        prop_assert_eq!(model.ended.len() + there, next as usize);
    }

    #[test]
    fn never_more_than_the_concurrency_and_never_more_than_may_wait(
        c in 1..5_u32, w in 0..10_usize, steps in proptest::collection::vec(any::<bool>(), 1..300)
    ) {
        let mut queue = Queue::new(concurrency(c), w);
        let mut served = Vec::new();
        let mut next = 0_u32;
        let mut order = Vec::new();
        for enters in steps {
            if enters {
                if let Ok(Entered::Admitted(admission, who)) = queue.enter(next) {
                    served.push(admission);
                    order.push(who);
                }
                next += 1;
            } else if let Some(admission) = served.pop()
                && let Some((admission, who)) = queue.finish(admission)
            {
                served.push(admission);
                order.push(who);
            }
            prop_assert!(queue.in_flight() <= c && queue.waiting() <= w);
            prop_assert_eq!(queue.in_flight() as usize, served.len());
        }
        prop_assert!(order.is_sorted(), "{:?}", order);
    }
}

#[test]
fn who_waits_for_a_pod_goes_in_order_and_a_full_line_says_so() {
    let mut line = Line::new(2);
    let first = line.push('a').unwrap();
    line.push('b').unwrap();
    assert_eq!(line.push('c'), Err('c'));
    assert_eq!((line.leave(first), line.leave(first)), (Some('a'), None));
    line.push('d').unwrap();
    assert_eq!((line.pop(), line.drain()), (Some('b'), vec!['d']));
    assert!(line.is_empty());
}
