//! `cargo xtask lint`: formatting, clippy for both sides of the kernel boundary, dependencies.

use std::{
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpf_build::Tools;

use crate::{
    setup::{self, Scope},
    sh,
    test::EBPF,
};

/// Where cargo-deny fetches the list of advisories from.
const ADVISORIES: &str = "https://github.com/RustSec/advisory-db";

/// `cargo xtask lint`
pub fn run() -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build, Scope::Lint])?;
    let mut failed = Vec::new();
    // Every check runs: a person wants to see all there is to mend.
    for (name, command) in [
        ("rustfmt", rustfmt()?),
        ("clippy", clippy()?),
        ("clippy of the eBPF side", clippy_ebpf()?),
        ("cargo-deny", deny(&["bans", "licenses", "sources"])?),
    ] {
        if !passes(name, command)? {
            failed.push(name);
        }
    }
    if !reachable(ADVISORIES) {
        println!("SKIP advisories: cannot fetch {ADVISORIES}");
    } else if !passes("advisories", deny(&["advisories"])?)? {
        failed.push("advisories");
    }
    if failed.is_empty() {
        println!("lint: clean");
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn passes(name: &str, mut command: Command) -> anyhow::Result<bool> {
    eprintln!("lint: {name}");
    let typed = sh::typed(&command);
    let status = command
        .status()
        .with_context(|| format!("cannot run {typed}"))?;
    Ok(status.success())
}

fn rustfmt() -> anyhow::Result<Command> {
    let mut cargo = sh::cargo()?;
    cargo.args(["fmt", "--all", "--check"]);
    Ok(cargo)
}

fn clippy() -> anyhow::Result<Command> {
    let mut cargo = sh::cargo()?;
    cargo.args(["clippy", "--workspace", "--all-targets", "--locked"]);
    for package in EBPF {
        cargo.args(["--exclude", package]);
    }
    cargo.args(["--", "--deny", "warnings"]);
    Ok(cargo)
}

/// The programs are checked for the target they are built for, by the toolchain that builds them.
fn clippy_ebpf() -> anyhow::Result<Command> {
    let target = sh::target_dir()?;
    let mut cargo = Tools::find(&ebpf_build::tools_dir(&target))?.command("cargo")?;
    cargo.args([
        "clippy",
        "--release",
        "--locked",
        "--target",
        ebpf_build::TARGET,
        "-Z",
        "build-std=core",
    ]);
    for package in EBPF {
        cargo.args(["--package", package]);
    }
    cargo
        .args(["--", "--deny", "warnings"])
        .current_dir(ebpf_build::workspace())
        // What aya-build passes.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!(
                "--cfg=bpf_target_arch=\"{}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf",
                std::env::consts::ARCH
            ),
        )
        .env("CARGO_TARGET_DIR", target.join("ebpf"));
    Ok(cargo)
}

fn deny(checks: &[&str]) -> anyhow::Result<Command> {
    let mut cargo = sh::cargo()?;
    cargo
        .args(["deny", "--log-level", "error", "check"])
        .args(checks);
    Ok(cargo)
}

/// Whether git can fetch from `repository`. cargo-deny's exit code does not tell "cannot fetch"
/// from "found something".
fn reachable(repository: &str) -> bool {
    const PATIENCE: Duration = Duration::from_secs(15);
    let git = Command::new("git")
        .args(["ls-remote", "--exit-code", repository, "HEAD"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut git) = git else { return false };
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match git.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
    // Either it has ended meanwhile or it is ended now; there is nothing to do about an error.
    let _ = git.kill();
    let _ = git.wait();
    false
}
