//! When a guarded service becomes calm again. Pure: fed with samples, asked for a decision.
//!
//! While a service is guarded nothing is half-open because of the flood, so the decision needs a
//! projection: how many half-open connections there *would* be. Every challenge that nobody
//! answers would have been one, for as long as a half-open connection lives:
//!
//! ```text
//! answered  = admitted + lost
//! unanswered per second = max(0, challenged − answered − answered / 20) / seconds
//! projected = unanswered per second × half_open_timeout
//! ```
//!
//! `lost` are clients that did answer and that the kernel then had no
//! room for. The twentieth is forgiven because real clients lose packets: each lost SYN-ACK costs
//! a second challenge, though in a calm service it would be a retransmission of the same half-open
//! connection. It is a share of the *answered* challenges, so that a flood, which answers none, is
//! forgiven nothing.
//!
//! The service becomes calm once `projected + half-open now` has been below `low` for `calm_after`,
//! and not before it was guarded for [`HOLD`]. The rate is that of the last [`WINDOW`]: a flood that has
//! ended is out of it after that time, and one client of a small service who vanished, or who is about
//! to answer, weighs little in it. What is shown to people is the rate of the last two seconds.

use std::{collections::VecDeque, time::Duration};

/// The least time a service stays guarded.
pub const HOLD: Duration = Duration::from_secs(15);
/// What the rate is taken over that decides; no service is calm again sooner.
const WINDOW: Duration = HOLD;
/// What the rate is taken over that is shown.
const LATELY: Duration = Duration::from_secs(2);

/// What a service's counters say at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Monotonic ns.
    pub now: u64,
    /// Challenges sent since ever.
    pub challenged: u64,
    /// Connections admitted since ever.
    pub admitted: u64,
    /// Valid cookies that did not become a connection since ever.
    pub lost: u64,
}

/// What it takes to become calm.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Half-open connections below which the service may become calm.
    pub low: u32,
    /// For how long.
    pub calm_after: Duration,
    /// How long a half-open connection lives.
    pub half_open_timeout: Duration,
}

/// Memory of one service.
#[derive(Clone, Debug, Default)]
pub struct Calm {
    samples: VecDeque<Sample>,
    below_since: Option<u64>,
}

