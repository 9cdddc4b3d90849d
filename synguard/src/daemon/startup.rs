//! What is checked before anything is touched, and what is found there.

use std::{path::Path, time::Duration};

use caps::{CapSet, Capability};
use synguard_common::{
    abi::{FLOW_WAYS, map},
    flowtable::buckets_for,
};
use tracing::{info, warn};

use super::notify::Systemd;
use crate::{
    dataplane::{
        Options, Pins, attach,
        error::MissingCapabilities,
        pins::{Found, PinError},
    },
    journal::{Journal, What},
    model::Config,
};

/// How long spliced connections of another version are waited for.
const DRAIN: Duration = Duration::from_secs(60);

/// The directory for what outlives the daemon. Without one it works all the same.
pub fn open_pins(directory: Option<&Path>) -> Result<Option<Pins>, PinError> {
    let Some(directory) = directory else {
        return Ok(None);
    };
    if !attach::can_pin() {
        warn!("nothing outlives this daemon: that takes Linux 6.6 or newer (TCX)");
        return Ok(None);
    }
    match Pins::open(directory) {
        Ok(pins) => Ok(Some(pins)),
        Err(error @ PinError::NoBpffs { .. }) => {
            warn!("nothing outlives this daemon: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Drains and removes what a daemon of another version has left, whose tables we do not understand.
///
/// Says whether there was any.
pub fn drain_foreign(pins: &Pins, systemd: &Systemd, journal: &Journal) -> Result<bool, PinError> {
    let Found::Foreign { abi } = pins.find()? else {
        return Ok(false);
    };
    journal.note(What::VersionDrainBegan {
        abi,
        patience_seconds: DRAIN.as_secs(),
    });
    let mut told = None;
    let cut = pins.drain(DRAIN, |left| {
        if told != Some(left) {
            told = Some(left);
            systemd.say(&format!(
                "draining the version before: {left} connections are left"
            ));
            info!("{left} spliced connections of the version before are left");
        }
    })?;
    pins.clear()?;
    journal.note(What::VersionDrainEnded { abi, cut });
    Ok(true)
}

/// Says what a configuration asks for that tables which are in use do not have.
pub fn compare_sizes(options: &Options, capacity: impl Fn(&str) -> Option<u64>, journal: &Journal) {
    for (table, configured) in [
        (map::HALF_OPEN, u64::from(options.half_open_entries)),
        (map::FLOWS, flow_places(options.flow_entries)),
        (map::VERIFIED, u64::from(options.verified_entries)),
    ] {
        match capacity(table) {
            Some(capacity) if capacity != configured => journal.note(What::TableKeepsSize {
                table: table.to_owned(),
                capacity,
                configured,
            }),
            _ => {}
        }
    }
}

/// Capacity of a flow table for so many flows.
fn flow_places(flows: u32) -> u64 {
    u64::from(buckets_for(flows)) * FLOW_WAYS as u64
}

/// The daemon may not do its work.
#[derive(Debug, thiserror::Error)]
#[error("synguard is not allowed to do its work: {0}")]
pub struct NotAllowed(MissingCapabilities);

/// Nobody said which interface to guard.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no interface to guard: name it in the configuration, under [daemon], as in \
     interfaces = [\"eth0\"], or with -i eth0"
)]
pub struct NoInterface;

/// The interfaces to guard, each once.
pub fn interfaces(config: &Config) -> Result<Vec<String>, NoInterface> {
    let mut distinct: Vec<String> = Vec::new();
    for name in &config.interfaces {
        if !distinct.contains(name) {
            distinct.push(name.clone());
        }
    }
    if distinct.is_empty() {
        return Err(NoInterface);
    }
    Ok(distinct)
}

/// Checks for the capabilities that loading and attaching take.
pub fn check_capabilities() -> Result<(), NotAllowed> {
    allowed(missing_capabilities())
}

fn allowed(missing: Vec<String>) -> Result<(), NotAllowed> {
    if missing.is_empty() {
        Ok(())
    } else {
        Err(NotAllowed(MissingCapabilities(missing)))
    }
}

/// Checks for those that test runs take: nothing is sent by them.
pub fn check_capabilities_to_test() -> Result<(), NotAllowed> {
    let raw = Capability::CAP_NET_RAW.to_string();
    let mut missing = missing_capabilities();
    missing.retain(|capability| *capability != raw);
    allowed(missing)
}

/// Those of the capabilities that this process lacks.
pub(crate) fn missing_capabilities() -> Vec<String> {
    // If they cannot be read, the kernel will say what is missing soon enough.
    match caps::read(None, CapSet::Effective) {
        Ok(have) => missing(|capability| have.contains(&capability)),
        Err(_) => Vec::new(),
    }
}

fn missing(have: impl Fn(Capability) -> bool) -> Vec<String> {
    // What was split off CAP_SYS_ADMIN is still included in it.
    let covered = |capability| match capability {
        Capability::CAP_BPF | Capability::CAP_PERFMON => have(Capability::CAP_SYS_ADMIN),
        _ => false,
    };
    [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        // To refuse connections in the name of a silent server.
        Capability::CAP_NET_RAW,
        Capability::CAP_PERFMON,
    ]
    .into_iter()
    .filter(|capability| !have(*capability) && !covered(*capability))
    .map(|capability| capability.to_string())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Event, Query};

    #[test]
    fn a_table_of_another_size_is_told_of() {
        let options = Options {
            half_open_entries: 1000,
            flow_entries: 100,
            verified_entries: 50,
        };
        let told = |capacity: fn(&str) -> Option<u64>| {
            let journal = Journal::in_memory();
            compare_sizes(&options, capacity, &journal);
            let events = journal.select(&Query::default()).into_iter();
            let told = |event: &Event| (event.kind.clone(), event.message.clone());
            events.map(|event| told(&event)).collect::<Vec<_>>()
        };
        assert!(told(|_| None).is_empty());
        let as_asked = |table: &str| match table {
            map::HALF_OPEN => Some(1000),
            map::FLOWS => Some(flow_places(100)),
            _ => Some(50),
        };
        assert!(told(as_asked).is_empty());
        let (kind, message) = told(|table| (table == map::VERIFIED).then_some(64)).remove(0);
        assert_eq!(kind, "table_keeps_size");
        assert_eq!(
            message,
            "table VERIFIED keeps its 64 entries while it is in use, though 50 are configured: \
             `synguard detach --drain` and a restart change it"
        );
    }

    #[test]
    fn an_interface_named_twice_is_guarded_once() {
        let mut config = crate::config::built_in();
        assert!(interfaces(&config).is_err());
        config.interfaces = ["b", "a", "b"].map(String::from).into();
        assert_eq!(interfaces(&config).unwrap(), ["b", "a"]);
    }

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(
            missing(|_| false),
            ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]
        );
        assert_eq!(
            missing(|capability| capability == Capability::CAP_SYS_ADMIN),
            ["CAP_NET_ADMIN", "CAP_NET_RAW"]
        );
        assert_eq!(
            missing(|capability| !matches!(
                capability,
                Capability::CAP_BPF | Capability::CAP_SYS_ADMIN
            )),
            ["CAP_BPF"]
        );
        assert!(missing(|_| true).is_empty());
    }
}
