//! `orlop playground`, `orlop bench kube` and `orlop bench members` as a newcomer runs them, and
//! that they leave nothing behind.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::proc::{Process, conclude, run};
use e2e::kube::store::Kind;
use e2e::kube::{Error, Result, binaries, ensure, fail};
use serde_json::Value;

/// On two cores that other tests may use too.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A playground with its files in `dir`, ready.
fn playground(dir: &Path, args: &[&str]) -> Result<(Process, PathBuf)> {
    let files = dir.join("files");
    std::fs::create_dir_all(&files)?;
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .args(["playground", "--nodes=2"])
        .arg(format!("--dir={}", files.display()))
        .args(args);
    let mut process = Process::start("playground", dir, &mut command)?;
    let began = Instant::now();
    loop {
        process.check_running()?;
        let text = std::fs::read_to_string(process.log())?;
        let kubeconfig = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("kubeconfig "));
        if let (Some(path), true) = (kubeconfig, text.contains("Type next")) {
            return Ok((process, PathBuf::from(path.trim())));
        }
        ensure(began.elapsed() < READY_TIMEOUT, || {
            format!("the playground is not ready: {text}")
        })?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kubectl(kubeconfig: &Path, args: &[&str]) -> Result<String> {
    run(Command::new(binaries("kube-1.37")?.join("kubectl"))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .args(args))
}

/// Command lines of living processes that name `dir`.
fn users_of(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&dir))
        .collect()
}

