//! `synguard reload`: the running daemon reads its configuration again.

use clap::Args;

use super::{Daemon, print_done};

/// Make the running daemon read its configuration file again: whole or not at all.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard reload")]
pub(super) struct Reload {
    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Reload {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.reload().await?) })?;
        print_done(&done, self.json)
    }
}
