//! Events at Seikas: what moves, and what is wrong with one, for `kubectl describe`.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::objects;
use crate::run::MANAGER;
use crate::state::MoveText;

/// Events of a round at most; the log has all.
const A_ROUND: usize = 20;
/// How long a round waits for them.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something to be told about a Seika.
#[derive(Clone, Debug)]
pub(crate) struct News {
    /// `namespace/name`.
    pub(crate) key: String,
    pub(crate) uid: String,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Moved(MoveText),
    /// Why nothing is decided about it.
    Held(String),
}

/// Who tells.
pub(crate) struct Teller(Recorder);

impl Teller {
    pub(crate) fn new(client: Client, identity: String) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: Some(identity),
        };
        Self(Recorder::new(client, reporter))
    }

    /// Tells; what cannot be told is not worth more than a line.
    pub(crate) async fn tell(&self, news: Vec<News>) {
        let all = async {
            for news in news.into_iter().take(A_ROUND) {
                let told = self.0.publish(&event(&news.what), &object(&news)).await;
                if let Err(error) = told {
                    tracing::debug!(service = news.key, error = %error, "an event is not published");
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("events took too long");
        }
    }
}

fn object(news: &News) -> ObjectReference {
    let kind = objects::seika_kind();
    let (namespace, name) = news.key.split_once('/').unwrap_or_default();
    ObjectReference {
        api_version: Some(kind.api_version),
        kind: Some(kind.kind),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(news.uid.clone()),
        ..ObjectReference::default()
    }
}

fn event(what: &What) -> Event {
    let (type_, reason, note) = match what {
        What::Moved(m) => {
            let (reason, sign) = match m.add {
                true => ("PodWanted", '+'),
                false => ("PodNotWanted", '-'),
            };
            let note = format!("{sign}1 on {}: {}", m.node, m.why);
            (EventType::Normal, reason, note)
        }
        What::Held(why) => (EventType::Warning, "NotPlaced", why.clone()),
    };
    Event {
        type_,
        reason: reason.to_owned(),
        // An event's note has at most 1 kB.
        note: Some(note.chars().take(900).collect()),
        action: "Place".to_owned(),
        secondary: None,
    }
}