/// Waits until no process uses `dir` and nothing is in it.
fn nothing_left(dir: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        let files = std::fs::read_dir(dir)?.count();
        let users = users_of(dir);
        if files == 0 && users.is_empty() {
            return Ok(());
        }
        ensure(began.elapsed() < END_TIMEOUT, || {
            format!("left behind: {files} files, {users:?}")
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn runs_pods_and_goes(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    let (mut process, kubeconfig) = playground(dir, &[])?;
    store_is_private(&std::fs::read_to_string(process.log())?)?;
    kubectl(
        &kubeconfig,
        &[
            "create",
            "deployment",
            "hello",
            "--image=hello",
            "--replicas=3",
        ],
    )?;
    kubectl(
        &kubeconfig,
        &["rollout", "status", "deployment/hello", "--timeout=60s"],
    )?;
    kubectl(&kubeconfig, &["create", "job", "once", "--image=once"])?;
    kubectl(
        &kubeconfig,
        &[
            "wait",
            "job/once",
            "--for=condition=complete",
            "--timeout=60s",
        ],
    )?;
    measures(&kubeconfig, &dir.join("bench"))?;
    kubectl(&kubeconfig, &["delete", "deployment", "hello"])?;
    kubectl(
        &kubeconfig,
        &[
            "wait",
            "pod",
            "-l",
            "app=hello",
            "--for=delete",
            "--timeout=60s",
        ],
    )?;
    let status = process.terminate(END_TIMEOUT)?;
    ensure(status.success(), || format!("it ended with {status}"))?;
    nothing_left(&files)
}

/// Who has the directory's certificates reads the store, and nobody else; what the playground
/// printed works as it stands.
fn store_is_private(said: &str) -> Result<()> {
    let line = |name: &str| {
        let found = said.lines().find_map(|line| line.trim().strip_prefix(name));
        found
            .map(str::trim)
            .ok_or_else(|| Error::Failed(format!("no {name} in {said}")))
    };
    let etcdctl = binaries("etcd")?.join("etcdctl");
    let one_key = ["get", "/registry/", "--prefix", "--keys-only", "--limit=1"];
    let flags = line("etcdctl     etcdctl ")?;
    let found = run(Command::new(&etcdctl).args(flags.split(' ')).args(one_key))?;
    ensure(found.contains("/registry/"), || found.clone())?;
    let stranger = run(Command::new(&etcdctl)
        .arg(format!("--endpoints={}", line("store ")?))
        .args(["--insecure-skip-tls-verify", "--command-timeout=3s"])
        .args(one_key));
    ensure(stranger.is_err(), || {
        format!("a stranger read {stranger:?}")
    })?;
    let status = line("status      orlop ")?;
    let told = run(Command::new(Kind::Orlop.program()?).args(status.split(' ')))?;
    ensure(told.contains("revision"), || told.clone())
}

/// The benchmark takes a cluster that is there, and leaves nothing in it.
fn measures(kubeconfig: &Path, dir: &Path) -> Result<()> {
    let flag = format!("--kubeconfig={}", kubeconfig.display());
    let result = bench(dir, &[&flag])?;
    let complete = &result["runs"][0]["stages"]["complete"]["count"];
    ensure(*complete == 20 && result["nodes"].is_null(), || {
        format!("{complete} complete on {} nodes", result["nodes"])
    })?;
    let namespaces = kubectl(kubeconfig, &["get", "namespaces", "-o", "name"])?;
    ensure(!namespaces.contains("bench"), || {
        format!("left behind: {namespaces}")
    })
}

fn dies_whole(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    let (mut process, kubeconfig) = playground(dir, &["--profile=ephemeral"])?;
    ensure(!users_of(&files).is_empty(), || "nothing runs".into())?;
    // The store tells in memory how far its log was visible; the name is its directory's.
    let data = std::fs::metadata(kubeconfig.with_file_name("orlop-data"))?;
    let marker = format!("orlop-{:x}-{:x}.marker", data.dev(), data.ino());
    let markers = ["/run/orlop", "/dev/shm"].map(|dir| Path::new(dir).join(&marker));
    let marked = || markers.iter().any(|path| path.exists());
    ensure(marked(), || format!("there is no {marker}"))?;
    process.kill();
    nothing_left(&files)?;
    ensure(!marked(), || format!("left behind: {marker}"))
}

#[test]
fn a_playground_runs_pods_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let result = runs_pods_and_goes(dir.path());
    conclude(dir, result);
}

#[test]
fn a_killed_playground_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let result = dies_whole(dir.path());
    conclude(dir, result);
}

/// The benchmark with its files in `dir`, begun.
fn begin_bench(dir: &Path, duration: &str, args: &[&str]) -> Result<Process> {
    let files = dir.join("files");
    std::fs::create_dir_all(&files)?;
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .args(["bench", "kube", "--rounds=1", "--interval=100ms"])
        .args(["--warmup=3", "--settle=60s"])
        .arg(format!("--duration={duration}"))
        .arg(format!("--dir={}", files.display()))
        .args(args);
    Process::start("bench", dir, &mut command)
}

/// Waits until a benchmark has ended well, and left nothing in `dir`.
fn ends_well(process: &mut Process, dir: &Path) -> Result<()> {
    let began = Instant::now();
    let status = loop {
        match process.ended()? {
            Some(status) => break status,
            None if began.elapsed() > 2 * READY_TIMEOUT => return fail("it does not end"),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    ensure(status.success(), || {
        format!("it ended with {status}: {}", process.tail())
    })?;
    nothing_left(&dir.join("files"))
}

/// A short run of the benchmark in `dir`: its results.
fn bench(dir: &Path, args: &[&str]) -> Result<Value> {
    let (json, html) = (dir.join("result.json"), dir.join("result.html"));
    let to_json = format!("--json={}", json.display());
    let to_html = format!("--html={}", html.display());
    let args = [args, &[to_json.as_str(), to_html.as_str()]].concat();
    let mut process = begin_bench(dir, "2s", &args)?;
    ends_well(&mut process, dir)?;
    let page = std::fs::read_to_string(&html)?;
    ensure(page.contains("<svg") && !page.contains("NaN"), || {
        "the page has no plots".into()
    })?;
    Ok(serde_json::from_slice(&std::fs::read(&json)?)?)
}

fn bursts(dir: &Path) -> Result<()> {
    let result = bench(dir, &["--nodes=2", "--compare=strict", "--disk-delay=10ms"])?;
    let run = &result["runs"][0];
    for stage in [
        "accepted",
        "replica_set",
        "pod",
        "bound",
        "ready",
        "complete",
    ] {
        ensure(run["stages"][stage]["count"] == 20, || {
            format!("{stage}: {}", run["stages"][stage])
        })?;
    }
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let store = &run["used"]["store"];
    ensure(
        number(&run["syncs"]) > 0.0 && number(&store["rss_peak_bytes"]) > 1e6,
        || format!("syncs {}, store {store}", run["syncs"]),
    )?;
    let delay = &result["delays"][0];
    // Other tests may hold up the puts that are not delayed, by less than a millisecond.
    let (plain, delayed) = (number(&delay["put_ms"]), number(&delay["delayed_put_ms"]));
    ensure(delayed >= 10.0 && delayed > plain + 9.0, || {
        format!("the delay is not seen: {delay}")
    })
}

fn steady(dir: &Path) -> Result<()> {
    // As many as are deleted: none that was just created has to go before it is complete.
    let result = bench(
        dir,
        &[
            "--nodes=2",
            "--compare=strict-ram",
            "--mode=steady",
            "--initial=10",
        ],
    )?;
    let stages = &result["runs"][0]["stages"];
    for stage in ["complete", "gone"] {
        ensure(stages[stage]["count"] == 10, || {
            format!("{stage}: {}", stages[stage])
        })?;
    }
    Ok(())
}

/// Ctrl-C and its relatives end a benchmark and all that it started.
fn interrupted(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    let mut process = begin_bench(dir, "10m", &["--nodes=2"])?;
    let began = Instant::now();
    // The last program that is started.
    while !users_of(&files).iter().any(|line| line.contains("/kwok ")) {
        process.check_running()?;
        ensure(began.elapsed() < READY_TIMEOUT, || {
            "no control plane starts".into()
        })?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = process.terminate(END_TIMEOUT)?;
    ensure(status.code() == Some(1), || {
        format!("it ended with {status}")
    })?;
    let said = process.tail();
    ensure(said.contains("interrupted"), || said)?;
    nothing_left(&files)
}

#[test]
fn an_interrupted_benchmark_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let result = interrupted(dir.path());
    conclude(dir, result);
}

#[test]
fn the_benchmark_counts_a_burst() {
    let dir = tempfile::tempdir().unwrap();
    let result = bursts(dir.path());
    conclude(dir, result);
}

#[test]
fn the_benchmark_counts_a_steady_state() {
    let dir = tempfile::tempdir().unwrap();
    let result = steady(dir.path());
    conclude(dir, result);
}

/// Members that are apart are there, the wanted one leads, their clients wait for what was
/// asked for, and all go.
fn members_are_apart(dir: &Path) -> Result<()> {
    let args = [
        "--store=etcd",
        "--members=3",
        "--member-delays=10ms,40ms,20ms",
        "--leader=2",
    ];
    let (mut process, kubeconfig) = playground(dir, &args)?;
    let said = std::fs::read_to_string(process.log())?;
    let member = |n: usize| {
        let name = format!("member {n} ");
        let line = said.lines().find(|line| line.trim().starts_with(&name));
        line.map_or_else(|| fail(format!("no {name} in {said}")), Ok)
    };
    ensure(
        member(2)?.ends_with(", leads") && !member(1)?.contains("leads"),
        || said.clone(),
    )?;
    kubectl(
        &kubeconfig,
        &["create", "deployment", "far", "--image=far", "--replicas=2"],
    )?;
    kubectl(
        &kubeconfig,
        &["rollout", "status", "deployment/far", "--timeout=60s"],
    )?;
    // A connection, its TLS and a put by way of the leader, whose answers take 40 ms: opening
    // takes one round trip, TLS one, the put one and what the quorum takes, 40 + 10 ms.
    let flags = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("etcdctl     etcdctl "));
    let flags = flags.unwrap_or_default();
    let url = member(2)?.split_whitespace().nth(2).unwrap_or_default();
    let url = url.trim_end_matches(',');
    let flags: Vec<String> = flags
        .split(' ')
        .map(|flag| match flag.starts_with("--endpoints") {
            true => format!("--endpoints={url}"),
            false => flag.to_owned(),
        })
        .collect();
    let began = Instant::now();
    run(Command::new(binaries("etcd")?.join("etcdctl"))
        .args(&flags)
        .args(["put", "far", "away"]))?;
    let took = began.elapsed();
    ensure(took >= Duration::from_millis(3 * 40 + 50), || {
        format!("a put takes only {took:?}")
    })?;
    let status = process.terminate(END_TIMEOUT)?;
    ensure(status.success(), || format!("it ended with {status}"))?;
    nothing_left(&dir.join("files"))
}

/// A member that follows asks the leader first, which takes a round trip more and a copy more.
fn calls_members(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    std::fs::create_dir_all(&files)?;
    let json = dir.join("result.json");
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .args(["bench", "members", "--compare=each", "--leader=2"])
        .args(["--rounds=1", "--duration=3s", "--warmup=500ms"])
        .args(["--keys=100", "--connections=1", "--in-flight=1"])
        .args(["--member-delay=30ms", "--peer-delay=20ms"])
        .arg(format!("--dir={}", files.display()))
        .arg(format!("--json={}", json.display()));
    let mut process = Process::start("bench", dir, &mut command)?;
    ends_well(&mut process, dir)?;
    let result: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let figure = |row: usize, pointer: &str| {
        let found = result["rows"][row].pointer(pointer).and_then(Value::as_f64);
        found.map_or_else(|| fail(format!("no {pointer} in {result}")), Ok)
    };
    // To a client and back 30 ms, between two members and back 100 ms.
    let p50_us = |row| figure(row, "/outcome/latency/p50_us");
    let (leader, followers) = (p50_us(1)?, [p50_us(0)?, p50_us(2)?]);
    ensure(
        (130_000.0..230_000.0).contains(&leader) && followers.iter().all(|us| *us >= 230_000.0),
        || format!("a put takes {leader} us by the leader, {followers:?} by others"),
    )?;
    let bytes = |row| figure(row, "/peer_bytes_per_write");
    ensure(bytes(1)? < bytes(0)? && bytes(1)? < bytes(2)?, || {
        result["rows"].to_string()
    })
}

/// A control plane starts on each store, and the install is complete.
fn starts(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    std::fs::create_dir_all(&files)?;
    let json = dir.join("result.json");
    let mut command = Command::new(Kind::Orlop.program()?);
    command
        .args(["bench", "kube", "--mode=start", "--compare=leader,orlop"])
        .args(["--rounds=1", "--nodes=2", "--installs=2"])
        .arg("--member-delay=2ms")
        .arg(format!("--dir={}", files.display()))
        .arg(format!("--json={}", json.display()));
    let mut process = Process::start("bench", dir, &mut command)?;
    ends_well(&mut process, dir)?;
    let result: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    for run in 0..2 {
        let phases = &result["runs"][run]["phases"];
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let (ready, plane) = (&phases["apiserver_s"], &phases["control_plane_s"]);
        ensure(
            number(ready) > 0.0 && number(plane) >= number(ready),
            || phases.to_string(),
        )?;
        let installs = phases["installs"].as_array().map_or(0, Vec::len);
        let requests = &phases["installs"][0]["requests"];
        // 10 definitions, 116 objects that are looked for and created, 2 hooks of 6 that are
        // removed, created and removed, and the record twice.
        ensure(
            installs == 2 && *requests == 10 + 2 * 116 + 2 * 3 * 6 + 2,
            || phases.to_string(),
        )?;
    }
    Ok(())
}

/// etcd's own load tool puts the load too; an orlop without a proxy is told before anything
/// starts.
fn calls_members_by_etcds_tool(dir: &Path) -> Result<()> {
    let files = dir.join("files");
    std::fs::create_dir_all(&files)?;
    let json = dir.join("result.json");
    let bench = |args: &[&str]| -> Result<Process> {
        let mut command = Command::new(Kind::Orlop.program()?);
        command
            .args(["bench", "members", "--rounds=1", "--keys=100"])
            .args(args)
            .arg(format!("--dir={}", files.display()))
            .arg(format!("--json={}", json.display()));
        Process::start("bench", dir, &mut command)
    };
    let mut without = bench(&["--compare=proxy", "--orlop-bin=/bin/false"])?;
    let began = Instant::now();
    while without.ended()?.is_none() {
        ensure(began.elapsed() < END_TIMEOUT, || "it does not end".into())?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = without.tail();
    ensure(said.contains("has no `proxy` command"), || said)?;
    let mut process = bench(&[
        "--compare=leader",
        "--load-tool=etcd",
        "--requests=1000",
        "--leader=3",
    ])?;
    ends_well(&mut process, dir)?;
    let result: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let row = &result["rows"][0];
    let bytes = row["peer_bytes_per_write"].as_f64().unwrap_or_default();
    ensure(
        row["leader"] == 3 && row["outcome"]["operations"] == 1000 && bytes > 2048.0,
        || row.to_string(),
    )
}

#[test]
fn the_benchmark_calls_members_by_etcds_tool() {
    let dir = tempfile::tempdir().unwrap();
    let result = calls_members_by_etcds_tool(dir.path());
    conclude(dir, result);
}

#[test]
fn members_of_a_playground_are_apart() {
    let dir = tempfile::tempdir().unwrap();
    let result = members_are_apart(dir.path());
    conclude(dir, result);
}

#[test]
fn the_benchmark_calls_members() {
    let dir = tempfile::tempdir().unwrap();
    let result = calls_members(dir.path());
    conclude(dir, result);
}

#[test]
fn the_benchmark_starts_control_planes() {
    let dir = tempfile::tempdir().unwrap();
    let result = starts(dir.path());
    conclude(dir, result);
}
