//! `synguard detach`: the running daemon lets go of an interface.

use clap::Args;

use super::{Daemon, print};

/// Make the running daemon stop guarding an interface.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard detach eth1")]
pub(super) struct Detach {
    /// The interface.
    #[arg(value_name = "IFACE")]
    interface: String,

    #[command(flatten)]
    daemon: Daemon,
}

impl Detach {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.detach(&self.interface).await?) })?;
        print(&format!("{}\n", done.message))
    }
}
