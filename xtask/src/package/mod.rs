//! `cargo xtask package`: a Debian package of the optimised binary.
//!
//! [`tree`] lays the files out, [`control`] describes them to dpkg, [`notices`] names whose work the
//! binary contains. The same sources, compiler and folder give the same package, byte for byte.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    run,
    setup::{self, Scope},
    sh,
};

mod control;
mod notices;
mod tree;

/// Version of the package: the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub struct Args {
    /// Folder for the package [default: target/package]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `cargo xtask package`
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build, Scope::Package])?;
    run::build_release()?;
    println!("{}", build(args.out.as_deref())?.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the package from what is compiled, in `out` or beside it. Returns its path.
pub fn build(out: Option<&Path>) -> anyhow::Result<PathBuf> {
    let target = sh::target_dir()?;
    let out = match out {
        // Relative to where the user is, not to the workspace.
        Some(out) => env::current_dir()
            .context("cannot tell where this is")?
            .join(out),
        None => target.join("package"),
    };
    let epoch = epoch()?;
    let tree = out.join("synguard.tmp");
    clear(&tree)?;
    tree::lay_out(&tree, &target.join("release/synguard"), epoch)?;
    let architecture = control::describe(&tree)?;
    let package = out.join(format!("synguard_{VERSION}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "--build"])
        .args([&tree, &package])
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    output(&mut dpkg)?;
    clear(&tree)?;
    Ok(package)
}

/// Seconds since 1970 that all files of the package bear: `SOURCE_DATE_EPOCH`, else the time of the
/// last commit.
fn epoch() -> anyhow::Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"])
                .current_dir(ebpf_build::workspace());
            output(&mut git).context("this is no clone: set SOURCE_DATE_EPOCH")?
        }
    };
    let text = text.trim();
    text.parse()
        .with_context(|| format!("SOURCE_DATE_EPOCH: `{text}` is no number of seconds"))
}

fn clear(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Runs a program that must succeed, and returns what it prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let typed = sh::typed(command);
    let output = command
        .output()
        .with_context(|| format!("cannot run {typed}"))?;
    if !output.status.success() {
        bail!("{typed}: {}", sh::text(&output.stderr).trim());
    }
    Ok(sh::text(&output.stdout))
}

/// Writes a file and the folders above it, with modes that do not depend on the umask.
fn write(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let written = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Every file below a folder, sorted; none where there is no such folder.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop().filter(|folder| folder.is_dir()) {
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                ensure!(!path.is_symlink(), "{} is a symbolic link", path.display());
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
