//! `cargo xtask pictures`: the pictures in `docs/pictures`, made anew by `synguard-pictures` from what
//! really happens in the lab.

use std::{
    fs,
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;

use crate::{
    run,
    setup::{self, Scope},
    sh::{self, Root},
};

/// The pictures, as `synguard-pictures` and their files are called. The first takes a minute and a half,
/// the other half a minute.
const PICTURES: [&str; 2] = ["dashboard", "top"];

#[derive(clap::Args)]
pub struct Args {
    /// Which ones; all of them where none is named
    #[arg(value_parser = PossibleValuesParser::new(PICTURES))]
    pictures: Vec<String>,
}

/// `cargo xtask pictures`
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build, Scope::Lab, Scope::Test])?;
    run::build_release()?;
    Root::find().acquire("the lab of network namespaces")?;
    for name in PICTURES {
        if args.pictures.is_empty() || args.pictures.iter().any(|picture| picture == name) {
            lab(name)
                .and_then(|picture| save(name, &picture))
                .with_context(|| format!("picture {name}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `synguard-pictures` prints, as root.
fn lab(name: &str) -> anyhow::Result<Vec<u8>> {
    let program = sh::target_dir()?.join("release/synguard-pictures");
    let mut command = Root::find().command(&program, run::lab_env()?);
    let output = command
        .arg(name)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", sh::typed(&command)))?;
    if !output.status.success() || output.stdout.is_empty() {
        bail!("{} made no picture, see above", sh::typed(&command));
    }
    Ok(output.stdout)
}

/// Writes a picture to where the documents look for it.
fn save(name: &str, picture: &[u8]) -> anyhow::Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{name}.svg"));
    fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("{}", path.display());
    Ok(())
}

fn folder() -> PathBuf {
    ebpf_build::workspace().join("docs/pictures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_is_there_and_shown() {
        let readme = fs::read_to_string(ebpf_build::workspace().join("README.md")).unwrap();
        for name in PICTURES {
            assert!(folder().join(format!("{name}.svg")).is_file(), "{name}");
            assert!(
                readme.contains(&format!("(docs/pictures/{name}.svg)")),
                "{name}"
            );
        }
        assert_eq!(fs::read_dir(folder()).unwrap().count(), PICTURES.len());
    }
}
