//! Changes of files and settings that happen together or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::host::Host;

/// Changes made so far, and how to unmake them.
pub(super) struct Changes<'a> {
    host: &'a Host,
    made: Vec<Made>,
}

enum Made {
    File {
        path: PathBuf,
        before: Option<Vec<u8>>,
    },
    Setting {
        key: String,
        before: String,
    },
}

impl<'a> Changes<'a> {
    pub(super) fn of(host: &'a Host) -> Self {
        Self {
            host,
            made: Vec::new(),
        }
    }

    /// Runs `change`; where it fails, whatever it did is unmade, and the error says so.
    pub(super) fn together(
        mut self,
        change: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Err(error) = change(&mut self) else {
            return Ok(());
        };
        let some = !self.made.is_empty();
        let failed = self.unmake();
        if failed.is_empty() {
            let what = if some {
                "all else was put back"
            } else {
                "nothing was changed"
            };
            Err(anyhow::anyhow!("{error:#}; {what}"))
        } else {
            let failed = failed.join("; ");
            Err(anyhow::anyhow!(
                "{error:#}; and putting back failed: {failed}"
            ))
        }
    }

    /// Replaces a file, or removes it, in one step.
    pub(super) fn file(&mut self, path: &Path, text: Option<&str>) -> anyhow::Result<()> {
        let before = match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let verb = if text.is_some() { "write" } else { "remove" };
        replace(path, text.map(str::as_bytes))
            .with_context(|| format!("cannot {verb} {}", path.display()))?;
        self.made.push(Made::File {
            path: path.to_owned(),
            before,
        });
        Ok(())
    }

    /// Changes a setting.
    pub(super) fn setting(&mut self, key: &str, before: &str, value: &str) -> anyhow::Result<()> {
        // Before the attempt: a value that the kernel took but bent is put back, too.
        self.made.push(Made::Setting {
            key: key.to_owned(),
            before: before.to_owned(),
        });
        self.host
            .write(key, value)
            .with_context(|| format!("cannot set {key} to {value}"))
    }

    /// Unmakes everything, last first; says what could not be.
    fn unmake(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        while let Some(made) = self.made.pop() {
            match made {
                Made::File { path, before } => {
                    if let Err(error) = replace(&path, before.as_deref()) {
                        failed.push(format!("{}: {error}", path.display()));
                    }
                }
                Made::Setting { key, before } => {
                    let now = self.host.read(&key).map(|reading| reading.value);
                    if now.as_deref() != Some(before.as_str())
                        && let Err(error) = self.host.write(&key, &before)
                    {
                        failed.push(format!("{key}: {error}"));
                    }
                }
            }
        }
        failed
    }
}

/// Makes a file have this content, or not be there, in one step: nobody ever sees half of it.
fn replace(path: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let Some(content) = content else {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let directory = crate::make_parent(path, 0o755)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    // Anybody may read settings.
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
