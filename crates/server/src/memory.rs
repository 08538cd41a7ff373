//! How much memory there is, and what of it the store may take.

use std::fs;

/// Part of the memory that data may take by default, in percent.
const DATA_PERCENT: u64 = 45;
/// Part of the memory that history may take by default, in percent. Together with the
/// allocator's overhead both stay below what the OOM killer looks at.
const HISTORY_PERCENT: u64 = 15;
/// etcd's default quota, in bytes: the default is never above it.
const ETCD_DEFAULT_QUOTA_BYTES: u64 = 2 << 30;

/// How much data may be there, in bytes; negative for as much as there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(i64);

impl Quota {
    /// What NOSPACE goes by; without a quota a number that is never reached.
    pub(crate) fn limit_bytes(self) -> u64 {
        u64::try_from(self.0).unwrap_or(u64::MAX)
    }

    /// As etcd shows it in Status and metrics: a negative flag is shown as it is.
    pub(crate) fn shown_bytes(self) -> i64 {
        self.0
    }
}

/// What the store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) memory_bytes: u64,
    pub(crate) quota: Quota,
    pub(crate) history_bytes: u64,
    /// For writes that wait for the disk or for each other.
    pub(crate) held_bytes: u64,
    /// For what snapshots on their way to clients keep from being freed.
    pub(crate) snapshots_bytes: u64,
}

/// What is kept for followers by default: its part of the memory, and least and most bytes.
const FOLLOWERS: (u64, u64, u64) = (32, 64 << 20, 1 << 30);

impl Budget {
    /// What is kept of the newest records while anybody follows, from what was asked for (0: not).
    pub(crate) fn followers_bytes(&self, asked_bytes: u64) -> u64 {
        let (part, least, most) = FOLLOWERS;
        match asked_bytes {
            0 => (self.memory_bytes / part).clamp(least, most),
            asked => asked,
        }
    }
}

/// Works out quota and history budget from what was asked for (0: not) and what there is.
pub(crate) fn budget(memory_bytes: u64, quota_flag: i64, history_flag: u64) -> Budget {
    let quota = Quota(match quota_flag {
        0 => ETCD_DEFAULT_QUOTA_BYTES.min(memory_bytes / 100 * DATA_PERCENT) as i64,
        q => q,
    });
    let history_bytes = match history_flag {
        0 => (memory_bytes / 100 * HISTORY_PERCENT)
            .min(quota.limit_bytes() / 2)
            .max(1 << 20),
        h => h,
    };
    // A stalled disk lets writes pile up; 2 % of the memory is some seconds of them.
    let held_bytes = (memory_bytes / 50).clamp(16 << 20, 512 << 20);
    // As much as the data may be: with a negative quota, by default.
    let snapshots_bytes = quota.limit_bytes().min(memory_bytes / 100 * DATA_PERCENT);
    Budget {
        held_bytes,
        snapshots_bytes,
        memory_bytes,
        quota,
        history_bytes,
    }
}

/// Names a lower limit than the machine and its cgroups have, in bytes.
const MEMORY_VARIABLE: &str = "ORLOP_MEMORY_BYTES";

/// The memory that this process may use: the cgroup's limit or the machine's, in bytes, or what
/// the environment says if that is less.
pub(crate) fn available_bytes() -> u64 {
    let asked = std::env::var(MEMORY_VARIABLE).ok();
    let asked = asked.and_then(|text| text.trim().parse().ok());
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo_total(&text));
    let cgroup = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            cgroup_files(&text)
                .iter()
                .filter_map(|f| fs::read_to_string(f).ok()?.trim().parse().ok())
                .min()
        });
    let known = [machine, cgroup, asked].into_iter().flatten().min();
    // Without /proc there is nothing to go by; a small machine is the safe guess.
    known.unwrap_or(1 << 30)
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// Files that may hold a limit on this process, innermost first: those of its cgroup and of
/// each one above it, version 2 and 1.
fn cgroup_files(proc_cgroup: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in proc_cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, name) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{name}"));
            match path.rfind('/') {
                Some(i) => path = &path[..i],
                None => break,
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_leave_room_below_the_limit() {
        let b = budget(1 << 30, 0, 0);
        assert!(b.quota.limit_bytes() + b.history_bytes < (1 << 30) / 100 * 65);
        let big = budget(64 << 30, 0, 0);
        assert_eq!(big.quota.limit_bytes(), 2 << 30);
        let given = budget(1 << 30, 123, 456);
        assert_eq!((given.quota, given.history_bytes), (Quota(123), 456));
    }

    #[test]
    fn a_negative_quota_is_none_and_shown_as_it_is() {
        let none = budget(1 << 30, -1, 0);
        assert_eq!(none.quota.limit_bytes(), u64::MAX);
        assert_eq!(none.quota.shown_bytes(), -1);
        assert_eq!(none.history_bytes, (1 << 30) / 100 * HISTORY_PERCENT);
    }

    #[test]
    fn finds_the_limits_of_both_cgroup_versions() {
        let files = cgroup_files("3:memory:/a/b\n0::/c\n");
        assert!(files.contains(&"/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes".to_string()));
        assert!(files.contains(&"/sys/fs/cgroup/memory/memory.limit_in_bytes".to_string()));
        assert!(files.contains(&"/sys/fs/cgroup/c/memory.max".to_string()));
        assert_eq!(
            meminfo_total("MemTotal:       24576 kB\nX: 1 kB"),
            Some(24576 * 1024)
        );
    }
}
