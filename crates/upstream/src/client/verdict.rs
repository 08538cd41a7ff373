//! What a failed attempt means: whether it was made, and whether another may help.

use crate::auth;
use std::error::Error;
use tonic::{Code, ConnectError, Status};

/// What a failed attempt means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not made, and never will be: it was not sent, or refused before it was proposed.
    NotMade,
    /// It was not made: the member does not know the token.
    NoToken,
    /// It may have been made. Another attempt may go well.
    Lost,
    /// It is the cluster's answer, or what another attempt would not change.
    Final,
}

impl Verdict {
    pub(super) fn of(status: &Status) -> Self {
        if was_not_sent(status) || was_not_proposed(status) {
            return Verdict::NotMade;
        }
        if auth::wants_token(status) {
            return Verdict::NoToken;
        }
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Verdict::Lost,
            // By our own side of a connection that broke.
            Code::Unknown | Code::Internal if status.source().is_some() => Verdict::Lost,
            _ => Verdict::Final,
        }
    }

    /// Whether the same call may be made again: one that only reads after every loss, others
    /// only if they were not made.
    pub(super) fn allows_another(self, reads: bool) -> bool {
        match self {
            Verdict::NotMade | Verdict::NoToken => true,
            Verdict::Lost => reads,
            Verdict::Final => false,
        }
    }

    /// Whether a write may have been made.
    pub(super) fn may_be_made(self) -> bool {
        self == Verdict::Lost
    }
}

/// Whether a status is our own for a request that never went out, or of a stream that the peer
/// refused before it looked at it (RFC 9113, 8.7).
fn was_not_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let canceled = error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled);
        let refused = error
            .downcast_ref::<h2::Error>()
            .is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM));
        if canceled || refused || error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether etcd refused before it proposed anything. Each of these is said before that, in
/// etcd 3.5 to 3.7: by the interceptor in front of every method, by MoveLeader, and by raft at
/// the member that was asked.
fn was_not_proposed(status: &Status) -> bool {
    let says = |text: &str| status.message() == text;
    match status.code() {
        Code::Unavailable => says("etcdserver: no leader"),
        Code::FailedPrecondition => {
            says("etcdserver: not leader") || says("etcdserver: rpc not supported for learner")
        }
        Code::Unknown => says("raft proposal dropped"),
        _ => false,
    }
}

/// Whether a status says that another may lead by now.
pub(super) fn speaks_of_leader(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        Code::Unknown | Code::Internal => status.source().is_some() || was_not_proposed(status),
        Code::FailedPrecondition => was_not_proposed(status),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn by(error: impl Error + Send + Sync + 'static) -> Status {
        Status::from_error(Box::new(error))
    }

    #[test]
    fn a_write_is_made_again_only_if_it_was_not_made() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let not_made = [
            by(ConnectError(Box::new(refused()))),
            Status::unavailable("etcdserver: no leader"),
            Status::failed_precondition("etcdserver: not leader"),
            Status::failed_precondition("etcdserver: rpc not supported for learner"),
            Status::unknown("raft proposal dropped"),
        ];
        for status in not_made {
            assert_eq!(Verdict::of(&status), Verdict::NotMade, "{status:?}");
            assert!(speaks_of_leader(&status));
        }
        let lost = [
            Status::unavailable("etcdserver: leader changed"),
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable(
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            Status::unavailable("etcdserver: request timed out, possibly due to connection lost"),
            Status::unavailable("etcdserver: server stopped"),
            Status::deadline_exceeded("context deadline exceeded"),
            by(io::Error::from(io::ErrorKind::ConnectionReset)),
        ];
        for status in lost {
            assert_eq!(Verdict::of(&status), Verdict::Lost, "{status:?}");
            assert!(Verdict::Lost.may_be_made());
        }
        assert!(!Verdict::Lost.allows_another(false));
        assert!(Verdict::Lost.allows_another(true));
        assert!(Verdict::NotMade.allows_another(false));
        assert!(!Verdict::NotMade.may_be_made());
    }

    #[test]
    fn an_answer_is_an_answer() {
        for status in [
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
            Status::resource_exhausted("etcdserver: too many requests"),
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument("etcdserver: key is not provided"),
            // The words of a refusal with another code are nobody's.
            Status::internal("etcdserver: no leader"),
            Status::unknown("etcdserver: no leader"),
        ] {
            assert_eq!(Verdict::of(&status), Verdict::Final, "{status:?}");
            assert!(!Verdict::Final.allows_another(true));
            assert!(!speaks_of_leader(&status));
        }
        for status in [
            Status::unauthenticated("etcdserver: invalid auth token"),
            Status::invalid_argument("etcdserver: revision of auth store is old"),
            Status::invalid_argument("etcdserver: user name is empty"),
        ] {
            assert_eq!(Verdict::of(&status), Verdict::NoToken, "{status:?}");
        }
    }
}
