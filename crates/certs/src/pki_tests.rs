use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{Pki, Renewal, Request, What};
use crate::disk::Disk;
use crate::leaf::{self, Facts};
use crate::{
    AuthorityKind, CERT_FILE, Error, Finding, Identity, KEY_FILE, Level, Moment, Name, Other,
    Phase, Purpose, Role, Step, check_directory, check_other, check_pki, role_of,
};

/// 2027-01-15.
const START: Moment = Moment(1_800_000_000);
const DAY_S: i64 = 86_400;

fn identity(role: Role, name: &str) -> Identity {
    Identity::new(role, name).unwrap()
}

fn request(role: Role, name: &str, names: &[&str]) -> Request {
    Request {
        identity: identity(role, name),
        names: names.iter().map(|n| Name::parse(n).unwrap()).collect(),
        life_days: 365,
    }
}

/// A directory with a certificate of each role, made at `START`.
fn with_all_roles(dir: &Path) {
    let (pki, made) = Pki::init(dir, 3650, START).unwrap();
    assert_eq!(made, AuthorityKind::ALL);
    for role in Role::ALL {
        pki.make(&request(role, "a", &[]), false).unwrap();
    }
}

fn problems(findings: &[Finding]) -> Vec<&Finding> {
    findings
        .iter()
        .filter(|f| f.level == Level::Problem)
        .collect()
}

fn assert_well(dir: &Path, now: Moment) {
    let findings = check_pki(dir, now, 7).unwrap();
    assert!(problems(&findings).is_empty(), "{findings:#?}");
}

/// All files with their modes and contents.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            if path.is_dir() {
                dirs.push(path.clone());
                found.insert(path, (mode, Vec::new()));
            } else if path.file_name().unwrap() != ".lock" {
                let content = fs::read(&path).unwrap();
                found.insert(path, (mode, content));
            }
        }
    }
    found
}

#[test]
fn every_role_is_taken_by_both_verifiers_and_named_by_its_certificate() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    with_all_roles(&dir);
    let findings = check_pki(&dir, START, 7).unwrap();
    assert!(
        findings.iter().all(|f| f.level == Level::Good),
        "{findings:#?}"
    );
    assert_eq!(findings.len(), 3 + Role::ALL.len());
    for role in Role::ALL {
        let path = dir.join(role.as_str()).join("a");
        let facts = Facts::read(&path.join(CERT_FILE)).unwrap();
        assert_eq!(role_of(&facts.chain[0]), Ok(Some(identity(role, "a"))));
        // As it is copied to its machine, without the rest.
        let copy = temp.path().join("copy");
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        let findings = check_directory(&copy, &[], START, 7);
        assert!(
            findings.iter().all(|f| f.level == Level::Good),
            "{findings:#?}"
        );
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn keys_are_secret_each_ones_own_and_the_authoritys_in_one_place() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    with_all_roles(&dir);
    let mut keys = Vec::new();
    for (path, (mode, content)) in tree(&dir) {
        let text = String::from_utf8(content).unwrap();
        if !text.contains("PRIVATE KEY") {
            continue;
        }
        assert_eq!(mode, 0o600, "{}", path.display());
        let in_ca = path.starts_with(dir.join("ca"));
        let name = if in_ca { "ca.key" } else { KEY_FILE };
        assert_eq!(path.file_name().unwrap(), name);
        assert_eq!(text.matches("PRIVATE KEY").count(), 2, "{}", path.display());
        keys.push(text);
    }
    assert_eq!(keys.len(), 3 + Role::ALL.len());
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3 + Role::ALL.len());
    assert_eq!(tree(&dir)[&dir.join("ca")].0, 0o700);
}

