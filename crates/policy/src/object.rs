//! A stored Kubernetes object, opened just as far as rules ask.

use crate::json::{self, Members};
use crate::kinds::{self, Judged, meta, pod_spec};
use crate::proto::{Fields, Runs, find};
use crate::unclear::Unclear;
use std::cell::OnceCell;

/// What precedes a protobuf object.
const PROTOBUF_MAGIC: &[u8] = b"k8s\0";
/// What precedes a value that is encrypted at rest.
const ENCRYPTED_MAGIC: &[u8] = b"k8s:enc:";
/// The content type that an envelope may name; most name none.
const PROTOBUF_TYPE: &[u8] = b"application/vnd.kubernetes.protobuf";

/// A stored object.
pub(crate) enum Object<'a> {
    /// A built-in one, as protobuf.
    Proto(Proto<'a>),
    /// A custom resource, as JSON.
    Json(Json<'a>),
}

/// A protobuf object's parts, unread.
pub(crate) struct Proto<'a> {
    /// As in `apps/v1`.
    pub(crate) api_version: &'a [u8],
    /// As in `Deployment`.
    pub(crate) kind: &'a [u8],
    /// What is known of the kind.
    pub(crate) judged: Option<Judged>,
    /// Field 1: `ObjectMeta`.
    pub(crate) metadata: &'a [u8],
    /// Field 2 of a kind that is known.
    pub(crate) spec: &'a [u8],
    /// Field 3 of a kind that is known.
    pub(crate) status: &'a [u8],
    /// Parts of the metadata, once somebody asked.
    index: OnceCell<Result<Index<'a>, Unclear>>,
}

/// Where in the metadata is what rules ask for: runs of fields, empty if there are none.
#[derive(Clone, Copy, Default)]
struct Index<'a> {
    labels: &'a [u8],
    owners: &'a [u8],
    finalizers: &'a [u8],
}

/// A JSON object's parts, unread.
pub(crate) struct Json<'a> {
    /// All of it.
    pub(crate) text: &'a str,
    /// As in `example.com/v1`.
    pub(crate) api_version: &'a str,
    /// As in `Workflow`.
    pub(crate) kind: &'a str,
    /// The text of `metadata`.
    pub(crate) metadata: &'a str,
}

/// Whom an object belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner<'a> {
    /// Nobody: it has no owner references.
    Nobody,
    /// It has owners, but none of them is its controller.
    NoController,
    /// The controller, as the owner reference names it.
    Controller {
        api_version: &'a [u8],
        kind: &'a [u8],
    },
}

impl<'a> Object<'a> {
    /// Opens a stored value.
    pub(crate) fn read(value: &'a [u8]) -> Result<Self, Unclear> {
        if let Some(envelope) = value.strip_prefix(PROTOBUF_MAGIC) {
            Proto::read(envelope).map(Object::Proto)
        } else if value.starts_with(ENCRYPTED_MAGIC) {
            Err(Unclear::Encrypted)
        } else if value.starts_with(b"{") {
            Json::read(value).map(Object::Json)
        } else {
            Err(Unclear::Format)
        }
    }

    /// API version and kind.
    pub(crate) fn kind(&self) -> (&'a [u8], &'a [u8]) {
        match self {
            Object::Proto(o) => (o.api_version, o.kind),
            Object::Json(o) => (o.api_version.as_bytes(), o.kind.as_bytes()),
        }
    }

