//! What the tuners know, in a file of the state directory: written after every full hour and when the
//! daemon stops, whole or not at all.
//!
//! A service takes 840 hours of five numbers and 60 minutes of four at most: some 20 kB, and in no
//! case more than 64. A file that cannot be understood is set aside, with a warning, and everything is
//! learned anew.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tracing::warn;

use super::{
    Tuner,
    history::{HOURS, History, Hour},
    minute::Minute,
};

/// The file.
const NAME: &str = "tuning.json";
/// What a file is called that cannot be understood.
const ASIDE: &str = "tuning.json.bad";
/// The layout.
const VERSION: u32 = 1;
/// No file of ours is larger: 1023 services of 64 kB.
const LIMIT: u64 = 64 << 20;
/// Minutes of an hour.
const MINUTES: usize = 60;
/// What a disk gets for the last of them.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    services: BTreeMap<String, Known>,
}

/// Of a service, in rows: a name before every number would make the file five times as long.
#[derive(Serialize, Deserialize)]
struct Known {
    /// `at`, `peak`, `syns`, `most_syns`, `dwell_ms`.
    hours: Vec<[u32; 5]>,
    /// `at`, `peak`, `syns`, `dwell_ms`.
    minutes: Vec<(u64, u32, u32, u32)>,
}

/// The way to the file.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    due: bool,
    /// Tells what came of the file that is being written.
    writing: Option<Receiver<io::Result<()>>>,
    failed: bool,
}

impl Store {
    /// In this directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            due: false,
            writing: None,
            failed: false,
        }
    }

    /// There is something new.
    pub fn is_due(&mut self) {
        self.due = true;
    }

    /// Has a thread write it, as a disk may hang for longer than the run loop can be missed.
    pub fn write_if_due(&mut self, tuners: &BTreeMap<String, Tuner>) {
        match self.writing.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(result)) => {
                self.writing = None;
                self.report(result);
            }
            Some(Err(TryRecvError::Disconnected)) => self.writing = None,
            None => {}
        }
        if std::mem::take(&mut self.due) {
            self.write(tuners);
        }
    }

    /// Writes it and waits until it is written, but not for a disk that hangs.
    pub fn close(mut self, tuners: &BTreeMap<String, Tuner>) {
        self.write(tuners);
        let Some(writing) = self.writing.take() else {
            return;
        };
        match writing.recv_timeout(PATIENCE) {
            Ok(result) => self.report(result),
            Err(RecvTimeoutError::Timeout) => {
                warn!("what is normal is not written yet: the disk is slow");
            }
            Err(RecvTimeoutError::Disconnected) => {}
        }
    }

    fn write(&mut self, tuners: &BTreeMap<String, Tuner>) {
        let text = match serde_json::to_vec(&document(tuners)) {
            Ok(text) => text,
            Err(error) => return self.report(Err(error.into())),
        };
        let (result, writing) = channel();
        let directory = self.directory.clone();
        let spawned = thread::Builder::new()
            .name("tuning".into())
            .spawn(move || drop(result.send(replace(&directory, &text))));
        match spawned {
            Ok(_) => self.writing = Some(writing),
            Err(error) => self.report(Err(error)),
        }
    }

    /// Once is enough: what fails now will fail in an hour too.
    fn report(&mut self, result: io::Result<()>) {
        match result {
            Err(error) if !self.failed => {
                self.failed = true;
                let path = self.directory.join(NAME);
                warn!(
                    "what is normal is not kept for the next start: cannot write {}: {error}",
                    path.display()
                );
            }
            result => self.failed = result.is_err(),
        }
    }
}

fn replace(directory: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(NAME))?;
    Ok(())
}

/// What an earlier daemon knew; nothing where there is no file, or none of ours.
pub fn read(directory: &Path) -> BTreeMap<String, Tuner> {
    let path = directory.join(NAME);
    let text = match open(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            warn!(
                "what is normal is learned anew: cannot read {}: {error}",
                path.display()
            );
            return BTreeMap::new();
        }
    };
    parse(&text).unwrap_or_else(|why| {
        let aside = directory.join(ASIDE);
        let told = match fs::rename(&path, &aside) {
            Ok(()) => format!("set aside as {}", aside.display()),
            Err(error) => format!("which cannot be set aside: {error}"),
        };
        warn!(
            "what is normal is learned anew: {} {why}, {told}",
            path.display()
        );
        BTreeMap::new()
    })
}

fn open(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?
        .take(LIMIT + 1)
        .read_to_end(&mut text)?;
    Ok(text)
}

