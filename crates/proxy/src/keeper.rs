//! Makes routes of views, and tells the operator what changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use upstream::View;

use crate::book::Book;
use crate::route::{Route, Service, why_nobody_leads};

/// Longer than a handover takes beyond its limit.
const HANDOVER_SLACK: Duration = Duration::from_millis(500);

/// Runs until the views end.
pub(crate) async fn keep(
    mut views: watch::Receiver<Arc<View>>,
    mut service: watch::Receiver<Service>,
    routes: watch::Sender<Arc<Route>>,
    book: Arc<Book>,
    handover_limit: Duration,
) {
    let mut told = None;
    loop {
        let view = views.borrow_and_update().clone();
        let route = Route::of(&view, *service.borrow_and_update());
        tell(&mut told, &view, &book, handover_limit);
        routes.send_if_modified(|known| {
            let changes = !known.says_as(&route);
            if changes {
                *known = Arc::new(route);
            }
            changes
        });
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = service.changed() => if changed.is_err() { return },
        }
    }
}

/// What the last line said: a leader and its term, or that there is none.
type Told = Option<Option<(String, u64)>>;

fn tell(told: &mut Told, view: &View, book: &Arc<Book>, handover_limit: Duration) {
    let leader = view.leader.as_ref();
    let now = leader.map(|leader| (leader.endpoint.to_string(), leader.term));
    if told.as_ref() == Some(&now) {
        return;
    }
    let before = told.replace(now).flatten();
    let (accepted, waiting) = book.numbers();
    match (leader, before) {
        (Some(leader), Some((from, _))) if from != leader.endpoint.to_string() => {
            tracing::info!(
                %from, to = %leader.endpoint, term = leader.term,
                connections = accepted as u64,
                "the leader has changed; connections to the old one are handed over"
            );
            tokio::spawn(tell_of_handover(Arc::clone(book), from, handover_limit));
        }
        (Some(leader), Some(_)) => {
            tracing::info!(
                leader = %leader.endpoint, term = leader.term,
                "the leader was elected again"
            );
        }
        (Some(leader), None) => tracing::info!(
            leader = %leader.endpoint, term = leader.term, waiting = waiting as u64,
            "the leader is known"
        ),
        (None, Some((from, _))) => tracing::warn!(
            %from, members = %why_nobody_leads(view),
            "nobody leads any more; new connections wait"
        ),
        (None, None) => tracing::warn!(
            members = %why_nobody_leads(view),
            "no leader is known; new connections wait"
        ),
    }
}

/// Says how a handover went, when it is over.
async fn tell_of_handover(book: Arc<Book>, from: String, limit: Duration) {
    use metrics::ProxyEnd::{Gap, Limit, MemberFailed, MemberLost};
    let read = || {
        let count = |end| book.metrics.ended(end).get();
        [
            count(Gap),
            count(Limit),
            count(MemberLost),
            count(MemberFailed),
        ]
    };
    let before = read();
    let end = Instant::now() + limit + HANDOVER_SLACK;
    let left = loop {
        let members = book.members();
        let mut at = members
            .iter()
            .filter(|(member, _)| member.to_string() == from);
        let left = at.next().map_or(0, |(_, (open, _))| *open);
        if left == 0 || Instant::now() >= end {
            break left;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let after = read();
    let [gap, at_limit, lost, failed] = std::array::from_fn(|n| after[n] - before[n]);
    tracing::info!(
        %from, "in-a-gap" = gap, "at-the-limit" = at_limit, "member-lost" = lost,
        "member-failed" = failed, left = left as u64,
        "connections handed over to the new leader"
    );
}
