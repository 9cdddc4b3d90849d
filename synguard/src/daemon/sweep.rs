//! Looks after half-open connections, on a thread of its own.
//!
//! Every second or so the thread walks the half-open table, measures how old the connections are, and
//! sees to those whose time is over ([`super::patience`]): the server is told by a RST in the client's
//! name, which `synguard_in` lets through and takes out of the count as if it had come by the wire; or
//! the entry is merely removed, and subtracted from its service's count by whoever really removed it.
//! The oldest go first, and no more than [`RELEASES`] of them in a pass. A pass is followed by a pause a
//! hundred times as long as it kept the CPU.

use std::{
    collections::{BTreeMap, BinaryHeap},
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use synguard_common::abi::{HalfOpen, STATE_GUARDED, Tuple, map};

use super::{
    clock,
    inject::Injector,
    patience::{self, Ages, Fate, Patience},
    worker::{Bell, Complaint, Worker},
};
use crate::dataplane::{
    Books, Dataplane, States, frames,
    ledger::Count,
    load::SERVICE_SLOTS,
    maps::{HalfOpenBatches, HalfOpenMap},
    wire::Wire,
};

/// Time between passes, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A pass is followed by a pause of this many times the CPU time it took.
const REST: u32 = 100;
/// The pause between two batches, in which other threads get their turn.
const BREATH: Duration = Duration::from_millis(1);
/// Connections released in a pass, at most: some 20 µs each.
const RELEASES: usize = 1000;

/// What the thread and the daemon share.
struct Shared {
    /// By service number.
    patience: RwLock<Vec<Patience>>,
    /// Low watermarks by service number.
    low: RwLock<Vec<u32>>,
    books: Arc<Books>,
    entries: AtomicU64,
    ages: Mutex<BTreeMap<u16, Ages>>,
    passes: AtomicU64,
}

/// The thread; stopped on drop.
pub struct Sweeper {
    shared: Arc<Shared>,
    _worker: Worker,
}

/// What a service wants.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// The number of the service.
    pub number: u16,
    /// What its half-open connections can expect.
    pub patience: Patience,
    /// Its low watermark.
    pub low: u32,
}

impl Sweeper {
    /// Starts it.
    pub fn start(dataplane: &Dataplane, injector: Injector) -> anyhow::Result<Self> {
        let maps = &dataplane.maps;
        let shared = Arc::new(Shared {
            patience: RwLock::new(vec![Patience::default(); SERVICE_SLOTS as usize]),
            low: RwLock::new(vec![0; SERVICE_SLOTS as usize]),
            books: Arc::clone(&maps.books),
            entries: AtomicU64::new(0),
            ages: Mutex::default(),
            passes: AtomicU64::new(0),
        });
        let (table, batches) = maps.open_half_open().context("cannot open map HALF_OPEN")?;
        let mut sweep = Sweep {
            table,
            batches,
            capacity: maps.capacity(map::HALF_OPEN).unwrap_or(0),
            states: Arc::clone(&maps.states),
            injector,
            shared: Arc::clone(&shared),
            walking: Complaint::default(),
            releasing: Complaint::default(),
        };
        let worker = Worker::start("sweep", PAUSE, move |bell| {
            let start = clock::thread_cpu();
            sweep.pass(bell);
            let took = clock::thread_cpu().saturating_sub(start);
            (took * REST).clamp(PAUSE, LONGEST_PAUSE)
        })
        .context("cannot start the sweep of half-open connections")?;
        Ok(Self {
            shared,
            _worker: worker,
        })
    }

    /// Says what all services want. Whatever is left of others is forgotten.
    pub fn set(&self, wants: impl Iterator<Item = Wants>) {
        let mut patience = vec![Patience::default(); SERVICE_SLOTS as usize];
        let mut lows = vec![0; SERVICE_SLOTS as usize];
        for service in wants {
            let at = usize::from(service.number);
            if let (Some(slot), Some(low)) = (patience.get_mut(at), lows.get_mut(at)) {
                (*slot, *low) = (service.patience, service.low);
            }
        }
        *write(&self.shared.low) = lows;
        *write(&self.shared.patience) = patience;
    }

