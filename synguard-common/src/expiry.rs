//! How long flows live: what the sweep (`synguard_sweep`) does with each entry of `FLOWS`.
//!
//! Ages are in ticks of the daemon's clock ([`crate::abi::Clock::tick`]) and measured from the last
//! packet, so that a flow in use never expires, whatever was said of its end.

use crate::{
    abi::{CLOSING_CLIENT, CLOSING_RESET, CLOSING_SERVER, FLOW_PENDING, TICKS_PER_SECOND},
    tables::LiveFlow,
};

/// After a RST: the server may not have taken it, and then goes on talking.
pub const RESET_TICKS: u32 = 10 * TICKS_PER_SECOND;
/// After both FINs: TIME_WAIT (60 s in Linux), and a margin for the last retransmissions.
pub const CLOSED_TICKS: u32 = 120 * TICKS_PER_SECOND;
/// How often the SYN is sent again to a server that keeps silent: after 1, 2, 4 and 8 s, as Linux does
/// (RFC 6298). Another 16 s later the client is told.
pub const RETRIES: u8 = 4;

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays,
    /// It is over.
    Expires,
    /// Its SYN is due again.
    Retry,
    /// Its server has kept silent for too long.
    Refuse,
}

#[inline(always)]
const fn was_reset(closing: u8) -> bool {
    closing & CLOSING_RESET != 0
}

#[inline(always)]
const fn were_both_closed(closing: u8) -> bool {
    const BOTH: u8 = CLOSING_CLIENT | CLOSING_SERVER;
    closing & BOTH == BOTH
}

/// Whether a flow is over, by its `CLOSING_*` bits: reset, or closed by both sides.
#[inline(always)]
pub const fn is_over(closing: u8) -> bool {
    was_reset(closing) || were_both_closed(closing)
}

/// Judges a flow at `tick`; one that is merely idle lives for `idle` ticks.
#[inline(always)]
pub fn fate(flow: &LiveFlow, tick: u32, idle: u32) -> Fate {
    let closing = flow.closing.get();
    // State 0 is a flow that was never filled in.
    let limit = if was_reset(closing) || flow.state.get() == 0 {
        RESET_TICKS
    } else if flow.state.get() == FLOW_PENDING {
        return pending(flow, tick);
    } else if were_both_closed(closing) {
        CLOSED_TICKS
    } else {
        idle
    };
    // The daemon's tick may be a moment behind the one a packet brought.
    let age = tick.wrapping_sub(flow.seen_at.get()) as i32;
    if age >= 0 && age as u32 >= limit {
        Fate::Expires
    } else {
        Fate::Stays
    }
}

#[inline(always)]
fn pending(flow: &LiveFlow, tick: u32) -> Fate {
    let tries = flow.tries.get() & 15;
    let tries = if tries > RETRIES { RETRIES } else { tries };
    let age = tick.wrapping_sub(flow.sent_at.get()) as i32;
    let due = (TICKS_PER_SECOND << tries) as i32;
    if age < due {
        Fate::Stays
    } else if tries < RETRIES {
        Fate::Retry
    } else if age < due + RESET_TICKS as i32 {
        Fate::Refuse
    } else {
        // Nobody carried that out.
        Fate::Expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::FLOW_SPLICED;

    const IDLE: u32 = 86_400 * TICKS_PER_SECOND;

    fn flow(state: u8, closing: u8, tries: u8) -> LiveFlow {
        let flow = LiveFlow::default();
        flow.state.set(state);
        flow.closing.set(closing);
        flow.tries.set(tries);
        flow.seen_at.set(1000);
        flow.sent_at.set(1000);
        flow
    }

    /// Seconds after its last packet (or SYN) at which the fate is another than before.
    fn changes(flow: &LiveFlow) -> [Option<(u32, Fate)>; 3] {
        let mut found = [None; 3];
        let mut last = Fate::Stays;
        let mut next = 0;
        for age in 0..=IDLE {
            let now = fate(flow, 1000 + age, IDLE);
            if now != last {
                found[next] = Some((age / TICKS_PER_SECOND, now));
                (last, next) = (now, next + 1);
            }
        }
        found
    }

    #[test]
    fn ages() {
        let expires = |s| [Some((s, Fate::Expires)), None, None];
        assert_eq!(changes(&flow(FLOW_SPLICED, 0, 0)), expires(86_400));
        assert_eq!(
            changes(&flow(FLOW_SPLICED, CLOSING_CLIENT, 0)),
            expires(86_400)
        );
        assert_eq!(
            changes(&flow(FLOW_SPLICED, CLOSING_CLIENT | CLOSING_SERVER, 0)),
            expires(120)
        );
        assert_eq!(changes(&flow(FLOW_SPLICED, CLOSING_RESET, 0)), expires(10));
        assert_eq!(changes(&flow(FLOW_PENDING, CLOSING_RESET, 2)), expires(10));
    }

    #[test]
    fn a_silent_server_is_asked_four_times() {
        for tries in 0..RETRIES {
            let due = 1 << tries;
            assert_eq!(
                changes(&flow(FLOW_PENDING, 0, tries)),
                [Some((due, Fate::Retry)), None, None]
            );
        }
        assert_eq!(
            changes(&flow(FLOW_PENDING, 0, RETRIES)),
            [Some((16, Fate::Refuse)), Some((26, Fate::Expires)), None]
        );
    }

    #[test]
    fn a_packet_ahead_of_the_tick_does_not_age_its_flow() {
        assert_eq!(fate(&flow(FLOW_SPLICED, 0, 0), 999, IDLE), Fate::Stays);
        assert_eq!(fate(&flow(FLOW_PENDING, 0, 0), 999, IDLE), Fate::Stays);
    }
}
