//! Where a configuration comes from: the file, and beside it the services that were added by
//! command, each in a file of its own in the state directory. All are checked as one.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Overrides, document,
    listed::{self, ListFile},
    mistake::{Error, Mistake, Report},
    read,
};
use crate::model::Config;

/// Where services added by command are, in the state directory.
const SERVICES: &str = "services.d";

/// Services beside those of the main file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// Its file, or where that would be.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
    /// Whether it is only in memory.
    pub temporary: bool,
}

/// Everything a configuration is made of.
#[derive(Clone, Debug)]
pub struct Sources {
    main: Option<(PathBuf, String)>,
    /// The files of prefixes that it names.
    lists: Vec<Arc<ListFile>>,
    additions: Vec<Addition>,
    overrides: Overrides,
    state: Option<PathBuf>,
}

/// Where a service stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the built-in one.
    BuiltIn,
    /// In the main file.
    Main {
        /// The file.
        path: PathBuf,
        /// The line of its name, from 1.
        line: usize,
    },
    /// It was added by command.
    Added {
        /// Its file.
        path: PathBuf,
        /// Whether other services stand there too: somebody has edited it.
        shared: bool,
    },
    /// It was added by command, for this run of the daemon.
    Temporary,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::Main { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Added { path, .. } => write!(f, "{}, added by command", path.display()),
            Self::Temporary => f.write_str("added by command until the daemon ends"),
        }
    }
}

impl Sources {
    /// The main file, if there is one, and what was added by command. The main file is right by
    /// itself.
    pub fn read(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let mut sources = Self::main_alone(path, overrides)?;
        sources.state = sources.config()?.state;
        sources.additions = sources.stored()?;
        Ok(sources)
    }

    /// The main file without what was added by command.
    pub fn main_alone(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let main = path
            .map(|path| Ok::<_, Error>((path.to_owned(), read(path)?)))
            .transpose()?;
        let lists = match &main {
            Some((_, text)) => listed::read_files(text),
            None => Vec::new(),
        };
        Ok(Self {
            main,
            lists,
            additions: Vec::new(),
            overrides: overrides.clone(),
            state: None,
        })
    }

    /// The same files as they are now, and what is only in memory. The state directory stays the
    /// one of the start.
    pub fn read_again(&self) -> Result<Self, Error> {
        let path = self.main.as_ref().map(|(path, _)| path.as_path());
        let mut sources = Self::main_alone(path, &self.overrides)?;
        sources.state.clone_from(&self.state);
        sources.additions = sources.stored()?;
        let temporary = self.additions.iter().filter(|each| each.temporary);
        sources.additions.extend(temporary.cloned());
        Ok(sources)
    }

    /// The main file.
    pub fn main_path(&self) -> Option<&Path> {
        self.main.as_ref().map(|(path, _)| path.as_path())
    }

