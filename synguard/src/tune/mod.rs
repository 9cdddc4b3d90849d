//! `synguard tune`: what the host's own settings should be under SYN floods, applied and taken back
//! on request.
//!
//! [`advice`] has the rules, [`host`] the machine they are for, [`boot`] what other files set, and
//! [`fit`] what the daemon's own configuration should have beside them.

pub mod advice;
pub mod apply;
pub mod boot;
pub mod fit;
pub mod host;
mod record;
mod render;
mod undo;

#[cfg(test)]
mod tests;

pub use apply::{Outcome, apply, revert};
pub use render::{render_advice, render_outcome};

use serde::Serialize;

use self::{
    advice::{Advice, advise},
    boot::{Assignment, assignments},
    fit::Fit,
    host::Host,
};

/// What is said of a host.
#[derive(Clone, Debug, Serialize)]
pub struct Tuning {
    /// Its memory in bytes, which some values are derived from.
    pub memory: u64,
    /// Its settings.
    pub settings: Vec<Advice>,
    /// What of the daemon's configuration would not fit them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Fit>,
    #[serde(skip)]
    at_boot: Vec<Assignment>,
}

impl Tuning {
    /// Looks at a host.
    pub fn of(host: &Host) -> Self {
        let at_boot = assignments(host);
        let settings = advise(host, &at_boot);
        Self {
            memory: host.memory,
            configuration: Fit::of(host, Some(&settings)),
            settings,
            at_boot,
        }
    }
}
