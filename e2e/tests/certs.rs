//! `orlop certs` with the programs that meet its certificates: etcd, etcdctl, orlop; and whether
//! its `check` says what they do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::etcdctl::{Etcdctl, wait_for_text};
use e2e::kube::pki::Pair;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::store::{Kind, Store, Tls, without_own_variables};
use e2e::kube::{Result, binaries, ensure, fail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tokio::net::TcpStream;
use wire::{ClientTls, ClientTlsConfig};

const SOON: Duration = Duration::from_secs(15);
/// The certificate of a listener, in seconds of Unix time.
const NOT_AFTER: &str = "orlop_certificate_not_after_timestamp_seconds";

/// A directory of authorities and certificates, and the command for it.
struct Pki(PathBuf);

impl Pki {
    /// With authorities.
    fn new(dir: &Path) -> Result<Self> {
        let pki = Self(dir.join("pki"));
        pki.ok(&["init"])?;
        Ok(pki)
    }

    /// Runs `orlop certs`; whether it went well, and all that it said.
    fn run(&self, args: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(Kind::Orlop.program()?);
        command.arg("certs").args(args);
        match args.first() {
            Some(&"check") if args.len() == 1 => command.arg(&self.0),
            Some(&"check") => &mut command,
            _ => command.arg("--dir").arg(&self.0),
        };
        let output = command.output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok((output.status.success(), said))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let (well, said) = self.run(args)?;
        ensure(well, || format!("orlop certs {args:?}: {said}"))?;
        Ok(said)
    }

    fn file(&self, who: &str, name: &str) -> PathBuf {
        self.0.join(who).join(name)
    }

    fn pair(&self, who: &str) -> Pair {
        Pair {
            cert: self.file(who, "tls.crt"),
            key: self.file(who, "tls.key"),
        }
    }

    /// What `server` shows and `client` trusts and shows.
    fn tls(&self, server: &str, client: &str) -> Tls {
        Tls {
            server: self.pair(server),
            ca: self.file(client, "ca.crt"),
            client: Some(self.pair(client)),
        }
    }
}

/// Whether etcdctl, as this one of the directory, gets through.
fn gets_in(pki: &Pki, url: &str, who: &str) -> Result<(bool, String)> {
    let tls = Tls {
        // Followers trust others; here it is about what they show.
        ca: pki.file("client/etcdctl", "ca.crt"),
        ..pki.tls("server/n1", who)
    };
    let answer = Etcdctl::new(url, Some(&tls))?.run(&["get", "key", "--command-timeout=2s"])?;
    Ok((answer.code == 0, answer.err))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn etcd_etcdctl_and_orlop_take_what_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let result = taken(dir.path()).await;
    conclude(dir, result);
}

const CLIENTS: [&str; 4] = [
    "client/etcdctl",
    "client/kube-apiserver",
    "proxy/p1",
    "server/n1",
];
const OTHERS: [&str; 4] = ["shard/s1", "keeper/k1", "peer/n1", "admin/me"];

async fn taken(dir: &Path) -> Result<()> {
    let pki = Pki::new(dir)?;
    for args in [
        &[
            "make",
            "server",
            "n1",
            "n2",
            "n3",
            "--san=[2001:db8::7],store.example",
        ][..],
        &["make", "peer", "n1", "n2", "n3"],
        &["make", "shard", "s1"],
        &["make", "keeper", "k1"],
        &["make", "client", "etcdctl", "kube-apiserver"],
        &["make", "proxy", "p1"],
        &["make", "admin", "me"],
    ] {
        pki.ok(args)?;
    }
    let checked = pki.ok(&["check"])?;
    ensure(
        !checked.contains("PROBLEM") && !checked.contains("note"),
        || checked.clone(),
    )?;
    let (well, said) = pki.run(&["make", "server", "n1"])?;
    ensure(!well && said.contains("is there already"), || said.clone())?;

    let urls = etcds_with_peers(&pki, dir)?;
    let etcdctl = Etcdctl::new(&urls.0[0], Some(&pki.tls("server/n1", "client/etcdctl")))?;
    let began = Instant::now();
    while etcdctl
        .run(&["put", "key", "value", "--command-timeout=2s"])?
        .code
        != 0
    {
        ensure(began.elapsed() < SOON * 2, || {
            format!("three etcds do not come together: {}", urls.1[0].tail())
        })?;
    }
    let tls = pki.tls("server/n1", "client/etcdctl");
    let store = Store::start(Kind::Orlop, "store", dir, Some(tls), &[]).await?;
    store.etcdctl()?.ok(&["put", "key", "value"])?;
    for url in [&urls.0[0], &store.url()] {
        for who in CLIENTS {
            let (well, said) = gets_in(&pki, url, who)?;
            ensure(well, || format!("{who} at {url}: {said}"))?;
        }
        // Another authority signed them: any server refuses them.
        for who in OTHERS {
            let (well, _) = gets_in(&pki, url, who)?;
            ensure(!well, || format!("{who} was let in at {url}"))?;
        }
    }
    drop(store);

    // One authority for all, as others' tools make it: the role still keeps followers out.
    let both = dir.join("both.crt");
    let bundle: String = [
        "server/n1/ca.crt",
        "server/n1/admin-ca.crt",
        "peer/n1/ca.crt",
    ]
    .iter()
    .map(|file| std::fs::read_to_string(pki.0.join(file)))
    .collect::<std::io::Result<_>>()?;
    std::fs::write(&both, bundle)?;
    let flag = format!("--trusted-ca-file={}", both.display());
    let tls = pki.tls("server/n1", "client/etcdctl");
    let store = Store::start(Kind::Orlop, "one-authority", dir, Some(tls), &[&flag]).await?;
    for who in CLIENTS {
        let (well, said) = gets_in(&pki, &store.url(), who)?;
        ensure(well, || format!("{who}: {said}"))?;
    }
    for who in OTHERS {
        let (well, _) = gets_in(&pki, &store.url(), who)?;
        ensure(!well, || format!("{who} was let in"))?;
        let reason = format!("it names orlop://{who}, and this port is not for");
        wait_for_text(&dir.join("one-authority.log"), &reason, SOON)?;
    }
    Ok(())
}

/// Three etcds that talk to each other with their peer certificates; their client URLs.
fn etcds_with_peers(pki: &Pki, dir: &Path) -> Result<(Vec<String>, Vec<Process>)> {
    let names = ["n1", "n2", "n3"];
    let mut ports = Vec::new();
    for _ in names {
        ports.push((free_port()?, free_port()?));
    }
    let peer_url = |at: usize| format!("https://127.0.0.1:{}", ports[at].1);
    let cluster: Vec<_> = (0..3)
        .map(|at| format!("{}={}", names[at], peer_url(at)))
        .collect();
    let (mut urls, mut processes) = (Vec::new(), Vec::new());
    for (at, name) in names.into_iter().enumerate() {
        let url = format!("https://127.0.0.1:{}", ports[at].0);
        let mut command = Command::new(binaries("etcd")?.join("etcd"));
        without_own_variables(&mut command);
        command.args([
            format!("--name={name}"),
            format!("--data-dir={}", dir.join(name).display()),
            format!("--initial-cluster={}", cluster.join(",")),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={}", peer_url(at)),
            format!("--initial-advertise-peer-urls={}", peer_url(at)),
            "--client-cert-auth".to_owned(),
            "--peer-client-cert-auth".to_owned(),
        ]);
        for (prefix, who) in [("", "server"), ("peer-", "peer")] {
            let file = |file| {
                pki.file(&format!("{who}/{name}"), file)
                    .display()
                    .to_string()
            };
            command.args([
                format!("--{prefix}cert-file={}", file("tls.crt")),
                format!("--{prefix}key-file={}", file("tls.key")),
                format!("--{prefix}trusted-ca-file={}", file("ca.crt")),
            ]);
        }
        processes.push(Process::start(&format!("etcd-{name}"), dir, &mut command)?);
        urls.push(url);
    }
    Ok((urls, processes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn renewed_files_are_served_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let result = renewed(dir.path()).await;
    conclude(dir, result);
}

async fn renewed(dir: &Path) -> Result<()> {
    let pki = Pki::new(dir)?;
    pki.ok(&["make", "server", "n1", "--days=100"])?;
    pki.ok(&["make", "client", "etcdctl", "--days=100"])?;
    let tls = pki.tls("server/n1", "client/etcdctl");
    let store = Store::start(Kind::Orlop, "store", dir, Some(tls), &[]).await?;
    let etcdctl = store.etcdctl()?;
    // A connection from before all of it.
    let watch = etcdctl.background("watch", dir, &["watch", "key"])?;
    let log = dir.join("store.log");

    let mut puts = 0;
    let mut served = store.metrics().await?.sum(NOT_AFTER, &[]);
    for (days, new_key) in [(200, false), (300, true)] {
        let days_flag = format!("--days={days}");
        let mut args = vec!["renew", "server/n1", "client/etcdctl", &days_flag];
        if new_key {
            args.push("--new-key");
        }
        let old_key = std::fs::read(pki.file("server/n1", "tls.key"))?;
        pki.ok(&args)?;
        let new = std::fs::read(pki.file("server/n1", "tls.key"))?;
        ensure((new != old_key) == new_key, || {
            format!("new key: {new_key}")
        })?;
        let began = Instant::now();
        loop {
            let now = store.metrics().await?.sum(NOT_AFTER, &[]);
            // 100 days more.
            if (now - served - 8_640_000.0).abs() < 3600.0 {
                served = now;
                break;
            }
            ensure(began.elapsed() < SOON, || format!("{served}, {now}"))?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        puts += 1;
        etcdctl.ok(&["put", "key", &format!("renewed-{puts}")])?;
        wait_for_text(watch.log(), &format!("renewed-{puts}"), SOON)?;
    }

    // The authority itself, step by step; at each of them old and new connections work. The
    // server needs up to a second to take its files.
    for step in ["announce", "switch", "finish"] {
        pki.ok(&["rotate-ca", "main", step])?;
        pki.ok(&["check"])?;
        let seen = std::fs::read_to_string(&log)?
            .matches("TLS files changed: using")
            .count();
        puts += 1;
        etcdctl.ok(&["put", "key", &format!("renewed-{puts}")])?;
        wait_for_text(watch.log(), &format!("renewed-{puts}"), SOON)?;
        let began = Instant::now();
        while std::fs::read_to_string(&log)?
            .matches("TLS files changed: using")
            .count()
            <= seen
        {
            if began.elapsed() > Duration::from_secs(3) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        puts += 1;
        etcdctl.ok(&["put", "key", &format!("renewed-{puts}")])?;
    }
    wait_for_text(watch.log(), &format!("renewed-{puts}"), SOON)?;
    let said = std::fs::read_to_string(&log)?;
    ensure(said.contains("TLS files changed: using"), || said.clone())?;
    Ok(())
}

/// A server's certificate, and what the two verifiers are expected to say.
struct Case {
    name: &'static str,
    change: fn(&mut CertificateParams, &mut CertificateParams),
    host: &'static str,
    go_takes: bool,
    rustls_takes: bool,
}

const CASES: [Case; 7] = [
    Case {
        name: "usual",
        change: |_, _| (),
        host: "127.0.0.1",
        go_takes: true,
        rustls_takes: true,
    },
    Case {
        name: "another-name",
        change: |_, _| (),
        host: "localhost",
        go_takes: false,
        rustls_takes: false,
    },
    Case {
        name: "expired",
        change: |_, leaf| leaf.not_after = date_time_ymd(2020, 1, 1),
        host: "127.0.0.1",
        go_takes: false,
        rustls_takes: false,
    },
    Case {
        name: "expired-authority",
        change: |authority, _| authority.not_after = date_time_ymd(2020, 1, 1),
        host: "127.0.0.1",
        go_takes: false,
        rustls_takes: true,
    },
    Case {
        name: "authority-may-not-sign",
        change: |authority, _| authority.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        host: "127.0.0.1",
        go_takes: false,
        rustls_takes: true,
    },
    Case {
        name: "for-clients",
        change: |_, leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        host: "127.0.0.1",
        go_takes: false,
        rustls_takes: false,
    },
    Case {
        name: "itself-an-authority",
        change: |_, leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        host: "127.0.0.1",
        go_takes: true,
        rustls_takes: false,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn check_says_what_go_and_rustls_do() {
    let dir = tempfile::tempdir().unwrap();
    let result = views(dir.path()).await;
    conclude(dir, result);
}

async fn views(dir: &Path) -> Result<()> {
    let pki = Pki(dir.to_owned());
    for case in CASES {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        leaf.distinguished_name.push(DnType::CommonName, case.name);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (case.change)(&mut authority, &mut leaf);
        let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let file = |ending| dir.join(format!("{}.{ending}", case.name));
        let (ca, server) = (
            file("ca"),
            Pair {
                cert: file("crt"),
                key: file("key"),
            },
        );
        std::fs::write(&ca, authority.self_signed(&authority_key)?.pem())?;
        let issuer = Issuer::new(authority, authority_key);
        std::fs::write(&server.cert, leaf.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(&server.key, key.serialize_pem())?;

        let [cert, ca_text] = [&server.cert, &ca].map(|path| path.display().to_string());
        let (_, said) = pki.run(&[
            "check", "--cert", &cert, "--ca", &ca_text, "--host", case.host,
        ])?;
        ensure(said.contains("Go (") != case.go_takes, || {
            format!("{}: {said}", case.name)
        })?;
        ensure(said.contains("rustls (orlop)") != case.rustls_takes, || {
            format!("{}: {said}", case.name)
        })?;

        let tls = Tls {
            server,
            ca: ca.clone(),
            client: None,
        };
        let mut store = Store::start(Kind::Orlop, case.name, dir, Some(tls.clone()), &[]).await?;
        let url = format!("https://{}:{}", case.host, store.port());
        let etcdctl = Etcdctl::new(&url, Some(&tls))?;
        let answer = etcdctl.run(&["get", "key", "--command-timeout=2s"])?;
        ensure((answer.code == 0) == case.go_takes, || {
            format!("{}: etcdctl says {answer:?}, check says {said}", case.name)
        })?;
        if let Some(reason) = said.lines().find_map(|line| line.split_once(": x509: ")) {
            let begin: String = reason.1.chars().take(30).collect();
            ensure(answer.err.contains(&begin), || {
                format!("{}: not {begin:?}: {}", case.name, answer.err)
            })?;
        }
        // orlop as the client.
        let client = ClientTls::load(
            ClientTlsConfig {
                ca_file: ca,
                identity: None,
                server_name: None,
            },
            b"h2",
        );
        let client = client.or_else(|error| fail(error.to_string()))?;
        let socket = TcpStream::connect(("127.0.0.1", store.port())).await?;
        let shaken = client.connect(case.host, socket).await;
        ensure(shaken.is_ok() == case.rustls_takes, || {
            format!(
                "{}: rustls says {:?}, check says {said}",
                case.name,
                shaken.err()
            )
        })?;
        store.stop()?;
    }
    if dir.join("pki").exists() {
        return fail("check made a directory");
    }
    Ok(())
}
