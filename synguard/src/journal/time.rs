//! Moments of the wall clock, written as RFC 3339 says, in UTC, to the millisecond.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// This many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The present moment.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Whole seconds from `earlier` to this; none where it is later.
    pub const fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }

    /// Milliseconds after the Unix epoch.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// So many milliseconds later, or earlier where it is negative.
    pub const fn moved(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }

    /// This much later.
    pub fn after(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(by))
    }

    /// This much earlier.
    pub fn before(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(by))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last year that has four digits.
        let millis = self.0.min(253_402_300_799_999);
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).fmt(f)
    }
}

/// Reads a date, or a date and a time to the minute or closer, in UTC.
impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_end_matches('Z');
        let whole = match text.len() {
            10 => format!("{text}T00:00:00"),
            16 => format!("{text}:00"),
            _ => text.to_owned(),
        };
        humantime::parse_rfc3339_weak(&whole).map(Self::from)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_whole_and_read_in_part() {
        let time = Timestamp::from_millis(1_800_000_000_050);
        assert_eq!(time.to_string(), "2027-01-15T08:00:00.050Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        let whole = Timestamp::from_millis(1_800_000_000_000);
        for text in [
            "2027-01-15T08:00:00Z",
            "2027-01-15T08:00:00",
            "2027-01-15 08:00",
            "2027-01-15T08:00Z",
        ] {
            assert_eq!(text.parse(), Ok(whole), "{text}");
        }
        let midnight = whole.before(Duration::from_secs(8 * 3600));
        assert_eq!("2027-01-15".parse(), Ok(midnight));
        for text in ["", "08:00", "2027-13-01", "yesterday", "2027-01-15T8:00"] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_moment_is_beyond_writing() {
        assert_eq!(
            Timestamp::from_millis(u64::MAX).to_string(),
            "9999-12-31T23:59:59.999Z"
        );
        let zero = Timestamp::from_millis(5).before(Duration::MAX);
        assert_eq!(zero.to_string(), "1970-01-01T00:00:00.000Z");
    }
}
