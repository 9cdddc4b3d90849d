//! The watermarks of a service: given by the operator, or chosen.
//!
//! For now `auto` looks at the listeners alone: a service becomes guarded when half of the
//! smallest listen queue among its listeners is taken by half-open connections, so that the
//! kernel still has room when the guard goes up. Listeners behind the box cannot be looked at: there
//! it goes by the backlog that nginx, Apache and many more ask for, 511.

use std::fmt;

use crate::model::Watermark;

/// Bounds of a high watermark that the daemon chooses.
const AUTO_HIGH: std::ops::RangeInclusive<u32> = 64..=1024;
/// High watermark without a listener to go by.
const UNKNOWN_HIGH: u32 = 512;
/// High watermark of servers behind the box: half of 511, rounded up.
const FORWARDED_HIGH: u32 = 256;

/// What is known of a service's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// They are, or will be, on this box; the smallest backlog of those there are.
    Here(Option<u32>),
    /// Some are behind it.
    Behind,
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
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::Backlog(backlog) => write!(f, "half the smallest listen backlog, {backlog}"),
            Self::NoListener => f.write_str("no listener to go by"),
            Self::Behind => f.write_str("the listeners are not on this machine"),
        }
    }
}

/// The watermarks of a service with these listeners.
pub fn choose(high: Watermark, low: Watermark, listeners: Listeners) -> Watermarks {
    let (high, reason) = match (high, listeners) {
        (Watermark::Fixed(high), _) => (high, Reason::Configured),
        (Watermark::Auto, Listeners::Here(Some(backlog))) => (
            (backlog / 2).clamp(*AUTO_HIGH.start(), *AUTO_HIGH.end()),
            Reason::Backlog(backlog),
        ),
        (Watermark::Auto, Listeners::Here(None)) => (UNKNOWN_HIGH, Reason::NoListener),
        (Watermark::Auto, Listeners::Behind) => (FORWARDED_HIGH, Reason::Behind),
    };
    let low = match low {
        // A chosen `high` may come to lie below a given `low`.
        Watermark::Fixed(low) => low.min(high),
        Watermark::Auto => (high / 2).max(1),
    };
    Watermarks { high, low, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Listeners::{Behind, Here};
    use Watermark::{Auto, Fixed};

    #[test]
    fn half_the_backlog_within_bounds() {
        let high = |backlog| choose(Auto, Auto, Here(backlog)).high;
        assert_eq!(high(Some(511)), 255);
        assert_eq!(high(Some(5)), 64);
        assert_eq!(high(Some(65_535)), 1024);
        assert_eq!(high(None), 512);
        let behind = choose(Auto, Auto, Behind);
        assert_eq!(
            (behind.high, behind.low, behind.reason),
            (256, 128, Reason::Behind)
        );
    }

    #[test]
    fn the_operator_wins_and_low_never_lies_above_high() {
        let both = choose(Fixed(7), Fixed(3), Here(Some(4096)));
        assert_eq!(
            (both.high, both.low, both.reason),
            (7, 3, Reason::Configured)
        );
        assert_eq!(choose(Fixed(1), Auto, Behind).low, 1);
        assert_eq!(choose(Auto, Fixed(900), Here(Some(200))).low, 100);
        assert_eq!(choose(Auto, Auto, Here(Some(2000))).low, 500);
    }
}
