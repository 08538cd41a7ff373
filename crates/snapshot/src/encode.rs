//! A store as the bytes of a snapshot, front to back.
//!
//! The versions are visited twice: once for their lengths, which fix every page, and once
//! for their bytes. So the size is known before the first byte, and nothing but one leaf
//! page is held.

use crate::error::Error;
use crate::names::{
    ALARM, AUTH, AUTH_REVISION, AUTH_ROLES, AUTH_USERS, CLUSTER, CLUSTER_VERSION, CONF_STATE,
    CONSISTENT_INDEX, FINISHED_COMPACT, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META,
    SCHEDULED_COMPACT, STORAGE_VERSION, TERM,
};
use crate::version::StorageVersion;
use aws_lc_rs::digest::{Context, SHA256};
use bbolt::{Plan, Planner, Writer};
use bytes::Bytes;
use engine::record::Revision;
use engine::tail::put_varint;
use engine::versions::{BucketKey, StoreHead, Versions};
use etcd_api::etcdserverpb::AlarmMember;
use prost::Message;
use std::io;

/// Whose snapshot it is, and for which etcd.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The member's id; etcd replaces it when it restores.
    pub member_id: u64,
    /// etcd's raft term, at least 1.
    pub raft_term: u64,
    /// etcd's index of the last applied write, at least 1.
    pub raft_index: u64,
    /// Which etcd the file is for.
    pub storage_version: StorageVersion,
}

type Items = Vec<(Vec<u8>, Vec<u8>)>;

/// A bucket of the file, in the order of their names.
enum Part {
    Small(&'static [u8], Items),
    /// The `key` bucket.
    Versions,
}

impl Part {
    fn name(&self) -> &'static [u8] {
        match self {
            Part::Small(name, _) => name,
            Part::Versions => KEY,
        }
    }

    fn count(&self, versions: &Versions) -> usize {
        match self {
            Part::Small(_, items) => items.len(),
            Part::Versions => versions.len(),
        }
    }
}

fn parts(origin: &Origin, head: &StoreHead) -> Vec<Part> {
    let small = |name, items| Part::Small(name, items);
    let mut alarm: Items = head
        .alarms
        .iter()
        .map(|&alarm| {
            let member_id = origin.member_id;
            let key = AlarmMember { member_id, alarm }.encode_to_vec();
            (key, Vec::new())
        })
        .collect();
    alarm.sort();
    let mut lease: Items = head
        .leases
        .iter()
        .map(|&(id, ttl_s)| (id.to_be_bytes().to_vec(), lease_value(id, ttl_s)))
        .collect();
    lease.sort();
    vec![
        small(ALARM, alarm),
        small(
            AUTH,
            vec![(AUTH_REVISION.to_vec(), 1u64.to_be_bytes().to_vec())],
        ),
        small(AUTH_ROLES, Vec::new()),
        small(AUTH_USERS, Vec::new()),
        small(
            CLUSTER,
            vec![(
                CLUSTER_VERSION.to_vec(),
                origin.storage_version.to_string().into_bytes(),
            )],
        ),
        Part::Versions,
        small(LEASE, lease),
        small(MEMBERS, Vec::new()),
        small(MEMBERS_REMOVED, Vec::new()),
        small(META, meta_items(origin, head.compact_revision)),
    ]
}

/// etcd's `leasepb.Lease`: id and time to live.
fn lease_value(id: i64, ttl_s: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(22);
    for (tag, number) in [(0x08, id), (0x10, ttl_s)] {
        if number != 0 {
            out.push(tag);
            put_varint(&mut out, number as u64);
        }
    }
    out
}

fn meta_items(origin: &Origin, compact_revision: i64) -> Items {
    let conf_state = format!("{{\"voters\":[{}],\"auto_leave\":false}}", origin.member_id);
    let mut items = vec![
        (CONF_STATE.to_vec(), conf_state.into_bytes()),
        (
            CONSISTENT_INDEX.to_vec(),
            origin.raft_index.max(1).to_be_bytes().to_vec(),
        ),
        (
            TERM.to_vec(),
            origin.raft_term.max(1).to_be_bytes().to_vec(),
        ),
    ];
    if let Some(version) = origin.storage_version.stated() {
        items.push((STORAGE_VERSION.to_vec(), version.into()));
    }
    if compact_revision >= 0 {
        let at = Revision {
            main: compact_revision,
            sub: 0,
        };
        let value = BucketKey::new(at, false).to_vec();
        items.push((FINISHED_COMPACT.to_vec(), value.clone()));
        items.push((SCHEDULED_COMPACT.to_vec(), value));
    }
    items.sort();
    items
}

