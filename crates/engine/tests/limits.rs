//! Limits of what waits.

use bytes::Bytes;
use engine::op::{Class, PutOp, Write};
use engine::{Engine, Error, Limits};

fn put(n: usize) -> Write {
    Write::Put(PutOp {
        key: Bytes::from(format!("k{n}")),
        value: Bytes::from(vec![0; 1000]),
        ..PutOp::default()
    })
}

#[test]
fn writes_that_no_batch_takes_hold_bounded_memory() {
    let mut engine = Engine::new(Limits {
        max_held_bytes: 10_000,
        ..Limits::default()
    });
    let refused = (0..100).filter(|&n| {
        let answer = engine.submit(put(n), Class::DURABLE, (), 0);
        answer.is_some_and(|(_, a)| a == Err(Error::TooManyRequests))
    });
    let refused = refused.count();
    assert!((88..=92).contains(&refused), "{refused}");
    // Once the journal takes them there is room again.
    let batch = engine.take_batch(0, usize::MAX).unwrap();
    assert!(engine.submit(put(1000), Class::DURABLE, (), 0).is_none());
    engine.complete(batch.ticket, 0, &mut Vec::new());
    assert_eq!(engine.keys(), 100 - refused);
}
