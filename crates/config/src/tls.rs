//! TLS towards clients: what belongs together, and what has no use.

use std::path::PathBuf;
use std::time::Duration;

use crate::build::invalid;
use crate::config::{AdminTls, ClientTls, Followers, Shards, TlsVersion};
use crate::golang::quote;
use crate::listen::Listen;
use crate::settings::Settings;
use crate::{Error, Notice, Url, cipher};

/// Who may come in: empty ones are refused, in a variable too.
pub(crate) const LISTS_OF_CLIENTS: [&str; 2] =
    ["client-cert-allowed-cn", "client-cert-allowed-hostname"];

fn tls_version(text: &str) -> Result<Option<TlsVersion>, Error> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(TlsVersion::Tls12)),
        "TLS1.3" => Ok(Some(TlsVersion::Tls13)),
        _ => invalid(format!(
            "unexpected TLS version {} (must be one of: TLS1.2, TLS1.3)",
            quote(text)
        )),
    }
}

/// The names in a list of who may come in. One that was given and holds none is a mistake, such
/// as a variable that was not set: it would let everyone in.
fn allowed(settings: &Settings, flag: &'static str) -> Result<Vec<String>, Error> {
    let mut names = settings.list(flag);
    names.retain(|name| !name.is_empty());
    if settings.is_set(flag) && names.is_empty() {
        return invalid(format!(
            "--{flag} is given and holds no name, which would let every client in: name some, or \
             leave it out"
        ));
    }
    Ok(names)
}

/// TLS towards clients, if a URL needs it.
pub(crate) fn client_tls(
    settings: &Settings,
    urls: &Listen,
    notices: &mut Vec<Notice>,
) -> Result<Option<ClientTls>, Error> {
    let [min_text, max_text] =
        ["tls-min-version", "tls-max-version"].map(|name| settings.text(name));
    let min_version = tls_version(&min_text)?.unwrap_or(TlsVersion::Tls12);
    let max_version = tls_version(&max_text)?.unwrap_or(TlsVersion::Tls13);
    if min_version > max_version {
        return invalid(format!(
            "min version ({min_text}) is greater than max version ({max_text})"
        ));
    }
    let mut names = settings.list("cipher-suites");
    names.retain(|name| !name.is_empty());
    if min_version == TlsVersion::Tls13 && !names.is_empty() {
        return invalid("cipher suites cannot be configured when only TLS1.3 is enabled");
    }
    let cipher_suites = cipher::select(&names, notices)?;

    let [cert, key, ca, crl] = [
        "cert-file",
        "key-file",
        "trusted-ca-file",
        "client-crl-file",
    ]
    .map(|name| settings.text(name));
    let [allowed_cns, allowed_hostnames] = LISTS_OF_CLIENTS.map(|flag| allowed(settings, flag));
    let (allowed_cns, allowed_hostnames) = (allowed_cns?, allowed_hostnames?);
    if !allowed_cns.is_empty() && !allowed_hostnames.is_empty() {
        return invalid(
            "--client-cert-allowed-cn and --client-cert-allowed-hostname exclude each other",
        );
    }
    let client_cert_auth = settings.bool("client-cert-auth");
    let given = !cert.is_empty() || !key.is_empty();
    for url in urls
        .client
        .iter()
        .chain(&urls.client_http)
        .filter(|url| !url.is_tls())
    {
        let mut ignoring = |message: &str| {
            notices.push(Notice::warn(message).with("client-url", url.to_string()));
        };
        if given {
            ignoring(
                "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            );
        }
        if client_cert_auth {
            ignoring(
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
            );
        }
        if !crl.is_empty() || !allowed_cns.is_empty() || !allowed_hostnames.is_empty() {
            ignoring(
                "scheme is http or unix while client certificates are restricted by names or a revocation list; everyone who reaches this URL is let in",
            );
        }
    }
    let needed_by_client = urls
        .client
        .iter()
        .chain(&urls.client_http)
        .find(|url| url.is_tls());
    let needed_by_metrics = urls.metrics.iter().find(|url| url.is_tls());
    if !given {
        let kinds = [(needed_by_client, "client"), (needed_by_metrics, "metrics")];
        return match kinds
            .iter()
            .find_map(|(url, kind)| url.map(|url| (url, kind)))
        {
            None => Ok(None),
            Some((url, kind)) => invalid(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for {kind} url {url} \
                 with HTTPS scheme"
            )),
        };
    }
    if needed_by_client.is_none() && needed_by_metrics.is_none() {
        return Ok(None);
    }
    if cert.is_empty() || key.is_empty() {
        return invalid(format!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"
        ));
    }
    if client_cert_auth && ca.is_empty() {
        return invalid(
            "--client-cert-auth needs --trusted-ca-file: whose client certificates are valid?",
        );
    }
    for (what, given) in [
        ("allowed common names", !allowed_cns.is_empty()),
        ("allowed host names", !allowed_hostnames.is_empty()),
        ("a list of revoked", !crl.is_empty()),
    ] {
        if given && ca.is_empty() {
            return invalid(format!(
                "{what} of client certificates need --trusted-ca-file: whose client certificates \
                 are valid?"
            ));
        }
    }
    Ok(Some(ClientTls {
        cert_file: PathBuf::from(cert),
        key_file: PathBuf::from(key),
        trusted_ca_file: (!ca.is_empty()).then(|| PathBuf::from(ca)),
        client_cert_auth,
        crl_file: (!crl.is_empty()).then(|| PathBuf::from(crl)),
        allowed_cns,
        allowed_hostnames,
        min_version,
        max_version,
        cipher_suites,
    }))
}

