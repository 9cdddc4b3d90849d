//! What is told of the packets: lines for people, or one JSON document that is written as it
//! grows, a packet to a line.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use synguard_common::verdict::Action;

use super::{capture::Captured, headers::Headers, instance::Said, link::Direction};
use crate::fold::fold;

/// Where addresses begin, and what explains a packet.
const ENDS_AT: usize = 16;
/// Where the reason begins, after the column of addresses.
const REASON_AT: usize = 15;
/// Widths of the column of addresses: that of short IPv4 ones, of most, and of any.
const ENDS: [usize; 3] = [30, 38, 43];
/// A terminal from this width on has room for any IPv4 addresses.
const WIDE: u16 = 100;

/// Why a packet was not shown to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// Its end was not captured.
    Cut,
    /// It does not fit a test run.
    TooLarge,
    /// What it was on Ethernet is not known.
    Link,
}

impl NotRun {
    /// As reasons are labelled.
    const fn label(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::TooLarge => "too_large",
            Self::Link => "link_unknown",
        }
    }

    const fn describe(self) -> &'static str {
        match self {
            Self::Cut => {
                "The end of the packet was not captured (tcpdump's -s): not shown to the programs, \
                 which see whole packets."
            }
            Self::TooLarge => {
                "Larger than what the kernel runs a program on for a test, such as several segments \
                 that the network device is to divide: not shown to the programs."
            }
            Self::Link => "No Ethernet, IPv4 or IPv6 packet: not shown to the programs.",
        }
    }
}

/// What became of a packet.
pub type Told = Result<Said, NotRun>;

/// How packets were judged, for the beginning of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// The capture.
    pub file: String,
    /// The guarded interface whose programs were copied.
    pub interface: Option<String>,
    /// The configuration, where that was asked for.
    pub config: Option<String>,
    /// `now` or `capture`.
    pub clock: &'static str,
}

/// A packet, as JSON.
#[derive(Serialize)]
struct Line<'a> {
    number: u64,
    /// Seconds since the epoch.
    time: Option<f64>,
    length: u32,
    protocol: &'a str,
    source: Option<String>,
    destination: Option<String>,
    flags: Option<&'a str>,
    direction: Option<Direction>,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    /// Mode observe: the reason is what would have been, the verdict what was.
    observed: bool,
    service: Option<&'a str>,
    service_number: Option<u16>,
}

/// How many packets left with a reason.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Sum {
    packets: u64,
    service: Option<String>,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    observed: bool,
    description: &'static str,
}

/// What a packet is counted under.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Kind {
    service: Option<u16>,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    observed: bool,
}

/// Which parts there are to be, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// JSON, else text.
    pub json: bool,
    /// Every packet, else the summary alone.
    pub packets: bool,
    /// Reasons with their sentences.
    pub long: bool,
    /// Columns of the terminal. Where it is none, a packet is a line, for other programs.
    pub columns: Option<u16>,
}

/// Writes the report.
pub struct Report<W> {
    out: W,
    form: Form,
    names: BTreeMap<u16, Option<String>>,
    sums: BTreeMap<Kind, (u64, &'static str)>,
    packets: u64,
    first: Option<u64>,
}

impl<W: Write> Report<W> {
    /// Begins one. `names` are those of the services, as far as they are known.
    pub fn begin(
        mut out: W,
        form: Form,
        against: &Against,
        names: BTreeMap<u16, Option<String>>,
    ) -> io::Result<Self> {
        if form.json {
            let against = serde_json::to_string(against)?;
            // Its fields, and room for more.
            let fields = against.strip_suffix('}').unwrap_or(&against);
            write!(out, "{fields}")?;
            if form.packets {
                write!(out, ",\n\"packets\":[")?;
            }
        } else {
            let programs = match (&against.interface, &against.config) {
                (Some(interface), _) => format!("a copy of the programs on {interface}"),
                (None, Some(config)) => format!("programs loaded for {config}"),
                (None, None) => "the programs".to_owned(),
            };
            let clock = match against.clock {
                "now" => "as if they came now",
                _ => "at the time of capture",
            };
            writeln!(out, "{}: shown to {programs}, {clock}", against.file)?;
            if form.packets {
                let ends = form.ends();
                writeln!(
                    out,
                    "\n{:>6} {:>8} {:<ends$} {:<5} VERDICT REASON, SERVICE",
                    "PACKET", "SECONDS", "SOURCE > DESTINATION", "FLAGS"
                )?;
            }
        }
        Ok(Self {
            out,
            form,
            names,
            sums: BTreeMap::new(),
            packets: 0,
            first: None,
        })
    }

