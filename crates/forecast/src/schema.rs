//! The one schema of samples: what is known of a member at a time, and how it is written.
//!
//! A data set is CSV (RFC 4180, no quotes needed): first a line `# orlop forecast 1`, then the
//! names of [`LEADING`] and [`Column::ALL`] and a `_rate` for each counter among these, then a
//! line a member and time. An empty field is a value that was not to be had.

/// The first line of a data set.
pub const HEAD: &str = "# orlop forecast 1";

/// Columns before the measured ones: where a sample is from, and what is known of its truth.
pub const LEADING: [(&str, &str); 11] = [
    (
        "run",
        "The run that it is of; runs share nothing but the machine.",
    ),
    (
        "period",
        "The number of its period within the run, from 0; 0 when nothing was injected.",
    ),
    ("since_ms", "Milliseconds since the period began."),
    (
        "label",
        "The injected state of this member then: idle, network, overload, both, disk; empty if unknown.",
    ),
    (
        "injected_delay_us",
        "The injected delay of what leaves this member, one way; empty if unknown.",
    ),
    (
        "injected_sync_us",
        "The injected delay of each sync of this member; empty if unknown.",
    ),
    ("at_ms", "When it was taken, in milliseconds of Unix time."),
    ("member", "The member's id, hexadecimal."),
    ("name", "The member's name."),
    ("leads", "1 if it led then, by what all members say."),
    (
        "peer_round_trips",
        "The member's own measure of its peers, PEER=MICROSECONDS separated by semicolons.",
    ),
];

/// Whether a value only grows, until its process starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its rate is of interest.
    Counter,
    /// It is what it is.
    Gauge,
}

macro_rules! columns {
    ($($id:ident, $name:literal, $kind:ident, $help:literal;)*) => {
        /// A measured value of a member.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Column {
            $(#[doc = $help] $id,)*
        }

        impl Column {
            /// All of them, in the order of a data set.
            pub const ALL: &[Column] = &[$(Column::$id),*];

            /// Its name in a data set.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Column::$id => $name),* }
            }

            /// Whether it only grows.
            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Column::$id => Kind::$kind),* }
            }

            /// What it is.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Column::$id => $help),* }
            }
        }
    };
}

columns! {
    Term, "term", Gauge, "Raft term, by Status.";
    RaftIndex, "raft_index", Gauge, "Last committed entry, by Status.";
    AppliedIndex, "applied_index", Gauge, "Last applied entry, by Status.";
    DbBytes, "db_bytes", Gauge, "Size of the database's file, by Status.";
    StartS, "start_s", Gauge, "process_start_time_seconds: another one means that the process started again.";
    WalWriteBytes, "wal_write_bytes", Counter, "etcd_disk_wal_write_bytes_total (the thesis's first feature, as a rate).";
    ClientSentBytes, "client_sent_bytes", Counter, "etcd_network_client_grpc_sent_bytes_total (the second).";
    PeerSentBytes, "peer_sent_bytes", Counter, "etcd_network_peer_sent_bytes_total of all peers (the third).";
    HeartbeatSendFailures, "heartbeat_send_failures", Counter, "etcd_server_heartbeat_send_failures_total (the fourth): how often the leader itself was late.";
    SlowApply, "slow_apply", Counter, "etcd_server_slow_apply_total (the fifth).";
    ClientReceivedBytes, "client_received_bytes", Counter, "etcd_network_client_grpc_received_bytes_total.";
    PeerReceivedBytes, "peer_received_bytes", Counter, "etcd_network_peer_received_bytes_total of all peers.";
    SlowReadIndexes, "slow_read_indexes", Counter, "etcd_server_slow_read_indexes_total.";
    ReadIndexesFailed, "read_indexes_failed", Counter, "etcd_server_read_indexes_failed_total.";
    LeaderChanges, "leader_changes", Counter, "etcd_server_leader_changes_seen_total.";
    Committed, "committed", Counter, "etcd_server_proposals_committed_total.";
    Applied, "applied", Counter, "etcd_server_proposals_applied_total.";
    Failed, "failed", Counter, "etcd_server_proposals_failed_total.";
    FsyncSeconds, "fsync_seconds", Counter, "Sum of etcd_disk_wal_fsync_duration_seconds.";
    Fsyncs, "fsyncs", Counter, "Count of it.";
    CommitSeconds, "backend_commit_seconds", Counter, "Sum of etcd_disk_backend_commit_duration_seconds.";
    Commits, "backend_commits", Counter, "Count of it.";
    ApplySeconds, "apply_seconds", Counter, "Sum of etcd_server_apply_duration_seconds of all operations.";
    Applies, "applies", Counter, "Count of it.";
    CpuSeconds, "cpu_seconds", Counter, "process_cpu_seconds_total.";
    Started, "calls_started", Counter, "grpc_server_started_total of all methods.";
    Handled, "calls_handled", Counter, "grpc_server_handled_total of all methods.";
    Pending, "proposals_pending", Gauge, "etcd_server_proposals_pending.";
    ResidentBytes, "resident_bytes", Gauge, "process_resident_memory_bytes.";
    OpenFiles, "open_files", Gauge, "process_open_fds: connections are among them.";
    Goroutines, "goroutines", Gauge, "go_goroutines.";
    Watchers, "watchers", Gauge, "etcd_debugging_mvcc_watcher_total.";
    FsyncP50S, "fsync_p50_s", Gauge, "Median sync since the sample before, by its buckets.";
    FsyncP99S, "fsync_p99_s", Gauge, "99th percentile of them.";
    CommitP99S, "backend_commit_p99_s", Gauge, "99th percentile of backend commits since the sample before.";
    ApplyP99S, "apply_p99_s", Gauge, "99th percentile of applies since the sample before.";
    SerializableMinUs, "serializable_min_us", Gauge, "Shortest serializable read of a missing key since the sample before, of ours through this member.";
    SerializableMeanUs, "serializable_mean_us", Gauge, "Their mean.";
    SerializableMaxUs, "serializable_max_us", Gauge, "The longest.";
    LinearizableMinUs, "linearizable_min_us", Gauge, "Shortest linearizable read of a missing key, of ours through this member.";
    LinearizableMeanUs, "linearizable_mean_us", Gauge, "Their mean.";
    LinearizableMaxUs, "linearizable_max_us", Gauge, "The longest.";
    ProbesLost, "probes_lost", Gauge, "Reads of ours that failed or were given up since the sample before.";
    ScrapeUs, "scrape_us", Gauge, "How long the scrape took.";
}

