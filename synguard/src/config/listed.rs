//! `[sources]`: prefixes that are allowed or blocked, in the file itself and in files of their own.
//!
//! The files of prefixes are read when the configuration is, once, and not when it is checked again
//! with one service more.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use synguard_common::abi::{MAX_BUDGET, MAX_SOURCES};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
    value::{Datetime, Offset},
};

use super::{
    mistake::{Mistake, Report},
    table::{Key, Section, describe, number},
};
use crate::{
    journal::Timestamp,
    lists::{Configured, Entry, Line, List, Place, Prefix, SourceRules, read_lines},
};

/// A file of more bytes is not read: as many prefixes as there is room for have less.
const SIZE_LIMIT: u64 = 64 << 20;
/// Mistakes after which no more of a kind are told.
const ENOUGH: usize = 20;
const PREFIX: &str = "prefix";
const COMMENT: &str = "comment";
const UNTIL: &str = "until";
const BUDGET_RIGHT: &str = "\"off\" or a number from 1 to 65535";
/// Longest comment, characters.
pub(crate) const COMMENT_LIMIT: usize = 200;

const SYN_BUDGET: Key<u32> = Key {
    name: "syn_budget",
    right: BUDGET_RIGHT,
    read: budget,
};
const ANSWER_BUDGET: Key<u32> = Key {
    name: "answer_budget",
    right: BUDGET_RIGHT,
    read: budget,
};

/// The keys of each list: prefixes, and files of them.
const LISTS: [(List, &str, &str); 2] = [
    (List::Allow, "allow", "allow_files"),
    (List::Block, "block", "block_files"),
];

pub(super) const SOURCES_KEYS: &[&str] = &[
    LISTS[0].1,
    LISTS[0].2,
    LISTS[1].1,
    LISTS[1].2,
    SYN_BUDGET.name,
    ANSWER_BUDGET.name,
];

fn budget(value: &DeValue<'_>) -> Result<u32, &'static str> {
    match (value.as_str(), number(value)) {
        (Some("off"), _) => Ok(0),
        (_, Some(budget @ 1..=MAX_BUDGET)) => Ok(budget),
        _ => Err(""),
    }
}

/// A file of prefixes, as it was read.
#[derive(Debug)]
pub(super) struct ListFile {
    path: PathBuf,
    lines: Vec<Line>,
    mistakes: Vec<Mistake>,
}

impl ListFile {
    /// Reads it. What is wrong with it is told when the configuration is checked.
    fn read(path: &Path) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            lines: Vec::new(),
            mistakes: Vec::new(),
        };
        let of_file = |text| Mistake::of_file(path, text);
        let is_file = path.metadata().map(|data| (data.is_file(), data.len()));
        match is_file.and_then(|is| Ok((is, File::open(path)?))) {
            Err(error) => file.mistakes.push(of_file(format!(
                "cannot be read: {error}; name a file that can be"
            ))),
            Ok(((is_file, length), _)) if !is_file || length > SIZE_LIMIT => {
                file.mistakes.push(of_file(format!(
                    "is no file of at most {SIZE_LIMIT} bytes; is it the right one?"
                )));
            }
            Ok((_, open)) => match read_lines(BufReader::new(open.take(SIZE_LIMIT))) {
                Err(error) => file
                    .mistakes
                    .push(of_file(format!("cannot be read: {error}"))),
                Ok((lines, wrong)) => {
                    file.lines = lines;
                    let wrong = wrong.into_iter();
                    let mistake = |w: crate::lists::Wrong| {
                        Mistake::at(path, (w.line as usize, w.column), w.text)
                    };
                    file.mistakes.extend(wrong.map(mistake));
                    file.check_twice();
                }
            },
        }
        file
    }

    fn check_twice(&mut self) {
        self.lines.sort_unstable();
        for pair in self.lines.windows(2) {
            let [first, second] = pair else { continue };
            if first.prefix == second.prefix && self.mistakes.len() < ENOUGH {
                let (prefix, line) = (second.prefix, first.line);
                let text = format!("{prefix} is there twice, also in line {line}; remove one");
                let at = (second.line as usize, 1);
                self.mistakes.push(Mistake::at(&self.path, at, text));
            }
        }
        self.lines.shrink_to_fit();
    }
}