#[test]
fn a_followers_certificate_opens_no_other_port_in_any_program() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    with_all_roles(dir);
    let trust = |role: &str, file: &str| dir.join(role).join("a").join(file);
    let main = trust("server", "ca.crt");
    let admin = trust("server", "admin-ca.crt");
    let peer = trust("peer", "ca.crt");
    for role in Role::ALL {
        let taken_by = |ca: &Path, purpose: Purpose| {
            let other = Other {
                cert: dir.join(role.as_str()).join("a").join(CERT_FILE),
                key: None,
                ca: ca.to_owned(),
                purposes: vec![purpose],
            };
            let findings = check_other(&other, START, 7);
            let by = |who: &str| !findings.iter().any(|f| f.text.starts_with(who));
            assert_eq!(by("rustls"), by("Go"), "{role}: {findings:#?}");
            by("rustls")
        };
        let main_role = matches!(role, Role::Server | Role::Client | Role::Proxy);
        assert_eq!(taken_by(&main, Purpose::Client), main_role, "{role}");
        let peers_role = matches!(role, Role::Peer | Role::Shard | Role::Keeper);
        assert_eq!(taken_by(&peer, Purpose::Client), peers_role, "{role}");
        assert_eq!(
            taken_by(&admin, Purpose::Client),
            role == Role::Admin,
            "{role}"
        );
        // Nobody but a server can pretend to be one.
        let server = |ca: &Path| taken_by(ca, Purpose::Server("localhost".to_owned()));
        assert_eq!(server(&main), role == Role::Server, "{role}");
        assert_eq!(server(&peer), role == Role::Peer, "{role}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    with_all_roles(dir);
    fs::create_dir_all(dir.join("shard/empty")).unwrap();
    fs::write(dir.join("shard/file"), "mine").unwrap();
    let before = tree(dir);
    let (pki, made) = Pki::init(dir, 3650, START.plus_s(DAY_S)).unwrap();
    assert!(made.is_empty());
    for name in ["a", "empty", "file"] {
        let again = pki.make(&request(Role::Shard, name, &[]), false);
        assert!(matches!(again, Err(Error::Exists(_))), "{name}: {again:?}");
    }
    let dry = pki.make(&request(Role::Shard, "b", &[]), true).unwrap();
    assert_eq!(dry.what, What::Made);
    let renewal = Renewal {
        all: true,
        dry_run: true,
        ..Renewal::default()
    };
    let dry = pki.renew(&identity(Role::Shard, "a"), &renewal).unwrap();
    assert_eq!(dry.what, What::Renewed);
    assert_eq!(tree(dir), before);
}

#[test]
fn what_is_due_is_renewed_in_place_and_the_rest_is_left() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    with_all_roles(dir);
    let shard = identity(Role::Shard, "a");
    let cert = dir.join("shard/a").join(CERT_FILE);
    let key = dir.join("shard/a").join(KEY_FILE);
    let old = fs::read(&key).unwrap();
    let before = Facts::read(&cert).unwrap();

    let early = Pki::open(dir, START.plus_s(240 * DAY_S)).unwrap();
    let done = early.renew(&shard, &Renewal::default()).unwrap();
    assert_eq!(done.what, What::Kept);
    drop(early);

    // The key may be elsewhere by now.
    fs::remove_file(&key).unwrap();
    let late = START.plus_s(250 * DAY_S);
    assert!(
        check_pki(dir, late, 7)
            .unwrap()
            .iter()
            .any(|f| f.text.contains("due for renewal"))
    );
    let pki = Pki::open(dir, late).unwrap();
    let done = pki.renew(&shard, &Renewal::default()).unwrap();
    assert_eq!(done.what, What::Renewed);
    let after = Facts::read(&cert).unwrap();
    assert_eq!(after.public_key, before.public_key);
    assert_eq!(after.not_after, late.plus_s(365 * DAY_S));
    assert_ne!(after.chain, before.chain);
    fs::write(&key, &old).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_well(dir, late);

    let new_key = Renewal {
        new_key: true,
        life_days: Some(30),
        ..Renewal::default()
    };
    pki.renew(&shard, &new_key).unwrap();
    assert_ne!(fs::read(&key).unwrap(), old);
    assert_ne!(Facts::read(&cert).unwrap().public_key, before.public_key);
    drop(pki);
    assert_well(dir, late);

    // The life that was asked for last is the one of the next.
    let later = late.plus_s(25 * DAY_S);
    let pki = Pki::open(dir, later).unwrap();
    let done = pki.renew(&shard, &Renewal::default()).unwrap();
    assert_eq!(done.not_after, later.plus_s(30 * DAY_S));
}

#[test]
fn names_can_be_added_and_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (pki, _) = Pki::init(dir, 3650, START).unwrap();
    let server = request(Role::Server, "n1", &["2001:db8::1", "n1.example.com"]);
    let done = pki.make(&server, false).unwrap();
    let shown: Vec<_> = done.names.iter().map(Name::to_string).collect();
    let loopback = ["localhost", "127.0.0.1", "::1"];
    assert_eq!(shown[..3], ["n1", "2001:db8::1", "n1.example.com"]);
    assert_eq!(shown[3..], loopback);
    let renewal = Renewal {
        add: vec![Name::parse("10.0.0.7").unwrap()],
        remove: vec![Name::parse("[2001:db8::1]").unwrap()],
        ..Renewal::default()
    };
    let done = pki.renew(&server.identity, &renewal).unwrap();
    assert_eq!(done.what, What::Renewed);
    let path = pki.place(&server.identity);
    let hosts = |host: &str| check_directory(&path, &[host.to_owned()], START, 7);
    assert!(problems(&hosts("10.0.0.7")).is_empty());
    assert_eq!(problems(&hosts("2001:db8::1")).len(), 2, "rustls and Go");
    // The same again is no change.
    let done = pki.renew(&server.identity, &renewal).unwrap();
    assert_eq!(done.what, What::Kept);
}

