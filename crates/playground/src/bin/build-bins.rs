//! Builds the pinned programs into the cache; `e2e/build-bins` runs it.

use playground::bins::{self, Set};
use playground::{Result, binaries};
use std::process::ExitCode;

fn usage() -> String {
    let sets: String = bins::SETS
        .iter()
        .map(|set| format!("  {:<14} {}\n", set.name, set.summary))
        .collect();
    format!(
        "Usage: e2e/build-bins [--path] [SET...]

Builds what is missing of the named sets and prints, on stdout, one line a set:
NAME=DIRECTORY-OF-ITS-PROGRAMS. Progress goes to stderr. When nothing is
missing it only prints, and needs neither Go nor a network.

Sets:
{sets}  etcd-old       etcd-3.5 and etcd-3.6
  all            all of these; also the default

Options:
  --path     build nothing; print the lines, fail if a set is not built
  -h, --help this text

Environment:
  {}          where to put the programs
                           (default: $XDG_CACHE_HOME/orlop-e2e or ~/.cache/orlop-e2e)
  {}    how long to wait for another run building the same
                           set, in seconds (default 3600)
  GOPROXY, GOMODCACHE, ... are Go's own and are passed on
",
        bins::CACHE_VARIABLE,
        bins::LOCK_WAIT_VARIABLE
    )
}

fn run(path_only: bool, sets: &[&Set]) -> Result<()> {
    for set in sets {
        let dir = if path_only {
            binaries(set.name)?
        } else {
            set.build(&mut |line| eprintln!("build-bins: {line}"))?
        };
        println!("{}={}", set.name, dir.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut path_only = false;
    let mut sets: Vec<&Set> = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "-h" | "--help" => {
                print!("{}", usage());
                return ExitCode::SUCCESS;
            }
            "--path" => path_only = true,
            "all" => sets.extend(&bins::SETS),
            "etcd-old" => sets.extend(
                bins::SETS
                    .iter()
                    .filter(|set| set.name.starts_with("etcd-3")),
            ),
            name => match bins::set(name) {
                Ok(set) => sets.push(set),
                Err(error) => {
                    eprint!("{}", usage());
                    eprintln!("build-bins: error: {error}");
                    return ExitCode::FAILURE;
                }
            },
        }
    }
    if sets.is_empty() {
        sets.extend(&bins::SETS);
    }
    match run(path_only, &sets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("build-bins: error: {error}");
            ExitCode::FAILURE
        }
    }
}
