//! What the demo shows while it runs: a line per phase that changes in place on a terminal, plain
//! lines elsewhere. On standard error, so that `--json` has standard output for itself.

use std::{
    collections::HashMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::load::Report;

/// Without a terminal a line is printed this often.
const PLAIN_EVERY: Duration = Duration::from_millis(2400);

const HEADINGS: &str = "phase      seconds   SYN/s offered  SYN/s answered   legit ok    p50 ms    p99 ms   CPU µs/SYN";

/// One line's numbers.
pub struct Numbers {
    offered: f64,
    handled: f64,
    cpu: Option<f64>,
    ok_percent: f64,
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Numbers {
    /// Rates of the flood beside what has become of the clients so far.
    pub fn new(offered: f64, handled: f64, cpu: Option<f64>, report: &Report) -> Self {
        Self {
            offered,
            handled,
            cpu,
            ok_percent: report.ok_percent(),
            p50: report.latency_ms(50.0),
            p99: report.latency_ms(99.0),
        }
    }

    fn columns(&self) -> String {
        format!(
            "{:>15} {:>15} {:>9.2}% {:>9} {:>9} {:>12}",
            thousands(self.offered),
            thousands(self.handled),
            self.ok_percent,
            optional(self.p50, 2),
            optional(self.p99, 2),
            optional(self.cpu, 3),
        )
    }
}

/// The live table.
pub struct Live {
    /// On a terminal.
    bars: Option<(MultiProgress, HashMap<&'static str, ProgressBar>)>,
    printed: Option<Instant>,
}

impl Live {
    /// A table with a line for each phase.
    pub fn new(phases: impl Iterator<Item = &'static str>) -> Self {
        eprintln!("{HEADINGS}");
        if !std::io::stderr().is_terminal() {
            return Self {
                bars: None,
                printed: None,
            };
        }
        let multi = MultiProgress::new();
        let line = |text: String| {
            let bar = multi.add(ProgressBar::new_spinner());
            // A template that indicatif does not understand would only cost the colours.
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar.set_message(text);
            bar.tick();
            bar
        };
        let bars = phases
            .map(|phase| (phase, line(format!("{phase:<10} waiting"))))
            .collect();
        Self {
            bars: Some((multi, bars)),
            printed: None,
        }
    }

    /// Says what a phase is about to do.
    pub fn begin(&mut self, phase: &str, doing: &str) {
        self.printed = None;
        self.line(phase, &format!("{phase:<10} {doing}"));
    }

    /// Shows a phase's numbers of the moment.
    pub fn show(&mut self, phase: &str, elapsed: Duration, numbers: &Numbers) {
        let due = self
            .printed
            .is_none_or(|printed| printed.elapsed() >= PLAIN_EVERY);
        if self.bars.is_some() || due {
            self.printed = Some(Instant::now());
            self.line(
                phase,
                &format!(
                    "{phase:<10} {:>7.1} {}",
                    elapsed.as_secs_f64(),
                    numbers.columns()
                ),
            );
        }
    }

    /// Shows a phase's numbers as a whole.
    pub fn show_final(&mut self, phase: &str, numbers: &Numbers) {
        self.line(
            phase,
            &format!("{phase:<10} {:>7} {}", "done", numbers.columns()),
        );
    }

    /// Shows that a phase has failed. The reason comes below the table.
    pub fn failed(&mut self, phase: &str) {
        self.line(phase, &format!("{phase:<10} failed"));
    }

    /// Leaves the table as it is.
    pub fn finish(&mut self) {
        if let Some((_, bars)) = &self.bars {
            bars.values().for_each(ProgressBar::abandon);
        }
    }

    fn line(&self, phase: &str, text: &str) {
        match &self.bars {
            Some((_, bars)) => {
                if let Some(bar) = bars.get(phase) {
                    bar.set_message(text.to_owned());
                    bar.tick();
                }
            }
            None => eprintln!("{text}"),
        }
    }
}

/// A number of per-second events with its thousands apart.
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number, or a dash where there is none.
pub(super) fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (1000.0, "1,000"),
            (4_321_000.0, "4,321,000"),
        ] {
            assert_eq!(thousands(value), text);
        }
    }
}
