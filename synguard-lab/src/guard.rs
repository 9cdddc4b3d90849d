//! The daemon on a guarded machine of the lab, with its files in a directory of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;

use crate::{cpu, link::End, process::Process};

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(15);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// A running daemon; killed when dropped.
pub(crate) struct Guard {
    process: Process,
    files: tempfile::TempDir,
}

impl Guard {
    /// Starts `synguard run` on an interface, with this configuration if there is one, and waits
    /// until the interface is guarded.
    pub(crate) fn start(binary: &Path, interface: &End, config: Option<&str>) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("synguard-lab-")
            .tempdir()
            .context("cannot make a directory for the daemon's files")?;
        let mut command = Command::new(binary);
        command
            .args(["run", "-i", &interface.name])
            .arg("--socket")
            .arg(socket(files.path()))
            .arg("--secret")
            .arg(files.path().join("secret"))
            // The other ends of the lab's wires run XDP, and so hear what native XDP answers.
            .args(["--pins", "off", "--state", "off", "--xdp-mode", "native"]);
        if let Some(config) = config {
            let path = files.path().join("synguard.toml");
            std::fs::write(&path, config).context("cannot write the daemon's configuration")?;
            command.arg("--config").arg(path);
        }
        let mut process = Process::spawn(&interface.ns, command)?;
        process
            .wait_for_line("ready", START)
            .context("the daemon did not start")?;
        if !interface.has_xdp()? {
            bail!(
                "the daemon says it is ready, but nothing is attached to {}",
                interface.name
            );
        }
        Ok(Self { process, files })
    }

    /// Binds all its threads to one CPU.
    pub(crate) fn pin(&self, cpu: usize) -> Result<()> {
        for task in cpu::tasks_of(self.pid())? {
            cpu::pin(task.0, cpu)?;
        }
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.files.path())
    }

    /// Ends it as systemd would.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self
            .process
            .terminate(STOP)
            .context("the daemon does not stop")?;
        if !status.success() {
            bail!(
                "the daemon ended badly ({status}); it said:\n{}",
                self.process.log()
            );
        }
        Ok(())
    }
}

/// The synguard to show: what was said, or what was built beside this program.
pub(crate) fn binary(said: Option<&Path>) -> Result<PathBuf> {
    let path = match said {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("cannot find this program's own path")?
            .with_file_name("synguard"),
    };
    if !path.is_file() {
        bail!(
            "there is no synguard at {}; build it, or name it by SYNGUARD_BIN",
            path.display()
        );
    }
    Ok(path)
}

fn socket(files: &Path) -> PathBuf {
    files.join("control.sock")
}
