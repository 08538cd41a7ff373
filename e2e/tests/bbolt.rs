//! The crate `bbolt` and the real thing, both ways: bbolt and etcd accept and change what
//! it writes, and it reads what they write, also when that is damaged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bbolt::{Database, Planner, Report, Writer};
use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Error, Result, binaries, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;

/// etcdctl puts a SHA-256 behind a snapshot.
const TRAILER_BYTES: u64 = 32;
const MIB: usize = 1 << 20;
/// Damaged copies read of each real file.
const DAMAGED_COPIES: u64 = 300;

type Items = Vec<(Vec<u8>, Vec<u8>)>;
/// Buckets by name.
type Content = Vec<(Vec<u8>, Items)>;

/// Runs a pinned program to its end.
fn run(set: &str, program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(binaries(set)?.join(program))
        .args(args)
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure(output.status.success(), || {
        let said = text(&output.stdout) + &text(&output.stderr);
        format!("{program} {args:?}: {}", &said[said.len().min(2000)..])
    })?;
    Ok(text(&output.stdout))
}

fn path_of(path: &Path) -> String {
    path.display().to_string()
}

/// bbolt's own check, which panics on some damage and reports others.
fn bbolt_check(file: &Path) -> Result<()> {
    let said = run("bbolt", "bbolt", &["check", &path_of(file)])?;
    ensure(said.trim() == "OK", || format!("bbolt check: {said}"))
}

fn failed(error: bbolt::Error) -> Error {
    Error::Failed(error.to_string())
}

fn write(content: &Content, page_size: u32, file: &Path) -> Result<()> {
    let write = || {
        let mut planner = Planner::new(page_size)?;
        for (name, items) in content {
            planner.bucket(name)?;
            for (key, value) in items {
                planner.item(key.len(), value.len())?;
            }
        }
        let mut writer = Writer::new(planner.finish()?, Vec::new())?;
        for (name, items) in content {
            writer.bucket(name)?;
            for (key, value) in items {
                writer.item(key, value)?;
            }
        }
        writer.finish()
    };
    std::fs::write(file, write().map_err(failed)?)?;
    Ok(())
}

/// Opens a file, less what stands behind the database.
fn open(file: &Path, trailer_bytes: u64) -> Result<Database<std::fs::File>> {
    let opened = std::fs::File::open(file)?;
    let bytes = opened.metadata()?.len() - trailer_bytes;
    Database::open(opened, bytes).map_err(failed)
}

/// Checks a file and reads all values of its top buckets.
fn read(file: &Path, trailer_bytes: u64) -> Result<(Report, Content)> {
    let db = open(file, trailer_bytes)?;
    let read = || {
        let report = db.check()?;
        let mut content = Content::new();
        let mut buckets = db.buckets()?;
        while let Some(entry) = buckets.next_entry()? {
            let mut items = Items::new();
            if let Some(bucket) = entry.bucket()? {
                let mut cursor = db.cursor(&bucket, None)?;
                while let Some(item) = cursor.next_entry()? {
                    if !item.is_bucket() {
                        items.push((item.key().to_vec(), item.value().to_vec()));
                    }
                }
            }
            content.push((entry.key().to_vec(), items));
        }
        Ok((report, content))
    };
    read().map_err(failed)
}

/// Keys as in etcd's key bucket.
fn revisions(n: u64, value_bytes: impl Fn(u64) -> usize) -> Items {
    (1..=n)
        .map(|i| {
            let mut key = i.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend(0_u64.to_be_bytes());
            (key, vec![i as u8; value_bytes(i)])
        })
        .collect()
}

#[test]
fn bbolt_accepts_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let result = ours_are_accepted(dir.path());
    conclude(dir, result);
}

