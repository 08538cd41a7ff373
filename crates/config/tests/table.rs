//! The table against etcd's own list of flags, and the pages made from it.
//!
//! `testdata/etcd-3.7.3-flags.tsv` holds name, default and Go type of every
//! flag that etcd 3.7.3 registers (`flag.FlagSet.VisitAll`).

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::path::Path;

use config::{
    FLAGS, Kind, Personality, REMOVED, Successor, Treatment, all_etcd_flag_names, flags_markdown,
    help_text, removed_flag_names, usage_text,
};

fn etcds_flags() -> Vec<(&'static str, &'static str, &'static str)> {
    include_str!("../testdata/etcd-3.7.3-flags.tsv")
        .lines()
        .map(|line| {
            let mut fields = line.split('\t');
            let mut next = || fields.next().unwrap();
            (next(), next(), next())
        })
        .collect()
}

#[test]
fn has_exactly_etcds_flags() {
    let etcds: BTreeSet<_> = etcds_flags().iter().map(|(name, ..)| *name).collect();
    assert_eq!(
        all_etcd_flag_names().into_iter().collect::<BTreeSet<_>>(),
        etcds
    );
    let names: BTreeSet<_> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), FLAGS.len(), "a name is in the table twice");
    for removed in removed_flag_names() {
        assert!(!names.contains(removed), "{removed} is removed and there");
    }
}

#[test]
fn has_etcds_kinds_and_defaults() {
    for (name, default, go_type) in etcds_flags() {
        let flag = FLAGS.iter().find(|flag| flag.name == name).unwrap();
        let kinds_match = match go_type {
            "*flag.boolValue" => flag.kind == Kind::Bool,
            "*flag.intValue" | "*flag.int64Value" => flag.kind == Kind::Int,
            "*flag.uintValue" | "*flag.uint64Value" => flag.kind == Kind::Uint { bits: 64 },
            "*flags.uint32Value" => flag.kind == Kind::Uint { bits: 32 },
            "*flag.durationValue" => flag.kind == Kind::Duration,
            "*flag.stringValue" => flag.kind == Kind::Text,
            "*flags.StringsValue" => flag.kind == Kind::List,
            "*flags.UniqueStringsValue" => flag.kind == Kind::Set,
            "*flags.UniqueURLs" => matches!(flag.kind, Kind::Urls | Kind::Origins),
            "*flags.SelectiveStringValue" => matches!(flag.kind, Kind::Choice(_)),
            "*flags.SelectiveStringsValue" => matches!(flag.kind, Kind::Choices(_)),
            "*featuregate.featureGate" => flag.kind == Kind::Gates,
            "*flags.IgnoredFlag" => flag.kind == Kind::Ignored,
            other => panic!("unknown Go type {other}"),
        };
        assert!(
            kinds_match,
            "--{name} is a {go_type} in etcd, {:?} here",
            flag.kind
        );
        // Go writes 2h as 2h0m0s and 1m as 1m0s.
        let written = default.replace("h0m0s", "h").replace("m0s", "m");
        assert_eq!(flag.default, written, "--{name}");
    }
}

#[test]
fn successors_exist_and_are_of_the_same_kind() {
    for removed in REMOVED {
        if let Successor::Flag(name) = removed.successor {
            let flag = FLAGS.iter().find(|flag| flag.name == name).unwrap();
            assert_eq!(flag.kind, removed.kind, "{}", removed.name);
        }
        if let Successor::Nothing { harmless, why } = removed.successor {
            assert_eq!(harmless.is_empty(), why.is_empty(), "{}", removed.name);
        }
    }
}

#[test]
fn every_flag_has_a_note() {
    for flag in FLAGS {
        assert!(flag.note.ends_with('.'), "--{}: {}", flag.name, flag.note);
        assert!(!flag.own || flag.treatment == Treatment::Same);
    }
}

#[test]
fn reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/flags.md");
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == flags_markdown(),
        "run: cargo run -p config --example flags-md > docs/reference/flags.md"
    );
}

#[test]
fn help_lists_every_flag() {
    for personality in [Personality::Orlop, Personality::Etcd] {
        let help = help_text(personality);
        for flag in FLAGS.iter().filter(|flag| flag.kind != Kind::Ignored) {
            assert!(
                help.contains(&format!("  --{} '", flag.name)),
                "{}",
                flag.name
            );
        }
        assert!(usage_text(personality).contains("--help"));
    }
    assert!(help_text(Personality::Etcd).contains("${name}.etcd"));
}
