//! Of Kubernetes' objects in their protobuf form, the fields that are looked at; field
//! numbers are those of Kubernetes' `generated.proto`. All else is skipped without being
//! decoded, and the apiserver has this form in its cache already: watching costs both little.

use prost::Message;

/// What comes before every object.
const MAGIC: &[u8] = b"k8s\0";

/// The wrapper of every object.
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(bytes = "bytes", tag = "2")]
    raw: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    raw: bytes::Bytes,
}

/// One event of a watch, its object still encoded.
#[derive(Clone, PartialEq, Message)]
struct WatchEvent {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(message, optional, tag = "2")]
    object: Option<RawExtension>,
}

/// A Status, as errors are told.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(string, tag = "3")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OwnerReference {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(bool, tag = "6")]
    pub(crate) controller: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(int64, tag = "7")]
    pub(crate) generation: i64,
    #[prost(message, repeated, tag = "13")]
    pub(crate) owners: Vec<OwnerReference>,
}

impl Metadata {
    /// Name of the controlling owner of this kind.
    pub(crate) fn owner(&self, kind: &str) -> Option<&str> {
        let owner = self
            .owners
            .iter()
            .find(|o| o.controller && o.kind == kind)?;
        Some(&owner.name)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeploymentSpec {
    #[prost(int32, optional, tag = "1")]
    pub(crate) replicas: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeploymentStatus {
    #[prost(int64, tag = "1")]
    pub(crate) observed_generation: i64,
    #[prost(int32, tag = "2")]
    pub(crate) replicas: i32,
    #[prost(int32, tag = "3")]
    pub(crate) updated_replicas: i32,
    #[prost(int32, tag = "4")]
    pub(crate) available_replicas: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSpec {
    #[prost(string, tag = "10")]
    pub(crate) node_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Condition {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) status: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodStatus {
    #[prost(string, tag = "1")]
    pub(crate) phase: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Deployment {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<DeploymentSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<DeploymentStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReplicaSet {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pod {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ListMeta {
    #[prost(string, tag = "2")]
    resource_version: String,
}

/// A list of anything; only its metadata and its items' names and owners.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) items: Vec<ReplicaSet>,
}

impl List {
    pub(crate) fn resource_version(&self) -> &str {
        self.metadata.as_ref().map_or("0", |m| &m.resource_version)
    }
}

/// The object of an answer or an event.
pub(crate) fn object<T: Message + Default>(bytes: &bytes::Bytes) -> Result<T, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("an answer is not Kubernetes' protobuf".into());
    }
    let unknown = Unknown::decode(bytes.slice(MAGIC.len()..)).map_err(|e| e.to_string())?;
    T::decode(unknown.raw).map_err(|e| e.to_string())
}

/// Kind (`ADDED`, ...) and encoded object of an event.
pub(crate) fn event(frame: bytes::Bytes) -> Result<(String, bytes::Bytes), String> {
    let event = WatchEvent::decode(frame).map_err(|e| e.to_string())?;
    Ok((event.kind, event.object.unwrap_or_default().raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(message: &impl Message) -> bytes::Bytes {
        let unknown = Unknown {
            raw: message.encode_to_vec().into(),
        };
        [MAGIC, &unknown.encode_to_vec()].concat().into()
    }

    #[test]
    fn an_event_holds_its_object() {
        let pod = Pod {
            metadata: Some(Metadata {
                name: "p".into(),
                ..Metadata::default()
            }),
            ..Pod::default()
        };
        let sent = WatchEvent {
            kind: "ADDED".into(),
            object: Some(RawExtension { raw: wrapped(&pod) }),
        };
        let (kind, raw) = event(sent.encode_to_vec().into()).unwrap();
        assert_eq!(kind, "ADDED");
        assert_eq!(object::<Pod>(&raw).unwrap(), pod);
        assert!(object::<Pod>(&bytes::Bytes::from_static(b"{}")).is_err());
    }
}
