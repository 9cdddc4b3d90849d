//! `synguard config`: what can be done with a configuration file without a daemon.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{print, print_json};
use crate::{
    config::{DEFAULT_PATH, Error, Mistake, Overrides, Sources},
    model,
};

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
/// Services that were added by command are checked with it. Each mistake is one line:
/// FILE:LINE:COLUMN, what is wrong, what would be right.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard config check /etc/synguard/synguard.toml
  synguard config check --json synguard.toml | jq .mistakes")]
struct Check {
    /// The file.
    #[arg(default_value = DEFAULT_PATH)]
    file: PathBuf,

    /// As JSON; exit status and stderr are the same.
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Check(command) => command.execute(),
        }
    }
}

impl Check {
    fn execute(self) -> anyhow::Result<()> {
        let checked = self.check();
        if self.json {
            let mistakes: Vec<_> = match &checked {
                Ok(_) => Vec::new(),
                Err(error) => error.mistakes().map(describe).collect(),
            };
            let services = checked.as_ref().map_or(0, |config| config.services.len());
            print_json(&json!({
                "file": self.file,
                "valid": checked.is_ok(),
                "services": services,
                "mistakes": mistakes,
            }))?;
        }
        let config = checked?;
        if self.json {
            return Ok(());
        }
        let services = match config.services.len() {
            1 => "1 service".to_owned(),
            n => format!("{n} services"),
        };
        print(&format!("{}: valid, {services}\n", self.file.display()))
    }

    fn check(&self) -> Result<model::Config, Error> {
        let overrides = Overrides::default();
        let alone = Sources::main_alone(Some(&self.file), &overrides)?.config()?;
        // Everybody may check a file, but not look into the daemon's state.
        if let Some(state) = &alone.state
            && let Err(error) = fs::read_dir(state)
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            writeln!(
                io::stderr(),
                "synguard: not checked together with services added by command: {}: {error}",
                state.display()
            )
            // Nobody is left to be told when stderr is closed.
            .ok();
            return Ok(alone);
        }
        Sources::read(Some(&self.file), &overrides)?.config()
    }
}

/// A mistake for programs.
fn describe(mistake: &Mistake) -> serde_json::Value {
    let (line, column) = mistake.position().unzip();
    json!({
        "file": mistake.file(),
        "line": line,
        "column": column,
        "message": mistake.text(),
    })
}
