//! Details that are more than a number or a name.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Packets of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// SYNs received.
    pub syns: u64,
    /// SYNs answered with a cookie.
    pub challenged: u64,
    /// Challenged clients let in.
    pub admitted: u64,
    /// Packets dropped.
    pub dropped: u64,
}

impl Totals {
    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            syns: self.syns.saturating_sub(earlier.syns),
            challenged: self.challenged.saturating_sub(earlier.challenged),
            admitted: self.admitted.saturating_sub(earlier.admitted),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            syns,
            challenged,
            admitted,
            dropped,
        } = self;
        write!(
            f,
            "{syns} SYNs, {challenged} challenged, {admitted} admitted, {dropped} packets dropped"
        )
    }
}

/// Why an attack is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// There were few enough half-open connections for long enough.
    Calm,
    /// The service has another mode, in which nothing is watched or nothing is done.
    ModeChanged,
    /// It cannot be guarded any more.
    AdmissionLost,
    /// It is no more.
    ServiceRemoved,
    /// The daemon has ended.
    DaemonStopped,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drained {
    /// Nothing was left to wait for.
    Whole,
    /// What was left had its time.
    Cut,
    /// It was called off.
    CalledOff,
}

/// A time in words, to the second.
pub(super) fn lasted(seconds: f64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(seconds.round().max(0.0) as u64))
}
