//! Sources that are allowed or blocked: what commands say of them, kept in the state directory, and
//! what of all that is in the kernel's table.
//!
//! The file is written, durably, beside the old one; then the change is applied; then the file takes the
//! old one's place, and the caller is told last. So whoever is told of a change finds it after a restart,
//! and what cannot be applied leaves nothing behind.

use std::{
    collections::BTreeSet,
    fs::{DirBuilder, File},
    io::{self, BufReader, BufWriter},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tempfile::NamedTempFile;
use tracing::error;

use super::{clock, guard::Guard};
use crate::{
    config::is_comment,
    control::{Listing, SourcesRemoval, SourcesRequest},
    dataplane::{
        Maps,
        sources::{self, Table},
    },
    journal::{Timestamp, What},
    lists::{self, Configured, Counts, InForce, List, Live, LiveEntry, SourceRules},
    model::SourceStatus,
};

/// What commands have listed, in the state directory.
const FILE: &str = "sources.jsonl";
/// Time until the next attempt where the table could not be written.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);

/// The lists, as they are in force.
#[derive(Debug)]
pub struct Lists {
    live: Live,
    /// Where they are kept, if anywhere.
    file: Option<PathBuf>,
    /// What is in the kernel's table.
    applied: Table,
    counts: Counts,
    /// When that was last made to agree with the time.
    at: Timestamp,
    /// When it will have to be again.
    next: Option<Timestamp>,
}

/// What commands have listed before.
pub fn read_kept(state: &Path) -> anyhow::Result<Live> {
    let path = state.join(FILE);
    let unreadable = || {
        format!(
            "cannot read {}, which holds sources listed by command",
            path.display()
        )
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Live::default()),
        Err(error) => return Err(error).with_context(unreadable),
    };
    match Live::read(BufReader::new(file)).with_context(unreadable)? {
        Ok(live) => Ok(live),
        Err((line, why)) => bail!(
            "{}:{line}: {why}; correct the line, or remove it",
            path.display()
        ),
    }
}

/// The table for what is in force at this moment.
pub fn table(in_force: &[InForce]) -> Table {
    let (wall, monotonic) = (clock::wall_ns(), clock::monotonic_ns());
    let tick = |until: Timestamp| {
        let ahead = until
            .millis()
            .saturating_mul(1_000_000)
            .saturating_sub(wall);
        // Never too early: what is over is removed by us a moment later.
        clock::tick_at(monotonic.saturating_add(ahead)).wrapping_add(1)
    };
    sources::compile(in_force, clock::tick(), tick)
}

impl Lists {
    /// What commands have listed before, and what another daemon has left in the table.
    pub fn start(state: Option<&Path>, applied: Table) -> anyhow::Result<Self> {
        let mut live = match state {
            Some(state) => read_kept(state)?,
            None => Live::default(),
        };
        let now = Timestamp::now();
        live.expire(now);
        Ok(Self {
            live,
            file: state.map(|state| state.join(FILE)),
            applied,
            counts: Counts::default(),
            at: now,
            next: None,
        })
    }

    /// How many entries the kernel's table has.
    pub fn entries(&self) -> u64 {
        self.applied.len() as u64
    }

    /// How many prefixes are in force.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Has the table agree with the time again at the next tick.
    pub fn recheck(&mut self) {
        self.next = Some(Timestamp::from_millis(0));
    }

