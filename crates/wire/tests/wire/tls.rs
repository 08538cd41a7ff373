//! TLS as clients meet it: handshakes, client certificates, reload, clear errors.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::{Address, Config, Error, ListenerConfig, TlsConfig, TlsVersion};

use crate::certs::{Authority, Pair};
use crate::common::{Answer, Client, Running, start_on};

fn client_config(authority: &Authority, client: Option<&Pair>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.ca_file()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_file_iter(&pair.cert).unwrap();
            let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
            // Not looked at: it may be of a kind that rustls does not read.
            let pair = CertifiedKey::new(chain.map(Result::unwrap).collect(), key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn connect(running: &Running, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(running.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

/// What the server knows of a client, or why it was turned away.
async fn who(running: &Running, config: ClientConfig) -> Result<String, String> {
    let stream = connect(running, config)
        .await
        .map_err(|error| error.to_string())?;
    // In TLS 1.3 a client learns of its refusal only when it reads.
    let ask = async {
        let mut client = Client::try_over(stream).await?;
        let request = crate::common::request("/test.Echo/Who")
            .body(crate::common::whole(crate::common::wire_bytes(b"")))
            .unwrap();
        let response = client.send(request).await?;
        http_body_util::BodyExt::collect(response.into_body()).await
    };
    let body = ask.await.map_err(|error| format!("{error:?}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body[5..]).into_owned();
    Ok(text.split('@').next().unwrap().to_owned())
}

fn start_tls(tls: TlsConfig) -> Running {
    let address = Address::Tcp("127.0.0.1:0".to_owned());
    start_on(Config::default(), ListenerConfig::new(address, Some(tls)))
}

#[tokio::test]
async fn server_certificates_are_enough_without_a_client_ca() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let running = start_tls(TlsConfig::new(&server.cert, &server.key));
    assert_eq!(
        who(&running, client_config(&authority, None))
            .await
            .unwrap(),
        "nobody"
    );
    let stream = connect(&running, client_config(&authority, None))
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    // HTTP/1.1 for those who ask for it.
    let mut config = client_config(&authority, None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect(&running, config).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    assert!(
        text.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_ca() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let mut tls = TlsConfig::new(&server.cert, &server.key);
    tls.client_ca_file = Some(authority.ca_file());
    let running = start_tls(tls);
    let client = authority.issue("client", "apiserver", &[], 2);
    let known = who(&running, client_config(&authority, Some(&client))).await;
    assert_eq!(known.unwrap(), "apiserver");
    who(&running, client_config(&authority, None))
        .await
        .unwrap_err();
    let elsewhere = Authority::new();
    let stranger = elsewhere.issue("client", "apiserver", &[], 2);
    who(&running, client_config(&authority, Some(&stranger)))
        .await
        .unwrap_err();
}

/// A server for clients of these authorities, with this version of TLS only.
fn start_for(authority: &Authority, ca_file: PathBuf, version: TlsVersion) -> Running {
    let server = authority.issue("server", "server", &["localhost"], 1);
    let mut tls = TlsConfig::new(&server.cert, &server.key);
    tls.client_ca_file = Some(ca_file);
    (tls.min_version, tls.max_version) = (version, version);
    start_tls(tls)
}

#[tokio::test]
async fn client_certificates_that_go_takes_are_taken() {
    let authority = Authority::new();
    let any = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    };
    let ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = Vec::new();
    };
    let pairs = [
        authority.issue_version1("version1", "apiserver"),
        authority.issue_as("any", "apiserver", &[], 5, any),
        authority.issue_as("authority", "apiserver", &[], 6, ca),
    ];
    // What `openssl req -x509` makes, named as an authority itself.
    let own = Authority::named("apiserver");
    let both = authority.dir.path().join("both.pem");
    let two = [authority.ca_file(), own.ca_file()].map(|file| std::fs::read(file).unwrap());
    std::fs::write(&both, two.concat()).unwrap();
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let running = start_for(&authority, both.clone(), version);
        for pair in pairs.iter().chain([&own.pair()]) {
            let known = who(&running, client_config(&authority, Some(pair))).await;
            assert_eq!(known.as_deref(), Ok("apiserver"), "{:?}", pair.cert);
        }
    }
}

#[tokio::test]
async fn certificates_of_odd_kinds_need_a_signature_and_a_use() {
    let authority = Authority::new();
    // Another authority of the same name.
    let elsewhere = Authority::new();
    let server_only = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let expired = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    };
    let any = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    };
    let ca_file = authority.ca_file();
    let running = start_for(&authority, ca_file.clone(), TlsVersion::V13);
    for (pair, reason) in [
        (
            elsewhere.issue_version1("a", "a"),
            "it is of X.509 version 1: ",
        ),
        (
            elsewhere.issue_as("b", "b", &[], 2, any),
            "extended key usage is any: ",
        ),
        (
            authority.issue_as("c", "c", &[], 3, server_only),
            "must name clientAuth",
        ),
        (
            authority.issue_as("d", "d", &[], 4, expired),
            "it has expired",
        ),
    ] {
        who(&running, client_config(&authority, Some(&pair)))
            .await
            .unwrap_err();
        let told = wire::check_client_certificate(&ca_file, &pair.cert).unwrap_err();
        assert!(told.contains(reason), "{told}");
    }
    // A small RSA key is refused even in a certificate that is trusted by itself.
    let weak = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/wire/weak-rsa.pem"
    ));
    let told = wire::check_client_certificate(weak, weak).unwrap_err();
    assert!(told.contains("RSA key has 1024 bits"), "{told}");
    let good = authority.issue("good", "good", &[], 7);
    assert_eq!(wire::check_client_certificate(&ca_file, &good.cert), Ok(()));
}

