//! What `top` knows: the last snapshot, the rates since the one before it, and a history of them.
//! Pure: fed with snapshots and the moments they were taken at.
//!
//! A rate is the difference of two snapshots of one daemon. Where a counter went back, or the daemon
//! was started in between, there is none: history has a gap there, never a number that did not
//! happen.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use serde::Serialize;
use synguard_common::verdict::{Action, Reason};

use crate::{
    dataplane::stats::LET_IN,
    model::{ReasonCount, ServiceStatus, Snapshot, packets},
};

/// Samples kept for sparklines: more than terminals are wide.
pub const HISTORY: usize = 512;
/// Intervals that round trips are summed over.
pub const RTT_INTERVALS: usize = 60;

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct Model {
    snapshot: Snapshot,
    at: Instant,
    interval: Option<Duration>,
    unprotected: Option<f64>,
    tracks: BTreeMap<String, Track>,
}

/// Events of a service per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// SYNs received.
    pub syns: f64,
    /// SYNs answered with a cookie (in mode observe: that would have been).
    pub challenged: f64,
    /// Clients let in by a cookie.
    pub admitted: f64,
    /// Packets dropped (in mode observe: that would have been).
    pub dropped: f64,
    /// Half-open connections given up, for their age or under pressure.
    pub expired: f64,
}

/// How often packets leave with a reason.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasonRate {
    /// The reason's label.
    pub reason: String,
    /// `pass`, `answer` or `drop`.
    pub action: String,
    /// Mode observe only would have done that.
    pub observed: bool,
    /// Packets since ever.
    pub packets: u64,
    /// Packets per second, if that is known.
    pub rate: Option<f64>,
}

/// Handshake round trips of the last minute (of sixty intervals).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// How many.
    pub count: u64,
    /// Half of them took at most so many seconds; more than the histogram tells where `None`.
    pub median: Option<f64>,
    /// The same for 99 in 100.
    pub p99: Option<f64>,
}

/// One thing over time, the oldest first; `None` where it is not known.
#[derive(Clone, Debug, Default)]
pub struct Series(VecDeque<Option<f64>>);

/// What was seen of one service.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// The rates of the last interval.
    pub rates: Option<Rates>,
    /// What its packets left with, the most frequent first.
    pub reasons: Vec<ReasonRate>,
    /// [`Rates::syns`] over time.
    pub syns: Series,
    /// [`Rates::challenged`] over time.
    pub challenged: Series,
    /// [`Rates::admitted`] over time.
    pub admitted: Series,
    /// [`Rates::dropped`] over time.
    pub dropped: Series,
    /// Half-open connections over time.
    pub half_open: Series,
    rtt: VecDeque<Vec<u64>>,
}

impl Model {
    /// Begins with a snapshot that was taken at this moment.
    pub fn new(snapshot: Snapshot, at: Instant) -> Self {
        let mut model = Self {
            snapshot,
            at,
            interval: None,
            unprotected: None,
            tracks: BTreeMap::new(),
        };
        for service in &model.snapshot.services {
            let mut track = Track::default();
            track.enter(service, None, 0.0);
            model.tracks.insert(service.name.clone(), track);
        }
        model
    }

    /// Goes on with the next one.
    pub fn update(&mut self, snapshot: Snapshot, at: Instant) {
        let interval = at.saturating_duration_since(self.at);
        let continues = snapshot.started_at == self.snapshot.started_at && !interval.is_zero();
        let seconds = interval.as_secs_f64();
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        self.at = at;
        self.interval = continues.then_some(interval);

        let unprotected = |s: &Snapshot| packets(&s.unprotected, |r| r == Reason::Unprotected);
        self.unprotected = unprotected(&self.snapshot)
            .checked_sub(unprotected(&before))
            .filter(|_| continues)
            .map(|packets| packets as f64 / seconds);

        let before: BTreeMap<&str, &ServiceStatus> = before
            .services
            .iter()
            .map(|service| (service.name.as_str(), service))
            .collect();
        let mut tracks = std::mem::take(&mut self.tracks);
        for service in &self.snapshot.services {
            let mut track = tracks.remove(&service.name).unwrap_or_default();
            let before = before
                .get(service.name.as_str())
                .filter(|before| continues && goes_on(before, service));
            track.enter(service, before.copied(), seconds);
            self.tracks.insert(service.name.clone(), track);
        }
    }