fn document(tuners: &BTreeMap<String, Tuner>) -> Document {
    let services = tuners.iter().map(|(name, tuner)| {
        let (history, minutes) = tuner.known();
        let hour = |hour: &Hour| [hour.at, hour.peak, hour.syns, hour.most_syns, hour.dwell_ms];
        let minute = |minute: &Minute| (minute.at, minute.peak, minute.syns, minute.dwell_ms);
        let known = Known {
            hours: history.hours().map(hour).collect(),
            minutes: minutes.iter().map(minute).collect(),
        };
        (name.clone(), known)
    });
    Document {
        version: VERSION,
        services: services.collect(),
    }
}

fn parse(text: &[u8]) -> Result<BTreeMap<String, Tuner>, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }

    if text.len() as u64 > LIMIT {
        return Err(format!("has more than {LIMIT} bytes"));
    }
    let wrong = |error: serde_json::Error| format!("is damaged ({error})");
    let Version { version } = serde_json::from_slice(text).map_err(wrong)?;
    if version != VERSION {
        return Err(format!("has layout {version} instead of {VERSION}"));
    }
    let document: Document = serde_json::from_slice(text).map_err(wrong)?;
    let tuner = |known: Known| {
        let mut history = History::default();
        for [at, peak, syns, most_syns, dwell_ms] in known.hours.into_iter().take(HOURS) {
            history.push(Hour {
                at,
                peak,
                syns,
                most_syns,
                dwell_ms,
            });
        }
        let minute = |(at, peak, syns, dwell_ms)| Minute {
            at,
            peak,
            syns,
            dwell_ms,
        };
        let minutes = known.minutes.into_iter().take(MINUTES).map(minute);
        Tuner::resumed(history, minutes.collect())
    };
    let services = document.services.into_iter();
    Ok(services.map(|(name, known)| (name, tuner(known))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuners() -> BTreeMap<String, Tuner> {
        let mut history = History::default();
        for at in 0..1000 {
            history.push(Hour {
                at: 480_000 + at,
                peak: 4_000_000_000,
                syns: 4_000_000_000,
                most_syns: 4_000_000_000,
                dwell_ms: 4_000_000_000,
            });
        }
        let minute = |at: u32| Minute {
            at: 29_000_000 + u64::from(at),
            peak: 4_000_000_000,
            syns: 4_000_000_000,
            dwell_ms: 4_000_000_000,
        };
        let tuner = Tuner::resumed(history, (0..60).map(minute).collect());
        [("web".to_owned(), tuner)].into()
    }

    fn hours(tuners: &BTreeMap<String, Tuner>) -> Vec<Hour> {
        let tuner = tuners.get("web").map(|tuner| tuner.known().0);
        tuner
            .into_iter()
            .flat_map(History::hours)
            .copied()
            .collect()
    }

    #[test]
    fn what_is_written_is_read_again_and_no_larger_than_told() {
        let directory = tempfile::tempdir().unwrap();
        let written = tuners();
        Store::new(directory.path()).close(&written);
        let read = read(directory.path());
        assert_eq!(hours(&read), hours(&written));
        assert_eq!(read["web"].known().1, written["web"].known().1);
        let length = fs::metadata(directory.path().join(NAME)).unwrap().len();
        assert!(length < 64 << 10, "{length} bytes at worst");
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1, "nothing temporary stays");
    }

    #[test]
    fn it_is_written_while_the_daemon_runs_when_it_is_due() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::new(directory.path());
        store.write_if_due(&tuners());
        assert!(store.writing.is_none());
        store.is_due();
        store.write_if_due(&tuners());
        let writing = store.writing.take().unwrap();
        writing
            .recv_timeout(Duration::from_secs(20))
            .unwrap()
            .unwrap();
        assert_eq!(hours(&read(directory.path())), hours(&tuners()));
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        assert!(read(directory.path()).is_empty());
        let whole = serde_json::to_vec(&document(&tuners())).unwrap();
        let cut = whole[..whole.len() / 2].to_vec();
        for text in [
            cut,
            b"\x00\xff".to_vec(),
            br#"{"version":2,"anything":[]}"#.to_vec(),
            br#"{"version":1,"services":{"web":{"hours":[[1,2,3]],"minutes":[]}}}"#.to_vec(),
        ] {
            fs::write(&path, &text).unwrap();
            assert!(read(directory.path()).is_empty());
            assert!(!path.exists());
            assert_eq!(fs::read(directory.path().join(ASIDE)).unwrap(), text);
        }
        let error = |text: &[u8]| parse(text).unwrap_err();
        assert_eq!(error(b"{\"version\":7}"), "has layout 7 instead of 1");
    }

    #[test]
    fn a_directory_that_is_not_there_is_no_reason_to_fail() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        assert!(read(&gone).is_empty());
        Store::new(&gone).close(&tuners());
        assert!(!gone.exists());
    }
}
