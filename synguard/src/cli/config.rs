//! `synguard config`: what can be done with a configuration file without a daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::print;
use crate::config::{DEFAULT_PATH, Overrides, load};

/// Work with configuration files.
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
}

/// Say whether a configuration file is valid, without applying it.
///
/// Each mistake is one line: FILE:LINE:COLUMN, what is wrong, what would be right.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard config check /etc/synguard/synguard.toml")]
struct Check {
    /// The file.
    #[arg(default_value = DEFAULT_PATH)]
    file: PathBuf,
}

impl Config {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Check(Check { file }) => {
                let config = load(Some(&file), &Overrides::default())?;
                let services = match config.services.len() {
                    1 => "1 service".to_owned(),
                    n => format!("{n} services"),
                };
                print(&format!("{}: valid, {services}\n", file.display()))
            }
        }
    }
}
