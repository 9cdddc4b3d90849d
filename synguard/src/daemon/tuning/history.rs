//! What was normal: hour by hour, for five weeks.
//!
//! An hour is told in five numbers, taken from those of its minutes in which the service was calm and
//! its handshakes were completed ([`super::minute`] decides). What is normal now follows from the
//! hours in two ways:
//!
//! * *recently*: median and spread over the last 24 hours that are known. Three hours are enough to
//!   begin with.
//! * *at this hour of the week*, once two weeks or more are known: median and spread over the weeks,
//!   interpolated between the middles of two hours. What the last hour had counts too, so that a busy
//!   day, or a clock that was put forward in spring, is not held against the wrong hour.
//!
//! Each of these is a median: hours that are bad, for whatever reason, change nothing as long as they
//! are fewer than half.

use std::collections::VecDeque;

use super::robust::{Robust, median};

/// Hours of a week.
const WEEK: u32 = 7 * 24;
/// Weeks that are kept.
const WEEKS: u32 = 5;
/// Hours that are kept.
pub const HOURS: usize = (WEEK * WEEKS) as usize;
/// Hours that say what is normal of late.
const RECENT: usize = 24;
/// Hours without which nothing is.
const ENOUGH_HOURS: usize = 3;
/// Weeks without which nothing is known of an hour of the week.
const ENOUGH_WEEKS: usize = 2;
/// Seconds of an hour.
const HOUR: u64 = 3600;

/// An hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    /// Which one: hours since the Unix epoch.
    pub at: u32,
    /// The most connections that were half-open at once.
    pub peak: u32,
    /// SYNs in a minute: the median of its minutes.
    pub syns: u32,
    /// SYNs in the busiest minute.
    pub most_syns: u32,
    /// For how long a connection was half-open on average: the median of its minutes, ms; 0 where
    /// there were too few.
    pub dwell_ms: u32,
}

/// What is normal at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// Half-open connections at the busiest moment of an hour.
    pub half_open: Robust,
    /// SYNs per second.
    pub syn_rate: f64,
    /// Whether it is what is normal at this hour of the week.
    pub weekly: bool,
}

/// The hours that are known, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Hour>);

impl History {
    /// Adds an hour. What is not younger than the hours that are known is as if it had not been: the
    /// clock was put back.
    pub fn push(&mut self, hour: Hour) {
        if self.0.back().is_some_and(|last| hour.at <= last.at) {
            return;
        }
        let oldest = hour.at.saturating_sub(WEEK * WEEKS);
        self.0.push_back(hour);
        while self.0.len() > HOURS || self.0.front().is_some_and(|first| first.at < oldest) {
            self.0.pop_front();
        }
    }

    /// The hours, oldest first.
    pub fn hours(&self) -> impl DoubleEndedIterator<Item = &Hour> {
        self.0.iter()
    }

    /// For how long a connection is half-open on average, in seconds, where that is known.
    pub fn dwell(&self) -> Option<f64> {
        let known = self.recent().map(|hour| f64::from(hour.dwell_ms) / 1e3);
        let mut known: Vec<f64> = known.filter(|dwell| *dwell > 0.0).collect();
        (known.len() >= ENOUGH_HOURS)
            .then(|| median(&mut known))
            .flatten()
    }

    /// What is normal at a moment, in seconds since the Unix epoch.
    pub fn normal(&self, wall: u64) -> Option<Normal> {
        let Some(mut weekly) = self.weekly(wall) else {
            return (self.0.len() >= ENOUGH_HOURS)
                .then(|| among(self.recent(), false))
                .flatten();
        };
        let last = self.0.back();
        if let Some(last) = last.filter(|last| u64::from(last.at) + 1 == wall / HOUR) {
            let half_open = &mut weekly.half_open;
            half_open.location = half_open.location.max(last.expected());
        }
        Some(weekly)
    }

    fn recent(&self) -> impl Iterator<Item = &Hour> + Clone {
        self.0.iter().rev().take(RECENT)
    }

    /// What is normal at this hour of the week.
    fn weekly(&self, wall: u64) -> Option<Normal> {
        // An hour's numbers are true in its middle.
        let since_middle = wall.checked_sub(HOUR / 2)?;
        let hour = u32::try_from(since_middle / HOUR).ok()?;
        let share = (since_middle % HOUR) as f64 / HOUR as f64;
        let [this, next] = [hour, hour + 1].map(|hour| {
            let weeks = (1..=WEEKS).filter_map(|week| self.find(hour.checked_sub(week * WEEK)?));
            (weeks.clone().count() >= ENOUGH_WEEKS)
                .then(|| among(weeks, true))
                .flatten()
        });
        let (this, next) = (this?, next?);
        Some(Normal {
            half_open: this.half_open.towards(next.half_open, share),
            syn_rate: this.syn_rate + (next.syn_rate - this.syn_rate) * share,
            weekly: true,
        })
    }

