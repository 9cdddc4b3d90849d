//! Which sources are allowed and which are blocked: by the configuration, and by command while the
//! daemon runs.
//!
//! The longest prefix that covers a source decides. For one and the same prefix the configuration does,
//! as long as it has it and its time is not over; what a command says of it waits until then. Nothing
//! here does any I/O or has a clock of its own.

mod configured;
mod live;
mod prefix;
mod text;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    configured::{Configured, Entry, Place},
    live::{Added, Live, LiveEntry, Refusal},
    prefix::{Prefix, PrefixError},
    text::{Line, Wrong, read_lines},
};
use crate::journal::Timestamp;

/// One of the two lists.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum List {
    /// SYNs of these sources pass unasked.
    Allow,
    /// Packets of these sources are dropped.
    Block,
}

impl List {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Block];

    /// What it is called in JSON, on the command line and in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
        }
    }

    /// What its sources are.
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Allow => "allowed",
            Self::Block => "blocked",
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What the configuration says of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRules {
    /// Its lists.
    pub listed: Arc<Configured>,
    /// SYNs of one source in a second that may come to nothing while their service is calm; 0 is no
    /// limit.
    pub syn_budget: u32,
    /// SYN-ACKs to one address in a second that nobody answers, while guarded; 0 is no limit.
    pub answer_budget: u32,
}

/// A prefix that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// It.
    pub prefix: Prefix,
    /// Its list.
    pub list: List,
    /// From when on it is not in force any more.
    pub until: Option<Timestamp>,
}

/// Whether `until` has come.
fn is_over(until: Option<Timestamp>, now: Timestamp) -> bool {
    until.is_some_and(|until| until <= now)
}

/// What holds `now`, in the order of the prefixes.
pub fn in_force(configured: &Configured, live: &Live, now: Timestamp) -> Vec<InForce> {
    let mut all = Vec::with_capacity(configured.entries().len() + live.len());
    let mut files = configured
        .entries()
        .iter()
        .filter(|entry| !is_over(entry.until, now))
        .map(|entry| InForce {
            prefix: entry.prefix,
            list: entry.list,
            until: entry.until,
        })
        .peekable();
    let live = live.iter().filter(|(_, entry)| !is_over(entry.until, now));
    for (prefix, entry) in live {
        while let Some(file) = files.next_if(|file| file.prefix < *prefix) {
            all.push(file);
        }
        if files.peek().is_none_or(|file| file.prefix != *prefix) {
            all.push(InForce {
                prefix: *prefix,
                list: entry.list,
                until: entry.until,
            });
        }
    }
    all.extend(files);
    all
}

/// How many of each list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Prefixes that are allowed.
    pub allowed: u64,
    /// Prefixes that are blocked.
    pub blocked: u64,
}

impl Counts {
    /// Of these.
    pub fn of(lists: impl IntoIterator<Item = List>) -> Self {
        let mut counts = Self::default();
        for list in lists {
            match list {
                List::Allow => counts.allowed += 1,
                List::Block => counts.blocked += 1,
            }
        }
        counts
    }

    /// Both together.
    pub const fn all(self) -> u64 {
        self.allowed + self.blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn entry(prefix: &str, list: List, until: Option<u64>) -> Entry {
        Entry {
            prefix: prefix.parse().unwrap(),
            list,
            until: until.map(at),
            comment: None,
            place: Place { file: 0, line: 1 },
        }
    }

    #[test]
    fn the_configuration_decides_as_long_as_it_says_anything() {
        let configured = Configured::new(
            vec!["f".into()],
            vec![
                entry("192.0.2.1", List::Allow, None),
                entry("192.0.2.2", List::Allow, Some(10)),
                entry("2001:db8::/32", List::Block, None),
            ],
        );
        let mut live = Live::default();
        for (prefix, until) in [
            ("10.0.0.0/8", Some(20)),
            ("192.0.2.1", None),
            ("192.0.2.2", None),
        ] {
            let entry = LiveEntry {
                list: List::Block,
                until: until.map(at),
                comment: None,
                temporary: false,
            };
            live.insert(prefix.parse().unwrap(), entry);
        }
        let told = |now| {
            let all = in_force(&configured, &live, at(now)).into_iter();
            let told: Vec<_> = all
                .map(|each| format!("{} {}", each.list, each.prefix))
                .collect();
            told.join(", ")
        };
        let rest = "block 2001:db8::/32";
        assert_eq!(
            told(9),
            format!("block 10.0.0.0/8, allow 192.0.2.1, allow 192.0.2.2, {rest}")
        );
        assert_eq!(
            told(10),
            format!("block 10.0.0.0/8, allow 192.0.2.1, block 192.0.2.2, {rest}")
        );
        assert_eq!(
            told(20),
            format!("allow 192.0.2.1, block 192.0.2.2, {rest}")
        );
    }
}
