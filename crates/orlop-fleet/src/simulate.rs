//! `orlop-fleet simulate`: a scenario under several policies.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fleet_sim::{Policy, Scenario};

/// A scenario file is small; what is larger is none.
const MAX_SCENARIO_BYTES: u64 = 1 << 20;

/// Arguments of `orlop-fleet simulate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenario, a TOML file; docs/functions/simulate.md describes it.
    scenario: PathBuf,
    /// Also write a page with the table and plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Run only these policies, separated by commas: even, nearest, least-request, seed, ours,
    /// oracle.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    policies: Vec<String>,
    /// Run these seeds in place of the scenario's, separated by commas.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    seeds: Vec<u64>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} has more than {MAX_SCENARIO_BYTES} bytes; is it a scenario?", .0.display())]
    TooLarge(PathBuf),
    #[error("there is no policy {name}; there are {all}")]
    Policy { name: String, all: String },
    #[error(transparent)]
    Scenario(#[from] fleet_sim::Error),
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match simulate(args) {
        Ok(text) => {
            // A reader that has gone away (`| head`) is no failure.
            let _ = write!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let io = |source| Failure::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(io)?.len() > MAX_SCENARIO_BYTES {
        return Err(Failure::TooLarge(path.to_owned()));
    }
    std::fs::read_to_string(path).map_err(io)
}

fn policy(name: &str) -> Result<Policy, Failure> {
    Policy::ALL
        .into_iter()
        .find(|policy| policy.name() == name)
        .ok_or_else(|| Failure::Policy {
            name: name.to_owned(),
            all: Policy::ALL.map(Policy::name).join(", "),
        })
}

fn simulate(args: &Args) -> Result<String, Failure> {
    let mut scenario = Scenario::parse(&read(&args.scenario)?)?;
    if !args.policies.is_empty() {
        scenario.policies = args
            .policies
            .iter()
            .map(|name| policy(name))
            .collect::<Result<_, _>>()?;
    }
    if !args.seeds.is_empty() {
        scenario.seeds.clone_from(&args.seeds);
    }
    let mut outcomes = Vec::new();
    for &policy in &scenario.policies {
        for &seed in &scenario.seeds {
            outcomes.push(fleet_sim::run(&scenario, policy, seed)?);
        }
    }
    let summaries = fleet_sim::summarize(&scenario, &outcomes);
    if let Some(path) = &args.html {
        let page = fleet_sim::html(&scenario, &outcomes, &summaries);
        std::fs::write(path, page).map_err(|source| Failure::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
    }
    Ok(fleet_sim::table(&scenario, &summaries))
}
