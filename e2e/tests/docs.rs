//! What the documentation points to is there: pages, their sections, and files of the project.

#![allow(clippy::unwrap_used)] // tests

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All pages, relative to the root.
fn pages() -> Vec<PathBuf> {
    let mut pages = ["README.md", "ARCHITECTURE.md", "e2e/README.md"]
        .map(PathBuf::from)
        .to_vec();
    let mut dirs = vec![PathBuf::from("docs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root().join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// A page's lines that are not code.
fn prose(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let mut in_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push(line.to_owned());
        }
    }
    lines
}

/// The names by which links reach a page's sections.
fn sections(page: &Path) -> BTreeSet<String> {
    let headings = prose(page).into_iter().filter_map(|line| {
        let title = line.trim_start_matches('#');
        let is_heading = title.len() < line.len() && title.starts_with(' ');
        is_heading.then(|| title.trim().to_lowercase())
    });
    headings
        .map(|title| {
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// What stands between `open` and `close` in a line.
fn between<'a>(line: &'a str, open: &str, close: char) -> Vec<&'a str> {
    let parts = line.split(open).skip(1);
    parts
        .filter_map(|part| part.split_once(close))
        .map(|(inside, _)| inside)
        .collect()
}

/// Why a link does not lead anywhere.
fn broken(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") {
        return None;
    }
    let (path, section) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => page.to_owned(),
        path => page.parent().unwrap_or(Path::new("")).join(path),
    };
    if !root().join(&target).exists() {
        return Some(format!("{}: {link}: no such file", page.display()));
    }
    let is_there = section.is_empty() || sections(&target).contains(section);
    (!is_there).then(|| format!("{}: {link}: no such section", page.display()))
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let text = prose(&page).join("\n");
        for link in between(&text, "](", ')') {
            links += 1;
            wrong.extend(broken(&page, link));
        }
    }
    assert!(links > 50, "only {links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_pages_name_are_there() {
    let mut names = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for line in prose(&page) {
            for code in line.split('`').skip(1).step_by(2) {
                let is_path = ["crates/", "docs/", "e2e/", "packaging/"]
                    .iter()
                    .any(|dir| code.starts_with(dir));
                if !is_path || code.contains([' ', '*', '{', '<']) {
                    continue;
                }
                names += 1;
                if !root().join(code).exists() {
                    wrong.push(format!("{}: {code}", page.display()));
                }
            }
        }
    }
    assert!(names > 30, "only {names} files are named");
    assert!(wrong.is_empty(), "no such files:\n{}", wrong.join("\n"));
}

#[test]
fn a_broken_link_is_seen() {
    let page = Path::new("docs/reference/rules.md");
    for right in ["rules.md", "#keys", "../../README.md#not-yet"] {
        assert_eq!(broken(page, right), None);
    }
    for wrong in ["none.md", "#none", "../../README.md#none"] {
        assert!(broken(page, wrong).is_some(), "{wrong}");
    }
}
