//! What an update changes: only the status, only a lease's renewal time, the mark for
//! deletion, or something that nobody could compute again.

use crate::json::Members;
use crate::kinds::{self, Judged, Status, lease_spec, meta, pod_spec};
use crate::object::{Json, Object, Proto, map_entry};
use crate::proto::{Fields, Run, diff, find, mask};
use crate::unclear::Unclear;
use std::fmt;

/// Whether a write is of some kind, and why.
pub(crate) type Verdict = Result<Answer, Unclear>;

/// Yes or no, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// Whether it is.
    pub(crate) yes: bool,
    /// Why it is, or is not.
    pub(crate) why: Reason,
}

/// Why a write is, or is not, of a kind. Its text goes after a rule's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    Any,
    Created,
    NotCreated,
    Deleted,
    NotDeleted,
    NotAnUpdate,
    SpecChanged,
    MetadataChanged(u32),
    JsonMetadataChanged,
    StatusUnchanged,
    OnlyStatus,
    OnlyRenewTime,
    NotALease,
    LeaseChanged,
    LeaseElected,
    NotHeld,
    Marked,
    NotMarked,
    AuthoritativeField(u32),
    AuthoritativeCondition,
    FinalPhase,
    NothingAuthoritative,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Reason::Any => "takes every change",
            Reason::Created => "the key is created",
            Reason::NotCreated => "the key exists already",
            Reason::Deleted => "the key is deleted",
            Reason::NotDeleted => "the key is not deleted",
            Reason::NotAnUpdate => "the write is not an update",
            Reason::SpecChanged => "more than metadata and status changed",
            Reason::MetadataChanged(n) => {
                let name = match *n {
                    5 => " (uid)",
                    7 => " (generation)",
                    9 => " (deletionTimestamp)",
                    10 => " (deletionGracePeriodSeconds)",
                    11 => " (labels)",
                    12 => " (annotations)",
                    13 => " (ownerReferences)",
                    14 => " (finalizers)",
                    17 => " (managedFields) and nothing else",
                    _ => "",
                };
                return write!(f, "field {n} of the metadata{name} changed");
            }
            Reason::JsonMetadataChanged => "the metadata changed",
            Reason::StatusUnchanged => "the status did not change",
            Reason::OnlyStatus => "only the status changed, and its writer computes it again",
            Reason::OnlyRenewTime => "only the renewal time changed",
            Reason::NotALease => "the object is not a Lease",
            Reason::LeaseChanged => "more than the renewal time changed",
            Reason::LeaseElected => "the control plane compares this lease with the clock",
            Reason::NotHeld => "nobody holds the lease",
            Reason::Marked => "it marks the object for deletion",
            Reason::NotMarked => "it does not mark the object for deletion",
            Reason::AuthoritativeField(n) => {
                return write!(
                    f,
                    "field {n} of the status changed, which nobody computes again"
                );
            }
            Reason::AuthoritativeCondition => {
                "a condition changed that its writer may set only once"
            }
            Reason::FinalPhase => "the pod's phase is, or was, final",
            Reason::NothingAuthoritative => "nothing changed that nobody would write again",
        };
        f.write_str(text)
    }
}

fn yes(why: Reason) -> Answer {
    Answer { yes: true, why }
}

fn no(why: Reason) -> Answer {
    Answer { yes: false, why }
}

/// What an update is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// Only the status changed, and nothing authoritative in it.
    pub(crate) status: Verdict,
    /// Only a lease's renewal time changed.
    pub(crate) renewal: Verdict,
    /// The object was marked for deletion.
    pub(crate) mark: Verdict,
    /// Something authoritative changed.
    pub(crate) authoritative: Verdict,
}

impl Update {
    fn all(verdict: Verdict) -> Self {
        Update {
            status: verdict,
            renewal: verdict,
            mark: verdict,
            authoritative: verdict,
        }
    }

    /// A create or a delete.
    pub(crate) fn none() -> Self {
        Update::all(Ok(no(Reason::NotAnUpdate)))
    }

    /// A value that cannot be read.
    pub(crate) fn unclear(why: Unclear) -> Self {
        Update::all(Err(why))
    }

    /// Judges an update.
    pub(crate) fn judge(old: &Object<'_>, new: &Object<'_>) -> Self {
        if old.kind() != new.kind() {
            return Update::unclear(Unclear::KindChanged);
        }
        match (old, new) {
            (Object::Proto(old), Object::Proto(new)) => judge_proto(old, new),
            (Object::Json(old), Object::Json(new)) => judge_json(old, new),
            _ => Update::unclear(Unclear::KindChanged),
        }
    }
}

/// The fields of the metadata that change, as a mask.
type MetadataDiff = Result<u64, Unclear>;

