//! The two clocks: monotonic time, which the programs have, and wall-clock time, which epochs
//! count.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use synguard_common::{abi::TICKS_PER_SECOND, clock::Now};

/// Length of a tick.
const TICK_NS: u64 = 1_000_000_000 / TICKS_PER_SECOND as u64;
/// A jump of the wall clock that is worth a line.
const STEP: Duration = Duration::from_millis(500);

/// CLOCK_MONOTONIC, ns.
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

/// CPU time that the calling thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CLOCK_MONOTONIC in the unit of [`synguard_common::abi::Clock::tick`].
pub fn tick() -> u32 {
    tick_at(monotonic_ns())
}

/// A moment of CLOCK_MONOTONIC in that unit.
pub fn tick_at(monotonic_ns: u64) -> u32 {
    (monotonic_ns / TICK_NS) as u32
}

/// A duration in that unit, rounded up.
pub fn ticks(duration: Duration) -> u32 {
    let ticks = duration.as_nanos().div_ceil(u128::from(TICK_NS));
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Wall-clock time, ns since the Unix epoch; 0 before it.
pub fn wall_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Wall-clock seconds since the Unix epoch.
pub fn wall_seconds() -> u64 {
    wall_ns() / 1_000_000_000
}

/// Wall-clock less monotonic time, as [`synguard_common::abi::Clock`] wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset at this moment.
    pub fn now() -> Self {
        Self(wall_ns().wrapping_sub(monotonic_ns()))
    }

    /// The present moment on both clocks.
    pub fn moment(self) -> Now {
        Now::new(monotonic_ns(), self.0)
    }

    /// By how much the wall clock was set since `earlier`, in seconds, if that was a step rather
    /// than NTP's slewing.
    pub fn step_since(self, earlier: Self) -> Option<f64> {
        let by = self.0.wrapping_sub(earlier.0) as i64;
        (by.unsigned_abs() > STEP.as_nanos() as u64).then_some(by as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_in_ticks_is_never_shorter() {
        for (duration, expected) in [
            (Duration::ZERO, 0),
            (Duration::from_millis(1), 1),
            (Duration::from_millis(250), 1),
            (Duration::from_secs(60), 240),
            (Duration::MAX, u32::MAX),
        ] {
            assert_eq!(ticks(duration), expected, "{duration:?}");
        }
        let before = tick();
        assert!(before > 0 && tick().wrapping_sub(before) < 2);
    }

    #[test]
    fn a_step_is_told_from_slewing_in_both_directions() {
        let base = Offset(1_700_000_000_000_000_000);
        assert_eq!(Offset(base.0 + 499_000_000).step_since(base), None);
        assert_eq!(Offset(base.0 + 2_000_000_000).step_since(base), Some(2.0));
        assert_eq!(Offset(base.0 - 3_000_000_000).step_since(base), Some(-3.0));
        assert_eq!(Offset(1).step_since(Offset(u64::MAX - 8)), None);
    }
}
