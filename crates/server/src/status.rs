//! etcd's answers to errors: code and text. Clients match on the texts.

use backups::{NoPlace, SendError};
use engine::Error;
use wire::{Code, Slow, Status};

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        $($(#[$doc])* pub(crate) fn $name() -> Status { Status::new(Code::$code, $text) })*
    };
}

statuses! {
    empty_key = InvalidArgument, "etcdserver: key is not provided";
    key_not_found = InvalidArgument, "etcdserver: key not found";
    value_provided = InvalidArgument, "etcdserver: value is provided";
    lease_provided = InvalidArgument, "etcdserver: lease is provided";
    too_many_ops = InvalidArgument, "etcdserver: too many operations in txn request";
    duplicate_key = InvalidArgument, "etcdserver: duplicate key given in txn request";
    invalid_sort_option = InvalidArgument, "etcdserver: invalid sort option";
    invalid_client_api_version = InvalidArgument, "etcdserver: invalid client api version";
    request_too_large = InvalidArgument, "etcdserver: request is too large";
    compacted = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    future_revision = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    no_space = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    lease_not_found = NotFound, "etcdserver: requested lease not found";
    lease_exists = FailedPrecondition, "etcdserver: lease already exists";
    lease_ttl_too_large = OutOfRange, "etcdserver: too large lease TTL";
    too_many_requests = ResourceExhausted, "etcdserver: too many requests";
    timed_out = Unavailable, "etcdserver: request timed out";
    stopped = Unavailable, "etcdserver: server stopped";
    corrupt = DataLoss, "etcdserver: corrupt cluster";
    /// Not etcd's: work beside a worker panicked.
    failed = Internal, "orlop: a bug in the server; the panic is in its log";
    auth_not_enabled = FailedPrecondition, "etcdserver: authentication is not enabled";
    member_not_found = NotFound, "etcdserver: member not found";
    bad_leader_transferee = FailedPrecondition, "etcdserver: bad leader transferee";
    wrong_downgrade_format = InvalidArgument, "etcdserver: wrong downgrade target version format";
    invalid_downgrade_target = InvalidArgument, "etcdserver: invalid downgrade target version";
    stream_sort = Unimplemented, "RangeStream does not support custom sort orders";
    stream_filters = Unimplemented, "RangeStream does not support revision filters";
    /// Not etcd's: why members cannot change.
    one_member = Unimplemented, "orlop: this is one server without replicas, so members can be neither added nor removed; let further control plane nodes use it as an external etcd (kubeadm: etcd.external.endpoints)";
    /// Not etcd's: why users and roles are not offered.
    no_auth = Unimplemented, "orlop: users and roles are not offered; restrict access with client certificates (--client-cert-auth, --trusted-ca-file, --client-cert-allowed-cn)";
    /// Not etcd's: a Defragment that is not over is no success.
    slow_defragment = Unavailable, "orlop: the journal's snapshot takes longer than five minutes; it goes on";
    /// Not etcd's: its lock and election services are not offered.
    no_lock_service = Unimplemented, "orlop: the services v3lock and v3election are not offered yet; use leases and transactions, as etcdctl lock and elect do";
    no_downgrade = Unimplemented, "orlop: there is no cluster to downgrade; to leave, run an older etcd beside it";
}

/// etcd's answer to an engine error.
pub(crate) fn of(error: Error) -> Status {
    match error {
        Error::Compacted => compacted(),
        Error::FutureRevision => future_revision(),
        Error::KeyNotFound => key_not_found(),
        Error::LeaseNotFound => lease_not_found(),
        Error::LeaseExists => lease_exists(),
        Error::LeaseTtlTooLarge => lease_ttl_too_large(),
        Error::TooLarge => request_too_large(),
        Error::NoSpace => no_space(),
        Error::Corrupt => corrupt(),
        Error::TimedOut => timed_out(),
        Error::TooManyRequests => too_many_requests(),
        Error::TooManyOps => too_many_ops(),
        Error::Stopped => stopped(),
    }
}

/// Something large that a client does not take.
pub(crate) fn of_slow(slow: Slow) -> Status {
    match slow {
        Slow::Gone => stopped(),
        Slow::Stalled => timed_out(),
        Slow::Trickles => Status::new(Code::ResourceExhausted, format!("orlop: {slow}")),
    }
}

/// Each snapshot that is sent takes memory.
pub(crate) fn too_many_snapshots(none: &NoPlace) -> Status {
    Status::new(Code::ResourceExhausted, format!("orlop: {none}"))
}

/// A snapshot that a client did not get all of.
pub(crate) fn of_snapshot(error: &SendError) -> Status {
    match error {
        SendError::Stopped => stopped(),
        SendError::Slow(slow) => of_slow(*slow),
        SendError::Panicked => failed(),
        SendError::Encode(_) => Status::new(Code::Internal, format!("orlop: {error}")),
    }
}

/// Defragment did nothing.
pub(crate) fn no_defragment(reason: &str) -> Status {
    Status::new(
        Code::Internal,
        format!("orlop: the journal was not made smaller: {reason}"),
    )
}

/// grpc-go's answer to a message that does not decode.
pub(crate) fn undecodable(error: &prost::DecodeError) -> Status {
    Status::new(
        Code::Internal,
        format!("grpc: error unmarshalling request: {error}"),
    )
}
