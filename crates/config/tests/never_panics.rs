//! Whatever comes from outside is read or refused, never a panic.

mod common;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use common::{parse, parse_file};
use config::{Config, FLAGS, Personality, REMOVED, Url};
use proptest::prelude::*;

fn names() -> Vec<&'static str> {
    let flags = FLAGS.iter().map(|flag| flag.name);
    flags
        .chain(REMOVED.iter().map(|removed| removed.name))
        .collect()
}

/// Values near what flags take.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        "[-+]?[0-9_xXobh.msunµ]{0,24}",
        "(http|https|unix|unixs|ftp)?:?/{0,3}[a-z0-9.:@%\\[\\]/?#-]{0,20}",
        "[A-Za-z]{1,16}=(true|false|x)?(,[A-Za-z]{1,16}=(true|0))?",
        "[a-z]{1,3}=http://1.1.1.1:1(,[a-z]{1,3}=http://1.1.1.1:2)?",
        Just("true".to_owned()),
        Just(String::new()),
    ]
}

fn named_value() -> impl Strategy<Value = (&'static str, String)> {
    (prop::sample::select(names()), value())
}

/// YAML made of known keys, and of anything.
fn yaml() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        prop::sample::select(names()).prop_map(str::to_owned),
        prop::sample::select(vec![
            "client-transport-security",
            "peer-transport-security",
            "socket-options",
            "discovery-config",
        ])
        .prop_map(str::to_owned),
        "[a-z~&*!-]{0,8}",
    ];
    let scalar = prop_oneof![
        value(),
        Just("\n  cert-file: x\n  client: {endpoints: [a]}".to_owned()),
        Just("[a, 1, {b: c}]".to_owned()),
        Just("!!binary xx".to_owned()),
        Just("'1'".to_owned()),
    ];
    let lines = prop::collection::vec((key, scalar), 0..5).prop_map(|lines| {
        let lines = lines
            .into_iter()
            .map(|(key, value)| format!("{key}: {value}\n"));
        lines.collect::<String>()
    });
    prop_oneof![lines, ".{0,60}", "[\\[\\]{}&*!:|>'\", \n-]{0,40}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn on_command_lines(args in prop::collection::vec(named_value(), 0..4), stray in ".{0,8}") {
        let mut line: Vec<_> = args.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        line.push(stray);
        // A configuration file would be read; any path will do, none is written.
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let _ = parse(&line, &[]);
    }

    #[test]
    fn on_one_flag((name, value) in named_value()) {
        if let Err(error) = parse(&[&format!("-{name}"), &value], &[]) {
            prop_assert!(!error.to_string().is_empty());
            prop_assert!((1..=2).contains(&error.exit_code()));
        }
    }

    #[test]
    fn on_environments(variables in prop::collection::vec(named_value(), 0..4)) {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (format!("ETCD_{}", name.to_uppercase().replace('-', "_")), value))
            .collect();
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let _ = parse(&[], &variables);
    }

    #[test]
    fn on_bytes(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..4)) {
        let bytes = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
        let env = args.iter().map(|value| ("ETCD_NAME".into(), bytes(value)));
        let _ = Config::from_args(Personality::Etcd, args.iter().map(bytes), env);
    }

    #[test]
    fn on_urls(text in value()) {
        if let Ok(url) = Url::parse(&text) {
            let again = Url::parse(&url.to_string());
            prop_assert_eq!(again.as_ref(), Ok(&url));
            let _ = (url.socket_addr(), url.unix_path());
        }
    }

    #[test]
    fn on_files(yaml in yaml()) {
        let _ = parse_file(&yaml);
    }
}
