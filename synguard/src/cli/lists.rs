//! `synguard allow` and `synguard block`: sources that pass unasked, and sources that are dropped.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::{Daemon, print, print_done, print_json};
use crate::{
    control::{Listing, SourcesRemoval, SourcesRequest},
    fold::WIDTH,
    human::ago,
    journal::Timestamp,
    lists::{List, Prefix, read_lines},
};

/// Let sources pass unasked: show them, add and remove some.
///
/// While a service is guarded, the SYNs of these sources are not challenged. Whoever can forge their
/// addresses is not challenged either: list few. The longest prefix that covers a source decides, be it
/// allowed or blocked. What the configuration file lists is there too, and changed there.
#[derive(Debug, Args)]
pub(super) struct Allow {
    #[command(subcommand)]
    command: Command,
}

/// Drop what sources send to any service: show them, add and remove some.
///
/// All their packets are dropped, also those of connections that they have. The longest prefix that
/// covers a source decides, be it allowed or blocked. What the configuration file lists is there too,
/// and changed there.
#[derive(Debug, Args)]
pub(super) struct Block {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(Show),
    Add(Add),
    Remove(Remove),
}

/// Prefixes on the command line and in a file.
#[derive(Debug, Args)]
struct Prefixes {
    /// Addresses and prefixes.
    #[arg(value_name = "PREFIX", required_unless_present = "file")]
    prefixes: Vec<Prefix>,

    /// A file with one prefix a line, where `#` begins a comment; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Add prefixes to the list, all of them or none.
///
/// They are kept in the state directory, so that they are there after a reload and a restart, until
/// their time is over. A prefix that is listed already gets the new time and comment. One that the
/// configuration file or a command has in the other list is refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard block add 192.0.2.0/24 --for 2h --comment 'ticket 4711'
  synguard allow add 198.51.100.7
  synguard block add --file drop.txt --until 2026-12-01T00:00")]
struct Add {
    #[command(flatten)]
    prefixes: Prefixes,

    /// For how long, such as 30m, 2h or 7days [default: until it is removed].
    #[arg(long = "for", value_name = "TIME", value_parser = period, conflicts_with = "until")]
    period: Option<Duration>,

    /// Until when, in UTC, such as 2026-11-21T20:00.
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<Timestamp>,

    /// What to remember of it, one line.
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,

    /// Only until the daemon ends.
    #[arg(long)]
    temporary: bool,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

/// Remove prefixes from the list that a command has put there.
///
/// One that stands in the configuration file is refused: take it out there, then `synguard reload`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard block remove 192.0.2.0/24
  synguard allow remove 198.51.100.7
  synguard block remove --file drop.txt")]
struct Remove {
    #[command(flatten)]
    prefixes: Prefixes,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

/// Show the list.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard block list
  synguard allow list
  synguard block list --json | jq -r '.[] | select(.origin == \"command\") | .prefix'")]
struct Show {
    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Allow {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        self.command.execute(List::Allow)
    }
}

impl Block {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        self.command.execute(List::Block)
    }
}

impl Command {
    fn execute(self, list: List) -> anyhow::Result<()> {
        match self {
            Self::List(command) => command.execute(list),
            Self::Add(command) => command.execute(list),
            Self::Remove(command) => command.execute(list),
        }
    }
}

impl Add {
    fn execute(self, list: List) -> anyhow::Result<()> {
        let request = SourcesRequest {
            list,
            prefixes: self.prefixes.read()?,
            until: match self.period {
                Some(period) => Some(Timestamp::now().after(period)),
                None => self.until,
            },
            comment: self.comment,
            temporary: self.temporary,
        };
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.add_sources(&request).await?) })?;
        print_done(&done, self.json)
    }
}

impl Remove {
    fn execute(self, list: List) -> anyhow::Result<()> {
        let request = SourcesRemoval {
            list,
            prefixes: self.prefixes.read()?,
        };
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.remove_sources(&request).await?) })?;
        print_done(&done, self.json)
    }
}

impl Show {
    fn execute(self, list: List) -> anyhow::Result<()> {
        let listed = self
            .daemon
            .talk(|client| async move { Ok(client.list_sources(list).await?) })?;
        if self.json {
            return print_json(&listed);
        }
        print(&render(&listed, list, Timestamp::now())?)
    }
}

impl Prefixes {
    /// All of them, each once.
    fn read(self) -> anyhow::Result<Vec<Prefix>> {
        let mut prefixes = BTreeSet::from_iter(self.prefixes);
        if let Some(path) = self.file {
            prefixes.extend(read_file(&path)?);
        }
        Ok(prefixes.into_iter().collect())
    }
}

fn read_file(path: &Path) -> anyhow::Result<Vec<Prefix>> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin {
        "standard input".into()
    } else {
        path.display().to_string()
    };
    let unreadable = || format!("cannot read {name}");
    let input: Box<dyn Read> = if is_stdin {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).with_context(unreadable)?)
    };
    let (lines, wrong) = read_lines(BufReader::new(input)).with_context(unreadable)?;
    if let [first, others @ ..] = wrong.as_slice() {
        let more = match others.len() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        bail!(
            "{name}:{}:{}: {}{more}",
            first.line,
            first.column,
            first.text
        );
    }
    if lines.is_empty() {
        bail!("{name} has no prefix; give one a line");
    }
    Ok(lines.into_iter().map(|line| line.prefix).collect())
}

fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if period >= Duration::from_secs(1) => Ok(period),
        _ => Err("give a time of at least 1s, such as 30m, 2h or 7days".into()),
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "give a time in UTC such as 2026-11-21T20:00".into())
}

/// A line each. There may be a hundred thousand: no table that looks at all of them several times.
fn render(listed: &[Listing], list: List, now: Timestamp) -> Result<String, std::fmt::Error> {
    if listed.is_empty() {
        return Ok(format!("nothing is {}\n", list.participle()));
    }
    let rows: Vec<[String; 3]> = listed
        .iter()
        .map(|listing| {
            let left = match listing.until {
                None => "never".to_owned(),
                Some(until) => ago(until.millis() / 1000, now.millis() / 1000),
            };
            let origin = match listing.in_force {
                true => listing.origin.clone(),
                false => "overruled".to_owned(),
            };
            [listing.prefix.to_string(), left, origin]
        })
        .collect();
    let header = ["PREFIX", "ENDS IN", "FROM"].map(str::to_owned);
    let [prefix, left] = [0, 1].map(|column| {
        let cells = rows.iter().chain([&header]);
        cells
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    let comments = listed.iter().map(|listing| listing.comment.as_deref());
    let comments = std::iter::once(Some("COMMENT")).chain(comments);
    for ([a, b, from], comment) in [&header].into_iter().chain(&rows).zip(comments) {
        let mut line = format!("{a:prefix$}  {b:left$}  ");
        let room = WIDTH.saturating_sub(prefix + left + 4);
        line.push_str(&shorten_front(from, room));
        if let Some(comment) = comment {
            let room = WIDTH.saturating_sub(line.chars().count() + 2);
            let cut = shorten(comment, room);
            write!(line, "  {cut}")?;
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(text)
}

/// The beginning, as much as there is room for.
fn shorten(text: &str, room: usize) -> String {
    match text.chars().count() {
        length if length <= room => text.to_owned(),
        _ if room < 2 => String::new(),
        _ => text.chars().take(room - 1).chain(['…']).collect(),
    }
}

/// The end of a path says more than its beginning.
fn shorten_front(text: &str, room: usize) -> String {
    match text.chars().count() {
        length if length <= room => text.to_owned(),
        _ if room < 2 => String::new(),
        length => {
            let rest = text.chars().skip(length + 1 - room);
            std::iter::once('…').chain(rest).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_the_terminal() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let listing = |prefix: &str, origin: &str| Listing {
            prefix: prefix.parse().unwrap(),
            list: List::Block,
            until: Some(now.after(Duration::from_secs(7262))),
            comment: Some("the usual suspects, ".repeat(10)),
            origin: origin.into(),
            in_force: true,
        };
        let mut overruled = listing("192.0.2.1", "command");
        overruled.in_force = false;
        overruled.until = None;
        overruled.comment = None;
        let mut listed = vec![
            listing("10.0.0.0/8", "/etc/synguard/synguard.toml, line 12"),
            overruled,
        ];
        let page = render(&listed, List::Block, now).unwrap();
        println!("{page}");
        let lines: Vec<_> = page.lines().collect();
        assert_eq!(lines[0], "PREFIX      ENDS IN  FROM  COMMENT");
        assert!(
            lines[1].starts_with("10.0.0.0/8  2h 1m    /etc/synguard/synguard.toml, line 12  the"),
            "{page}"
        );
        assert_eq!(lines[2], "192.0.2.1   never    overruled");
        listed.push(listing(
            "2001:db8:1111:2222:3333:4444:5555:0/112",
            &format!("/etc/{}, line 100000", "x".repeat(100)),
        ));
        let page = render(&listed, List::Block, now).unwrap();
        println!("{page}");
        assert!(
            page.lines().all(|line| line.chars().count() <= 80),
            "{page}"
        );
        assert!(page.contains("x, line 100000"), "{page}");
        let nothing = render(&[], List::Allow, now).unwrap();
        assert_eq!(nothing, "nothing is allowed\n");
    }

    #[test]
    fn mistakes_in_a_file_have_their_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "192.0.2.1\n192.0.2.1/24\nx\n").unwrap();
        let error = read_file(file.path()).unwrap_err().to_string();
        let expected = format!("{}:2:1: 192.0.2.1/24 has host bits", file.path().display());
        assert!(
            error.starts_with(&expected) && error.ends_with("(and 1 more)"),
            "{error}"
        );
        std::fs::write(file.path(), "# none\n").unwrap();
        let error = read_file(file.path()).unwrap_err().to_string();
        assert!(error.ends_with("has no prefix; give one a line"), "{error}");
        let twice = Prefixes {
            prefixes: vec!["::1".parse().unwrap(); 2],
            file: None,
        };
        assert_eq!(twice.read().unwrap().len(), 1);
        assert!(period("500ms").is_err() && moment("tomorrow").is_err());
    }
}
