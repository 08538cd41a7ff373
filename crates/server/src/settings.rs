//! What the operator chose, worked out once at the start.

use crate::memory::Budget;
use crate::memory::Quota;
use config::Config;
use std::time::Duration;

/// What etcd allows a request besides `--max-request-bytes`.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// Limits and thresholds.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) max_txn_ops: usize,
    pub(crate) max_request_bytes: usize,
    /// The largest message: a request with what etcd allows besides. A watch's answer that is to
    /// come in fragments is cut there too.
    pub(crate) max_message_bytes: usize,
    pub(crate) max_watches: i64,
    pub(crate) progress_interval: Duration,
    pub(crate) warning_apply: Duration,
    pub(crate) warning_unary: Duration,
    pub(crate) quota: Quota,
    pub(crate) history_budget_bytes: u64,
}

impl Settings {
    /// What a configuration and the memory there is come to.
    pub(crate) fn new(config: &Config, budget: &Budget) -> Self {
        let max_request_bytes = config.max_request_bytes as usize;
        Settings {
            max_txn_ops: config.max_txn_ops as usize,
            max_request_bytes,
            max_message_bytes: max_request_bytes + MESSAGE_OVERHEAD_BYTES,
            max_watches: config.max_watches as i64,
            progress_interval: config.watch_progress_notify_interval,
            warning_apply: config.warning_apply_duration,
            warning_unary: config.warning_unary_request_duration,
            quota: budget.quota,
            history_budget_bytes: budget.history_bytes,
        }
    }
}