fn judge_proto(old: &Proto<'_>, new: &Proto<'_>) -> Update {
    let metadata = diff(old.metadata, new.metadata, kinds::OBJECT_META);
    let deletion = mask(&[meta::DELETION_TIMESTAMP, meta::DELETION_GRACE]);
    let update = match new.judged {
        Some(Judged::Status(kind)) => judge_status(old, new, kind, metadata),
        Some(Judged::Lease) => Update {
            status: Ok(no(Reason::SpecChanged)),
            renewal: judge_lease(old, new, metadata),
            ..Update::all(Ok(no(Reason::NothingAuthoritative)))
        },
        None => Update::unclear(Unclear::Kind),
    };
    Update {
        mark: metadata.map(|changed| marks(changed & deletion != 0)),
        ..update
    }
}

fn marks(marked: bool) -> Answer {
    if marked {
        yes(Reason::Marked)
    } else {
        no(Reason::NotMarked)
    }
}

/// Judges all but the mark of an update to an object with a status.
fn judge_status(old: &Proto<'_>, new: &Proto<'_>, kind: &Status, metadata: MetadataDiff) -> Update {
    let found = authoritative_change(old.status, new.status, kind);
    let status = || {
        if old.spec != new.spec {
            return Ok(no(Reason::SpecChanged));
        }
        let metadata = metadata?;
        if let Some(why) = essential_metadata(old, new, metadata)? {
            return Ok(no(why));
        }
        if old.status == new.status {
            // A write of bookkeeping, and of nothing else, is a person's.
            return Ok(no(match metadata {
                0 => Reason::StatusUnchanged,
                changed => Reason::MetadataChanged(changed.trailing_zeros()),
            }));
        }
        Ok(match found? {
            Some(why) => no(why),
            None => yes(Reason::OnlyStatus),
        })
    };
    let authoritative = || {
        let found = match found? {
            None if kind.is_pod => written_to_pod(old, new, metadata?)?,
            found => found,
        };
        Ok(found.map_or(no(Reason::NothingAuthoritative), yes))
    };
    Update {
        status: status(),
        authoritative: authoritative(),
        ..Update::all(Ok(no(Reason::NotALease)))
    }
}

/// What somebody wrote to a pod that its controller would not write again. With its binding
/// come labels and annotations, and the scheduler binds it again.
fn written_to_pod(
    old: &Proto<'_>,
    new: &Proto<'_>,
    metadata: u64,
) -> Result<Option<Reason>, Unclear> {
    let spec = diff(old.spec, new.spec, kinds::POD_SPEC)?;
    if spec == mask(&[pod_spec::NODE_NAME]) {
        let node = find(old.spec, kinds::POD_SPEC, pod_spec::NODE_NAME)?;
        if node.is_none_or(|node| node.bytes.is_empty()) {
            return Ok(None);
        }
    }
    if spec != 0 {
        return Ok(Some(Reason::SpecChanged));
    }
    let written = metadata & mask(&[meta::LABELS, meta::ANNOTATIONS, meta::OWNERS]);
    Ok((written != 0).then(|| Reason::MetadataChanged(written.trailing_zeros())))
}

/// What in the metadata changed that is not bookkeeping.
fn essential_metadata(
    old: &Proto<'_>,
    new: &Proto<'_>,
    changed: u64,
) -> Result<Option<Reason>, Unclear> {
    let mut changed = changed & !mask(&[meta::MANAGED_FIELDS]);
    if changed == mask(&[meta::ANNOTATIONS])
        && new.kind == b"Deployment"
        && annotations_but_revision_are_equal(old.metadata, new.metadata)?
    {
        changed = 0;
    }
    Ok((changed != 0).then(|| Reason::MetadataChanged(changed.trailing_zeros())))
}

fn annotations_but_revision_are_equal(old: &[u8], new: &[u8]) -> Result<bool, Unclear> {
    let old = find(old, kinds::OBJECT_META, meta::ANNOTATIONS)?;
    let new = find(new, kinds::OBJECT_META, meta::ANNOTATIONS)?;
    equal_but(old, new, |entry| {
        Ok(map_entry(entry)?.0 == kinds::REVISION_ANNOTATION)
    })
}

/// Whether two runs of a repeated field are equal when what `skip` names is left out.
fn equal_but(
    old: Option<Run<'_>>,
    new: Option<Run<'_>>,
    skip: impl Fn(&[u8]) -> Result<bool, Unclear>,
) -> Result<bool, Unclear> {
    let (mut old, mut new) = (fields(old), fields(new));
    loop {
        let a = next_kept(&mut old, &skip)?;
        let b = next_kept(&mut new, &skip)?;
        if a != b {
            return Ok(false);
        }
        if a.is_none() {
            return Ok(true);
        }
    }
}

