//! Many puts at once, to fill a server before something is measured.

use std::sync::Arc;

use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::kube::{Result, fail};

/// Puts under way at once.
const AT_ONCE: usize = 64;

/// Does `count` puts, in no order; `put` makes the nth.
///
/// # Errors
/// If one is refused.
pub async fn put_all<F>(channel: &Channel, count: usize, put: F) -> Result<()>
where
    F: Fn(usize) -> pb::PutRequest + Send + Sync + 'static,
{
    let put = Arc::new(put);
    let mut tasks = JoinSet::<Result<()>>::new();
    for first in 0..AT_ONCE {
        let mut kv = KvClient::new(channel.clone());
        let put = Arc::clone(&put);
        tasks.spawn(async move {
            for n in (first..count).step_by(AT_ONCE) {
                if let Err(status) = kv.put(put(n)).await {
                    return fail(format!("put {n}: {status}"));
                }
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(result) => result?,
            Err(error) => return fail(format!("a loader ended: {error}")),
        }
    }
    Ok(())
}
