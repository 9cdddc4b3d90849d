//! `synguard service list`: a line for each service.

use std::fmt::{self, Write};

use clap::Args;
use comfy_table::Cell;

use super::{
    super::{
        colours,
        status::{align_right, state, table},
    },
    Daemon, print, print_json,
};
use crate::{
    human::{ago, count, now},
    model::Snapshot,
};

/// List the services of the running daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard service list
  synguard service list --json | jq -r '.[] | select(.state == \"guarded\") | .name'")]
pub(super) struct List {
    /// As JSON, with every count.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl List {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let snapshot = self.daemon.status()?;
        if self.json {
            return print_json(&snapshot.services);
        }
        print(&render(&snapshot, now(), colours())?)
    }
}

fn render(snapshot: &Snapshot, now: u64, colours: bool) -> Result<String, fmt::Error> {
    let mut table = table(
        &[
            "SERVICE",
            "COVERS",
            "MODE",
            "ADMISSION",
            "STATE",
            "SINCE",
            "HALF-OPEN",
            "SYN/s",
        ],
        colours,
    );
    for service in &snapshot.services {
        let covers = match service.covers.as_slice() {
            [] => "nothing".to_owned(),
            [one] => one.clone(),
            [first, others @ ..] => format!("{first} +{}", others.len()),
        };
        let since = service.state_since.map(|at| ago(now, at));
        table.add_row([
            Cell::new(&service.name),
            Cell::new(covers),
            Cell::new(service.mode),
            Cell::new(&service.admission),
            state(service, &service.state),
            Cell::new(since.unwrap_or_else(|| "start".into())),
            Cell::new(format!(
                "{}/{}",
                count(service.half_open),
                count(service.high.into())
            )),
            Cell::new(count(service.syn_rate.round() as u64)),
        ]);
    }
    align_right(&mut table, &[6, 7]);
    let mut text = String::new();
    writeln!(text, "{}", table.trim_fmt())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_line_within_80_columns() {
        let mut snapshot: Snapshot =
            serde_json::from_str(include_str!("../../../tests/fixtures/snapshot.json")).unwrap();
        let page = render(&snapshot, 1_800_000_000, false).unwrap();
        println!("{page}");
        let row = page.lines().find(|line| line.starts_with("web ")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "web",
                "192.0.2.1:443",
                "+1",
                "adaptive",
                "local",
                "guarded",
                "42s",
                "12/2000",
                "5321"
            ]
        );
        snapshot.services[0].name = "x".repeat(63);
        snapshot.services[0].half_open = 4_000_000;
        snapshot.services[0].covers = vec!["[2001:db8:1:2:3:4:5:6]:443,8000-8080".into(); 40];
        let worst = render(&snapshot, 1_800_000_000, false).unwrap();
        for line in page.lines().chain(worst.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
