//! Sends SYN-ACKs again that nobody has answered, on a thread of its own.
//!
//! Four times a second the thread looks through the SYN cache (`synguard_common::syncache`), whose entries
//! the programs write. A SYN that was answered a second ago, and one three seconds ago, is shown to
//! `synguard_in` once more, which answers it as it did before. While the cache is nearly full there is a
//! flood, and nobody to be reminded can be told from the rest: then nothing is sent.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use synguard_common::{
    abi::{Answered, SYN_CACHE_SLOTS},
    syncache::{AGAIN, LIFE},
};

use super::{
    clock,
    inject::Injector,
    worker::{Bell, Complaint, Worker},
};
use crate::dataplane::{
    Books, Dataplane, frames,
    ledger::Count,
    syncache::{SharedAnswered, SynCache},
};

/// Time between passes: a tick.
const PAUSE: Duration = Duration::from_millis(250);
/// Entries above which there is a flood.
const CROWDED: usize = SYN_CACHE_SLOTS as usize / 4 * 3;
/// SYN-ACKs sent again in a pass, at most: some 20 µs each, half a hundredth of a CPU.
const MOST: usize = 50;

/// What the thread and the daemon share.
struct Shared {
    wanted: AtomicBool,
    /// Services whose SYNs are answered with cookies.
    guarded: Mutex<BTreeSet<u16>>,
    entries: AtomicU64,
}

/// The thread; stopped on drop.
pub struct Reminder {
    shared: Arc<Shared>,
    _worker: Worker,
}

impl Reminder {
    /// Starts it.
    pub fn start(dataplane: &Dataplane, injector: Injector) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: AtomicBool::new(false),
            guarded: Mutex::default(),
            entries: AtomicU64::new(0),
        });
        let mut remind = Remind {
            cache: Arc::clone(&dataplane.maps.syn_cache),
            books: Arc::clone(&dataplane.maps.books),
            injector,
            shared: Arc::clone(&shared),
            sending: Complaint::default(),
        };
        let worker = Worker::start("remind", PAUSE, move |bell| {
            remind.pass(bell);
            PAUSE
        })
        .context("cannot start looking after the SYN cache")?;
        Ok(Self {
            shared,
            _worker: worker,
        })
    }

    /// Says whether there is a cache at all, and which services are guarded.
    pub fn set(&self, wanted: bool, guarded: impl Iterator<Item = u16>) {
        *self.shared.guarded() = guarded.collect();
        self.shared.wanted.store(wanted, Ordering::Relaxed);
    }

    /// SYNs in the cache.
    pub fn entries(&self) -> u64 {
        self.shared.entries.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn guarded(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Its SYN-ACK is sent, for the so-manieth time again.
    Again(u8),
    /// It is over.
    Over,
}

fn due(entry: &Answered, tick: u32) -> Due {
    // The programs' tick may be a moment ahead.
    let age = tick.wrapping_sub(entry.since);
    if age as i32 <= 0 {
        return Due::Nothing;
    }
    if age >= LIFE {
        return Due::Over;
    }
    match AGAIN.get(usize::from(entry.tries)) {
        Some(at) if age >= *at => Due::Again(entry.tries + 1),
        _ => Due::Nothing,
    }
}

struct Remind {
    cache: Arc<SynCache>,
    books: Arc<Books>,
    injector: Injector,
    shared: Arc<Shared>,
    sending: Complaint,
}

impl Remind {
    fn pass(&mut self, bell: &Bell) {
        if !self.shared.wanted.load(Ordering::Relaxed) {
            self.shared.entries.store(0, Ordering::Relaxed);
            return;
        }
        let tick = clock::tick();
        let cache = Arc::clone(&self.cache);
        let mut entries = 0;
        let mut again: Vec<(&SharedAnswered, Answered, u8)> = Vec::new();
        for slot in cache.slots() {
            let Some(entry) = slot.read() else { continue };
            entries += 1;
            match due(&entry, tick) {
                Due::Nothing => {}
                Due::Over => slot.free(),
                Due::Again(tries) => again.push((slot, entry, tries)),
            }
        }
        self.shared.entries.store(entries as u64, Ordering::Relaxed);
        if entries >= CROWDED {
            return;
        }
        let guarded = self.shared.guarded().clone();
        for (slot, entry, tries) in again.into_iter().take(MOST) {
            if bell.has_rung() {
                return;
            }
            if !guarded.contains(&entry.service) {
                // The SYN would pass to the server, as another connection.
                slot.free();
                continue;
            }
            slot.set_tries(tries);
            let sent = self.send(&entry);
            if let Ok(true) = sent {
                self.books.count(entry.service, Count::Reminded, 1);
            }
            self.sending.about("send a SYN-ACK again", sent.map(drop));
        }
    }

    /// Whether there was anything to send.
    fn send(&self, entry: &Answered) -> anyhow::Result<bool> {
        let link = frames::link_bytes(&entry.link, entry.link_len);
        let (Some(port), Some(frame)) = (self.injector.ports.of(&link), frames::client_syn(entry))
        else {
            return Ok(false);
        };
        self.injector.receive(&frame, &port).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use synguard_common::abi::{ANSWERED_LIVE, Address, TICKS_PER_SECOND, Tuple};

    use super::*;

    fn entry(since: u32, tries: u8) -> Answered {
        Answered {
            tuple: Tuple {
                client: Address([0; 16]),
                server: Address([0; 16]),
                client_port: 0,
                server_port: 0,
                pad: 0,
            },
            state: ANSWERED_LIVE,
            since,
            client_isn: 0,
            cookie: 0,
            ts_val: 0,
            mss: 1460,
            service: 1,
            options: 0,
            window_scale: 0,
            tries,
            link_len: 12,
            link: [0; 5],
        }
    }

    #[test]
    fn a_client_is_reminded_twice_and_forgotten() {
        let mut entry = entry(u32::MAX - 3, 0);
        let mut told = Vec::new();
        for age in 0..100 {
            match due(&entry, entry.since.wrapping_add(age)) {
                Due::Nothing => {}
                Due::Again(tries) => {
                    entry.tries = tries;
                    told.push((age, Due::Again(tries)));
                }
                Due::Over => {
                    told.push((age, Due::Over));
                    break;
                }
            }
        }
        const S: u32 = TICKS_PER_SECOND;
        let expected = [
            (S, Due::Again(1)),
            (3 * S, Due::Again(2)),
            (7 * S, Due::Over),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn the_programs_tick_may_be_ahead() {
        assert_eq!(due(&entry(101, 0), 100), Due::Nothing);
    }
}
