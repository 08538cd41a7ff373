//! Makes real nodes for a test and puts the machine back after them; see `e2e::node::guard`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match e2e::node::guard::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("node-guard: {error}");
            ExitCode::FAILURE
        }
    }
}
