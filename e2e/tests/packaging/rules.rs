//! The alert rules: valid, each tested, each explained, and about series that exist.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use e2e::kube::proc::conclude;
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, ensure};
use e2e::static_pod::read;
use serde_yaml_ng::Value;

use crate::{repo, run};

const RULES: &str = "packaging/prometheus/orlop.rules.yml";
const TESTS: &str = "packaging/prometheus/orlop.rules.test.yml";
const PAGE: &str = "docs/operating/alerts.md";
/// The one series that Prometheus makes itself.
const OF_PROMETHEUS: &str = "up";

fn rules() -> Result<Vec<Value>> {
    let rules = read(&repo(RULES))?;
    let rules = rules["groups"][0]["rules"].as_sequence().cloned();
    let rules = rules.unwrap_or_default();
    ensure(rules.len() > 10, || format!("{} rules", rules.len()))?;
    Ok(rules)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn prometheus_takes_the_rules_and_they_fire_as_their_tests_say() {
    run(Command::new("promtool")
        .args(["check", "rules"])
        .arg(repo(RULES)))
    .unwrap();
    run(Command::new("promtool")
        .args(["test", "rules"])
        .arg(repo(TESTS)))
    .unwrap();
    // Each alert fires in one of them.
    let tests = read(&repo(TESTS)).unwrap();
    let fired: BTreeSet<_> = tests["tests"]
        .as_sequence()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_sequence().unwrap())
        .filter(|case| case["exp_alerts"].is_sequence())
        .map(|case| text(&case["alertname"]).to_owned())
        .collect();
    let alerts: BTreeSet<_> = rules()
        .unwrap()
        .iter()
        .map(|rule| text(&rule["alert"]).to_owned())
        .collect();
    assert_eq!(fired, alerts);
}

/// An alert without a sentence of what to do is noise.
#[test]
fn each_alert_is_explained() {
    let page = std::fs::read_to_string(repo(PAGE)).unwrap();
    let headings: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let rules = rules().unwrap();
    let alerts: Vec<_> = rules.iter().map(|rule| text(&rule["alert"])).collect();
    assert_eq!(headings, alerts, "{PAGE} has them in the order of {RULES}");
    for rule in &rules {
        let name = text(&rule["alert"]);
        let said = &rule["annotations"];
        assert!(text(&said["summary"]).len() > 40, "{name}");
        assert!(text(&said["description"]).len() > 40, "{name}");
        let anchor = format!("{PAGE}#{}", name.to_lowercase());
        assert_eq!(text(&said["runbook"]), anchor);
        let severity = text(&rule["labels"]["severity"]);
        assert!(["critical", "warning"].contains(&severity), "{name}");
    }
}

#[tokio::test]
async fn each_series_exists() {
    let dir = tempfile::tempdir().unwrap();
    let result = series(dir.path()).await;
    conclude(dir, result);
}

async fn series(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::Orlop, "orlop", dir, None, &[]).await?;
    let metrics = store.metrics().await?;
    for rule in rules()? {
        for (name, labels) in selectors(text(&rule["expr"])) {
            // The scrape adds the job's name.
            let labels: Vec<_> = labels
                .into_iter()
                .filter(|l| !l.starts_with("job"))
                .collect();
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            let found = name == OF_PROMETHEUS || metrics.series(&name, &labels).next().is_some();
            ensure(found, || {
                format!("{}: no {name}{labels:?} in /metrics", text(&rule["alert"]))
            })?;
        }
    }
    Ok(())
}

/// The series that an expression names, with their label matchers: identifiers that are no
/// functions and no operators, outside of `by (...)` and ranges.
pub(crate) fn selectors(expression: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '[') {
        rest = &rest[at..];
        if rest.starts_with('[') {
            rest = rest.split_once(']').map_or("", |(_, after)| after);
            continue;
        }
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        let next = after.trim_start();
        if word == "by" {
            rest = next.split_once(')').map_or("", |(_, after)| after);
        } else if let Some(matchers) = next.strip_prefix('{') {
            let (matchers, after) = matchers.split_once('}').unwrap_or((matchers, ""));
            let matchers = matchers.split(", ").map(str::to_owned).collect();
            found.push((word.to_owned(), matchers));
            rest = after;
        } else if !next.starts_with('(')
            && !["sum", "avg", "max", "min", "count", "and", "or", "unless"].contains(&word)
        {
            found.push((word.to_owned(), Vec::new()));
        }
    }
    found
}

#[test]
fn finds_series_in_expressions() {
    let names = |expression| -> Vec<String> {
        let found = selectors(expression).into_iter();
        found.map(|(name, _)| name).collect()
    };
    assert_eq!(
        names(r#"histogram_quantile(0.99, sum by (job, le) (rate(a_bucket[5m]))) > 0.1"#),
        ["a_bucket"]
    );
    assert_eq!(
        names(r#"a{job=~".*(x|y).*"} > 0.8 * b + c_2"#),
        ["a", "b", "c_2"]
    );
    assert_eq!(names("a > 0 and b < 1"), ["a", "b"]);
    assert_eq!(
        selectors(r#"a{x="1", y="2"}"#),
        [("a".into(), vec![r#"x="1""#.into(), r#"y="2""#.into()])]
    );
}
