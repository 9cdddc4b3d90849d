//! `synguard events`: what happened, and what happens.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{Daemon, colours, print, status::fold};
use crate::{
    control::{
        EventsRequest,
        client::{Client, ClientError, Events as Stream},
    },
    journal::{Event, Kind, Level, Timestamp},
};

/// Events that are shown without being asked for: a page, and a start when more are awaited.
const PAGE: usize = 50;
const START: usize = 10;
/// Time between two looks for a daemon that is being started again.
const RETRY: Duration = Duration::from_millis(250);

/// As terminals are told.
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";

/// Show what happened: attacks, thresholds, interfaces, services, configuration, keys.
///
/// The newest events are the last. The daemon remembers some thousands of them, over restarts too.
/// Times are UTC.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard events
  synguard events --follow --service web
  synguard events --since 2h --kind attack_ended --json | jq .details.challenged
  synguard events --since 2026-11-21T20:00")]
pub(super) struct Events {
    /// The newest N only [default: 50; all with --since].
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,

    /// Go on with events as they happen, also when the daemon is started again.
    #[arg(short, long)]
    follow: bool,

    /// Only events since then: an age (10m, 2h, 1day) or a time in UTC (2026-11-21T20:00).
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,

    /// Only events of this kind.
    #[arg(long)]
    kind: Option<Kind>,

    /// Only events about this service.
    #[arg(long)]
    service: Option<String>,

    /// Routine events too: the rotation of keys, every few seconds.
    #[arg(short, long)]
    all: bool,

    /// As JSON, an object a line.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Events {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        self.daemon.talk(|client| self.show(client))
    }

    async fn show(&self, client: Client) -> anyhow::Result<()> {
        let page = match (self.follow, self.since) {
            (_, Some(_)) => None,
            (true, None) => Some(START),
            (false, None) => Some(PAGE),
        };
        let mut request = EventsRequest {
            after: None,
            since: self.since,
            kind: self.kind,
            service: self.service.clone(),
            routine: self.all,
            limit: self.lines.or(page),
            follow: self.follow,
        };
        let mut events = client.events(&request).await?;
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    request.after = Some(event.seq);
                    self.print(&event)?;
                }
                Ok(None) | Err(ClientError::Ended(_)) if self.follow => {
                    // From here on every event counts.
                    request.limit = None;
                    events = reconnect(&client, &request).await?;
                }
                Ok(None) => return Ok(()),
                Err(error @ ClientError::Hangs { .. }) if self.follow => {
                    say(&format!("{error}: still waiting"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn print(&self, event: &Event) -> anyhow::Result<()> {
        if self.json {
            return print(&format!("{}\n", serde_json::to_string(event)?));
        }
        print(&render(event, colours())?)
    }
}

/// Waits for the daemon that takes the place of the one that has ended.
async fn reconnect(client: &Client, request: &EventsRequest) -> Result<Stream, ClientError> {
    say("the daemon has ended: waiting for the next");
    loop {
        tokio::time::sleep(RETRY).await;
        match client.events(request).await {
            // One that is starting accepts connections, and answers when it is ready.
            Err(
                ClientError::NoDaemon(_)
                | ClientError::Ended(_)
                | ClientError::Hangs { .. }
                | ClientError::Full(_),
            ) => {}
            other => return other,
        }
    }
}

/// What is no event.
fn say(text: &str) {
    // Nobody is left to be told when stderr is closed.
    writeln!(io::stderr(), "synguard: {text}").ok();
}

/// An event for people.
fn render(event: &Event, colours: bool) -> anyhow::Result<String> {
    let time = event.time.to_string();
    let seconds = time.get(..19).unwrap_or(&time).replace('T', " ");
    let mut text = String::new();
    fold(
        &mut text,
        &format!("{seconds} {}", event.kind),
        &event.message,
    )?;
    Ok(match event.level {
        Level::Error if colours => paint(&text, RED),
        Level::Warn if colours => paint(&text, YELLOW),
        _ => text,
    })
}

/// `text`, which ends with a line, in a colour.
fn paint(text: &str, colour: &str) -> String {
    format!("{colour}{}\u{1b}[0m\n", text.trim_end())
}

/// Reads an age or a time.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Timestamp::from(SystemTime::now()).before(age));
    }
    text.parse().map_err(|_| {
        "give an age such as 10m or 2h, or a time in UTC such as 2026-11-21T20:00".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(level: Level) -> Event {
        Event {
            seq: 4,
            time: Timestamp::from_millis(1_800_000_000_123),
            kind: "attack_began".into(),
            level,
            service: Some("web".into()),
            interface: None,
            message: "service web is guarded: 256 half-open connections, high watermark 256".into(),
            details: serde_json::Map::new(),
        }
    }

    #[test]
    fn an_event_is_folded_at_80_columns() {
        assert_eq!(
            render(&event(Level::Warn), false).unwrap(),
            "2027-01-15 08:00:00 attack_began: service web is guarded: 256 half-open\n  \
             connections, high watermark 256\n"
        );
    }

    #[test]
    fn what_matters_has_a_colour_on_terminals() {
        let coloured = render(&event(Level::Error), true).unwrap();
        assert!(coloured.starts_with("\u{1b}[31m2027") && coloured.ends_with("256\u{1b}[0m\n"));
        assert!(
            !render(&event(Level::Info), true)
                .unwrap()
                .contains('\u{1b}')
        );
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now = Timestamp::now();
        let ten_minutes = since("10m").unwrap();
        assert!(ten_minutes <= now.before(Duration::from_secs(599)));
        assert!(ten_minutes >= now.before(Duration::from_secs(601)));
        assert_eq!(
            since("2027-01-15T08:00").unwrap(),
            Timestamp::from_millis(1_800_000_000_000)
        );
        assert!(since("yesterday").unwrap_err().starts_with("give an age"));
    }
}
