//! `synguard check`: what on this machine will help synguard, hinder it, or keep it from working,
//! each with the remedy. Nothing is changed, and nothing is attached to any interface.
//!
//! [`probe`] looks at the machine and fills in [`facts`]; [`kernel`], [`host`] and [`interface`] judge
//! them.

pub mod facts;
mod genl;
mod helpers;
mod host;
mod interface;
mod kernel;
pub mod memory;
mod namespace;
mod probe;
mod render;

#[cfg(test)]
mod tests;

pub use probe::{Request, probe};
pub use render::render;

use serde::Serialize;

use self::facts::{Facts, Seen, Unseen};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with a drawback; or could not be seen.
    Warn,
    /// Keeps synguard from working.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// The interface it was looked at on, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The checks; those of the machine come first.
    pub checks: Vec<Check>,
    /// Whether none failed.
    pub ok: bool,
}

impl Report {
    /// Judges what was found.
    pub fn of(facts: &Facts) -> Self {
        let mut checks = kernel::judge(&facts.kernel, &facts.host);
        checks.extend(host::judge(&facts.host, &facts.interfaces));
        for interface in &facts.interfaces {
            checks.extend(interface::judge(interface, &facts.host));
        }
        Self {
            ok: checks.iter().all(|check| check.status != Status::Fail),
            checks,
        }
    }

    /// The failures, for one line.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|c| c.status == Status::Fail);
        failed
            .map(|check| match &check.interface {
                Some(interface) => format!("{} of {interface}", check.name),
                None => check.name.to_owned(),
            })
            .collect()
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            interface: None,
            status: Status::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::unsure(name, found)
        }
    }

    /// What could not be seen, where there is nothing to do about it.
    fn unsure(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            ..Self::ok(name, found)
        }
    }

    /// A setting that is right, if it can be seen.
    fn told(name: &'static str, value: Option<u8>) -> Self {
        match value {
            Some(value) => Self::ok(name, value.to_string()),
            None => Self::unsure(name, "the kernel does not tell"),
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, found, fix)
        }
    }

    /// Judges what was seen; what was not is no failure, but no assurance either.
    fn seen<T>(name: &'static str, seen: &Seen<T>, judge: impl FnOnce(&T) -> Self) -> Self {
        match seen {
            Ok(value) => judge(value),
            Err(Unseen::NeedsRoot) => Self::unsure(name, "needs root"),
            Err(Unseen::Other(reason)) => Self::unsure(name, format!("cannot be seen: {reason}")),
        }
    }
}
