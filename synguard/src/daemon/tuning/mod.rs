//! `auto`: what is normal for a service, and the watermarks that follow. Pure: fed with samples, asked
//! for advice; the daemon and `cargo xtask bench tuning` run the same code.
//!
//! docs/tuning.md tells the method. In short:
//!
//! * A minute that was calm, and in which handshakes were completed, says what is normal ([`minute`]);
//!   sixty of them make an hour, and medians over hours and weeks make the baseline ([`history`]).
//! * The high watermark lies six spreads above the baseline, and never below twice of it.
//! * *Crowds*: completed handshakes cannot be forged by those who do not get the answer. As many
//!   connections as the present rate of completions explains (by Little's law, twice over) are never
//!   held against a service: the watermark is raised within a second.
//! * What is wanted is rounded up to a step of half an octave, raised at once and lowered only when
//!   less has been enough for five minutes, so that the journal tells of changes and not of noise.
//!
//! [`super::watermark`] has the last word: bounds, the listeners' backlog, and what to begin with.

mod fleet;
mod history;
mod minute;
mod robust;
mod store;

use std::{collections::VecDeque, time::Duration};

pub use self::{
    fleet::Tuning,
    history::{History, Hour, Normal},
    minute::{Minute, Sample},
};
use self::{minute::Going, robust::median};

/// Spreads between what is normal and the high watermark.
const SPREADS: f64 = 6.0;
/// A spread is at least this share of what is normal: a service whose weeks are all alike may differ
/// tomorrow.
const LEAST_SPREAD: f64 = 1.0 / 8.0;
/// How often over the completions of a crowd must explain its half-open connections.
const CROWD: f64 = 2.0;
/// How long a handshake may take where nothing is known of it, in seconds: a round trip, or a
/// retransmission now and then.
const UNKNOWN_DWELL: f64 = 1.0;
/// What the rate of completions is taken over.
const RATE: Duration = Duration::from_secs(1);
/// How long that rate counts: the clients of a crowd that vanished are half-open for as long.
const CROWD_MEMORY: Duration = Duration::from_secs(64);
/// For how long less must be enough before less is advised.
const PATIENCE: Duration = Duration::from_secs(300);
/// Minutes of an hour without which it says nothing.
const ENOUGH_MINUTES: usize = 20;
/// Minutes of an hour.
const MINUTES: u64 = 60;

/// What the tuner would have a service's high watermark be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// By what is normal, once that is known.
    pub learned: Option<Learned>,
    /// By what the clients of a crowd complete; 0 where there is none.
    pub crowd: u32,
}

/// A high watermark that follows from what is normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// It.
    pub high: u32,
    /// Half-open connections at the busiest moment of a normal hour, when it was set.
    pub normal: u32,
    /// Whether that is of this hour of the week, rather than of the last day.
    pub weekly: bool,
}

/// What is remembered of one service.
#[derive(Clone, Debug, Default)]
pub struct Tuner {
    history: History,
    /// Of the hour that is going on, those that say something.
    minutes: Vec<Minute>,
    going: Option<Going>,
    /// Monotonic ns until which half-open connections may be left over from a guarded time.
    tainted_until: u64,
    /// How long they may be.
    half_open_timeout: Duration,
    dwell: Option<f64>,
    normal: Option<Normal>,
    learned: Option<Learned>,
    learned_step: Step,
    rate: Completions,
    crowd_step: Step,
}

impl Tuner {
    /// One that goes on with what is known.
    pub fn resumed(history: History, minutes: Vec<Minute>) -> Self {
        Self {
            dwell: history.dwell(),
            history,
            minutes,
            ..Self::default()
        }
    }

    /// What is known: hours, and the minutes of the hour that is going on.
    pub fn known(&self) -> (&History, &[Minute]) {
        (&self.history, &self.minutes)
    }

    /// What is normal now, once that is known.
    pub fn normal(&self) -> Option<Normal> {
        self.normal
    }

    /// What it advises.
    pub fn advice(&self) -> Advice {
        Advice {
            learned: self.learned,
            crowd: self.crowd_step.value,
        }
    }

    /// Sets how long a half-open connection lives.
    pub fn set_half_open_timeout(&mut self, timeout: Duration) {
        self.half_open_timeout = timeout;
    }

    /// Takes note of the counters, several times a second. True where an hour became history.
    pub fn observe(&mut self, sample: Sample) -> bool {
        self.rate.take(&sample);
        let explained = CROWD * self.dwell.unwrap_or(UNKNOWN_DWELL) * self.rate.greatest();
        self.crowd_step.settle(explained, 1, sample.now);

        if sample.guarded {
            let timeout = u64::try_from(self.half_open_timeout.as_nanos()).unwrap_or(u64::MAX);
            self.tainted_until = sample.now.saturating_add(timeout);
        }
        match &mut self.going {
            Some(going) if going.covers(&sample) => {
                going.take(sample);
                false
            }
            _ => {
                let clean = sample.now >= self.tainted_until;
                let ended = self.going.replace(Going::begin(sample, clean));
                let minute = ended.and_then(|going| going.end(sample));
                let hour = self.learn(minute, sample.wall);
                self.judge(&sample);
                hour
            }
        }
    }

