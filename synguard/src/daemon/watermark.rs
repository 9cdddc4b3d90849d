//! The watermarks of a service: given by the operator, or chosen.
//!
//! For now `auto` looks at the listeners alone: a service becomes guarded when half of the
//! smallest listen queue among its listeners is taken by half-open connections, so that the
//! kernel still has room when the guard goes up.

use std::fmt;

use crate::model::Watermark;

/// Bounds of a high watermark that the daemon chooses.
const AUTO_HIGH: std::ops::RangeInclusive<u32> = 64..=1024;
/// High watermark without a listener to go by.
const UNKNOWN_HIGH: u32 = 512;

/// Both watermarks, and why they are what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::Backlog(backlog) => write!(f, "half the smallest listen backlog, {backlog}"),
            Self::NoListener => f.write_str("no listener to go by"),
        }
    }
}

/// The watermarks of a service whose smallest listen backlog is `backlog`.
pub fn choose(high: Watermark, low: Watermark, backlog: Option<u32>) -> Watermarks {
    let (high, reason) = match (high, backlog) {
        (Watermark::Fixed(high), _) => (high, Reason::Configured),
        (Watermark::Auto, Some(backlog)) => (
            (backlog / 2).clamp(*AUTO_HIGH.start(), *AUTO_HIGH.end()),
            Reason::Backlog(backlog),
        ),
        (Watermark::Auto, None) => (UNKNOWN_HIGH, Reason::NoListener),
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
    use Watermark::{Auto, Fixed};

    #[test]
    fn half_the_backlog_within_bounds() {
        let high = |backlog| choose(Auto, Auto, backlog).high;
        assert_eq!(high(Some(511)), 255);
        assert_eq!(high(Some(5)), 64);
        assert_eq!(high(Some(65_535)), 1024);
        assert_eq!(high(None), 512);
    }

    #[test]
    fn the_operator_wins_and_low_never_lies_above_high() {
        let both = choose(Fixed(7), Fixed(3), Some(4096));
        assert_eq!(
            (both.high, both.low, both.reason),
            (7, 3, Reason::Configured)
        );
        assert_eq!(choose(Fixed(1), Auto, None).low, 1);
        assert_eq!(choose(Auto, Fixed(900), Some(200)).low, 100);
        assert_eq!(choose(Auto, Auto, Some(2000)).low, 500);
    }
}
