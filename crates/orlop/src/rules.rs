//! `orlop rules`: check rule files, print those that ship, and explain what a rule takes.

use crate::failure::Failure;
use clap::{ArgGroup, Subcommand};
use policy::{Change, Policy, Profile};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What stands before a stored Kubernetes object.
const STORED_MAGIC: &[u8] = b"k8s\0";
/// What an explanation begins with if it is about what kubectl printed.
const PRINTED: &str = "(of what kubectl prints; judged as the API server stores it)\n";

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
    /// File with the value before the write, as it is stored or as kubectl prints it (-o json,
    /// -o yaml); - if there was none. With neither OLD nor NEW: which rules could take a write
    /// to the key.
    #[arg(requires = "new")]
    old: Option<PathBuf>,
    /// The same after the write; - if the write deletes the key.
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
        (Some(old), Some(new)) => Some(read_both(old, new)?),
        _ => None,
    };
    let key = args.key.as_bytes();
    let mut text = String::new();
    let values = values.map(|(old, new, printed)| {
        text += if printed { PRINTED } else { "" };
        (old, new)
    });
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

/// A value of a file.
enum Given {
    /// `-`: there is none.
    None,
    /// As it is stored.
    Stored(Vec<u8>),
    /// As kubectl prints it; this is how it would be stored.
    Printed(Vec<u8>),
}

/// The values before and after, and whether kubectl printed them.
type Both = (Option<Vec<u8>>, Option<Vec<u8>>, bool);

fn read_both(old: &Path, new: &Path) -> Result<Both, Failure> {
    let (old, new) = (read(old)?, read(new)?);
    let of = |given| match given {
        Given::None => None,
        Given::Stored(value) | Given::Printed(value) => Some(value),
    };
    let is = |given: &Given| match given {
        Given::None => (false, false),
        Given::Stored(_) => (true, false),
        Given::Printed(_) => (false, true),
    };
    let ((a, b), (c, d)) = (is(&old), is(&new));
    let (stored, printed) = (a || c, b || d);
    if stored && printed {
        let reason = "one of OLD and NEW is as it is stored and the other as kubectl prints it: \
                      take both in one way";
        return Err(Failure::Refused(reason.to_string()));
    }
    Ok((of(old), of(new), printed))
}

fn read(file: &Path) -> Result<Given, Failure> {
    if file == Path::new("-") {
        return Ok(Given::None);
    }
    let mut value = std::fs::read(file).map_err(Failure::io("read", file))?;
    if value.starts_with(STORED_MAGIC) {
        // etcdctl ends what it prints with a line feed; no stored object ends with one.
        if value.ends_with(b"\n") {
            value.pop();
        }
        return Ok(Given::Stored(value));
    }
    let Some(object) = printed(&value) else {
        return Ok(Given::Stored(value));
    };
    let refused = |reason: String| Failure::Refused(format!("{}: {reason}", file.display()));
    if object.get("items").is_some() {
        let reason = "it is a list; print one object, as in `kubectl get pod web -o json`";
        return Err(refused(reason.to_string()));
    }
    let value = policy::as_stored(&object).map_err(|reason| refused(reason.to_string()))?;
    // A custom resource is stored as it is printed.
    Ok(if value.starts_with(STORED_MAGIC) {
        Given::Printed(value)
    } else {
        Given::Stored(value)
    })
}

/// A Kubernetes object in JSON or YAML.
fn printed(value: &[u8]) -> Option<Value> {
    let object: Value = serde_json::from_slice(value)
        .ok()
        .or_else(|| serde_yaml_ng::from_slice(value).ok())?;
    let is_text = |name| object.get(name).is_some_and(Value::is_string);
    (is_text("apiVersion") && is_text("kind")).then_some(object)
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
        assert_eq!(list.lines().count(), 5, "{list}");
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
            b"[[rule]]\nprefix = \"/a/\"\ndurability = \"shared\"\n",
        );
        let told = said(&["check", &path]).unwrap_err();
        assert!(
            told.contains("wrong.toml:3:14: ") && told.contains("does not exist"),
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
        let (_dir, printed) = file("pod", POD.as_bytes());
        let told = said(&["explain", "/registry/pods/a/b", &path, &printed]).unwrap_err();
        assert!(told.contains("take both in one way"), "{told}");
        let list = b"apiVersion: v1\nkind: List\nitems: []\nmetadata: {}\n";
        let (_dir, list) = file("list", list);
        let told = said(&["explain", "/registry/pods/a/b", "-", &list]).unwrap_err();
        assert!(told.contains("it is a list"), "{told}");
        assert!(said(&["explain", key, "--profile", "ci", "--rules", &path]).is_err());
    }

    /// As `kubectl get pod -o yaml` prints it, shortened.
    const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  creationTimestamp: \"2026-01-02T03:04:05Z\"
  labels:
    app: web
  name: web-1
  namespace: default
  ownerReferences:
  - apiVersion: apps/v1
    blockOwnerDeletion: true
    controller: true
    kind: ReplicaSet
    name: web
    uid: 11111111-2222-3333-4444-555555555555
  resourceVersion: \"17\"
  uid: aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee
spec:
  containers:
  - image: web
    name: c
  nodeName: node-1
  terminationGracePeriodSeconds: 30
  volumes:
  - name: token
    projected:
      defaultMode: 420
status:
  conditions:
  - lastTransitionTime: \"2026-01-02T03:04:05Z\"
    status: \"True\"
    type: PodScheduled
  phase: Pending
";

    #[test]
    fn what_kubectl_prints_is_judged_as_what_is_stored() {
        let key = "/registry/pods/default/web-1";
        let explain = |old: &str, new: &str, profile: &str| {
            let ((_a, old), (_b, new)) = (file("old", old.as_bytes()), file("new", new.as_bytes()));
            said(&["explain", key, &old, &new, "--profile", profile]).unwrap()
        };
        let later = POD.replace("\"17\"", "\"18\"");
        let running = later.replace("Pending", "Running");
        let told = explain(POD, &running, "balanced");
        assert!(
            told.starts_with(&format!("{PRINTED}volatile, synced within 100ms")),
            "{told}"
        );
        // The same in JSON.
        let json = |yaml: &str| {
            let object: Value = serde_yaml_ng::from_str(yaml).unwrap();
            object.to_string()
        };
        assert_eq!(explain(&json(POD), &json(&running), "balanced"), told);
        let durable = |new: &str, profile: &str| {
            let told = explain(POD, new, profile);
            assert!(told.starts_with(&format!("{PRINTED}durable")), "{told}");
        };
        durable(&running, "strict");
        durable(&running.replace("app: web", "app: other"), "balanced");
        durable(&later.replace("Pending", "Failed"), "ephemeral");
        durable(
            &running.replace("PodScheduled", "DisruptionTarget"),
            "ephemeral",
        );
        // A pod of a ReplicaSet that comes; with a claim, it is durable.
        let created = |pod: &str| {
            let (_dir, new) = file("new", pod.as_bytes());
            said(&["explain", key, "-", &new, "--profile", "ephemeral"]).unwrap()
        };
        assert!(created(POD).starts_with(&format!("{PRINTED}volatile")));
        let claim = "persistentVolumeClaim:\n      claimName: data";
        let claims = POD.replace("projected:\n      defaultMode: 420", claim);
        assert!(created(&claims).starts_with(&format!("{PRINTED}durable")));
        let unknown = POD.replace("nodeName:", "nodeNameOfTomorrow:");
        let told = created(&unknown);
        assert!(told.contains("a doubt is durable"), "{told}");
    }
}
