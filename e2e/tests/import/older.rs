//! etcd 3.5 and 3.6 with their own etcdutl: what it restores goes to orlop, and what orlop
//! exports it restores.

use std::path::Path;

use crate::STEPS;
use crate::support::{
    ETCDS, Result, Writer, conclude, data_dir, ensure, equal, etcd, etcdutl_of, fail, orlop,
    restore_by, save, serve, text, until_hash, view,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_etcdutls_and_orlop_take_each_others_files() {
    for set in &ETCDS[1..] {
        let dir = tempfile::tempdir().unwrap();
        println!("{set}");
        let result = there_and_back(dir.path(), set).await;
        conclude(dir, result);
    }
}

/// What is the same in the status of every etcdutl: that of 3.5 counts the entries of all
/// buckets as keys.
fn status(said: &str) -> Result<Vec<i64>> {
    let json: serde_json::Value = serde_json::from_str(said)?;
    let fields = ["hash", "revision", "totalSize"];
    let numbers: Option<Vec<_>> = fields.iter().map(|name| json[*name].as_i64()).collect();
    numbers.map_or_else(|| fail(format!("fields are missing: {said}")), Ok)
}

async fn there_and_back(dir: &Path, set: &str) -> Result<()> {
    let mut source = etcd(set, "source", dir).await?;
    Writer::new(&source, 5).await?.steps(STEPS).await?;
    let before = view(&source).await?;
    let saved = dir.join("saved.db");
    save(&source, &saved)?;
    source.stop()?;
    let ask = ["snapshot", "status", text(&saved), "-w", "json"];
    let (theirs, ours) = (etcdutl_of(set, &ask)?.well()?, orlop(&ask)?.well()?);
    ensure(status(&theirs)? == status(&ours)?, || {
        format!("{theirs}{ours}")
    })?;

    // What it restored, before any etcd has started from it.
    restore_by(set, &saved, "theirs", dir, &[])?;
    let theirs = data_dir("theirs", dir);
    let ours = data_dir("ours", dir);
    let restore = ["snapshot", "restore", text(&theirs), "--data-dir"];
    orlop(&[&restore[..], &[text(&ours), "--keep-revisions"]].concat())?.well()?;
    let mut store = serve("ours", dir).await?;
    equal(&before, &view(&store).await?)?;
    store.stop()?;

    // And back.
    let version = set.strip_prefix("etcd-").unwrap_or_default();
    let back = dir.join("back.db");
    let export = ["export", "--data-dir", text(&ours), "-o", text(&back)];
    orlop(&[&export[..], &["--etcd-version", version]].concat())?.well()?;
    restore_by(set, &back, "back", dir, &[])?;
    let mut again = etcd(set, "back", dir).await?;
    equal(&before, &view(&again).await?)?;
    again.stop()?;

    if version == "3.6" {
        // Its etcdutl takes any file; itself it wants one of its own version.
        let newer = dir.join("newer.db");
        let export = ["export", "--data-dir", text(&ours), "-o", text(&newer)];
        orlop(&export)?.well()?;
        restore_by(set, &newer, "newer", dir, &[])?;
        let said = match etcd(set, "newer", dir).await {
            Ok(_) => "it started".to_owned(),
            Err(error) => error.to_string(),
        };
        ensure(said.contains("is not supported"), || said)?;
    }

    // A backup, with the revision raised by either.
    let more = ["--bump-revision", "1000000000", "--mark-compacted"];
    restore_by(set, &back, "bumped", dir, &more)?;
    let mut bumped = etcd(set, "bumped", dir).await?;
    until_hash(&bumped, |hash| hash.compact_revision > 1_000_000_000).await?;
    let restore = ["snapshot", "restore", text(&back), "--data-dir"];
    let raised = data_dir("raised", dir);
    orlop(&[&restore[..], &[text(&raised)]].concat())?.well()?;
    let mut store = serve("raised", dir).await?;
    equal(&view(&bumped).await?, &view(&store).await?)?;
    store.stop()?;
    Ok(bumped.stop()?)
}
