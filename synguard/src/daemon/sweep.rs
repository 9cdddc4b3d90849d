//! Gives up half-open connections that are too old, on a thread of its own.
//!
//! Once a second the thread walks the half-open table. Entries older than their service's
//! `half_open_timeout`, those the server has not answered for [`UNCONFIRMED`], and those of
//! services that are no more are removed, and each is subtracted from its service's count, but
//! only by whoever really removed it. The programs change the table all the while: a walk whose
//! present key vanishes starts over, so a pass is bounded in steps, and what it missed is met by
//! the next.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use synguard_common::abi::{HalfOpen, SERVICE_NONE, Tuple};

use super::{
    clock,
    worker::{Bell, Worker},
};
use crate::dataplane::{
    Books, States, ledger::Count, load::SERVICE_SLOTS, maps::HalfOpenMap, wire::Wire,
};

/// Time between passes.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the server has for its SYN-ACK.
const UNCONFIRMED: Duration = Duration::from_secs(5);
/// Entries after which other threads get their turn.
const BATCH: u64 = 4096;
/// The pause for that.
const BREATH: Duration = Duration::from_millis(1);

/// What the thread and the daemon share.
struct Shared {
    /// `half_open_timeout` in ns by service number; 0 gives up everything.
    timeouts: RwLock<Vec<u64>>,
    books: Arc<Books>,
    entries: AtomicU64,
    passes: AtomicU64,
}

/// The thread; stopped on drop.
pub struct Sweeper {
    shared: Arc<Shared>,
    _worker: Worker,
}

impl Sweeper {
    /// Starts it.
    pub fn start(
        map: HalfOpenMap,
        capacity: u64,
        states: Arc<States>,
        books: Arc<Books>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            timeouts: RwLock::new(vec![0; SERVICE_SLOTS as usize]),
            books,
            entries: AtomicU64::new(0),
            passes: AtomicU64::new(0),
        });
        let mut sweep = Sweep {
            map,
            capacity,
            states,
            shared: Arc::clone(&shared),
        };
        let worker = Worker::start("sweep", PAUSE, move |bell| {
            sweep.pass(bell);
            PAUSE
        })?;
        Ok(Self {
            shared,
            _worker: worker,
        })
    }

    /// Sets the timeouts of all services; numbers that are not named give up everything.
    pub fn set_timeouts(&self, timeouts: impl Iterator<Item = (u16, Duration)>) {
        let mut table = self
            .shared
            .timeouts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        table.fill(0);
        for (number, timeout) in timeouts {
            if let Some(slot) = table.get_mut(usize::from(number)) {
                *slot = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            }
        }
    }

    /// Entries the last pass met and left.
    pub fn entries(&self) -> u64 {
        self.shared.entries.load(Ordering::Relaxed)
    }

    /// Whole passes so far.
    pub fn passes(&self) -> u64 {
        self.shared.passes.load(Ordering::Acquire)
    }
}

impl Shared {
    fn timeout(&self, number: u16) -> u64 {
        let table = self.timeouts.read().unwrap_or_else(PoisonError::into_inner);
        table.get(usize::from(number)).copied().unwrap_or(0)
    }
}

struct Sweep {
    map: HalfOpenMap,
    capacity: u64,
    states: Arc<States>,
    shared: Arc<Shared>,
}

impl Sweep {
    fn pass(&mut self, bell: &Bell) {
        let now = clock::monotonic_ns();
        let (mut steps, mut left) = (0u64, 0u64);
        let mut old: Vec<(Tuple, u16)> = Vec::new();
        let mut whole = true;
        for entry in self.map.iter() {
            steps += 1;
            if bell.has_rung() {
                return;
            }
            if steps > self.capacity.saturating_mul(2) {
                whole = false;
                break;
            }
            if steps.is_multiple_of(BATCH) {
                thread::sleep(BREATH);
            }
            // An error is an entry that went between its key and its value: the programs were
            // faster.
            let Ok((Wire(tuple), Wire(half_open))) = entry else {
                continue;
            };
            // A number that is no service's has no timeout, and so no patience.
            let service = u16::try_from(half_open.service).unwrap_or(SERVICE_NONE);
            if is_old(&half_open, now, self.shared.timeout(service)) {
                old.push((tuple, service));
            } else {
                left += 1;
            }
        }
        for (tuple, service) in old {
            if self.map.remove(&Wire(tuple)).is_ok() {
                if let Some(state) = self.states.get(service) {
                    state.expire(1);
                }
                self.shared.books.count(service, Count::Expired, 1);
            }
        }
        self.shared
            .entries
            .store(left.min(self.capacity), Ordering::Relaxed);
        if whole {
            self.shared.passes.fetch_add(1, Ordering::Release);
        }
    }
}

/// Whether an entry is to be given up.
fn is_old(entry: &HalfOpen, now: u64, timeout: u64) -> bool {
    let age = now.saturating_sub(entry.since);
    let patience = if entry.confirmed == 0 {
        timeout.min(UNCONFIRMED.as_nanos() as u64)
    } else {
        timeout
    };
    age >= patience
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_grow_old_by_their_kind() {
        const SECOND: u64 = 1_000_000_000;
        let entry = |confirmed| HalfOpen {
            since: 100 * SECOND,
            client_isn: 0,
            server_isn: 0,
            service: 1,
            confirmed,
        };
        let timeout = 64 * SECOND;
        assert!(!is_old(&entry(1), 163 * SECOND, timeout));
        assert!(is_old(&entry(1), 164 * SECOND, timeout));
        assert!(!is_old(&entry(0), 104 * SECOND, timeout));
        assert!(is_old(&entry(0), 105 * SECOND, timeout));
        assert!(
            is_old(&entry(0), 103 * SECOND, 3 * SECOND),
            "a shorter timeout holds for all"
        );
        assert!(is_old(&entry(1), 100 * SECOND, 0), "the service is gone");
        // The programs' clock is coarse and may be read later than ours.
        assert!(!is_old(&entry(1), 99 * SECOND, timeout));
    }
}