    /// What is kept from one start to the next is here, if anywhere.
    pub fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }

    /// Where services added by command are kept, if anywhere.
    pub fn directory(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|state| state.join(SERVICES))
    }

    /// The same with one more.
    #[must_use]
    pub fn with(&self, addition: Addition) -> Self {
        let mut sources = self.clone();
        sources.additions.push(addition);
        sources
    }

    /// The same without what stands at `path`.
    #[must_use]
    pub fn without(&self, path: &Path) -> Self {
        let mut sources = self.clone();
        sources.additions.retain(|each| each.path != path);
        sources
    }

    /// All of it as one configuration, if there is no mistake in it.
    pub fn config(&self) -> Result<Config, Error> {
        let main = self.main.as_ref();
        let main = main.map(|(path, text)| (path.as_path(), text.as_str()));
        let mut config = parse(main, &self.lists, &self.additions)?;
        self.overrides.apply(&mut config);
        Ok(config)
    }

    /// Where each service stands, of those in files.
    pub fn origins(&self) -> BTreeMap<String, Origin> {
        let mut origins = BTreeMap::new();
        if let Some((path, text)) = &self.main {
            for (name, line) in document::names(text) {
                let path = path.clone();
                origins.insert(name, Origin::Main { path, line });
            }
        }
        for addition in &self.additions {
            let names = document::names(&addition.text);
            let shared = names.len() > 1;
            for (name, _) in names {
                let origin = if addition.temporary {
                    Origin::Temporary
                } else {
                    let path = addition.path.clone();
                    Origin::Added { path, shared }
                };
                origins.insert(name, origin);
            }
        }
        origins
    }

    /// The addition that has this service.
    pub fn addition_of(&self, name: &str) -> Option<&Addition> {
        self.additions
            .iter()
            .find(|each| document::names(&each.text).iter().any(|(n, _)| n == name))
    }

    /// The files of the directory, by name.
    fn stored(&self) -> Result<Vec<Addition>, Error> {
        let Some(directory) = self.directory() else {
            return Ok(Vec::new());
        };
        let unreadable = |error: io::Error| {
            let text = format!("cannot be read: {error}; it holds services added by command");
            Error::from(Mistake::of_file(&directory, text))
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            // What is being written has another ending.
            if path.extension().is_some_and(|ending| ending == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        let addition = |path: PathBuf| {
            Ok(Addition {
                text: read(&path)?,
                path,
                temporary: false,
            })
        };
        paths.into_iter().map(addition).collect()
    }
}

/// Checks the main file, the built-in configuration without, and the additions against each other.
pub(super) fn parse(
    main: Option<(&Path, &str)>,
    lists: &[Arc<ListFile>],
    additions: &[Addition],
) -> Result<Config, Error> {
    // An empty file is the built-in configuration.
    let (path, text) = main.unwrap_or((Path::new(""), ""));
    let mut reports = vec![Report::new(path, text)];
    let (mut config, defaults, mut found, in_lists) =
        document::config((path, text), lists, &mut reports[0]);
    for (n, addition) in additions.iter().enumerate() {
        let mut report = Report::new(&addition.path, &addition.text);
        found.extend(document::addition(
            n + 1,
            &addition.text,
            &defaults,
            &mut report,
        ));
        reports.push(report);
    }
    document::check_together(&found, &mut reports);
    config.services = found.into_iter().map(|found| found.service).collect();
    let reports = reports.into_iter().flat_map(Report::mistakes);
    let mistakes = reports.chain(in_lists).collect();
    match Error::of(mistakes, path) {
        Some(error) => Err(error),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn lines(error: &Error) -> Vec<String> {
        error.mistakes().map(ToString::to_string).collect()
    }

    #[test]
    fn files_are_checked_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let [main, web, mail] = ["main.toml", "services.d/web.toml", "services.d/mail.toml"]
            .map(|name| directory.join(name));
        let state = format!("[daemon]\nstate = {directory:?}\n");
        write(
            &main,
            &format!("{state}[defaults]\nmode = \"observe\"\n[[service]]\nname = \"rest\"\n"),
        );
        write(&web, "[[service]]\nname = \"web\"\nports = [80]\n");
        write(
            &mail,
            "[[service]]\nname = \"mail\"\nports = [25]\nmode = \"always\"\n",
        );
        write(&directory.join("services.d/other.toml.new"), "no service");

        let overrides = Overrides::default();
        let sources = Sources::read(Some(&main), &overrides).unwrap();
        let config = sources.config().unwrap();
        let services: Vec<_> = config
            .services
            .iter()
            .map(|service| (service.name.as_str(), service.mode))
            .collect();
        let (observe, always) = (Mode::Observe, Mode::Always);
        assert_eq!(
            services,
            [("rest", observe), ("mail", always), ("web", observe)],
            "[defaults] hold for all"
        );
        let origins = sources.origins();
        let line = |name: &str| origins[name].to_string();
        assert_eq!(line("rest"), format!("{}, line 6", main.display()));
        assert_eq!(line("web"), format!("{}, added by command", web.display()));

        write(
            &mail,
            "[[service]]\nname = \"mail\"\nports = [80]\nhihg = 1\n[[service]]\nname = \"rest\"\n",
        );
        let error = sources.read_again().unwrap().config().unwrap_err();
        let mail_shown = mail.display();
        assert_eq!(
            lines(&error),
            [
                format!(
                    "{mail_shown}:4:1: unknown key `hihg` in [[service]]; did you mean `high`?"
                ),
                format!(
                    "{mail_shown}:5:1: services `rest` and `rest` both cover the interface's \
                     addresses, all ports; give one of them other ports or a longer prefix"
                ),
                format!(
                    "{mail_shown}:6:8: another service is called `rest`; give each its own name"
                ),
                format!(
                    "{}:1:1: services `mail` and `web` both cover the interface's addresses, port \
                     80; give one of them other ports or a longer prefix",
                    web.display()
                ),
            ]
        );
        write(&mail, "[daemon]\n");
        let error = sources.read_again().unwrap().config().unwrap_err();
        assert_eq!(
            lines(&error),
            [format!(
                "{mail_shown}:1:2: unknown key `daemon` in a file of services; its keys are service"
            )]
        );
    }

    #[test]
    fn without_a_file_the_built_in_service_stays_beside_those_added() {
        let overrides = Overrides::default();
        let sources = Sources::main_alone(None, &overrides).unwrap();
        assert_eq!(sources.config().unwrap(), super::super::built_in());
        let web = Addition {
            path: "web".into(),
            text: "[[service]]\nname = \"web\"\nports = [80]\n".into(),
            temporary: true,
        };
        let both = sources.with(web.clone());
        let names = both.config().unwrap().services.into_iter();
        let names: Vec<_> = names.map(|service| service.name).collect();
        assert_eq!(names, ["default", "web"]);
        assert_eq!(both.origins()["web"], Origin::Temporary);
        assert_eq!(both.addition_of("web"), Some(&web));
        let without = both.without(&web.path);
        assert_eq!(without.config().unwrap().services.len(), 1);
    }
}