    /// Entries the last pass met and left.
    pub fn entries(&self) -> u64 {
        self.shared.entries.load(Ordering::Relaxed)
    }

    /// Ages of the entries of a service that the last pass met and left.
    pub fn ages(&self, service: u16) -> Ages {
        self.shared
            .ages()
            .get(&service)
            .copied()
            .unwrap_or_default()
    }

    /// Whole passes so far.
    pub fn passes(&self) -> u64 {
        self.shared.passes.load(Ordering::Acquire)
    }
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn ages(&self) -> MutexGuard<'_, BTreeMap<u16, Ages>> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to be released. The greatest is the youngest.
#[derive(Clone, Copy, Debug)]
struct Due {
    tuple: Tuple,
    entry: HalfOpen,
    /// Only while there are too many.
    pressed: bool,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.entry.since.cmp(&other.entry.since)
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

/// The oldest of all that were ever offered, as many as can be released in a pass.
#[derive(Debug, Default)]
struct Oldest(BinaryHeap<Due>);

impl Oldest {
    /// Takes one; the youngest where that makes too many.
    fn offer(&mut self, due: Due) -> Option<Due> {
        self.0.push(due);
        if self.0.len() > RELEASES {
            self.0.pop()
        } else {
            None
        }
    }
}

/// What a pass has found.
#[derive(Debug, Default)]
struct Found {
    left: u64,
    ages: BTreeMap<u16, Ages>,
    over: Vec<(Tuple, u16)>,
    due: Oldest,
}

impl Found {
    fn add(&mut self, tuple: Tuple, entry: HalfOpen, now: u64, patience: &[Patience]) {
        // A number that is no service's has no timeout, and so no patience.
        let patience = patience.get(usize::from(entry.service)).copied();
        let stays = match patience::fate(&entry, now, patience.unwrap_or_default()) {
            Fate::Forget => {
                self.over.push((tuple, entry.service));
                None
            }
            Fate::Stays => Some(entry),
            fate => {
                let due = Due {
                    tuple,
                    entry,
                    pressed: fate == Fate::Press,
                };
                self.due.offer(due).map(|due| due.entry)
            }
        };
        if let Some(entry) = stays {
            self.leave(&entry, now);
        }
    }

    fn leave(&mut self, entry: &HalfOpen, now: u64) {
        self.left += 1;
        self.ages
            .entry(entry.service)
            .or_default()
            .add(patience::age(entry, now));
    }
}

struct Sweep {
    table: HalfOpenMap,
    batches: HalfOpenBatches,
    capacity: u64,
    states: Arc<States>,
    injector: Injector,
    shared: Arc<Shared>,
    walking: Complaint,
    releasing: Complaint,
}

impl Sweep {
    fn pass(&mut self, bell: &Bell) {
        let patience = self.patience();
        let now = clock::monotonic_ns();
        let mut found = Found::default();
        let walked = self.batches.walk(|tuples, entries| {
            for (Wire(tuple), Wire(entry)) in tuples.iter().zip(entries) {
                found.add(*tuple, *entry, now, &patience);
            }
            if bell.has_rung() {
                return ControlFlow::Break(());
            }
            thread::sleep(BREATH);
            ControlFlow::Continue(())
        });
        let is_whole = walked.is_ok() && !bell.has_rung();
        self.walking.about(
            "walk the half-open table",
            walked.map_err(anyhow::Error::new),
        );
        for (tuple, service) in std::mem::take(&mut found.over) {
            self.forget(&tuple, service);
        }
        for due in std::mem::take(&mut found.due).0.into_sorted_vec() {
            if bell.has_rung() {
                return;
            }
            if !due.pressed || self.has_too_many(due.entry.service) {
                self.release(&due);
            } else {
                found.leave(&due.entry, now);
            }
        }
        self.shared
            .entries
            .store(found.left.min(self.capacity), Ordering::Relaxed);
        *self.shared.ages() = found.ages;
        if is_whole {
            self.shared.passes.fetch_add(1, Ordering::Release);
        }
    }

