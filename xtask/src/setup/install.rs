//! Fills needs: by apt on Debian 12, by rustup elsewhere, by `cargo install` for cargo's own
//! tools. What cannot be installed is named, with the command to type.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use ebpf_build::Toolchain;

use super::{Need, Scope, Source, debian, debian::Apt};
use crate::{progress, sh};

/// Version of bpf-linker, and the versions of LLVM that it can be built with.
const LINKER: &str = "0.13.0";
const LINKER_LLVM: RangeInclusive<u32> = 21..=23;

/// Version of cargo-deny. Compiling it takes about 2½ minutes of CPU.
const CARGO_DENY: &str = "0.20.2";

/// Fills `needs`, which are those of `scopes`.
pub fn install(needs: &[Need], scopes: &[Scope]) -> anyhow::Result<()> {
    let tools = sh::tools_dir()?;
    let debian = debian::is_here();
    let apt = Apt::new();

    let (by_rustup, rest): (Vec<_>, Vec<_>) = needs
        .iter()
        .cloned()
        .partition(|need| matches!(need, Need::Component(_)) && under_rustup());
    if !by_rustup.is_empty() {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rustfmt", "clippy"]);
        progress::run("rustup component add rustfmt clippy", rustup)?;
    }
    if debian {
        let mut packages = debian::packages(&rest);
        // On a fresh machine the toolchain that is about to come will need its clippy too.
        if scopes.contains(&Scope::Lint) && rest.contains(&Need::EbpfToolchain) {
            packages.push("rust-web-clippy");
            packages.dedup();
        }
        apt.install(&packages)?;
        for need in &rest {
            if let Need::Program(program) = need {
                match program.source {
                    Source::Installed => {}
                    Source::File(file) => apt.extract(program.package, file, &tools.join("bin"))?,
                    Source::Unpacked(file) => apt.unpack(program.package, file, &tools)?,
                }
            }
        }
    } else {
        elsewhere(&rest)?;
    }
    if needs.iter().any(|need| matches!(need, Need::Linker(_))) {
        let toolchain =
            Toolchain::preferred().context("no toolchain for eBPF, although it was installed")?;
        let llvm = llvm_prefix(toolchain.llvm, debian.then_some(&apt))?;
        linker(&toolchain, &llvm, &tools)?;
    }
    if needs.contains(&Need::CargoDeny) {
        cargo_install("cargo-deny", CARGO_DENY, &[], None, &tools)?;
    }
    Ok(())
}

/// Where there is no Debian 12: rustup for the toolchain, a person for everything else.
fn elsewhere(needs: &[Need]) -> anyhow::Result<()> {
    let programs: Vec<_> = needs
        .iter()
        .filter_map(|need| match need {
            Need::Program(program) => {
                Some(format!("{} (Debian: {})", program.name, program.package))
            }
            Need::Component(name) => Some(format!("cargo {name}")),
            _ => None,
        })
        .collect();
    if !programs.is_empty() {
        bail!(
            "install with this system's package manager: {}",
            programs.join(", ")
        );
    }
    let nightly = [
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
    ];
    for (need, component) in [
        (Need::EbpfToolchain, "rust-src"),
        (Need::EbpfClippy, "clippy"),
    ] {
        if !needs.contains(&need) {
            continue;
        }
        let mut rustup = Command::new("rustup");
        rustup.args(nightly).arg(component);
        let typed = sh::typed(&rustup);
        if which::which("rustup").is_err() {
            bail!(
                "{} is missing; install rustup (https://rustup.rs), then type: {typed}",
                need.describe()
            );
        }
        progress::run(&typed, rustup)?;
    }
    Ok(())
}

/// Whether the cargo that runs this is one of rustup's.
fn under_rustup() -> bool {
    std::env::var_os("RUSTUP_TOOLCHAIN").is_some() && which::which("rustup").is_ok()
}

/// The folder of an installed LLVM of this major version; Debian's is installed if need be.
fn llvm_prefix(major: u32, apt: Option<&Apt>) -> anyhow::Result<PathBuf> {
    if !LINKER_LLVM.contains(&major) {
        bail!(
            "bpf-linker {LINKER} can be built with LLVM {} to {}, but the toolchain for eBPF has LLVM {major}; \
             type: cargo install bpf-linker",
            LINKER_LLVM.start(),
            LINKER_LLVM.end(),
        );
    }
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    // What bpf-linker links against is part of the package for developers only.
    let complete = |prefix: &Path| prefix.join("include/llvm-c").is_dir();
    if let Some(apt) = apt
        && !complete(&debian)
    {
        apt.install(&[&format!("llvm-{major}-dev")])?;
    }
    if complete(&debian) {
        return Ok(debian);
    }
    for program in [format!("llvm-config-{major}"), "llvm-config".to_owned()] {
        let ask = |what: &str| {
            let output = Command::new(&program).arg(what).output().ok()?;
            output
                .status
                .success()
                .then(|| sh::text(&output.stdout).trim().to_owned())
        };
        if let (Some(version), Some(prefix)) = (ask("--version"), ask("--prefix"))
            && version.starts_with(&format!("{major}."))
        {
            return Ok(prefix.into());
        }
    }
    bail!(
        "bpf-linker needs LLVM {major} to be built here, and there is none; install LLVM's development files \
         (https://apt.llvm.org), or type: cargo binstall bpf-linker"
    );
}

fn linker(toolchain: &Toolchain, llvm: &Path, tools: &Path) -> anyhow::Result<()> {
    let feature = format!("llvm-{}", toolchain.llvm);
    let features = ["--no-default-features", "--features", &feature];
    cargo_install(
        "bpf-linker",
        LINKER,
        &features,
        Some(("LLVM_PREFIX", llvm)),
        tools,
    )
}

/// Compiles a program of crates.io into the folder of tools.
fn cargo_install(
    name: &str,
    version: &str,
    features: &[&str],
    var: Option<(&str, &Path)>,
    tools: &Path,
) -> anyhow::Result<()> {
    // Kept after an interruption, so that the next try goes on from there.
    let build = tools.join("build");
    fs::create_dir_all(tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let mut cargo = sh::cargo()?;
    cargo
        .args(["install", name, "--version", version, "--locked", "--force"])
        .args(features)
        .arg("--root")
        .arg(tools)
        // Not in the workspace, whose configuration is not this program's.
        .current_dir(tools)
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .envs(var);
    progress::run(&format!("cargo install {name} {version}"), cargo)?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}
