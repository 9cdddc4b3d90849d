//! What was applied, and what was there before. Root goes back to what is written here, so it is
//! believed only where nobody but root can have written it: a directory of its own, away from that of
//! the daemon, whose user is not root.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::{
    advice::{Advice, Standing},
    host::Host,
};

/// What was applied, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The drop-in.
    pub file: PathBuf,
    pub settings: Vec<Applied>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub setting: String,
    pub old: String,
    pub applied: String,
}

impl Record {
    /// Of a first time.
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            settings: Vec::new(),
        }
    }

    /// Adds what is about to be set. What an earlier time applied stays, with the value it has by now;
    /// what that found is what a revert goes back to.
    pub fn add(&mut self, advice: &[Advice]) {
        for advice in advice {
            let Some(advised) = &advice.advised else {
                continue;
            };
            let known = |applied: &&mut Applied| applied.setting == advice.setting;
            if let Some(applied) = self.settings.iter_mut().find(known) {
                applied.applied.clone_from(advised);
            } else if let (Standing::Change, Some(current)) = (advice.status, &advice.current) {
                self.settings.push(Applied {
                    setting: advice.setting.clone(),
                    old: current.clone(),
                    applied: advised.clone(),
                });
            }
        }
    }

    /// As it is written down.
    pub fn text(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The place where a record is kept, ours alone as long as this lives.
pub(super) struct Kept<'a> {
    host: &'a Host,
    _locked: File,
}

impl<'a> Kept<'a> {
    /// Where a record can be kept.
    pub fn make(host: &'a Host) -> anyhow::Result<Self> {
        let directory = directory(host)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Self::open(host, &directory)
    }

    /// Where one may be; `None` where none can be.
    pub fn find(host: &'a Host) -> anyhow::Result<Option<Self>> {
        let directory = directory(host)?;
        match fs::symlink_metadata(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::open(host, &directory).map(Some),
        }
    }

    fn open(host: &'a Host, directory: &Path) -> anyhow::Result<Self> {
        let open = || -> io::Result<File> {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
                .open(directory)
        };
        let file = open().with_context(|| format!("cannot open {}", directory.display()))?;
        trust(directory, &file)?;
        file.lock()
            .with_context(|| format!("cannot lock {}", directory.display()))?;
        Ok(Self {
            host,
            _locked: file,
        })
    }

    /// The record, if anything was applied.
    pub fn read(&self) -> anyhow::Result<Option<Record>> {
        let path = self.host.record();
        let unreadable = || format!("cannot read {}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(unreadable),
        };
        trust(&path, &file)?;
        let text = io::read_to_string(file).with_context(unreadable)?;
        serde_json::from_str(&text).map(Some).with_context(|| {
            format!(
                "{} is damaged: repair it, or remove it and set the old values yourself",
                path.display()
            )
        })
    }
}

fn directory(host: &Host) -> anyhow::Result<PathBuf> {
    let record = host.record();
    let parent = record.parent().context("a record is in a directory")?;
    Ok(parent.to_owned())
}

/// Refuses what somebody else could have written than root, or whoever asks.
fn trust(path: &Path, file: &File) -> anyhow::Result<()> {
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if (owner == 0 || owner == rustix::process::geteuid().as_raw()) && mode & 0o022 == 0 {
        return Ok(());
    }
    bail!(
        "{} is not believed: others than root may have written it (owner {owner}, mode {mode:o}); \
         look what it says, then remove it, or give it to root alone",
        path.display()
    )
}
