//! Wall-clock epochs, and the millisecond clock inside our timestamps.
//!
//! Keys live for an epoch. Epochs count wall-clock time so that a fleet of boxes agrees on them;
//! the kernel side knows coarse monotonic time and the offset that the daemon keeps up to date.

/// Length of an epoch, ns.
pub const EPOCH_NS: u64 = 16_000_000_000;

/// Low bits of the wall clock that [`Now::epoch`] does without: less than an epoch.
const DROPPED: u32 = 33;
/// With these, the product in [`Now::epoch`] has 64 bits even at the end of the clock's time.
const RECIPROCAL_BITS: u32 = 66;
const RECIPROCAL: u64 = ((1u128 << RECIPROCAL_BITS) / EPOCH_NS as u128) as u64;
const _: () = assert!((1 << DROPPED) < EPOCH_NS && RECIPROCAL < 1 << (64 - (64 - DROPPED)));

/// In the last part of an epoch, a cookie of the other parity is taken for one of the *next* epoch:
/// boxes whose clocks run ahead by up to this much are understood. ns.
pub const SKEW_NS: u64 = 2_000_000_000;

/// For how long cookies are honoured after a service became calm, ns: two epochs, the longest a
/// cookie can live.
pub const GRACE_NS: u64 = 2 * EPOCH_NS;

/// A moment, as both clocks tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC (coarse), ns.
    pub monotonic: u64,
    /// CLOCK_REALTIME, ns since the Unix epoch.
    pub wall: u64,
}

impl Now {
    /// Puts together the monotonic time and [`crate::abi::Clock::wall_offset`].
    #[inline(always)]
    pub const fn new(monotonic: u64, wall_offset: u64) -> Self {
        Self {
            monotonic,
            wall: monotonic.wrapping_add(wall_offset),
        }
    }

    /// The present epoch.
    #[inline(always)]
    pub const fn epoch(self) -> u64 {
        // `self.wall / EPOCH_NS` without the division, which takes as long as a third of the
        // cookie's hash: the quotient of the upper bits is right or one too small.
        let epoch = ((self.wall >> DROPPED) * RECIPROCAL) >> (RECIPROCAL_BITS - DROPPED);
        epoch + (self.wall - epoch * EPOCH_NS >= EPOCH_NS) as u64
    }

    /// The epoch that a cookie with this parity bit was made in, if it is worth checking at all:
    /// the present one where the parity agrees, else the one before, or in the last
    /// [`SKEW_NS`] of an epoch the one after.
    #[inline(always)]
    pub const fn epoch_of(self, parity: u8) -> u64 {
        let epoch = self.epoch();
        if epoch as u8 & 1 == parity & 1 {
            epoch
        } else if self.wall - epoch * EPOCH_NS >= EPOCH_NS - SKEW_NS {
            epoch.wrapping_add(1)
        } else {
            epoch.wrapping_sub(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_is_a_quotient(wall: u64, epoch in 0..=u64::MAX / EPOCH_NS, off in 0u64..3) {
            prop_assert_eq!(Now::new(0, wall).epoch(), wall / EPOCH_NS);
            // Around the boundaries.
            let wall = (epoch * EPOCH_NS).saturating_add(off).saturating_sub(1);
            prop_assert_eq!(Now::new(0, wall).epoch(), wall / EPOCH_NS);
        }
    }

    #[test]
    fn the_last_moment_of_the_clock_has_an_epoch() {
        assert_eq!(Now::new(0, u64::MAX).epoch(), u64::MAX / EPOCH_NS);
    }

    fn at(epoch: u64, into_ns: u64) -> Now {
        Now::new(0, epoch * EPOCH_NS + into_ns)
    }

    #[test]
    fn a_cookie_lives_between_fourteen_seconds_and_two_epochs() {
        let made = 1000;
        let parity = (made & 1) as u8;
        assert_eq!(at(made, 0).epoch_of(parity), made);
        assert_eq!(at(made, EPOCH_NS - 1).epoch_of(parity), made);
        assert_eq!(at(made + 1, 0).epoch_of(parity), made);
        assert_eq!(at(made + 1, EPOCH_NS - SKEW_NS - 1).epoch_of(parity), made);
        // Its parity now stands for the epoch to come.
        assert_eq!(at(made + 1, EPOCH_NS - SKEW_NS).epoch_of(parity), made + 2);
        assert_eq!(at(made + 2, 0).epoch_of(parity), made + 2);
    }

    #[test]
    fn a_box_two_seconds_ahead_is_understood() {
        let made = 1001;
        assert_eq!(at(made - 1, EPOCH_NS - 1).epoch_of(1), made);
        assert_eq!(at(made - 1, EPOCH_NS - SKEW_NS).epoch_of(1), made);
        assert_ne!(at(made - 1, EPOCH_NS - SKEW_NS - 1).epoch_of(1), made);
    }

    #[test]
    fn monotonic_time_and_offset_wrap_together() {
        let boot = 5_000_000_000u64;
        let wall = 1_700_000_000_000_000_000u64;
        assert_eq!(Now::new(boot, wall.wrapping_sub(boot)).wall, wall);
    }
}
