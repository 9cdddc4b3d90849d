//! The journal: everything that happens to the daemon and is worth knowing later.
//!
//! All of it is said through [`Journal::note`], which also writes the line of the log, so that
//! log and journal never differ. The newest events are in memory ([`ring`]); all but the routine
//! ones are in a file of the state directory too ([`file`]), which a new daemon reads, so that
//! numbers go on. [`kinds`] is the list of what can happen; what is new
//! there is everywhere.

mod details;
mod event;
mod file;
mod kinds;
mod ring;
mod time;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

pub use details::{Drained, End, Totals};
pub use event::{Event, Level};
pub use file::{NAME as FILE_NAME, OLD_NAME as OLD_FILE_NAME};
pub use kinds::{Kind, What};
pub use ring::Query;
pub use time::Timestamp;

use self::{file::Pen, ring::Ring};

/// Routine events are in no file, but who follows them knows their numbers, which must not be used
/// again. Since the last event in the file there were so many at most, and one for each second.
const ROUTINE: u64 = 10;

/// A handle of the journal; all its clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The number of the last event, for those who wait for the next.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    noted: BTreeMap<Kind, u64>,
    pen: Option<Pen>,
}

impl Journal {
    /// A journal that lives as long as the process.
    pub fn in_memory() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            last: watch::Sender::new(0),
        }))
    }

    /// The journal in a state directory. Where it cannot be written to, that is said once, and the
    /// journal lives as long as the process.
    pub fn open(directory: &Path) -> Self {
        let journal = Self::in_memory();
        {
            let mut state = journal.state();
            let kept = file::read(directory);
            let last = kept.last().map(|event| event.time);
            for event in kept {
                state.ring.push(Arc::new(event));
            }
            if let Some(last) = last {
                let since = Timestamp::now().seconds_since(last);
                state.ring.skip(since.saturating_add(ROUTINE));
            }
            match Pen::take_up(directory) {
                Ok(pen) => state.pen = Some(pen),
                Err(error) => warn!(
                    "events are not kept for the next start: cannot write {}: {error}",
                    directory.join(FILE_NAME).display()
                ),
            }
            journal.0.last.send_replace(state.ring.last());
        }
        journal
    }

    /// Says what happened: here, in the log and in the file.
    pub fn note(&self, what: What) {
        let event = {
            let mut state = self.state();
            let event = Arc::new(what.event(state.ring.last() + 1, Timestamp::now()));
            *state.noted.entry(what.kind()).or_default() += 1;
            state.ring.push(Arc::clone(&event));
            if let Some(pen) = state.pen.as_ref().filter(|_| !event.is_routine()) {
                pen.write(Arc::clone(&event));
            }
            self.0.last.send_replace(event.seq);
            event
        };
        log(&event);
    }

    /// How often each kind of event was noted since the start.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let state = self.state();
        let count = |kind: &Kind| state.noted.get(kind).copied().unwrap_or(0);
        Kind::ALL
            .iter()
            .map(|kind| (kind.label().to_owned(), count(kind)))
            .collect()
    }

    /// The events that are asked for, oldest first.
    pub fn select(&self, query: &Query) -> Vec<Arc<Event>> {
        self.state().ring.select(query)
    }

    /// The last event of this kind about this service, as long as it is remembered.
    pub fn latest(&self, kind: Kind, service: &str) -> Option<Arc<Event>> {
        let query = Query {
            kind: Some(kind),
            service: Some(service.to_owned()),
            limit: Some(1),
            ..Query::default()
        };
        self.select(&query).pop()
    }

    /// The events that are asked for, and then those to come.
    pub fn follow(&self, query: Query) -> Follower {
        Follower {
            last: self.0.last.subscribe(),
            journal: self.clone(),
            query,
            begun: false,
        }
    }

    /// Waits until everything is written; what is noted afterwards is not. The last handle does so
    /// too when it is dropped.
    pub fn close(&self) {
        let pen = self.state().pen.take();
        // Others may note while we wait.
        drop(pen);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done where it could panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for events. One that is too slow misses the oldest, and can tell by their numbers.
#[derive(Debug)]
pub struct Follower {
    journal: Journal,
    query: Query,
    last: watch::Receiver<u64>,
    begun: bool,
}

impl Follower {
    /// The events since the last call, at least one; at the first those there are, if any.
    pub async fn next(&mut self) -> Vec<Arc<Event>> {
        loop {
            let last = *self.last.borrow_and_update();
            let events = self.journal.select(&self.query);
            // What was noted in between is met again next time unless it was selected.
            let selected = events.last().map_or(0, |event| event.seq);
            self.query.after = Some(selected.max(last));
            let first = !std::mem::replace(&mut self.begun, true);
            if first {
                self.query.limit = None;
            }
            if first || !events.is_empty() {
                return events;
            }
            if self.last.changed().await.is_err() {
                // Not as long as we have the journal ourselves.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The level of a line is part of its code.
fn log(event: &Event) {
    macro_rules! line {
        ($macro:ident) => {
            $macro!(
                event = event.seq,
                service = event.service,
                interface = event.interface,
                "{}",
                event.message
            )
        };
    }
    match event.level {
        Level::Debug => line!(debug),
        Level::Info => line!(info),
        Level::Warn => line!(warn),
        Level::Error => line!(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn added(name: &str) -> What {
        What::ServiceAdded {
            service: name.into(),
        }
    }

    fn names(events: &[Arc<Event>]) -> Vec<(u64, String)> {
        let name = |event: &Arc<Event>| (event.seq, event.service.clone().unwrap());
        events.iter().map(name).collect()
    }

    #[test]
    fn events_survive_the_daemon_and_their_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let journal = Journal::open(directory.path());
            assert_eq!(journal.select(&Query::default()).len(), round);
            journal.note(What::KeyRotated {
                epoch: 5,
                written: 1,
            });
            journal.note(added("web"));
            journal.close();
            assert_eq!(journal.counts()["service_added"], 1);
            assert_eq!(journal.counts()["attack_began"], 0);
        }
        let journal = Journal::open(directory.path());
        let seqs = names(&journal.select(&Query::default()));
        let seqs: Vec<_> = seqs.into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(seqs.len(), 3, "routine events are not in the file");
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    }

    #[test]
    fn a_follower_of_routine_events_misses_nothing_of_the_next_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path());
        journal.note(added("web"));
        for epoch in 0..5 {
            journal.note(What::KeyRotated { epoch, written: 1 });
        }
        let all = Query {
            routine: true,
            ..Query::default()
        };
        let last = journal.select(&all).pop().unwrap().seq;
        // Killed: only what is not routine was kept.
        journal.close();
        let journal = Journal::open(directory.path());
        journal.note(added("mail"));
        let next = journal.select(&Query {
            after: Some(last),
            ..all
        });
        assert_eq!(next.len(), 1, "{next:?}");
        assert_eq!(next[0].service.as_deref(), Some("mail"));
    }

    #[test]
    fn a_state_directory_that_cannot_be_written_costs_only_the_history() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a-file");
        std::fs::write(&file, "").unwrap();
        let journal = Journal::open(&file);
        journal.note(added("web"));
        assert_eq!(journal.select(&Query::default()).len(), 1);
        journal.close();
    }

    #[tokio::test]
    async fn a_follower_meets_every_event_once() {
        let journal = Journal::in_memory();
        for name in ["a", "b", "c"] {
            journal.note(added(name));
        }
        let mut follower = journal.follow(Query {
            limit: Some(2),
            ..Query::default()
        });
        assert_eq!(
            names(&follower.next().await),
            [(2, "b".into()), (3, "c".into())]
        );
        let soon = Duration::from_millis(50);
        assert!(timeout(soon, follower.next()).await.is_err());
        journal.note(added("d"));
        journal.note(What::KeyRotated {
            epoch: 1,
            written: 1,
        });
        assert_eq!(names(&follower.next().await), [(4, "d".into())]);
        assert!(timeout(soon, follower.next()).await.is_err());
        let noted = tokio::spawn({
            let journal = journal.clone();
            async move {
                for n in 0..100 {
                    journal.note(added(&n.to_string()));
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut met = Vec::new();
        while met.len() < 100 {
            met.extend(timeout(10 * soon, follower.next()).await.unwrap());
        }
        noted.await.unwrap();
        let seqs: Vec<_> = met.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (6..106).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_follower_of_a_quiet_journal_is_told_so_at_once() {
        let journal = Journal::in_memory();
        assert!(journal.follow(Query::default()).next().await.is_empty());
    }
}
