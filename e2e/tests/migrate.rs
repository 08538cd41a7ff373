//! A Kubernetes control plane moves from etcd to orlop and back, under load: nothing is
//! lost, revisions stay valid, controllers go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::kube::api::{Api, revision};
use e2e::kube::control_plane::ControlPlane;
use e2e::kube::ledger::Ledger;
use e2e::kube::node::Nodes;
use e2e::kube::proc::{Process, conclude, run};
use e2e::kube::reflector::Reflector;
use e2e::kube::steps::Steps;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Error, Result, binaries, ensure, eventually, fail, scenarios};
use serde_json::{Value, json};

const APISERVER_FLAGS: [&str; 2] = ["--event-ttl=20s", "--etcd-compaction-interval=20s"];
/// How long an import may take until it follows, and until it has ended.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects whose revision is remembered over a move.
const HELD: usize = 8;
const HELD_PATH: &str = "/api/v1/namespaces/held/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_moves_to_orlop_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let result = there_and_back(dir.path()).await;
    conclude(dir, result);
}

async fn there_and_back(dir: &Path) -> Result<()> {
    let mut steps = Steps::start();
    let mut etcd = Store::start(Kind::Etcd, "etcd", dir, None, &[]).await?;
    let mut plane = ControlPlane::start(dir, "kube-1.37", &etcd, &APISERVER_FLAGS).await?;
    let result = moves(dir, &mut etcd, &mut plane, &mut steps).await;
    plane.explain(result)
}

async fn moves(
    dir: &Path,
    etcd: &mut Store,
    plane: &mut ControlPlane,
    steps: &mut Steps,
) -> Result<()> {
    plane.start_component("kube-controller-manager", "kube-controller-manager")?;
    plane.start_component("kube-scheduler", "kube-scheduler")?;
    let api = plane.api();
    scenarios::create_crd(&api).await?;
    let nodes = Nodes::start(Arc::clone(&api), 3).await?;
    for namespace in ["load", "held"] {
        scenarios::create_namespace(&api, namespace).await?;
    }
    let load = Ledger::start(&[Arc::clone(&api)], "load", 3, Duration::from_millis(40));
    let mirror = Reflector::start(Arc::clone(&api), "/api/v1/configmaps");
    steps.done("a control plane runs on etcd");
    tokio::try_join!(
        scenarios::deployments(Arc::clone(&api), "deployments"),
        scenarios::custom_resources(Arc::clone(&api), "widgets"),
        scenarios::namespace_deletion(Arc::clone(&api), "doomed-on-etcd"),
    )?;
    steps.done("it has worked");

    let event = scenarios::create_event(&api, "expires-on-orlop").await?;
    let held = hold(&api).await?;
    scenarios::scale(&api, "deployments", "one", 6).await?;
    let mut orlop = to_orlop(dir, etcd, plane, steps).await?;
    goes_on(plane, &load, &held, "orlop", 6).await?;
    steps.done("it works on orlop");

    let held = hold(&api).await?;
    scenarios::event_expires(&api, &event).await?;
    steps.done("an event of before the move has expired");
    scenarios::scale(&api, "deployments", "one", 2).await?;
    let mut back = to_etcd(dir, &mut orlop, plane, steps).await?;
    goes_on(plane, &load, &held, "etcd", 2).await?;
    steps.done("it works on etcd again");

    let summary = load.finish(&api).await?;
    println!("load: {summary:?}");
    ensure(summary.acked > 300 && summary.objects > 0, || {
        format!("{summary:?}")
    })?;
    for mirror in [&mirror, nodes.pods()] {
        mirror.check()?;
        // The first list, and one for each new apiserver.
        ensure(mirror.lists() <= 3, || {
            format!("a client listed {} times", mirror.lists())
        })?;
    }
    plane.check_running()?;
    back.check_running()?;
    steps.done("nothing is lost");
    Ok(())
}

/// Objects as a client holds them that will write them back later.
async fn hold(api: &Api) -> Result<Vec<Value>> {
    let mut held = Vec::new();
    for n in 0..HELD {
        let name = format!("held-{n}");
        let object = match api.find(&format!("{HELD_PATH}/{name}")).await? {
            Some(object) => object,
            None => {
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }
                });
                api.create(HELD_PATH, &object).await?
            }
        };
        held.push(object);
    }
    Ok(held)
}

/// Imports from etcd while it is written to, and starts the apiserver on the result.
async fn to_orlop(
    dir: &Path,
    etcd: &mut Store,
    plane: &mut ControlPlane,
    steps: &mut Steps,
) -> Result<Store> {
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .arg("import")
        .arg(format!("--from={}", etcd.url()))
        .arg(format!("--data-dir={}", dir.join("orlop-data").display()))
        .args(["--name=orlop", "--follow"]);
    let mut import = Process::start("import", dir, &mut command)?;
    let log = import.log().to_owned();
    eventually("the import follows", IMPORT_TIMEOUT, || async {
        let said = std::fs::read_to_string(&log)?;
        Ok(said.contains("following").then_some(()))
    })
    .await?;
    steps.done("the import follows changes");
    // Some of them.
    tokio::time::sleep(Duration::from_secs(2)).await;

    plane.stop_apiserver(0);
    let down = Instant::now();
    let status = import.terminate(IMPORT_TIMEOUT)?;
    let said = std::fs::read_to_string(&log)?;
    ensure(status.success(), || format!("the import failed: {said}"))?;
    let at = number_after(&said, "verified: HashKV", "at revision ")?;
    let before = State::read(etcd, at)?;
    etcd.stop()?;
    let orlop = Store::start(Kind::Orlop, "orlop", dir, None, &[]).await?;
    before.compare(&State::read(&orlop, at)?)?;
    plane.use_store(&orlop);
    plane.restart_apiserver(0, &APISERVER_FLAGS).await?;
    println!(
        "{} keys at revision {at}; without an apiserver for {:.1} s",
        before.keys.len(),
        down.elapsed().as_secs_f64()
    );
    steps.done("the apiserver runs on orlop");
    Ok(orlop)
}

