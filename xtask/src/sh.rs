//! Child processes: the user's cargo, commands as root, and where things are.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, bail};

/// The target folder that this program was built in.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where xtask itself is")?;
    Ok(ebpf_build::target_dir(&own))
}

/// The folder of the tools that [`crate::setup`] keeps for this workspace.
pub fn tools_dir() -> anyhow::Result<PathBuf> {
    Ok(ebpf_build::tools_dir(&target_dir()?))
}

/// `PATH` with the workspace's own tools in front.
pub fn path() -> anyhow::Result<OsString> {
    let rest = env::var_os("PATH").unwrap_or_default();
    let tools = tools_dir()?.join("bin");
    Ok(env::join_paths(
        std::iter::once(tools).chain(env::split_paths(&rest)),
    )?)
}

/// The cargo that runs xtask, in the workspace.
pub fn cargo() -> anyhow::Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(ebpf_build::workspace())
        .env("PATH", path()?);
    // `cargo run` describes the package xtask here. Build scripts that look at these would run
    // again each time cargo is started now by a person, now by xtask.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    // Set by cargo and rustup for the toolchain of this process.
    command.env_remove("LD_LIBRARY_PATH");
    Ok(command)
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How to become root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// Already there.
    Own,
    /// Through sudo.
    Sudo,
    /// Not at all.
    No,
}

impl Root {
    /// What is possible here.
    pub fn find() -> Self {
        if is_root() {
            Self::Own
        } else if which::which("sudo").is_ok() {
            Self::Sudo
        } else {
            Self::No
        }
    }

    /// Asks for the password now, while nothing else writes to the terminal. `what` says what
    /// needs root.
    pub fn acquire(self, what: &str) -> anyhow::Result<()> {
        match self {
            Self::Own => Ok(()),
            Self::No => bail!("{what} needs root, and there is no sudo"),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                if !io::stdin().is_terminal() {
                    sudo.arg("--non-interactive");
                }
                let status = sudo.arg("--validate").status().context("cannot run sudo")?;
                if !status.success() {
                    bail!("{what} needs root, and sudo refused");
                }
                Ok(())
            }
        }
    }

    /// `program` as root with these variables, which sudo's policy would otherwise drop or reset.
    pub fn command<'a>(
        self,
        program: impl Into<OsString>,
        vars: impl IntoIterator<Item = (&'a str, OsString)>,
    ) -> Command {
        let program = program.into();
        if self != Self::Sudo {
            let mut command = Command::new(program);
            command.envs(vars);
            return command;
        }
        let mut command = Command::new("sudo");
        command.args(["--preserve-env", "env"]);
        for (name, value) in vars {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.arg(program);
        command
    }
}

/// A command as a person would type it.
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
