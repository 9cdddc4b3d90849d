//! What commands have listed, and what of that a command may change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Configured, Counts, List, Prefix, is_over};
use crate::journal::Timestamp;

/// What a command said of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveEntry {
    /// Its list.
    pub list: List,
    /// From when on it does not hold any more.
    pub until: Option<Timestamp>,
    /// What somebody wanted to remember.
    pub comment: Option<Arc<str>>,
    /// It ends with the daemon.
    pub temporary: bool,
}

/// All that commands have listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live(BTreeMap<Prefix, LiveEntry>);

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    prefix: Prefix,
    list: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    comment: Option<std::borrow::Cow<'a, str>>,
}

/// Why nothing is changed: one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The configuration says something else of it.
    #[error(
        "{prefix} is {} in {place}: take it out there, then `synguard reload`",
        list.participle()
    )]
    Configured {
        /// The prefix.
        prefix: Prefix,
        /// The list that has it.
        list: List,
        /// Where it stands.
        place: String,
    },
    /// It is in the other list.
    #[error(
        "{prefix} is {} by command: `synguard {list} remove {prefix}` ends that",
        list.participle()
    )]
    Other {
        /// The prefix.
        prefix: Prefix,
        /// The list that has it.
        list: List,
    },
    /// It is not there to be removed.
    #[error("{prefix} is not in the {list} list{hint}")]
    Absent {
        /// The prefix.
        prefix: Prefix,
        /// The list.
        list: List,
        /// What covers it, if anything does.
        hint: String,
    },
    /// None of many is.
    #[error("none of the {count} prefixes is in the {list} list")]
    AllAbsent {
        /// How many.
        count: usize,
        /// The list.
        list: List,
    },
}

/// What came of an addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Prefixes that were not in the list.
    pub new: usize,
    /// Prefixes that were, and whose time or comment may be another now.
    pub renewed: usize,
    /// How many of both the configuration has too, which decides.
    pub configured: usize,
}

fn place(configured: &Configured, prefix: &Prefix, now: Timestamp) -> Option<(List, String)> {
    let entry = configured.get(prefix)?;
    let file = configured.file(entry.place).display();
    let line = entry.place.line;
    (!is_over(entry.until, now)).then(|| (entry.list, format!("{file}, line {line}")))
}

impl Live {
    /// Prefixes and what is said of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &LiveEntry)> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lists a prefix.
    pub fn insert(&mut self, prefix: Prefix, entry: LiveEntry) {
        self.0.insert(prefix, entry);
    }

    /// Lists prefixes, all or none.
    pub fn add(
        &mut self,
        prefixes: &BTreeSet<Prefix>,
        entry: &LiveEntry,
        configured: &Configured,
        now: Timestamp,
    ) -> Result<Added, Refusal> {
        let mut added = Added::default();
        for prefix in prefixes {
            let other = |list| list != entry.list;
            if let Some((list, place)) = place(configured, prefix, now) {
                if other(list) {
                    return Err(Refusal::Configured {
                        prefix: *prefix,
                        list,
                        place,
                    });
                }
                added.configured += 1;
            }
            if let Some(listed) = self.0.get(prefix)
                && other(listed.list)
                && !is_over(listed.until, now)
            {
                return Err(Refusal::Other {
                    prefix: *prefix,
                    list: listed.list,
                });
            }
        }
        for prefix in prefixes {
            match self.0.insert(*prefix, entry.clone()) {
                Some(before) if before.list == entry.list => added.renewed += 1,
                _ => added.new += 1,
            }
        }
        Ok(added)
    }

