//! A unary call, from its headers to its answer: the hot path.
//!
//! Written as a state machine by hand: the compiler's for an `async fn` is six times as large, and
//! every request's future is moved several times on its way into its task.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::grpc::{Code, Frame, PREFIX_BYTES, Status, TooLarge};
use crate::handler::{Call, Event, Handler, LocalFuture, Reply};
use crate::memory::{OpenCall, Room};
use crate::message::{Assembler, Parked};
use crate::service::{Connection, Observed, grpc_response, trailers_only};
use crate::stream::Body;
use crate::turn;

pub(crate) struct Unary<H: Handler> {
    connection: Rc<Connection<H>>,
    _open: OpenCall,
    observed: Observed<H>,
    stage: Stage,
    deadline: Option<Instant>,
    /// Made only if the call has to wait.
    timer: Option<Pin<Box<Sleep>>>,
}

enum Stage {
    /// The request's message is not complete.
    Reading(Call, Assembler, Incoming),
    /// The client has too much unread to be given more.
    Ready(Call, Parked, Room),
    /// The handler's answer is not ready.
    Waiting(LocalFuture<Result<Frame, Status>>),
    Done,
}

impl<H: Handler> Unary<H> {
    pub(crate) fn new(
        connection: &Rc<Connection<H>>,
        call: Call,
        open: OpenCall,
        assembler: Assembler,
        body: Incoming,
        observed: Observed<H>,
    ) -> Self {
        Unary {
            connection: Rc::clone(connection),
            _open: open,
            observed,
            deadline: call.deadline,
            stage: Stage::Reading(call, assembler, body),
            timer: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let answer = self.poll_answer(cx);
        turn::ended(|| turn::Who::call(self.observed.method(), &self.connection.peer));
        answer
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let result = match self.advance(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(ready!(self.poll_timer(cx))),
        };
        let result = result.and_then(|frame| frame.into_bytes().map_err(TooLarge::of_unary));
        Poll::Ready(match result {
            Ok(bytes) => {
                self.observed.tell(Event::Sent {
                    bytes: bytes.len() - PREFIX_BYTES,
                });
                self.observed.end(Code::Ok);
                let answer = self.connection.memory.answer(bytes);
                grpc_response(Body::Unary(answer, false))
            }
            Err(status) => {
                self.observed.end(status.code);
                trailers_only(&status)
            }
        })
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Status>> {
        if let Stage::Reading(_, assembler, body) = &mut self.stage {
            let message = match ready!(poll_message(assembler, body, cx)) {
                Ok(message) => message,
                Err(status) => return Poll::Ready(Err(status)),
            };
            // What the body may still bring has no meaning.
            let Stage::Reading(call, ..) = std::mem::replace(&mut self.stage, Stage::Done) else {
                return Poll::Pending;
            };
            self.observed.tell(Event::Received {
                bytes: message.len(),
            });
            if call.unread.has_room() {
                if let Some(result) = self.start(call, message) {
                    return Poll::Ready(result);
                }
            } else {
                let parked = match Parked::new(message, &self.connection.memory.requests) {
                    Ok(parked) => parked,
                    Err(status) => return Poll::Ready(Err(status)),
                };
                self.timer = None;
                let room = call.unread.room();
                let mut call = call;
                call.settle(H::HEADERS);
                self.stage = Stage::Ready(call, parked, room);
            }
        }
        if let Stage::Ready(_, _, room) = &mut self.stage {
            ready!(Pin::new(room).poll(cx));
            let Stage::Ready(call, parked, _) = std::mem::replace(&mut self.stage, Stage::Done)
            else {
                return Poll::Pending;
            };
            if let Some(result) = self.start(call, parked.message()) {
                return Poll::Ready(result);
            }
        }
        match &mut self.stage {
            Stage::Waiting(reply) => threads::contain(|| reply.as_mut().poll(cx))
                .unwrap_or_else(|panicked| Poll::Ready(Err(Status::panicked(&panicked)))),
            Stage::Reading(..) | Stage::Ready(..) | Stage::Done => Poll::Pending,
        }
    }

    /// Hands the request to the handler; its answer, if there is one at once.
    fn start(&mut self, call: Call, message: Bytes) -> Option<Result<Frame, Status>> {
        self.timer = None;
        let handler = &self.connection.worker.handler;
        match threads::contain(|| handler.unary(call, message)) {
            Ok(Reply::Now(result)) => Some(result),
            Ok(Reply::Later(reply)) => {
                self.stage = Stage::Waiting(reply);
                None
            }
            Err(panicked) => Some(Err(Status::panicked(&panicked))),
        }
    }

    /// Ready, with how the call ends, once it may wait no longer.
    ///
    /// Only what no handler has yet may end so. A request that a handler has may have been carried
    /// out, and Go's etcd client repeats, writes included, what ends in `DeadlineExceeded` or
    /// `Canceled` while its caller waits: such a call runs to its answer, unless the client ends
    /// it.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let (limit, too_slow) = match &self.stage {
            Stage::Reading(call, ..) => {
                let body = call.started + self.connection.worker.config.body_timeout;
                match self.deadline {
                    Some(deadline) if deadline <= body => (deadline, false),
                    _ => (body, true),
                }
            }
            Stage::Ready(..) => match self.deadline {
                Some(deadline) => (deadline, false),
                None => return Poll::Pending,
            },
            Stage::Waiting(_) | Stage::Done => return Poll::Pending,
        };
        if self.timer.is_none()
            && let Stage::Reading(call, ..) = &mut self.stage
        {
            call.settle(H::HEADERS);
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(limit)));
        ready!(timer.as_mut().poll(cx));
        self.stage = Stage::Done;
        Poll::Ready(match too_slow {
            true => Status::new(
                Code::Unavailable,
                "the request's message did not arrive in time",
            ),
            false => Status::deadline_exceeded(),
        })
    }
}

/// The one message of the request, within the limits on size and memory.
fn poll_message(
    assembler: &mut Assembler,
    body: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Result<Bytes, Status>> {
    while let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) {
        let Ok(frame) = frame else {
            return Poll::Ready(Err(Status::canceled()));
        };
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        assembler.push(chunk);
        if let Some(result) = assembler.next().transpose() {
            return Poll::Ready(result);
        }
    }
    Poll::Ready(Err(Status::new(Code::Internal, "unexpected EOF")))
}
