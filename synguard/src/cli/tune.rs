//! `synguard tune`: the host's own settings.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::print;
use crate::tune::{
    Tuning, apply,
    host::{DEFAULT_FILE, Host},
    render_advice, render_outcome, revert,
};

/// Show what the host's own settings should be under SYN floods, and why; set them on request.
///
/// Values follow the memory where memory is what limits them, and a better value is never lowered.
/// --apply sets them all or none, now and, by a file in /etc/sysctl.d, at every boot; the first old
/// values are kept in /var/lib/synguard-tune, which is root's. --revert goes back to these, but leaves
/// alone what somebody has changed since.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard tune
  synguard tune --json | jq '.settings[] | select(.status == \"change\")'
  synguard tune --apply
  synguard tune --revert")]
pub(super) struct Tune {
    /// Set what is advised, and remember what was there.
    #[arg(long)]
    apply: bool,

    /// Go back to what was there before the first --apply.
    #[arg(long, conflicts_with = "apply")]
    revert: bool,

    /// The file that sets it at every boot, in a directory that sysctl.d(5) names.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, requires = "apply")]
    file: PathBuf,

    /// As JSON.
    #[arg(long)]
    json: bool,

    /// Work on the machine below this directory: an image, where without proc/sys only the file is
    /// written.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

impl Tune {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let host = Host::new(&self.root, &self.file)?;
        if self.revert {
            let outcome = revert(&host)?;
            return self.tell(&outcome, || render_outcome(&outcome, true));
        }
        if self.apply {
            let outcome = apply(&host)?;
            return self.tell(&outcome, || render_outcome(&outcome, false));
        }
        let tuning = Tuning::of(&host);
        self.tell(&tuning, || render_advice(&tuning))
    }

    fn tell(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> Result<String, std::fmt::Error>,
    ) -> anyhow::Result<()> {
        if self.json {
            print(&format!("{}\n", serde_json::to_string_pretty(value)?))
        } else {
            print(&text()?)
        }
    }
}
