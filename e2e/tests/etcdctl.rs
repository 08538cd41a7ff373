//! Every subcommand of the released etcdctl that applies to one server, side by
//! side on a real etcd and on the store under test: what it prints must be equal
//! where it does not depend on the server's name, its size or the time.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use e2e::kube::etcdctl::{Answer, Etcdctl, wait_for_text};
use e2e::kube::metrics::Metrics;
use e2e::kube::pki::Authority;
use e2e::kube::proc::{Process, conclude};
use e2e::kube::store::{Kind, Store, Tls};
use e2e::kube::{Result, ensure, fail};

const SOON: Duration = Duration::from_secs(15);

/// A store and what in its answers is its own.
struct Side {
    name: &'static str,
    store: Store,
    etcdctl: Etcdctl,
    /// Text that differs between the sides, and what stands for it.
    own: Vec<(String, String)>,
}

impl Side {
    async fn start(name: &'static str, kind: Kind, dir: &Path, tls: Option<Tls>) -> Result<Self> {
        let store = Store::start(kind, name, dir, tls, &[]).await?;
        let etcdctl = store.etcdctl()?;
        let mut side = Self {
            name,
            store,
            etcdctl,
            own: Vec::new(),
        };
        let out = side
            .etcdctl
            .ok(&["endpoint", "status", "--write-out=fields"])?;
        for line in out.lines() {
            if let Some((field, value)) = line.split_once(" : ") {
                let named = match field {
                    "\"ClusterID\"" => "CLUSTER",
                    "\"MemberID\"" => "MEMBER",
                    _ => continue,
                };
                let number: u64 = value.parse().unwrap_or(0);
                side.own.push((value.to_owned(), named.to_owned()));
                side.own
                    .push((format!("{number:x}"), format!("{named} (hex)")));
            }
        }
        ensure(side.own.len() == 4, || {
            format!("{name}: endpoint status gives {out}")
        })?;
        let url = side.store.url();
        let address = url.split("//").nth(1).unwrap_or_default().to_owned();
        side.own.push((url, "URL".to_owned()));
        side.own.push((address, "ADDRESS".to_owned()));
        Ok(side)
    }

    /// Remembers a lease's id under a name that later arguments may use.
    fn learn_lease(&mut self, answer: &Answer) {
        if let Some(id) = answer.out.split(' ').nth(1)
            && answer.out.starts_with("lease ")
            && answer.out.contains(" granted ")
        {
            let count = self
                .own
                .iter()
                .filter(|own| own.1.starts_with("LEASE"))
                .count();
            let named = format!("LEASE{}", count / 2);
            let number = i64::from_str_radix(id, 16).unwrap_or_default();
            self.own
                .push((number.to_string(), format!("{named} (decimal)")));
            self.own.push((id.to_owned(), named));
        }
    }

    fn run(&mut self, args: &[&str], input: &str) -> Result<Answer> {
        let own = |arg: &&str| {
            let found = self.own.iter().find(|(_, named)| named == arg);
            found.map_or_else(|| (*arg).to_owned(), |(text, _)| text.clone())
        };
        let args: Vec<String> = args.iter().map(own).collect();
        let answer = self.etcdctl.run_with(&args, input)?;
        self.learn_lease(&answer);
        Ok(Answer {
            code: answer.code,
            out: self.normal(&answer.out),
            err: self.normal(&errors_only(&answer.err)),
        })
    }

    fn normal(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (own, named) in &self.own {
            text = text.replace(own.as_str(), named);
        }
        for field in ["\"raft_term\":", "\"RaftTerm\" : "] {
            text = blank_number_after(&text, field);
        }
        text
    }
}

/// Puts `N` for each number that follows `field`.
fn blank_number_after(text: &str, field: &str) -> String {
    let mut parts = text.split(field);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        result.push_str(field);
        result.push('N');
        result.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    result
}

