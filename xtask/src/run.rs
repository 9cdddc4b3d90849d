//! `build`, `demo` and `bench`: compile, then hand over to what was compiled.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};

use crate::{
    setup::{self, Scope},
    sh::{self, Root},
};

/// Packages that demo, bench and the lab tests consist of.
pub const RUNNING: [&str; 2] = ["synguard", "synguard-lab"];

#[derive(clap::Args)]
pub struct BuildArgs {
    /// Optimise, as for demo, bench and packages
    #[arg(long)]
    release: bool,
}

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct PassArgs {
    /// Arguments of the program, as they are; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// `cargo xtask build`
pub fn build(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build])?;
    let mut cargo = sh::cargo()?;
    cargo.arg("build");
    if args.release {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Compiles the optimised programs that run in the lab.
pub fn build_release() -> anyhow::Result<()> {
    let mut cargo = sh::cargo()?;
    cargo.args(["build", "--release", "--bins", "--locked"]);
    for package in RUNNING {
        cargo.args(["--package", package]);
    }
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("synguard does not compile, see above");
    }
    Ok(())
}

/// What programs of the lab find in their environment.
pub fn lab_env() -> anyhow::Result<[(&'static str, OsString); 2]> {
    let synguard = sh::target_dir()?.join("release/synguard");
    Ok([("PATH", sh::path()?), ("SYNGUARD_BIN", synguard.into())])
}

/// `cargo xtask demo` and `bench`: becomes `program` of synguard-lab, as root where it needs the lab.
pub fn exec(program: &str, args: &PassArgs) -> anyhow::Result<ExitCode> {
    // Simulated time needs no lab.
    let simulates =
        program == "synguard-bench" && args.args.first().is_some_and(|arg| arg == "tuning");
    setup::ensure(if simulates {
        &[Scope::Build]
    } else {
        &[Scope::Build, Scope::Lab]
    })?;
    build_release()?;
    let path = sh::target_dir()?.join("release").join(program);
    if !path.is_file() {
        bail!("the package synguard-lab has no program {program}");
    }
    let mut command = if simulates {
        Command::new(&path)
    } else {
        let root = Root::find();
        root.acquire("the lab of network namespaces")?;
        root.command(&path, lab_env()?)
    };
    let error = command.args(&args.args).exec();
    Err(error).with_context(|| format!("cannot run {}", sh::typed(&command)))
}
