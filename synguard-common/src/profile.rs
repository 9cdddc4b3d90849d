//! What a service's servers offer: learned from their own SYN-ACKs, promised in ours.
//!
//! A client that we answer must be promised nothing that the server behind will not keep, because
//! the server hears of the connection only later. So we look at its answers to SYNs that passed
//! while the service was calm. An option it was seen to agree to is promised from then on; the
//! least MSS seen is what counts, and the first window scale. An option that it fell short of,
//! after it had been promised, is not promised again for [`WITHHELD_TICKS`], whatever is seen:
//! behind one address there may be several servers that differ.
//!
//! Not having been seen to agree says nothing, since the client may not have asked. So nothing is
//! ever learned from an option's absence but by that shortfall.

use crate::{
    abi::{
        OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE, ServiceConfig,
        TICKS_PER_SECOND,
    },
    options::Options,
};

/// For how long an option is withheld after a shortfall: ten minutes.
pub const WITHHELD_TICKS: u32 = 600 * TICKS_PER_SECOND;

/// The options that it is worth probing for.
const PROBED: u32 = OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE;

/// One word, so that it is written and read at once.
///
/// ```text
///   63     33  32  31        16 15      8 7        0
///  +---------+----+------------+---------+----------+
///  |  zero   | it |   packet   |  scale  | OFFER_*  |
///  +---------+----+------------+---------+----------+
/// ```
///
/// "it": anything was learned at all; "packet": the largest, MSS and headers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile(pub u64);

impl Profile {
    const LEARNED: u64 = 1 << 32;

    /// Whether any SYN-ACK was seen.
    #[inline(always)]
    pub const fn learned(self) -> bool {
        self.0 & Self::LEARNED != 0
    }

