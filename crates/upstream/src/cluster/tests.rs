//! One test for each thing that the state machine guards against.

use super::*;

const S: Duration = Duration::from_secs(1);
const CLUSTER: u64 = 0xc;

fn url(n: u64) -> Endpoint {
    format!("https://m{n}:2379").parse().unwrap()
}

/// What a member of the right cluster says.
fn says(member_id: u64, term: u64, follows: u64) -> Answer {
    Answer {
        cluster_id: CLUSTER,
        member_id,
        term,
        follows: (follows != 0).then_some(follows),
        ..Answer::default()
    }
}

fn listed(n: u64) -> Listed {
    Listed {
        member_id: n,
        name: format!("m{n}"),
        advertised: vec![url(n)],
        learner: false,
    }
}

/// A cluster and its clock. Member n is given as m`n`.
struct Told {
    cluster: Cluster,
    now: Instant,
}

impl Told {
    /// `n` members are given, and not listed.
    fn given(n: u64) -> Self {
        let now = Instant::now();
        let given = (1..=n).map(url).collect();
        Told {
            cluster: Cluster::new(given, Timing::default(), now),
            now,
        }
    }

    /// `n` members are given and listed.
    fn listed(n: u64) -> Self {
        let mut told = Self::given(n);
        told.list((1..=n).map(listed).collect());
        told
    }

