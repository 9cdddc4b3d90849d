//! What a counter gains per second, over the last two.

use std::collections::VecDeque;

const WINDOW: u64 = 2_000_000_000;

/// The newest values of a counter, with their moments in monotonic ns.
#[derive(Clone, Debug, Default)]
pub struct Rate(VecDeque<(u64, u64)>);

impl Rate {
    /// Takes note of the counter.
    pub fn observe(&mut self, now: u64, count: u64) {
        self.0.push_back((now, count));
        // One value stays that is at least as old as the window.
        while self
            .0
            .get(1)
            .is_some_and(|(then, _)| now.saturating_sub(*then) >= WINDOW)
        {
            self.0.pop_front();
        }
    }

    /// Per second.
    pub fn per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else {
            return 0.0;
        };
        match last.0.saturating_sub(first.0) {
            0 => 0.0,
            time => last.1.saturating_sub(first.1) as f64 * 1e9 / time as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_two_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0.0);
        for tick in 0..40u64 {
            // 100 a second at first, 1000 later.
            let count = if tick < 20 {
                tick * 25
            } else {
                500 + (tick - 20) * 250
            };
            rate.observe(tick * 250_000_000, count);
            if tick == 19 {
                assert_eq!(rate.per_second(), 100.0);
            }
        }
        assert_eq!(rate.per_second(), 1000.0);
        assert_eq!(rate.0.len(), 9);
        let mut cleared = rate;
        cleared.observe(40 * 250_000_000, 0);
        assert_eq!(cleared.per_second(), 0.0);
    }
}
