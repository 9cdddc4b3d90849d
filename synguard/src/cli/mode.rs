//! `synguard mode`: change a service's mode without touching the file.

use clap::Args;

use super::{Daemon, print_done};
use crate::model::Mode;

/// Change the mode of a service, or of all, until the next reload.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:\n  synguard mode web always\n  synguard mode --all observe")]
pub(super) struct SetMode {
    /// The service.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    service: Option<String>,

    /// Its mode from now on.
    #[arg(required = true)]
    mode: Mode,

    /// Every service.
    #[arg(long)]
    all: bool,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl SetMode {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let service = self.service.as_deref();
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.set_mode(service, self.mode).await?) })?;
        print_done(&done, self.json)
    }
}
