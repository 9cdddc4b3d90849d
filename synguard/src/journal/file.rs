//! The journal's file: a JSON object a line, and one older file beside it. Both are bounded.
//!
//! A thread of its own writes, as a disk may hang for longer than the run loop can be missed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing::warn;

use super::Event;

/// The file in the state directory.
pub const NAME: &str = "events.jsonl";
/// What it is called once it is full; the one before is gone then.
pub const OLD_NAME: &str = "events.jsonl.1";
/// Size at which it is full.
const LIMIT: u64 = 1 << 20;
/// Events that may wait for the disk.
const QUEUE: usize = 1024;
/// What the disk gets for the last of them.
const PATIENCE: Duration = Duration::from_secs(2);

/// The events in both files of `directory`, oldest first. Lines that are no events are left out:
/// a crash may have cut one short.
pub(super) fn read(directory: &Path) -> Vec<Event> {
    [OLD_NAME, NAME]
        .into_iter()
        .filter_map(|name| tail(&directory.join(name)).ok())
        .flat_map(|bytes| {
            let lines = bytes.split(|byte| *byte == b'\n');
            lines
                .filter_map(|line| serde_json::from_slice(line).ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The end of a file, which others may have made longer than it should be.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2 * LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(2 * LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file that is written to.
struct Writer {
    directory: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    /// Whether the last line may be incomplete.
    torn: bool,
}

impl Writer {
    fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(directory.join(NAME))?;
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length,
            limit,
            torn: last != [b'\n'],
        })
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        if self.length >= self.limit {
            let [full, old] = [NAME, OLD_NAME].map(|name| self.directory.join(name));
            fs::rename(full, old)?;
            *self = Self::open(&self.directory, self.limit)?;
        }
        let mut line = Vec::new();
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, event)?;
        line.push(b'\n');
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// The way to the thread that writes. When it is dropped everything is written, unless the disk hangs.
#[derive(Debug)]
pub(super) struct Pen {
    /// Taken when no more are to come.
    events: Option<SyncSender<Arc<Event>>>,
    /// Disconnected once everything is written.
    done: Receiver<()>,
}

impl Pen {
    /// Starts the thread, if the file in `directory` can be written.
    pub(super) fn take_up(directory: &Path) -> io::Result<Self> {
        let mut writer = Writer::open(directory, LIMIT)?;
        let (events, waiting) = sync_channel::<Arc<Event>>(QUEUE);
        let (at_work, done) = channel();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                let _at_work = at_work;
                let mut failed = false;
                for event in waiting {
                    match writer.append(&event) {
                        Ok(()) => failed = false,
                        // Once is enough: it will fail for the next one too.
                        Err(error) if !failed => {
                            failed = true;
                            let path = writer.directory.join(NAME);
                            warn!(
                                "events are not kept in {} any more: {error}",
                                path.display()
                            );
                        }
                        Err(_) => {}
                    }
                }
            })?;
        Ok(Self {
            events: Some(events),
            done,
        })
    }

    /// Has an event written, unless too many wait: it is in memory and in the log all the same.
    pub(super) fn write(&self, event: Arc<Event>) {
        if let Some(events) = &self.events {
            drop(events.try_send(event));
        }
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        self.events = None;
        if self.done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            warn!("the last events are not written yet: the disk is slow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Timestamp, What};

    fn event(seq: u64) -> Event {
        let what = What::ServiceAdded {
            service: "web".into(),
        };
        what.event(seq, Timestamp::from_millis(seq))
    }

    fn numbers(directory: &Path) -> Vec<u64> {
        read(directory).iter().map(|event| event.seq).collect()
    }

    #[test]
    fn a_line_cut_short_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made");
        let mut writer = Writer::open(&directory, LIMIT).unwrap();
        writer.append(&event(1)).unwrap();
        let path = directory.join(NAME);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole, &whole[..20]].concat()).unwrap();
        let mut writer = Writer::open(&directory, LIMIT).unwrap();
        writer.append(&event(3)).unwrap();
        writer.append(&event(4)).unwrap();
        assert_eq!(numbers(&directory), [1, 3, 4]);
    }

    #[test]
    fn a_full_file_makes_room_for_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let mut writer = Writer::open(directory, 1000).unwrap();
        for seq in 1..=100 {
            writer.append(&event(seq)).unwrap();
        }
        for name in [NAME, OLD_NAME] {
            let length = fs::metadata(directory.join(name)).unwrap().len();
            assert!((1..1300).contains(&length), "{name}: {length}");
        }
        let kept = numbers(directory);
        assert_eq!(kept.last(), Some(&100));
        assert!(kept.len() >= 5, "{kept:?}");
        assert!(
            kept.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{kept:?}"
        );
    }

    #[test]
    fn of_a_file_that_is_too_long_the_end_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let mut long = vec![b'x'; 3 << 20];
        long.push(b'\n');
        fs::write(&path, long).unwrap();
        Writer::open(directory.path(), u64::MAX)
            .and_then(|mut writer| writer.append(&event(5)))
            .unwrap();
        assert_eq!(numbers(directory.path()), [5]);
    }
}
