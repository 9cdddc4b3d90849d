//! The watermarks of a service: given by the operator, or chosen.
//!
//! `auto` begins with the listeners alone: a service becomes guarded when half of the smallest listen
//! queue among its listeners is taken by half-open connections, so that the kernel still has room when
//! the guard goes up. Listeners behind the box cannot be looked at: there it goes by 128, which was the
//! most that Linux let anybody ask for until 5.4. Once [`super::tuning`] knows what is normal, that
//! decides, within bounds: never more than half of the queue, and never less than what `auto` begins
//! with, or than [`FLOOR`] where that is less, as any service has its little bursts.

use std::fmt;

use super::tuning::Advice;
use crate::model::Watermark;

/// Bounds of the high watermark that `auto` begins with.
const AUTO_HIGH: std::ops::RangeInclusive<u32> = 64..=1024;
/// What it begins with where there is no listener to go by, and the most that it chooses then.
const UNKNOWN_HIGH: u32 = 512;
/// What it begins with for servers behind the box: half of 128.
const FORWARDED_HIGH: u32 = 64;
/// The most that it chooses for them: half of the backlog that nginx, Apache and many more ask for, 511,
/// rounded up. It gets there only where clients complete their handshakes.
const FORWARDED_CAP: u32 = 256;
/// What is not called a flood, however quiet a service is otherwise.
const FLOOR: u32 = 128;

/// What is known of a service's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// They are, or will be, on this box; the smallest backlog of those there are.
    Here(Option<u32>),
    /// Some are behind it.
    Behind,
}

impl Listeners {
    /// What `auto` begins with, and why.
    fn beginning(self) -> (u32, Reason) {
        match self {
            Self::Here(Some(backlog)) => {
                let high = (backlog / 2).clamp(*AUTO_HIGH.start(), *AUTO_HIGH.end());
                (high, Reason::Backlog(backlog))
            }
            Self::Here(None) => (UNKNOWN_HIGH, Reason::NoListener),
            Self::Behind => (FORWARDED_HIGH, Reason::Behind),
        }
    }

    /// The most that `auto` chooses.
    fn cap(self) -> u32 {
        match self {
            Self::Here(Some(backlog)) => (backlog / 2).max(*AUTO_HIGH.start()),
            Self::Here(None) => UNKNOWN_HIGH,
            Self::Behind => FORWARDED_CAP,
        }
    }
}

/// Both watermarks, and why they are what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Half-open connections at which the service becomes guarded.
    pub high: u32,
    /// Half-open connections below which it may become calm.
    pub low: u32,
    /// Where `high` comes from.
    pub reason: Reason,
}

/// Where a high watermark comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The operator.
    Configured,
    /// The smallest listen backlog.
    Backlog(u32),
    /// No listener yet.
    NoListener,
    /// Listeners that cannot be seen.
    Behind,
    /// This many half-open connections are normal in the busiest moment of an hour, of late.
    Lately(u32),
    /// The same at this hour of the week.
    HourOfWeek(u32),
    /// More handshakes are completed than usual.
    Crowd,
    /// More would be right, but the listeners have no room for it.
    NoRoom,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::Backlog(backlog) => write!(f, "half the smallest listen backlog, {backlog}"),
            Self::NoListener => f.write_str("no listener to go by"),
            Self::Behind => f.write_str("the listeners are not on this machine"),
            Self::Lately(normal) => {
                write!(f, "lately {normal} half-open connections were normal")
            }
            Self::HourOfWeek(normal) => write!(
                f,
                "{normal} half-open connections are normal at this hour of the week"
            ),
            Self::Crowd => f.write_str("a crowd that completes its handshakes"),
            Self::NoRoom => f.write_str("the listeners' backlog has no room for more"),
        }
    }
}

/// The watermarks of a service with these listeners.
pub fn choose(high: Watermark, low: Watermark, listeners: Listeners, advice: Advice) -> Watermarks {
    let (high, reason) = match high {
        Watermark::Fixed(high) => (high, Reason::Configured),
        Watermark::Auto => tuned(listeners, advice),
    };
    let low = match low {
        // A chosen `high` may come to lie below a given `low`.
        Watermark::Fixed(low) => low.min(high),
        // Half-way to what is normal: much nearer to it, the service might not become calm again.
        Watermark::Auto => {
            let normal = advice.learned.map_or(0, |learned| learned.normal);
            high.midpoint(normal).min(high - high / 8)
        }
    };
    Watermarks {
        high,
        low: low.max(1),
        reason,
    }
}

