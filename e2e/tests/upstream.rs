//! `upstream` before three real etcds with TLS: leaders are killed, stopped, cut off and moved,
//! members and certificates change, while a client writes and reads.
//!
//! Every key is written once, under a name of its own. So at the end it shows whether an
//! acknowledged write is lost, one that is said not to have been made was made, or one was made
//! twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::etcd_members::{EtcdMembers, told};
use e2e::kube::binaries;
use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Setup, Store};
use e2e::kube::{Result, ensure, fail};
use etcd_api::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use upstream::{CallError, Client, Done, Endpoint, Policy, Routes, Settings, User, View, Work};
use wire::ClientTlsConfig;

/// etcd's election timeout is 1 s, twice that with bad luck, and a second vote may be needed.
const ELECTED: Duration = Duration::from_secs(8);
/// From when a member leads, by its own word, until the view says so.
const SEEN: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(5);

fn settings(cluster: &EtcdMembers) -> Result<Settings> {
    let mut settings = Settings::new(Endpoint::list(&cluster.urls()).map_err(told)?);
    settings.tls = Some(ClientTlsConfig {
        ca_file: cluster.ca.clone(),
        identity: Some((cluster.client.cert.clone(), cluster.client.key.clone())),
        server_name: None,
    });
    Ok(settings)
}

/// What became of the keys.
#[derive(Default)]
struct Book {
    /// Acknowledged.
    made: BTreeSet<u64>,
    /// Failed, and said not to be made.
    not_made: BTreeSet<u64>,
    /// Failed, and may be made.
    maybe: BTreeSet<u64>,
    last_error: String,
}

impl Book {
    fn note(&mut self, n: u64, outcome: std::result::Result<(), CallError>) {
        match outcome {
            Ok(()) => self.made.insert(n),
            Err(error) => {
                self.last_error = error.to_string();
                match error.done() {
                    Done::No => self.not_made.insert(n),
                    Done::Maybe => self.maybe.insert(n),
                }
            }
        };
    }
}