impl Column {
    /// Its place in a sample.
    #[must_use]
    pub fn at(self) -> usize {
        self as usize
    }

    /// The counters among them, in order.
    pub fn counters() -> impl Iterator<Item = Column> {
        let all = Column::ALL.iter().copied();
        all.filter(|column| column.kind() == Kind::Counter)
    }
}

/// The injected state of a member.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is wrong.
    Idle,
    /// What it sends arrives late.
    Network,
    /// It has more to do than it can.
    Overload,
    /// Both.
    Both,
    /// Its syncs are slow.
    Disk,
}

impl State {
    /// All of them; the first four are the thesis's, in its order.
    pub const ALL: [State; 5] = [
        State::Idle,
        State::Network,
        State::Overload,
        State::Both,
        State::Disk,
    ];

    /// Its name in data sets, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Network => "network",
            State::Overload => "overload",
            State::Both => "both",
            State::Disk => "disk",
        }
    }

    /// Its number.
    #[must_use]
    pub fn at(self) -> usize {
        self as usize
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether another leader would be free of it. Load comes after the leader, so overload alone
    /// is not.
    #[must_use]
    pub fn stays_behind(self) -> bool {
        matches!(self, State::Network | State::Both | State::Disk)
    }
}

/// What is known of a member at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When it was taken, in milliseconds of Unix time.
    pub at_ms: u64,
    /// The member's id.
    pub member: u64,
    /// Its name.
    pub name: String,
    /// It led then.
    pub leads: bool,
    /// Its own measure of the way to its peers, in microseconds, by their ids.
    pub peer_round_trips: Vec<(u64, f64)>,
    /// By [`Column::at`]; what was not to be had is `None`.
    pub values: Vec<Option<f64>>,
}

impl Sample {
    /// One of which nothing is known.
    #[must_use]
    pub fn new(at_ms: u64, member: u64, name: String) -> Self {
        Sample {
            at_ms,
            member,
            name,
            leads: false,
            peer_round_trips: Vec::new(),
            values: vec![None; Column::ALL.len()],
        }
    }

    /// A value, if it was to be had.
    #[must_use]
    pub fn get(&self, column: Column) -> Option<f64> {
        self.values[column.at()]
    }

    /// Sets a value. One that is no number is not to be had.
    pub fn set(&mut self, column: Column, value: Option<f64>) {
        self.values[column.at()] = value.filter(|value| value.is_finite());
    }
}

/// What was done to a member when a sample was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Truth {
    /// The state it was put in.
    pub label: Option<State>,
    /// How much later what it sent was, in microseconds.
    pub delay_us: Option<f64>,
    /// How much longer its syncs took, in microseconds.
    pub sync_us: Option<f64>,
}

/// A sample with where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The run.
    pub run: String,
    /// The period within it.
    pub period: u32,
    /// Milliseconds since that began.
    pub since_ms: u64,
    /// What was done to the member.
    pub truth: Truth,
    /// What was seen.
    pub sample: Sample,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_every_column_in_order() {
        let page = include_str!("../../../docs/reference/forecast-data-set.md");
        let leading = LEADING
            .iter()
            .map(|(name, help)| format!("| `{name}` | | {help} |"));
        let values = Column::ALL.iter().map(|column| {
            let kind = match column.kind() {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            format!("| `{}` | {kind} | {} |", column.name(), column.help())
        });
        let rows: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        assert_eq!(rows, leading.chain(values).collect::<Vec<_>>());
    }
}
