//! Leaving without cutting anybody off: nobody is challenged any more, and when the last spliced
//! connection has ended, the programs go.

use std::time::{Duration, Instant};

use tracing::warn;

use super::guard::Guard;
use crate::{
    dataplane::pins::COOKIES,
    journal::{Drained, What},
};

/// A drain under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining {
    since: Instant,
    /// Sweeps of the flow table by then.
    swept: u64,
    /// When to leave, whoever is still there.
    until: Instant,
}

impl Guard {
    /// Begins to leave all interfaces.
    pub fn drain(&mut self, patience: Duration) -> Result<(), String> {
        if self.interfaces.is_empty() {
            return Err("no interface is guarded".to_owned());
        }
        let now = Instant::now();
        let until = now
            .checked_add(patience)
            .ok_or("that is too long to wait")?;
        self.draining = Some(Draining {
            since: now,
            swept: self.flows.passes(),
            until,
        });
        self.journal.note(What::DrainBegan {
            spliced: self.would_be_cut(),
        });
        self.write_runtime().map_err(|error| error.to_string())
    }

    /// Whether a drain is under way.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Stays after all.
    pub fn stop_draining(&mut self) -> Result<(), String> {
        if self.draining.take().is_some() {
            self.journal.note(What::DrainEnded {
                outcome: Drained::CalledOff,
                spliced: self.would_be_cut(),
            });
        }
        self.write_runtime().map_err(|error| error.to_string())
    }

    /// Connections that would be cut if the programs went now.
    pub fn would_be_cut(&self) -> u64 {
        self.flows.status().left
    }

    /// Looks whether it is time to go.
    pub(super) fn drain_on(&mut self) {
        let Some(draining) = self.draining else {
            return;
        };
        let now = Instant::now();
        let left = self.would_be_cut();
        // Clients answer cookies for a while, and a sweep tells what there was when it began.
        let settled = now.duration_since(draining.since) >= COOKIES
            && (self.flows.passes() >= draining.swept + 2 || !self.forwards());
        if (left > 0 || !settled) && now < draining.until {
            return;
        }
        let outcome = match left {
            0 => Drained::Whole,
            _ => Drained::Cut,
        };
        self.journal.note(What::DrainEnded {
            outcome,
            spliced: left,
        });
        self.draining = None;
        self.take_off();
        if let Err(error) = self.replan() {
            warn!("{error:#}");
        }
    }
}