fn open(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes one key after the other.
struct Writer {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

fn key(n: u64) -> Bytes {
    format!("upstream/{n:08}").into()
}

impl Writer {
    fn start(client: Client) -> Self {
        let (book, stop) = (
            Arc::new(Mutex::<Book>::default()),
            Arc::<AtomicBool>::default(),
        );
        let (written, stopped) = (book.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let put = pb::PutRequest {
                    key: key(n),
                    ..Default::default()
                };
                let outcome = client.put(put, CALL).await;
                open(&written).note(n, outcome.map(drop));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Writer { book, stop, task }
    }

    fn made(&self) -> usize {
        open(&self.book).made.len()
    }

    /// Waits until more writes go well; how long that took.
    async fn goes_on(&self) -> Result<Duration> {
        let (began, before) = (Instant::now(), self.made());
        while self.made() < before + 20 {
            ensure(began.elapsed() < ELECTED, || {
                format!("writes do not go on: {}", open(&self.book).last_error)
            })?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(began.elapsed())
    }

    /// Ends, and compares with what is there.
    async fn end(self, client: &Client) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.map_err(told)?;
        let all = pb::RangeRequest {
            key: Bytes::from_static(b"upstream/"),
            range_end: Bytes::from_static(b"upstream0"),
            ..Default::default()
        };
        let there = client.range(all, CALL).await.map_err(told)?.kvs;
        let twice: Vec<_> = there.iter().filter(|kv| kv.version != 1).collect();
        ensure(twice.is_empty(), || format!("made twice: {twice:?}"))?;
        let there: BTreeSet<Bytes> = there.into_iter().map(|kv| kv.key).collect();
        let book = open(&self.book);
        let lost = book.made.iter().find(|n| !there.contains(&key(**n)));
        ensure(lost.is_none(), || format!("{lost:?} is lost"))?;
        let denied = book.not_made.iter().find(|n| there.contains(&key(**n)));
        ensure(denied.is_none(), || {
            format!("{denied:?} is there, and was said not to be")
        })?;
        Ok(format!(
            "{} writes made, {} not, {} unknown",
            book.made.len(),
            book.not_made.len(),
            book.maybe.len()
        ))
    }
}

/// Waits until the view is as wanted.
async fn until(client: &Client, what: &str, wanted: impl Fn(&View) -> bool) -> Result<Duration> {
    let began = Instant::now();
    let mut views = client.views();
    match tokio::time::timeout(ELECTED, views.wait_for(|view| wanted(view))).await {
        Ok(Ok(_)) => Ok(began.elapsed()),
        _ => fail(format!("{what}: {:#?}", client.view())),
    }
}

/// Waits until another member leads, and until the view says so.
async fn led_by_other(client: &Client, cluster: &EtcdMembers, old: u64) -> Result<usize> {
    let began = Instant::now();
    let at = loop {
        let at = cluster.leader().await?;
        if cluster.members[at].id != old {
            break at;
        }
        ensure(began.elapsed() < ELECTED, || "nobody else leads".to_owned())?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let id = cluster.members[at].id;
    let seen = until(client, "it is not seen to lead", |view| {
        view.leader.as_ref().is_some_and(|l| l.member_id == id)
    });
    let seen = seen.await?;
    ensure(seen < SEEN, || format!("it was seen after {seen:?}"))?;
    println!(
        "  {} leads, seen {} ms after that",
        cluster.members[at].name,
        seen.as_millis()
    );
    Ok(at)
}

async fn every_fault(set: &str, dir: &Path) -> Result<()> {
    let mut cluster = EtcdMembers::start(set, 3, dir).await?;
    let client = Client::new(&settings(&cluster)?, Routes::default()).map_err(told)?;
    let writer = Writer::start(client.clone());
    writer.goes_on().await?;
    let ids = |cluster: &EtcdMembers| -> BTreeSet<u64> {
        cluster.members.iter().map(|member| member.id).collect()
    };
    let step = |what: &str| println!("{set}: {what}");

    step("kill -9 of the leader");
    let old = cluster.leader().await?;
    let id = cluster.members[old].id;
    cluster.kill(old);
    led_by_other(&client, &cluster, id).await?;
    let gap = writer.goes_on().await?;
    println!("  writes go on after {} ms more", gap.as_millis());
    // A write that a follower passed on to the dead one would wait for its whole deadline.
    ensure(gap < CALL / 2, || format!("writes went on after {gap:?}"))?;
    cluster.start_again(old).await?;

    step("SIGSTOP of the leader");
    let old = cluster.leader().await?;
    let id = cluster.members[old].id;
    cluster.pause(old)?;
    led_by_other(&client, &cluster, id).await?;
    // A read that was sent to the silent one is taken elsewhere, within its own deadline.
    let read = pb::RangeRequest {
        key: key(0),
        ..Default::default()
    };
    client.range(read.clone(), CALL).await.map_err(told)?;
    writer.goes_on().await?;
    cluster.resume(old)?;
    until(&client, "it does not answer again", |view| {
        let health = view.members.iter().find(|m| m.member_id == Some(id));
        health.is_some_and(|m| m.health.is_healthy())
    })
    .await?;

    step("a leader that is cut off from its peers and not from us");
    let old = cluster.leader().await?;
    let id = cluster.members[old].id;
    cluster.cut_off(Some(old));
    led_by_other(&client, &cluster, id).await?;
    for _ in 0..20 {
        let named = client.view().leader.as_ref().map(|l| l.member_id);
        ensure(named.is_some_and(|named| named != id), || {
            "the one that is cut off is named again".to_owned()
        })?;
        client.range(read.clone(), CALL).await.map_err(told)?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.goes_on().await?;
    cluster.cut_off(None);

    step("MoveLeader");
    for _ in 0..3 {
        let old = cluster.leader().await?;
        let to = cluster.members[(old + 1) % cluster.members.len()].id;
        client.move_leader(to, CALL).await.map_err(told)?;
        let seen = until(&client, "the move is not seen", |view| {
            view.leader.as_ref().is_some_and(|l| l.member_id == to)
        });
        println!("  seen after {} ms", seen.await?.as_millis());
        writer.goes_on().await?;
    }

    step("a member is added, and the leader removed");
    let added = cluster.add().await?;
    let id = cluster.members[added].id;
    let old = cluster.leader().await?;
    cluster.move_leader(added).await?;
    // The client was never told of its address.
    led_by_other(&client, &cluster, cluster.members[old].id).await?;
    writer.goes_on().await?;
    let gone = cluster.members[old].id;
    cluster.remove(old).await?;
    let listed = ids(&cluster);
    until(&client, "the removed one is not noticed", |view| {
        let healthy = view.members.iter().filter(|m| m.health.is_healthy());
        healthy.filter_map(|m| m.member_id).collect::<BTreeSet<_>>() == listed
    })
    .await?;
    ensure(!listed.contains(&gone) && listed.contains(&id), || {
        format!("{listed:x?}")
    })?;
    writer.goes_on().await?;

    step("a rolling restart, and a rolling change of the authority and all certificates");
    cluster.trust_another()?;
    for at in 0..cluster.members.len() {
        cluster.sign_member(at)?;
        cluster.restart(at).await?;
        writer.goes_on().await?;
    }
    cluster.sign_client()?;
    cluster.trust_only_newest()?;
    // Members still trust both; the client's files are read again within a second or two.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for at in 0..cluster.members.len() {
        cluster.restart(at).await?;
        writer.goes_on().await?;
    }
    let settled = until(&client, "they are not all well", |view| {
        view.leader.is_some()
            && view
                .members
                .iter()
                .filter(|m| m.health.is_healthy())
                .count()
                == 3
    });
    settled.await?;

    let changes = client.view().changes;
    let end = writer.end(&client).await?;
    println!("{set}: {end}; {changes} changes of the leader seen");
    ensure(changes >= 6, || "too few changes".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_the_leader_of_etcd_3_7() {
    let dir = tempfile::tempdir().unwrap();
    let result = every_fault("etcd", dir.path()).await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_the_leader_of_etcd_3_5() {
    let dir = tempfile::tempdir().unwrap();
    let result = every_fault("etcd-3.5", dir.path()).await;
    conclude(dir, result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serializable_reads_and_watches_go_by_their_routes() {
    let dir = tempfile::tempdir().unwrap();
    let result = routes(dir.path()).await;
    conclude(dir, result);
}

async fn routes(dir: &Path) -> Result<()> {
    let mut cluster = EtcdMembers::start("etcd", 3, dir).await?;
    let spread = Routes {
        serializable: Policy::Spread,
        watches: Policy::Nearest,
    };
    let mut settings = settings(&cluster)?;
    // Who joins without a vote is told by nobody but the list.
    settings.timing.list_interval = SEEN;
    let client = Client::new(&settings, spread).map_err(told)?;
    until(&client, "round trips are not measured", |view| {
        view.leader.is_some()
            && view
                .members
                .iter()
                .all(|m| m.round_trip.smoothed_us.is_some())
    })
    .await?;
    let asked = async |serializable: bool| {
        let mut asked = BTreeSet::new();
        for _ in 0..12 {
            let read = pb::RangeRequest {
                key: key(0),
                serializable,
                ..Default::default()
            };
            let answer = client.range(read, CALL).await.map_err(told)?;
            asked.insert(answer.header.map_or(0, |header| header.member_id));
        }
        Result::Ok(asked)
    };
    let leader = cluster.members[cluster.leader().await?].id;
    ensure(asked(false).await? == BTreeSet::from([leader]), || {
        "a linearizable read went to a follower".to_owned()
    })?;
    ensure(asked(true).await?.len() == 3, || {
        "serializable reads were not spread".to_owned()
    })?;
    let create = pb::WatchCreateRequest {
        key: key(7),
        ..Default::default()
    };
    let mut watch = client.watch(create, CALL).await.map_err(told)?;
    let created = watch.stream.message().await.map_err(told)?;
    ensure(created.is_some_and(|m| m.created), || "no watch".to_owned())?;
    let put = pb::PutRequest {
        key: key(7),
        ..Default::default()
    };
    client.put(put, CALL).await.map_err(told)?;
    let event = tokio::time::timeout(CALL, watch.stream.message()).await;
    let event = event.map_err(told)?.map_err(told)?;
    ensure(event.is_some_and(|m| m.events.len() == 1), || {
        "no event".to_owned()
    })?;

    // A learner is known, and asked for nothing until it has a vote.
    let at = cluster.add_learner().await?;
    let id = cluster.members[at].id;
    let shown_as = |learner: bool| {
        move |view: &View| {
            let mut members = view.members.iter();
            members
                .any(|m| m.member_id == Some(id) && m.learner == learner && m.health.is_healthy())
        }
    };
    until(&client, "the learner is not shown", shown_as(true)).await?;
    let voters: BTreeSet<_> = cluster.members[..at].iter().map(|m| m.id).collect();
    ensure(asked(true).await? == voters, || {
        "serializable reads went elsewhere than to the voters".to_owned()
    })?;
    cluster.promote(at).await?;
    until(&client, "it is not shown to vote", shown_as(false)).await?;
    ensure(asked(true).await?.contains(&id), || {
        "the member that was a learner is not asked".to_owned()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_another_token_when_one_is_refused() {
    for set in ["etcd", "etcd-3.5"] {
        let dir = tempfile::tempdir().unwrap();
        let result = user(set, dir.path()).await;
        conclude(dir, result);
    }
}

async fn user(set: &str, dir: &Path) -> Result<()> {
    let setup = Setup::new(Kind::Etcd, binaries(set)?.join("etcd"));
    let mut store = Store::start_as(setup, "one", dir, None).await?;
    let mut settings = Settings::new(Endpoint::list(&store.url()).map_err(told)?);
    settings.user = Some(User {
        name: "root".to_owned(),
        password: "secret".to_owned(),
    });
    let client = Client::new(&settings, Routes::default()).map_err(told)?;
    let put = async |client: &Client| {
        let put = pb::PutRequest {
            key: key(0),
            ..Default::default()
        };
        client.put(put, CALL).await.map(drop).map_err(told)
    };
    // Auth is off: none is wanted.
    put(&client).await?;
    let channel = tonic::transport::Endpoint::from_shared(store.url()).map_err(told)?;
    let mut auth = AuthClient::new(channel.connect().await.map_err(told)?);
    let add = pb::AuthUserAddRequest {
        name: "root".to_owned(),
        password: "secret".to_owned(),
        ..Default::default()
    };
    auth.user_add(add).await.map_err(told)?;
    let role = pb::AuthRoleAddRequest {
        name: "root".to_owned(),
    };
    auth.role_add(role).await.map_err(told)?;
    let grant = pb::AuthUserGrantRoleRequest {
        user: "root".to_owned(),
        role: "root".to_owned(),
    };
    auth.user_grant_role(grant).await.map_err(told)?;
    auth.auth_enable(pb::AuthEnableRequest::default())
        .await
        .map_err(told)?;
    drop(auth);
    put(&client).await?;
    // A restart forgets all tokens.
    store.stop()?;
    store.start_again().await?;
    put(&client).await?;
    until(&client, "it is not asked as the user", |view| {
        view.leader.is_some()
    })
    .await?;
    let alarms = client.call(Work::Read, CALL, |attempt| {
        let request = attempt.request(pb::AlarmRequest::default());
        let mut client = pb::maintenance_client::MaintenanceClient::new(attempt.channel);
        async move { client.alarm(request).await }
    });
    alarms.await.map_err(told)?;

    settings.user = Some(User {
        name: "root".to_owned(),
        password: "wrong".to_owned(),
    });
    let wrong = Client::new(&settings, Routes::default()).map_err(told)?;
    match put(&wrong).await {
        Err(error) if error.to_string().contains("authentication failed") => Ok(()),
        other => fail(format!("a wrong password gave {other:?}")),
    }
}