    fn find(&self, at: u32) -> Option<&Hour> {
        let index = self.0.binary_search_by_key(&at, |hour| hour.at).ok()?;
        self.0.get(index)
    }
}

impl Hour {
    /// Half-open connections: the most that were seen, and no less than the busiest minute makes on
    /// average (Little's law: arrivals per second times the time that each stays).
    fn expected(&self) -> f64 {
        let on_average = f64::from(self.most_syns) / 60.0 * f64::from(self.dwell_ms) / 1e3;
        f64::from(self.peak).max(on_average)
    }
}

fn among<'a>(hours: impl Iterator<Item = &'a Hour> + Clone, weekly: bool) -> Option<Normal> {
    let rates = hours.clone().map(|hour| f64::from(hour.syns) / 60.0);
    Some(Normal {
        half_open: Robust::of(hours.map(Hour::expected))?,
        syn_rate: median(&mut rates.collect::<Vec<_>>())?,
        weekly,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(at: u32, peak: u32) -> Hour {
        Hour {
            at,
            peak,
            syns: 60 * peak,
            most_syns: 60 * peak,
            dwell_ms: 500,
        }
    }

    fn history(hours: impl Iterator<Item = Hour>) -> History {
        let mut history = History::default();
        hours.for_each(|hour| history.push(hour));
        history
    }

    /// The first second of an hour.
    fn at(hour: u32) -> u64 {
        u64::from(hour) * HOUR
    }

    #[test]
    fn nothing_is_normal_before_three_hours_are_known() {
        let mut history = history((0..2).map(|at| hour(at, 10)));
        assert_eq!(history.normal(at(2)), None);
        assert_eq!(history.dwell(), None);
        history.push(hour(2, 20));
        let normal = history.normal(at(3)).unwrap();
        assert_eq!((normal.half_open.location, normal.syn_rate), (10.0, 10.0));
        assert!(!normal.weekly);
        assert_eq!(history.dwell(), Some(0.5));
    }

    #[test]
    fn a_day_with_eleven_bad_hours_is_as_one_without() {
        let bad = |at| if at % 2 == 1 && at < 23 { 10_000 } else { 10 };
        let normal = history((0..24).map(|at| hour(at, bad(at)))).normal(at(24));
        assert_eq!(
            normal.map(|normal| normal.half_open.location),
            Some(10.0),
            "11 of 24"
        );
    }

    #[test]
    fn an_hour_of_the_week_is_known_after_two_weeks_and_interpolated() {
        // Ten, but a hundred from 08:00 to 09:00 on one day of the week.
        let peak = |at: u32| if at % WEEK == 8 { 100 } else { 10 };
        let hours = |n: u32| history((0..n).map(|at| hour(at, peak(at))));
        let busy = at(2 * WEEK + 8) + HOUR / 2;
        assert!(!hours(2 * WEEK).normal(at(2 * WEEK - 1)).unwrap().weekly);
        let known = hours(2 * WEEK + 8);
        let location = |wall| known.normal(wall).unwrap().half_open.location;
        assert!(known.normal(busy).unwrap().weekly);
        assert_eq!(location(busy), 100.0);
        assert_eq!(location(busy - HOUR / 2), 55.0);
        assert_eq!(location(busy - HOUR), 10.0);
        assert_eq!(location(busy + HOUR), 10.0);
    }

    #[test]
    fn one_bad_week_of_three_changes_nothing() {
        let bad = |at| {
            if (WEEK..2 * WEEK).contains(&at) {
                5000
            } else {
                10
            }
        };
        let known = history((0..4 * WEEK).map(|at| hour(at, bad(at))));
        let normal = known.normal(at(4 * WEEK)).unwrap();
        assert!(normal.weekly);
        assert_eq!(normal.half_open.location, 10.0);
    }

    #[test]
    fn a_busy_day_is_followed_by_the_hour() {
        let mut known = history((0..3 * WEEK).map(|at| hour(at, 10)));
        known.push(hour(3 * WEEK, 70));
        let normal = known.normal(at(3 * WEEK + 1)).unwrap();
        assert_eq!(normal.half_open.location, 70.0);
        let later = known.normal(at(3 * WEEK + 2)).unwrap();
        assert_eq!(later.half_open.location, 10.0);
    }

    #[test]
    fn five_weeks_are_kept_and_a_clock_put_back_adds_nothing() {
        let mut known = history((0..2000).map(|at| hour(at, 1)));
        assert_eq!(known.hours().count(), HOURS);
        known.push(hour(1500, 9));
        assert!(known.hours().all(|hour| hour.peak == 1));
        known.push(hour(100_000, 9));
        assert_eq!(known.hours().count(), 1, "the others are too old");
    }

    #[test]
    fn a_service_that_was_off_for_a_while_goes_by_what_it_had() {
        let known = history((0..24).map(|at| hour(at, 10)));
        assert!(known.normal(at(24 + 3 * 24)).is_some());
    }
}
