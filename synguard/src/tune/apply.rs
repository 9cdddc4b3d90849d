//! Applies the advice and takes it back.
//!
//! The order is what makes an interruption harmless: first the old values are on disk, then the
//! drop-in, and only then the settings change.

use std::{fmt::Write as _, fs, io, path::PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::{
    advice::{Advice, Standing, is_conntrack},
    boot::{Assignment, undone},
    host::Host,
    undo::Changes,
};

/// First line of a drop-in of ours.
const MARK: &str = "# Written by `synguard tune --apply`; `synguard tune --revert` removes it.";

/// What was applied, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The drop-in.
    file: PathBuf,
    settings: Vec<Applied>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Applied {
    setting: String,
    old: String,
    applied: String,
}

/// A setting that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub setting: String,
    /// What it was; `None` where the kernel does not run here.
    pub from: Option<String>,
    /// What it is.
    pub to: String,
}

/// What came of applying or reverting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The drop-in, written or removed.
    pub file: PathBuf,
    /// Settings that changed.
    pub changed: Vec<Change>,
    /// Settings that were left alone though another value is or was wanted, each with the reason.
    pub left: Vec<String>,
    /// Files that will undo it at the next boot.
    pub undone_at_boot: Vec<String>,
}

/// Sets what is advised, now and at every boot.
pub fn apply(host: &Host, advice: &[Advice], at_boot: &[Assignment]) -> anyhow::Result<Outcome> {
    let mut record = match load(host)? {
        Some(record) if record.file != host.file => bail!(
            "settings are applied by {} already: give --file {0}, or revert them first",
            record.file.display()
        ),
        Some(record) => record,
        None => Record {
            file: host.file.clone(),
            settings: Vec::new(),
        },
    };
    foreign(host)?;

    let changed: Vec<Change> = advice
        .iter()
        .filter(|advice| matches!(advice.status, Standing::Change | Standing::Unknown))
        .filter_map(|advice| {
            Some(Change {
                setting: advice.setting.clone(),
                from: advice.current.clone(),
                to: advice.advised.clone()?,
            })
        })
        .collect();
    // What an earlier time applied stays in the drop-in, with the value it has by now; what it found
    // is what a revert goes back to.
    for applied in &mut record.settings {
        if let Some(advice) = advice.iter().find(|a| a.setting == applied.setting)
            && let Some(advised) = &advice.advised
        {
            applied.applied.clone_from(advised);
        }
    }
    for change in &changed {
        let known = |applied: &Applied| applied.setting == change.setting;
        if let Some(from) = &change.from
            && !record.settings.iter().any(known)
        {
            record.settings.push(Applied {
                setting: change.setting.clone(),
                old: from.clone(),
                applied: change.to.clone(),
            });
        }
    }
    let lines: Vec<(String, String)> = if host.is_live() {
        let applied = record.settings.iter();
        applied
            .map(|applied| (applied.setting.clone(), applied.applied.clone()))
            .collect()
    } else {
        let changes = changed.iter();
        changes
            .map(|change| (change.setting.clone(), change.to.clone()))
            .collect()
    };
    let mut outcome = Outcome {
        file: host.file.clone(),
        left: advice
            .iter()
            .filter(|advice| advice.status == Standing::ReadOnly)
            .map(|advice| {
                let setting = &advice.setting;
                format!("{setting}: can only be set in the first network namespace")
            })
            .collect(),
        undone_at_boot: undone(host, at_boot, &lines)
            .into_iter()
            .map(|line| format!("{} sets {} to {}", line.place(), line.key, line.value))
            .collect(),
        changed,
    };
    if lines.is_empty() {
        // Nothing to remember, and an empty drop-in would only puzzle.
        outcome.changed.clear();
        return Ok(outcome);
    }
    let text = drop_in(advice, &lines);
    let json = serde_json::to_string_pretty(&record)?;
    Changes::of(host).together(|changes| {
        changes.file(&host.record(), Some(&format!("{json}\n")))?;
        changes.file(&host.drop_in(), Some(&text))?;
        for change in &outcome.changed {
            if let Some(from) = &change.from {
                changes.setting(&change.setting, from, &change.to)?;
            }
        }
        Ok(())
    })?;
    Ok(outcome)
}

/// Takes back what was applied, except for what somebody has changed since.
pub fn revert(host: &Host) -> anyhow::Result<Outcome> {
    let Some(record) = load(host)? else {
        bail!(
            "nothing to revert: there is no {}, so nothing was applied",
            host.record().display()
        );
    };
    let mut host = host.clone();
    // Whatever the command line names.
    host.file.clone_from(&record.file);
    foreign(&host)?;
    let (mut changed, mut left) = (Vec::new(), Vec::new());
    for Applied {
        setting,
        old,
        applied,
    } in record.settings
    {
        match host.read(&setting) {
            None => left.push(format!("{setting}: the kernel has no such setting now")),
            Some(now) if now.value == applied => changed.push(Change {
                setting,
                from: Some(applied),
                to: old,
            }),
            Some(now) if now.value == old => {}
            Some(now) => left.push(format!(
                "{setting}: changed by somebody else since ({applied} was applied, {} is set; it \
                 was {old} before)",
                now.value
            )),
        }
    }
    Changes::of(&host).together(|changes| {
        for change in &changed {
            let from = change.from.as_deref().unwrap_or_default();
            changes.setting(&change.setting, from, &change.to)?;
        }
        changes.file(&host.drop_in(), None)?;
        changes.file(&host.record(), None)
    })?;
    Ok(Outcome {
        file: host.file,
        changed,
        left,
        undone_at_boot: Vec::new(),
    })
}

fn load(host: &Host) -> anyhow::Result<Option<Record>> {
    let path = host.record();
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| {
            format!(
                "{} is damaged: repair it, or remove it and set the old values yourself",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Refuses to touch somebody else's file.
fn foreign(host: &Host) -> anyhow::Result<()> {
    let path = host.drop_in();
    match fs::read_to_string(&path) {
        Ok(text) if text.lines().next() != Some(MARK) => bail!(
            "{} was not written by synguard: move it away, or name another with --file",
            path.display()
        ),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn drop_in(advice: &[Advice], lines: &[(String, String)]) -> String {
    let mut text = format!("{MARK}\n# The old values are in /var/lib/synguard/tune.json.\n");
    for (key, value) in lines {
        let why = advice.iter().find(|advice| advice.setting == *key);
        let why = why.map_or("", |advice| &advice.why);
        // Connections may not be tracked yet when this is read; that is no failure.
        let may_fail = if is_conntrack(key) { "-" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "\n# {why}\n{may_fail}{key} = {value}\n");
    }
    text
}