fn ours_are_accepted(dir: &Path) -> Result<()> {
    let one = |items| vec![(b"key".to_vec(), items)];
    let large = |i: u64| match i {
        3 => 6 * MIB,
        4..8 => MIB + 7,
        i => (i * 37 % 9000) as usize,
    };
    let several = vec![
        (b"meta".to_vec(), revisions(5, |_| 8)),
        (b"alarm".to_vec(), Items::new()),
        (b"key".to_vec(), revisions(3000, |i| i as usize)),
        (b"lease".to_vec(), Items::new()),
        (b"bench".to_vec(), revisions(1, |_| 3)),
    ];
    let long_keys = (0..40_u32)
        .map(|i| {
            let mut key = i.to_be_bytes().to_vec();
            key.resize(4 + (i as usize * 821) % 32764, 1);
            (key, vec![0; 100])
        })
        .collect();
    let databases: [(&str, Content, u32); 7] = [
        ("empty", Content::new(), 4096),
        ("several", several, 4096),
        ("large", one(revisions(200, large)), 4096),
        (
            "pages of 64 KiB",
            one(revisions(20_000, |i| (i % 3000) as usize)),
            65536,
        ),
        ("pages of 16 KiB", one(revisions(200, large)), 16384),
        ("long keys", one(long_keys), 4096),
        ("a million keys", one(revisions(1_000_000, |_| 20)), 4096),
    ];
    for (name, mut content, page_size) in databases {
        let file = dir.join(name);
        write(&content, page_size, &file)?;
        let outcome = accepted(dir, &file, &mut content);
        outcome.map_err(|error| Error::Failed(format!("{name}: {error}")))?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

/// Checked by bbolt, copied key by key by bbolt, and changed by bbolt at random places.
fn accepted(dir: &Path, file: &Path, content: &mut Content) -> Result<()> {
    content.sort();
    bbolt_check(file)?;
    let copy = dir.join("copy");
    run(
        "bbolt",
        "bbolt",
        &["compact", "-o", &path_of(&copy), &path_of(file)],
    )?;
    let (_, copied) = read(&copy, 0)?;
    std::fs::remove_file(&copy)?;
    ensure(copied == *content, || "bbolt's copy differs".to_owned())?;

    let before = read(file, 0)?.0.keys;
    bench(file, "rnd", 2000, 500)?;
    bbolt_check(file)?;
    let (report, _) = read(file, 0)?;
    ensure(report.keys == before + 2000, || {
        format!("{before} keys became {} by 2000 more", report.keys)
    })
}

/// Lets bbolt put random or ascending keys into the bucket `bench`, or buckets in it.
fn bench(file: &Path, mode: &str, count: u32, value_bytes: u32) -> Result<()> {
    let args = [
        "bench".to_owned(),
        "--work".to_owned(),
        format!("--path={}", path_of(file)),
        format!("--write-mode={mode}"),
        format!("--count={count}"),
        format!("--batch-size={}", count / 4),
        format!("--value-size={value_bytes}"),
        "--profile-mode=w".to_owned(),
        "--no-sync".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("bbolt", "bbolt", &args).map(drop)
}

#[test]
fn what_bbolt_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let result = theirs_are_read(dir.path());
    conclude(dir, result);
}

fn theirs_are_read(dir: &Path) -> Result<()> {
    // With a list of free pages, since each batch is a transaction.
    for (mode, count, value_bytes, rounds) in [
        ("seq", 4000, 32, 1),
        ("rnd", 1000, 600, 3),
        ("rnd", 100, 20_000, 1),
        ("seq-nest", 4000, 100, 1),
        ("rnd-nest", 4000, 10, 2),
    ] {
        let file = dir.join(format!("{mode}-{value_bytes}"));
        for _ in 0..rounds {
            bench(&file, mode, count, value_bytes)?;
        }
        bbolt_check(&file)?;
        let (report, content) = read(&file, 0)?;
        // Ascending keys are the same again, random ones are not, with certainty enough.
        let count = u64::from(count);
        let keys = count * if mode.starts_with("rnd") { rounds } else { 1 };
        ensure(report.keys == keys, || {
            format!("{mode}: {report:?} instead of {keys} keys")
        })?;
        ensure(report.free_pages.is_some_and(|n| n > 0), || {
            format!("{mode}: {report:?}: no free pages")
        })?;
        ensure(content.len() == 1, || format!("{mode}: its buckets"))?;
        survives_damage(&std::fs::read(&file)?, value_bytes.into())?;
    }
    Ok(())
}

/// Reads copies with flipped bits and cut ends: an error or an answer, and soon.
fn survives_damage(file: &[u8], seed: u64) -> Result<()> {
    let mut random = e2e::differential::rng::Rng::new(seed);
    let mut errors = 0;
    for round in 0..DAMAGED_COPIES {
        let mut copy = file.to_vec();
        let length = if round % 4 == 0 {
            random.below(copy.len())
        } else {
            copy.len()
        };
        copy.truncate(length);
        for _ in 0..random.below(4) {
            // Half of them where pages have their header and table.
            let mut at = random.below(file.len());
            if random.below(2) == 0 {
                at = at / 4096 * 4096 + at % 64;
            }
            if let Some(byte) = copy.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        let bytes = copy.len() as u64;
        let checked = Database::open(copy, bytes).and_then(|db| db.check());
        errors += u32::from(checked.is_err());
    }
    ensure(errors > 0, || "no damage was noticed".to_owned())
}

#[tokio::test]
async fn etcds_snapshot_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let result = etcd_round_trip(dir.path()).await;
    conclude(dir, result);
}

/// A client of each service.
struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

fn status(status: tonic::Status) -> Error {
    Error::Failed(status.to_string())
}

impl Clients {
    async fn connect(url: &str) -> Result<Self> {
        let endpoint = tonic::transport::Endpoint::from_shared(url.to_owned());
        let channel = match endpoint {
            Ok(endpoint) => endpoint.connect().await,
            Err(error) => Err(error),
        };
        match channel {
            Err(error) => fail(format!("no connection to {url}: {error}")),
            Ok(channel) => Ok(Self {
                kv: KvClient::new(channel.clone()),
                lease: LeaseClient::new(channel.clone()),
                maintenance: MaintenanceClient::new(channel),
            }),
        }
    }

    async fn put(&mut self, key: String, value_bytes: usize, lease: i64) -> Result<i64> {
        let request = pb::PutRequest {
            value: vec![key.len() as u8; value_bytes].into(),
            key: key.into_bytes().into(),
            lease,
            ..Default::default()
        };
        let answer = self.kv.put(request).await.map_err(status)?;
        Ok(answer.into_inner().header.unwrap_or_default().revision)
    }

    async fn delete(&mut self, from: &str, to: &str) -> Result<()> {
        let request = pb::DeleteRangeRequest {
            key: from.as_bytes().to_vec().into(),
            range_end: to.as_bytes().to_vec().into(),
            ..Default::default()
        };
        self.kv.delete_range(request).await.map_err(status)?;
        Ok(())
    }

    async fn compact(&mut self, revision: i64) -> Result<()> {
        let request = pb::CompactionRequest {
            revision,
            physical: true,
        };
        self.kv.compact(request).await.map_err(status)?;
        Ok(())
    }

    /// Hash, compact revision and revision.
    async fn hash_kv(&mut self) -> Result<(u32, i64, i64)> {
        let request = pb::HashKvRequest::default();
        let answer = self.maintenance.hash_kv(request).await.map_err(status)?;
        let answer = answer.into_inner();
        Ok((answer.hash, answer.compact_revision, answer.hash_revision))
    }

    /// Keys, large values, leases, deletes and a compaction in the middle.
    async fn fill(&mut self) -> Result<()> {
        for id in 1..=20 {
            let request = pb::LeaseGrantRequest { ttl: 3600, id };
            self.lease.lease_grant(request).await.map_err(status)?;
        }
        let mut revision = 0;
        for i in 0..1500 {
            let value_bytes = match i {
                700 | 1400 => MIB,
                i => i * 13 % 3000,
            };
            let lease = if i % 9 == 0 { i as i64 % 20 + 1 } else { 0 };
            revision = self.put(format!("key-{i:05}"), value_bytes, lease).await?;
        }
        self.delete("key-00300", "key-00600").await?;
        self.compact(revision - 400).await
    }
}

async fn etcd_round_trip(dir: &Path) -> Result<()> {
    let mut store = Store::start(Kind::Etcd, "etcd", dir, None, &[]).await?;
    let mut clients = Clients::connect(&store.url()).await?;
    let empty = save(&store, dir, "of-an-empty-store")?;
    clients.fill().await?;
    let full = save(&store, dir, "of-a-full-store")?;
    let hash = clients.hash_kv().await?;
    store.stop()?;

    for file in [&empty, &full] {
        survives_damage(&std::fs::read(file)?, 7)?;
        let (_, content) = read(file, TRAILER_BYTES)?;
        let ours = file.with_extension("ours");
        write(&content, 4096, &ours)?;
        // Over all buckets, keys and values; the total size may differ.
        let status = |file: &Path| -> Result<serde_json::Value> {
            let args = ["snapshot", "status", "-w", "json", &path_of(file)];
            Ok(serde_json::from_str(&run("etcd", "etcdutl", &args)?)?)
        };
        let (ours, theirs) = (status(&ours)?, status(file)?);
        for name in ["hash", "revision", "totalKey", "version"] {
            ensure(ours[name] == theirs[name], || {
                format!("{name}: {ours} instead of {theirs}")
            })?;
        }
    }
    restored(&mut store, &full.with_extension("ours"), hash).await
}

fn save(store: &Store, dir: &Path, name: &str) -> Result<PathBuf> {
    let file = dir.join(name);
    store
        .etcdctl()?
        .ok(&["snapshot", "save", &path_of(&file)])
        .map(|_| file)
}

/// A real etcd starts from our file, has the same hash, and changes it in every way.
async fn restored(store: &mut Store, file: &Path, hash: (u32, i64, i64)) -> Result<()> {
    let data = store.data_dir();
    std::fs::remove_dir_all(&data)?;
    let to = format!("--data-dir={}", path_of(&data));
    let args = [
        "snapshot",
        "restore",
        &path_of(file),
        "--skip-hash-check",
        &to,
    ];
    run("etcd", "etcdutl", &args)?;
    store.start_again().await?;
    let mut clients = Clients::connect(&store.url()).await?;
    let now = clients.hash_kv().await?;
    ensure(now == hash, || {
        format!("HashKV is {now:?} instead of {hash:?}")
    })?;

    clients.delete("key-00900", "key-01200").await?;
    let mut revision = 0;
    for i in (0..1500).step_by(3) {
        revision = clients.put(format!("key-{i:05}"), i, 0).await?;
    }
    clients.compact(revision).await?;
    for id in 1..=10 {
        let request = pb::LeaseRevokeRequest { id };
        clients.lease.lease_revoke(request).await.map_err(status)?;
    }
    // A compaction deletes in the background, and etcd commits ten times a second.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let db = data.join("member/snap/db");
    store.stop()?;
    bbolt_check(&db)?;
    let (report, _) = read(&db, 0)?;
    ensure(report.free_pages.is_none(), || {
        format!("etcd does not store its free pages, but: {report:?}")
    })?;
    store.start_again().await?;
    store.etcdctl()?.ok(&["defrag"])?;
    store.stop()?;
    bbolt_check(&db)?;
    read(&db, 0).map(drop)
}
