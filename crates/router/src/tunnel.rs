//! Connections that have switched to another protocol (WebSocket): bytes both ways.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::body::Hold;
use crate::router::Router;

/// Bytes that a tunnel keeps of each direction.
const BUFFER_BYTES: usize = 8 << 10;
/// Both sides have said that they switch; that takes no longer.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Counts a tunnel.
struct Counted(Arc<Router>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counts.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes bytes on until one side ends. `hold` is held as long.
pub(crate) fn start(router: Arc<Router>, client: OnUpgrade, pod: OnUpgrade, hold: Hold) {
    router.counts.tunnels.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(router);
    tokio::spawn(async move {
        let both = async { tokio::try_join!(client, pod) };
        let switched = tokio::time::timeout(SWITCH_TIMEOUT, both).await;
        if let Ok(Ok((client, pod))) = switched {
            let (mut client, mut pod) = (TokioIo::new(client), TokioIo::new(pod));
            // How it ends is the two sides' own business.
            let _ = tokio::io::copy_bidirectional_with_sizes(
                &mut client,
                &mut pod,
                BUFFER_BYTES,
                BUFFER_BYTES,
            )
            .await;
        }
        drop((hold, counted));
    });
}
