//! A report for people, in 80 columns.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};

use super::{Report, Status};
use crate::fold::fold;

/// Where what was found begins.
const INDENT: usize = 22;

/// The report; `colours` for a terminal.
pub fn render(report: &Report, colours: bool) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let mut interface = None;
    for check in &report.checks {
        if check.interface != interface {
            interface.clone_from(&check.interface);
            writeln!(text, "{}", interface.as_deref().unwrap_or_default())?;
        }
        let (word, style) = match check.status {
            Status::Ok => ("ok", AnsiColor::Green.on_default()),
            Status::Warn => ("warn", AnsiColor::Yellow.on_default().bold()),
            Status::Fail => ("fail", AnsiColor::Red.on_default().bold()),
        };
        let style = if colours { style } else { Style::new() };
        // Coloured afterwards: what folds a line counts what is seen.
        let mut line = String::new();
        let head = format!("{word:<6}{:<w$}", check.name, w = INDENT - 6);
        fold(&mut line, &head, INDENT, &check.found)?;
        write!(text, "{style}{word}{style:#}{}", &line[word.len()..])?;
        if let Some(fix) = &check.fix {
            fold(&mut text, &format!("{:INDENT$}fix: ", ""), INDENT + 5, fix)?;
        }
    }
    let count = |status| report.checks.iter().filter(|c| c.status == status).count();
    writeln!(
        text,
        "\n{} ok, {} warn, {} fail",
        count(Status::Ok),
        count(Status::Warn),
        count(Status::Fail)
    )?;
    Ok(text)
}
