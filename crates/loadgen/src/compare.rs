//! One server, or two in turn on the same disk, through all loads and rounds.

use crate::drive::{self, Load, Span};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::probe;
use crate::procfs;
use crate::report::{Report, Row};
use crate::server::{self, Program, Server};
use crate::workload::Workload;
use std::collections::BTreeMap;
use std::path::Path;

/// What to measure, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In this order, in every round.
    pub loads: Vec<Load>,
    /// Of each load.
    pub span: Span,
    /// How often all of it.
    pub rounds: usize,
}

/// Starts `programs` in turn, each round each one anew with an empty directory in `dir`, and
/// measures all loads on each. `progress` gets a line for every measured span.
///
/// # Errors
/// When a server does not start, a call fails, an answer is wrong, or on an interrupt;
/// whatever was started has then been stopped.
pub fn against(
    programs: &[Program],
    dir: &Path,
    plan: &Plan,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, Error> {
    if probe::is_in_memory(dir) {
        progress("the directory is in memory: syncs cost nothing there; choose another with --dir");
    }
    let load_average = procfs::load_average();
    let disk = probe::disk(dir)?;
    let mut versions = BTreeMap::new();
    let mut rows = Vec::new();
    for round in 1..=plan.rounds {
        for program in programs {
            let server = Server::start(program, dir, interrupt)?;
            versions.insert(program.name.clone(), server.version.clone());
            let endpoints = [server.authority.clone()];
            let pid = Some(server.pid());
            for load in &plan.loads {
                let name = &program.name;
                rows.push(one(
                    name, round, load, &endpoints, pid, plan, interrupt, progress,
                )?);
            }
        }
    }
    Ok(Report {
        machine: procfs::machine(),
        load_average,
        disk: Some(disk),
        versions,
        rows,
    })
}

/// Measures all loads on servers that run already; `server_pid` is their process, if there is
/// one and its use of the processor is wanted.
///
/// # Errors
/// As [`against`].
pub fn endpoint(
    endpoints: &[String],
    server_pid: Option<u32>,
    plan: &Plan,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, Error> {
    let load_average = procfs::load_average();
    let name = endpoints.join(",");
    let mut versions = BTreeMap::new();
    let mut rows = Vec::new();
    for endpoint in endpoints {
        let version = server::version_of(endpoint).ok_or_else(|| Error::Connect {
            endpoint: endpoint.clone(),
            reason: "no answer to a Status call".into(),
        })?;
        versions.insert(endpoint.clone(), version);
    }
    for round in 1..=plan.rounds {
        for load in &plan.loads {
            rows.push(one(
                &name, round, load, endpoints, server_pid, plan, interrupt, progress,
            )?);
        }
    }
    Ok(Report {
        machine: procfs::machine(),
        load_average,
        disk: None,
        versions,
        rows,
    })
}

#[allow(clippy::too_many_arguments, reason = "all that a row is about")]
fn one(
    name: &str,
    round: usize,
    load: &Load,
    endpoints: &[String],
    server_pid: Option<u32>,
    plan: &Plan,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Row, Error> {
    if load.workload != Workload::Watch {
        drive::fill(load, endpoints, interrupt)?;
    }
    let outcome = drive::measure(load, endpoints, &plan.span, server_pid, interrupt)?;
    let row = Row {
        server: name.to_owned(),
        round,
        load: load.clone(),
        outcome,
    };
    progress(&row.to_string());
    Ok(row)
}
