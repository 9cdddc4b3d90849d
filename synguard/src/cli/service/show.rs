//! `synguard service show`: everything that is known of one service.

use std::fmt::{self, Write};

use clap::Args;
use comfy_table::Cell;

use super::{
    super::{
        colours,
        status::{align_right, fold, table},
    },
    Daemon, find, print, print_json,
};
use crate::{
    human::{ago, now, offered},
    model::{ReasonCount, ServiceStatus},
};

/// Show everything that is known of a service.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard service show web
  synguard service show web --json | jq .half_open")]
pub(super) struct Show {
    /// The service.
    name: String,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Show {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let snapshot = self.daemon.status()?;
        let service = find(&snapshot, &self.name)?;
        if self.json {
            return print_json(service);
        }
        print(&render(service, now(), colours())?)
    }
}

fn render(service: &ServiceStatus, now: u64, colours: bool) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let since = match service.state_since {
        Some(at) => format!("for {}", ago(now, at)),
        None => "since the start".to_owned(),
    };
    let mut line = |title: &str, value: String| fold(&mut text, title, &value);
    line("service", service.name.clone())?;
    line(
        "state",
        format!("{} {since}, mode {}", service.state, service.mode),
    )?;
    line("covers", service.covers.join(" "))?;
    for excepted in &service.excepted {
        line("leaves alone", excepted.clone())?;
    }
    line(
        "admission",
        format!("{} ({})", service.admission, service.admission_reason),
    )?;
    if let Some(server) = &service.server {
        line("server", offered(server))?;
    }
    if !service.origin.is_empty() {
        line("stands in", service.origin.clone())?;
    }
    line(
        "half-open",
        format!(
            "{}, guarded from {}, calm again below {}",
            service.half_open, service.high, service.low
        ),
    )?;
    if service.half_open_oldest > 0.0 {
        line("oldest of them", ages(service))?;
    }
    if !service.high_reason.is_empty() {
        line("these watermarks", service.high_reason.clone())?;
    }
    if let (Some(half_open), Some(rate)) = (service.normal_half_open, service.normal_syn_rate) {
        line(
            "normal now",
            format!("at most {half_open:.0} half-open, {rate:.1} SYNs a second"),
        )?;
    }
    if service.state == "guarded" {
        let projected = service.projected_half_open;
        line("without the guard", format!("{projected} more half-open"))?;
    }
    line(
        "SYNs",
        format!("{}, {:.0} a second now", service.syns, service.syn_rate),
    )?;
    line(
        "in all",
        format!(
            "{} times guarded, {} times calm again, {} half-open connections given up, {} of them released",
            service.guarded_total,
            service.calmed_total,
            service.expired_total,
            service.released_total
        ),
    )?;
    let handshakes: u64 = service.rtt.iter().map(|(_, count)| count).sum();
    if handshakes > 0 {
        let mean = service.rtt_sum / handshakes as f64 * 1000.0;
        line(
            "round trips",
            format!("{mean:.1} ms on average of {handshakes} handshakes with timestamps"),
        )?;
    }
    packets(&mut text, "PACKETS", &service.packets, colours)?;
    packets(&mut text, "WOULD HAVE BEEN", &service.observed, colours)?;
    Ok(text)
}

/// How old its half-open connections are: `4.2 s (9 up to 1 s, 2 up to 3 s, 1 more than 63 s)`.
fn ages(service: &ServiceStatus) -> String {
    let last = service
        .half_open_ages
        .iter()
        .rev()
        .find_map(|(bound, _)| *bound);
    let parts = service
        .half_open_ages
        .iter()
        .filter(|(_, count)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(bound, count)| match bound {
            Some(bound) => format!("{count} up to {bound} s"),
            None => format!("{count} more than {} s", last.unwrap_or(0)),
        })
        .collect();
    format!("{:.1} s ({})", service.half_open_oldest, parts.join(", "))
}

fn packets(text: &mut String, title: &str, counts: &[ReasonCount], colours: bool) -> fmt::Result {
    if counts.is_empty() {
        return Ok(());
    }
    let mut table = table(&["REASON", "ACTION", title], colours);
    for count in counts {
        table.add_row([
            Cell::new(&count.reason),
            Cell::new(&count.action),
            Cell::new(count.packets),
        ]);
    }
    align_right(&mut table, &[2]);
    writeln!(text, "\n{}", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Snapshot;

    #[test]
    fn everything_is_told_within_80_columns() {
        let snapshot: Snapshot =
            serde_json::from_str(include_str!("../../../tests/fixtures/snapshot.json")).unwrap();
        let pages: Vec<String> = snapshot
            .services
            .iter()
            .map(|service| render(service, 1_800_000_000, false).unwrap())
            .collect();
        for page in &pages {
            println!("{page}");
            assert!(
                page.lines().all(|line| line.chars().count() <= 80),
                "{page}"
            );
        }
        for (page, expected) in [
            (0, "state: guarded for 42s, mode adaptive"),
            (0, "stands in: /etc/synguard/synguard.toml, line 12"),
            (0, "half-open: 12, guarded from 2000, calm again below 500"),
            (0, "these watermarks: configured"),
            (0, "normal now: at most 40 half-open, 12.5 SYNs a second"),
            (0, "without the guard: 1500 more half-open"),
            (0, "SYNs: 1234567, 5321 a second now"),
            (0, "leaves alone: 192.0.2.1:22: no listener"),
            (
                0,
                "round trips: 156.2 ms on average of 16 handshakes with timestamps",
            ),
            (1, "state: calm since the start, mode observe"),
            (
                2,
                "server: offers timestamps, window scale 7, MSS 1400 (learned from its servers);",
            ),
        ] {
            let lines: Vec<_> = pages[page].lines().collect();
            assert!(lines.contains(&expected), "{expected} in {}", pages[page]);
        }
        assert!(pages[1].contains("WOULD HAVE BEEN"), "{}", pages[1]);
        let service = find(&snapshot, "web").unwrap();
        assert_eq!(service.name, "web");
        let error = find(&snapshot, "wbe").unwrap_err().to_string();
        assert_eq!(error, "no service wbe: did you mean web?");
    }
}
