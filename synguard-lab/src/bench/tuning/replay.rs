//! A trace, replayed in simulated time to every defence at once, and what each made of it.

use std::{ops::Range, time::Duration};

use serde::Serialize;

use super::{
    defences::{Defence, FixedRate, Synguard, TcpIntercept},
    traces::Trace,
    traffic::{TICK, Traffic},
    world::World,
};

/// How long an attack's SYNs would be half-open: until then being guarded is no needless thing.
const AFTERMATH: Duration = Duration::from_secs(64);
/// False alarms that follow each other within this time are one.
const SAME: Duration = Duration::from_secs(60);
/// Seconds of a week.
const WEEK: f64 = 7.0 * 86_400.0;
/// A second, µs.
const SECOND: f64 = 1e6;

/// How a defence did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Seconds from the first SYN of the attack until it was guarded; none where there is no attack, or
    /// it never was.
    pub detect_s: Option<f64>,
    /// How often it was guarded without an attack, per week.
    pub false_guards_per_week: f64,
    /// Seconds for which it was.
    pub needless_guarded_s: f64,
}

/// How all of them did.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The trace.
    pub name: &'static str,
    /// Whether there is an attack in it.
    pub attack: bool,
    /// synguard.
    #[serde(flatten)]
    pub synguard: Score,
    /// The others.
    pub rivals: Rivals,
}

/// How the rivals did.
#[derive(Clone, Debug, Serialize)]
pub struct Rivals {
    /// Cisco's.
    pub tcp_intercept: Score,
    /// A threshold of the SYN rate.
    pub fixed_rate: Score,
}

/// A defence, its world and its record.
struct Run<D> {
    defence: D,
    world: World,
    /// Since when it is guarded, µs.
    since: Option<u64>,
    /// Guarded times, µs.
    times: Vec<Range<u64>>,
}

impl<D: Defence> Run<D> {
    fn new(defence: D) -> Self {
        Self {
            defence,
            world: World::new(),
            since: None,
            times: Vec::new(),
        }
    }

    fn look(&mut self, now: u64) {
        match (self.since, self.defence.is_guarded()) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.times.push(since..now);
                self.since = None;
            }
            _ => {}
        }
    }

    fn score(mut self, trace: &Trace, end: u64) -> Score {
        self.times.extend(self.since.map(|since| since..end));
        score(&self.times, trace.attack.as_ref(), end)
    }
}

/// Replays a trace; `step` is told of the share that is done, now and then.
pub fn replay(trace: &Trace, mut step: impl FnMut(f64)) -> Outcome {
    let mut synguard = Run::new(Synguard::new(trace.backlog));
    let mut tcp_intercept = Run::new(TcpIntercept::default());
    let mut fixed_rate = Run::new(FixedRate::default());
    let mut traffic = Traffic::new(&trace.parts, trace.seed);
    let mut arrivals = Vec::new();
    let ticks = (trace.length * SECOND) as u64 / TICK.as_micros() as u64;
    for tick in 1..=ticks {
        traffic.next(&mut arrivals);
        let now = tick * TICK.as_micros() as u64;
        each(&mut synguard, &arrivals, now);
        each(&mut tcp_intercept, &arrivals, now);
        each(&mut fixed_rate, &arrivals, now);
        if tick % 10_000 == 0 {
            step(tick as f64 / ticks as f64);
        }
    }
    let end = ticks * TICK.as_micros() as u64;
    Outcome {
        name: trace.name,
        attack: trace.attack.is_some(),
        synguard: synguard.score(trace, end),
        rivals: Rivals {
            tcp_intercept: tcp_intercept.score(trace, end),
            fixed_rate: fixed_rate.score(trace, end),
        },
    }
}

fn each<D: Defence>(run: &mut Run<D>, arrivals: &[super::traffic::Arrival], now: u64) {
    for arrival in arrivals {
        run.world.advance(arrival.at);
        run.defence.arrives(&mut run.world, arrival);
        run.look(arrival.at);
    }
    run.world.advance(now);
    run.defence.tick(&mut run.world, now);
    run.look(now);
}

fn score(times: &[Range<u64>], attack: Option<&Range<f64>>, end: u64) -> Score {
    let attack = attack.map(|attack| {
        let [begin, over] = [attack.start, attack.end].map(|second| (second * SECOND) as u64);
        begin..over + AFTERMATH.as_micros() as u64
    });
    let needed = attack.clone().unwrap_or(0..0);
    let overlap = |time: &Range<u64>| {
        let shared = time.start.max(needed.start)..time.end.min(needed.end);
        shared.end.saturating_sub(shared.start)
    };
    let (mut alarms, mut last, mut needless) = (0u32, None::<u64>, 0);
    for time in times {
        needless += time.end - time.start - overlap(time);
        if needed.contains(&time.start) {
            continue;
        }
        let new = last.is_none_or(|last| time.start > last + SAME.as_micros() as u64);
        alarms += u32::from(new);
        last = Some(time.end);
    }
    let detected = attack.and_then(|attack| {
        let first = times.iter().find(|time| overlap(time) > 0)?;
        Some(first.start.saturating_sub(attack.start) as f64 / SECOND)
    });
    let peaceful = (end - (needed.end - needed.start)) as f64 / SECOND;
    Score {
        detect_s: detected.map(|s| rounded(s, 1e3)),
        false_guards_per_week: rounded(f64::from(alarms) * WEEK / peaceful, 1e2),
        needless_guarded_s: rounded(needless as f64 / SECOND, 1e1),
    }
}

fn rounded(value: f64, per_unit: f64) -> f64 {
    (value * per_unit).round() / per_unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_what_they_are_called() {
        let s = |second: f64| (second * SECOND) as u64;
        let span = |from, to| s(from)..s(to);
        // A week and the attack with its aftermath.
        let end = s(WEEK) + s(164.0);
        let attack = 1000.0..1100.0;
        let times = [
            span(10.0, 20.0),
            // The same alarm.
            span(70.0, 80.0),
            span(900.0, 910.0),
            span(1002.5, 1150.0),
            // Half of it is after the aftermath; it began within.
            span(1160.0, 1168.0),
        ];
        let expected = Score {
            detect_s: Some(2.5),
            false_guards_per_week: 2.0,
            needless_guarded_s: 34.0,
        };
        assert_eq!(score(&times, Some(&attack), end), expected);
        assert_eq!(score(&times[..3], Some(&attack), end).detect_s, None);
        let all_along = [span(0.0, 2000.0)];
        assert_eq!(score(&all_along, Some(&attack), end).detect_s, Some(0.0));
        let none = score(&times, None, s(WEEK));
        assert_eq!((none.detect_s, none.false_guards_per_week), (None, 3.0));
    }
}
