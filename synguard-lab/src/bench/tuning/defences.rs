//! What is compared: synguard's own code, and two rivals with the defaults they are documented with.

use std::{collections::VecDeque, time::Duration};

use synguard::{
    daemon::{
        calm::{Calm, Rules, Sample as CalmSample},
        tuning::{Sample, Tuner},
        watermark::{self, Listeners, Watermarks},
    },
    model::Watermark,
};
use synguard_common::halfopen;

use super::{
    traffic::{Arrival, TICK},
    world::World,
};

/// When traces begin: a Monday, 00:00 UTC, in seconds since the Unix epoch.
const MONDAY: u64 = 1_704_067_200;
/// Length of a second, µs.
const SECOND: u64 = 1_000_000;

/// Something that is guarded at times.
pub trait Defence {
    /// Decides on a SYN.
    fn arrives(&mut self, world: &mut World, arrival: &Arrival);
    /// Looks at the world, once a [`TICK`]; `now` in µs.
    fn tick(&mut self, world: &mut World, now: u64);
    /// Whether it is guarded.
    fn is_guarded(&self) -> bool;
}

/// synguard with watermarks `auto`: the daemon's code, and the rule of the programs.
pub struct Synguard {
    tuner: Tuner,
    calm: Calm,
    listeners: Listeners,
    watermarks: Watermarks,
    /// Monotonic ns.
    guarded_at: Option<u64>,
}

impl Synguard {
    /// The defaults of the configuration.
    const CALM_AFTER: Duration = Duration::from_secs(15);
    const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(64);

    /// Before listeners with this backlog.
    pub fn new(backlog: u32) -> Self {
        let listeners = Listeners::Here(Some(backlog));
        let mut tuner = Tuner::default();
        tuner.set_half_open_timeout(Self::HALF_OPEN_TIMEOUT);
        Self {
            watermarks: choose(listeners, &tuner),
            tuner,
            calm: Calm::default(),
            listeners,
            guarded_at: None,
        }
    }
}

fn choose(listeners: Listeners, tuner: &Tuner) -> Watermarks {
    watermark::choose(Watermark::Auto, Watermark::Auto, listeners, tuner.advice())
}

impl Defence for Synguard {
    fn arrives(&mut self, world: &mut World, arrival: &Arrival) {
        if self.guarded_at.is_some() {
            return world.challenge(arrival);
        }
        world.pass(arrival, Self::HALF_OPEN_TIMEOUT.as_millis() as u32);
        if halfopen::crosses(world.half_open, self.watermarks.high) {
            self.guarded_at = Some(arrival.at * 1000);
            self.calm.restart();
        }
    }

    fn tick(&mut self, world: &mut World, now: u64) {
        let counts = &world.counts;
        self.calm.observe(CalmSample {
            now: now * 1000,
            challenged: counts.challenged,
            admitted: counts.admitted,
            lost: 0,
        });
        let rules = Rules {
            low: self.watermarks.low,
            calm_after: Self::CALM_AFTER,
            half_open_timeout: Self::HALF_OPEN_TIMEOUT,
        };
        if let Some(since) = self.guarded_at
            && self.calm.decide(since, world.half_open, rules)
        {
            self.guarded_at = None;
            self.calm.restart();
        }
        self.tuner.observe(Sample {
            wall: MONDAY + now / SECOND,
            now: now * 1000,
            half_open: world.half_open,
            started: counts.started,
            completed: counts.completed + counts.admitted,
            reset: counts.reset,
            guarded: self.guarded_at.is_some(),
            high: self.watermarks.high,
        });
        self.watermarks = choose(self.listeners, &self.tuner);
    }

    fn is_guarded(&self) -> bool {
        self.guarded_at.is_some()
    }
}

/// Cisco's TCP Intercept in watch mode. It turns aggressive when more than 1100 connections are half-open,
/// or came within a minute, and ends that below 900 of both. While it is aggressive every new connection
/// costs the oldest half-open one its place, and a connection has 15 s instead of 30 to be completed.
#[derive(Default)]
pub struct TcpIntercept {
    minute: Window<60>,
    aggressive: bool,
}

impl TcpIntercept {
    const HIGH: u64 = 1100;
    const LOW: u64 = 900;
    /// ms.
    const WATCH_TIMEOUT: u32 = 30_000;
}

impl Defence for TcpIntercept {
    fn arrives(&mut self, world: &mut World, arrival: &Arrival) {
        let lifetime = if self.aggressive {
            world.give_up_oldest();
            Self::WATCH_TIMEOUT / 2
        } else {
            Self::WATCH_TIMEOUT
        };
        self.minute.count(arrival.at / SECOND);
        world.pass(arrival, lifetime);
        if !self.aggressive && world.half_open.max(self.minute.sum()) > Self::HIGH {
            self.aggressive = true;
            world.hasten(Self::WATCH_TIMEOUT / 2);
        }
    }

