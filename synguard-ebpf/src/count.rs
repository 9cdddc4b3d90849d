//! The one exit: each verdict is counted here, per service and CPU.

use synguard_common::{
    abi::{REASON_SLOTS, RTT_BUCKETS, ServiceStats},
    admit::round_trip_bucket,
    tables::Verdict,
};

use crate::{cursor::hidden, maps::STATS};

/// Counts a verdict.
#[inline(always)]
pub fn count(verdict: &Verdict) {
    let Some(stats) = STATS.get_ptr_mut(verdict.service as u32) else {
        return;
    };
    // LLVM knows how many reasons there are, and would leave out the mask, without which the verifier
    // says "R1 unbounded memory access".
    let reason = hidden(verdict.reason as usize) & (REASON_SLOTS - 1);
    // SAFETY: a per-CPU map value; nothing else runs this program on this CPU meanwhile.
    let stats: &mut ServiceStats = unsafe { &mut *stats };
    if verdict.observe {
        stats.observed[reason] += 1;
    } else {
        stats.reasons[reason] += 1;
    }
    if verdict.syn {
        stats.syns += 1;
    }
}

/// Counts a handshake's round trip.
#[inline(always)]
pub fn round_trip(service: u16, ms: u32) {
    let Some(stats) = STATS.get_ptr_mut(service as u32) else {
        return;
    };
    // SAFETY: as above.
    let stats: &mut ServiceStats = unsafe { &mut *stats };
    let bucket = round_trip_bucket(ms);
    if bucket < RTT_BUCKETS {
        stats.rtt[bucket] += 1;
        stats.rtt_sum_ms += ms as u64;
    }
}
