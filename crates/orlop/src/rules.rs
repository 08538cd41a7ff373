//! `orlop rules`: check rule files, print those that ship, and explain what a rule takes.

use crate::failure::Failure;
use clap::{ArgGroup, Subcommand};
use policy::{Change, Policy, Profile};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What stands before a stored Kubernetes object.
const STORED_MAGIC: &[u8] = b"k8s\0";

/// Arguments of `orlop rules`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read a rule file, and say what it does or all that is wrong with it.
    Check(CheckArgs),
    /// Say which rule takes a write, and why.
    Explain(ExplainArgs),
    /// Print a profile's rule file, or the profiles that there are.
    Show(ShowArgs),
    /// Put a rule file in force on a running server, now and after every restart, until
    /// `orlop profile reset`.
    Apply(ApplyArgs),
}

#[derive(clap::Args)]
struct ApplyArgs {
    /// The rule file.
    file: PathBuf,
    #[command(flatten)]
    target: crate::admin::Target,
}

#[derive(clap::Args)]
struct CheckArgs {
    /// The rule file.
    file: PathBuf,
}

#[derive(clap::Args)]
#[command(group = ArgGroup::new("which").multiple(false))]
struct ExplainArgs {
    /// The key, as in /registry/pods/default/web.
    key: String,
    /// File with the value before the write, as it is stored; - if there was none. With
    /// neither OLD nor NEW: which rules could take a write to the key.
    #[arg(requires = "new")]
    old: Option<PathBuf>,
    /// File with the value after the write, as it is stored; - if the write deletes the key.
    new: Option<PathBuf>,
    /// Ask this profile; without it and without --rules, all that ship but strict.
    #[arg(long, group = "which")]
    profile: Option<Profile>,
    /// Ask this rule file.
    #[arg(long, group = "which")]
    rules: Option<PathBuf>,
    /// kube-apiserver's --etcd-prefix, if it has another than /registry.
    #[arg(long)]
    etcd_prefix: Option<String>,
}

#[derive(clap::Args)]
struct ShowArgs {
    /// The profile.
    #[arg(long)]
    profile: Option<Profile>,
}

/// Exit code 0: done; 1: the file is wrong, or cannot be read.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Check(args) => check(&args.file),
        Command::Explain(args) => explain(args),
        Command::Show(args) => Ok(show(args.profile)),
        Command::Apply(args) => return crate::profile::apply(&args.file, &args.target),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orlop rules: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads and compiles a rule file.
pub(crate) fn load(file: &Path, etcd_prefix: Option<&str>) -> Result<Policy, Failure> {
    let text = std::fs::read_to_string(file).map_err(Failure::io("read", file))?;
    let name = file.display().to_string();
    Policy::parse(&name, &text, etcd_prefix).map_err(|errors| Failure::Refused(errors.to_string()))
}

fn check(file: &Path) -> Result<String, Failure> {
    let policy = load(file, None)?;
    let mut text = format!("{}: {} rules\n", policy.name(), policy.rules().len());
    for rule in policy.rules() {
        text += &format!("  {rule}: {}: {}\n", rule.class(), rule.condition());
    }
    text += &match policy.power_loss() {
        Some(sentence) => format!("{sentence}\n"),
        None => "Every write is durable.\n".to_string(),
    };
    Ok(text)
}

fn explain(args: &ExplainArgs) -> Result<String, Failure> {
    let prefix = args.etcd_prefix.as_deref();
    let policies = match (&args.rules, args.profile) {
        (Some(file), _) => vec![load(file, prefix)?],
        (None, Some(profile)) => vec![shipped(profile, prefix)?],
        (None, None) => [Profile::Balanced, Profile::Ephemeral, Profile::Ci]
            .into_iter()
            .map(|profile| shipped(profile, prefix))
            .collect::<Result<_, _>>()?,
    };
    let values = match (&args.old, &args.new) {
        (Some(old), Some(new)) => Some((read(old)?, read(new)?)),
        _ => None,
    };
    let key = args.key.as_bytes();
    let mut text = String::new();
    for policy in &policies {
        if policies.len() > 1 {
            text += &format!("{}:\n", policy.name());
        }
        text += &match &values {
            None => policy.explain_key(key).to_string(),
            Some((None, None)) => {
                let reason = "OLD and NEW are both -, so there is no write";
                return Err(Failure::Refused(reason.to_string()));
            }
            Some((old, new)) => {
                let change = Change {
                    old: old.as_deref(),
                    new: new.as_deref(),
                };
                policy.explain(key, change).to_string()
            }
        };
    }
    Ok(text)
}

