//! Compiles the eBPF programs and leaves the object in `OUT_DIR/synguard-lab`.

fn main() -> anyhow::Result<()> {
    ebpf_build::build("synguard-lab-ebpf")
}
