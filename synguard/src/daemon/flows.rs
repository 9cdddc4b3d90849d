//! Looks after flows and verified sources, on a thread of its own.
//!
//! Every tick the thread has the kernel go through the flow table (`synguard_sweep`, run by
//! `BPF_PROG_TEST_RUN`): it removes what has grown old, counts what is left, and leaves errands for
//! pending flows whose server has not answered, which the thread then runs ([`super::errands`]).
//! Now and then it goes through the table of verified sources itself. Neither takes much more than a
//! hundredth of a CPU: a walk is followed by a pause a hundred times as long as it kept the CPU, but
//! servers that keep silent wait no longer than [`LONGEST_PAUSE`] for the next sweep.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    clock,
    errands::{Courier, Outcome},
    inject::Injector,
    worker::{Bell, Complaint, Worker},
};
use crate::{
    dataplane::{
        Books, Dataplane, FlowMaps, LoadError, ledger::BoxCount, load::PROGRAM_SWEEP,
        testrun::Runner, wire::Wire,
    },
    model::FlowStatus,
};
use aya::maps::MapError;
use synguard_common::abi::{
    ERRAND_SLOTS, FLOW_KNOWN, FLOW_PENDING, FLOW_SPLICED, FlowCounts, Sweep, map,
};

/// Time between sweeps, at least.
const PAUSE: Duration = Duration::from_millis(250);
/// Time between walks over the verified sources, at least.
const VERIFIED_PAUSE: Duration = Duration::from_secs(1);
/// A walk is followed by a pause of at least this many times the CPU time it took. Time on the clock
/// will not do: a sweep that had to wait for the CPU would put off the next for seconds, and with it
/// every SYN that is to be sent again.
const REST: u32 = 100;
/// The longest pause between sweeps: about what Linux waits before it sends a SYN again
/// (TCP_TIMEOUT_INIT).
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What `synguard_sweep` is shown, which looks at no packet: any frame the kernel takes.
const ANY_FRAME: [u8; 64] = [0; 64];
/// Verified sources after which other threads get their turn.
const BATCH: u64 = 4096;
/// The pause for that.
const BREATH: Duration = Duration::from_millis(1);

/// What the thread and the daemon share.
struct Shared {
    /// Whether there may be flows at all.
    wanted: AtomicBool,
    /// How long a source stays verified, ticks.
    verified_ticks: AtomicU32,
    status: Mutex<Known>,
    /// Whole sweeps so far.
    passes: AtomicU64,
}

/// What the thread has found out.
#[derive(Clone, Debug, Default)]
struct Known {
    flows: FlowStatus,
    /// Verified sources the last walk met and left.
    verified: u64,
    /// Sources verified so far, at the beginning of that walk.
    verified_then: u64,
}

/// The thread; stopped on drop.
pub struct Flows {
    shared: Arc<Shared>,
    _worker: Worker,
}

impl Flows {
    /// Starts it.
    pub fn start(dataplane: &mut Dataplane, injector: Injector) -> anyhow::Result<Self> {
        let maps = dataplane
            .maps
            .flows
            .take()
            .ok_or_else(|| LoadError::Object("the maps of flows are missing".into()))?;
        let courier = Courier::new(injector)?;
        let shared = Arc::new(Shared {
            wanted: AtomicBool::new(false),
            verified_ticks: AtomicU32::new(u32::MAX),
            status: Mutex::default(),
            passes: AtomicU64::new(0),
        });
        let mut keeper = Keeper {
            verified_capacity: dataplane.maps.capacity(map::VERIFIED).unwrap_or(0),
            maps,
            sweep: dataplane.runner(PROGRAM_SWEEP)?,
            courier,
            books: Arc::clone(&dataplane.maps.books),
            shared: Arc::clone(&shared),
            known: Known::default(),
            verified_due: Instant::now(),
            sweeping: Complaint::default(),
            walking: Complaint::default(),
            running: Complaint::default(),
        };
        let worker = Worker::start("flows", PAUSE, move |bell| keeper.work(bell))?;
        Ok(Self {
            shared,
            _worker: worker,
        })
    }

