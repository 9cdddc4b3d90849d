//! Applies the advice and takes it back.
//!
//! The order is what makes an interruption harmless: first the old values are on disk, then the
//! drop-in, and only then the settings change.

use std::{fmt::Write as _, fs, io, path::PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{
    Tuning,
    advice::{Advice, Standing, is_conntrack},
    boot::undone,
    fit::Fit,
    host::{Host, RECORD},
    record::{Applied, Kept, Record},
    undo::Changes,
};

/// First line of a drop-in of ours.
const MARK: &str = "# Written by `synguard tune --apply`; `synguard tune --revert` removes it.";

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
    /// What of the daemon's configuration does not fit the settings as they are now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Fit>,
}

/// Sets what is advised, now and at every boot.
pub fn apply(host: &Host) -> anyhow::Result<Outcome> {
    // First of all: what another is about to change must not be taken for old values.
    let kept = Kept::make(host)?;
    let Tuning {
        settings: advice,
        at_boot,
        ..
    } = Tuning::of(host);
    let mut record = match kept.read()? {
        Some(record) if record.file != host.file => bail!(
            "settings are applied by {} already: give --file {0}, or revert them first",
            record.file.display()
        ),
        Some(record) => record,
        None => Record::new(&host.file),
    };
    foreign(host)?;
    record.add(&advice);

    let mut changed = changes(&advice);
    let lines: Vec<(&str, &str)> = if host.is_live() {
        let applied = record.settings.iter();
        applied
            .map(|applied| (applied.setting.as_str(), applied.applied.as_str()))
            .collect()
    } else {
        let changes = changed.iter();
        changes
            .map(|change| (change.setting.as_str(), change.to.as_str()))
            .collect()
    };
    let undone_at_boot = undone(host, &at_boot, &lines)
        .into_iter()
        .map(|line| format!("{} sets {} to {}", line.place(), line.key, line.value))
        .collect();
    if lines.is_empty() {
        // Nothing to remember, and an empty drop-in would only puzzle.
        changed.clear();
    } else {
        let (text, json) = (drop_in(&advice, &lines), record.text()?);
        Changes::of(host).together(|changes| {
            changes.file(&host.record(), Some(&json))?;
            changes.file(&host.drop_in(), Some(&text))?;
            for change in &changed {
                if let Some(from) = &change.from {
                    changes.setting(&change.setting, from, &change.to)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(Outcome {
        file: host.file.clone(),
        changed,
        left: read_only(&advice),
        undone_at_boot,
        configuration: Fit::of(host, Some(&advice)),
    })
}

/// What applying the advice changes.
fn changes(advice: &[Advice]) -> Vec<Change> {
    let wanted = |advice: &&Advice| matches!(advice.status, Standing::Change | Standing::Unknown);
    let wanted = advice.iter().filter(wanted);
    wanted
        .filter_map(|advice| {
            Some(Change {
                setting: advice.setting.clone(),
                from: advice.current.clone(),
                to: advice.advised.clone()?,
            })
        })
        .collect()
}

/// What cannot be set here.
fn read_only(advice: &[Advice]) -> Vec<String> {
    advice
        .iter()
        .filter(|advice| advice.status == Standing::ReadOnly)
        .map(|advice| {
            let setting = &advice.setting;
            format!("{setting}: can only be set in the first network namespace")
        })
        .collect()
}

/// Takes back what was applied, except for what somebody has changed since.
pub fn revert(host: &Host) -> anyhow::Result<Outcome> {
    let kept = Kept::find(host)?;
    let record = kept.as_ref().map(Kept::read).transpose()?.flatten();
    let Some(record) = record else {
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
    let configuration = Fit::of(&host, None);
    Ok(Outcome {
        file: host.file,
        changed,
        left,
        undone_at_boot: Vec::new(),
        configuration,
    })
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

fn drop_in(advice: &[Advice], lines: &[(&str, &str)]) -> String {
    let mut text = format!("{MARK}\n# The old values are in {RECORD}.\n");
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
