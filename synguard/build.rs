//! Compiles the eBPF programs and leaves the object in `OUT_DIR/synguard`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let trace = std::env::var_os("CARGO_FEATURE_TRACE").is_some();
    let features: &[&str] = if trace { &["trace"] } else { &[] };
    ebpf_build::build("synguard-ebpf", features)
}