    /// The last snapshot.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// When it was taken.
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// What the rates are taken over, if there are any.
    pub const fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// TCP packets per second that no service covers.
    pub const fn unprotected(&self) -> Option<f64> {
        self.unprotected
    }

    /// A service by its position in the snapshot, and what was seen of it.
    pub fn service(&self, position: usize) -> Option<(&ServiceStatus, &Track)> {
        let status = self.snapshot.services.get(position)?;
        Some((status, self.tracks.get(&status.name)?))
    }

    /// All services in the order of the configuration.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceStatus, &Track)> {
        (0..self.snapshot.services.len()).filter_map(|position| self.service(position))
    }
}

impl Track {
    /// Takes note of a service; `before` is what it was so many seconds ago.
    fn enter(&mut self, now: &ServiceStatus, before: Option<&ServiceStatus>, seconds: f64) {
        let rate = |count: fn(&ServiceStatus) -> u64| {
            before.map(|before| (count(now) - count(before)) as f64 / seconds)
        };
        self.rates = before.map(|_| Rates {
            syns: rate(|s| s.syns).unwrap_or_default(),
            challenged: rate(|s| all(s, |r| r == Reason::Challenged)).unwrap_or_default(),
            admitted: rate(|s| all(s, |r| LET_IN.contains(&r))).unwrap_or_default(),
            dropped: rate(|s| all(s, |r| r.action() == Action::Drop)).unwrap_or_default(),
            expired: rate(|s| s.expired_total).unwrap_or_default(),
        });
        let rates = self.rates;
        for (series, of) in [
            (&mut self.syns, (|r| r.syns) as fn(Rates) -> f64),
            (&mut self.challenged, |r| r.challenged),
            (&mut self.admitted, |r| r.admitted),
            (&mut self.dropped, |r| r.dropped),
        ] {
            series.push(rates.map(of));
        }
        self.half_open.push(Some(now.half_open as f64));
        self.reasons = reasons(now, before, seconds);

        let Some(before) = before else {
            self.rtt.clear();
            return;
        };
        if self.rtt.len() == RTT_INTERVALS {
            self.rtt.pop_front();
        }
        let pairs = now.rtt.iter().zip(&before.rtt);
        self.rtt
            .push_back(pairs.map(|((_, now), (_, then))| now - then).collect());
    }

    /// The round trips of `status`, which this was seen of; `None` if there were none.
    pub fn round_trips(&self, status: &ServiceStatus) -> Option<RoundTrips> {
        let mut counts = vec![0; status.rtt.len()];
        for interval in &self.rtt {
            for (sum, count) in counts.iter_mut().zip(interval) {
                *sum += count;
            }
        }
        let count: u64 = counts.iter().sum();
        let bound = |percent: u64| {
            let mut left = (count * percent).div_ceil(100);
            let bucket = counts.iter().position(|count| {
                left = left.saturating_sub(*count);
                left == 0
            })?;
            status.rtt.get(bucket)?.0
        };
        (count > 0).then(|| RoundTrips {
            count,
            median: bound(50),
            p99: bound(99),
        })
    }
}