    /// Keeps a minute; the first of another hour makes history of the others.
    fn learn(&mut self, minute: Option<Minute>, wall: u64) -> bool {
        self.minutes.extend(minute);
        let hour = wall / (MINUTES * 60);
        let Some(first) = self.minutes.first().map(|minute| minute.at / MINUTES) else {
            return false;
        };
        if first == hour {
            return false;
        }
        let mut minutes = std::mem::take(&mut self.minutes);
        // Where the clock was put back they are not of one hour.
        minutes.retain(|minute| minute.at / MINUTES == first);
        let Some(summary) = summary(first, &minutes) else {
            return false;
        };
        self.history.push(summary);
        self.dwell = self.history.dwell();
        true
    }

    /// Once a minute: what is normal, and what follows.
    fn judge(&mut self, sample: &Sample) {
        self.normal = self.history.normal(sample.wall);
        let Some(Normal {
            half_open, weekly, ..
        }) = self.normal
        else {
            return;
        };
        let least = half_open
            .location
            .sqrt()
            .max(half_open.location * LEAST_SPREAD);
        let wanted = half_open.location + SPREADS * half_open.spread.max(least);
        let wanted = wanted.max(2.0 * half_open.location);
        let before = self.learned_step.value;
        self.learned_step.settle(wanted, 2, sample.now);
        // The reason belongs to the step: without another one, it is not news.
        if self.learned.is_none() || before != self.learned_step.value {
            self.learned = Some(Learned {
                high: self.learned_step.value,
                normal: half_open.location.round() as u32,
                weekly,
            });
        }
    }
}

/// An hour by its minutes, if they are enough.
fn summary(at: u64, minutes: &[Minute]) -> Option<Hour> {
    if minutes.len() < ENOUGH_MINUTES {
        return None;
    }
    let most = |of: fn(&Minute) -> u32| minutes.iter().map(of).max().unwrap_or(0);
    let middle = |of: fn(&Minute) -> u32| {
        let values = minutes.iter().map(of).filter(|value| *value > 0);
        let mut values: Vec<f64> = values.map(f64::from).collect();
        median(&mut values).unwrap_or(0.0).round() as u32
    };
    Some(Hour {
        at: u32::try_from(at).ok()?,
        peak: most(|minute| minute.peak),
        syns: middle(|minute| minute.syns),
        most_syns: most(|minute| minute.syns),
        dwell_ms: middle(|minute| minute.dwell_ms),
    })
}

/// How many handshakes are completed a second.
#[derive(Clone, Debug, Default)]
struct Completions {
    /// Monotonic ns and the counter.
    counts: VecDeque<(u64, u64)>,
    /// The greatest rates that are not too old: falling, with their moments.
    rates: VecDeque<(u64, f64)>,
}

impl Completions {
    fn take(&mut self, sample: &Sample) {
        let age = |then: u64| Duration::from_nanos(sample.now.saturating_sub(then));
        self.counts.push_back((sample.now, sample.completed));
        while self.counts.get(1).is_some_and(|next| age(next.0) >= RATE) {
            self.counts.pop_front();
        }
        let Some((then, count)) = self.counts.front().copied() else {
            return;
        };
        let seconds = age(then).max(RATE).as_secs_f64();
        let rate = sample.completed.saturating_sub(count) as f64 / seconds;
        while self.rates.back().is_some_and(|back| back.1 <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((sample.now, rate));
        while self
            .rates
            .front()
            .is_some_and(|front| age(front.0) > CROWD_MEMORY)
        {
            self.rates.pop_front();
        }
    }

    fn greatest(&self) -> f64 {
        self.rates.front().map_or(0.0, |front| front.1)
    }
}

/// A value that rises at once and falls late, in steps.
#[derive(Clone, Debug, Default)]
struct Step {
    value: u32,
    /// Since when (monotonic ns) less has been enough, and how much of it was.
    less: Option<(u64, u32)>,
}

impl Step {
    /// Has it follow what is wanted, rounded up to one of `per_octave` steps to an octave.
    fn settle(&mut self, wanted: f64, per_octave: u32, now: u64) {
        let wanted = round_up(wanted, per_octave);
        if wanted >= self.value {
            self.value = wanted;
            self.less = None;
            return;
        }
        let (since, most) = self
            .less
            .map_or((now, wanted), |(since, most)| (since, most.max(wanted)));
        if Duration::from_nanos(now.saturating_sub(since)) >= PATIENCE {
            self.value = most;
            self.less = None;
        } else {
            self.less = Some((since, most));
        }
    }
}

/// The next of `per_octave` steps to an octave.
fn round_up(value: f64, per_octave: u32) -> u32 {
    /// As the logarithm of a step is not exact.
    const TOLERANCE: f64 = 1e-9;
    if value < 1.0 {
        return 0;
    }
    let steps = (value.log2() * f64::from(per_octave) - TOLERANCE).ceil();
    (steps / f64::from(per_octave)).exp2().ceil() as u32
}

#[cfg(test)]
mod tests;
