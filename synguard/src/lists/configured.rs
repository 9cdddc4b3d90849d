//! The lists of the configuration: kept dense, for there may be hundreds of thousands of prefixes.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{List, Prefix};
use crate::journal::Timestamp;

/// Where a prefix stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which file.
    pub file: u16,
    /// Its line, from 1.
    pub line: u32,
}

/// What the configuration says of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The prefix.
    pub prefix: Prefix,
    /// Its list.
    pub list: List,
    /// From when on it does not hold any more.
    pub until: Option<Timestamp>,
    /// What somebody wanted to remember.
    pub comment: Option<Arc<str>>,
    /// Where it stands.
    pub place: Place,
}

/// Both lists of the configuration, each prefix once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
}

impl Configured {
    /// Of these entries; each prefix is there once.
    pub fn new(files: Vec<PathBuf>, mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by_key(|entry| entry.prefix);
        entries.shrink_to_fit();
        Self { files, entries }
    }

    /// By prefix.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What it says of a prefix.
    pub fn get(&self, prefix: &Prefix) -> Option<&Entry> {
        let found = self
            .entries
            .binary_search_by_key(prefix, |entry| entry.prefix);
        self.entries.get(found.ok()?)
    }

    /// The file of a place.
    pub fn file(&self, place: Place) -> &Path {
        let file = self.files.get(usize::from(place.file));
        file.map_or(Path::new(""), PathBuf::as_path)
    }

    /// How many prefixes are new, gone, or said something else of, compared with `before`.
    pub fn changes(&self, before: &Self) -> [usize; 3] {
        let [mut added, mut removed, mut changed] = [0; 3];
        let (mut old, mut new) = (before.entries.iter(), self.entries.iter());
        let (mut left, mut right) = (old.next(), new.next());
        loop {
            let order = match (left, right) {
                (None, None) => return [added, removed, changed],
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => {
                    let says = |entry: &Entry| (entry.list, entry.until, entry.comment.clone());
                    let order = a.prefix.cmp(&b.prefix);
                    if order == Ordering::Equal && says(a) != says(b) {
                        changed += 1;
                    }
                    order
                }
            };
            if order != Ordering::Less {
                added += usize::from(order == Ordering::Greater);
                right = new.next();
            }
            if order != Ordering::Greater {
                removed += usize::from(order == Ordering::Less);
                left = old.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(prefixes: &[(&str, List)]) -> Configured {
        let entry = |(line, (prefix, list)): (u32, &(&str, List))| Entry {
            prefix: prefix.parse().unwrap(),
            list: *list,
            until: None,
            comment: None,
            place: Place { file: 0, line },
        };
        Configured::new(vec!["f".into()], (1..).zip(prefixes).map(entry).collect())
    }

    #[test]
    fn changes_are_counted_and_a_line_that_moved_is_none() {
        use List::{Allow, Block};
        let old = configured(&[("10.0.0.1", Block), ("10.0.0.2", Block), ("::1", Allow)]);
        assert_eq!(old.changes(&old), [0, 0, 0]);
        let new = configured(&[
            ("10.0.0.3", Block),
            ("10.0.0.4", Allow),
            ("::1", Block),
            ("10.0.0.2", Block),
        ]);
        assert_eq!(new.changes(&old), [2, 1, 1]);
        assert_eq!(old.changes(&new), [1, 2, 1]);
        assert_eq!(new.changes(&Configured::default()), [4, 0, 0]);
        let found = new.get(&"10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(
            (found.place.line, new.file(found.place)),
            (4, Path::new("f"))
        );
        assert_eq!(new.get(&"10.0.0.1".parse().unwrap()), None);
    }
}