impl Series {
    fn push(&mut self, value: Option<f64>) {
        if self.0.len() == HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The last so many samples, the oldest first.
    pub fn last(&self, n: usize) -> impl Iterator<Item = Option<f64>> {
        self.0.iter().skip(self.0.len().saturating_sub(n)).copied()
    }

    /// The largest of all samples.
    pub fn peak(&self) -> Option<f64> {
        self.0.iter().flatten().copied().reduce(f64::max)
    }
}

/// Packets for a reason, those of mode observe included: a service has only one of the two.
fn all(service: &ServiceStatus, is: impl Fn(Reason) -> bool) -> u64 {
    packets(&service.packets, &is) + packets(&service.observed, &is)
}

/// Whether every counter is where it was, or further. One that went back began anew.
fn goes_on(before: &ServiceStatus, now: &ServiceStatus) -> bool {
    let kept = |before: &[ReasonCount], now: &[ReasonCount]| {
        before
            .iter()
            .all(|count| packets_of(now, &count.reason) >= count.packets)
    };
    now.syns >= before.syns
        && now.expired_total >= before.expired_total
        && kept(&before.packets, &now.packets)
        && kept(&before.observed, &now.observed)
        && now.rtt.len() == before.rtt.len()
        && now.rtt.iter().zip(&before.rtt).all(|(n, b)| n.1 >= b.1)
}

fn packets_of(counts: &[ReasonCount], reason: &str) -> u64 {
    counts
        .iter()
        .find(|count| count.reason == reason)
        .map_or(0, |count| count.packets)
}

fn reasons(now: &ServiceStatus, before: Option<&ServiceStatus>, seconds: f64) -> Vec<ReasonRate> {
    let list = |observed: bool| {
        let counts = |s: &'_ ServiceStatus| match observed {
            false => s.packets.clone(),
            true => s.observed.clone(),
        };
        let before = before.map(counts);
        counts(now).into_iter().map(move |count| ReasonRate {
            rate: before
                .as_ref()
                .map(|before| (count.packets - packets_of(before, &count.reason)) as f64 / seconds),
            reason: count.reason,
            action: count.action,
            observed,
            packets: count.packets,
        })
    };
    let mut reasons: Vec<_> = list(false).chain(list(true)).collect();
    reasons.sort_by(|a, b| {
        let rate = |r: &ReasonRate| r.rate.unwrap_or_default();
        rate(b)
            .total_cmp(&rate(a))
            .then(b.packets.cmp(&a.packets))
            .then_with(|| a.reason.cmp(&b.reason))
    });
    reasons
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A daemon of three services, with counters that are not at zero.
    pub fn snapshot() -> Snapshot {
        serde_json::from_str(include_str!("../../tests/fixtures/snapshot.json")).unwrap()
    }

    /// `snapshot` so much later: `packets` more of a reason of the first service, and SYNs too.
    pub fn later(snapshot: &Snapshot, reason: &str, packets: u64) -> Snapshot {
        let mut later = snapshot.clone();
        let service = &mut later.services[0];
        service.syns += packets;
        let counts = service.packets.iter_mut();
        counts
            .filter(|c| c.reason == reason)
            .for_each(|c| c.packets += packets);
        later
    }

    fn rates(model: &Model) -> Option<Rates> {
        model.service(0).unwrap().1.rates
    }

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn rates_are_differences_over_time() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        assert_eq!((rates(&model), model.unprotected()), (None, None));
        let mut second = later(&first, "challenged", 3000);
        second.services[0].expired_total += 4;
        second.unprotected[1].packets += 10;
        model.update(second.clone(), t + seconds(2.0));
        let expected = Rates {
            syns: 1500.0,
            challenged: 1500.0,
            expired: 2.0,
            ..Rates::default()
        };
        assert_eq!(rates(&model), Some(expected));
        assert_eq!(model.unprotected(), Some(5.0));
        assert_eq!(model.interval(), Some(seconds(2.0)));
        let (_, track) = model.service(0).unwrap();
        assert_eq!(track.reasons[0].reason, "challenged");
        assert_eq!(track.reasons[0].rate, Some(1500.0));
        assert_eq!(track.reasons[1].rate, Some(0.0));
        assert_eq!(track.syns.last(9).collect::<Vec<_>>(), [None, Some(1500.0)]);

