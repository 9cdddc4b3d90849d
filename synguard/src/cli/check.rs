//! `synguard check`: what on this machine helps or hinders.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::{colours, print, print_json};
use crate::check::{Report, Request, probe, render};

/// Say whether this machine and its interfaces can run synguard, and what would be right.
///
/// Looks at the kernel, by asking it to load what the daemon loads, at settings, configuration and
/// interfaces. Attaches nothing and changes nothing. Each line is ok, warn (works, with a drawback, or
/// could not be seen) or fail, with the fix below it. Best run as root.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing failed (there may be warnings), 1 something failed.

Examples:
  synguard check
  synguard check eth0 --config /etc/synguard/synguard.toml
  synguard check --json | jq '.checks[] | select(.status != \"ok\")'")]
pub(super) struct Check {
    /// Interfaces; without, those of the configuration, else those with a default route and every card
    /// that is up.
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,

    /// The configuration to check against; without, the installed one, if there is one.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let facts = probe(&Request {
            interfaces: self.interfaces,
            config: self.config,
        })?;
        let report = Report::of(&facts);
        if self.json {
            print_json(&report)?;
        } else {
            print(&render(&report, colours())?)?;
        }
        if !report.ok {
            bail!("failed: {}", report.failures().join(", "));
        }
        Ok(())
    }
}