    fn tick(&mut self, world: &mut World, now: u64) {
        self.minute.advance(now / SECOND);
        self.aggressive &= world.half_open.max(self.minute.sum()) >= Self::LOW;
    }

    fn is_guarded(&self) -> bool {
        self.aggressive
    }
}

/// A threshold of the SYN rate: guarded while more came within the last second. 200 is what Junos has
/// as the default of `attack-threshold`, beyond which it answers SYNs by cookie or proxy.
#[derive(Default)]
pub struct FixedRate {
    second: Window<100>,
    guarded: bool,
}

impl FixedRate {
    const THRESHOLD: u64 = 200;
    /// A hundredth of the second, µs.
    const PART: u64 = SECOND / 100;
}

impl Defence for FixedRate {
    fn arrives(&mut self, world: &mut World, arrival: &Arrival) {
        self.second.count(arrival.at / Self::PART);
        if self.guarded {
            return world.challenge(arrival);
        }
        world.pass(arrival, Synguard::HALF_OPEN_TIMEOUT.as_millis() as u32);
        self.guarded = self.second.sum() > Self::THRESHOLD;
    }

    fn tick(&mut self, _: &mut World, now: u64) {
        self.second.advance(now / Self::PART);
        self.guarded &= self.second.sum() > Self::THRESHOLD;
    }

    fn is_guarded(&self) -> bool {
        self.guarded
    }
}

/// How many came within the last `N` units of time.
#[derive(Default)]
struct Window<const N: usize> {
    /// Units in which any came, and how many.
    counts: VecDeque<(u64, u64)>,
    sum: u64,
}

impl<const N: usize> Window<N> {
    fn count(&mut self, now: u64) {
        self.advance(now);
        match self.counts.back_mut() {
            Some((at, count)) if *at == now => *count += 1,
            _ => self.counts.push_back((now, 1)),
        }
        self.sum += 1;
    }

    fn advance(&mut self, now: u64) {
        while let Some((at, count)) = self.counts.front().copied()
            && at + N as u64 <= now
        {
            self.sum -= count;
            self.counts.pop_front();
        }
    }

    fn sum(&self) -> u64 {
        self.sum
    }
}

const _: () = assert!(TICK.as_micros() == 250_000, "the daemon's tick");

#[cfg(test)]
mod tests {
    use super::{super::traffic::Fate, *};

    /// Steady traffic of nobody who answers for some seconds, then nothing; when it was guarded, ms.
    fn flood(mut defence: impl Defence, rate: u64, seconds: u64) -> (Option<u64>, Option<u64>) {
        let mut world = World::new();
        let (mut began, mut ended) = (None, None);
        let mut sent = 0;
        for now in 1..=200_000 {
            let at = now * 1000;
            world.advance(at);
            while sent < rate * seconds && sent * 1000 / rate < now {
                sent += 1;
                let fate = Fate::Vanishes;
                defence.arrives(&mut world, &Arrival { at, fate });
            }
            if now % 250 == 0 {
                defence.tick(&mut world, at);
            }
            match (began, defence.is_guarded()) {
                (None, true) => began = Some(now),
                (Some(_), false) if ended.is_none() => ended = Some(now),
                _ => {}
            }
        }
        (began, ended)
    }

    #[test]
    fn tcp_intercept_counts_half_open_connections_and_minutes() {
        // 1101 half-open after 22 s at 50 a second.
        let (began, ended) = flood(TcpIntercept::default(), 50, 40);
        assert_eq!(began, Some(22_001));
        // 3000 came in the last minute; fewer than 900 of them did 42 s after the end.
        let ended = ended.unwrap();
        assert!((82_000..=83_500).contains(&ended), "{ended}");
        assert_eq!(flood(TcpIntercept::default(), 18, 100).0, None);
    }

    #[test]
    fn a_fixed_rate_sees_nothing_else() {
        let (began, ended) = flood(FixedRate::default(), 400, 10);
        assert_eq!(began, Some(501));
        let ended = ended.unwrap();
        assert!((10_250..=10_750).contains(&ended), "{ended}");
        assert_eq!(flood(FixedRate::default(), 199, 60).0, None);
    }

    #[test]
    fn synguard_counts_what_is_left_half_open() {
        // Half of a backlog of 128.
        let (began, ended) = flood(Synguard::new(128), 50, 40);
        assert_eq!(began, Some(1261));
        // 15 s after the last second had nothing, and not while the first 64 are half-open.
        let ended = ended.unwrap();
        assert!((64_000..=82_000).contains(&ended), "{ended}");
    }
}
