//! What the daemon's configuration should have beside the host's settings: `half_open_timeout` is how
//! long synguard counts a connection as half-open, `tcp_synack_retries` how long the kernel keeps it so.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{advice::Advice, host::Host};
use crate::{
    config::{self, DEFAULT_PATH, HALF_OPEN_BOUNDS, Overrides, Sources},
    model::{Admission, Service},
};

/// What decides how long the kernel keeps a half-open connection.
const RETRIES: &str = "net.ipv4.tcp_synack_retries";
/// The longest time between two SYN-ACKs (`TCP_RTO_MAX`).
const LONGEST_WAIT: u64 = 120;

/// A key of the configuration that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The key.
    pub key: &'static str,
    /// The file, whether or not there is one yet.
    pub file: PathBuf,
    /// What it is for services of which it is not as advised.
    pub current: BTreeMap<String, String>,
    /// What it should be.
    pub advised: String,
    /// Why.
    pub why: String,
}

impl Fit {
    /// Judges the configuration of a host with the settings as they are, or as they are advised. `None`
    /// where it fits, or has mistakes.
    pub fn of(host: &Host, advice: Option<&[Advice]>) -> Option<Self> {
        let advised = |advice: &[Advice]| {
            let advice = advice.iter().find(|advice| advice.setting == RETRIES)?;
            advice.advised.clone()
        };
        let retries = match advice {
            Some(advice) => advised(advice),
            None => host.read(RETRIES).map(|reading| reading.value),
        };
        let retries: u8 = retries?.parse().ok()?;
        let lifetime = lifetime(retries);
        // Just beyond it, so that the kernel is the first to forget.
        let fitting = (lifetime + Duration::from_secs(1)).min(*HALF_OPEN_BOUNDS.end());
        let current: BTreeMap<String, String> = services(host)?
            .into_iter()
            // Behind `proxy` it is the server's kernel that gives up.
            .filter(|service| service.admission != Admission::Proxy)
            .filter(|service| service.half_open_timeout != fitting)
            .map(|service| (service.name, shown(service.half_open_timeout)))
            .collect();
        (!current.is_empty()).then(|| Self {
            key: "half_open_timeout",
            file: DEFAULT_PATH.into(),
            current,
            advised: shown(fitting),
            why: format!(
                "with {retries} retries the kernel gives up after {} s; what is counted for longer is \
                 gone, for less is missed",
                lifetime.as_secs()
            ),
        })
    }
}

/// The services of the host's configuration, be it the built-in one.
fn services(host: &Host) -> Option<Vec<Service>> {
    let path = host.below(DEFAULT_PATH);
    if !path.exists() {
        return Some(config::built_in().services);
    }
    let sources = Sources::main_alone(Some(&path), &Overrides::default());
    Some(sources.ok()?.config().ok()?.services)
}

/// How long the kernel keeps a connection that is never completed: it waits a second for the first
/// answer, and each time twice as long.
fn lifetime(retries: u8) -> Duration {
    let waits = (0..=u32::from(retries)).map(|n| 1u64.checked_shl(n).unwrap_or(u64::MAX));
    Duration::from_secs(waits.map(|wait| wait.min(LONGEST_WAIT)).sum())
}

fn shown(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_waits_twice_as_long_each_time() {
        for (retries, seconds) in [
            (0, 1),
            (1, 3),
            (3, 15),
            (5, 63),
            (6, 127),
            (7, 247),
            (8, 367),
        ] {
            assert_eq!(lifetime(retries).as_secs(), seconds, "{retries}");
        }
        assert!(lifetime(u8::MAX) > *HALF_OPEN_BOUNDS.end());
    }
}
