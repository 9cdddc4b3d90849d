//! `synguard status`: what the running daemon knows, for people or as JSON.

use std::fmt::{self, Write};

use clap::Args;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use synguard_common::verdict::{Action, Reason};

use super::{Daemon, colours, print, print_json};
use crate::{
    dataplane::stats::LET_IN,
    fold,
    human::{ago, count, now, offered},
    model::{FlowStatus, ServiceStatus, Snapshot, SourceStatus, packets},
};

/// Show what the running daemon guards, and how that stands.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard status
  synguard status --json | jq '.services[] | {name, state, half_open}'")]
pub(super) struct Status {
    /// As JSON, with every count.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Status {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let snapshot = self.daemon.status()?;
        if self.json {
            return print_json(&snapshot);
        }
        print(&render(&snapshot, now(), colours())?)
    }
}

/// The snapshot for people, as seen `now` (seconds since the epoch).
fn render(snapshot: &Snapshot, now: u64, colours: bool) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let up = ago(now, snapshot.started_at);
    writeln!(
        text,
        "synguard {}, up {up}, Linux {}",
        snapshot.version, snapshot.kernel
    )?;
    let config = snapshot
        .config
        .as_ref()
        .map_or_else(|| "built in".to_owned(), |path| path.display().to_string());
    let applied = ago(now, snapshot.config_applied_at);
    fold(
        &mut text,
        "configuration",
        &format!("{config}, applied {applied} ago"),
    )?;
    let keys = &snapshot.keys;
    let ahead = if keys.ready_ahead == 0 {
        "NONE"
    } else {
        &keys.ready_ahead.to_string()
    };
    let rotated = ago(now, keys.last_rotation);
    fold(
        &mut text,
        "keys",
        &format!(
            "epoch {}, {ahead} ahead in place, last written {rotated} ago",
            keys.epoch
        ),
    )?;
    if let Some(error) = &snapshot.local_admission_error {
        fold(
            &mut text,
            "local admission",
            &format!("not possible: {error}"),
        )?;
    }

    text.push('\n');
    writeln!(text, "{}", interfaces(snapshot, colours).trim_fmt())?;
    text.push('\n');
    writeln!(text, "{}", services(snapshot, now, colours).trim_fmt())?;
    text.push('\n');
    for service in &snapshot.services {
        notes(&mut text, service)?;
    }
    fold(&mut text, "sources", &sources(&snapshot.sources))?;
    if let Some(line) = flows(&snapshot.flows) {
        fold(&mut text, "flows", &line)?;
    }
    text.push('\n');
    writeln!(text, "{}", maps(snapshot, colours).trim_fmt())?;
    Ok(text)
}

fn interfaces(snapshot: &Snapshot, colours: bool) -> Table {
    let mut table = table(
        &["INTERFACE", "XDP", "DRIVER", "MTU", "LINK", "ADDRESSES"],
        colours,
    );
    for interface in &snapshot.interfaces {
        let xdp = Cell::new(&interface.xdp_mode);
        let addresses: Vec<String> = interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        table.add_row([
            Cell::new(&interface.name),
            if interface.xdp_mode == "native" {
                xdp
            } else {
                xdp.fg(Color::Yellow)
            },
            Cell::new(interface.driver.as_deref().unwrap_or("-")),
            Cell::new(interface.mtu),
            if interface.up {
                Cell::new("up")
            } else {
                Cell::new("down").fg(Color::Red)
            },
            Cell::new(if addresses.is_empty() {
                "-".into()
            } else {
                addresses.join(" ")
            }),
        ]);
    }
    align_right(&mut table, &[3]);
    table
}