    /// What the services want, and which of them are pressed.
    fn patience(&self) -> Vec<Patience> {
        let table = self.shared.patience.read();
        let mut patience = table.unwrap_or_else(PoisonError::into_inner).clone();
        for (number, patience) in (0..).zip(&mut patience) {
            patience.pressed = self
                .states
                .get(number)
                .is_some_and(|slot| slot.read().state == STATE_GUARDED);
        }
        patience
    }

    fn has_too_many(&self, service: u16) -> bool {
        let lows = self.shared.low.read();
        let lows = lows.unwrap_or_else(PoisonError::into_inner);
        let low = lows.get(usize::from(service)).copied().unwrap_or(0);
        let count = self.states.get(service).map(|slot| slot.read().half_open);
        count.is_some_and(|count| count >= u64::from(low))
    }

    /// Tells the server to forget a connection.
    fn release(&mut self, due: &Due) {
        let service = due.entry.service;
        let released = self.send_reset(due);
        if let Ok(true) = released {
            self.shared.books.count(service, Count::Released, 1);
        }
        self.releasing
            .about("release half-open connections", released.map(drop));
        // The programs have done so by now where they took the RST, as they do for a server that still
        // has the connection.
        if !self.forget(&due.tuple, service) {
            self.shared.books.count(service, Count::Expired, 1);
        }
    }

    /// Whether there was anything to send.
    fn send_reset(&self, due: &Due) -> anyhow::Result<bool> {
        let link = frames::link_bytes(&due.entry.link, due.entry.link_len);
        let (Some(port), Some(frame)) = (
            self.injector.ports.of(&link),
            frames::release(&due.tuple, &due.entry),
        ) else {
            return Ok(false);
        };
        self.injector.receive(&frame, &port).map(|()| true)
    }

    /// Takes a connection out of the table and the count; false where somebody else was faster.
    fn forget(&mut self, tuple: &Tuple, service: u16) -> bool {
        if self.table.remove(&Wire(*tuple)).is_err() {
            return false;
        }
        if let Some(state) = self.states.get(service) {
            state.expire(1);
        }
        self.shared.books.count(service, Count::Expired, 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use synguard_common::abi::{Address, SERVICE_NONE};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn due(since: u64) -> Due {
        Due {
            tuple: Tuple {
                client: Address([0; 16]),
                server: Address([0; 16]),
                client_port: 0,
                server_port: 0,
                pad: 0,
            },
            entry: HalfOpen {
                since,
                client_isn: 0,
                server_isn: 0,
                service: 1,
                confirmed: 1,
                link_len: 0,
                link: [0; 5],
            },
            pressed: false,
        }
    }

    #[test]
    fn the_oldest_go_first_and_no_more_than_a_pass_may_release() {
        let mut oldest = Oldest::default();
        // In an order that is neither up nor down.
        let count = 3 * RELEASES as u64;
        for n in 0..count {
            let _ = oldest.offer(due(n * 7919 % count));
        }
        let kept: Vec<u64> = oldest
            .0
            .into_sorted_vec()
            .iter()
            .map(|due| due.entry.since)
            .collect();
        assert_eq!(kept, (0..RELEASES as u64).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_found_is_sorted_by_what_becomes_of_it() {
        let long = Patience::new(Duration::from_secs(64), true);
        let patience = [Patience::default(), long];
        let mut found = Found::default();
        let now = 1000 * SECOND;
        for (age, service) in [
            (0, 1),
            (2, 1),
            (64, 1),
            (100, 1),
            (0, 0),
            (0, SERVICE_NONE + 9),
        ] {
            let Due { tuple, entry, .. } = due(now - age * SECOND);
            found.add(tuple, HalfOpen { service, ..entry }, now, &patience);
        }
        assert_eq!((found.left, found.over.len(), found.due.0.len()), (2, 3, 1));
        assert_eq!(found.ages.len(), 1);
        assert_eq!(found.ages[&1].oldest, 2 * SECOND);
    }
}