#[test]
fn a_certificate_ends_with_its_authority_and_recovers_its_life_after_a_change() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (pki, _) = Pki::init(dir, 400, START).unwrap();
    drop(pki);
    let later = START.plus_s(200 * DAY_S);
    let pki = Pki::open(dir, later).unwrap();
    let client = request(Role::Client, "etcdctl", &[]);
    let done = pki.make(&client, false).unwrap();
    assert!(done.ends_with_authority);
    assert_eq!(done.not_after, START.plus_s(400 * DAY_S));

    let all = |pki: &Pki| {
        for identity in pki.list().unwrap() {
            pki.renew(&identity, &Renewal::default()).unwrap();
        }
    };
    let kind = AuthorityKind::Main;
    for wrong in [Step::Switch, Step::Finish, Step::Cancel] {
        assert!(matches!(
            pki.rotate(kind, wrong, 400),
            Err(Error::Rotation { .. })
        ));
    }
    assert_eq!(
        pki.rotate(kind, Step::Announce, 3650).unwrap(),
        Phase::Announced
    );
    // Nobody has the new trust yet.
    assert!(matches!(
        pki.rotate(kind, Step::Switch, 1),
        Err(Error::Rotation { .. })
    ));
    all(&pki);
    assert_eq!(pki.rotate(kind, Step::Switch, 1).unwrap(), Phase::Switched);
    // The old certificate is in use still.
    assert!(matches!(
        pki.rotate(kind, Step::Finish, 1),
        Err(Error::Rotation { .. })
    ));
    assert_well(dir, later);
    all(&pki);
    let cert = Facts::read(&pki.place(&client.identity).join(CERT_FILE)).unwrap();
    assert_eq!(cert.not_after, later.plus_s(365 * DAY_S));
    assert_eq!(pki.rotate(kind, Step::Finish, 1).unwrap(), Phase::Settled);
    all(&pki);
    drop(pki);
    let findings = check_pki(dir, later, 7).unwrap();
    assert!(
        findings.iter().all(|f| f.level == Level::Good),
        "{findings:#?}"
    );
}

#[test]
fn a_clock_that_is_wrong_makes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let never_set = Pki::init(&dir, 3650, Moment(86_400));
    assert!(matches!(never_set, Err(Error::Clock { .. })));
    assert!(!dir.exists());
    let (pki, _) = Pki::init(&dir, 3650, START).unwrap();
    let shard = request(Role::Shard, "a", &[]);
    pki.make(&shard, false).unwrap();
    drop(pki);
    let before = tree(&dir);
    let renew_all = Renewal {
        all: true,
        ..Renewal::default()
    };
    for (now, word) in [
        (START.plus_s(-2 * DAY_S), "from"),
        (START.plus_s(3650 * DAY_S), "expired"),
    ] {
        let pki = Pki::open(&dir, now).unwrap();
        for result in [
            pki.make(&request(Role::Shard, "b", &[]), false),
            pki.renew(&shard.identity, &renew_all),
        ] {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("clock") && text.contains(word), "{text}");
        }
        assert!(!problems(&check_pki(&dir, now, 7).unwrap()).is_empty());
    }
    assert_eq!(tree(&dir), before);
}

