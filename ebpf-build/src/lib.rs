//! Finds the toolchain that compiles eBPF programs, and drives it from build scripts.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// Where `cargo xtask setup` keeps what it builds, relative to the workspace.
pub const TOOLS: &str = "target/tools";

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compiles every binary of `package` for eBPF and copies the objects to `OUT_DIR`.
pub fn build(package: &str) -> anyhow::Result<()> {
    let root = workspace();
    let dir = root.join(package);
    let tools = root.join(TOOLS).join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)))?;
    // SAFETY: a build script's main thread, before anything else was started.
    unsafe {
        std::env::set_var("PATH", path);
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    aya_build::build_ebpf(
        [Package { name: package, root_dir: dir.to_str().context("path is not UTF-8")?, ..Default::default() }],
        Toolchain::Custom("/usr"),
    )
}
