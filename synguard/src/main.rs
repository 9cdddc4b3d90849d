//! The `synguard` command: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    synguard::cli::main()
}
