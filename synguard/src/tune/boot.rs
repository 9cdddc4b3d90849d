//! What the configuration files set at boot: which of them undo the drop-in, because they are read
//! after it, and which set what is obsolete.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::host::{Host, normal};

/// Directories of drop-ins; of files of the same name the first is the one that counts
/// (sysctl.d(5)).
pub(super) const DIRECTORIES: [&str; 4] = [
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
];
/// Read by procps after all of them, and by systemd through a link `99-sysctl.conf`.
const LAST: &str = "/etc/sysctl.conf";

/// A line that sets something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// What is set.
    pub key: String,
    /// To what.
    pub value: String,
    /// Where.
    pub file: PathBuf,
    /// In which line, from 1.
    pub line: usize,
}

impl Assignment {
    /// `FILE:LINE`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }
}

/// Every line that sets something, in the order in which they are read.
pub fn assignments(host: &Host) -> Vec<Assignment> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in DIRECTORIES.map(Path::new) {
        let Ok(entries) = fs::read_dir(host.below(directory)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let path = directory.join(&name);
            if path
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                files.entry(name).or_insert(path);
            }
        }
    }
    let mut found = Vec::new();
    for file in files.into_values().chain([LAST.into()]) {
        // What cannot be read here cannot be read at boot either, or is not ours to know.
        if let Ok(text) = fs::read_to_string(host.below(&file)) {
            parse(&text, &file, &mut found);
        }
    }
    found
}

fn parse(text: &str, file: &Path, found: &mut Vec<Assignment>) {
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        // A leading `-` says that a failure does not matter.
        let line = line.strip_prefix('-').unwrap_or(line);
        if let Some((key, value)) = line.split_once('=') {
            found.push(Assignment {
                key: key.trim().replace('/', "."),
                value: normal(value),
                file: file.to_owned(),
                line: index + 1,
            });
        }
    }
}

/// The lines that come after the drop-in and set one of its keys to something else.
pub fn undone<'a>(
    host: &Host,
    at_boot: &'a [Assignment],
    settings: &[(&str, &str)],
) -> Vec<&'a Assignment> {
    let name = host.file.file_name();
    settings
        .iter()
        .filter_map(|(key, value)| {
            let last = at_boot.iter().rfind(|line| {
                let after = line.file == Path::new(LAST) || line.file.file_name() > name;
                line.key == *key && line.file != host.file && after
            })?;
            (last.value != *value).then_some(last)
        })
        .collect()
}