        // Nothing happens any more.
        model.update(second, t + seconds(2.5));
        assert_eq!(rates(&model), Some(Rates::default()));
    }

    #[test]
    fn drops_and_admissions_are_told_by_reason() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        let second = later(&later(&first, "ack_invalid", 7), "admitted", 5);
        model.update(second, t + seconds(1.0));
        let expected = Rates {
            syns: 12.0,
            admitted: 5.0,
            dropped: 7.0,
            ..Rates::default()
        };
        assert_eq!(rates(&model), Some(expected));
    }

    #[test]
    fn mode_observe_shows_what_would_have_been() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        let mut second = first;
        second.services[1].observed[0].packets += 8;
        model.update(second, t + seconds(1.0));
        let (_, track) = model.service(1).unwrap();
        assert_eq!(track.rates.unwrap().challenged, 8.0);
        assert!(track.reasons[0].observed);
    }

    #[test]
    fn a_reason_seen_for_the_first_time_was_at_zero() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        let mut second = first;
        second.services[0].packets.push(ReasonCount {
            reason: "syn_fin".into(),
            action: "drop".into(),
            packets: 6,
        });
        model.update(second, t + seconds(1.0));
        assert_eq!(rates(&model).unwrap().dropped, 6.0);
    }

    #[test]
    fn a_daemon_that_began_anew_makes_a_gap() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        model.update(later(&first, "challenged", 100), t + seconds(1.0));
        // Its counters may have gone past the old ones already.
        let mut anew = later(&first, "challenged", 5_000_000);
        anew.started_at += 100;
        model.update(anew.clone(), t + seconds(2.0));
        assert_eq!((rates(&model), model.unprotected()), (None, None));
        assert_eq!(model.interval(), None);
        model.update(later(&anew, "challenged", 30), t + seconds(3.0));
        assert_eq!(rates(&model).unwrap().challenged, 30.0);
        let (_, track) = model.service(0).unwrap();
        let syns: Vec<_> = track.syns.last(9).collect();
        assert_eq!(syns, [None, Some(100.0), None, Some(30.0)]);
        let half_open: Vec<_> = track.half_open.last(2).collect();
        assert_eq!(half_open, [Some(12.0); 2]);
    }

    #[test]
    fn a_counter_that_went_back_is_no_rate() {
        let shrink: [fn(&mut ServiceStatus); 5] = [
            |s| s.syns = 5,
            |s| s.packets[3].packets = 1,
            |s| s.packets.clear(),
            |s| s.expired_total = 0,
            |s| s.rtt[0].1 -= 1,
        ];
        for shrink in shrink {
            let (first, t) = (snapshot(), Instant::now());
            let mut model = Model::new(first.clone(), t);
            let mut second = later(&first, "challenged", 1000);
            shrink(&mut second.services[0]);
            model.update(second, t + seconds(1.0));
            assert_eq!(rates(&model), None);
            let (_, other) = model.service(1).unwrap();
            assert!(other.rates.is_some(), "the other services go on");
        }
    }

    #[test]
    fn services_come_and_go() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        let mut second = first.clone();
        second.services.remove(0);
        second.services[0].name = "new".into();
        model.update(second, t + seconds(1.0));
        let names: Vec<_> = model.services().map(|(s, _)| s.name.clone()).collect();
        assert_eq!(names, ["new", "forwarded"]);
        assert_eq!(rates(&model), None);
        // What comes back has no past.
        model.update(first, t + seconds(2.0));
        assert_eq!(rates(&model), None);
        assert_eq!(model.service(0).unwrap().1.syns.last(9).count(), 1);
    }

    #[test]
    fn no_time_is_no_rate() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t + seconds(1.0));
        model.update(first.clone(), t + seconds(1.0));
        assert_eq!(rates(&model), None);
        // Nor a clock that goes back.
        model.update(later(&first, "challenged", 5), t);
        assert_eq!(rates(&model), None);
    }

    #[test]
    fn histories_are_bounded() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        for n in 1..=HISTORY as u64 + 10 {
            model.update(first.clone(), t + Duration::from_secs(n));
        }
        let (_, track) = model.service(0).unwrap();
        assert_eq!(track.syns.last(usize::MAX).count(), HISTORY);
        assert_eq!(track.rtt.len(), RTT_INTERVALS);
        assert_eq!(track.syns.peak(), Some(0.0));
    }

    #[test]
    fn round_trips_are_those_of_the_last_minute() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        let shown = |model: &Model| {
            let (status, track) = model.service(0).unwrap();
            track.round_trips(status)
        };
        assert_eq!(shown(&model), None, "what was before is not counted");
        let mut second = first;
        second.services[0].rtt[2].1 += 95;
        second.services[0].rtt[5].1 += 5;
        model.update(second.clone(), t + seconds(1.0));
        let expected = RoundTrips {
            count: 100,
            median: Some(0.004),
            p99: Some(0.032),
        };
        assert_eq!(shown(&model), Some(expected));
        second.services[0].rtt[13].1 += 1000;
        model.update(second.clone(), t + seconds(2.0));
        assert_eq!(shown(&model).unwrap().median, None, "beyond the last bound");
        for n in 3..=63 {
            model.update(second.clone(), t + seconds(f64::from(n)));
        }
        assert_eq!(shown(&model), None);
    }
}