    /// Makes the table what the configuration and the commands say now.
    pub fn apply(&mut self, maps: &mut Maps, configured: &Configured) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let in_force = lists::in_force(configured, &self.live, now);
        let table = table(&in_force);
        if let Some(room) = maps.capacity(synguard_common::abi::map::SOURCES)
            && table.len() as u64 > room
        {
            bail!(
                "{} prefixes of sources are too many: there is room for {room}",
                table.len()
            );
        }
        sources::apply(maps, &mut self.applied, table)?;
        self.counts = Counts::of(in_force.iter().map(|each| each.list));
        // Also those that are not in force as long as others are.
        let configured = configured.entries().iter().map(|entry| entry.until);
        let live = self.live.iter().map(|(_, entry)| entry.until);
        let ends = configured.chain(live).flatten();
        self.next = ends.filter(|until| *until > now).min();
        self.at = now;
        Ok(())
    }

    /// The new contents of the file, durable, and not in its place yet.
    fn prepare(&self, live: &Live) -> anyhow::Result<Option<NamedTempFile>> {
        let Some(path) = &self.file else {
            return Ok(None);
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let write = || -> io::Result<NamedTempFile> {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            let file = NamedTempFile::new_in(directory)?;
            live.write(BufWriter::new(file.as_file()))?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file = write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(file))
    }

    /// Puts it there.
    fn keep(&self, prepared: Option<NamedTempFile>) -> anyhow::Result<()> {
        let (Some(path), Some(file)) = (&self.file, prepared) else {
            return Ok(());
        };
        let failed = || format!("cannot write {}", path.display());
        file.persist(path)
            .map_err(|error| error.error)
            .with_context(failed)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .with_context(failed)
    }
}

impl Guard {
    /// Allows or blocks sources, all or none; says how many.
    pub fn add_sources(&mut self, request: SourcesRequest) -> Result<String, String> {
        let SourcesRequest {
            list,
            prefixes,
            until,
            comment,
            temporary,
        } = request;
        if prefixes.is_empty() {
            return Err("there is no prefix to list: give one".into());
        }
        let now = Timestamp::now();
        if let Some(until) = until.filter(|until| *until <= now) {
            return Err(format!("{until} is over: give a time to come"));
        }
        if comment.as_deref().is_some_and(|text| !is_comment(text)) {
            return Err("the comment is too long: give one line of at most 200 characters".into());
        }
        if self.lists.file.is_none() && !temporary {
            return Err(
                "the daemon keeps nothing (`state` is \"off\"): list sources with --temporary, or in \
                 the configuration file"
                    .into(),
            );
        }
        let prefixes = BTreeSet::from_iter(prefixes);
        let entry = LiveEntry {
            list,
            until,
            comment: comment.as_deref().map(Into::into),
            temporary,
        };
        let mut live = self.lists.live.clone();
        let added = live
            .add(&prefixes, &entry, &self.config.sources.listed, now)
            .map_err(|error| error.to_string())?;
        self.change_lists(live)
            .map_err(|error| format!("cannot change the {list} list: {error:#}"))?;
        if added.new > 0 {
            self.journal.note(What::SourcesChanged {
                by: "command".into(),
                added: added.new,
                removed: 0,
                list: Some(list),
                prefix: prefixes.first().copied(),
                until,
                comment,
                now: self.lists.counts,
            });
        }
        let done = list.participle();
        let mut message = match (prefixes.len(), prefixes.first()) {
            (1, Some(prefix)) => format!("{prefix} is {done}"),
            (count, _) => format!("{count} prefixes are {done}"),
        };
        if let Some(until) = until {
            message.push_str(&format!(" until {until}"));
        }
        if added.renewed > 0 && prefixes.len() > 1 {
            message.push_str(&format!(", {} of them were before", added.renewed));
        }
        if added.configured > 0 {
            message.push_str(&format!(
                "; the configuration has {} of them too, and decides",
                added.configured
            ));
        }
        Ok(message)
    }

    /// Takes sources from a list that commands have put there.
    pub fn remove_sources(&mut self, request: SourcesRemoval) -> Result<String, String> {
        let SourcesRemoval { list, prefixes } = request;
        let prefixes = BTreeSet::from_iter(prefixes);
        if prefixes.is_empty() {
            return Err("there is no prefix to remove: give one".into());
        }
        let mut live = self.lists.live.clone();
        let configured = &self.config.sources.listed;
        let removed = live
            .remove(list, &prefixes, configured, Timestamp::now())
            .map_err(|error| error.to_string())?;
        self.change_lists(live)
            .map_err(|error| format!("cannot change the {list} list: {error:#}"))?;
        self.journal.note(What::SourcesChanged {
            by: "command".into(),
            added: 0,
            removed,
            list: Some(list),
            prefix: prefixes.first().copied(),
            until: None,
            comment: None,
            now: self.lists.counts,
        });
        Ok(match (prefixes.len(), prefixes.first()) {
            (1, Some(prefix)) => format!("{prefix} is no longer in the {list} list"),
            (count, _) if count == removed => {
                format!("{count} prefixes are no longer in the {list} list")
            }
            (count, _) => format!(
                "{removed} prefixes are no longer in the {list} list; {} were not in it",
                count - removed
            ),
        })
    }

