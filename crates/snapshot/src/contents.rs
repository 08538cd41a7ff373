//! What a snapshot says besides its keys.

use crate::error::Error;
use crate::file::Snapshot;
use crate::names::{
    ALARM, AUTH, AUTH_ENABLED, AUTH_ROLES, AUTH_USERS, CLUSTER, CLUSTER_VERSION, CONSISTENT_INDEX,
    FINISHED_COMPACT, LEASE, META, SCHEDULED_COMPACT, STORAGE_VERSION, TERM,
};
use crate::revision;
use bytes::Bytes;
use etcd_api::etcdserverpb::AlarmMember;
use prost::Message;

/// A lease as etcd stores it (`leasepb.Lease`).
#[derive(Clone, PartialEq, Message)]
struct LeaseMessage {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl_s: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl_s: i64,
}

/// etcd's users and roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Whether requests need a user.
    pub enabled: bool,
    /// Number of users.
    pub users: usize,
    /// Number of roles.
    pub roles: usize,
}

/// What a snapshot says besides its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The compaction that was last begun or done, -1 for none. An etcd that starts with the
    /// file ends it first, so it counts as done.
    pub compact_revision: i64,
    /// Index of the last write in it, in etcd's log.
    pub consistent_index: u64,
    /// Raft term of that write; 0 from an etcd before 3.5.
    pub term: u64,
    /// `storageVersion`, from etcd 3.6 on.
    pub storage_version: Option<String>,
    /// `clusterVersion`, from etcd 3.5 on.
    pub cluster_version: Option<String>,
    /// Ids of leases and their granted times to live in seconds, by id.
    pub leases: Vec<(i64, i64)>,
    /// Alarms: the member's id and etcd's `AlarmType` number.
    pub alarms: Vec<(u64, i32)>,
    /// Users and roles.
    pub auth: Auth,
}

impl Snapshot {
    /// Reads what is there besides keys.
    ///
    /// # Errors
    /// [`Error::Content`] if it is not what etcd writes, [`Error::Newer`] if a later etcd did.
    pub fn contents(&self) -> Result<Contents, Error> {
        let mut found = Contents {
            compact_revision: -1,
            ..Contents::default()
        };
        self.each(META, |key, value| {
            match key {
                SCHEDULED_COMPACT | FINISHED_COMPACT => {
                    let (at, _) = revision::decode(value).ok_or("not a revision")?;
                    found.compact_revision = found.compact_revision.max(at.main);
                }
                CONSISTENT_INDEX => found.consistent_index = number(value)?,
                TERM => found.term = number(value)?,
                STORAGE_VERSION => found.storage_version = Some(text(value)),
                _ => {}
            }
            Ok(())
        })?;
        self.each(CLUSTER, |key, value| {
            if key == CLUSTER_VERSION {
                found.cluster_version = Some(text(value));
            }
            Ok(())
        })?;
        for version in [&found.storage_version, &found.cluster_version] {
            if let Some(version) = version.as_ref().filter(|v| is_newer(v)) {
                return Err(Error::Newer {
                    path: self.path().to_owned(),
                    found: version.clone(),
                });
            }
        }
        self.each(LEASE, |key, value| {
            let lease = LeaseMessage::decode(value)
                .map_err(|error| format!("a lease that cannot be read ({error})"))?;
            if key != lease.id.to_be_bytes() || lease.id == 0 {
                return Err(format!("lease {:x} under the key of another one", lease.id));
            }
            found.leases.push((lease.id, lease.ttl_s));
            Ok(())
        })?;
        found.leases.sort_unstable();
        self.each(ALARM, |key, _| {
            let alarm = AlarmMember::decode(Bytes::copy_from_slice(key))
                .map_err(|error| format!("an alarm that cannot be read ({error})"))?;
            found.alarms.push((alarm.member_id, alarm.alarm));
            Ok(())
        })?;
        self.each(AUTH, |key, value| {
            found.auth.enabled |= key == AUTH_ENABLED && value == [1];
            Ok(())
        })?;
        for (bucket, count) in [
            (AUTH_USERS, &mut found.auth.users),
            (AUTH_ROLES, &mut found.auth.roles),
        ] {
            self.each(bucket, |_, _| {
                *count += 1;
                Ok(())
            })?;
        }
        Ok(found)
    }
}

fn number(value: &[u8]) -> Result<u64, String> {
    let bytes = value
        .try_into()
        .map_err(|_| format!("a number of {} bytes instead of 8", value.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn text(value: &[u8]) -> String {
    value.escape_ascii().to_string()
}

/// Whether a version such as `3.8.0` is after those that this crate knows.
fn is_newer(version: &str) -> bool {
    let mut parts = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next(), parts.next());
    (major, minor) > (Some(3), Some(7))
}

#[cfg(test)]
mod tests {
    use super::is_newer;

    #[test]
    fn only_later_versions_are_newer() {
        for (version, newer) in [
            ("3.7.0", false),
            ("3.5.0", false),
            ("3.8.0", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_newer(version), newer, "{version}");
        }
    }
}
