//! The way into the run loop: whoever serves a socket holds a [`Handle`] and sends [`Command`]s;
//! the loop alone owns the tables and answers each of them once.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::{DetachRequest, Listing, ServiceRequest, SourcesRemoval, SourcesRequest};
use crate::{
    journal::Journal,
    lists::List,
    model::{InterfaceStatus, Mode, Snapshot},
};

/// Commands that may wait for the run loop; more than that and the senders wait.
const QUEUE: usize = 16;
/// How long an answer may take. Attaching waits for the driver, which may reset the link.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the run loop can be asked. A refusal is one line for the user.
#[derive(Debug)]
pub enum Command {
    /// Everything it knows, read from the kernel now.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Guard one more interface.
    Attach {
        /// Its name.
        interface: String,
        /// The interface as it is then.
        reply: oneshot::Sender<Result<InterfaceStatus, String>>,
    },
    /// Stop guarding an interface, or all.
    Detach {
        /// Which, and how.
        request: DetachRequest,
        /// What was done, or why not.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Change the mode of a service until the next reload.
    SetMode {
        /// The service; `None` is all of them.
        service: Option<String>,
        /// Its mode from now on.
        mode: Mode,
        /// Nothing, or why not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Add a service, whole or not at all.
    AddService {
        /// It.
        request: ServiceRequest,
        /// What was added, or why nothing was.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Remove a service that was added by command.
    RemoveService {
        /// Its name.
        name: String,
        /// What was removed, or why nothing was.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Allow or block sources, all or none.
    AddSources {
        /// Which, and how.
        request: SourcesRequest,
        /// What was listed, or why nothing was.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Take sources that a command has listed from their list.
    RemoveSources {
        /// Which.
        request: SourcesRemoval,
        /// What was removed, or why nothing was.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Tell what is in a list.
    ListSources {
        /// Which.
        list: List,
        /// What is in it, by prefix.
        reply: oneshot::Sender<Vec<Listing>>,
    },
    /// Read the configuration file again and apply it, whole or not at all.
    Reload {
        /// What was applied, or why nothing was.
        reply: oneshot::Sender<Result<String, String>>,
    },
}

/// Why a command has no result.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommandError {
    /// The run loop is gone.
    #[error("the daemon is stopping")]
    Stopping,
    /// The run loop is there and does not answer.
    #[error("the daemon's run loop has not answered for {} s", PATIENCE.as_secs())]
    Busy,
    /// The run loop says no.
    #[error("{0}")]
    Refused(String),
}

/// Sends commands to the run loop.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    journal: Journal,
}

impl Handle {
    /// A handle, and the end that the run loop reads.
    pub fn new(journal: Journal) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        (Self { commands, journal }, receiver)
    }

    /// What happened so far, for which nobody need be asked.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// [`Command::Snapshot`].
    pub async fn snapshot(&self) -> Result<Snapshot, CommandError> {
        self.ask(Command::Snapshot).await
    }

    /// [`Command::Attach`].
    pub async fn attach(&self, interface: String) -> Result<InterfaceStatus, CommandError> {
        self.ask(|reply| Command::Attach { interface, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::Detach`].
    pub async fn detach(&self, request: DetachRequest) -> Result<String, CommandError> {
        self.ask(|reply| Command::Detach { request, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::SetMode`].
    pub async fn set_mode(&self, service: Option<String>, mode: Mode) -> Result<(), CommandError> {
        self.ask(|reply| Command::SetMode {
            service,
            mode,
            reply,
        })
        .await?
        .map_err(CommandError::Refused)
    }

    /// [`Command::AddService`].
    pub async fn add_service(&self, request: ServiceRequest) -> Result<String, CommandError> {
        self.ask(|reply| Command::AddService { request, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::RemoveService`].
    pub async fn remove_service(&self, name: String) -> Result<String, CommandError> {
        self.ask(|reply| Command::RemoveService { name, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::AddSources`].
    pub async fn add_sources(&self, request: SourcesRequest) -> Result<String, CommandError> {
        self.ask(|reply| Command::AddSources { request, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::RemoveSources`].
    pub async fn remove_sources(&self, request: SourcesRemoval) -> Result<String, CommandError> {
        self.ask(|reply| Command::RemoveSources { request, reply })
            .await?
            .map_err(CommandError::Refused)
    }

    /// [`Command::ListSources`].
    pub async fn list_sources(&self, list: List) -> Result<Vec<Listing>, CommandError> {
        self.ask(|reply| Command::ListSources { list, reply }).await
    }

    /// [`Command::Reload`].
    pub async fn reload(&self) -> Result<String, CommandError> {
        self.ask(|reply| Command::Reload { reply })
            .await?
            .map_err(CommandError::Refused)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        tokio::time::timeout(PATIENCE, async {
            self.commands
                .send(command(reply))
                .await
                .map_err(|_| CommandError::Stopping)?;
            answer.await.map_err(|_| CommandError::Stopping)
        })
        .await
        .unwrap_or(Err(CommandError::Busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stopped_loop_is_told_apart_from_a_refusal() {
        let (handle, mut commands) = Handle::new(Journal::in_memory());
        let run_loop = tokio::spawn(async move {
            let Some(Command::Reload { reply }) = commands.recv().await else {
                return;
            };
            reply.send(Err("no file".into())).ok();
        });
        assert_eq!(
            handle.reload().await,
            Err(CommandError::Refused("no file".into()))
        );
        run_loop.await.unwrap();
        assert_eq!(handle.reload().await, Err(CommandError::Stopping));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_given_up() {
        let (handle, _commands) = Handle::new(Journal::in_memory());
        assert_eq!(handle.reload().await, Err(CommandError::Busy));
    }
}