    /// The controller among the owner references.
    pub(crate) fn owner(&self) -> Result<Owner<'a>, Unclear> {
        let mut owner = Owner::Nobody;
        let mut add = |is_controller: bool, api_version: &'a [u8], kind: &'a [u8]| {
            if !is_controller {
                if owner == Owner::Nobody {
                    owner = Owner::NoController;
                }
                return Ok(());
            }
            if matches!(owner, Owner::Controller { .. }) {
                return Err(Unclear::TwoControllers);
            }
            owner = Owner::Controller { api_version, kind };
            Ok(())
        };
        match self {
            Object::Proto(o) => {
                each(o.index()?.owners, |reference| {
                    let (mut is_controller, mut api_version, mut kind) = (false, &[][..], &[][..]);
                    let mut runs = Runs::new(reference, kinds::OWNER_REFERENCE);
                    while let Some(run) = runs.next()? {
                        match run.number {
                            1 => kind = run.bytes,
                            5 => api_version = run.bytes,
                            6 => is_controller = run.integer != 0,
                            _ => {}
                        }
                    }
                    add(is_controller, api_version, kind)
                })?;
            }
            Object::Json(o) => {
                if let Some(owners) = o.metadata()?.get("ownerReferences") {
                    json::each_item(owners, |reference| {
                        let reference = Members::read(reference)?;
                        let is_controller = match reference.get("controller") {
                            None | Some("false" | "null") => false,
                            Some("true") => true,
                            Some(_) => return Err(Unclear::Json),
                        };
                        let api_version = reference.string("apiVersion")?.unwrap_or_default();
                        let kind = reference.string("kind")?.unwrap_or_default();
                        add(is_controller, api_version.as_bytes(), kind.as_bytes())
                    })?;
                }
            }
        }
        Ok(owner)
    }

    /// Whether the object has a label, with this value or (`None`) any.
    pub(crate) fn has_label(&self, key: &str, value: Option<&str>) -> Result<bool, Unclear> {
        let mut found = false;
        match self {
            Object::Proto(o) => each(o.index()?.labels, |entry| {
                let (k, v) = map_entry(entry)?;
                found |= k == key.as_bytes() && value.is_none_or(|value| v == value.as_bytes());
                Ok(())
            })?,
            Object::Json(o) => {
                if let Some(labels) = o.metadata()?.get("labels") {
                    json::each_member(labels, |k, v| {
                        if k == key {
                            let v = json::string(v)?;
                            found |= value.is_none_or(|value| v == value);
                        }
                        Ok(())
                    })?;
                }
            }
        }
        Ok(found)
    }

    /// Whether every finalizer of the object is one of these.
    pub(crate) fn finalizers_are_among(&self, known: &[String]) -> Result<bool, Unclear> {
        let mut among = true;
        let mut add = |name: &[u8]| {
            among &= known.iter().any(|k| k.as_bytes() == name);
            Ok(())
        };
        match self {
            Object::Proto(o) => each(o.index()?.finalizers, add)?,
            Object::Json(o) => {
                if let Some(finalizers) = o.metadata()?.get("finalizers") {
                    json::each_item(finalizers, |name| add(json::string(name)?.as_bytes()))?;
                }
            }
        }
        Ok(among)
    }

    /// Whether a pod claims a volume or a device: a persistent volume claim (its own or a
    /// template's), a resource claim, or a volume that is attached to one node at a time.
    pub(crate) fn claims(&self) -> Result<bool, Unclear> {
        let pod = match self {
            Object::Proto(pod) if (pod.api_version, pod.kind) == (b"v1", b"Pod") => pod,
            Object::Json(json) if (json.api_version, json.kind) == ("v1", "Pod") => {
                return Err(Unclear::JsonBuiltIn);
            }
            _ => return Err(Unclear::Kind),
        };
        let mut spec = Runs::new(pod.spec, kinds::POD_SPEC);
        while let Some(run) = spec.next()? {
            match run.number {
                pod_spec::RESOURCE_CLAIMS => return Ok(true),
                pod_spec::VOLUMES => {
                    let mut volumes = run.fields();
                    while let Some(volume) = volumes.next()? {
                        if is_claimed(volume.bytes()?)? {
                            return Ok(true);
                        }
                    }
                }
                _ => {}
            }
        }
        let mut status = Runs::new(pod.status, kinds::POD.shape);
        while let Some(run) = status.next()? {
            if kinds::POD_STATUS_CLAIMS & (1 << run.number) != 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a volume has to be claimed or attached.
fn is_claimed(volume: &[u8]) -> Result<bool, Unclear> {
    let source = find(volume, kinds::VOLUME, 2)?.ok_or(Unclear::Missing("volume source"))?;
    let mut runs = Runs::new(source.bytes, kinds::VOLUME_SOURCE);
    while let Some(run) = runs.next()? {
        if kinds::UNCLAIMED_SOURCES & (1 << run.number) == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Key and value of a map's entry. Kubernetes writes both, also empty ones.
pub(crate) fn map_entry(entry: &[u8]) -> Result<(&[u8], &[u8]), Unclear> {
    let mut runs = Runs::new(entry, kinds::MAP_ENTRY);
    let (mut key, mut value) = (&[][..], &[][..]);
    while let Some(run) = runs.next()? {
        match run.number {
            1 => key = run.bytes,
            _ => value = run.bytes,
        }
    }
    Ok((key, value))
}

impl<'a> Proto<'a> {
    fn read(envelope: &'a [u8]) -> Result<Self, Unclear> {
        let (mut types, mut raw) = (None, None);
        let mut seen = 0;
        let mut runs = Runs::new(envelope, kinds::ENVELOPE);
        while let Some(run) = runs.next()? {
            seen |= 1 << run.number;
            match (run.number, run.bytes) {
                (1, bytes) => types = Some(bytes),
                (2, bytes) => raw = Some(bytes),
                (_, b"") | (4, PROTOBUF_TYPE) => {}
                _ => return Err(Unclear::Encoding),
            }
        }
        // All four are always written, so that one that lacks the last was cut off.
        if seen != kinds::ENVELOPE.all() {
            return Err(Unclear::Truncated);
        }
        let types = types.ok_or(Unclear::Missing("type"))?;
        let raw = raw.ok_or(Unclear::Missing("content"))?;
        let (mut api_version, mut kind) = (&[][..], &[][..]);
        let mut runs = Runs::new(types, kinds::TYPE_META);
        while let Some(run) = runs.next()? {
            match run.number {
                1 => api_version = run.bytes,
                _ => kind = run.bytes,
            }
        }
        let judged = kinds::judged(api_version, kind);
        let mut object = Proto {
            api_version,
            kind,
            judged,
            metadata: &[],
            spec: &[],
            status: &[],
            index: OnceCell::new(),
        };
        let has_metadata = match judged {
            Some(_) => object.read_parts(raw)?,
            None => object.read_metadata(raw)?,
        };
        if !has_metadata {
            return Err(Unclear::Missing("metadata"));
        }
        Ok(object)
    }

    /// Reads an object of a kind that is known: metadata, spec, status, nothing else.
    fn read_parts(&mut self, raw: &'a [u8]) -> Result<bool, Unclear> {
        let mut has_metadata = false;
        let mut runs = Runs::new(raw, kinds::OBJECT);
        while let Some(run) = runs.next()? {
            match run.number {
                1 => {
                    self.metadata = run.bytes;
                    has_metadata = true;
                }
                2 => self.spec = run.bytes,
                _ => self.status = run.bytes,
            }
        }
        Ok(has_metadata)
    }

    /// Reads an object of another kind: metadata is field 1 in all of them.
    fn read_metadata(&mut self, raw: &'a [u8]) -> Result<bool, Unclear> {
        let mut has_metadata = false;
        let mut fields = Fields::new(raw);
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                if has_metadata {
                    return Err(Unclear::Duplicate(1));
                }
                self.metadata = field.bytes()?;
                has_metadata = true;
            }
        }
        Ok(has_metadata)
    }

    /// Finds in the metadata what rules ask for. All of it is read, so that metadata with
    /// anything unknown in it is not trusted.
    fn index(&self) -> Result<Index<'a>, Unclear> {
        *self.index.get_or_init(|| {
            let mut index = Index::default();
            let mut runs = Runs::new(self.metadata, kinds::OBJECT_META);
            while let Some(run) = runs.next()? {
                match run.number {
                    meta::LABELS => index.labels = run.raw,
                    meta::OWNERS => index.owners = run.raw,
                    meta::FINALIZERS => index.finalizers = run.raw,
                    _ => {}
                }
            }
            Ok(index)
        })
    }
}

/// Calls `f` with the bytes of each field of a run.
fn each<'a>(
    run: &'a [u8],
    mut f: impl FnMut(&'a [u8]) -> Result<(), Unclear>,
) -> Result<(), Unclear> {
    let mut fields = Fields::new(run);
    while let Some(field) = fields.next()? {
        f(field.bytes()?)?;
    }
    Ok(())
}

impl<'a> Json<'a> {
    fn read(value: &'a [u8]) -> Result<Self, Unclear> {
        let text = std::str::from_utf8(value).map_err(|_| Unclear::Json)?;
        let (mut api_version, mut kind, mut metadata) = (None, None, None);
        json::each_member(text, |key, value| {
            let part = match key {
                "apiVersion" => &mut api_version,
                "kind" => &mut kind,
                "metadata" => &mut metadata,
                _ => return Ok(()),
            };
            match part.replace(value) {
                None => Ok(()),
                Some(_) => Err(Unclear::Json),
            }
        })?;
        Ok(Json {
            text,
            api_version: json::string(api_version.ok_or(Unclear::Missing("apiVersion"))?)?,
            kind: json::string(kind.ok_or(Unclear::Missing("kind"))?)?,
            metadata: metadata.ok_or(Unclear::Missing("metadata"))?,
        })
    }

    /// The members of `metadata`.
    pub(crate) fn metadata(&self) -> Result<Members<'a>, Unclear> {
        Members::read(self.metadata)
    }
}
