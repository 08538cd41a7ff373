//! Bodies on their way: nothing of them is kept but the frame that is under way.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use parking_lot::Mutex;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body whatever it is made of.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// An empty body.
pub(crate) fn empty() -> Body {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A short text.
pub(crate) fn text(text: String) -> Body {
    http_body_util::Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of hyper's.
pub(crate) fn incoming(body: Incoming) -> Body {
    body.map_err(Into::into).boxed_unsync()
}

/// Why a body was broken off by the router.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("no part of the request's body came for {0:?}")]
    Silent(Duration),
    #[error("the answer was not read for too long")]
    Unread,
    #[error("the request is sent elsewhere")]
    TakenBack,
}

/// A client's body that ends with an error when nothing of it comes for too long.
pub(crate) struct Paced {
    body: Body,
    patience: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Paced {
    pub(crate) fn around(body: Body, patience: Duration) -> Body {
        Self {
            body,
            patience,
            timer: None,
        }
        .boxed_unsync()
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame);
        }
        let patience = this.patience;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Broken::Silent(patience).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Given {
    body: Option<Body>,
    touched: bool,
    /// It ended in an error: its client's, not that of whom it was given to.
    broke: bool,
}

/// What is left of a body that was given away.
pub(crate) enum Back {
    /// None of it was read.
    Whole(Body),
    /// A part is gone.
    Gone,
    /// It broke off by itself.
    Broke,
}

/// A request's body that is given to an attempt, and can be taken back while none of it was read.
pub(crate) struct Loan(Arc<Mutex<Given>>);

impl Loan {
    /// Gives it away.
    pub(crate) fn of(body: Body) -> (Self, Body) {
        let given = Arc::new(Mutex::new(Given {
            body: Some(body),
            touched: false,
            broke: false,
        }));
        (Self(given.clone()), Lent(given).boxed_unsync())
    }

    /// Takes it back.
    pub(crate) fn back(self) -> Back {
        let mut given = self.0.lock();
        match (given.broke, given.touched) {
            (true, _) => Back::Broke,
            (false, true) => Back::Gone,
            (false, false) => given.body.take().map_or(Back::Gone, Back::Whole),
        }
    }
}

struct Lent(Arc<Mutex<Given>>);

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let given = &mut *self.0.lock();
        given.touched = true;
        match &mut given.body {
            Some(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                given.broke |= matches!(frame, Some(Err(_)));
                Poll::Ready(frame)
            }
            // Not an end: half a request must not look like a whole one.
            None => Poll::Ready(Some(Err(Broken::TakenBack.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .lock()
            .body
            .as_ref()
            .is_some_and(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let given = self.0.lock();
        given
            .body
            .as_ref()
            .map_or_else(SizeHint::default, |body| body.size_hint())
    }
}

/// Whatever an answer holds until its end: a place in a pod's queue, a count.
pub(crate) type Hold = Box<dyn std::any::Any + Send>;

struct Live {
    body: Body,
    _hold: Hold,
    /// When a part of it was given away, while the next was not asked for.
    given: Option<Instant>,
}

enum State {
    Live(Live),
    Ended,
    Unread,
}

type Shared = Arc<Mutex<State>>;

/// Answers on their way to clients. One that its client does not read is broken off, so that it
/// holds its pod no longer.
#[derive(Default)]
pub(crate) struct Answers {
    next: u64,
    live: HashMap<u64, Weak<Mutex<State>>>,
}

/// All of them.
pub(crate) type AllAnswers = Arc<Mutex<Answers>>;

/// An answer whose `hold` is dropped when its last part was given away.
pub(crate) fn answer(answers: &AllAnswers, body: Body, hold: Hold) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let live = Live {
        body,
        _hold: hold,
        given: Some(Instant::now()),
    };
    let shared = Arc::new(Mutex::new(State::Live(live)));
    let mut all = answers.lock();
    let id = all.next;
    all.next += 1;
    all.live.insert(id, Arc::downgrade(&shared));
    drop(all);
    Answer {
        id,
        shared,
        answers: answers.clone(),
    }
    .boxed_unsync()
}

/// Breaks off answers of which nothing was read for so long, and says how many.
pub(crate) fn sweep(answers: &AllAnswers, patience: Duration) -> usize {
    let all: Vec<Shared> = answers
        .lock()
        .live
        .values()
        .filter_map(Weak::upgrade)
        .collect();
    let mut broken = 0;
    for shared in all {
        let mut state = shared.lock();
        let is_old = |live: &Live| live.given.is_some_and(|at| at.elapsed() > patience);
        if matches!(&*state, State::Live(live) if is_old(live)) {
            let ended = std::mem::replace(&mut *state, State::Unread);
            drop(state);
            // What it holds goes now, whenever the connection notices.
            drop(ended);
            broken += 1;
        }
    }
    broken
}

struct Answer {
    id: u64,
    shared: Shared,
    answers: AllAnswers,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.answers.lock().live.remove(&self.id);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.shared.lock();
        let live = match &mut *state {
            State::Live(live) => live,
            State::Ended => return Poll::Ready(None),
            State::Unread => return Poll::Ready(Some(Err(Broken::Unread.into()))),
        };
        live.given = None;
        let frame = ready!(Pin::new(&mut live.body).poll_frame(cx));
        live.given = Some(Instant::now());
        let is_over = !matches!(frame, Some(Ok(_))) || live.body.is_end_stream();
        if is_over {
            let ended = std::mem::replace(&mut *state, State::Ended);
            drop(state);
            drop(ended);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &*self.shared.lock() {
            State::Live(live) => live.body.is_end_stream(),
            State::Ended => true,
            State::Unread => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.shared.lock() {
            State::Live(live) => live.body.size_hint(),
            State::Ended => SizeHint::with_exact(0),
            State::Unread => SizeHint::default(),
        }
    }
}
