//! The files of services that were added by command.
//!
//! A file is changed, durably, before the change is applied, and the caller is told last. So whoever
//! is told of a change finds it after a restart, and a crash in between leaves the old or the new.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tempfile::NamedTempFile;
use tracing::warn;

use crate::config::Addition;

/// A change that the next start would see, and that can still be taken back.
#[derive(Debug)]
#[must_use = "it stays or is taken back once it is known whether it can be applied"]
pub enum Change {
    /// Of no file.
    None,
    /// A file is new.
    Added(PathBuf),
    /// A file is gone.
    Removed {
        /// Where it was.
        path: PathBuf,
        /// Where it is until all is well: under a name that is not read.
        aside: PathBuf,
    },
}

impl Change {
    /// Writes the file of a service into `directory`.
    pub fn add(directory: &Path, addition: &Addition) -> anyhow::Result<Self> {
        let path = &addition.path;
        let failed = || format!("cannot write {}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(failed)?;
        let mut file = NamedTempFile::new_in(directory).with_context(failed)?;
        file.write_all(addition.text.as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .with_context(failed)?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "{} exists, and was not there when the daemon read it: `synguard reload` reads it",
                path.display()
            ),
            Err(error) => return Err(error.error).with_context(failed),
        }
        Self::Added(path.clone()).synced().with_context(failed)
    }

    /// Takes the file of a service away; one that is gone already is as good.
    pub fn remove(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot remove {}", path.display());
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".removed");
        let aside = path.with_file_name(name);
        match fs::rename(path, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::None),
            Err(error) => return Err(error).with_context(failed),
        }
        let path = path.to_owned();
        Self::Removed { path, aside }.synced().with_context(failed)
    }

    /// Ends it by whether what it is about could be applied.
    pub fn settle(self, applied: anyhow::Result<()>) -> anyhow::Result<()> {
        let Err(error) = applied else {
            self.keep();
            return Ok(());
        };
        match self.undo() {
            Ok(()) => Err(error),
            Err(undo) => Err(error.context(format!("cannot take the file back ({undo})"))),
        }
    }

    fn keep(self) {
        if let Self::Removed { aside, .. } = self
            && let Err(error) = fs::remove_file(&aside)
        {
            warn!("{} is left over: {error}", aside.display());
        }
    }

    fn undo(self) -> io::Result<()> {
        match &self {
            Self::None => return Ok(()),
            Self::Added(path) => fs::remove_file(path)?,
            Self::Removed { path, aside } => fs::rename(aside, path)?,
        }
        self.sync()
    }

    /// Itself, durable, or nothing.
    fn synced(self) -> io::Result<Self> {
        match self.sync() {
            Ok(()) => Ok(self),
            Err(error) => {
                // That it failed is said; what is left of it is the smaller trouble.
                self.undo().ok();
                Err(error)
            }
        }
    }

    /// Makes names as durable as contents.
    fn sync(&self) -> io::Result<()> {
        let (Self::Added(path) | Self::Removed { path, .. }) = self else {
            return Ok(());
        };
        path.parent()
            .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::config::{Overrides, Sources};

    /// A state directory, and the services that a daemon which starts now would have.
    struct State(tempfile::TempDir);

    impl State {
        fn new() -> Self {
            let state = Self(tempfile::tempdir().unwrap());
            let main = format!(
                "[daemon]\nstate = {:?}\n[[service]]\nname = \"rest\"\n",
                state.0.path()
            );
            fs::write(state.main(), main).unwrap();
            state
        }

        fn main(&self) -> PathBuf {
            self.0.path().join("main.toml")
        }

        fn directory(&self) -> PathBuf {
            self.0.path().join("services.d")
        }

        fn web(&self) -> Addition {
            Addition {
                path: self.directory().join("web.toml"),
                text: "[[service]]\nname = \"web\"\nports = [80]\n".into(),
                temporary: false,
            }
        }

        fn add(&self) -> anyhow::Result<Change> {
            Change::add(&self.directory(), &self.web())
        }

        fn remove(&self) -> Change {
            Change::remove(&self.web().path).unwrap()
        }

        fn after_a_restart(&self) -> Vec<String> {
            let sources = Sources::read(Some(&self.main()), &Overrides::default()).unwrap();
            let services = sources.config().unwrap().services.into_iter();
            services.map(|service| service.name).collect()
        }

        fn files(&self) -> usize {
            fs::read_dir(self.directory()).unwrap().count()
        }
    }

    #[test]
    fn what_is_applied_stays() {
        let state = State::new();
        let change = state.add().unwrap();
        assert_eq!(
            state.after_a_restart(),
            ["rest", "web"],
            "before it is told"
        );
        change.settle(Ok(())).unwrap();
        assert_eq!(state.after_a_restart(), ["rest", "web"]);
        let change = state.remove();
        assert_eq!(state.after_a_restart(), ["rest"], "before it is told");
        change.settle(Ok(())).unwrap();
        assert_eq!(state.after_a_restart(), ["rest"]);
        assert_eq!(state.files(), 0);
    }

    #[test]
    fn what_cannot_be_applied_is_taken_back() {
        let state = State::new();
        let settle = |change: Change| {
            let error = change.settle(Err(anyhow!("no room"))).unwrap_err();
            assert_eq!(format!("{error:#}"), "no room");
        };
        settle(state.add().unwrap());
        assert_eq!(state.after_a_restart(), ["rest"]);
        assert_eq!(state.files(), 0);
        state.add().unwrap().settle(Ok(())).unwrap();
        settle(state.remove());
        assert_eq!(state.after_a_restart(), ["rest", "web"]);
        let text = fs::read_to_string(state.web().path).unwrap();
        assert_eq!(text, state.web().text);
    }

    #[test]
    fn a_crash_leaves_nothing_that_is_in_the_way() {
        let state = State::new();
        // A crash is a change that is never settled.
        let _ = state.add().unwrap();
        let _ = state.remove();
        assert_eq!(state.after_a_restart(), ["rest"]);
        state.add().unwrap().settle(Ok(())).unwrap();
        assert_eq!(state.after_a_restart(), ["rest", "web"]);
        state.remove().settle(Ok(())).unwrap();
        assert_eq!((state.after_a_restart().len(), state.files()), (1, 0));
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let state = State::new();
        let path = state.web().path;
        fs::create_dir(state.directory()).unwrap();
        fs::write(&path, "precious").unwrap();
        let error = state.add().unwrap_err().to_string();
        assert!(error.contains("`synguard reload` reads it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(state.files(), 1);
        fs::remove_file(&path).unwrap();
        assert!(matches!(state.remove(), Change::None));
    }
}
