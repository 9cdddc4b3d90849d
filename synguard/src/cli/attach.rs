//! `synguard attach`: one more interface for the running daemon.

use clap::Args;

use super::{Daemon, print, print_json};

/// Make the running daemon guard one more interface.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard attach eth1")]
pub(super) struct Attach {
    /// The interface.
    #[arg(value_name = "IFACE")]
    interface: String,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Attach {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let attached = self
            .daemon
            .talk(|client| async move { Ok(client.attach(&self.interface).await?) })?;
        if self.json {
            return print_json(&attached);
        }
        print(&format!(
            "{} is guarded, XDP in {} mode\n",
            attached.name, attached.xdp_mode
        ))
    }
}