#[tokio::test]
async fn names_and_revocation_are_checked() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let mut tls = TlsConfig::new(&server.cert, &server.key);
    tls.client_ca_file = Some(authority.ca_file());
    let good = authority.issue("good", "good", &["node.example", "10.0.0.1"], 2);
    let bad = authority.issue("bad", "bad", &["*.other"], 3);
    let as_client = |pair| client_config(&authority, Some(pair));

    let mut by_name = tls.clone();
    by_name.allowed_common_names = vec!["x".to_owned(), "good".to_owned()];
    let running = start_tls(by_name);
    assert_eq!(who(&running, as_client(&good)).await.unwrap(), "good");
    who(&running, as_client(&bad)).await.unwrap_err();

    for host in ["node.example", "10.0.0.1"] {
        let mut by_host = tls.clone();
        by_host.allowed_hostnames = vec![host.to_owned()];
        let running = start_tls(by_host);
        assert_eq!(who(&running, as_client(&good)).await.unwrap(), "good");
        who(&running, as_client(&bad)).await.unwrap_err();
    }

    let mut by_check = tls.clone();
    by_check.client_check = Some(|der| match der.windows(4).any(|part| part == b"good") {
        true => Ok(()),
        false => Err("it is not good".to_owned()),
    });
    let running = start_tls(by_check);
    assert_eq!(who(&running, as_client(&good)).await.unwrap(), "good");
    who(&running, as_client(&bad)).await.unwrap_err();

    let mut by_list = tls.clone();
    by_list.crl_file = Some(authority.revoke(3));
    let running = start_tls(by_list);
    assert_eq!(who(&running, as_client(&good)).await.unwrap(), "good");
    who(&running, as_client(&bad)).await.unwrap_err();
}