fn fields(run: Option<Run<'_>>) -> Fields<'_> {
    Fields::new(run.map_or(&[], |run| run.raw))
}

/// The next item that `skip` does not leave out.
fn next_kept<'a>(
    fields: &mut Fields<'a>,
    skip: &impl Fn(&[u8]) -> Result<bool, Unclear>,
) -> Result<Option<&'a [u8]>, Unclear> {
    while let Some(field) = fields.next()? {
        let bytes = field.bytes()?;
        if !skip(bytes)? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Whether a status changed in something that nobody could compute again.
fn authoritative_change(old: &[u8], new: &[u8], kind: &Status) -> Result<Option<Reason>, Unclear> {
    let changed = diff(old, new, kind.shape)?;
    if changed == 0 {
        return Ok(None);
    }
    let fields = changed & kind.authoritative;
    if fields != 0 {
        return Ok(Some(Reason::AuthoritativeField(fields.trailing_zeros())));
    }
    if kind.phase != 0 && (is_final(old, kind)? || is_final(new, kind)?) {
        return Ok(Some(Reason::FinalPhase));
    }
    if let Some(computed) = kind.computed_conditions
        && changed & (1 << kind.conditions) != 0
    {
        let old = find(old, kind.shape, kind.conditions)?;
        let new = find(new, kind.shape, kind.conditions)?;
        let is_computed = |condition: &[u8]| Ok(computed.contains(&condition_type(condition)?));
        if !equal_but(old, new, is_computed)? {
            return Ok(Some(Reason::AuthoritativeCondition));
        }
    }
    Ok(None)
}

fn condition_type(condition: &[u8]) -> Result<&[u8], Unclear> {
    let mut fields = Fields::new(condition);
    let mut found = None;
    while let Some(field) = fields.next()? {
        if field.number == kinds::CONDITION_TYPE {
            if found.is_some() {
                return Err(Unclear::Duplicate(field.number));
            }
            found = Some(field.bytes()?);
        }
    }
    found.ok_or(Unclear::Missing("condition type"))
}

fn is_final(status: &[u8], kind: &Status) -> Result<bool, Unclear> {
    let phase = find(status, kind.shape, kind.phase)?;
    Ok(!matches!(
        phase.map_or(&[][..], |p| p.bytes),
        b"" | b"Pending" | b"Running"
    ))
}

fn judge_lease(old: &Proto<'_>, new: &Proto<'_>, metadata: MetadataDiff) -> Verdict {
    if old.status != new.status || !new.status.is_empty() {
        return Err(Unclear::UnknownField(3));
    }
    if let Some(why) = essential_metadata(old, new, metadata?)? {
        return Ok(no(why));
    }
    if diff(old.spec, new.spec, kinds::LEASE_SPEC)? != 1 << lease_spec::RENEW_TIME {
        return Ok(no(Reason::LeaseChanged));
    }
    for elected in [lease_spec::STRATEGY, lease_spec::PREFERRED_HOLDER] {
        if find(new.spec, kinds::LEASE_SPEC, elected)?.is_some() {
            return Ok(no(Reason::LeaseElected));
        }
    }
    let holder = find(new.spec, kinds::LEASE_SPEC, lease_spec::HOLDER)?;
    if holder.is_none_or(|holder| holder.bytes.is_empty()) {
        return Ok(no(Reason::NotHeld));
    }
    for spec in [old.spec, new.spec] {
        if find(spec, kinds::LEASE_SPEC, lease_spec::RENEW_TIME)?.is_none() {
            return Ok(no(Reason::LeaseChanged));
        }
    }
    Ok(yes(Reason::OnlyRenewTime))
}

fn judge_json(old: &Json<'_>, new: &Json<'_>) -> Update {
    if kinds::is_built_in(new.api_version) {
        return Update::unclear(Unclear::JsonBuiltIn);
    }
    let parts = || Ok((Members::read(old.text)?, Members::read(new.text)?));
    let (old_parts, new_parts) = match parts() {
        Ok(parts) => parts,
        Err(why) => return Update::unclear(why),
    };
    let metadata = || Ok((old.metadata()?, new.metadata()?));
    let (old_metadata, new_metadata) = match metadata() {
        Ok(metadata) => metadata,
        Err(why) => return Update::unclear(why),
    };
    let changed = |key| old_metadata.get(key) != new_metadata.get(key);
    let status_changed = old_parts.get("status") != new_parts.get("status");
    let status = || {
        if !equal_members_but(&old_parts, &new_parts, &["metadata", "status"]) {
            return no(Reason::SpecChanged);
        }
        if !equal_members_but(&old_metadata, &new_metadata, &["managedFields"]) {
            return no(Reason::JsonMetadataChanged);
        }
        if status_changed {
            yes(Reason::OnlyStatus)
        } else {
            no(Reason::StatusUnchanged)
        }
    };
    Update {
        status: Ok(status()),
        renewal: Ok(no(Reason::NotALease)),
        mark: Ok(marks(
            changed("deletionTimestamp") || changed("deletionGracePeriodSeconds"),
        )),
        // Only whoever defined the kind knows what in its status is authoritative.
        authoritative: if status_changed {
            Err(Unclear::Kind)
        } else {
            Ok(no(Reason::NothingAuthoritative))
        },
    }
}

fn equal_members_but(old: &Members<'_>, new: &Members<'_>, left_out: &[&str]) -> bool {
    let kept = |(key, _): &(&str, &str)| !left_out.contains(key);
    old.iter().filter(kept).eq(new.iter().filter(kept))
}