    fn list(&mut self, members: Vec<Listed>) {
        let (at, now) = (self.now, self.now);
        self.cluster.listed(members, Agreed::Majority, at, now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.cluster.tick(self.now);
    }

    fn at(&mut self, endpoint: &Endpoint, outcome: Result<Answer, Failure>) {
        let trip = Some(Duration::from_millis(1));
        self.cluster
            .report(endpoint, self.now, outcome, trip, self.now);
    }

    /// A member says this at its own address.
    fn say(&mut self, answer: Answer) {
        self.at(&url(answer.member_id), Ok(answer));
    }

    fn silent(&mut self, n: u64) {
        self.at(&url(n), Err(Failure::Silent));
    }

    fn refused(&mut self, n: u64) {
        let why = "connection refused".to_owned();
        self.at(&url(n), Err(Failure::Unreachable(why)));
    }

    fn leader(&self) -> Option<u64> {
        self.cluster.view().leader.map(|leader| leader.member_id)
    }

    fn member(&self, n: u64) -> MemberView {
        let view = self.cluster.view();
        let mut members = view.members.into_iter();
        members.find(|m| m.member_id == Some(n)).unwrap()
    }

    /// All of three follow member 1 in term 5.
    fn led() -> Self {
        let mut told = Self::listed(3);
        for n in 1..=3 {
            told.say(says(n, 5, 1));
        }
        assert_eq!(told.leader(), Some(1));
        told.cluster.take_ask();
        told
    }
}

#[test]
fn the_leader_is_known_by_its_own_word_or_a_peers() {
    let mut told = Told::given(3);
    assert_eq!(told.leader(), None);
    assert_eq!(told.cluster.view().members.len(), 3);
    told.say(says(2, 5, 2));
    let view = told.cluster.view();
    assert_eq!(view.cluster_id, Some(CLUSTER));
    let leader = view.leader.unwrap();
    assert_eq!((leader.member_id, leader.term), (2, 5));
    assert_eq!(leader.endpoint, url(2));

    // A follower names one of whom nothing is known but that it is listed: it has not answered
    // yet, so where it is reached is not known.
    let mut told = Told::listed(3);
    told.say(says(1, 5, 2));
    assert_eq!(told.leader(), None);
    told.say(says(2, 4, 0));
    assert_eq!(told.leader(), Some(2), "what it said is of before");
}

#[test]
fn of_two_that_claim_to_lead_the_higher_term_wins() {
    let mut told = Told::led();
    told.say(says(2, 6, 2));
    assert_eq!(told.leader(), Some(2));
    // Member 1 is cut off from the others, and does not know yet.
    told.say(says(1, 5, 1));
    assert_eq!(told.leader(), Some(2));
    assert_eq!(told.cluster.view().changes, 1);
}

#[test]
fn nobody_leads_in_a_lower_term_again() {
    let mut told = Told::led();
    told.say(says(2, 6, 2));
    // The new leader is gone; the old one, cut off, still claims, and nobody denies it.
    told.refused(2);
    told.refused(3);
    told.pass(4 * S);
    told.say(says(1, 5, 1));
    assert_eq!(told.leader(), None);
    // Member 3 is back, and in a later term: the lower one is over for good.
    for _ in 0..40 {
        told.pass(S);
        told.say(says(1, 5, 1));
        told.say(says(3, 9, 0));
        assert_eq!(told.leader(), None);
    }
    // Without a word of that it is not for ever: a cluster may have been restored from a copy.
    for _ in 0..40 {
        told.pass(S);
        told.say(says(1, 5, 1));
    }
    assert_eq!(told.leader(), Some(1));
}

#[test]
fn a_claim_expires() {
    let mut told = Told::led();
    told.pass(3 * S);
    assert_eq!(told.leader(), Some(1));
    told.pass(S);
    assert_eq!(told.leader(), None);
}

#[test]
fn a_leader_that_says_it_leads_no_more_does_not_whatever_its_peers_say() {
    for word in [says(1, 5, 0), says(1, 6, 0)] {
        let mut told = Told::led();
        told.say(word);
        assert_eq!(told.leader(), None);
    }
}

#[test]
fn a_leader_without_a_majority_does_not_lead() {
    let mut told = Told::led();
    told.say(says(2, 5, 0));
    assert_eq!(told.leader(), Some(1), "one may be cut off");
    told.say(says(3, 5, 0));
    assert_eq!(told.leader(), None, "then it is the leader that is");
    // It goes on to claim, and is not believed.
    told.say(says(1, 5, 1));
    assert_eq!(told.leader(), None);
    // Peers that cannot be asked deny nothing.
    let mut told = Told::led();
    told.refused(2);
    told.refused(3);
    told.pass(2 * S);
    told.say(says(1, 5, 1));
    told.pass(2 * S);
    assert_eq!(told.leader(), Some(1));
}

#[test]
fn a_peer_that_speaks_of_an_earlier_term_denies_nothing() {
    let mut told = Told::listed(3);
    told.say(says(2, 4, 0));
    told.say(says(3, 4, 0));
    told.say(says(1, 5, 1));
    assert_eq!(told.leader(), Some(1));
    // One that campaigns alone has a high term and no followers.
    told.say(says(3, 90, 0));
    assert_eq!(told.leader(), Some(1));
}

#[test]
fn a_learner_neither_leads_nor_denies() {
    let mut told = Told::given(3);
    let members = [1, 2, 3].map(|n| Listed {
        learner: n != 1,
        ..listed(n)
    });
    told.list(members.to_vec());
    let listed_again = members.to_vec();
    let learner = |n, follows| Answer {
        learner: true,
        ..says(n, 5, follows)
    };
    told.say(says(1, 5, 1));
    told.say(learner(2, 0));
    told.say(learner(3, 3));
    assert_eq!(told.leader(), Some(1));
    assert!(told.member(3).learner && !told.member(1).learner);
    told.list(listed_again);
    // It leads once it votes; that it does is asked for at once, whoever tells.
    let mut by_peer = Told {
        cluster: told.cluster.clone(),
        now: told.now,
    };
    assert_eq!(told.cluster.list_from(told.now + S), None);
    by_peer.say(says(1, 6, 3));
    assert!(by_peer.cluster.list_from(told.now + S).is_some());
    told.say(says(3, 6, 3));
    assert_eq!(told.leader(), None, "not before it is listed so");
    assert!(told.cluster.list_from(told.now + S).is_some());
    told.list((1..=3).map(listed).collect());
    assert_eq!(told.leader(), Some(3));
}

#[test]
fn another_cluster_has_no_say_until_this_one_is_gone_for_long() {
    let mut told = Told::led();
    let foreign = Answer {
        cluster_id: 0xd,
        ..says(9, 70, 9)
    };
    told.at(&url(3), Ok(foreign.clone()));
    assert_eq!(told.leader(), Some(1));
    let view = told.cluster.view();
    let third = view.at(&url(3)).unwrap();
    let Health::Unhealthy { why, .. } = &third.health else {
        panic!("{third:?}");
    };
    assert!(why.contains("cluster d"), "{why}");
    // All were restored as a new cluster.
    told.pass(31 * S);
    told.at(&url(3), Ok(foreign));
    let view = told.cluster.view();
    assert_eq!(view.cluster_id, Some(0xd));
    assert_eq!(
        view.leader.map(|l| (l.member_id, l.endpoint)),
        Some((9, url(3)))
    );
}

#[test]
fn a_removed_member_has_no_say() {
    let mut told = Told::led();
    told.list(vec![listed(1), listed(2)]);
    told.say(says(3, 8, 3));
    assert_eq!(told.leader(), Some(1));
    let Health::Unhealthy { why, .. } = told.member(3).health else {
        panic!("it is healthy");
    };
    assert!(why.contains("no member"), "{why}");
    // It does not count for a majority either.
    told.say(says(3, 5, 0));
    assert_eq!(told.leader(), Some(1));
}

#[test]
fn a_leader_that_does_not_answer_is_not_named() {
    let mut told = Told::led();
    told.refused(1);
    assert_eq!(told.leader(), None, "its peers still follow it");
    told.say(says(1, 5, 1));
    assert_eq!(told.leader(), Some(1));
    told.silent(1);
    assert_eq!(told.leader(), Some(1), "one pause is none");
    told.silent(1);
    assert_eq!(told.leader(), None);
    // The same one again is no change.
    told.say(says(1, 5, 1));
    assert_eq!(told.cluster.view().changes, 0);
}

#[test]
fn what_a_member_said_before_it_said_more_is_left_out() {
    let mut told = Told::led();
    told.say(says(1, 6, 0));
    told.say(says(2, 6, 0));
    told.say(says(1, 5, 1));
    assert_eq!(told.member(1).term, 6);
    // After a while it is another life of that member.
    told.pass(4 * S);
    told.say(says(1, 5, 1));
    assert_eq!(told.member(1).term, 5);
}

#[test]
fn given_endpoints_go_on_where_the_advertised_are_unreachable() {
    let inner = |n: u64| -> Endpoint { format!("https://10.0.0.{n}:2379").parse().unwrap() };
    let mut told = Told::given(2);
    let members = (1..=3).map(|n| Listed {
        advertised: vec![inner(n)],
        ..listed(n)
    });
    told.list(members.collect());
    assert_eq!(told.cluster.to_ask().len(), 5);
    told.say(says(1, 5, 1));
    told.say(says(2, 5, 1));
    let leader = told.cluster.view().leader.unwrap();
    assert_eq!(leader.endpoint, url(1));
    // What is reached is not asked twice; of the third only the advertised one is known.
    assert_eq!(told.cluster.to_ask(), [url(1), url(2), inner(3)]);
    assert_eq!(told.member(3).endpoint, inner(3));
    told.at(&inner(3), Ok(says(3, 6, 3)));
    let leader = told.cluster.view().leader.unwrap();
    assert_eq!((leader.member_id, leader.endpoint), (3, inner(3)));
    // A given one that is lost is gone around by the advertised one.
    told.refused(1);
    assert!(told.cluster.to_ask().contains(&inner(1)));
    told.at(&inner(1), Ok(says(1, 6, 3)));
    assert_eq!(told.member(1).endpoint, inner(1));
    assert_eq!(told.cluster.view().members.len(), 3);
}

#[test]
fn an_advertised_address_is_a_members_only_if_it_answers_there() {
    // All advertise localhost, where somebody else listens.
    let local: Endpoint = "https://localhost:2379".parse().unwrap();
    let mut told = Told::given(1);
    let members = (1..=3).map(|n| Listed {
        advertised: vec![local.clone()],
        ..listed(n)
    });
    told.list(members.collect());
    told.at(&local, Ok(says(1, 5, 2)));
    told.say(says(1, 5, 2));
    assert_eq!(told.leader(), None);
    let Health::Unhealthy { why, .. } = told.member(2).health else {
        panic!("it is healthy");
    };
    assert!(why.contains("member 1 answers there"), "{why}");
}

#[test]
fn an_address_of_several_members_is_the_last_choice() {
    let shared: Endpoint = "https://all:2379".parse().unwrap();
    let now = Instant::now();
    let mut told = Told {
        cluster: Cluster::new(vec![shared.clone()], Timing::default(), now),
        now,
    };
    told.at(&shared, Ok(says(2, 5, 1)));
    told.list((1..=3).map(listed).collect());
    told.at(&shared, Ok(says(1, 5, 1)));
    assert_eq!(told.cluster.view().leader.unwrap().endpoint, shared);
    told.say(says(1, 5, 1));
    assert_eq!(told.cluster.view().leader.unwrap().endpoint, url(1));
    // When the other is no member any more, the address is one member's.
    told.list(vec![listed(1), listed(3)]);
    assert_eq!(told.cluster.view().leader.unwrap().endpoint, shared);
}

#[test]
fn what_was_to_go_over_tls_never_goes_without() {
    let plain: Endpoint = "http://m2:2379".parse().unwrap();
    let mut told = Told::given(1);
    let mut second = listed(2);
    second.advertised.insert(0, plain.clone());
    told.list(vec![listed(1), second]);
    assert_eq!(told.cluster.to_ask(), [url(1), url(2)]);
}

#[test]
fn what_one_member_lists_does_not_replace_what_a_majority_has_agreed_on() {
    let mut told = Told::given(1);
    let (at, now) = (told.now, told.now);
    let one = |told: &mut Told, n| {
        let members = (1..=n).map(listed).collect();
        told.cluster.listed(members, Agreed::OneMember, at, now);
    };
    one(&mut told, 2);
    assert_eq!(told.cluster.to_ask().len(), 2);
    told.list((1..=3).map(listed).collect());
    one(&mut told, 2);
    assert_eq!(told.cluster.to_ask().len(), 3);
    told.list(Vec::new());
    assert_eq!(told.cluster.to_ask().len(), 3, "an empty list is none");
}

#[test]
fn everybody_is_asked_when_somebody_says_something_new() {
    let mut told = Told::led();
    told.say(says(2, 5, 1));
    assert!(!told.cluster.take_ask(), "nothing is new");
    told.say(says(2, 6, 0));
    assert!(told.cluster.take_ask());
    assert!(!told.cluster.take_ask(), "it is said once");
    told.say(says(2, 6, 0));
    assert!(!told.cluster.take_ask(), "it is no news any more");
    told.refused(3);
    assert!(
        !told.cluster.take_ask(),
        "a follower's loss changes nothing"
    );
    told.refused(1);
    assert!(told.cluster.take_ask());
    for (hint, asks) in [
        (Hint::Suspect, true),
        (Hint::Term(5), false),
        (Hint::Term(6), true),
    ] {
        told.cluster.hint(&hint);
        assert_eq!(told.cluster.take_ask(), asks, "{hint:?}");
    }
}

#[test]
fn a_lost_leader_is_looked_for_quickly_and_not_for_ever() {
    let mut told = Told::led();
    assert_eq!(told.cluster.pace(told.now), S);
    told.refused(1);
    assert_eq!(told.cluster.pace(told.now), S / 8);
    told.pass(31 * S);
    assert_eq!(told.cluster.pace(told.now), S);
    told.say(says(1, 5, 1));
    told.say(says(1, 6, 0));
    assert_eq!(told.cluster.pace(told.now), S / 8);
}

#[test]
fn the_list_is_asked_for_at_intervals_and_when_somebody_unknown_is_named() {
    let mut told = Told::given(2);
    assert_eq!(told.cluster.list_from(told.now), None, "nobody answers");
    told.say(says(2, 5, 1));
    let from = told.cluster.list_from(told.now);
    assert_eq!(from, Some((url(2), Agreed::OneMember)));
    told.cluster.not_listed(told.now);
    assert_eq!(told.cluster.list_from(told.now), None);
    told.list(vec![listed(1), listed(2)]);
    told.say(says(1, 5, 1));
    told.say(says(2, 5, 1));
    assert_eq!(told.cluster.list_from(told.now + 29 * S), None);
    let later = told.now + 30 * S;
    let from = told.cluster.list_from(later);
    assert_eq!(from, Some((url(1), Agreed::Majority)));
    // Member 3 was added, and leads.
    told.say(says(2, 6, 3));
    told.now += S;
    let from = told.cluster.list_from(told.now);
    assert_eq!(from.map(|(_, agreed)| agreed), Some(Agreed::Majority));
    told.list((1..=3).map(listed).collect());
    told.say(says(2, 6, 3));
    told.say(says(3, 6, 3));
    assert_eq!(told.leader(), Some(3));
    assert_eq!(told.cluster.list_from(told.now), None);
}

#[test]
fn a_member_that_is_cut_off_does_not_hide_who_was_added() {
    let mut told = Told::led();
    // Member 1 goes on to claim; that it can commit nothing is known before who can.
    told.say(says(2, 7, 4));
    assert_eq!(told.leader(), None);
    told.say(says(3, 7, 4));
    told.say(says(1, 6, 1));
    assert_eq!(told.leader(), None);
    for wanted in [2, 3, 1, 2] {
        told.now += S;
        let from = told.cluster.list_from(told.now);
        assert_eq!(from, Some((url(wanted), Agreed::Majority)));
        told.cluster.not_listed(told.now);
    }
}

#[test]
fn members_that_have_not_started_have_no_address_and_count() {
    let mut told = Told::given(2);
    let added = Listed {
        name: String::new(),
        advertised: Vec::new(),
        ..listed(3)
    };
    told.list(vec![listed(1), listed(2), added]);
    told.say(says(1, 5, 1));
    told.say(says(2, 5, 0));
    assert_eq!(told.leader(), Some(1), "two of three may follow it");
    assert_eq!(told.cluster.view().members.len(), 2);
}

#[test]
fn lists_are_bounded() {
    let mut told = Told::given(1);
    let many = (1..=1000).map(|n| Listed {
        advertised: (0..100).map(|k| url(n * 1000 + k)).collect(),
        ..listed(n)
    });
    told.list(many.collect());
    assert_eq!(told.cluster.to_ask().len(), MAX_ADDRESSES);
}