/// Reads the files that the document names, each once.
pub(super) fn read_files(text: &str) -> Vec<Arc<ListFile>> {
    let (document, _) = DeTable::parse_recoverable(text);
    let sources = document.get_ref().get("sources");
    let Some(sources) = sources.and_then(|value| value.get_ref().as_table()) else {
        return Vec::new();
    };
    let mut files: Vec<Arc<ListFile>> = Vec::new();
    for (_, _, key) in LISTS {
        let items = sources
            .get(key)
            .and_then(|value| value.get_ref().as_array());
        for item in items.into_iter().flatten() {
            if let Some(path) = absolute(item.get_ref())
                && !files.iter().any(|file| file.path == path)
            {
                files.push(Arc::new(ListFile::read(path)));
            }
        }
    }
    files
}

fn absolute<'a>(value: &'a DeValue<'_>) -> Option<&'a Path> {
    let path = value.as_str().map(Path::new);
    path.filter(|path| path.is_absolute())
}

/// Something that is listed, and where to report what is wrong with it.
struct Found {
    entry: Entry,
    /// In the main file.
    span: Option<Range<usize>>,
}

/// What `[sources]` says, and the mistakes in files of prefixes.
pub(super) fn read(
    section: &Section<'_>,
    main: (&Path, &str),
    files: &[Arc<ListFile>],
    report: &mut Report<'_>,
) -> (SourceRules, Vec<Mistake>) {
    let mut rules = super::built_in().sources;
    for (budget, key) in [
        (&mut rules.syn_budget, &SYN_BUDGET),
        (&mut rules.answer_budget, &ANSWER_BUDGET),
    ] {
        if let Some((value, _)) = section.get(key, report) {
            *budget = value;
        }
    }
    let (path, text) = main;
    let newlines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line_of = |span: &Range<usize>| {
        let before = newlines.partition_point(|newline| *newline < span.start);
        u32::try_from(before + 1).unwrap_or(u32::MAX)
    };
    let mut paths = vec![path.to_owned()];
    let mut found = Vec::new();
    let mut mistakes = Vec::new();
    for (list, key, files_key) in LISTS {
        for item in array(section, key, "prefixes such as [\"192.0.2.0/24\"]", report) {
            if let Some(entry) = inline(item, list, line_of(&item.span()), report) {
                let span = Some(item.span());
                found.push(Found { entry, span });
            }
        }
        let right = "absolute paths of files with one prefix a line";
        for item in array(section, files_key, right, report) {
            let Some(path) = absolute(item.get_ref()) else {
                let is = describe(item.get_ref());
                report.add(&item.span(), format!("{is} is no path; give {right}"));
                continue;
            };
            if paths.iter().skip(1).any(|other| other == path) {
                let text = format!("{} is there twice; remove one", path.display());
                report.add(&item.span(), text);
                continue;
            }
            let file = u16::try_from(paths.len()).unwrap_or(u16::MAX);
            paths.push(path.to_owned());
            // The files were named by the same text.
            let Some(read) = files.iter().find(|file| file.path == path) else {
                continue;
            };
            mistakes.extend(read.mistakes.iter().cloned());
            found.extend(read.lines.iter().map(|line| Found {
                entry: Entry {
                    prefix: line.prefix,
                    list,
                    until: None,
                    comment: None,
                    place: Place {
                        file,
                        line: line.line,
                    },
                },
                span: None,
            }));
        }
    }
    if found.len() > MAX_SOURCES as usize {
        let text = format!(
            "[sources] has {} prefixes; give at most {MAX_SOURCES}",
            found.len()
        );
        mistakes.push(Mistake::of_file(path, text));
    } else if !found.is_empty() {
        let entries = one_of_each(found, &paths, &mut mistakes, report);
        rules.listed = Arc::new(Configured::new(paths, entries));
    }
    (rules, mistakes)
}

