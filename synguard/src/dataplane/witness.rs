//! The verdict on a single packet, seen by what is counted meanwhile: every packet leaves with one
//! reason, and the reason with one counter.

use std::collections::HashMap;

use aya::maps::{MapData, MapError, PerCpuArray};
use synguard_common::{abi::ServiceStats, tables::Verdict, verdict::Reason};

use super::{stats, wire::Wire};

/// Remembers what was counted. Nothing but the packets asked about may pass the programs.
#[derive(Default)]
pub struct Witness {
    before: HashMap<u16, ServiceStats>,
}

/// Why a verdict is not known.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The counters cannot be read.
    #[error("cannot read map STATS: {0}")]
    Map(#[from] MapError),
    /// More than one packet passed, or there is a reason that this version does not know.
    #[error("one packet was counted as {0}")]
    Strange(String),
}

impl Witness {
    /// The verdict counted since the last call for any of `services`, if one was.
    pub fn verdict(
        &mut self,
        map: &PerCpuArray<MapData, Wire<ServiceStats>>,
        services: &[u16],
    ) -> Result<Option<Verdict>, WitnessError> {
        let mut found = None;
        for &service in services {
            let now = stats::read(map, service)?;
            let before = self.before.insert(service, now).unwrap_or(stats::ZERO);
            if let Some(verdict) = difference(service, &before, &now)?
                && let Some(other) = found.replace(verdict)
            {
                return Err(WitnessError::Strange(format!("{other:?} and {verdict:?}")));
            }
        }
        Ok(found)
    }
}

/// The one verdict by which `now` differs from `before`.
fn difference(
    service: u16,
    before: &ServiceStats,
    now: &ServiceStats,
) -> Result<Option<Verdict>, WitnessError> {
    let mut found: Option<Verdict> = None;
    for (observe, now, before) in [
        (false, &now.reasons, &before.reasons),
        (true, &now.observed, &before.observed),
    ] {
        for (number, (now, before)) in now.iter().zip(before).enumerate() {
            match (now.wrapping_sub(*before), Reason::ALL.get(number)) {
                (0, _) => {}
                (1, Some(&reason)) if found.is_none() => {
                    found = Some(Verdict {
                        service,
                        reason,
                        observe,
                        syn: false,
                    });
                }
                (times, _) => {
                    return Err(WitnessError::Strange(format!(
                        "reason {number} of service {service}, {times} times, beside {found:?}"
                    )));
                }
            }
        }
    }
    match (now.syns.wrapping_sub(before.syns), &mut found) {
        (0, _) => {}
        (1, Some(found)) => found.syn = true,
        (syns, _) => {
            return Err(WitnessError::Strange(format!(
                "{syns} SYNs of service {service}, {found:?}"
            )));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_one_count_and_no_more() {
        let before = stats::ZERO;
        let mut now = before;
        assert!(difference(7, &before, &now).unwrap().is_none());
        now.reasons[Reason::Challenged as usize] += 1;
        now.syns += 1;
        let verdict = difference(7, &before, &now).unwrap().unwrap();
        assert_eq!((verdict.service, verdict.reason), (7, Reason::Challenged));
        assert!(verdict.syn && !verdict.observe);

        let mut observed = before;
        observed.observed[Reason::AckInvalid as usize] += 1;
        let verdict = difference(7, &before, &observed).unwrap().unwrap();
        assert!(verdict.observe && !verdict.syn);

        observed.reasons[Reason::Calm as usize] += 1;
        difference(7, &before, &observed).unwrap_err();
        now.reasons[Reason::Challenged as usize] += 1;
        difference(7, &before, &now).unwrap_err();
        let unknown = Reason::COUNT;
        let mut strange = before;
        strange.reasons[unknown] += 1;
        difference(7, &before, &strange).unwrap_err();
        let mut syn_alone = before;
        syn_alone.syns += 1;
        difference(7, &before, &syn_alone).unwrap_err();
    }
}