    /// `OFFER_*` bits that were seen.
    #[inline(always)]
    pub const fn offers(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// Window scale that was first seen, at most [`MAX_LEARNED_SCALE`]; 0 where none was. Servers
    /// that differ have their windows scaled again.
    #[inline(always)]
    pub const fn window_scale(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Largest packet that every server seen takes, bytes; 0 where none was seen. The MSS without
    /// the family: one service may have both.
    #[inline(always)]
    pub const fn packet(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// With another SYN-ACK taken into account. `withheld` are the options not to be learned now,
    /// `overhead` the length of the headers without options ([`crate::flow::Net::OVERHEAD`]).
    #[inline(always)]
    #[must_use]
    pub const fn learn(self, seen: &Options, withheld: u32, overhead: u16) -> Self {
        let new = seen.present & !withheld & (PROBED | OFFER_ECN);
        let offers = self.offers() | new;
        // The first one stays: cookies are out that promise it.
        let scale = if self.offers() & OFFER_WINDOW_SCALE == 0 && new & OFFER_WINDOW_SCALE != 0 {
            least_scale(seen.window_scale)
        } else {
            self.window_scale()
        };
        let packet = match seen.mss {
            0 => 0,
            mss => mss.saturating_add(overhead),
        };
        let packet = least(self.packet(), packet);
        Self(Self::LEARNED | ((packet as u64) << 16) | ((scale as u64) << 8) | offers as u64)
    }

    /// Without the options that a server fell short of.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, options: u32) -> Self {
        Self(self.0 & !(options as u64 & 0xff))
    }
}

/// Whether the answer to a SYN that offers these options may tell something new of them. One such SYN
/// passes each second while its service is guarded: a server that lacks an option costs its clients
/// no more than that, and one that was never calm is learned too.
#[inline(always)]
pub const fn is_news(profile: Profile, offered: u32, withheld: (u32, u32), tick: u32) -> bool {
    let withheld = self::withheld(withheld, tick);
    offered & PROBED & !profile.offers() & !withheld != 0
}

/// The options that are withheld at `tick`, of those that were (`OFFER_*` bits) since some tick.
#[inline(always)]
pub const fn withheld((options, since): (u32, u32), tick: u32) -> u32 {
    if tick.wrapping_sub(since) < WITHHELD_TICKS {
        options
    } else {
        0
    }
}

/// Largest window scale that is promised because it was learned. A window of another server is told in
/// units of it, rounded down: they are to be small beside any window. This one allows 8 MiB.
pub const MAX_LEARNED_SCALE: u8 = 7;

#[inline(always)]
const fn least_scale(seen: u8) -> u8 {
    if seen < MAX_LEARNED_SCALE {
        seen
    } else {
        MAX_LEARNED_SCALE
    }
}

/// The lesser of two limits, of which 0 is none.
#[inline(always)]
const fn least(a: u16, b: u16) -> u16 {
    if a == 0 || (b != 0 && b < a) { b } else { a }
}

/// What a SYN-ACK of ours offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `OFFER_*` bits.
    pub offers: u32,
    /// Window scale.
    pub scale: u8,
    /// Largest MSS, bytes; 0 where only the MTU limits it.
    pub mss: u16,
}

impl Offer {
    /// By the configuration, and where that says so by what was learned.
    #[inline(always)]
    pub const fn of(config: &ServiceConfig, profile: Profile, overhead: u16) -> Self {
        if config.learns == 0 {
            return Self {
                offers: config.offers,
                scale: config.rcv_wscale,
                mss: config.mss,
            };
        }
        let mss = profile.packet().saturating_sub(overhead);
        let mss = least(config.mss, mss);
        Self {
            offers: config.offers & profile.offers(),
            scale: profile.window_scale(),
            mss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(present: u32, mss: u16, window_scale: u8) -> Options {
        Options {
            present,
            mss,
            window_scale,
            ..Options::default()
        }
    }

    #[test]
    fn options_add_up_and_sizes_go_down() {
        let first = Profile::default().learn(&seen(OFFER_SACK, 1460, 0), 0, 40);
        assert!(!Profile::default().learned() && first.learned());
        assert_eq!((first.offers(), first.packet()), (OFFER_SACK, 1500));
        let second = first.learn(
            &seen(OFFER_WINDOW_SCALE | OFFER_TIMESTAMPS, 1400, 9),
            OFFER_TIMESTAMPS,
            40,
        );
        assert_eq!(second.offers(), OFFER_SACK | OFFER_WINDOW_SCALE);
        assert_eq!((second.packet(), second.window_scale()), (1440, 7));
        let third = second.learn(&seen(OFFER_WINDOW_SCALE, 1440, 7), 0, 60);
        assert_eq!((third.packet(), third.window_scale()), (1440, 7));
        // A client that did not ask for scaling.
        let fourth = third.learn(&seen(0, 0, 0), 0, 40);
        assert_eq!(
            (fourth.offers(), fourth.window_scale()),
            (third.offers(), 7)
        );
        assert_eq!(fourth.without(OFFER_SACK).offers(), OFFER_WINDOW_SCALE);
        assert!(fourth.without(0xff).learned());
    }

    #[test]
    fn what_is_news() {
        let profile = Profile::default().learn(&seen(OFFER_SACK, 1460, 0), 0, 40);
        assert!(is_news(profile, PROBED, (0, 0), 0));
        assert!(!is_news(profile, OFFER_SACK | OFFER_ECN, (0, 0), 0));
        let withheld = (OFFER_TIMESTAMPS, 100);
        assert!(!is_news(profile, OFFER_TIMESTAMPS, withheld, 101));
        assert!(is_news(profile, PROBED, withheld, 101));
        assert!(is_news(
            profile,
            OFFER_TIMESTAMPS,
            withheld,
            100 + WITHHELD_TICKS
        ));
    }

    #[test]
    fn the_configuration_limits_or_decides() {
        let profile = Profile::default().learn(&seen(PROBED, 1460, 7), 0, 40);
        let config = ServiceConfig {
            high: 1,
            offers: OFFER_SACK | OFFER_WINDOW_SCALE,
            window: 0,
            mode: 0,
            admission: 2,
            rcv_wscale: 3,
            ttl: 64,
            learns: 1,
            pad: 0,
            mss: 1400,
            pad2: 0,
        };
        let offer = Offer::of(&config, profile, 40);
        assert_eq!(
            offer,
            Offer {
                offers: OFFER_SACK | OFFER_WINDOW_SCALE,
                scale: 7,
                mss: 1400
            }
        );
        assert_eq!(Offer::of(&config, Profile::default(), 40).offers, 0);
        let fixed = ServiceConfig {
            learns: 0,
            ..config
        };
        assert_eq!(
            Offer::of(&fixed, Profile::default(), 40),
            Offer {
                offers: OFFER_SACK | OFFER_WINDOW_SCALE,
                scale: 3,
                mss: 1400
            }
        );
    }
}
