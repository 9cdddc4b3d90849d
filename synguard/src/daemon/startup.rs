//! What is checked before anything is touched.

use caps::{CapSet, Capability};

use crate::dataplane::error::MissingCapabilities;

/// The daemon may not do its work.
#[derive(Debug, thiserror::Error)]
#[error("synguard is not allowed to do its work: {0}")]
pub struct NotAllowed(MissingCapabilities);

/// Checks for the capabilities that loading and attaching take.
pub fn check_capabilities() -> Result<(), NotAllowed> {
    // If they cannot be read, the kernel will say what is missing soon enough.
    let Ok(have) = caps::read(None, CapSet::Effective) else {
        return Ok(());
    };
    let missing = missing(|capability| have.contains(&capability));
    if missing.is_empty() {
        Ok(())
    } else {
        Err(NotAllowed(MissingCapabilities(missing)))
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
