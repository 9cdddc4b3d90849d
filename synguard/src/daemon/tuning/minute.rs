//! A minute of a service, and whether it says anything of what is normal there.
//!
//! It does where the service was calm all through, well after any guarded time, and where its
//! handshakes were completed: of the SYNs that came no more than a twentieth may have gone without an
//! ACK or a RST, or three where that is more. A flood cannot complete a handshake whose answer goes to
//! somebody else, so what a flood adds is either noticed here and not learned, or it is too little to
//! matter: a twentieth of a service's own SYN rate, for as long as a half-open connection lives.

use std::time::Duration;

/// Seconds of a minute.
const MINUTE: u64 = 60;
/// A minute of which less was seen says nothing.
const SEEN: u64 = 50_000_000_000;
/// SYNs of a minute that may go unanswered, however few there are.
const STRAYS: u64 = 3;
/// The share of a minute's SYNs that may, as one in so many: clients vanish.
const VANISHING: u64 = 20;
/// Completed handshakes without which a minute does not say how long one takes.
const ENOUGH: u64 = 5;

/// What a service's counters say at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Wall-clock seconds since the Unix epoch.
    pub wall: u64,
    /// Monotonic ns.
    pub now: u64,
    /// Connections that are half-open.
    pub half_open: u64,
    /// SYNs that passed and became half-open, since ever.
    pub started: u64,
    /// Handshakes completed, with the server or with a cookie, since ever.
    pub completed: u64,
    /// Handshakes refused by the server or given up by the client, since ever.
    pub reset: u64,
    /// Whether the programs have turned the service guarded.
    pub guarded: bool,
    /// Half-open connections at which they do.
    pub high: u32,
}

/// A minute that says what is normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minute {
    /// Which one: minutes since the Unix epoch.
    pub at: u64,
    /// The most connections that were half-open at once.
    pub peak: u32,
    /// SYNs.
    pub syns: u32,
    /// For how long a connection was half-open on average, ms; 0 where there were too few.
    pub dwell_ms: u32,
}

/// The minute that is going on.
#[derive(Clone, Debug)]
pub struct Going {
    first: Sample,
    last: Sample,
    peak: u64,
    /// Half-open connections times the ns for which they were.
    area: f64,
    clean: bool,
}

impl Going {
    /// Begins at a sample; `clean` where nothing is left of a guarded time.
    pub fn begin(first: Sample, clean: bool) -> Self {
        let mut going = Self {
            first,
            last: first,
            peak: 0,
            area: 0.0,
            clean,
        };
        going.take(first);
        going
    }

    /// Whether a sample belongs to it.
    pub fn covers(&self, sample: &Sample) -> bool {
        sample.wall / MINUTE == self.first.wall / MINUTE
    }

    /// Takes note of a sample.
    pub fn take(&mut self, sample: Sample) {
        let time = sample.now.saturating_sub(self.last.now);
        self.area += self.last.half_open as f64 * time as f64;
        self.peak = self.peak.max(sample.half_open);
        self.clean &= !sample.guarded && sample.half_open < u64::from(sample.high);
        self.last = sample;
    }

    /// What it says, if anything, with the sample that ends it.
    pub fn end(mut self, sample: Sample) -> Option<Minute> {
        self.take(sample);
        let since =
            |count: fn(&Sample) -> u64| count(&self.last).saturating_sub(count(&self.first));
        let started = since(|sample| sample.started);
        let completed = since(|sample| sample.completed);
        let reset = since(|sample| sample.reset);
        let unanswered = started.saturating_sub(completed.saturating_add(reset));
        let seen = since(|sample| sample.now);
        let clean = self.clean
            // The next minute may be long after: the machine slept.
            && (SEEN..2 * SEEN).contains(&seen)
            && unanswered <= STRAYS.max(started / VANISHING);
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        clean.then(|| Minute {
            at: self.first.wall / MINUTE,
            peak: number(self.peak),
            syns: number(started),
            dwell_ms: if completed >= ENOUGH {
                let dwell = Duration::from_nanos((self.area / started as f64) as u64);
                number(dwell.as_millis() as u64).max(1)
            } else {
                0
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A minute with these totals, `half_open` all the time.
    fn minute(half_open: u64, started: u64, completed: u64, reset: u64) -> Option<Minute> {
        let sample = |second: u64| Sample {
            wall: 600 + second,
            now: 5 * SECOND + second * SECOND,
            half_open,
            started: 1000 + started * second / 60,
            completed: 900 + completed * second / 60,
            reset: reset * second / 60,
            guarded: false,
            high: 1000,
        };
        let mut going = Going::begin(sample(0), true);
        for second in 1..60 {
            assert!(going.covers(&sample(second)));
            going.take(sample(second));
        }
        assert!(!going.covers(&sample(60)));
        going.end(sample(60))
    }

    #[test]
    fn littles_law_says_how_long_a_handshake_takes() {
        let minute = minute(8, 1200, 1180, 20).unwrap();
        assert_eq!((minute.at, minute.peak, minute.syns), (10, 8, 1200));
        // 8 = 1200 / 60 s × 0.4 s
        assert!((399..=401).contains(&minute.dwell_ms), "{minute:?}");
    }

    #[test]
    fn a_minute_whose_syns_go_unanswered_says_nothing() {
        assert!(minute(5, 1000, 950, 0).is_some());
        assert!(minute(5, 1000, 949, 0).is_none());
        assert!(minute(5, 1000, 900, 50).is_some(), "a RST is an answer");
        assert!(minute(5, 3, 0, 0).is_some(), "a scanner passes by");
        assert!(minute(5, 4, 0, 0).is_none());
    }

    #[test]
    fn neither_does_one_that_was_guarded_above_high_or_cut_short() {
        assert!(minute(999, 1000, 1000, 0).is_some());
        assert!(minute(1000, 1000, 1000, 0).is_none());
        let at = |now, guarded| Sample {
            now,
            guarded,
            high: 10,
            ..Sample::default()
        };
        for (guarded, clean, now, says) in [
            (false, true, 60, true),
            (true, true, 60, false),
            (false, false, 60, false),
            (false, true, 49, false),
            (false, true, 5000, false),
        ] {
            let mut going = Going::begin(at(0, false), clean);
            going.take(at(SECOND, guarded));
            let minute = going.end(at(now * SECOND, false));
            assert_eq!(minute.is_some(), says, "{guarded} {clean} {now}");
        }
    }
}