    /// Removes prefixes from a list, and says how many were there. That some of many are not there is
    /// no reason to refuse: their time may have come.
    pub fn remove(
        &mut self,
        list: List,
        prefixes: &BTreeSet<Prefix>,
        configured: &Configured,
        now: Timestamp,
    ) -> Result<usize, Refusal> {
        for prefix in prefixes {
            if let Some((in_list, place)) = place(configured, prefix, now)
                && in_list == list
            {
                return Err(Refusal::Configured {
                    prefix: *prefix,
                    list,
                    place,
                });
            }
        }
        let is_there =
            |prefix: &&Prefix| self.0.get(prefix).is_some_and(|entry| entry.list == list);
        let there: Vec<Prefix> = prefixes.iter().filter(is_there).copied().collect();
        match (there.len(), prefixes.first()) {
            (0, Some(prefix)) if prefixes.len() == 1 => {
                return Err(Refusal::Absent {
                    prefix: *prefix,
                    list,
                    hint: self.hint(*prefix, list),
                });
            }
            (0, _) => {
                let count = prefixes.len();
                return Err(Refusal::AllAbsent { count, list });
            }
            _ => {}
        }
        for prefix in &there {
            self.0.remove(prefix);
        }
        Ok(there.len())
    }

    /// What somebody may have meant who wants to remove what is not there.
    fn hint(&self, prefix: Prefix, list: List) -> String {
        if self.0.contains_key(&prefix) {
            return match list {
                List::Allow => ": it is blocked".into(),
                List::Block => ": it is allowed".into(),
            };
        }
        let covers = |other: &&Prefix| other.net().contains(&prefix.net());
        let in_list = self.0.iter().filter(|(_, entry)| entry.list == list);
        let covering = in_list.map(|(prefix, _)| prefix).filter(covers);
        covering
            .max_by_key(|other| other.net().prefix_len())
            .map_or_else(String::new, |other| {
                format!(", but {other} is, which covers it")
            })
    }

    /// Removes those whose time has come, and says how many of each list they were.
    pub fn expire(&mut self, now: Timestamp) -> Counts {
        let mut over = Vec::new();
        self.0.retain(|_, entry| {
            let stays = !is_over(entry.until, now);
            if !stays {
                over.push(entry.list);
            }
            stays
        });
        Counts::of(over)
    }

