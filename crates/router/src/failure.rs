//! Why a request came to nothing, and what its client is told.

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use routing::Progress;

use crate::body::{self, Body};

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request is none that is served here.
    Malformed,
    /// Its body broke off, or nothing of it came for too long.
    Body,
    /// No service is called so.
    NoService,
    /// As many requests are under way as may.
    Overload,
    /// As many wait for a pod of the service as may.
    WaitingFull,
    /// As many wait for this pod as may.
    QueueFull,
    /// The pod is not there, or not any more.
    NoPod,
    /// There was no connection to the router of the pod's node.
    NoPeer,
    /// There was no connection to the pod.
    Connect,
    /// The connection broke before the answer began.
    Broken,
    /// The request's time was over.
    Timeout,
}

impl Kind {
    /// All of them, as series have them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Body,
        Self::NoService,
        Self::Overload,
        Self::WaitingFull,
        Self::QueueFull,
        Self::NoPod,
        Self::NoPeer,
        Self::Connect,
        Self::Broken,
        Self::Timeout,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Body => "body",
            Self::NoService => "no_service",
            Self::Overload => "overload",
            Self::WaitingFull => "waiting_full",
            Self::QueueFull => "queue_full",
            Self::NoPod => "no_pod",
            Self::NoPeer => "no_peer",
            Self::Connect => "connect",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Body => StatusCode::REQUEST_TIMEOUT,
            Self::NoService => StatusCode::NOT_FOUND,
            Self::Connect | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Overload | Self::WaitingFull | Self::QueueFull | Self::NoPod | Self::NoPeer => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Malformed => "the request cannot be served",
            Self::Body => "the request's body did not come",
            Self::NoService => "no service is called so here",
            Self::Overload => "too many requests are under way",
            Self::WaitingFull => "no pod is ready, and too many requests wait for one",
            Self::QueueFull => "too many requests wait for the pod",
            Self::NoPod => "the pod is not there any more",
            Self::NoPeer => "the router of the pod's node cannot be reached",
            Self::Connect => "the pod cannot be reached",
            Self::Broken => "the connection to the pod broke before its answer",
            Self::Timeout => "no answer came in time",
        }
    }
}

/// A request that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) progress: Progress,
}

impl Failure {
    pub(crate) fn not_sent(kind: Kind) -> Self {
        Self {
            kind,
            progress: Progress::NotSent,
        }
    }

    pub(crate) fn sent(kind: Kind) -> Self {
        Self {
            kind,
            progress: Progress::Sent,
        }
    }

    /// As it stands in a header between routers.
    pub(crate) fn value(self) -> HeaderValue {
        let how = match self.progress {
            Progress::NotSent => "not-sent",
            Progress::Sent => "sent",
        };
        HeaderValue::try_from(format!("{} {how}", self.kind.name()))
            .unwrap_or(HeaderValue::from_static("broken sent"))
    }

    /// Read from one. What is not understood may have been sent.
    pub(crate) fn read(value: &HeaderValue) -> Self {
        let parsed = value.to_str().ok().and_then(|text| text.split_once(' '));
        let kind = parsed.and_then(|(kind, _)| Kind::of_name(kind));
        match (kind, parsed) {
            (Some(kind), Some((_, "not-sent"))) => Self::not_sent(kind),
            (kind, _) => Self::sent(kind.unwrap_or(Kind::Broken)),
        }
    }

    /// What the client is told.
    pub(crate) fn answer(self) -> Response<Body> {
        answer(self.kind, self.kind.text())
    }
}

/// The same in other words.
pub(crate) fn answer(kind: Kind, text: &str) -> Response<Body> {
    let mut answer = Response::new(body::text(format!("orlop router: {text}\n")));
    *answer.status_mut() = kind.status();
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if kind.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_read_as_it_was_written_and_else_as_sent() {
        for kind in Kind::ALL {
            for failure in [Failure::sent(kind), Failure::not_sent(kind)] {
                assert_eq!(Failure::read(&failure.value()), failure);
            }
        }
        for odd in ["", "broken", "unheard not-sent", "broken maybe"] {
            let read = Failure::read(&HeaderValue::from_static(odd));
            assert_eq!(read.progress, Progress::Sent, "{odd}");
        }
    }
}