#[tokio::test]
async fn changed_files_are_used_without_a_restart() {
    let authority = Authority::new();
    let server = authority.issue("server", "first", &["localhost"], 1);
    let running = start_tls(TlsConfig::new(&server.cert, &server.key));
    let shown = async || {
        let stream = connect(&running, client_config(&authority, None))
            .await
            .unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = shown().await;
    // A bad pair leaves the old one in force.
    std::fs::write(&server.key, "broken").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(shown().await, first);
    authority.issue("server", "second", &["localhost"], 9);
    let mut second = shown().await;
    for _ in 0..100 {
        if second != first {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        second = shown().await;
    }
    assert_ne!(first, second);
    assert_eq!(
        second,
        CertificateDer::from_pem_file(&server.cert)
            .unwrap()
            .to_vec()
    );
}

#[tokio::test]
async fn versions_are_limited() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let mut tls = TlsConfig::new(&server.cert, &server.key);
    tls.max_version = TlsVersion::V12;
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    tls.cipher_suites = vec![0xc02b];
    let running = start_tls(tls);
    let stream = connect(&running, client_config(&authority, None))
        .await
        .unwrap();
    let session = stream.get_ref().1;
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert_eq!(
        u16::from(session.negotiated_cipher_suite().unwrap().suite()),
        0xc02b
    );
}

#[test]
fn errors_name_the_file_and_the_fault() {
    let authority = Authority::new();
    let one = authority.issue("one", "one", &[], 1);
    let two = authority.issue("two", "two", &[], 2);
    let text = |tls: TlsConfig| {
        let address = Address::Tcp("127.0.0.1:0".to_owned());
        let bound = wire::bind(vec![ListenerConfig::new(address, Some(tls))]);
        bound.unwrap_err().to_string()
    };
    let mixed = text(TlsConfig::new(&one.cert, &two.key));
    assert!(
        mixed.contains("one.pem") && mixed.contains("does not belong"),
        "{mixed}"
    );
    let absent = text(TlsConfig::new("/no/such/cert", &two.key));
    assert!(
        absent.starts_with("cannot read the certificate file /no/such/cert"),
        "{absent}"
    );
    let swapped = text(TlsConfig::new(&one.key, &one.cert));
    assert!(swapped.contains("holds no certificate in PEM"), "{swapped}");
    let no_key = text(TlsConfig::new(&one.cert, &one.cert));
    assert!(
        no_key.contains("key file") && no_key.contains("no private key"),
        "{no_key}"
    );
    let mut tls = TlsConfig::new(&one.cert, &one.key);
    tls.allowed_common_names = vec!["a".to_owned()];
    assert!(text(tls.clone()).contains("set the trusted CA file"));
    tls.client_ca_file = Some(authority.ca_file());
    tls.min_version = TlsVersion::V13;
    tls.max_version = TlsVersion::V12;
    assert!(text(tls).contains("minimum version is above"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = wire::bind(vec![ListenerConfig::new(Address::Tcp(address), None)]).unwrap_err();
    assert!(matches!(error, Error::Bind { .. }));
    assert!(
        error.to_string().contains("another process serves there"),
        "{error}"
    );
}

/// Where to connect to have a server's answers come slowly: its socket stays full.
async fn slow_way(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpSocket::new_v4().unwrap();
        server.set_recv_buffer_size(16 << 10).unwrap();
        let server = server.connect(to).await.unwrap();
        let (mut asks, mut gets) = client.into_split();
        let (mut answers, mut questions) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut asks, &mut questions).await });
        let mut piece = vec![0; 64 << 10];
        while let Ok(read @ 1..) = answers.read(&mut piece).await {
            gets.write_all(&piece[..read]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    address
}

#[tokio::test]
async fn the_end_of_an_answer_is_not_kept_back() {
    let authority = Authority::new();
    let server = authority.issue("server", "server", &["localhost"], 1);
    let running = start_tls(TlsConfig::new(&server.cert, &server.key));
    let way = slow_way(running.address).await;
    let socket = TcpStream::connect(way).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(&authority, None)));
    let stream = connector.connect(name, socket).await.unwrap();
    let client = Client::try_over(stream).await.unwrap();
    for round in 0..2 {
        // More than the socket takes; nothing comes after the end of the last.
        let payload = vec![7; (2 << 20) - round * 3_000];
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (mut client, payload) = (client.clone(), payload.clone());
            calls.spawn(async move { client.unary("Echo", &payload).await });
        }
        let all = tokio::time::timeout(Duration::from_secs(60), calls.join_all()).await;
        let all = all.unwrap_or_else(|_| panic!("round {round} did not come to its end"));
        let whole = |answer: &Answer| answer.body.len() == payload.len() + 5;
        assert!(all.iter().all(whole), "round {round}");
    }
}