/// Each prefix once. Files may overlap, as published lists do, unless they contradict each other.
fn one_of_each(
    mut found: Vec<Found>,
    paths: &[PathBuf],
    mistakes: &mut Vec<Mistake>,
    report: &mut Report<'_>,
) -> Vec<Entry> {
    found.sort_by_key(|found| found.entry.prefix);
    let mut entries: Vec<Entry> = Vec::with_capacity(found.len());
    let mut told = 0;
    for Found { entry, span } in found {
        let Some(last) = entries
            .last_mut()
            .filter(|last| last.prefix == entry.prefix)
        else {
            entries.push(entry);
            continue;
        };
        let prefix = entry.prefix;
        let text = if last.list != entry.list {
            let file = paths.get(usize::from(last.place.file));
            format!(
                "{prefix} is {}, and {} in {}, line {}; remove one",
                entry.list.participle(),
                last.list.participle(),
                file.map_or(Path::new(""), PathBuf::as_path).display(),
                last.place.line,
            )
        } else if last.place.file == entry.place.file {
            // Of a file of prefixes it is told where that was read.
            format!("{prefix} is there twice; remove one")
        } else {
            // The one that holds longer.
            if last
                .until
                .is_some_and(|until| entry.until.is_none_or(|other| other > until))
            {
                *last = entry;
            }
            continue;
        };
        told += 1;
        match (span, paths.get(usize::from(entry.place.file))) {
            (Some(span), _) => report.add(&span, text),
            (None, Some(path)) if told <= ENOUGH && last.list != entry.list => {
                mistakes.push(Mistake::at(path, (entry.place.line as usize, 1), text));
            }
            _ => {}
        }
    }
    entries
}

/// The items of an array.
fn array<'a>(
    section: &Section<'a>,
    key: &str,
    right: &str,
    report: &mut Report<'_>,
) -> &'a [Spanned<DeValue<'a>>] {
    let Some(value) = section.raw(key) else {
        return &[];
    };
    match value.get_ref().as_array() {
        Some(items) => items,
        None => {
            let is = describe(value.get_ref());
            report.add(
                &value.span(),
                format!("`{key}` is {is}; give an array of {right}"),
            );
            &[]
        }
    }
}

/// A prefix, or a table with one.
fn inline(
    item: &Spanned<DeValue<'_>>,
    list: List,
    line: u32,
    report: &mut Report<'_>,
) -> Option<Entry> {
    const RIGHT: &str = "a prefix such as \"192.0.2.0/24\", or { prefix = \"192.0.2.0/24\", comment = \
                         \"why\", until = 2026-11-21T20:00:00Z }";
    let entry = |prefix: Prefix| Entry {
        prefix,
        list,
        until: None,
        comment: None,
        place: Place { file: 0, line },
    };
    let parse = |value: &Spanned<DeValue<'_>>, report: &mut Report<'_>| {
        let Some(text) = value.get_ref().as_str() else {
            let is = describe(value.get_ref());
            report.add(&value.span(), format!("{is} is no prefix; give {RIGHT}"));
            return None;
        };
        match text.parse::<Prefix>() {
            Ok(prefix) => Some(entry(prefix)),
            Err(error) => {
                report.add(&value.span(), error.to_string());
                None
            }
        }
    };
    let DeValue::Table(table) = item.get_ref() else {
        return parse(item, report);
    };
    let section = Section::open(
        table,
        &format!("`{list}`"),
        &[PREFIX, COMMENT, UNTIL],
        report,
    );
    let Some(prefix) = section.raw(PREFIX) else {
        report.add(&item.span(), format!("there is no `prefix`; give {RIGHT}"));
        return None;
    };
    let mut entry = parse(prefix, report)?;
    let comment = Key::<String> {
        name: COMMENT,
        right: "a line of at most 200 characters",
        read: |value| {
            let text = value.as_str().ok_or("")?;
            is_comment(text).then(|| text.to_owned()).ok_or("")
        },
    };
    let until = Key::<Timestamp> {
        name: UNTIL,
        right: "a date and time such as 2026-11-21T20:00:00Z, without quotes",
        read: |value| match value {
            DeValue::Datetime(time) => moment(time).ok_or(""),
            _ => Err(""),
        },
    };
    entry.comment = section.get(&comment, report).map(|(text, _)| text.into());
    entry.until = section.get(&until, report).map(|(time, _)| time);
    Some(entry)
}

/// Whether a text can stand behind a prefix.
pub(crate) fn is_comment(text: &str) -> bool {
    text.chars().count() <= COMMENT_LIMIT && !text.contains(char::is_control)
}

/// A moment; without an offset it is UTC, as everywhere else.
fn moment(time: &Datetime) -> Option<Timestamp> {
    let date = time.date?;
    let text = match time.time {
        Some(time) => format!("{date}T{time}"),
        None => date.to_string(),
    };
    let moment: Timestamp = text.parse().ok()?;
    let minutes = match time.offset {
        None | Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i64::from(minutes),
    };
    Some(moment.moved(minutes * -60_000))
}
