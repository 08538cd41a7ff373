use super::*;
use crate::facts::{Owner, Phase};

fn pod(name: &str, uid: &str) -> Pod {
    Pod {
        name: name.into(),
        uid: uid.into(),
        labels: BTreeMap::new(),
        owner: Some(Owner {
            uid: "s".into(),
            is_seika: true,
        }),
        node: Some("n".into()),
        phase: Phase::Starting,
        is_ending: false,
        failures: 0,
    }
}

fn listed(pods: Vec<Pod>) -> Index {
    let mut index = Index::default();
    list(&mut index, pods, 0);
    index
}

fn list(index: &mut Index, pods: Vec<Pod>, at_ms: u64) {
    index.begin_pods(at_ms);
    for pod in pods {
        index.list_pod("ns".into(), pod);
    }
    index.end_pods(at_ms);
}

fn view(index: &mut Index, now_ms: u64) -> Vec<(String, bool)> {
    let pods = index.look("s", "ns", true, [], now_ms);
    let mut seen: Vec<_> = pods
        .pods
        .values()
        .flatten()
        .map(|p| (p.uid.clone(), p.is_ending))
        .collect();
    seen.sort();
    seen
}

#[test]
fn a_created_pod_counts_until_it_is_seen_and_once() {
    let mut index = listed(vec![]);
    index.created("ns", pod("a", "1"), 5);
    assert_eq!(view(&mut index, 6), [("1".into(), false)]);
    index.apply_pod("ns", pod("a", "1"), 7);
    assert_eq!(view(&mut index, 8), [("1".into(), false)]);
    index.remove_pod("ns", "a", "1");
    assert_eq!(view(&mut index, 9), []);
}

#[test]
fn a_pod_that_is_seen_before_its_creation_is_answered_counts_once() {
    let mut index = listed(vec![]);
    index.apply_pod("ns", pod("a", "1"), 1);
    index.created("ns", pod("a", "1"), 2);
    assert_eq!(view(&mut index, 3), [("1".into(), false)]);
}

#[test]
fn a_pod_whose_whole_life_was_shown_before_its_creation_is_answered_does_not_count() {
    let mut index = listed(vec![]);
    index.apply_pod("ns", pod("a", "1"), 1);
    index.remove_pod("ns", "a", "1");
    index.created("ns", pod("a", "1"), 2);
    assert_eq!(view(&mut index, 3), []);
}

#[test]
fn a_deleted_pod_ends_until_that_is_seen() {
    let mut index = listed(vec![pod("a", "1")]);
    index.deleted("s", Some("n"), "1", 5);
    assert_eq!(view(&mut index, 6), [("1".into(), true)]);
    // An older state of it is shown meanwhile.
    let ready = Pod {
        phase: Phase::Ready,
        ..pod("a", "1")
    };
    index.apply_pod("ns", ready, 7);
    assert_eq!(view(&mut index, 8), [("1".into(), true)]);
    index.remove_pod("ns", "a", "1");
    assert_eq!(view(&mut index, 9), []);
}

#[test]
fn a_deletion_without_an_answer_is_called_again_and_stands_for_itself() {
    let mut index = listed(vec![pod("a", "1")]);
    index.deleted("s", Some("n"), "1", 5);
    assert!(!index.is_deletion_open("1"));
    index.deletion_is_open("1");
    assert!(index.is_deletion_open("1"));
    assert_eq!(view(&mut index, 6), [("1".into(), true)]);
    index.not_deleted("1");
    assert_eq!(view(&mut index, 6), [("1".into(), false)]);
}

#[test]
fn a_list_that_began_later_settles_what_was_done_before() {
    let mut index = listed(vec![pod("old", "0")]);
    index.created("ns", pod("a", "1"), 5);
    index.deleted("s", Some("n"), "0", 5);
    // It began before: it may not have them yet.
    list(&mut index, vec![pod("old", "0")], 4);
    assert_eq!(
        view(&mut index, 6),
        [("0".into(), true), ("1".into(), false)]
    );
    // The created one was deleted in a gap of the watch; the deletion was undone by nobody, but
    // a list of after it has the pod.
    list(&mut index, vec![pod("old", "0")], 6);
    assert_eq!(view(&mut index, 7), [("0".into(), false)]);
}

#[test]
fn what_nothing_is_seen_of_counts_for_five_minutes() {
    let mut index = listed(vec![]);
    index.created("ns", pod("a", "1"), 5);
    assert_eq!(view(&mut index, 5 + UNSEEN_MAX_MS - 1).len(), 1);
    // It is looked for so often.
    assert_eq!(view(&mut index, 5 + UNSEEN_MAX_MS + EXPIRE_MS).len(), 0);
}

#[test]
fn a_successor_of_the_same_name_is_not_removed_with_its_predecessor() {
    let mut index = listed(vec![pod("a", "1")]);
    index.apply_pod("ns", pod("a", "2"), 1);
    index.remove_pod("ns", "a", "1");
    assert_eq!(view(&mut index, 2), [("2".into(), false)]);
}

#[test]
fn a_change_concerns_who_owned_it_and_who_owns_it() {
    let mut index = listed(vec![pod("a", "1")]);
    let same = index.apply_pod("ns", pod("a", "1"), 1);
    assert_eq!(same, Concerned::default());
    let mut orphan = pod("a", "1");
    orphan.owner = None;
    let concerned = index.apply_pod("ns", orphan, 2);
    assert!(concerned.owners.contains("s") && concerned.orphan.is_some());
    assert_eq!(view(&mut index, 3), []);
    assert_eq!(index.orphans("ns").count(), 1);
}

#[test]
fn the_time_of_an_end_is_when_it_was_first_known() {
    let ended = Pod {
        phase: Phase::Ended { ran_long: false },
        ..pod("a", "1")
    };
    let mut index = listed(vec![]);
    index.apply_pod("ns", ended.clone(), 10);
    list(&mut index, vec![ended], 50);
    assert_eq!(index.ended_for_ms("1", 60), 50);
    assert_eq!(index.ended_for_ms("unknown", 60), 0);
}