    /// Says whether there may be flows.
    pub fn set_wanted(&self, wanted: bool) {
        self.shared.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Says for how long sources stay verified.
    pub fn set_verified_ticks(&self, ticks: u32) {
        self.shared.verified_ticks.store(ticks, Ordering::Relaxed);
    }

    /// Whole sweeps so far.
    pub fn passes(&self) -> u64 {
        self.shared.passes.load(Ordering::Acquire)
    }

    /// Flows the last sweep left, and the counts.
    pub fn status(&self) -> FlowStatus {
        self.shared.known().flows.clone()
    }

    /// Verified sources the last walk left.
    pub fn verified(&self) -> u64 {
        self.shared.known().verified
    }
}

impl Shared {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread owns.
struct Keeper {
    maps: FlowMaps,
    verified_capacity: u64,
    sweep: Runner,
    courier: Courier,
    books: Arc<Books>,
    shared: Arc<Shared>,
    known: Known,
    verified_due: Instant,
    sweeping: Complaint,
    walking: Complaint,
    running: Complaint,
}

impl Keeper {
    /// Does what is due; says how long to pause.
    fn work(&mut self, bell: &Bell) -> Duration {
        let mut pause = PAUSE;
        if self.shared.wanted.load(Ordering::Relaxed) {
            let start = clock::thread_cpu();
            let swept = self.pass();
            pause = pause_after(clock::thread_cpu().saturating_sub(start));
            self.sweeping.about("sweep the flows", swept);
            self.errands(bell);
        }
        if Instant::now() >= self.verified_due {
            let start = clock::thread_cpu();
            let walked = self.walk(bell);
            let rest = (clock::thread_cpu().saturating_sub(start) * REST).max(VERIFIED_PAUSE);
            self.verified_due = Instant::now() + rest;
            self.walking
                .about("count the verified sources", walked.map_err(Into::into));
        }
        let flows = &mut self.known.flows;
        flows.retried_total = self.books.counted_box(BoxCount::Retried);
        flows.refused_total = self.books.counted_box(BoxCount::Refused);
        flows.errands_failed_total = self.books.counted_box(BoxCount::ErrandsFailed);
        *self.shared.known() = self.known.clone();
        pause
    }

