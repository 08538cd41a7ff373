//! etcd's limit on the size of a request, `--max-request-bytes`: which requests it is on, and
//! what it counts.

use engine::tail::varint_len;
use etcd_api::etcdserverpb::TxnRequest;
use etcd_api::etcdserverpb::request_op::Request;

/// Whether etcd reads a transaction's answer where it stands: its ranges are all there is to
/// it. It goes through no log, and has no limit but that on a message.
pub(super) fn is_flat_read(r: &TxnRequest) -> bool {
    let is_range = |request: &Option<Request>| matches!(request, Some(Request::RequestRange(_)));
    let mut ops = r.success.iter().chain(&r.failure);
    ops.all(|op| is_range(&op.request))
}

/// What etcd adds to a write of `message_len` bytes, in bytes: its `InternalRaftRequest` with
/// the request's number, which begins with the member's id, is what the limit is on.
pub(super) fn envelope_bytes(message_len: usize, member_id: u64) -> usize {
    // The rest of the number is a time, which is not 0.
    let number = u64::from(member_id as u16) << 48 | 1 << 47;
    let header = 1 + varint_len(number);
    // Field 100 has a tag of two bytes, the request's own fields one of one.
    let header = 2 + varint_len(header as u64) + header;
    header + 1 + varint_len(message_len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_etcds() {
        // header{ID} is 2 + 1 + 1 + 10 bytes, put 1 + 3.
        assert_eq!(envelope_bytes(1_500_000, 0x8000), 18);
        assert_eq!(envelope_bytes(1_500_000, 0x0100), 17);
        assert_eq!(envelope_bytes(100, 0xffff_0000), 2 + 1 + 1 + 7 + 2);
    }
}