/// A snapshot under way: the file's bytes on demand.
pub struct Encoder {
    versions: Versions,
    parts: Vec<Part>,
    plan: Plan,
    writer: Option<Writer<Vec<u8>>>,
    /// Bucket and item to be written next, and whether the bucket was begun.
    part: usize,
    item: usize,
    begun: bool,
    ready: Bytes,
    value: Vec<u8>,
    hash: Context,
}

impl Encoder {
    /// Plans the file: looks at the length of every version once.
    ///
    /// # Errors
    /// [`Error::Write`] if a version is too large for the format.
    pub fn new(origin: &Origin, head: &StoreHead, versions: Versions) -> Result<Self, Error> {
        Encoder::paced(origin, head, versions, &mut || ())
    }

    /// The same; `rest` is called now and then, so that the caller can make it give way to
    /// others.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn paced(
        origin: &Origin,
        head: &StoreHead,
        versions: Versions,
        rest: &mut dyn FnMut(),
    ) -> Result<Self, Error> {
        const PLANNED_AT_ONCE: usize = 4096;
        let parts = parts(origin, head);
        let mut plan = || -> Result<Plan, bbolt::Error> {
            let mut planner = Planner::new(bbolt::DEFAULT_PAGE_SIZE)?;
            for part in &parts {
                planner.bucket(part.name())?;
                match part {
                    Part::Small(_, items) => {
                        for (key, value) in items {
                            planner.item(key.len(), value.len())?;
                        }
                    }
                    Part::Versions => {
                        for (n, stored) in versions.iter().enumerate() {
                            planner.item(stored.bucket_key().len(), stored.value_len())?;
                            if n.is_multiple_of(PLANNED_AT_ONCE) {
                                rest();
                            }
                        }
                    }
                }
            }
            planner.finish()
        };
        let plan = plan().map_err(Error::Write)?;
        let writer = Writer::new(plan.clone(), Vec::new()).map_err(Error::Write)?;
        Ok(Encoder {
            versions,
            parts,
            plan,
            writer: Some(writer),
            part: 0,
            item: 0,
            begun: false,
            ready: Bytes::new(),
            value: Vec::new(),
            hash: Context::new(&SHA256),
        })
    }

    /// Bytes of the file, without the SHA-256 that follows it.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// The file's next bytes: at most `max_bytes`, and some; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Write`] if an entry is not the one that was planned.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, Error> {
        while self.ready.is_empty() {
            if !self.fill(max_bytes).map_err(Error::Write)? {
                return Ok(None);
            }
        }
        let chunk = self.ready.split_to(self.ready.len().min(max_bytes.max(1)));
        self.hash.update(&chunk);
        Ok(Some(chunk))
    }

    /// Writes items until there are about `bytes`; returns false at the end.
    fn fill(&mut self, bytes: usize) -> Result<bool, bbolt::Error> {
        let Some(writer) = &mut self.writer else {
            return Ok(false);
        };
        while let Some(part) = self.parts.get(self.part) {
            if !std::mem::replace(&mut self.begun, true) {
                writer.bucket(part.name())?;
            }
            let count = part.count(&self.versions);
            while self.item < count && writer.get_mut().len() < bytes {
                match part {
                    Part::Small(_, items) => {
                        if let Some((key, value)) = items.get(self.item) {
                            writer.item(key, value)?;
                        }
                    }
                    Part::Versions => {
                        if let Some(stored) = self.versions.get(self.item) {
                            self.value.clear();
                            stored.value_into(&mut self.value);
                            writer.item(&stored.bucket_key(), &self.value)?;
                        }
                    }
                }
                self.item += 1;
            }
            if self.item < count {
                self.ready = std::mem::take(writer.get_mut()).into();
                return Ok(true);
            }
            self.part += 1;
            self.item = 0;
            self.begun = false;
        }
        let rest = self.writer.take().map(Writer::finish).transpose()?;
        self.ready = rest.unwrap_or_default().into();
        Ok(!self.ready.is_empty())
    }

    /// Gives the versions back, with rests in between: millions take their time.
    pub fn free(self, rest: &mut dyn FnMut()) {
        self.versions.free(rest);
    }

    /// The SHA-256 of what was handed out so far; at the end, what etcd sends last.
    pub fn sha256(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.hash.clone().finish().as_ref());
        out
    }
}

/// Writes a whole snapshot with its SHA-256; returns its bytes. Syncs nothing.
///
/// # Errors
/// Those of the encoder as [`io::ErrorKind::InvalidData`], and those of `out`.
pub fn write_file(mut encoder: Encoder, out: &mut impl io::Write) -> io::Result<u64> {
    const CHUNK_BYTES: usize = 1 << 20;
    let mut bytes = 0;
    while let Some(chunk) = encoder
        .next_chunk(CHUNK_BYTES)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
    {
        out.write_all(&chunk)?;
        bytes += chunk.len() as u64;
    }
    let hash = encoder.sha256();
    out.write_all(&hash)?;
    Ok(bytes + hash.len() as u64)
}
