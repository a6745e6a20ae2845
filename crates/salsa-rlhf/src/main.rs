//! The `salsa` program.
use std::process::ExitCode;

fn main() -> ExitCode {
    salsa_rlhf::cli::main()
}