    /// Writes those that outlive the daemon, an object a line.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        for (prefix, entry) in self.0.iter().filter(|(_, entry)| !entry.temporary) {
            let stored = Stored {
                prefix: *prefix,
                list: entry.list,
                until: entry.until,
                comment: entry.comment.as_deref().map(Into::into),
            };
            serde_json::to_writer(&mut to, &stored)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }

    /// Reads them back. What is wrong is told with its line.
    pub fn read(from: impl BufRead) -> io::Result<Result<Self, (usize, String)>> {
        let mut live = Self::default();
        // As a rule a command lists many, with one comment.
        let mut last: Option<Arc<str>> = None;
        for (number, line) in (1..).zip(from.lines()) {
            let line = line?;
            let stored: Stored<'_> = match serde_json::from_str(&line) {
                Ok(stored) => stored,
                Err(error) => return Ok(Err((number, error.to_string()))),
            };
            let comment = stored.comment.map(|text| match &last {
                Some(last) if **last == *text => Arc::clone(last),
                _ => Arc::from(text),
            });
            last = comment.clone().or(last);
            let entry = LiveEntry {
                list: stored.list,
                until: stored.until,
                comment,
                temporary: false,
            };
            live.insert(stored.prefix, entry);
        }
        Ok(Ok(live))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::configured::Place, *};
    use crate::lists::Entry;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const LATER: Timestamp = Timestamp::from_millis(1_800_000_001_000);

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn entry(list: List, until: Option<Timestamp>) -> LiveEntry {
        LiveEntry {
            list,
            until,
            comment: Some("ticket \"7\"".into()),
            temporary: false,
        }
    }

    fn configured(until: Option<Timestamp>) -> Configured {
        let entry = Entry {
            prefix: prefix("192.0.2.0/24"),
            list: List::Allow,
            until,
            comment: None,
            place: Place { file: 0, line: 7 },
        };
        Configured::new(vec!["/f.toml".into()], vec![entry])
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn all_or_none_are_added() {
        let file = configured(Some(LATER));
        let mut live = Live::default();
        let block = entry(List::Block, None);
        let [ten, test] = ["10.0.0.0/8", "192.0.2.0/24"].map(|text| BTreeSet::from([prefix(text)]));
        let many = &ten | &test;
        assert_eq!(
            refused(live.add(&many, &block, &file, NOW)),
            "192.0.2.0/24 is allowed in /f.toml, line 7: take it out there, then `synguard reload`"
        );
        assert!(live.is_empty());
        // Its time is over there.
        let added = live.add(&many, &block, &file, LATER).unwrap();
        assert_eq!((added.new, added.renewed, added.configured), (2, 0, 0));
        let added = live.add(&ten, &block, &file, NOW).unwrap();
        assert_eq!((added.new, added.renewed), (0, 1));
        let allow = entry(List::Allow, None);
        assert_eq!(
            refused(live.add(&ten, &allow, &file, NOW)),
            "10.0.0.0/8 is blocked by command: `synguard block remove 10.0.0.0/8` ends that"
        );
        let mut other = Live::default();
        let added = other.add(&test, &allow, &file, NOW).unwrap();
        assert_eq!((added.new, added.configured), (1, 1));
    }

    #[test]
    fn what_can_be_removed_is() {
        let file = configured(None);
        let mut live = Live::default();
        live.insert(prefix("10.0.0.0/8"), entry(List::Block, None));
        live.insert(prefix("10.0.0.1"), entry(List::Allow, None));
        let mut remove = |list, prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(|text| prefix(text)).collect();
            live.remove(list, &prefixes, &file, NOW)
        };
        for (list, prefixes, expected) in [
            (
                List::Allow,
                &["192.0.2.0/24"][..],
                "192.0.2.0/24 is allowed in /f.toml, line 7: take it out there, then `synguard reload`",
            ),
            (
                List::Block,
                &["192.0.2.0/24"],
                "192.0.2.0/24 is not in the block list",
            ),
            (
                List::Block,
                &["10.0.0.1"],
                "10.0.0.1 is not in the block list: it is allowed",
            ),
            (
                List::Block,
                &["10.9.0.0/16"],
                "10.9.0.0/16 is not in the block list, but 10.0.0.0/8 is, which covers it",
            ),
            (
                List::Block,
                &["::1", "::2"],
                "none of the 2 prefixes is in the block list",
            ),
        ] {
            assert_eq!(refused(remove(list, prefixes)), expected);
        }
        assert_eq!(remove(List::Block, &["10.0.0.0/8", "::1"]), Ok(1));
        assert_eq!(live.len(), 1);
    }

    #[test]
    fn what_outlives_the_daemon_comes_back() {
        let mut live = Live::default();
        live.insert(prefix("10.0.0.0/8"), entry(List::Block, Some(LATER)));
        live.insert(prefix("10.0.0.1"), entry(List::Block, Some(LATER)));
        let bare = LiveEntry {
            comment: None,
            ..entry(List::Allow, None)
        };
        live.insert(prefix("2001:db8::/32"), bare);
        let mut bytes = Vec::new();
        live.write(&mut bytes).unwrap();
        assert_eq!(Live::read(&*bytes).unwrap(), Ok(live.clone()));
        let temporary = LiveEntry {
            temporary: true,
            ..entry(List::Allow, None)
        };
        live.insert(prefix("::1"), temporary);
        let mut again = Vec::new();
        live.write(&mut again).unwrap();
        assert_eq!(again, bytes);
        bytes.extend(b"{\"prefix\":\"10.0.0.1/8\",\"list\":\"block\"}\n");
        let (line, error) = Live::read(&*bytes).unwrap().unwrap_err();
        assert!(line == 4 && error.contains("host bits"), "{line} {error}");
        assert_eq!(
            live.expire(LATER),
            Counts {
                allowed: 0,
                blocked: 2
            }
        );
        assert_eq!(live.len(), 2);
    }
}
