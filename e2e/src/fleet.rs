//! The command `orlop-fleet` in tests.

use std::path::PathBuf;

use crate::kube::store::Kind;
use crate::kube::{Result, ensure};

/// The program `orlop-fleet`: beside the program `orlop` that the tests run, or
/// `ORLOP_E2E_ORLOP_FLEET`.
///
/// # Errors
/// If it is not there, with what to do.
pub fn program() -> Result<PathBuf> {
    let program = match std::env::var_os("ORLOP_E2E_ORLOP_FLEET") {
        Some(path) => PathBuf::from(path),
        None => Kind::Orlop.program()?.with_file_name("orlop-fleet"),
    };
    ensure(program.is_file(), || {
        format!(
            "{} is not there: run `cargo build --workspace` with the profile of the tests, or set \
             ORLOP_E2E_ORLOP_FLEET",
            program.display()
        )
    })?;
    Ok(program)
}
