//! How long a half-open connection is waited for, and what becomes of it then. Pure.
//!
//! One that the server has answered and its client has not, for as long as `half_open_timeout`, is
//! released: a RST in the client's name takes it off the server's hands. Under pressure, while its
//! service is guarded, the oldest go sooner, until the count is below the low watermark again.

use std::time::Duration;

use synguard_common::abi::HalfOpen;

/// How long the server has for its SYN-ACK.
const UNCONFIRMED: u64 = 5 * SECOND;
/// The least age of what is released under pressure. By then the server has sent its SYN-ACK three times
/// (at once, and after 1 and 3 s): a client that is there has answered one of them.
const PRESSED: u64 = 5 * SECOND;
/// Releases are limited, and what has waited for one this long after its time is only forgotten: the
/// server has given it up by itself, or will.
const LATE: u64 = 10 * SECOND;
const SECOND: u64 = 1_000_000_000;

/// Bounds of the histogram of ages, seconds: after each of them Linux sends its SYN-ACK once more, or
/// (after the last) gives up (RFC 6298 section 5.5, `net.ipv4.tcp_synack_retries` = 5).
pub const AGE_BOUNDS: [u64; 6] = [1, 3, 7, 15, 31, 63];

/// What the half-open connections of a service can expect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Age at which one is given up, ns; 0 for what is no service any more.
    pub timeout: u64,
    /// Whether the server is told.
    pub release: bool,
    /// Whether the oldest go before their time.
    pub pressed: bool,
}

impl Patience {
    /// With this timeout.
    pub fn new(timeout: Duration, release: bool) -> Self {
        Self {
            timeout: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            release,
            pressed: false,
        }
    }
}

/// What becomes of a half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays,
    /// It is taken out of the count, and nobody is told.
    Forget,
    /// The server is told to forget it.
    Release,
    /// The same, should there still be too many.
    Press,
}

/// Age of an entry, ns. The programs' clock is coarse and may be read later than ours.
pub fn age(entry: &HalfOpen, now: u64) -> u64 {
    now.saturating_sub(entry.since)
}

/// Judges an entry at `now` (monotonic ns).
pub fn fate(entry: &HalfOpen, now: u64, patience: Patience) -> Fate {
    let age = age(entry, now);
    let release = patience.release && patience.timeout > 0;
    if entry.confirmed == 0 {
        // Nothing is known to be there that could be released.
        return if age >= patience.timeout.min(UNCONFIRMED) {
            Fate::Forget
        } else {
            Fate::Stays
        };
    }
    if age >= patience.timeout {
        if release && age < patience.timeout.saturating_add(LATE) {
            Fate::Release
        } else {
            Fate::Forget
        }
    } else if release && patience.pressed && age >= PRESSED {
        Fate::Press
    } else {
        Fate::Stays
    }
}

/// Ages of the half-open connections of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Connections up to each of [`AGE_BOUNDS`], and older than all; not cumulative.
    pub counts: [u64; AGE_BOUNDS.len() + 1],
    /// Age of the oldest, ns.
    pub oldest: u64,
    /// Sum of the ages, ns.
    pub sum: u64,
}

impl Ages {
    /// Takes note of one.
    pub fn add(&mut self, age: u64) {
        let bucket = AGE_BOUNDS.partition_point(|bound| bound * SECOND < age);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.oldest = self.oldest.max(age);
        self.sum = self.sum.saturating_add(age);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(confirmed: u8) -> HalfOpen {
        HalfOpen {
            since: 100 * SECOND,
            client_isn: 0,
            server_isn: 0,
            service: 1,
            confirmed,
            link_len: 0,
            link: [0; 5],
        }
    }

    const LONG: Patience = Patience {
        timeout: 64 * SECOND,
        release: true,
        pressed: false,
    };

    fn at(second: u64, confirmed: u8, patience: Patience) -> Fate {
        fate(&entry(confirmed), (100 + second) * SECOND, patience)
    }

    #[test]
    fn entries_grow_old_by_their_kind() {
        assert_eq!(at(63, 1, LONG), Fate::Stays);
        assert_eq!(at(64, 1, LONG), Fate::Release);
        assert_eq!(at(73, 1, LONG), Fate::Release);
        assert_eq!(at(74, 1, LONG), Fate::Forget, "the server has, by now");
        assert_eq!(at(4, 0, LONG), Fate::Stays);
        assert_eq!(at(5, 0, LONG), Fate::Forget, "there is nothing to release");
        let short = Patience {
            timeout: 3 * SECOND,
            ..LONG
        };
        assert_eq!(
            at(3, 0, short),
            Fate::Forget,
            "a shorter timeout holds for all"
        );
        assert_eq!(
            at(0, 1, Patience::default()),
            Fate::Forget,
            "the service is gone"
        );
        let before = fate(&entry(1), 99 * SECOND, LONG);
        assert_eq!(before, Fate::Stays, "the programs' clock may be read later");
    }

    #[test]
    fn under_pressure_the_old_go_before_their_time() {
        let pressed = Patience {
            pressed: true,
            ..LONG
        };
        assert_eq!(at(4, 1, pressed), Fate::Stays);
        assert_eq!(at(5, 1, pressed), Fate::Press);
        assert_eq!(at(64, 1, pressed), Fate::Release);
        let off = Patience {
            release: false,
            ..pressed
        };
        assert_eq!(at(63, 1, off), Fate::Stays);
        assert_eq!(at(64, 1, off), Fate::Forget);
    }

    #[test]
    fn ages_are_put_where_they_belong() {
        let mut ages = Ages::default();
        for age in [0, SECOND, SECOND + 1, 63 * SECOND, 64 * SECOND] {
            ages.add(age);
        }
        assert_eq!(ages.counts, [2, 1, 0, 0, 0, 1, 1]);
        assert_eq!(ages.oldest, 64 * SECOND);
    }

    proptest! {
        #[test]
        fn nothing_is_told_to_a_server_that_must_not_be(
            since: u64, now: u64, confirmed in 0..2u8, timeout: u64, pressed: bool,
        ) {
            let patience = Patience { timeout, release: false, pressed };
            let entry = HalfOpen { since, ..entry(confirmed) };
            let fate = fate(&entry, now, patience);
            prop_assert!(matches!(fate, Fate::Stays | Fate::Forget));
        }

        #[test]
        fn whoever_waits_longer_is_never_let_stay_again(
            age in 0..200 * SECOND, more in 0..200 * SECOND, confirmed in 0..2u8, release: bool, pressed: bool,
        ) {
            let patience = Patience { release, pressed, ..LONG };
            let at = |age| fate(&entry(confirmed), 100 * SECOND + age, patience);
            prop_assert!(at(age) == Fate::Stays || at(age + more) != Fate::Stays);
        }
    }
}
