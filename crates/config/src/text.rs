//! What is printed about the flags: usage, help, and the reference page.

use std::fmt::Write as _;

use crate::Personality;
use crate::file;
use crate::gates::{GATES, Stage};
use crate::removed::{REMOVED, Successor};
use crate::table::{FLAGS, Flag, Group, Treatment};
use crate::value::Kind;

/// How to call the program, in a few lines; printed on standard error when a
/// command line cannot be parsed.
#[must_use]
pub fn usage_text(personality: Personality) -> String {
    let program = match personality {
        Personality::Orlop => "orlop serve",
        Personality::Etcd => "etcd",
    };
    format!(
        "Usage:\n\n  {program} [flags]\n    Serve etcd's API.\n\n  {program} --version\n    Show \
         the version.\n\n  {program} -h | --help\n    Show all flags.\n\n  {program} \
         --config-file PATH\n    Read everything from a YAML file; other flags and variables are \
         then ignored.\n"
    )
}

/// All flags with their defaults, by group, as `--help` prints them.
#[must_use]
pub fn help_text(personality: Personality) -> String {
    let mut text = String::new();
    for group in Group::ALL {
        if group == Group::Ignored {
            continue;
        }
        let _ = writeln!(text, "\n{}:", group.title());
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let default = match (flag.name, personality) {
                ("data-dir", Personality::Orlop) => "${name}.orlop",
                ("data-dir", Personality::Etcd) => "${name}.etcd",
                _ => flag.default,
            };
            let _ = writeln!(
                text,
                "  --{} '{default}'\n    {}",
                flag.name,
                help_line(flag)
            );
        }
    }
    text
}

fn help_line(flag: &Flag) -> String {
    let note = flag.note.replace('`', "'");
    match flag.treatment {
        Treatment::Same | Treatment::OneMember => note,
        Treatment::Accepted => format!("Accepted and ignored. {note}"),
        Treatment::Refused => format!("Not supported. {note}"),
    }
}

/// `docs/reference/flags.md`. `cargo run -p config --example flags-md` prints
/// it.
#[must_use]
pub fn flags_markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    for group in Group::ALL {
        let _ = writeln!(page, "\n## {}\n", group.title());
        if group == Group::Own {
            page.push_str(OWN);
            page.push_str("\n| Flag | Default | What it does |\n|---|---|---|\n");
        } else {
            page.push_str("| Flag | Default | Here | Note |\n|---|---|---|---|\n");
        }
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let default = code(flag.default);
            if flag.own {
                let _ = writeln!(
                    page,
                    "| `--{}` | {default} | {} |",
                    flag.name,
                    cell(flag.note)
                );
            } else {
                let here = treatment(flag.treatment);
                let _ = writeln!(
                    page,
                    "| `--{}` | {default} | {here} | {} |",
                    flag.name,
                    cell(flag.note)
                );
            }
        }
    }
    page.push_str(&gates_section());
    page.push_str(&removed_section());
    page.push_str(&file_section());
    page
}

const INTRODUCTION: &str = "\
<!-- Generated from crates/config: `cargo run -p config --example flags-md > docs/reference/flags.md` -->

# Flags

`orlop serve` takes etcd 3.7's whole command line, its `ETCD_*` variables and
its YAML configuration file. This page lists every flag of etcd 3.7 and what
becomes of it:

- **same**: it means what it means in etcd, but for what the note says;
- **one member**: taken while it describes one member, this one; refused with
  a sentence when it describes several;
- **accepted**: taken and checked, but without a meaning here; a warning at the
  start lists such flags;
- **refused**: the start fails with a sentence, unless the value is the default.

A flag that is not on this page is an error.

Names and values are written as in etcd: `-name` or `--name`, `--flag=value` or
`--flag value`, a bool alone or as `--flag=true`, durations such as `1h30m` or
`100ms`. Each flag has a variable: `--max-txn-ops` is `ETCD_MAX_TXN_OPS`. As in
etcd, a flag and its variable may not both be given, an unknown `ETCD_*`
variable only causes a warning, and with `--config-file` (or
`ETCD_CONFIG_FILE`) all other flags and variables are ignored.

Defaults are etcd's.
";

const OWN: &str = "\
etcd does not have these. Their variables begin with `ORLOP_`
(`ORLOP_MAX_WATCHES`); in a configuration file they have the keys of their
names.
";

const FILE: &str = "
## The configuration file

The keys of `--config-file` are etcd's: the names of the flags, with the
exceptions below. As in etcd, durations are whole nanoseconds and strings that
look like numbers need quotes. Unknown keys are ignored, as in etcd, but with a
warning. Of `discovery-config` only the two keys below are looked at.

| Flag | Key |
|---|---|
";

fn treatment(treatment: Treatment) -> &'static str {
    match treatment {
        Treatment::Same => "same",
        Treatment::Accepted => "accepted",
        Treatment::OneMember => "one member",
        Treatment::Refused => "refused",
    }
}

fn gates_section() -> String {
    let mut text = String::from(
        "\n## Feature gates\n\nAll gates of etcd 3.7 are taken, `AllAlpha` and `AllBeta` too; an \
         unknown one is\nan error. A warning lists those that were set and have no meaning \
         here.\n\n| Gate | Stage | Default | Note |\n|---|---|---|---|\n",
    );
    for gate in GATES {
        let stage = match gate.stage {
            Stage::Alpha => "alpha",
            Stage::Beta => "beta",
        };
        let (name, default, note) = (gate.name, gate.default, gate.note);
        let _ = writeln!(text, "| `{name}` | {stage} | {default} | {note} |");
    }
    text
}

fn removed_section() -> String {
    let mut text = String::from(
        "\n## Removed by etcd 3.6 or 3.7\n\nOlder manifests still pass these (kubeadm before \
         Kubernetes 1.34 passes two). They are\ntaken, with a warning that names the successor; \
         if the successor is given too,\nit wins.\n\n| Flag | Removed in | Becomes |\n|---|---|---|\n",
    );
    for removed in REMOVED {
        let becomes = match removed.successor {
            Successor::Flag(flag) => format!("`--{flag}`"),
            Successor::Gate(gate) => format!("`--feature-gates={gate}=`*value*"),
            Successor::Nothing { harmless: [], .. } => "nothing: ignored".to_owned(),
            Successor::Nothing { harmless, why } => {
                let values: Vec<_> = harmless.iter().map(|value| code(value)).collect();
                format!(
                    "nothing: {} is ignored, else refused: {why}",
                    values.join(" or ")
                )
            }
        };
        let _ = writeln!(
            text,
            "| `--{}` | {} | {becomes} |",
            removed.name, removed.release
        );
    }
    text
}

fn file_section() -> String {
    let mut text = String::from(FILE);
    for flag in FLAGS.iter().filter(|flag| flag.kind != Kind::Ignored) {
        match file::key_of(flag.name) {
            Some(key) if key == flag.name => {}
            Some(key) => {
                let _ = writeln!(text, "| `--{}` | `{key}` |", flag.name);
            }
            None => {
                let _ = writeln!(text, "| `--{}` | none |", flag.name);
            }
        }
    }
    text
}

fn code(value: &str) -> String {
    if value.is_empty() {
        "empty".to_owned()
    } else {
        format!("`{}`", cell(value))
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
