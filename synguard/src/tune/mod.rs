//! `synguard tune`: what the host's own settings should be under SYN floods, applied and taken back
//! on request.
//!
//! [`advice`] has the rules, [`host`] the machine they are for, [`boot`] what other files set.

pub mod advice;
pub mod apply;
pub mod boot;
pub mod host;
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
    host::Host,
};

/// What is said of a host.
#[derive(Clone, Debug, Serialize)]
pub struct Tuning {
    /// Its memory in bytes, which some values are derived from.
    pub memory: u64,
    /// Its settings.
    pub settings: Vec<Advice>,
    #[serde(skip)]
    at_boot: Vec<Assignment>,
}

impl Tuning {
    /// Looks at a host.
    pub fn of(host: &Host) -> Self {
        let at_boot = assignments(host);
        Self {
            memory: host.memory,
            settings: advise(host, &at_boot),
            at_boot,
        }
    }

    /// Sets what is advised.
    pub fn apply(&self, host: &Host) -> anyhow::Result<Outcome> {
        apply(host, &self.settings, &self.at_boot)
    }
}
