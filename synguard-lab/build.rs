//! Compiles the eBPF programs and leaves the object in `OUT_DIR/synguard-lab`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ebpf_build::build("synguard-lab-ebpf", &[])
}
