//! `synguard top`: what goes on, live.

use std::{
    env,
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::bail;
use clap::Args;

use super::Daemon;
use crate::top::{self, look::Look};

/// Width of plain frames where nothing says otherwise.
const WIDTH: u16 = 80;

/// Watch the services live: rates, states, half-open connections.
///
/// Keys: q quits, ? lists all others. Without a terminal, or for a ticket, -b prints plain frames.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard top
  synguard top -d 5
  synguard top --once                    # one plain frame, for a ticket
  synguard top -n 60 --json | jq -c '.services[] | [.name, .per_second.syns]'")]
pub(super) struct Top {
    /// Seconds between two looks at the daemon.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = delay)]
    delay: Duration,

    /// Print plain frames instead of drawing on the terminal.
    #[arg(short, long)]
    batch: bool,

    /// Print so many plain frames, then end.
    #[arg(short = 'n', long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,

    /// Print one plain frame: the same as -n 1.
    #[arg(long, conflicts_with = "frames")]
    once: bool,

    /// Print plain frames as JSON, one line each.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Top {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let Self {
            delay,
            batch,
            frames,
            once,
            json,
            daemon,
        } = self;
        let frames = if once { Some(1) } else { frames };
        if batch || json || frames.is_some() {
            return daemon.talk(|client| top::print(client, delay, frames, json, width()));
        }
        let terminal = env::var("TERM").unwrap_or_default();
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!(
                "this is no terminal: use `synguard status`, or `synguard top --once` for rates too"
            );
        }
        if terminal.is_empty() || terminal == "dumb" {
            bail!(
                "TERM={terminal} is no terminal to draw on: use `synguard status`, or `synguard top -b`"
            );
        }
        let look = Look::of(|name| env::var(name).ok());
        daemon.talk(|client| top::show(client, delay, look))
    }
}

/// Of the terminal, where there is one.
fn width() -> u16 {
    let terminal = io::stdout().is_terminal().then(crossterm::terminal::size);
    match terminal {
        Some(Ok((width, _))) if width > 0 => width.max(WIDTH),
        _ => WIDTH,
    }
}

/// Seconds, perhaps with a fraction.
fn delay(text: &str) -> Result<Duration, String> {
    let wrong = || "give seconds from 0.1 to 3600".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_have_bounds() {
        assert_eq!(delay("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(delay("3600"), Ok(Duration::from_secs(3600)));
        for wrong in ["0", "-1", "3601", "NaN", "inf", "1s", ""] {
            assert!(delay(wrong).is_err(), "{wrong}");
        }
    }
}
