//! `synguard-demo`: everything is in `synguard_lab::demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    synguard_lab::demo::main()
}
