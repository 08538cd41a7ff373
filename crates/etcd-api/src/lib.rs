//! etcd v3 wire types and client stubs, generated from our own proto files.
//!
//! The proto files in `proto/` describe etcd 3.7's client API and the gRPC health protocol.
//! Every `bytes` field is a [`bytes::Bytes`], so that decoding a received frame keeps slices of
//! it instead of copies.
//!
//! This crate holds what is on the wire and nothing else: no semantics, no validation, no
//! server. The server has a transport of its own and uses the messages only; the stubs in the
//! `*_client` modules are for tests and load generation.

/// Keys, values and events.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; the messages are documented in proto/ and by etcd"
)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; the messages are documented in proto/ and by etcd"
)]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Requests, responses and client stubs of etcd's services.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; the messages are documented in proto/ and by etcd"
)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// The gRPC health protocol, package `grpc.health.v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; the messages are documented in proto/ and by gRPC"
)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The release of etcd whose behaviour and version clients are shown:
/// Kubernetes decides by it which features to use.
pub const ETCD_VERSION: &str = "3.7.3";
/// Its cluster version, as `/version` shows it.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// The same as metrics and Downgrade show it.
pub const CLUSTER_MINOR_VERSION: &str = "3.7";

#[cfg(test)]
mod tests {
    use super::etcdserverpb::request_op::Request;
    use super::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest, WatchResponse, compare};
    use super::mvccpb::{Event, KeyValue, event::EventType};
    use bytes::Bytes;
    use prost::Message;

    #[test]
    fn put_has_the_field_numbers_of_etcd() {
        let put = PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            lease: 5,
            prev_kv: true,
            ignore_value: true,
            ignore_lease: true,
        };
        let expected = b"\x0a\x01k\x12\x01v\x18\x05\x20\x01\x28\x01\x30\x01";
        assert_eq!(put.encode_to_vec(), expected);
        assert_eq!(PutRequest::decode(&expected[..]).unwrap(), put);
    }

    #[test]
    fn compare_keeps_range_end_far_from_the_rest() {
        let txn = TxnRequest {
            compare: vec![Compare {
                result: compare::CompareResult::NotEqual.into(),
                target: compare::CompareTarget::Lease.into(),
                key: Bytes::from_static(b"a"),
                range_end: Bytes::from_static(b"b"),
                target_union: Some(compare::TargetUnion::Lease(7)),
            }],
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(TxnRequest::default())),
            }],
            failure: Vec::new(),
        };
        let expected = b"\x0a\x0d\x08\x03\x10\x04\x1a\x01a\x40\x07\x82\x04\x01b\x12\x02\x22\x00";
        assert_eq!(txn.encode_to_vec(), expected);
        assert_eq!(TxnRequest::decode(&expected[..]).unwrap(), txn);
    }

    #[test]
    fn watch_response_survives_a_round_trip() {
        let response = WatchResponse {
            watch_id: -1,
            cancel_reason: "etcdserver: mvcc: required revision has been compacted".to_owned(),
            compact_revision: 12,
            events: vec![Event {
                r#type: EventType::Delete.into(),
                kv: Some(KeyValue {
                    key: Bytes::from_static(b"k"),
                    mod_revision: 3,
                    ..KeyValue::default()
                }),
                prev_kv: None,
            }],
            ..WatchResponse::default()
        };
        let bytes = Bytes::from(response.encode_to_vec());
        assert_eq!(WatchResponse::decode(bytes).unwrap(), response);
    }

    #[test]
    fn decoding_does_not_copy_values() {
        let put = PutRequest {
            value: Bytes::from(vec![1; 4096]),
            ..PutRequest::default()
        };
        let frame = Bytes::from(put.encode_to_vec());
        let decoded = PutRequest::decode(frame.clone()).unwrap();
        assert!(frame.as_ptr_range().contains(&decoded.value.as_ptr()));
    }
}