#[test]
fn two_commands_at_once_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (pki, _) = Pki::init(temp.path(), 3650, START).unwrap();
    let second = Pki::open(temp.path(), START);
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    drop(pki);
    Pki::open(temp.path(), START).unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    with_all_roles(dir);
    let server = dir.join("server/a");
    let said = |now: Moment, words: &[&str]| {
        let findings = check_pki(dir, now, 7).unwrap();
        for word in words {
            let found = problems(&findings).iter().any(|f| f.text.contains(word));
            assert!(found, "{word}: {findings:#?}");
        }
    };
    said(
        START.plus_s(-3 * DAY_S),
        &["one of the two clocks", "Go (", "rustls ("],
    );
    said(START.plus_s(360 * DAY_S), &["expires in 5 days"]);
    said(START.plus_s(366 * DAY_S), &["has expired"]);
    // webpki does not look at an authority's own time, and Go does.
    let expired = check_directory(&dir.join("shard/a"), &[], START.plus_s(3651 * DAY_S), 7);
    assert!(
        expired.iter().any(|f| f.text.contains("the authority")),
        "{expired:#?}"
    );

    let chmod = |path: PathBuf, mode| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(dir.join("ca/main/ca.key"), 0o640);
    chmod(server.join(KEY_FILE), 0o644);
    said(START, &["whoever reads it", "every user of this machine"]);
    chmod(dir.join("ca/main/ca.key"), 0o600);
    chmod(server.join(KEY_FILE), 0o600);

    fs::copy(dir.join("peer/a").join(KEY_FILE), server.join(KEY_FILE)).unwrap();
    said(START, &["does not belong to it"]);
    fs::copy(dir.join("ca/main/ca.key"), dir.join("shard/a/ca.key")).unwrap();
    said(START, &["an authority's key was copied here"]);
    fs::copy(dir.join("shard/a/tls.crt"), dir.join("keeper/a/tls.crt")).unwrap();
    said(START, &["it belongs elsewhere"]);
    fs::copy(dir.join("peer/a/ca.crt"), server.join("ca.crt")).unwrap();
    said(
        START,
        &[
            "Go (kube",
            "rustls (orlop) refuses it as the server at localhost",
        ],
    );
    fs::write(
        dir.join("proxy/a/tls.crt"),
        "-----BEGIN CERTIFICATE-----\nMII",
    )
    .unwrap();
    said(START, &["proxy/a/tls.crt"]);
    fs::remove_dir_all(dir.join("ca/peer")).unwrap();
    said(START, &["orlop certs init makes it"]);
    fs::create_dir(dir.join("shard/Not A Name")).unwrap();
    said(START, &["its name is none"]);
    let pki = Pki::open(dir, START).unwrap();
    assert_eq!(pki.strangers().unwrap(), [dir.join("shard/Not A Name")]);
    assert_eq!(pki.list().unwrap().len(), Role::ALL.len());
}