    /// Adds a packet.
    pub fn add(
        &mut self,
        packet: &Captured,
        headers: &Headers,
        direction: Option<Direction>,
        told: Told,
    ) -> io::Result<()> {
        let (kind, description) = kind(told);
        self.sums.entry(kind).or_insert((0, description)).0 += 1;
        let first = self.packets == 0;
        self.packets += 1;
        if self.first.is_none() {
            self.first = packet.time;
        }
        if !self.form.packets {
            return Ok(());
        }
        let service = kind
            .service
            .map(|number| (number, name(&self.names, number)));
        if self.form.json {
            let ends = headers.ends;
            let line = Line {
                number: packet.number,
                time: packet.time.map(seconds),
                length: packet.length,
                protocol: &headers.protocol,
                source: ends.map(|(source, _)| source.to_string()),
                destination: ends.map(|(_, destination)| destination.to_string()),
                flags: headers.flags.as_deref(),
                direction,
                verdict: kind.verdict,
                reason: kind.reason,
                observed: kind.observed,
                service: service.as_ref().map(|(_, name)| name.as_str()),
                service_number: kind.service,
            };
            let comma = if first { "" } else { "," };
            write!(self.out, "{comma}\n{}", serde_json::to_string(&line)?)
        } else {
            let since = match (self.first, packet.time) {
                (Some(first), Some(time)) => (time as f64 - first as f64) / 1e9,
                _ => 0.0,
            };
            let service = service.map_or_else(|| "-".to_owned(), |(_, name)| name);
            let mut text = self
                .form
                .line(packet.number, since, &kind, headers, &service);
            if self.form.long {
                wrap(&mut text, description, ENDS_AT);
            }
            self.out.write_all(text.as_bytes())
        }
    }

    /// Ends it. `whole` is false where the capture could not be read to its end.
    pub fn end(mut self, whole: bool) -> io::Result<()> {
        let mut sums: Vec<Sum> = self
            .sums
            .iter()
            .map(|(kind, (packets, description))| Sum {
                packets: *packets,
                service: kind.service.map(|number| name(&self.names, number)),
                verdict: kind.verdict,
                reason: kind.reason,
                observed: kind.observed,
                description,
            })
            .collect();
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.packets));
        if self.form.json {
            if self.form.packets {
                write!(self.out, "\n]")?;
            }
            let sums = serde_json::to_string(&sums)?;
            writeln!(
                self.out,
                ",\n\"summary\":{sums},\n\"total\":{},\"whole\":{whole}}}",
                self.packets
            )?;
        } else {
            self.summary(&sums)?;
        }
        self.out.flush()
    }

    fn summary(&mut self, sums: &[Sum]) -> io::Result<()> {
        let when = self.first.map_or_else(String::new, |first| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(first);
            format!(", from {}", humantime::format_rfc3339_seconds(at))
        });
        let packets = match self.packets {
            1 => "1 packet".to_owned(),
            packets => format!("{packets} packets"),
        };
        let mut text = format!("\n{packets}{when}\n");
        if !sums.is_empty() {
            // Infallible: it is a String.
            let _ = writeln!(
                text,
                "\n{:>9} {:<7} {:<19} SERVICE",
                "PACKETS", "VERDICT", "REASON"
            );
        }
        for sum in sums {
            let reason = shown(sum.reason, sum.observed);
            let _ = writeln!(
                text,
                "{:>9} {:<7} {reason:<19} {}",
                sum.packets,
                sum.verdict.unwrap_or("-"),
                sum.service.as_deref().unwrap_or("-")
            );
            if self.form.long {
                wrap(&mut text, sum.description, 18);
            }
        }
        if sums.iter().any(|sum| sum.observed) {
            text.push_str("(reason): mode observe, what would have been done\n");
        }
        self.out.write_all(text.as_bytes())
    }
}

