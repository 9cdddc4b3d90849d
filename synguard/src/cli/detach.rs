//! `synguard detach`: lets go of interfaces, at once or when nobody is cut off by it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;

use super::{Daemon, print, print_json};
use crate::{
    config::DEFAULT_PINS,
    control::{
        DetachHow, DetachRequest, Done,
        client::{Client, ClientError},
    },
    dataplane::Pins,
};

/// Time between two looks at what is left.
const LOOK: Duration = Duration::from_millis(500);

/// Take the guard off an interface, or off all.
///
/// Connections that are spliced (admission `proxy`) need the guard for as long as they live: unless told
/// otherwise, nothing is done while there are any. Where no daemon runs, what one has left behind is
/// taken off.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard detach eth1
  synguard detach --drain --timeout 10m
  synguard detach --now")]
pub(super) struct Detach {
    /// The interface; all of them without.
    #[arg(value_name = "IFACE")]
    interface: Option<String>,

    /// Challenge nobody any more, wait until spliced connections have ended, then leave.
    #[arg(long, conflicts_with = "now")]
    drain: bool,

    /// Leave at once, and cut spliced connections.
    #[arg(long)]
    now: bool,

    /// How long to wait with --drain; then the rest is cut.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration, requires = "drain")]
    timeout: Duration,

    /// Where a daemon that runs no more has pinned what it left.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PINS)]
    pins: PathBuf,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Detach {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = DetachRequest {
            interface: self.interface.clone(),
            how: match (self.now, self.drain) {
                (true, _) => DetachHow::Now,
                (_, true) => DetachHow::Drain,
                _ => DetachHow::Unless,
            },
            patience_seconds: self.timeout.as_secs(),
        };
        let drain = self.drain;
        let asked = self.daemon.talk(|client| async move {
            match client.detach(&request).await {
                Ok(done) if drain => follow(&client, done.message).await.map(Some),
                Ok(done) => Ok(Some(done.message)),
                // What one has left is taken off as a whole.
                Err(ClientError::NoDaemon(_)) if request.interface.is_none() => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        match asked {
            Some(message) => self.say(&message),
            None => self.without_daemon(),
        }
    }

    /// Takes off what a daemon has left.
    fn without_daemon(&self) -> anyhow::Result<()> {
        let nothing = "no daemon runs, and none has left anything behind";
        let Some(pins) = Pins::open_existing(&self.pins)? else {
            return self.say(nothing);
        };
        if pins.interfaces().is_empty() {
            pins.clear()?;
            return self.say(nothing);
        }
        if self.drain {
            let bar = ProgressBar::new_spinner();
            let left = pins.drain(self.timeout, |left| tell(&bar, left))?;
            bar.finish_and_clear();
            if left > 0 {
                eprintln!("synguard: {left} spliced connections are cut");
            }
        } else if !self.now {
            let left = pins.flows_left()?;
            if left > 0 {
                bail!(
                    "{left} spliced connections would be cut: --drain waits until they have ended, --now cuts them"
                );
            }
        }
        pins.clear()
            .context("cannot take off what a daemon has left")?;
        self.say("took off what a daemon has left")
    }

    fn say(&self, message: &str) -> anyhow::Result<()> {
        if self.json {
            let message = message.to_owned();
            return print_json(&Done { message });
        }
        print(&format!("{message}\n"))
    }
}

/// Shows how many connections are left until the daemon has gone.
async fn follow(client: &Client, begun: String) -> anyhow::Result<String> {
    let bar = ProgressBar::new_spinner();
    bar.set_message(begun);
    loop {
        tokio::time::sleep(LOOK).await;
        let status = client.status().await?;
        if !status.draining {
            bar.finish_and_clear();
            return Ok(match status.interfaces.first() {
                Some(_) => "no longer draining: the interfaces stay guarded",
                None => "drained: no interface is guarded any more",
            }
            .to_owned());
        }
        tell(&bar, status.flows.left);
    }
}

fn tell(bar: &ProgressBar, left: u64) {
    bar.set_message(format!("draining: {left} spliced connections are left"));
    bar.tick();
}