/// Runs a change that ends after `steps` steps; whether it came to its end.
fn interrupted(
    dir: &Path,
    now: Moment,
    steps: u32,
    change: impl Fn(&Pki) -> Result<(), Error>,
) -> bool {
    let pki = Pki::open_on(Disk::ending_after(steps), dir, now);
    match pki.and_then(|pki| change(&pki)) {
        Ok(()) => true,
        Err(Error::Io { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_interruption_at_any_step_leaves_the_old_or_the_new() {
    let temp = tempfile::tempdir().unwrap();
    let mut ended = 0;
    // The authorities.
    for steps in 0.. {
        let dir = temp.path().join(format!("init-{steps}"));
        let first = Pki::init_on(Disk::ending_after(steps), &dir, 3650, START);
        let ended_well = first.is_ok();
        drop(first);
        Pki::init(&dir, 3650, START).unwrap();
        assert_well(&dir, START);
        if ended_well {
            break;
        }
        ended += 1;
    }
    // A certificate.
    let dir = temp.path().join("pki");
    drop(Pki::init(&dir, 3650, START).unwrap());
    for steps in 0.. {
        let wanted = request(Role::Shard, &format!("n{steps}"), &[]);
        let done = interrupted(&dir, START, steps, |pki| pki.make(&wanted, false).map(drop));
        assert_well(&dir, START);
        let pki = Pki::open(&dir, START).unwrap();
        match pki.make(&wanted, false) {
            Ok(_) => assert!(!done),
            // It was there but for the last sync.
            Err(Error::Exists(_)) => {}
            Err(other) => panic!("{other}"),
        }
        drop(pki);
        assert_well(&dir, START);
        if done {
            break;
        }
        ended += 1;
    }
    // Renewals, with the old key and with a new one.
    let server = request(Role::Server, "a", &[]);
    let pki = Pki::open(&dir, START).unwrap();
    pki.make(&server, false).unwrap();
    let place = pki.place(&server.identity);
    drop(pki);
    for new_key in [false, true] {
        let renewal = Renewal {
            all: true,
            new_key,
            ..Renewal::default()
        };
        for steps in 0.. {
            let done = interrupted(&dir, START, steps, |pki| {
                pki.renew(&server.identity, &renewal).map(drop)
            });
            let pki = Pki::open(&dir, START).unwrap();
            pki.renew(&server.identity, &Renewal::default()).unwrap();
            drop(pki);
            assert_well(&dir, START);
            let names: Vec<_> = tree(&place).into_keys().collect();
            assert!(
                !names.iter().any(|n| n.to_string_lossy().contains(".new-")),
                "{names:?}"
            );
            if done {
                break;
            }
            ended += 1;
        }
    }
    // A change of authority.
    for step in [Step::Announce, Step::Switch, Step::Finish] {
        for steps in 0.. {
            let done = interrupted(&dir, START, steps, |pki| {
                match pki.rotate(AuthorityKind::Main, step, 3650) {
                    // It was complete but for the last sync.
                    Err(Error::Rotation { .. }) => Ok(()),
                    other => other.map(drop),
                }
            });
            if done {
                break;
            }
            ended += 1;
            let pki = Pki::open(&dir, START).unwrap();
            for identity in pki.list().unwrap() {
                pki.renew(&identity, &Renewal::default()).unwrap();
            }
            drop(pki);
            assert_well(&dir, START);
        }
        let pki = Pki::open(&dir, START).unwrap();
        for identity in pki.list().unwrap() {
            pki.renew(&identity, &Renewal::default()).unwrap();
        }
    }
    assert_eq!(
        Pki::open(&dir, START).unwrap().phase(AuthorityKind::Main),
        Phase::Settled
    );
    assert_well(&dir, START);
    assert!(ended > 40, "only {ended} interruptions");
}

/// A new key that is in place without its certificate is not left so.
#[test]
fn a_renewal_cut_between_key_and_certificate_is_completed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    with_all_roles(dir);
    let server = identity(Role::Server, "a");
    let place = dir.join("server/a");
    let renewal = Renewal {
        new_key: true,
        ..Renewal::default()
    };
    let mismatch = (0..100).find(|steps| {
        let done = interrupted(dir, START, *steps, |pki| {
            pki.renew(&server, &renewal).map(drop)
        });
        assert!(!done, "no mismatch was met");
        let facts = Facts::read(&place.join(CERT_FILE)).unwrap();
        !leaf::key_fits(&place.join(KEY_FILE), &facts.public_key).unwrap()
    });
    assert!(mismatch.is_some());
    let pki = Pki::open(dir, START).unwrap();
    assert_eq!(
        pki.renew(&server, &Renewal::default()).unwrap().what,
        What::Kept
    );
    drop(pki);
    assert_well(dir, START);
}

fn any_name() -> impl Strategy<Value = Name> {
    let label = "[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?";
    let host = proptest::collection::vec(label, 1..4).prop_map(|labels| labels.join("."));
    let wild = proptest::collection::vec(label, 2..4).prop_map(|l| format!("*.{}", l.join(".")));
    let v4 = any::<[u8; 4]>().prop_map(|b| std::net::IpAddr::from(b).to_string());
    let v6 = any::<[u8; 16]>().prop_map(|b| format!("[{}]", std::net::IpAddr::from(b)));
    prop_oneof![host, wild, v4, v6].prop_filter_map("no name", |text| Name::parse(&text).ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is made is taken by both verifiers for each of its names, and refused for another.
    #[test]
    fn made_for_its_names_and_no_others(
        names in proptest::collection::vec(any_name(), 0..5),
        stranger in any_name(),
        role in proptest::sample::select(Role::ALL.to_vec()),
        life_days in 1_u32..4000,
    ) {
        let temp = tempfile::tempdir().unwrap();
        let (pki, _) = Pki::init(temp.path(), 3650, START).unwrap();
        let wanted = Request { identity: identity(role, "a"), names, life_days };
        let done = pki.make(&wanted, false).unwrap();
        let findings = check_directory(&done.path, &[], START, 0);
        prop_assert!(problems(&findings).is_empty(), "{findings:#?}");
        let facts = Facts::read(&done.path.join(CERT_FILE)).unwrap();
        prop_assert_eq!(&facts.names, &done.names);
        let end = START.plus_s(i64::from(life_days.min(3650)) * DAY_S);
        prop_assert_eq!(facts.not_after, end);
        prop_assert_eq!(problems(&check_directory(&done.path, &[], end, 0)).len(), 0);
        prop_assert!(!problems(&check_directory(&done.path, &[], end.plus_s(1), 0)).is_empty());

        let covered = |host: &str| done.names.iter().any(|name| match name {
            Name::Dns(dns) => match dns.strip_prefix("*.") {
                Some(rest) => host.split_once('.').is_some_and(|(_, after)| after == rest),
                None => dns == host,
            },
            Name::Ip(ip) => ip.to_string() == host,
        });
        let host = stranger.example();
        let findings = check_directory(&done.path, std::slice::from_ref(&host), START, 0);
        let expected = if role.serves() && !covered(&host) { 2 } else { 0 };
        prop_assert_eq!(problems(&findings).len(), expected, "{}: {:#?}", host, findings);
    }
}