fn shipped(profile: Profile, prefix: Option<&str>) -> Result<Policy, Failure> {
    Policy::profile(profile, prefix).map_err(|errors| Failure::Refused(errors.to_string()))
}

/// A stored value; `None` for `-`.
fn read(file: &Path) -> Result<Option<Vec<u8>>, Failure> {
    if file == Path::new("-") {
        return Ok(None);
    }
    let mut value = std::fs::read(file).map_err(Failure::io("read", file))?;
    // etcdctl ends what it prints with a line feed; no stored object ends with one.
    if value.starts_with(STORED_MAGIC) && value.ends_with(b"\n") {
        value.pop();
    }
    Ok(Some(value))
}

fn show(profile: Option<Profile>) -> String {
    match profile {
        Some(profile) => profile.text().to_string(),
        None => Profile::ALL
            .into_iter()
            .map(|profile| {
                let head = profile.text().lines().next().unwrap_or_default();
                format!("{}\n", head.trim_start_matches("# "))
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn said(line: &[&str]) -> Result<String, String> {
        let cli = Cli::try_parse_from([&["rules"], line].concat()).map_err(|e| e.to_string())?;
        let done = match &cli.args.command {
            Command::Check(args) => check(&args.file),
            Command::Explain(args) => explain(args),
            Command::Show(args) => Ok(show(args.profile)),
            // Asks a server; not for these tests.
            Command::Apply(_) => Ok(String::new()),
        };
        done.map_err(|e| e.to_string())
    }

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let path = path.display().to_string();
        (dir, path)
    }

    #[test]
    fn a_profile_can_be_shown_saved_and_checked() {
        assert_eq!(
            said(&["show", "--profile", "balanced"]).unwrap(),
            Profile::Balanced.text()
        );
        let list = said(&["show"]).unwrap();
        assert_eq!(list.lines().count(), 4, "{list}");
        assert!(
            said(&["show", "--profile", "lax"])
                .unwrap_err()
                .contains("there is no profile")
        );
        let (_dir, path) = file("mine.toml", Profile::Ephemeral.text().as_bytes());
        let said_of_it = said(&["check", &path]).unwrap();
        assert!(said_of_it.contains("(progress of pods)"), "{said_of_it}");
        assert!(said_of_it.contains("A power loss may take"), "{said_of_it}");
    }

    #[test]
    fn a_wrong_file_is_told_with_its_line() {
        let (_dir, path) = file(
            "wrong.toml",
            b"[[rule]]\nprefix = \"/a/\"\ndurability = \"replicated\"\n",
        );
        let told = said(&["check", &path]).unwrap_err();
        assert!(
            told.contains("wrong.toml:3:14: ") && told.contains("needs shards"),
            "{told}"
        );
        assert!(
            said(&["check", "/nowhere"])
                .unwrap_err()
                .contains("cannot read /nowhere")
        );
    }

    #[test]
    fn writes_are_explained_from_files() {
        let (_dir, path) = file("event", b"k8s\0not an object\n");
        let key = "/registry/events/a/b";
        let told = said(&["explain", key, "-", &path, "--profile", "ephemeral"]).unwrap();
        assert!(
            told.starts_with("volatile, synced within 1s: rule 1 (events)"),
            "{told}"
        );
        let key = "/registry/pods/a/b";
        let told = said(&["explain", key, &path, "-", "--profile", "ephemeral"]).unwrap();
        assert!(told.contains("a doubt is durable"), "{told}");
        let told = said(&["explain", key]).unwrap();
        assert!(told.contains("balanced:") && told.contains("ci:"), "{told}");
        let told = said(&["explain", "/k8s/events/a/b", "--etcd-prefix", "/k8s"]).unwrap();
        assert!(told.contains("(events)"), "{told}");
        assert!(
            said(&["explain", key, "-", "-"])
                .unwrap_err()
                .contains("no write")
        );
        assert!(said(&["explain", key, &path]).is_err());
        assert!(said(&["explain", key, "--profile", "ci", "--rules", &path]).is_err());
    }
}
