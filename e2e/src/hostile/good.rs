//! A client that does nothing wrong, on a thread of its own, and notes how long it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tonic::transport::Endpoint;

use crate::kube::{Result, fail};

/// How long it waits for an answer before it counts as none.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The client.
#[derive(Debug)]
pub struct Good {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

/// What its puts took.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    /// Ascending.
    sorted: Vec<Duration>,
}

impl Latency {
    /// The latency that `share` of the calls did not exceed; 1.0 gives the longest.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let n = self.sorted.len();
        let at = ((n as f64 * share).ceil() as usize).clamp(1, n.max(1)) - 1;
        self.sorted.get(at).copied().unwrap_or_default()
    }

    /// Number of calls.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }
}

impl Good {
    /// Starts it: one put after the other to `url`, of `value_bytes` to one of `keys` keys,
    /// with `pause` between them.
    #[must_use]
    pub fn start(url: String, keys: usize, value_bytes: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(run(&url, keys, value_bytes, pause, &stopping))
        });
        Self { stop, thread }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If a call failed.
    pub fn finish(self) -> Result<Latency> {
        self.stop.store(true, Ordering::SeqCst);
        let Ok(taken) = self.thread.join() else {
            return fail("the good client panicked");
        };
        let mut sorted = taken?;
        sorted.sort_unstable();
        Ok(Latency { sorted })
    }
}

async fn run(
    url: &str,
    keys: usize,
    value_bytes: usize,
    pause: Duration,
    stop: &AtomicBool,
) -> Result<Vec<Duration>> {
    let channel = match Endpoint::from_shared(url.to_owned()) {
        Ok(endpoint) => endpoint.connect_lazy(),
        Err(error) => return fail(format!("{url}: {error}")),
    };
    let mut kv = KvClient::new(channel);
    let mut taken = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let put = pb::PutRequest {
            key: format!("good/{:04}", taken.len() % keys).into(),
            value: vec![b'g'; value_bytes].into(),
            ..Default::default()
        };
        let began = Instant::now();
        match tokio::time::timeout(CALL_TIMEOUT, kv.put(put)).await {
            Ok(Ok(_)) => taken.push(began.elapsed()),
            Ok(Err(status)) => return fail(format!("the good client was refused: {status}")),
            Err(_) => return fail(format!("the good client waited {CALL_TIMEOUT:?}")),
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(taken)
}