fn kind(told: Told) -> (Kind, &'static str) {
    const UNTOUCHED: &str = "Leaves as it is: there is nothing to learn from it.";
    let nothing = Kind {
        service: None,
        verdict: None,
        reason: None,
        observed: false,
    };
    match told {
        Err(why) => not_run(nothing, why),
        Ok(Said::TooLarge) => not_run(nothing, NotRun::TooLarge),
        Ok(Said::Ran(action, verdict)) => {
            let verdict_of = Kind {
                verdict: Some(action_name(action)),
                ..nothing
            };
            match verdict {
                None => (verdict_of, UNTOUCHED),
                Some(verdict) => {
                    let kind = Kind {
                        service: (verdict.service != 0).then_some(verdict.service),
                        reason: Some(verdict.reason.label()),
                        observed: verdict.observe,
                        ..verdict_of
                    };
                    (kind, verdict.reason.describe())
                }
            }
        }
    }
}

fn not_run(nothing: Kind, why: NotRun) -> (Kind, &'static str) {
    let kind = Kind {
        reason: Some(why.label()),
        ..nothing
    };
    (kind, why.describe())
}

const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Answer => "answer",
        Action::Drop => "drop",
    }
}

fn name(names: &BTreeMap<u16, Option<String>>, number: u16) -> String {
    match names.get(&number) {
        Some(Some(name)) => name.clone(),
        _ => format!("#{number}"),
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// In parentheses where it is what would have been.
fn shown(reason: Option<&str>, observed: bool) -> String {
    match reason {
        Some(reason) if observed => format!("({reason})"),
        Some(reason) => reason.to_owned(),
        None => "-".to_owned(),
    }
}

impl Form {
    const fn ends(&self) -> usize {
        match self.columns {
            None => ENDS[1],
            Some(columns) if columns >= WIDE => ENDS[2],
            Some(_) => ENDS[0],
        }
    }

    /// A packet's line. On a terminal, addresses that do not fit their column have a line to
    /// themselves, so that what follows stays below its title, and so has a service's name.
    fn line(
        &self,
        number: u64,
        since: f64,
        kind: &Kind,
        headers: &Headers,
        service: &str,
    ) -> String {
        let column = self.ends();
        let ends = headers.ends.map_or_else(
            || "-".to_owned(),
            |(source, destination)| format!("{source} > {destination}"),
        );
        let mut text = format!("{number:>6} {since:>8.3} {ends:<column$}");
        if ends.len() > column && self.columns.is_some() {
            text.push('\n');
            text.push_str(&" ".repeat(ENDS_AT + column));
        }
        let flags = headers.flags.as_deref().unwrap_or(&headers.protocol);
        let verdict = kind.verdict.unwrap_or("-");
        let reason = shown(kind.reason, kind.observed);
        // Infallible: it is a String.
        let _ = write!(text, " {flags:<5} {verdict:<7} {reason}");
        let end = ENDS_AT + column + REASON_AT + reason.len() + 1 + service.chars().count();
        match self.columns {
            // The longest reasons leave no room for a name.
            Some(columns) if end > usize::from(columns) => wrap(&mut text, service, ENDS_AT),
            _ => {
                text.push(' ');
                text.push_str(service);
                text.push('\n');
            }
        }
        text
    }
}

/// Appends `words` on lines of their own, indented.
fn wrap(text: &mut String, words: &str, indent: usize) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    // Infallible: it is a String.
    let _ = fold(text, &" ".repeat(indent), indent, words);
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
