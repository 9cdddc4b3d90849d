//! `synguard-bench`: everything is in `synguard_lab::bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    synguard_lab::bench::main()
}
