//! How long a jiffy is, and when they began to be counted: what the programs tell the time by
//! ([`synguard_common::abi::Clock::jiffy_ns`]).
//!
//! The kernel counts jiffies by its monotonic clock, a tick at a time, but tells nobody how long
//! a tick is. So both are looked at twice, some time apart.

use std::io;

use aya::maps::{Array, MapData};
use synguard_common::abi::Moment;

use super::{testrun::Runner, wire::Wire};

/// Jiffies between the two looks, at least: a rate that is wrong by half a percent would be seen.
const APART: u64 = 25;
/// Ticks per second that kernels are built with.
const RATES: [u64; 8] = [24, 48, 100, 250, 256, 300, 1000, 1024];
/// By how much the measured rate may be off, in thousandths: the clock is slewed by half of one at
/// most.
const TOLERANCE: u64 = 2;
const SECOND: u64 = 1_000_000_000;

/// Reads both clocks, by having the kernel run `synguard_moment`.
pub struct Jiffies {
    runner: Runner,
    moments: Array<MapData, Wire<Moment>>,
    rate: Rate,
}

/// What is known so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rate {
    first: Option<Moment>,
    jiffy_ns: u32,
}

impl Jiffies {
    /// With the program and its map.
    pub fn new(runner: Runner, moments: Array<MapData, Wire<Moment>>) -> Self {
        Self {
            runner,
            moments,
            rate: Rate::default(),
        }
    }

    /// Length of a jiffy and monotonic time less the jiffies', both in ns; zeros as long as they are
    /// not known.
    pub fn now(&mut self) -> io::Result<(u32, u64)> {
        let moment = self.moment()?;
        Ok(self.rate.observe(moment))
    }

    /// Both clocks at this moment.
    pub fn moment(&self) -> io::Result<Moment> {
        // As short a frame as is accepted.
        self.runner.run(&[0; 14])?;
        let Wire(moment) = self.moments.get(&0, 0).map_err(io::Error::other)?;
        Ok(moment)
    }
}

impl Rate {
    fn observe(&mut self, moment: Moment) -> (u32, u64) {
        let first = *self.first.get_or_insert(moment);
        let jiffies = moment.jiffies.wrapping_sub(first.jiffies);
        let elapsed = moment.monotonic.wrapping_sub(first.monotonic);
        if self.jiffy_ns == 0 && jiffies >= APART && elapsed > 0 {
            let measured = (u128::from(jiffies) * u128::from(SECOND) * 1000) / u128::from(elapsed);
            let fits = |rate: &&u64| {
                let off = measured.abs_diff(u128::from(**rate) * 1000);
                off <= u128::from(**rate * TOLERANCE)
            };
            if let Some(rate) = RATES.iter().find(fits) {
                // As the kernel rounds it (`TICK_NSEC`).
                self.jiffy_ns = ((SECOND + rate / 2) / rate) as u32;
            }
            // A machine that was suspended in between is measured again.
            self.first = Some(moment);
        }
        if self.jiffy_ns == 0 {
            return (0, 0);
        }
        let counted = moment.jiffies.wrapping_mul(u64::from(self.jiffy_ns));
        (self.jiffy_ns, moment.monotonic.wrapping_sub(counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(jiffies: u64, monotonic: u64) -> Moment {
        Moment { jiffies, monotonic }
    }

    /// Linux starts its count five minutes before it wraps around 32 bits.
    const INITIAL: u64 = 0xffff_ffff - 300 * 250 + 1;

    #[test]
    fn the_rate_is_known_after_some_jiffies_and_the_offset_follows() {
        for rate in RATES {
            let jiffy = SECOND / rate;
            let mut known = Rate::default();
            let start = at(INITIAL, 77_000_000_000);
            assert_eq!(known.observe(start), (0, 0));
            let soon = at(INITIAL + 10, start.monotonic + 10 * jiffy);
            assert_eq!(known.observe(soon), (0, 0));
            // Slewed by half a thousandth.
            let elapsed = 30 * jiffy + 30 * jiffy / 2000;
            let later = at(INITIAL + 30, start.monotonic + elapsed);
            let (ns, offset) = known.observe(later);
            assert!(u64::from(ns).abs_diff(jiffy) <= 1, "{rate}: {ns}");
            let told = later
                .jiffies
                .wrapping_mul(u64::from(ns))
                .wrapping_add(offset);
            assert_eq!(told, later.monotonic);
        }
    }

    #[test]
    fn a_rate_that_no_kernel_has_is_not_believed() {
        let mut known = Rate::default();
        known.observe(at(0, 0));
        assert_eq!(known.observe(at(100, 100 * SECOND / 170)), (0, 0));
        // Then the machine is itself again.
        let (ns, _) = known.observe(at(200, 100 * SECOND / 170 + 100 * SECOND / 250));
        assert_eq!(ns, 4_000_000);
    }
}
