//! `orlop profile`: shows and changes how durable a running server's writes are.

use crate::admin::{Ask, Target, ask};
use crate::status::rules_line;
use std::path::Path;
use std::process::ExitCode;

/// Arguments of `orlop profile`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Put a profile in force, now and after every restart, until it is reset.
    Set {
        /// strict, balanced, ephemeral or ci.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Go back to what the server's command line says.
    Reset {
        #[command(flatten)]
        target: Target,
    },
    /// Say what is in force, and why.
    Show {
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let of = |method, path, body| Ask { method, path, body };
    let (target, question) = match &args.command {
        Command::Set { name, target } => {
            let body = serde_json::json!({ "profile": name }).to_string();
            (target, of("POST", "/v1/profile", body))
        }
        Command::Reset { target } => (target, of("DELETE", "/v1/profile", String::new())),
        Command::Show { target } => (target, of("GET", "/v1/status", String::new())),
    };
    report("orlop profile", ask(target, &question))
}

/// Puts the rules of a file in force, now and after every restart, until they are reset.
pub(crate) fn apply(file: &Path, target: &Target) -> ExitCode {
    let body = match std::fs::read_to_string(file) {
        Ok(body) => body,
        Err(error) => {
            eprintln!("orlop rules apply: cannot read {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let name = file.file_name().map_or_else(String::new, |n| {
        let plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        n.to_string_lossy().chars().filter(plain).collect()
    });
    let path = format!("/v1/rules?name={name}");
    let question = Ask {
        method: "POST",
        path: &path,
        body,
    };
    report("orlop rules apply", ask(target, &question))
}

fn report(who: &str, answer: Result<String, String>) -> ExitCode {
    let status = answer.and_then(|text| {
        serde_json::from_str::<serde_json::Value>(&text)
            .map_err(|e| format!("the server's answer is not JSON: {e}"))
    });
    match status {
        Ok(v) => {
            println!("{}", rules_line(&v));
            if let Some(sentence) = v.pointer("/profile/power_loss").and_then(|s| s.as_str()) {
                println!("{sentence}");
            }
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{who}: {text}");
            ExitCode::FAILURE
        }
    }
}
