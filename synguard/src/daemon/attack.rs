//! What an attack on a service comes to, from the packet that turned it guarded to its end.

use serde::Deserialize as _;
use synguard_common::{
    abi::ServiceStats,
    verdict::{Action, Reason},
};

use crate::{
    dataplane::stats,
    journal::{End, Journal, Kind, Totals, What},
    model::Mode,
};

/// What a service's counters say. In mode observe it is what they would say.
pub fn totals(mode: Mode, counted: &ServiceStats) -> Totals {
    let of = match mode {
        Mode::Observe => ServiceStats {
            reasons: counted.observed,
            ..*counted
        },
        Mode::Adaptive | Mode::Always => *counted,
    };
    let drops = Reason::ALL
        .iter()
        .filter(|reason| reason.action() == Action::Drop);
    Totals {
        syns: of.syns,
        challenged: stats::count(&of, Reason::Challenged),
        admitted: stats::total(&of, &stats::LET_IN),
        dropped: drops.map(|reason| stats::count(&of, *reason)).sum(),
    }
}

/// An attack that is going on.
#[derive(Clone, Debug)]
pub struct Attack {
    /// Monotonic ns of the packet that began it.
    began: u64,
    mode: Mode,
    /// The counters before.
    before: Totals,
    peak_half_open: u64,
    peak_projected: u64,
}

impl Attack {
    /// One that began then, with the counters of the tick before.
    pub fn new(began: u64, mode: Mode, before: Totals) -> Self {
        Self {
            began,
            mode,
            before,
            peak_half_open: 0,
            peak_projected: 0,
        }
    }

    /// One that an earlier daemon has told of, in so far as the journal knows how it began.
    pub fn resumed(began: u64, mode: Mode, service: &str, journal: &Journal) -> Option<Self> {
        let told = journal.latest(Kind::AttackBegan, service)?;
        let ended = journal.latest(Kind::AttackEnded, service);
        if ended.is_some_and(|ended| ended.seq > told.seq) {
            return None;
        }
        let before = told.details.get("counted_before")?;
        let before = Totals::deserialize(before).ok()?;
        Some(Self::new(began, mode, before))
    }

    /// The mode it began in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes note of how many connections are half-open, and would be.
    pub fn observe(&mut self, half_open: u64, projected: u64) {
        self.peak_half_open = self.peak_half_open.max(half_open);
        self.peak_projected = self.peak_projected.max(half_open.saturating_add(projected));
    }

    /// Its end.
    pub fn ended(&self, service: &str, reason: End, now: u64, moment: Moment) -> What {
        What::AttackEnded {
            service: service.to_owned(),
            mode: self.mode,
            reason,
            duration_seconds: (now.saturating_sub(self.began) / 1_000_000) as f64 / 1000.0,
            half_open: moment.half_open,
            peak_half_open: self.peak_half_open,
            peak_projected: self.peak_projected,
            low: moment.low,
            totals: moment.totals.since(self.before),
        }
    }
}

/// How a service stands at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Half-open connections.
    pub half_open: u64,
    /// Its low watermark.
    pub low: u32,
    /// Its counters.
    pub totals: Totals,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::stats::ZERO;

    #[test]
    fn an_attack_goes_on_with_the_next_daemon() {
        let journal = Journal::in_memory();
        let resumed = |service| Attack::resumed(5, Mode::Adaptive, service, &journal);
        assert!(resumed("web").is_none());
        let counted_before = Totals {
            syns: 10,
            ..Totals::default()
        };
        journal.note(What::AttackBegan {
            service: "web".into(),
            mode: Mode::Adaptive,
            half_open: 64,
            high: 64,
            counted_before,
        });
        assert!(resumed("mail").is_none());
        let attack = resumed("web").unwrap();
        assert_eq!((attack.began, attack.before), (5, counted_before));
        journal.note(attack.ended("web", End::Calm, 6, Moment::default()));
        assert!(resumed("web").is_none());
    }

    #[test]
    fn an_attack_is_what_was_counted_between() {
        let mut counted = ZERO;
        counted.syns = 10;
        counted.reasons[Reason::Challenged as usize] = 7;
        counted.reasons[Reason::SpliceStarted as usize] = 1;
        counted.reasons[Reason::Admitted as usize] = 1;
        counted.reasons[Reason::AckInvalid as usize] = 2;
        counted.reasons[Reason::BadIp as usize] = 3;
        counted.observed[Reason::Challenged as usize] = 4;
        let acting = totals(Mode::Adaptive, &counted);
        assert_eq!(
            acting,
            Totals {
                syns: 10,
                challenged: 7,
                admitted: 2,
                dropped: 5
            }
        );
        assert_eq!(totals(Mode::Observe, &counted).challenged, 4);

        let mut attack = Attack::new(5_000_000_000, Mode::Adaptive, acting);
        attack.observe(200, 0);
        attack.observe(256, 1000);
        attack.observe(3, 0);
        counted.syns += 100;
        counted.reasons[Reason::Challenged as usize] += 90;
        let moment = Moment {
            half_open: 3,
            low: 128,
            totals: totals(Mode::Adaptive, &counted),
        };
        let What::AttackEnded {
            duration_seconds,
            peak_half_open,
            peak_projected,
            totals,
            ..
        } = attack.ended("web", End::Calm, 66_500_000_000, moment)
        else {
            panic!("not an end");
        };
        assert_eq!(duration_seconds, 61.5);
        assert_eq!((peak_half_open, peak_projected), (256, 1256));
        assert_eq!((totals.syns, totals.challenged), (100, 90));
        assert_eq!((totals.admitted, totals.dropped), (0, 0));
    }
}