fn tuned(listeners: Listeners, advice: Advice) -> (u32, Reason) {
    let (beginning, why) = listeners.beginning();
    let (high, why) = match advice.learned {
        None => (beginning, why),
        Some(learned) => {
            let reason = if learned.weekly {
                Reason::HourOfWeek(learned.normal)
            } else {
                Reason::Lately(learned.normal)
            };
            (learned.high.max(FLOOR.min(beginning)), reason)
        }
    };
    let (high, why) = if advice.crowd > high {
        (advice.crowd, Reason::Crowd)
    } else {
        (high, why)
    };
    match listeners.cap() {
        cap if high > cap => (cap, Reason::NoRoom),
        _ => (high, why),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tuning::Learned, *};
    use Listeners::{Behind, Here};
    use Watermark::{Auto, Fixed};

    const NONE: Advice = Advice {
        learned: None,
        crowd: 0,
    };

    fn learned(high: u32, normal: u32) -> Advice {
        Advice {
            learned: Some(Learned {
                high,
                normal,
                weekly: false,
            }),
            crowd: 0,
        }
    }

    #[test]
    fn half_the_backlog_within_bounds() {
        let high = |backlog| choose(Auto, Auto, Here(backlog), NONE).high;
        assert_eq!(high(Some(511)), 255);
        assert_eq!(high(Some(5)), 64);
        assert_eq!(high(Some(65_535)), 1024);
        assert_eq!(high(None), 512);
        let behind = choose(Auto, Auto, Behind, NONE);
        assert_eq!(
            (behind.high, behind.low, behind.reason),
            (64, 32, Reason::Behind)
        );
    }

    #[test]
    fn the_operator_wins_and_low_never_lies_above_high() {
        let crowd = Advice {
            crowd: 4096,
            ..learned(512, 100)
        };
        let both = choose(Fixed(7), Fixed(3), Here(Some(4096)), crowd);
        assert_eq!(
            (both.high, both.low, both.reason),
            (7, 3, Reason::Configured)
        );
        assert_eq!(choose(Fixed(1), Auto, Behind, NONE).low, 1);
        assert_eq!(choose(Auto, Fixed(900), Here(Some(200)), NONE).low, 100);
        assert_eq!(choose(Auto, Auto, Here(Some(2000)), NONE).low, 500);
    }

    #[test]
    fn what_is_normal_decides_within_the_backlog() {
        let choose = |listeners, advice| {
            let Watermarks { high, low, reason } = choose(Auto, Auto, listeners, advice);
            (high, low, reason)
        };
        let quiet = learned(4, 1);
        assert_eq!(
            choose(Here(Some(4096)), quiet),
            (128, 64, Reason::Lately(1))
        );
        assert_eq!(choose(Here(Some(128)), quiet), (64, 32, Reason::Lately(1)));
        assert_eq!(choose(Behind, quiet), (64, 32, Reason::Lately(1)));
        let busy = learned(1448, 700);
        assert_eq!(
            choose(Here(Some(4096)), busy),
            (1448, 1074, Reason::Lately(700))
        );
        assert_eq!(choose(Here(Some(511)), busy), (255, 224, Reason::NoRoom));
        let crowd = Advice {
            crowd: 1024,
            ..quiet
        };
        assert_eq!(choose(Here(Some(4096)), crowd), (1024, 512, Reason::Crowd));
        assert_eq!(choose(Behind, crowd), (256, 128, Reason::NoRoom));
    }

    proptest! {
        #[test]
        fn bounds_hold_whatever_is_advised(
            backlog in prop::option::of(0u32..),
            behind: bool,
            advised in prop::option::of((0u32.., 0u32.., any::<bool>())),
            crowd: u32,
        ) {
            let listeners = if behind { Behind } else { Here(backlog) };
            let learned = advised.map(|(high, normal, weekly)| Learned { high, normal, weekly });
            let Watermarks { high, low, .. } =
                choose(Auto, Auto, listeners, Advice { learned, crowd });
            prop_assert!(low >= 1 && low < high);
            prop_assert!(high >= 64);
            match listeners {
                Here(Some(backlog)) => prop_assert!(high <= 64.max(backlog / 2)),
                Here(None) => prop_assert!(high <= 512),
                Behind => prop_assert!(high <= 256),
            }
        }
    }
}
