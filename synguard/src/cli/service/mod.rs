//! `synguard service`: the services of the running daemon.

mod add;
mod list;
mod show;

use clap::{Args, Subcommand};

use super::{Daemon, print, print_done, print_json};
use crate::model::{ServiceStatus, Snapshot};

/// Look at the services of the running daemon; add and remove some.
#[derive(Debug, Args)]
pub(super) struct Service {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Add(add::Add),
    Remove(Remove),
}

/// Remove a service that was added by command.
///
/// Its connections go on, unguarded, unless it was proxied. One that stands in the configuration
/// file is refused: take it out there, then `synguard reload`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard service remove web")]
struct Remove {
    /// The service.
    name: String,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Service {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::List(command) => command.execute(),
            Command::Show(command) => command.execute(),
            Command::Add(command) => command.execute(),
            Command::Remove(command) => command.execute(),
        }
    }
}

impl Remove {
    fn execute(self) -> anyhow::Result<()> {
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.remove_service(&self.name).await?) })?;
        print_done(&done, self.json)
    }
}

/// The service called `name`.
fn find<'a>(snapshot: &'a Snapshot, name: &str) -> anyhow::Result<&'a ServiceStatus> {
    let found = snapshot.services.iter().find(|each| each.name == name);
    found.ok_or_else(|| {
        let names = snapshot.services.iter().map(|each| each.name.clone());
        let hint = crate::dataplane::error::NearNames::new(name, names.collect());
        anyhow::anyhow!("no service {name}{hint}")
    })
}
