//! `synguard-pictures`: everything is in `synguard_lab::pictures`.

use std::process::ExitCode;

fn main() -> ExitCode {
    synguard_lab::pictures::main()
}
