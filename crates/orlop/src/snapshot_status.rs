//! `orlop snapshot status FILE`.

use crate::failure::{Failure, say};
use crate::{snapshot_feed, snapshot_restore};
use engine::Engine;
use files::real::RealFs;
use journal::DirState;
use snapshot::{Snapshot, Status, human_bytes};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `orlop snapshot status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file that `etcdctl snapshot save` or `orlop export` wrote, an etcd's member/snap/db
    /// or data directory, or an orlop data directory. Nothing is changed.
    file: PathBuf,
    /// How to print: in words, or exactly as etcdutl does.
    #[arg(short = 'w', long, value_enum, default_value_t)]
    write_out: Format,
}

/// How to print a status.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// Sentences, and more than etcdutl tells.
    #[default]
    Words,
    /// etcdutl's line of values.
    Simple,
    /// etcdutl's JSON.
    Json,
    /// etcdutl's table.
    Table,
    /// etcdutl's field a line.
    Fields,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let state = journal::inspect(&RealFs::new(), &args.file)
        .map_err(Failure::io("look into", &args.file))?;
    let file = match state {
        DirState::Orlop => return directory(args),
        DirState::Etcd => Snapshot::open(&args.file.join("member/snap/db"))?,
        _ => Snapshot::open(&args.file)?,
    };
    if !matches!(args.write_out, Format::Words) {
        file.verify_pages()?;
    }
    let status = file.status()?;
    let row = [
        format!("{:x}", status.hash),
        status.revision.to_string(),
        status.total_keys.to_string(),
        human_bytes(status.total_bytes),
        status.version.clone(),
    ];
    match args.write_out {
        Format::Words => say!("{}", words(&file, &status)?.trim_end()),
        Format::Simple => say!("{}", row.join(", ")),
        Format::Json => say!(
            "{{\"hash\":{},\"revision\":{},\"totalKey\":{},\"totalSize\":{},\"version\":\"{}\"}}",
            status.hash,
            status.revision,
            status.total_keys,
            status.total_bytes,
            status.version
        ),
        Format::Table => say!("{}", table(&row).trim_end()),
        Format::Fields => {
            say!("\"Hash\" : {}", status.hash);
            say!("\"Revision\" : {}", status.revision);
            say!("\"Keys\" : {}", status.total_keys);
            say!("\"Size\" : {}", status.total_bytes);
            say!("\"Version\" : {}", status.version);
        }
    }
    Ok(())
}

/// Says what an orlop data directory holds.
fn directory(args: &Args) -> Result<(), Failure> {
    let dir = &args.file;
    if !matches!(args.write_out, Format::Words) {
        return Err(Failure::Refused(format!(
            "{} is an orlop data directory: etcdutl's forms are for snapshots. Make one: orlop \
             export --data-dir={0} --output=FILE",
            dir.display()
        )));
    }
    let read = snapshot_feed::read(dir)?;
    let mut out = String::new();
    holds(&mut out, &read.engine, None);
    line(&mut out, "leases", read.engine.lease_count().to_string());
    say!("{}{}", read.report, out.trim_end());
    Ok(())
}

/// Adds a line of words.
fn line(out: &mut String, label: &str, text: String) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "  {label:<12}{text}");
}

/// Revisions and keys; `entries` is the number of versions.
fn holds(out: &mut String, engine: &Engine<()>, entries: Option<u64>) {
    line(out, "revision", engine.revision().to_string());
    line(
        out,
        "compacted",
        match engine.compact_revision() {
            -1 => "never".to_owned(),
            at => format!("up to revision {at}"),
        },
    );
    let versions = entries.map_or(String::new(), |n| format!(", in {n} versions"));
    line(out, "keys", format!("{}{versions}", engine.keys()));
}

const HEAD: [&str; 5] = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];

fn table(row: &[String; 5]) -> String {
    let widths: Vec<usize> = HEAD
        .iter()
        .zip(row)
        .map(|(head, cell)| head.chars().count().max(cell.chars().count()))
        .collect();
    let rule = |left: char, middle: &str, right: char| {
        let cells: Vec<String> = widths.iter().map(|w| "─".repeat(w + 2)).collect();
        format!("{left}{}{right}\n", cells.join(middle))
    };
    let head: Vec<String> = HEAD
        .iter()
        .zip(&widths)
        .map(|(cell, &w)| format!(" {cell:^w$} "))
        .collect();
    let cells: Vec<String> = row
        .iter()
        .zip(&widths)
        .map(|(cell, &w)| format!(" {cell:>w$} "))
        .collect();
    format!(
        "{}│{}│\n{}│{}│\n{}",
        rule('┌', "┬", '┐'),
        head.join("│"),
        rule('├', "┼", '┤'),
        cells.join("│"),
        rule('└', "┴", '┘')
    )
}

fn words(file: &Snapshot, status: &Status) -> Result<String, Failure> {
    // As a restore would: what restores is what is said here.
    let (restore, loaded) = snapshot_restore::load(file, false)?;
    let engine = restore.finish();
    let contents = &loaded.contents;
    let mut out = String::new();
    let hash = format!("{:x} (as etcdutl counts it)", status.hash);
    line(&mut out, "hash", hash);
    holds(&mut out, &engine, Some(loaded.entries));
    let mut line = |label: &str, text: String| line(&mut out, label, text);
    if let Some(at) = loaded.bumped_to {
        line(
            "bumped",
            format!("to revision {at} by a restore (etcdutl counts this as a key)"),
        );
    }
    line("leases", contents.leases.len().to_string());
    for (member_id, alarm) in &contents.alarms {
        line(
            "alarm",
            format!("{} of member {member_id:x}", alarm_name(*alarm)),
        );
    }
    line(
        "size",
        format!(
            "{} bytes ({})",
            status.total_bytes,
            human_bytes(status.total_bytes)
        ),
    );
    line(
        "written by",
        match (&contents.storage_version, &contents.cluster_version) {
            (Some(version), _) => format!("etcd {version}, or orlop for it"),
            (None, Some(version)) => format!("etcd {version}"),
            (None, None) => "an etcd before 3.6".to_owned(),
        },
    );
    if contents.auth.enabled || contents.auth.users > 0 {
        line(
            "auth",
            format!(
                "{}, {} users, {} roles",
                if contents.auth.enabled {
                    "enabled"
                } else {
                    "off"
                },
                contents.auth.users,
                contents.auth.roles
            ),
        );
    }
    line(
        "checked",
        match (file.has_hash(), file.verify_hash()) {
            (true, Ok(())) => "every page, and the SHA-256 at its end".to_owned(),
            (false, _) => {
                "every page; it has no SHA-256 at its end, as copied databases have none".to_owned()
            }
            (true, Err(error)) => format!("every page; BUT {error}"),
        },
    );
    if let Some(warning) = file.warning() {
        line("warning", warning);
    }
    Ok(format!("{}\n{out}", file.path().display()))
}

/// etcd's name of an alarm.
pub(crate) fn alarm_name(alarm: i32) -> String {
    match alarm {
        1 => "NOSPACE".to_owned(),
        2 => "CORRUPT".to_owned(),
        other => format!("alarm {other}"),
    }
}
