//! What all tests of the data directory need.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::hostile::node::Node;
use e2e::kube::store::Kind;
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::Status;

/// Small segments, so that little data makes many.
pub(crate) const FLAGS: [&str; 2] = ["--max-request-bytes=131072", "--segment-bytes=1048576"];

/// A call's error as a test's.
pub(crate) fn failed<T>(what: &str) -> impl FnOnce(Status) -> Result<T> {
    move |status| fail(format!("{what}: {status}"))
}

/// Puts one key.
pub(crate) async fn put(node: &Node, key: &str, value: &str) -> Result<()> {
    try_put(node, key, value).await.or_else(failed("put"))
}

/// The same, with gRPC's error.
pub(crate) async fn try_put(
    node: &Node,
    key: &str,
    value: &str,
) -> std::result::Result<(), Status> {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    };
    let channel = node
        .channel()
        .map_err(|error| Status::internal(error.to_string()))?;
    let call = async { KvClient::new(channel).put(put).await };
    match tokio::time::timeout(Duration::from_secs(15), call).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Status::deadline_exceeded("no answer in 15 s")),
    }
}

/// All keys, in order.
pub(crate) async fn keys(node: &Node) -> Result<Vec<String>> {
    let range = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        keys_only: true,
        ..Default::default()
    };
    let mut kv = KvClient::new(node.channel()?).max_decoding_message_size(256 << 20);
    let reply = kv.range(range).await.or_else(failed("range"))?.into_inner();
    let text = |kv: &etcd_api::mvccpb::KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
    Ok(reply.kvs.iter().map(text).collect())
}

/// Has a snapshot of the journal written.
pub(crate) async fn defragment(node: &Node) -> Result<()> {
    let mut client = MaintenanceClient::new(node.channel()?);
    let answer = client.defragment(pb::DefragmentRequest {}).await;
    answer.map(drop).or_else(failed("defragment"))
}

/// The start must fail with exit code 1 and say each of `texts`. Returns what it said.
pub(crate) async fn refused(node: &mut Node, texts: &[&str]) -> Result<String> {
    let (status, said) = node.run_refused().await?;
    ensure(status.code() == Some(1), || format!("{status}: {said}"))?;
    for text in texts {
        ensure(said.contains(text), || {
            format!("{text:?} is not in what it said: {said}")
        })?;
    }
    ensure(!said.contains("panicked"), || said.clone())?;
    Ok(said)
}

/// `orlop check`: exit code and output.
pub(crate) fn check(data: &Path) -> Result<(Option<i32>, String)> {
    let output = Command::new(Kind::Orlop.program()?)
        .arg("check")
        .arg(data)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

/// Waits until `done`.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        ensure(began.elapsed() < Duration::from_secs(30), || {
            format!("waited 30 s for {what}")
        })?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// All files of a directory, with their contents. The lock file's contents do not count:
/// who asks for the lock may write its name there.
#[derive(PartialEq)]
pub(crate) struct Files(BTreeMap<PathBuf, Vec<u8>>);

impl Files {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    left.push(path);
                } else if path.file_name().is_some_and(|name| name != "lock") {
                    let bytes = std::fs::read(&path)?;
                    files.insert(path, bytes);
                }
            }
        }
        Ok(Self(files))
    }

    /// Makes `dir`, where they were read, what it was.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        for path in Self::read(dir)?.0.keys() {
            std::fs::remove_file(path)?;
        }
        for (path, bytes) in &self.0 {
            std::fs::write(path, bytes)?;
        }
        Ok(())
    }

    /// Puts one of the files back.
    pub(crate) fn write_one(&self, path: &Path) -> Result<()> {
        match self.0.get(path) {
            Some(bytes) => Ok(std::fs::write(path, bytes)?),
            None => fail(format!("{} was not read", path.display())),
        }
    }
}