impl Calm {
    /// Takes note of the counters.
    pub fn observe(&mut self, sample: Sample) {
        self.samples.push_back(sample);
        // One sample stays that is at least as old as the window.
        while self
            .samples
            .get(1)
            .is_some_and(|second| age(sample, *second) >= WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// Half-open connections there would be, were the service not guarded, by what came lately.
    pub fn projected(&self, half_open_timeout: Duration) -> u64 {
        self.projected_over(LATELY, half_open_timeout)
    }

    fn projected_over(&self, window: Duration, half_open_timeout: Duration) -> u64 {
        let Some(last) = self.samples.back() else {
            return 0;
        };
        let mut latest_first = self.samples.iter().rev();
        let first = latest_first.find(|first| age(*last, **first) >= window);
        let Some(first) = first.or(self.samples.front()) else {
            return 0;
        };
        let seconds = age(*last, *first).as_secs_f64();
        if seconds == 0.0 {
            return 0;
        }
        let challenged = last.challenged.saturating_sub(first.challenged);
        let answered = (last.admitted + last.lost).saturating_sub(first.admitted + first.lost);
        let unanswered = challenged.saturating_sub(answered + answered / 20);
        (unanswered as f64 / seconds * half_open_timeout.as_secs_f64()).round() as u64
    }

    /// Whether the service, guarded since `guarded_at` (monotonic ns) and with `half_open`
    /// connections in its table, becomes calm at the last sample.
    pub fn decide(&mut self, guarded_at: u64, half_open: u64, rules: Rules) -> bool {
        let Some(now) = self.samples.back().map(|sample| sample.now) else {
            return false;
        };
        let projected = self.projected_over(WINDOW, rules.half_open_timeout);
        if projected.saturating_add(half_open) >= u64::from(rules.low) {
            self.below_since = None;
            return false;
        }
        let since = *self.below_since.get_or_insert(now);
        // The rate was below, on average, for as long as it is taken over. What was before the service
        // was guarded does not count.
        let since = since.saturating_sub(WINDOW.as_nanos() as u64);
        let below = now.saturating_sub(since.max(guarded_at));
        let guarded = now.saturating_sub(guarded_at);
        below >= rules.calm_after.as_nanos() as u64 && guarded >= HOLD.as_nanos() as u64
    }

    /// Starts anew after a change of state.
    pub fn restart(&mut self) {
        self.below_since = None;
    }
}

fn age(now: Sample, then: Sample) -> Duration {
    Duration::from_nanos(now.now.saturating_sub(then.now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 250_000_000;
    const SECOND: u64 = 1_000_000_000;
    const RULES: Rules = Rules {
        low: 256,
        calm_after: Duration::from_secs(15),
        half_open_timeout: Duration::from_secs(64),
    };

    /// A service and the traffic it sees.
    struct Bench {
        calm: Calm,
        sample: Sample,
        guarded_at: u64,
    }

    impl Bench {
        fn guarded_at(now: u64) -> Self {
            Self {
                calm: Calm::default(),
                sample: Sample {
                    now,
                    ..Sample::default()
                },
                guarded_at: now,
            }
        }

        /// Runs `seconds` at these rates; the seconds after which it became calm, if it did.
        fn run(
            &mut self,
            seconds: u64,
            challenged: u64,
            admitted: u64,
            half_open: u64,
        ) -> Option<u64> {
            for tick in 1..=seconds * 4 {
                self.sample.now += TICK;
                self.sample.challenged += challenged / 4;
                self.sample.admitted += admitted / 4;
                self.calm.observe(self.sample);
                if self.calm.decide(self.guarded_at, half_open, RULES) {
                    return Some(tick / 4);
                }
            }
            None
        }
    }

    #[test]
    fn a_flood_keeps_it_guarded_and_its_end_makes_it_calm_after_calm_after() {
        let mut bench = Bench::guarded_at(100 * SECOND);
        assert_eq!(bench.run(60, 1_000_000, 2000, 0), None);
        let after = bench.run(60, 2000, 2000, 0).unwrap();
        assert!((15..=18).contains(&after), "{after}");
    }

    #[test]
    fn a_trickle_that_would_refill_the_table_keeps_it_guarded() {
        // 8 a second for 64 s are 512 half-open connections.
        let mut bench = Bench::guarded_at(0);
        assert_eq!(bench.run(120, 8, 0, 0), None);
        assert_eq!(bench.calm.projected(RULES.half_open_timeout), 512);
    }

    #[test]
    fn ordinary_loss_among_many_clients_is_forgiven() {
        let mut bench = Bench::guarded_at(0);
        // Two in a hundred challenges get lost and are asked for again.
        assert!(bench.run(60, 20_400, 20_000, 0).is_some());
        let mut bench = Bench::guarded_at(0);
        // But not a flood among them.
        assert_eq!(bench.run(60, 24_000, 20_000, 0), None);
    }

    #[test]
    fn clients_the_kernel_had_no_room_for_were_real() {
        let mut calm = Calm::default();
        calm.observe(Sample::default());
        calm.observe(Sample {
            now: 2 * SECOND,
            challenged: 1000,
            admitted: 500,
            lost: 500,
        });
        assert_eq!(calm.projected(RULES.half_open_timeout), 0);
    }

    #[test]
    fn a_client_who_vanishes_now_and_then_keeps_no_service_guarded() {
        let mut bench = Bench::guarded_at(0);
        let rules = Rules { low: 32, ..RULES };
        let calm = (1..=80).find(|tick| {
            bench.sample.now += TICK;
            bench.sample.challenged += 1;
            // Every twentieth; the others answer before the next tick.
            bench.sample.admitted += u64::from(tick % 20 != 0);
            bench.calm.observe(bench.sample);
            bench.calm.decide(0, 0, rules)
        });
        assert_eq!(calm, Some(60));
    }

    #[test]
    fn a_full_table_keeps_it_guarded() {
        assert_eq!(Bench::guarded_at(0).run(60, 0, 0, 256), None);
        assert_eq!(Bench::guarded_at(0).run(60, 0, 0, 255), Some(15));
    }

    #[test]
    fn it_is_held_for_a_while_even_if_calm_after_is_short() {
        let mut bench = Bench::guarded_at(0);
        let rules = Rules {
            calm_after: Duration::from_secs(1),
            ..RULES
        };
        let mut became = None;
        while became.is_none() {
            bench.sample.now += TICK;
            bench.calm.observe(bench.sample);
            became = bench.calm.decide(0, 0, rules).then_some(bench.sample.now);
        }
        assert_eq!(became, Some(15 * SECOND));
    }

    #[test]
    fn an_interruption_starts_the_wait_anew() {
        let mut bench = Bench::guarded_at(0);
        assert_eq!(bench.run(14, 0, 0, 0), None);
        assert_eq!(bench.run(1, 100_000, 0, 0), None);
        let after = bench.run(60, 0, 0, 0).unwrap();
        assert!((15..=18).contains(&after), "{after}");
    }

    #[test]
    fn calm_time_before_it_was_guarded_again_does_not_count() {
        let mut bench = Bench::guarded_at(0);
        assert_eq!(bench.run(60, 0, 0, 0), Some(15));
        bench.guarded_at = bench.sample.now;
        assert_eq!(bench.run(60, 0, 0, 0), Some(15));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut calm = Calm::default();
        for tick in 0..1000 {
            calm.observe(Sample {
                now: tick * TICK,
                ..Sample::default()
            });
        }
        assert_eq!(calm.samples.len(), 61);
    }
}