/// Exports from orlop, and starts an etcd and the apiserver on the result.
async fn to_etcd(
    dir: &Path,
    orlop: &mut Store,
    plane: &mut ControlPlane,
    steps: &mut Steps,
) -> Result<Store> {
    plane.stop_apiserver(0);
    let down = Instant::now();
    let file = dir.join("export.db").display().to_string();
    let endpoint = format!("--endpoint={}", orlop.url());
    let said =
        run(Command::new(Kind::Orlop.program()?).args(["export", &endpoint, "--output", &file]))?;
    let at = number_after(&said, "wrote ", "revision ")?;
    let before = State::read(orlop, at)?;
    orlop.stop()?;
    let data = dir.join("back-data").display().to_string();
    let peer = "http://127.0.0.1:2380";
    let args = [
        "snapshot",
        "restore",
        &file,
        "--data-dir",
        &data,
        "--name=back",
        &format!("--initial-cluster=back={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
    ];
    run(Command::new(binaries("etcd")?.join("etcdutl")).args(args))?;
    let back = Store::start(Kind::Etcd, "back", dir, None, &[]).await?;
    before.compare(&State::read(&back, at)?)?;
    plane.use_store(&back);
    plane.restart_apiserver(0, &APISERVER_FLAGS).await?;
    println!(
        "{} keys at revision {at}; without an apiserver for {:.1} s",
        before.keys.len(),
        down.elapsed().as_secs_f64()
    );
    steps.done("the apiserver runs on etcd again");
    Ok(back)
}

/// The number behind `before` on the line that begins with `line`.
fn number_after(said: &str, line: &str, before: &str) -> Result<i64> {
    let number = said
        .lines()
        .find(|l| l.starts_with(line))
        .and_then(|l| l.split(before).nth(1))
        .map(|rest| {
            rest.chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        })
        .and_then(|digits| digits.parse().ok());
    number.map_or_else(
        || {
            fail(format!(
                "no number behind {before:?} after {line:?} in: {said}"
            ))
        },
        Ok,
    )
}

/// What a store has at a revision: the last revision of each key, and etcd's hash.
struct State {
    keys: BTreeMap<String, i64>,
    hash: Value,
}

impl State {
    fn read(store: &Store, at: i64) -> Result<Self> {
        let etcdctl = store.etcdctl()?;
        let args = [
            "endpoint",
            "hashkv",
            "--write-out=json",
            &format!("--rev={at}"),
        ];
        let answer: Value = serde_json::from_str(&etcdctl.ok(&args)?)?;
        let hash = |name: &str| answer[0]["HashKV"][name].clone();
        Ok(Self {
            keys: etcdctl.keys("/registry/", at)?,
            hash: json!([
                hash("hash"),
                hash("hash_revision"),
                hash("compact_revision")
            ]),
        })
    }

    fn compare(&self, other: &State) -> Result<()> {
        ensure(!self.keys.is_empty() && self.hash[0].is_u64(), || {
            format!(
                "nothing to compare: {} keys, {}",
                self.keys.len(),
                self.hash
            )
        })?;
        ensure(self.keys == other.keys, || {
            "keys or their revisions differ".to_owned()
        })?;
        ensure(self.hash == other.hash, || {
            format!("HashKV differs: {} and {}", self.hash, other.hash)
        })
    }
}

/// After a move: the load's writes come through, old revisions are good for an update and
/// only for one, controllers finish what they had begun and begin anew.
async fn goes_on(
    plane: &mut ControlPlane,
    load: &Ledger,
    held: &[Value],
    on: &str,
    replicas: u64,
) -> Result<()> {
    let api = plane.api();
    load.wait_for_more(50, Duration::from_secs(30)).await?;
    for object in held {
        update(&api, object, on).await?;
    }
    let (first, second) = (format!("jobs-on-{on}"), format!("doomed-on-{on}-after"));
    let work = async {
        scenarios::wait_for_leader(&api, "kube-scheduler").await?;
        scenarios::wait_for_deployment(&api, "deployments", "one", replicas).await?;
        tokio::try_join!(
            scenarios::jobs(Arc::clone(&api), &first),
            scenarios::namespace_deletion(Arc::clone(&api), &second),
        )
        .map(drop)
    };
    // A leader whose apiserver was away for long has ended; a kubelet starts it again.
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(500)) => plane.revive()?,
        }
    }
}

async fn update(api: &Api, object: &Value, on: &str) -> Result<()> {
    let mut changed = object.clone();
    changed["data"] = json!({ "on": on });
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{HELD_PATH}/{name}");
    let new = api.replace(&path, &changed).await?;
    ensure(revision(&new) > revision(object), || {
        format!(
            "{path}: revision {} after {}",
            revision(&new),
            revision(object)
        )
    })?;
    match api.replace(&path, &changed).await {
        Err(Error::Status { status: 409, .. }) => Ok(()),
        other => fail(format!(
            "{path}: a second update with one revision: {other:?}"
        )),
    }
}
