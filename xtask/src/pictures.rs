//! `cargo xtask pictures`: the pictures in `docs/pictures`, made anew from what really happens in
//! the lab. One file for each beside this one.

mod dashboard;
mod top;

use std::{
    fs,
    process::{ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;

use crate::{
    run,
    setup::{self, Scope},
    sh::{self, Root},
};

/// A picture: its name on the command line, and what makes it.
type Picture = (&'static str, fn() -> anyhow::Result<()>);

const PICTURES: &[Picture] = &[("dashboard", dashboard::make), ("top", top::make)];

#[derive(clap::Args)]
pub struct Args {
    /// Which ones; all of them where none is named
    #[arg(value_parser = PossibleValuesParser::new(PICTURES.iter().map(|(name, _)| *name)))]
    pictures: Vec<String>,
}

/// `cargo xtask pictures`
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build, Scope::Lab, Scope::Test])?;
    run::build_release()?;
    Root::find().acquire("the lab of network namespaces")?;
    for (name, make) in PICTURES {
        if args.pictures.is_empty() || args.pictures.iter().any(|picture| picture == name) {
            make().with_context(|| format!("picture {name}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `synguard-pictures` prints with these arguments, as root.
fn lab(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let program = sh::target_dir()?.join("release/synguard-pictures");
    let mut command = Root::find().command(&program, run::lab_env()?);
    let output = command
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", sh::typed(&command)))?;
    if !output.status.success() || output.stdout.is_empty() {
        bail!("{} made no picture, see above", sh::typed(&command));
    }
    Ok(output.stdout)
}

/// Writes a picture to where the documents look for it.
fn save(file: &str, picture: &[u8]) -> anyhow::Result<()> {
    let folder = ebpf_build::workspace().join("docs/pictures");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(file);
    fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("{}", path.display());
    Ok(())
}