/// TLS of the admin endpoint, if it is asked for on TCP. Nothing else is served there: who
/// may reach it can make writes less durable.
pub(crate) fn admin_tls(settings: &Settings, urls: &Listen) -> Result<Option<AdminTls>, Error> {
    let Some(first) = urls.admin.first() else {
        return Ok(None);
    };
    if let Some(url) = urls
        .admin
        .iter()
        .find(|url| !url.is_tls() || url.unix_path().is_some())
    {
        return invalid(format!(
            "--listen-admin-urls takes https URLs only, and {url} is none; the Unix socket is \
             --admin-socket"
        ));
    }
    let [cert, key, ca] =
        ["cert-file", "key-file", "admin-trusted-ca-file"].map(|name| settings.text(name));
    if [&cert, &key, &ca].iter().any(|file| file.is_empty()) {
        return invalid(format!(
            "--listen-admin-urls {first} needs --cert-file, --key-file and \
             --admin-trusted-ca-file: whose client certificates may administer?"
        ));
    }
    Ok(Some(AdminTls {
        cert_file: PathBuf::from(cert),
        key_file: PathBuf::from(key),
        trusted_ca_file: PathBuf::from(ca),
    }))
}

/// Followers at once; each costs a connection and its queue.
const MAX_FOLLOWERS: u64 = 64;
/// A shorter wait would take a busy shard for a lost one.
const MIN_HEALTH_TIMEOUT: Duration = Duration::from_millis(50);

/// Who may follow. The peer flags mean something here only: a server that nobody may follow opens
/// no peer port, whatever they say.
pub(crate) fn followers(settings: &Settings, urls: &Listen) -> Result<Option<Followers>, Error> {
    let [max, max_shards] = ["max-followers", "max-shards"].map(|name| settings.uint(name));
    if max == 0 && max_shards == 0 {
        return Ok(None);
    }
    let opens = match max {
        0 => "--max-shards",
        _ => "--max-followers",
    };
    for (name, max) in [("max-followers", max), ("max-shards", max_shards)] {
        if max > MAX_FOLLOWERS {
            return invalid(format!(
                "--{name} is {max}: it may be {MAX_FOLLOWERS} at most"
            ));
        }
    }
    let wrong = |url: &&Url| !url.is_tls() || url.unix_path().is_some();
    if let Some(url) = urls.peer.iter().find(wrong) {
        return invalid(format!(
            "{opens} serves the data to followers at --listen-peer-urls, which must be \
             https URLs, and {url} is none"
        ));
    }
    let [cert, key, ca, crl] = [
        "peer-cert-file",
        "peer-key-file",
        "peer-trusted-ca-file",
        "peer-crl-file",
    ]
    .map(|name| settings.text(name));
    if urls.peer.is_empty() || [&cert, &key, &ca].iter().any(|file| file.is_empty()) {
        return invalid(format!(
            "{opens} needs --listen-peer-urls, --peer-cert-file, --peer-key-file and \
             --peer-trusted-ca-file: where may followers connect, and whose certificates may they \
             show?",
        ));
    }
    let allowed_cns = allowed(settings, "peer-cert-allowed-cn")?;
    let allowed_hostnames = allowed(settings, "peer-cert-allowed-hostname")?;
    if !allowed_cns.is_empty() && !allowed_hostnames.is_empty() {
        return invalid(
            "--peer-cert-allowed-cn and --peer-cert-allowed-hostname exclude each other",
        );
    }
    Ok(Some(Followers {
        listen_urls: urls.peer.clone(),
        cert_file: PathBuf::from(cert),
        key_file: PathBuf::from(key),
        trusted_ca_file: PathBuf::from(ca),
        crl_file: (!crl.is_empty()).then(|| PathBuf::from(crl)),
        allowed_cns,
        allowed_hostnames,
        max: max as usize,
        backlog_bytes: settings.uint("followers-backlog-bytes"),
        shards: shards(settings, max_shards)?,
    }))
}

/// Who may hold the newest records in memory.
fn shards(settings: &Settings, max: u64) -> Result<Option<Shards>, Error> {
    if max == 0 {
        return Ok(None);
    }
    if settings.bool("unsafe-no-fsync") {
        return invalid(
            "--max-shards has no use with --unsafe-no-fsync: nothing gets to the disk by itself, so shards would have to hold everything",
        );
    }
    let [health_timeout, recovery_timeout] = ["shard-health-timeout", "shard-recovery-timeout"]
        .map(|name| Duration::from_nanos(settings.duration_ns(name).max(0) as u64));
    if health_timeout < MIN_HEALTH_TIMEOUT {
        return invalid("--shard-health-timeout is at least 50ms");
    }
    Ok(Some(Shards {
        max: max as usize,
        health_timeout,
        recovery_timeout,
    }))
}
