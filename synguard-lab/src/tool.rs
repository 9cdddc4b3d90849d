//! Programs that `cargo xtask setup` provides, and what tests ask promtool.

use std::{
    env,
    ffi::OsStr,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Where a program is: in PATH, or among the workspace's own tools.
pub fn find(name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([tools])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// As [`find`]; says on standard output that `what` is skipped where there is no such program.
pub fn find_or_skip(name: &str, what: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        println!(
            "SKIP {what}: no {name} in PATH or target/tools/bin; `cargo xtask setup` brings it"
        );
    }
    found
}

/// Prometheus' own judge of metrics, rules and configurations.
pub struct Promtool(PathBuf);

impl Promtool {
    /// Finds it, or says that `what` is skipped.
    pub fn or_skip(what: &str) -> Option<Self> {
        find_or_skip("promtool", what).map(Self)
    }

    /// Runs it; what it said, which is an error where it found fault.
    pub fn run(&self, arguments: &[&OsStr], input: &str) -> Result<String> {
        let mut child = Command::new(&self.0)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.0.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .context("promtool does not read")?;
        }
        let output = child
            .wait_with_output()
            .context("cannot wait for promtool")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            bail!("promtool {arguments:?}:\n{said}");
        }
        Ok(said)
    }

    /// Has it look at metrics in the text format: any remark is an error.
    pub fn check_metrics(&self, metrics: &str) -> Result<()> {
        let said = self.run(&["check".as_ref(), "metrics".as_ref()], metrics)?;
        if !said.is_empty() {
            bail!("promtool remarks:\n{said}");
        }
        Ok(())
    }
}