    /// What is in a list, by prefix.
    pub fn list_sources(&self, list: List) -> Vec<Listing> {
        let configured = &self.config.sources.listed;
        let now = Timestamp::now();
        let holds = |until: Option<Timestamp>| until.is_none_or(|until| until > now);
        let files = configured
            .entries()
            .iter()
            .filter(|entry| entry.list == list && holds(entry.until))
            .map(|entry| Listing {
                prefix: entry.prefix,
                list,
                until: entry.until,
                comment: entry.comment.as_deref().map(str::to_owned),
                origin: format!(
                    "{}, line {}",
                    configured.file(entry.place).display(),
                    entry.place.line
                ),
                in_force: true,
            });
        let live = self.lists.live.iter();
        let live = live.filter(|(_, entry)| entry.list == list && holds(entry.until));
        let live = live.map(|(prefix, entry)| Listing {
            prefix: *prefix,
            list,
            until: entry.until,
            comment: entry.comment.as_deref().map(str::to_owned),
            origin: if entry.temporary {
                "command, temporary"
            } else {
                "command"
            }
            .to_owned(),
            in_force: configured
                .get(prefix)
                .is_none_or(|entry| !holds(entry.until)),
        });
        let mut all: Vec<Listing> = files.chain(live).collect();
        all.sort_by_key(|listing| listing.prefix);
        all
    }

    /// Lists and budgets for the snapshot.
    pub(super) fn source_status(&self) -> SourceStatus {
        let limit = |budget| Some(budget).filter(|budget| *budget > 0);
        let rules: &SourceRules = &self.config.sources;
        SourceStatus {
            listed: self.lists.counts,
            syn_budget: limit(rules.syn_budget),
            answer_budget: limit(rules.answer_budget),
        }
    }

    /// Takes from the table what is over, once for all that is.
    pub(super) fn expire_sources(&mut self) {
        let now = Timestamp::now();
        if self.lists.next.is_none_or(|next| next > now) {
            return;
        }
        let configured = std::sync::Arc::clone(&self.config.sources.listed);
        let since = self.lists.at;
        let over = configured.entries().iter().filter(|entry| {
            let until = entry.until;
            until.is_some_and(|until| until > since && until <= now)
        });
        let files = Counts::of(over.map(|entry| entry.list));
        let live = self.lists.live.expire(now);
        if let Err(error) = self.lists.apply(&mut self.dataplane.maps, &configured) {
            error!("the lists of sources stay as they were: {error:#}");
            self.lists.next = Some(now.after(RETRY));
        }
        let (allowed, blocked) = (files.allowed + live.allowed, files.blocked + live.blocked);
        if allowed + blocked > 0 {
            self.journal.note(What::SourcesExpired { allowed, blocked });
        }
    }

    /// Makes `live` what commands have listed: in the file and in the table, or in neither.
    fn change_lists(&mut self, live: Live) -> anyhow::Result<()> {
        let prepared = self.lists.prepare(&live)?;
        let configured = std::sync::Arc::clone(&self.config.sources.listed);
        let maps = &mut self.dataplane.maps;
        let before = std::mem::replace(&mut self.lists.live, live);
        let applied = self.lists.apply(maps, &configured);
        let is_applied = applied.is_ok();
        let Err(error) = applied.and_then(|()| self.lists.keep(prepared)) else {
            return Ok(());
        };
        self.lists.live = before;
        if is_applied && let Err(again) = self.lists.apply(maps, &configured) {
            return Err(error.context(format!("cannot take the change back ({again:#})")));
        }
        Err(error)
    }
}
