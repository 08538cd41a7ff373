//! What may be shown while a keeper is counted, step by step. `crates/keeper/tests/counted.rs` has
//! the same with a real keeper, under seeds.

use copies::counted::{Act, Counted, Guards, Noted, Standing, WhenGone, may_be_uncounted};

fn start(when_gone: WhenGone, noted: Noted) -> Counted {
    Counted::start(when_gone, noted, Guards::default())
}

#[test]
fn with_wait_nothing_is_shown_that_is_not_on_the_keepers_disk() {
    let mut keeper = start(WhenGone::Wait, Noted::Never);
    assert!(!keeper.may_serve() && !keeper.may_show(1));
    assert_eq!(keeper.act(), None);
    keeper.joined(5);
    assert!(!keeper.may_serve() && !keeper.may_show(1));
    keeper.acked(5, 3, 3);
    assert!(keeper.may_serve() && keeper.may_show(3) && !keeper.may_show(4));
    // Noted first, told then, and once.
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Promised)));
    keeper.noted(Noted::Promised, 3);
    assert_eq!(keeper.act(), Some(Act::Promise { session: 5 }));
    keeper.promised(5);
    assert_eq!(keeper.act(), None);
    keeper.lost(5);
    assert_eq!(keeper.standing(), Standing::Awaited);
    assert!(keeper.may_serve() && !keeper.may_show(4) && keeper.act().is_none());
    keeper.joined(6);
    keeper.acked(5, 9, 3);
    assert!(!keeper.may_show(4), "an earlier connection");
    keeper.acked(6, 4, 3);
    assert!(keeper.may_show(4));
    assert_eq!(keeper.act(), Some(Act::Promise { session: 6 }));
}

#[test]
fn with_go_on_it_is_noted_before_the_server_goes_on_and_nothing_is_promised() {
    let mut keeper = start(WhenGone::GoOn, Noted::Never);
    assert!(!keeper.may_serve() && !keeper.may_show(1));
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Left)));
    keeper.noted(Noted::Left, 0);
    assert!(keeper.may_serve() && keeper.may_show(1) && keeper.act().is_none());
    keeper.joined(1);
    keeper.acked(1, 2, 3);
    assert_eq!(keeper.standing(), Standing::Left, "it has not everything");
    keeper.acked(1, 3, 3);
    assert!(!keeper.may_show(4), "from here on it counts");
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Counts)));
    keeper.noted(Noted::Counts, 3);
    assert_eq!(keeper.act(), None);
    keeper.lost(1);
    assert!(!keeper.may_show(4));
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Left)));
    // It is back before that is on disk: the note is made all the same, and then it counts.
    keeper.joined(2);
    keeper.acked(2, 3, 3);
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Left)));
    keeper.noted(Noted::Left, 3);
    assert_eq!(keeper.standing(), Standing::Counting);
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Counts)));
}

#[test]
fn a_promise_holds_until_the_keeper_has_heard_that_it_does_not() {
    assert!(!may_be_uncounted(Noted::Promised) && may_be_uncounted(Noted::Left));
    let mut keeper = start(WhenGone::GoOn, Noted::Promised);
    assert!(!keeper.may_serve() && keeper.act().is_none());
    keeper.joined(1);
    assert!(!keeper.may_serve() && keeper.act().is_none());
    keeper.acked(1, 0, 0);
    assert!(keeper.may_serve());
    assert_eq!(keeper.act(), Some(Act::Note(Noted::Counts)));
    assert_eq!(
        start(WhenGone::GoOn, Noted::Left).standing(),
        Standing::Left
    );
}

#[test]
fn one_that_owes_an_acknowledgement_for_too_long_is_gone() {
    for (when_gone, then) in [
        (WhenGone::Wait, Standing::Awaited),
        (WhenGone::GoOn, Standing::Leaving),
    ] {
        let mut keeper = start(when_gone, Noted::Promised);
        assert!(!keeper.owes(1, 0, 100), "it does not count");
        keeper.joined(1);
        keeper.acked(1, 4, 4);
        assert!(!keeper.owes(4, 1000, 100), "it owes nothing");
        assert!(!keeper.owes(5, 2000, 100) && !keeper.owes(6, 2100, 100));
        keeper.acked(1, 5, 4);
        assert!(!keeper.owes(6, 2101, 100) && !keeper.owes(6, 2201, 100));
        assert!(keeper.owes(6, 2202, 100));
        assert_eq!(keeper.standing(), then);
        keeper.acked(1, 6, 5);
        assert_eq!(keeper.standing(), then, "that connection is given up");
    }
}