    /// One sweep.
    fn pass(&mut self) -> anyhow::Result<()> {
        self.sweep.run(&ANY_FRAME)?;
        let (counted, swept) = (self.maps.counted()?, self.maps.swept()?);
        account(&mut self.known.flows, &counted, &swept);
        *self.shared.known() = self.known.clone();
        self.shared.passes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Runs every errand there is, but no more than the queue holds.
    fn errands(&mut self, bell: &Bell) {
        for _ in 0..ERRAND_SLOTS {
            if bell.has_rung() {
                return;
            }
            let result = match self.errand() {
                Ok(None) => return,
                Ok(Some(outcome)) => {
                    match outcome {
                        Outcome::Retried => self.books.count_box(BoxCount::Retried),
                        Outcome::Refused => self.books.count_box(BoxCount::Refused),
                        Outcome::Obsolete => continue,
                    }
                    Ok(())
                }
                Err(error) => {
                    self.books.count_box(BoxCount::ErrandsFailed);
                    Err(error)
                }
            };
            self.running
                .about("do anything about a server that keeps silent", result);
        }
    }

    /// Runs the next errand, if there is one.
    fn errand(&mut self) -> anyhow::Result<Option<Outcome>> {
        let Some(errand) = self.maps.errand()? else {
            return Ok(None);
        };
        self.courier.run(&errand).map(Some)
    }

    /// Counts the verified sources, and removes those that are so no more.
    fn walk(&mut self, bell: &Bell) -> Result<(), MapError> {
        let total = self.maps.counted()?.verified;
        self.known.flows.verified_total = total;
        if self.known.verified == 0 && self.known.verified_then == total {
            return Ok(());
        }
        let lifetime = self.shared.verified_ticks.load(Ordering::Relaxed);
        let now = clock::tick();
        let (mut steps, mut left) = (0u64, 0u64);
        let mut old = Vec::new();
        for entry in self.maps.verified.iter() {
            steps += 1;
            // Keys that vanish under the walk make it start over.
            if bell.has_rung() || steps > self.verified_capacity.saturating_mul(2) {
                break;
            }
            if steps.is_multiple_of(BATCH) {
                thread::sleep(BREATH);
            }
            let Ok((address, Wire(source))) = entry else {
                continue;
            };
            if is_over(source.since, now, lifetime) {
                old.push(address);
            } else {
                left += 1;
            }
        }
        for address in old {
            // Somebody else may have been faster. A source that was verified again since is asked
            // once more, which costs it nothing but time.
            drop(self.maps.verified.remove(&address));
        }
        self.known.verified = left.min(self.verified_capacity);
        self.known.verified_then = total;
        Ok(())
    }
}

/// How long to pause after a sweep that took so much of a CPU.
fn pause_after(sweep: Duration) -> Duration {
    (sweep * REST).clamp(PAUSE, LONGEST_PAUSE)
}

/// Takes note of a sweep and of what the programs counted.
fn account(flows: &mut FlowStatus, counted: &FlowCounts, sweep: &Sweep) {
    let state = |state: u8| sweep.by_state.get(usize::from(state)).copied().unwrap_or(0);
    flows.pending = state(FLOW_PENDING);
    flows.spliced = state(FLOW_SPLICED);
    flows.known = state(FLOW_KNOWN);
    flows.closing = sweep.closing;
    flows.left = sweep.left;
    flows.created_total = counted.created;
    flows.evicted_total = counted.evicted;
    flows.expired_total = sweep.removed;
    flows.errands_lost_total = sweep.errands_lost;
}

/// Whether a source verified at tick `since` is so no more.
fn is_over(since: u32, now: u32, lifetime: u32) -> bool {
    let age = now.wrapping_sub(since) as i32;
    // The programs' tick may be a moment ahead.
    age >= 0 && age as u32 >= lifetime
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(by_state: [u64; 4], removed: u64) -> Sweep {
        Sweep {
            left: by_state[1] + by_state[2],
            by_state,
            closing: 1,
            removed,
            errands_lost: 7,
        }
    }

    #[test]
    fn sweeps_take_little_of_a_cpu_but_come() {
        assert_eq!(pause_after(Duration::ZERO), PAUSE);
        assert_eq!(
            pause_after(Duration::from_millis(5)),
            Duration::from_millis(500)
        );
        assert_eq!(pause_after(Duration::from_secs(1)), LONGEST_PAUSE);
    }

    #[test]
    fn a_sweep_is_accounted_for() {
        let mut flows = FlowStatus::default();
        let counted = FlowCounts {
            created: 10,
            evicted: 2,
            verified: 0,
        };
        account(&mut flows, &counted, &sweep([0, 1, 2, 3], 4));
        assert_eq!(
            flows,
            FlowStatus {
                left: 3,
                pending: 1,
                spliced: 2,
                known: 3,
                closing: 1,
                created_total: 10,
                expired_total: 4,
                evicted_total: 2,
                errands_lost_total: 7,
                ..FlowStatus::default()
            }
        );
        assert_eq!(flows.entries(), 6);
    }

    #[test]
    fn a_source_is_verified_for_its_time() {
        assert!(!is_over(100, 139, 40));
        assert!(is_over(100, 140, 40));
        assert!(!is_over(101, 100, 40), "a tick ahead");
        assert!(is_over(u32::MAX, 39, 40), "over the end of the clock");
    }
}
