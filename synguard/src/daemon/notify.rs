//! What systemd is told. Without systemd nothing happens.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tracing::debug;

/// The service manager's end.
pub struct Systemd {
    /// Time between signs of life: half of what the watchdog waits.
    beat: Option<Duration>,
    last: Cell<Option<Instant>>,
}

impl Systemd {
    /// Asks whether there is a watchdog.
    pub fn new() -> Self {
        Self {
            beat: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            last: Cell::new(None),
        }
    }

    /// Up, or done with a reload.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// About to reload.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "no monotonic clock for systemd"),
        }
    }

    /// What takes long at the start; it may take that long again from now on.
    pub fn say(&self, what: &str) {
        tell(&[
            NotifyState::Status(what),
            NotifyState::ExtendTimeoutUsec(60_000_000),
        ]);
    }

    /// About to stop.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The loop is alive at `now`.
    pub fn alive(&self, now: Instant) {
        let Some(beat) = self.beat else { return };
        if self
            .last
            .get()
            .is_none_or(|last| now.duration_since(last) >= beat)
        {
            self.last.set(Some(now));
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "cannot tell systemd");
    }
}
