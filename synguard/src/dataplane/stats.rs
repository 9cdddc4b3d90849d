//! What the programs counted: `STATS`, summed over the CPUs.

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use synguard_common::{
    abi::{REASON_SLOTS, RTT_BUCKETS, ServiceStats},
    verdict::Reason,
};

use super::wire::Wire;

/// Nothing counted.
pub const ZERO: ServiceStats = ServiceStats {
    reasons: [0; REASON_SLOTS],
    observed: [0; REASON_SLOTS],
    rtt: [0; RTT_BUCKETS],
    rtt_sum_ms: 0,
    syns: 0,
};

/// The counters of a service.
pub fn read(
    map: &PerCpuArray<MapData, Wire<ServiceStats>>,
    service: u16,
) -> Result<ServiceStats, MapError> {
    Ok(sum(map
        .get(&u32::from(service), 0)?
        .iter()
        .map(|wire| &wire.0)))
}

/// Sets the counters of a service to zero, before its number goes to another.
pub fn clear(
    map: &mut PerCpuArray<MapData, Wire<ServiceStats>>,
    service: u16,
) -> Result<(), MapError> {
    let cpus = map.get(&u32::from(service), 0)?.len();
    let zeros = PerCpuValues::try_from(vec![Wire(ZERO); cpus])?;
    map.set(u32::from(service), zeros, 0)
}

fn sum<'a>(parts: impl Iterator<Item = &'a ServiceStats>) -> ServiceStats {
    let mut total = ZERO;
    for part in parts {
        add(&mut total.reasons, &part.reasons);
        add(&mut total.observed, &part.observed);
        add(&mut total.rtt, &part.rtt);
        total.rtt_sum_ms = total.rtt_sum_ms.wrapping_add(part.rtt_sum_ms);
        total.syns = total.syns.wrapping_add(part.syns);
    }
    total
}

fn add(total: &mut [u64], part: &[u64]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total = total.wrapping_add(*part);
    }
}

/// The reasons that a challenged client is let in with, one for each admission.
pub const LET_IN: [Reason; 3] = [
    Reason::Admitted,
    Reason::SpliceStarted,
    Reason::SourceVerified,
];

/// Packets that left with any of `reasons`.
pub fn total(stats: &ServiceStats, reasons: &[Reason]) -> u64 {
    reasons.iter().map(|reason| count(stats, *reason)).sum()
}

/// Packets that left with `reason`.
pub fn count(stats: &ServiceStats, reason: Reason) -> u64 {
    stats.reasons[reason as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_summed() {
        let mut part = ZERO;
        part.reasons.fill(1);
        part.observed.fill(2);
        part.rtt.fill(3);
        part.rtt_sum_ms = 4;
        part.syns = 5;
        let total = sum([part, part, part].iter());
        assert_eq!(total.reasons, [3; REASON_SLOTS]);
        assert_eq!(total.observed, [6; REASON_SLOTS]);
        assert_eq!(total.rtt, [9; RTT_BUCKETS]);
        assert_eq!((total.rtt_sum_ms, total.syns), (12, 15));
        assert_eq!(count(&total, Reason::Challenged), 3);
    }
}