/// etcdctl's standard error with its log lines cut down to their error.
fn errors_only(text: &str) -> String {
    let line = |line: &str| match serde_json::from_str::<serde_json::Value>(line) {
        Ok(log) => format!("log: {}", log["error"].as_str().unwrap_or_default()),
        Err(_) => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A real etcd and the store under test.
struct Pair {
    sides: [Side; 2],
}

impl Pair {
    async fn start(dir: &Path, tls: Option<Tls>) -> Result<Self> {
        let etcd = Side::start("etcd", Kind::Etcd, dir, tls.clone()).await?;
        let store = Side::start("store", Kind::under_test()?, dir, tls).await?;
        Ok(Self {
            sides: [etcd, store],
        })
    }

    /// Runs etcdctl on both; what it gives must be equal. Returns it.
    fn same_with(&mut self, args: &[&str], input: &str) -> Result<Answer> {
        let [etcd, store] = &mut self.sides;
        let expected = etcd.run(args, input)?;
        let found = store.run(args, input)?;
        ensure(found == expected, || {
            format!(
                "etcdctl {} <<< {input:?}\netcd:  {expected:#?}\n{}: {found:#?}",
                args.join(" "),
                store.name
            )
        })?;
        Ok(found)
    }

    fn same(&mut self, args: &[&str]) -> Result<Answer> {
        self.same_with(args, "")
    }

    /// As [`Pair::same`], and it must succeed.
    fn succeed(&mut self, args: &[&str]) -> Result<String> {
        let answer = self.same(args)?;
        ensure(answer.code == 0, || {
            format!("etcdctl {}: {answer:?}", args.join(" "))
        })?;
        Ok(answer.out)
    }

    /// As [`Pair::same`], and it must fail with `text`.
    fn refuse(&mut self, args: &[&str], text: &str) -> Result<()> {
        let answer = self.same(args)?;
        ensure(answer.code != 0 && answer.err.contains(text), || {
            format!(
                "etcdctl {}: {answer:?}, should fail with {text:?}",
                args.join(" ")
            )
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_and_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let result = keys(dir.path()).await;
    conclude(dir, result);
}

async fn keys(dir: &Path) -> Result<()> {
    let mut pair = Pair::start(dir, None).await?;
    for (key, value) in [
        ("a", "3"),
        ("b", "2"),
        ("c", "1"),
        ("dir/x", "x"),
        ("dir/y", "y"),
    ] {
        pair.succeed(&["put", key, value])?;
    }
    pair.succeed(&["put", "a", "4", "--prev-kv"])?;
    ensure(
        pair.same_with(&["put", "stdin"], "from standard input")?
            .code
            == 0,
        String::new,
    )?;
    pair.succeed(&["put", "b", "--ignore-value"])?;
    pair.refuse(
        &["put", "absent", "--ignore-value"],
        "etcdserver: key not found",
    )?;
    pair.succeed(&["lease", "grant", "600"])?;
    pair.succeed(&["put", "c", "leased", "--lease=0"])?;
    pair.succeed(&["put", "leased", "1", "--lease", "LEASE0"])?;
    pair.succeed(&["put", "leased", "2", "--ignore-lease"])?;
    pair.refuse(
        &["put", "x", "y", "--lease=1234"],
        "etcdserver: requested lease not found",
    )?;

    let gets: &[&[&str]] = &[
        &["get", "a"],
        &["get", "absent"],
        &["get", "a", "c"],
        &["get", "dir/", "--prefix"],
        &["get", "", "--prefix", "--keys-only"],
        &["get", "b", "--from-key"],
        &["get", "", "--from-key", "--limit=2"],
        &["get", "a", "--print-value-only"],
        &["get", "", "--prefix", "--count-only", "--write-out=fields"],
        &["get", "a", "--rev=2"],
        &["get", "a", "--consistency=s"],
        &["get", "", "--prefix", "--order=DESCEND"],
        &["get", "", "--prefix", "--sort-by=VALUE", "--order=ASCEND"],
        &[
            "get",
            "",
            "--prefix",
            "--sort-by=CREATE",
            "--order=DESCEND",
            "--limit=3",
        ],
        &["get", "", "--prefix", "--sort-by=MODIFY"],
        &[
            "get",
            "",
            "--prefix",
            "--sort-by=VERSION",
            "--order=DESCEND",
        ],
        &["get", "", "--prefix", "--sort-by=KEY"],
        &["get", "", "--prefix", "--min-mod-rev=4", "--max-mod-rev=6"],
        &[
            "get",
            "",
            "--prefix",
            "--min-create-rev=3",
            "--max-create-rev=5",
        ],
        &["get", "", "--prefix", "--stream"],
        &["get", "dir/", "--prefix", "--stream", "--keys-only"],
        &["get", "", "--prefix", "--limit=3", "--write-out=json"],
        &["get", "", "--prefix", "--write-out=fields"],
        &["get", "a", "--hex"],
    ];
    for args in gets {
        pair.succeed(args)?;
    }
    pair.refuse(
        &["get", "a", "--rev=1000"],
        "required revision is a future revision",
    )?;
    pair.refuse(&["get", ""], "etcdserver: key is not provided")?;

    // No compare of leases: etcdctl 3.7.3 panics on each before it asks a server.
    let transactions = [
        "mod(\"a\") > \"0\"\n\nput a new\nget a\n\nput a other\n\n",
        "value(\"a\") = \"nothing\"\n\nput a wrong\n\nget a\nget dir/ --prefix\n\n",
        "create(\"none\") = \"0\"\nversion(\"b\") > \"1\"\n\nput none made\ndel b\n\nget b\n\n",
        "\ndel dir/ --prefix --prev-kv\nput b back --prev-kv\n\n\n",
        "\nput double 1\nput double 2\n\n\n",
        "mod(\"a\") > \"0\"\n\n\n\n",
    ];
    for transaction in transactions {
        pair.same_with(&["txn"], transaction)?;
        pair.same_with(&["txn", "--write-out=json"], transaction)?;
    }
    pair.same_with(&["txn", "-i"], transactions[0])?;

    for key in ["r1", "r2", "r3", "s1", "s2", "t1"] {
        pair.succeed(&["put", key, "v"])?;
    }
    pair.succeed(&["del", "absent"])?;
    pair.succeed(&["del", "r1", "--prev-kv"])?;
    pair.succeed(&["del", "r2", "r4"])?;
    pair.succeed(&["del", "s", "--prefix", "--prev-kv"])?;
    pair.succeed(&["del", "t", "--from-key"])?;
    pair.succeed(&["del", "--range", "a", "b"])?;
    pair.succeed(&["get", "", "--prefix", "--write-out=json"])?;

    pair.succeed(&["compaction", "10"])?;
    pair.refuse(
        &["get", "a", "--rev=9"],
        "required revision has been compacted",
    )?;
    pair.refuse(
        &["compaction", "10"],
        "required revision has been compacted",
    )?;
    pair.refuse(
        &["compaction", "9999"],
        "required revision is a future revision",
    )?;
    pair.succeed(&["compaction", "20", "--physical"])?;
    pair.succeed(&["get", "a", "--rev=20"])?;
    pair.refuse(
        &["watch", "a", "--rev=5"],
        "required revision has been compacted",
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn watches() {
    let dir = tempfile::tempdir().unwrap();
    let result = watch(dir.path()).await;
    conclude(dir, result);
}

async fn watch(dir: &Path) -> Result<()> {
    let mut pair = Pair::start(dir, None).await?;
    pair.succeed(&["put", "before", "1"])?;
    let watches: &[(&str, &[&str])] = &[
        ("key", &["watch", "a"]),
        ("prefix", &["watch", "dir/", "--prefix", "--prev-kv"]),
        ("range", &["watch", "a", "c"]),
        ("past", &["watch", "", "--prefix", "--rev=1"]),
        (
            "future",
            &["watch", "", "--prefix", "--rev=6", "--write-out=json"],
        ),
        (
            "exec",
            &[
                "watch",
                "a",
                "--",
                "sh",
                "-c",
                "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY",
            ],
        ),
        ("notified", &["watch", "end", "--progress-notify"]),
    ];
    let mut running = Vec::new();
    for side in &pair.sides {
        for (name, args) in watches {
            let name = format!("{}-{name}", side.name);
            running.push(side.etcdctl.background(&name, dir, args)?);
        }
        let name = format!("{}-interactive", side.name);
        let mut command = side.etcdctl.command(&["watch", "-i"]);
        let (process, mut stdin) = Process::start_interactive(&name, dir, &mut command)?;
        stdin.write_all(b"watch a\nwatch dir/ --prefix\n")?;
        running.push(process);
        wait_for_watchers(side, watches.len() + 2).await?;
        stdin.write_all(b"progress\n")?;
        wait_for_text(&dir.join(format!("{name}.log")), "progress notify: 2", SOON)?;
        // Kept open to the end: etcdctl ends at the end of its input.
        std::mem::forget(stdin);
    }
    pair.succeed(&["put", "a", "1"])?;
    pair.succeed(&["put", "dir/x", "1"])?;
    pair.succeed(&["put", "dir/x", "2"])?;
    pair.succeed(&["del", "dir/x"])?;
    pair.same_with(&["txn"], "\nput a 2\nput b 2\nput dir/y 2\n\n\n")?;
    pair.succeed(&["del", "a"])?;
    pair.succeed(&["put", "end", "end"])?;
    let last = [
        ("key", "DELETE\na"),
        ("prefix", "dir/y\n2"),
        ("range", "DELETE\na"),
        ("past", "end\nend"),
        ("future", "ZW5k"),
        ("exec", "\"DELETE\" \"a\""),
        ("notified", "end\nend"),
        ("interactive", "DELETE\na"),
    ];
    for (name, last) in last {
        let read = |side: &Side| -> Result<String> {
            let log = dir.join(format!("{}-{name}.log", side.name));
            let text = side.normal(&wait_for_text(&log, last, SOON)?);
            if name != "interactive" {
                return Ok(text);
            }
            // Two watches: each has its order, both together have none.
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            Ok(lines.join("\n"))
        };
        let (expected, found) = (read(&pair.sides[0])?, read(&pair.sides[1])?);
        ensure(found == expected, || {
            format!("watch {name}\netcd: {expected}\nstore: {found}")
        })?;
    }
    Ok(())
}

/// Waits until the server has that many watchers, so that no event is too early.
async fn wait_for_watchers(side: &Side, count: usize) -> Result<()> {
    let metric = "etcd_debugging_mvcc_watcher_total";
    e2e::kube::eventually("the watchers are there", SOON, || async {
        let metrics: Metrics = side.store.metrics().await?;
        let found = metrics.sum(metric, &[]);
        if found >= count as f64 {
            Ok(Some(()))
        } else {
            fail(format!("{metric} {found}"))
        }
    })
    .await
}

async fn lease(dir: &Path) -> Result<()> {
    let mut pair = Pair::start(dir, None).await?;
    pair.succeed(&["lease", "list"])?;
    pair.succeed(&["lease", "grant", "500"])?;
    pair.succeed(&["lease", "grant", "4"])?;
    pair.succeed(&["put", "one", "1", "--lease", "LEASE0"])?;
    pair.succeed(&["put", "two", "2", "--lease", "LEASE0"])?;
    pair.succeed(&["put", "short-1", "3", "--lease", "LEASE1"])?;
    pair.succeed(&["put", "short-2", "3", "--lease", "LEASE1"])?;
    let listed = pair
        .sides
        .iter_mut()
        .map(|side| side.run(&["lease", "list"], ""));
    for answer in listed {
        let answer = answer?;
        let all = answer.out.contains("found 2 leases")
            && answer.out.contains("LEASE0")
            && answer.out.contains("LEASE1");
        ensure(all, || format!("{answer:?}"))?;
    }
    for side in &mut pair.sides {
        let answer = side.run(&["lease", "timetolive", "LEASE0", "--keys"], "")?;
        let right = answer
            .out
            .starts_with("lease LEASE0 granted with TTL(500s), remaining(49")
            || answer
                .out
                .starts_with("lease LEASE0 granted with TTL(500s), remaining(500s)");
        // etcd has them in a map without an order.
        let both = ["[one two]", "[two one]"];
        let attached = both.iter().any(|keys| {
            let text = format!("attached keys({keys})");
            answer.out.contains(&text)
        });
        ensure(right && attached, || format!("{answer:?}"))?;
    }
    pair.succeed(&["lease", "keep-alive", "--once", "LEASE0"])?;
    pair.succeed(&["lease", "revoke", "LEASE0"])?;
    pair.succeed(&["get", "", "--from-key", "--keys-only"])?;
    pair.refuse(
        &["lease", "revoke", "LEASE0"],
        "etcdserver: requested lease not found",
    )?;
    pair.succeed(&["lease", "timetolive", "LEASE0"])?;
    pair.same(&["lease", "keep-alive", "--once", "LEASE0"])?;
    pair.refuse(
        &["lease", "grant", "9000000001"],
        "etcdserver: too large lease TTL",
    )?;
    for side in &pair.sides {
        e2e::kube::eventually("a lease expires with its keys", SOON, || async {
            Ok(side.etcdctl.keys("", 0)?.is_empty().then_some(()))
        })
        .await?;
        // Both keys go in one revision: 1, four puts, a revocation, an expiry.
        let out = side.etcdctl.ok(&["get", "none", "--write-out=json"])?;
        ensure(out.contains("\"revision\":7,"), || {
            format!("{}: {out}", side.name)
        })?;
    }
    pair.succeed(&["lease", "list"])?;

    let mut kept = Vec::new();
    for side in &mut pair.sides {
        side.run(&["lease", "grant", "3"], "")?;
        let id = side
            .own
            .last()
            .map(|(id, _)| id.clone())
            .unwrap_or_default();
        side.etcdctl.ok(&["put", "kept", "1", "--lease", &id])?;
        let name = format!("{}-keep-alive", side.name);
        kept.push(
            side.etcdctl
                .background(&name, dir, &["lease", "keep-alive", &id])?,
        );
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    pair.succeed(&["get", "kept"])?;
    Ok(())
}

async fn concurrency(dir: &Path) -> Result<()> {
    let kind = Kind::under_test()?;
    let store = Store::start(kind, "store", dir, None, &[]).await?;
    let etcdctl = store.etcdctl()?;

    let mut first = etcdctl.background("lock-1", dir, &["lock", "mutex", "--ttl=4"])?;
    let held = wait_for_text(&dir.join("lock-1.log"), "mutex/", SOON)?;
    let mut second = etcdctl.background("lock-2", dir, &["lock", "mutex", "--ttl=4"])?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = std::fs::read_to_string(dir.join("lock-2.log"))?;
    ensure(waiting.is_empty(), || {
        format!("two hold the lock: {held:?} and {waiting:?}")
    })?;
    first.terminate(SOON)?;
    wait_for_text(&dir.join("lock-2.log"), "mutex/", SOON)?;
    // A dead holder's lock is free when its lease has expired.
    second.kill();
    let third = etcdctl.background("lock-3", dir, &["lock", "mutex", "--ttl=4"])?;
    wait_for_text(&dir.join("lock-3.log"), "mutex/", SOON)?;
    drop(third);
    let ran = etcdctl.ok(&["lock", "other", "echo", "under", "lock"])?;
    ensure(ran == "under lock\n", || format!("{ran:?}"))?;

    let listener = etcdctl.background("listen", dir, &["elect", "--listen", "post"])?;
    let mut leader = etcdctl.background("elect-1", dir, &["elect", "post", "one"])?;
    wait_for_text(&dir.join("elect-1.log"), "one", SOON)?;
    let follower = etcdctl.background("elect-2", dir, &["elect", "post", "two"])?;
    wait_for_text(listener.log(), "one", SOON)?;
    let early = std::fs::read_to_string(follower.log())?;
    ensure(early.is_empty(), || format!("two are elected: {early:?}"))?;
    leader.terminate(SOON)?;
    wait_for_text(follower.log(), "two", SOON)?;
    wait_for_text(listener.log(), "two", SOON)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn maintenance() {
    let dir = tempfile::tempdir().unwrap();
    let result = maintain(dir.path()).await;
    conclude(dir, result);
}

async fn maintain(dir: &Path) -> Result<()> {
    let mut pair = Pair::start(dir, None).await?;
    for side in &pair.sides {
        // etcdctl divides by the size of the database, which an empty one has too.
        for format in ["simple", "table", "fields", "json"] {
            side.etcdctl
                .ok(&["endpoint", "status", &format!("--write-out={format}")])?;
            side.etcdctl
                .ok(&["endpoint", "status", "--cluster", "-w", format])?;
        }
        if side.store.kind() == Kind::Orlop {
            refusals(side)?;
        }
        let file = dir.join(format!("{}.db", side.name));
        side.etcdctl
            .ok(&["snapshot", "save", &file.display().to_string()])?;
    }
    for n in 0..50 {
        pair.succeed(&["put", &format!("key-{n}"), &"v".repeat(2000)])?;
    }
    pair.succeed(&["del", "key-2", "key-3"])?;
    pair.succeed(&["endpoint", "hashkv"])?;
    pair.succeed(&["endpoint", "hashkv", "--rev=25"])?;
    pair.succeed(&["endpoint", "hashkv", "--rev=25", "--write-out=json"])?;
    pair.refuse(&["endpoint", "hashkv", "--rev=1000"], "future revision")?;
    pair.succeed(&["compaction", "40"])?;
    pair.refuse(
        &["endpoint", "hashkv", "--rev=25"],
        "revision has been compacted",
    )?;
    pair.succeed(&["endpoint", "hashkv"])?;
    pair.succeed(&["alarm", "list"])?;
    pair.succeed(&["alarm", "disarm"])?;
    pair.succeed(&["auth", "status"])?;
    pair.succeed(&["get", "key-1", "--user=someone:password"])?;
    pair.succeed(&["downgrade", "cancel"])?;
    pair.same(&["downgrade", "validate", "3.6.0"])?;
    pair.same(&["downgrade", "validate", "3.5.0"])?;
    pair.refuse(&["move-leader", "1"], "etcdserver")?;
    for side in &mut pair.sides {
        let health = side.run(&["endpoint", "health"], "")?;
        ensure(
            health.code == 0 && health.out.contains("is healthy"),
            || format!("{health:?}"),
        )?;
        let defragmented = side.run(&["defrag"], "")?;
        let expected = "Finished defragmenting etcd member[URL]. took ";
        ensure(defragmented.out.starts_with(expected), || {
            format!("{defragmented:?}")
        })?;
        let members = side.run(&["member", "list"], "")?;
        let expected = format!("MEMBER (hex), started, {}, ", side.name);
        ensure(members.out.starts_with(&expected), || {
            format!("{members:?}")
        })?;
        ensure(members.out.ends_with(", URL, false\n"), || {
            format!("{members:?}")
        })?;
        side.etcdctl
            .ok(&["endpoint", "status", "--write-out=table"])?;
        let status = side
            .etcdctl
            .ok(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let status = &status[0]["Status"];
        let number = |field: &str| status[field].as_u64().unwrap_or(0);
        let right = status["version"] == "3.7.3"
            && status["leader"] == status["header"]["member_id"]
            && status["header"]["revision"] == 52
            && number("dbSize") >= number("dbSizeInUse")
            && number("dbSizeInUse") > 50_000
            && number("raftIndex") > 50
            && number("raftTerm") > 0;
        ensure(right, || format!("{}: {status}", side.name))?;
        let other = side.etcdctl.run(&["member", "remove", "1"])?;
        ensure(other.code != 0 && !other.err.is_empty(), || {
            format!("{other:?}")
        })?;
    }

    // A mirror of the store, made by etcdctl with a list and a watch.
    let [etcd, store] = &pair.sides;
    let target = etcd.store.url();
    let args = [
        "make-mirror",
        "--prefix=key-1",
        "--dest-prefix=mirror/key-1",
        &target,
    ];
    let _mirror = store.etcdctl.background("mirror", dir, &args)?;
    store.etcdctl.ok(&["put", "key-1", "late"])?;
    e2e::kube::eventually("a mirror", SOON, || async {
        let found = etcd
            .etcdctl
            .ok(&["get", "mirror/key-1", "--print-value-only"])?;
        let count = etcd.etcdctl.keys("mirror/", 0)?.len();
        if found == "late\n" && count == 11 {
            Ok(Some(()))
        } else {
            fail(format!("{count} keys"))
        }
    })
    .await
}

/// What orlop does not offer it refuses with a sentence of its own.
fn refusals(side: &Side) -> Result<()> {
    let refused: [(&[&str], &str); 3] = [
        (&["auth", "enable"], "client certificates"),
        (&["user", "list"], "client certificates"),
        (
            &["member", "add", "other", "--peer-urls=http://127.0.0.1:1"],
            "one server without replicas",
        ),
    ];
    for (args, text) in refused {
        let answer = side.etcdctl.run(args)?;
        ensure(answer.code != 0 && answer.err.contains(text), || {
            format!("{args:?}: {answer:?}")
        })?;
    }
    Ok(())
}

/// etcdctl's own judgement runs for a minute whatever the server. Leases and locks, whose
/// tests mostly wait, too, are tested meanwhile on servers of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leases_locks_elections_and_check_perf() {
    let dir = tempfile::tempdir().unwrap();
    let result = while_perf_is_checked(dir.path()).await;
    conclude(dir, result);
}

async fn while_perf_is_checked(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::under_test()?, "store", dir, None, &[]).await?;
    let etcdctl = store.etcdctl()?;
    let _check = etcdctl.background(
        "perf",
        dir,
        &["check", "perf", "--load=s", "--auto-compact"],
    )?;
    let [leases, locks] = ["leases", "locks"].map(|name| dir.join(name));
    std::fs::create_dir(&leases)?;
    std::fs::create_dir(&locks)?;
    lease(&leases).await?;
    concurrency(&locks).await?;
    let out = wait_for_text(
        &dir.join("perf.log"),
        "Slowest request",
        Duration::from_secs(90),
    )?;
    ensure(
        out.contains("PASS: Throughput") && !out.contains("FAIL: Throughput"),
        || out.clone(),
    )?;
    println!(
        "{}",
        out.lines()
            .filter(|line| line.contains(": "))
            .collect::<Vec<_>>()
            .join("\n")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tls_and_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let result = tls(dir.path()).await;
    conclude(dir, result);
}

async fn tls(dir: &Path) -> Result<()> {
    let authority = Authority::new(dir, "store")?;
    let stranger = Authority::new(dir, "stranger")?;
    let server = authority.sign("server")?;
    let client = authority.sign("client")?;
    for client in [None, Some(client)] {
        let dir = dir.join(if client.is_some() {
            "mutual"
        } else {
            "server-only"
        });
        std::fs::create_dir(&dir)?;
        let mutual = client.is_some();
        let tls = Tls {
            server: server.clone(),
            ca: authority.cert.clone(),
            client,
        };
        let mut pair = Pair::start(&dir, Some(tls.clone())).await?;
        pair.succeed(&["put", "key", "value"])?;
        pair.succeed(&["get", "key", "--write-out=json"])?;
        pair.succeed(&["lease", "grant", "60"])?;
        pair.same_with(&["txn"], "mod(\"key\") > \"0\"\n\nput key 2\n\n\n")?;
        pair.succeed(&["endpoint", "hashkv"])?;
        let lock = pair.sides[1]
            .etcdctl
            .ok(&["lock", "mutex", "echo", "held"])?;
        ensure(lock == "held\n", || format!("{lock:?}"))?;

        for side in &pair.sides {
            let refused = |what: &str, url: &str, tls: Option<&Tls>| {
                let etcdctl = Etcdctl::new(url, tls)?;
                let answer = etcdctl.run(&["get", "key", "--command-timeout=2s"])?;
                ensure(answer.code != 0 && answer.out.is_empty(), || {
                    format!("{}: {what}: {answer:?}", side.name)
                })
            };
            let url = side.store.url();
            refused("plain text", &url.replace("https", "http"), None)?;
            let mut other = tls.clone();
            other.ca.clone_from(&stranger.cert);
            refused("another authority", &url, Some(&other))?;
            if mutual {
                let mut without = tls.clone();
                without.client = None;
                refused("no certificate", &url, Some(&without))?;
                without.client = Some(stranger.sign("stranger")?);
                refused("a stranger's certificate", &url, Some(&without))?;
            }
        }
        pair.succeed(&["get", "key"])?;
    }
    Ok(())
}

/// Bytes of each value of which too many are asked for at once.
const BIG_VALUE_BYTES: usize = 1_300_000;
/// As many.
const BIG_VALUES: usize = 20;

/// etcd's client repeats a call that ends in Canceled or DeadlineExceeded while its caller
/// waits, writes included. An answer that no client takes must end otherwise.
#[tokio::test]
async fn a_write_whose_answer_is_too_large_is_carried_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let result = too_large(dir.path()).await;
    conclude(dir, result);
}

async fn too_large(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::Orlop, "store", dir, None, &[]).await?;
    let etcdctl = store.etcdctl()?;
    let value = "v".repeat(BIG_VALUE_BYTES);
    for n in 0..BIG_VALUES {
        // A value from standard input.
        let answer = etcdctl.run_with(&["put", &format!("big/{n}")], &value)?;
        ensure(answer.code == 0, || format!("{answer:?}"))?;
    }
    // 100 times 26 MB.
    let ranges = "get big/ big0\n".repeat(100);
    let txn = format!("\nput marker once\n{ranges}\n\n");
    let answer = etcdctl.run_with(&["txn", "--command-timeout=20s"], &txn)?;
    ensure(
        answer.code != 0
            && answer
                .err
                .contains("trying to send message larger than max ("),
        || format!("{answer:?}"),
    )?;
    let marker = etcdctl.ok(&["get", "marker", "--write-out=json"])?;
    let marker: serde_json::Value = serde_json::from_str(&marker)?;
    ensure(marker["kvs"][0]["version"] == 1, || format!("{marker}"))
}