fn services(snapshot: &Snapshot, now: u64, colours: bool) -> Table {
    let mut table = table(
        &[
            "SERVICE",
            "STATE",
            "MODE",
            "HALF-OPEN",
            "LOW",
            "HIGH",
            "SYNS",
            "COOKIES",
            "ADMITTED",
            "DROPS",
        ],
        colours,
    );
    for service in &snapshot.services {
        let since = service
            .state_since
            .map(|at| format!(" {}", ago(now, at)))
            .unwrap_or_default();
        table.add_row([
            Cell::new(&service.name),
            state(service, &format!("{}{since}", service.state)),
            Cell::new(service.mode),
            Cell::new(count(service.half_open)),
            Cell::new(count(service.low.into())),
            Cell::new(count(service.high.into())),
            Cell::new(count(service.syns)),
            Cell::new(count(packets(&service.packets, |r| {
                r == Reason::Challenged
            }))),
            Cell::new(count(packets(&service.packets, |r| LET_IN.contains(&r)))),
            Cell::new(count(packets(&service.packets, |r| {
                r.action() == Action::Drop
            }))),
        ]);
    }
    align_right(&mut table, &[3, 4, 5, 6, 7, 8, 9]);
    table
}

/// A text about the state of a service, in the colour of that.
pub(super) fn state(service: &ServiceStatus, text: &str) -> Cell {
    let cell = Cell::new(text);
    if service.state == "guarded" {
        cell.fg(Color::Yellow).add_attribute(Attribute::Bold)
    } else {
        cell.fg(Color::Green)
    }
}

fn notes(text: &mut String, service: &ServiceStatus) -> fmt::Result {
    let mut note = format!("covers {}", service.covers.join(" "));
    write!(
        note,
        "; admission {} ({})",
        service.admission, service.admission_reason
    )?;
    if !service.high_reason.is_empty() {
        write!(note, "; high {} ({})", service.high, service.high_reason)?;
    }
    fold(text, &service.name, &note)?;
    if let Some(server) = &service.server {
        fold(text, &service.name, &offered(server))?;
    }
    for excepted in &service.excepted {
        fold(text, &service.name, &format!("leaves alone {excepted}"))?;
    }
    Ok(())
}

/// Sources that are listed, and what one may ask for.
fn sources(sources: &SourceStatus) -> String {
    let mut line = format!(
        "{} prefixes allowed, {} blocked",
        sources.listed.allowed, sources.listed.blocked
    );
    for (budget, what) in [
        (sources.syn_budget, "SYNs of one that come to nothing"),
        (sources.answer_budget, "unanswered SYN-ACKs to one"),
    ] {
        if let Some(budget) = budget {
            line.push_str(&format!("; at most {budget} {what} in a second"));
        }
    }
    line
}

/// Connections of proxied services; nothing where there never was one.
fn flows(flows: &FlowStatus) -> Option<String> {
    if flows.created_total == 0 {
        return None;
    }
    let mut line = format!(
        "{} pending, {} spliced, {} known, {} of them over; {} created, {} expired, {} evicted",
        flows.pending,
        flows.spliced,
        flows.known,
        flows.closing,
        flows.created_total,
        flows.expired_total,
        flows.evicted_total
    );
    for (n, what) in [
        (flows.retried_total, "SYNs sent again"),
        (flows.refused_total, "refused for a silent server"),
        (flows.errands_failed_total, "retries failed"),
        (flows.errands_lost_total, "retries lost"),
    ] {
        if n > 0 {
            line.push_str(&format!(", {n} {what}"));
        }
    }
    Some(line)
}

fn maps(snapshot: &Snapshot, colours: bool) -> Table {
    let mut table = table(&["TABLE", "ENTRIES", "CAPACITY", "FULL"], colours);
    for map in &snapshot.maps {
        let full = Cell::new(format!("{} %", map.percent()));
        table.add_row([
            Cell::new(&map.name),
            Cell::new(map.entries),
            Cell::new(map.capacity),
            if map.is_nearly_full() {
                full.fg(Color::Red)
            } else {
                full
            },
        ]);
    }
    align_right(&mut table, &[1, 2, 3]);
    table
}

pub(super) fn table(header: &[&str], colours: bool) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(fold::WIDTH as u16)
        .set_header(
            header
                .iter()
                .map(|title| Cell::new(title).add_attribute(Attribute::Dim)),
        );
    if colours {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table
}

pub(super) fn align_right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// `title: text`, folded.
pub(super) fn fold(out: &mut String, title: &str, text: &str) -> fmt::Result {
    fold::fold(out, &format!("{title}:"), 2, text)
}

#[cfg(test)]
mod tests;
