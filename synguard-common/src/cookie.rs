//! SYN cookies: the initial sequence number of our SYN-ACK, from which the handshake's last ACK
//! lets us recover what the SYN asked for (RFC 4987 section 3.6).
//!
//! ```text
//!   31                               8 7     5 4     2   1       0
//!  +----------------------------------+-------+-------+------+--------+
//!  |   MAC24: top 24 bits of the MAC  |  MSS  | scale | SACK | parity |   low byte XOR
//!  +----------------------------------+-------+-------+------+--------+   bits 31..24
//! ```
//!
//! The MAC is SipHash-2-4 over both addresses, both ports, the client's initial sequence number,
//! the low byte in clear (the *payload*) and the epoch number, under the key of that epoch. The
//! parity bit says which of two neighbouring epochs it was, so that one MAC decides.
//!
//! **Threat model.** An attacker who sees no answers must guess 24 bits for each ACK: one in 16.7
//! million forged ACKs is believed, and then costs one socket, not a table. The MAC covers
//! everything an attacker could want to change. A cookie cannot be used for another connection, nor
//! for the same one with another initial sequence number; it can be replayed for the same one until
//! it expires, which the kernel's socket table makes pointless. XORing the payload with MAC bits
//! hides the options from whoever sees only our answers; it protects nothing.
//!
//! **Lifetime.** A cookie is valid in the epoch it was made in and in the next one, but for that
//! one's last two seconds ([`crate::clock`]): 14 to 32 s.
//!
//! **Tables.** They always round down: a peer that gets smaller segments, or believes in a smaller
//! window, is slower at worst. MSS values follow Alcock and Nelson, "An Analysis of TCP Maximum
//! Segment Sizes" (University of Waikato, 2011), which Linux (`msstab`) and FreeBSD
//! (`tcp_sc_msstab`) cite too: 1460 is by far the most common, less than 0.2 % are below 536, and
//! tunnels and PPPoE account for the values between 1300 and 1452; to these each family's table adds
//! jumbo frames of 9000 bytes. The IPv6 table holds what the same link MTUs give there (1280, 1400,
//! 1420, 1460, 1480 and 1500 bytes). Window scales are those in p0f's database of SYN fingerprints
//! (`p0f.fp`, `tcp:request`): 8 for Windows, 7 and 10 for Linux, 6 for the BSDs and Apple, lower
//! ones for older systems; in between, at most half the window is lost.
//!
//! **Timestamps.** A client with timestamps echoes our TSval, so its low bits carry what the payload
//! has no room for: the exact window scale and ECN. They are not covered by the MAC and are believed
//! only as far as they agree with it ([`Timestamp::window_scale`]).

use crate::{
    abi::EpochKey,
    flow::{Flow, Net},
    options::Options,
    siphash::SipHash24,
    wire::ipv4,
};

/// Window scales by index; index 0 stands for a SYN without the option.
const WINDOW_SCALES: [u8; 8] = [0, 0, 2, 4, 6, 7, 8, 10];

/// What a cookie says about the SYN: MSS index, window-scale index, SACK and the epoch's parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload(u8);

impl Payload {
    /// The payload for a SYN with these options, in an epoch of this number.
    #[inline(always)]
    pub fn new<N: Net>(options: &Options, epoch: u64) -> Self {
        let mss = if options.mss == 0 {
            N::DEFAULT_MSS
        } else {
            options.mss
        };
        let mss_index = rank(mss as u64, N::MSS_TABLE);
        let scaling = options.has_window_scale() as u8;
        let scale_index = scale_index(options.window_scale as u64) * scaling;
        Self(
            (mss_index << 5)
                | (scale_index << 2)
                | ((options.sack_permitted() as u8) << 1)
                | (epoch as u8 & 1),
        )
    }

    /// The MSS, rounded down to the family's table; an MSS below the table's first entry is taken
    /// for that entry. Bytes.
    #[inline(always)]
    pub fn mss<N: Net>(self) -> u16 {
        N::MSS_TABLE[(self.0 >> 5) as usize & 7]
    }

    /// The window scale, rounded down; `None` where the SYN had none.
    #[inline(always)]
    pub fn window_scale(self) -> Option<u8> {
        self.has_window_scale().then_some(self.scale())
    }

    /// Whether the SYN had a window scale.
    #[inline(always)]
    pub const fn has_window_scale(self) -> bool {
        (self.0 >> 2) & 7 != 0
    }

    /// The window scale, rounded down; of no meaning where the SYN had none.
    #[inline(always)]
    pub const fn scale(self) -> u8 {
        WINDOW_SCALES[(self.0 >> 2) as usize & 7]
    }

    /// Whether the SYN permitted SACK.
    #[inline(always)]
    pub fn sack_permitted(self) -> bool {
        self.0 & 2 != 0
    }

    /// Lowest bit of the epoch number.
    #[inline(always)]
    pub const fn parity(self) -> u8 {
        self.0 & 1
    }

    /// The payload that a cookie claims; worth nothing before [`validate`] said yes.
    #[inline(always)]
    pub const fn claimed(cookie: u32) -> Self {
        Self(cookie as u8 ^ (cookie >> 24) as u8)
    }
}

/// Index of the last entry of a sorted table that is not above `value`; 0 where all but the first
/// are. Without branches: of 7 comparisons and 7 more the verifier would walk every outcome through
/// the hash that follows.
#[inline(always)]
const fn rank(value: u64, table: [u16; 8]) -> u8 {
    let mut above = 0;
    let mut i = 1;
    while i < 8 {
        // 1 where value < table[i]: the difference wraps around and its top bit is set.
        above += value.wrapping_sub(table[i] as u64) >> 63;
        i += 1;
    }
    7 - above as u8
}

/// Index of the largest scale in the table that is not above `shift`.
#[inline(always)]
const fn scale_index(shift: u64) -> u8 {
    let [_, _, c, d, e, f, g, h] = WINDOW_SCALES;
    // The first two entries are "none" and 0; every shift is at least the second.
    rank(
        shift,
        [
            0, 0, c as u16, d as u16, e as u16, f as u16, g as u16, h as u16,
        ],
    )
}

#[inline(always)]
fn mac24<N: Net>(flow: &Flow<N>, isn: u32, payload: Payload, key: &EpochKey) -> u32 {
    let ends = ((flow.client_port as u64) << 48) | ((flow.server_port as u64) << 32) | isn as u64;
    let rest = ((payload.0 as u64) << 56) | (key.epoch & 0x00ff_ffff_ffff_ffff);
    let mac = flow
        .net
        .hash(SipHash24::new(key.k0, key.k1))
        .word(ends)
        .word(rest)
        .finish();
    (mac >> 40) as u32
}

/// [`mac24`] as a function of its own: over IPv6, inlined, it needs more stack than the program has
/// left.
#[inline(never)]
fn mac24_called<N: Net>(flow: &Flow<N>, isn: u32, payload: Payload, key: &EpochKey) -> u32 {
    mac24(flow, isn, payload, key)
}

#[inline(always)]
const fn assemble(mac24: u32, payload: Payload) -> u32 {
    (mac24 << 8) | (payload.0 as u32 ^ (mac24 >> 16))
}

/// The cookie for a SYN of `flow` with initial sequence number `isn`, under the key of the present
/// epoch (whose parity `payload` must have).
#[inline(always)]
pub fn generate<N: Net>(flow: &Flow<N>, isn: u32, payload: Payload, key: &EpochKey) -> u32 {
    let mac24 = if N::HEADER == ipv4::HEADER {
        mac24(flow, isn, payload, key)
    } else {
        mac24_called(flow, isn, payload, key)
    };
    assemble(mac24, payload)
}

/// Checks a cookie against the key of the epoch that its parity names
/// ([`crate::clock::Now::epoch_of`]); the payload where it holds.
#[inline(always)]
pub fn validate<N: Net>(flow: &Flow<N>, isn: u32, cookie: u32, key: &EpochKey) -> Option<Payload> {
    let payload = Payload::claimed(cookie);
    if cookie == generate(flow, isn, payload, key) {
        Some(payload)
    } else {
        None
    }
}

/// The TSval of our SYN-ACK: a clock of about a millisecond above five bits of what the client
/// asked for.
///
/// TSval thus advances by about 32 a millisecond, which RFC 7323 section 5.4 allows until the
/// kernel takes over from this very value at its own pace (`bpf_sk_assign_tcp_reqsk`). Bits 3..0
/// are the window scale (15 for none), bit 4 is ECN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(pub u32);

impl Timestamp {
    const CLOCK_SHIFT: u32 = 5;
    /// A tick of the clock is 2^20 ns, about a millisecond: a division by a million would cost
    /// more.
    const TICK_SHIFT: u32 = 20;
    const ECN: u32 = 1 << 4;
    const NO_SCALE: u32 = 15;

    /// The TSval to send at `monotonic` ns to a client with which these options were agreed on.
    #[inline(always)]
    pub fn new(monotonic: u64, options: &Options) -> Self {
        let unscaled = Self::NO_SCALE * !options.has_window_scale() as u32;
        let clock = ((monotonic >> Self::TICK_SHIFT) as u32) << Self::CLOCK_SHIFT;
        let ecn = Self::ECN * options.has_ecn() as u32;
        Self(clock | ecn | unscaled | options.window_scale as u32)
    }

    /// Whether ECN was agreed on.
    #[inline(always)]
    pub const fn ecn(self) -> bool {
        self.0 & Self::ECN != 0
    }

    /// The client's exact window scale, as far as the cookie bears it out: else what the cookie
    /// says.
    #[inline(always)]
    pub fn window_scale(self, payload: Payload) -> Option<u8> {
        payload.has_window_scale().then_some(self.scale(payload))
    }

    /// The same, of no meaning where the SYN had none.
    #[inline(always)]
    pub fn scale(self, payload: Payload) -> u8 {
        let exact = (self.0 & 15) as u8;
        let index = (payload.0 >> 2) & 7;
        if exact <= crate::options::MAX_WINDOW_SCALE && scale_index(exact as u64) == index {
            exact
        } else {
            payload.scale()
        }
    }

    /// Milliseconds between sending this and `monotonic` ns; as coarse as the kernel's tick.
    /// Wraps after 39 hours, which no cookie reaches.
    #[inline(always)]
    pub const fn elapsed_ms(self, monotonic: u64) -> u32 {
        let now = ((monotonic >> Self::TICK_SHIFT) as u32) << Self::CLOCK_SHIFT;
        let ticks = now.wrapping_sub(self.0 & !0x1f) >> Self::CLOCK_SHIFT;
        (((ticks as u64) << Self::TICK_SHIFT) / 1_000_000) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{OFFER_ECN, OFFER_SACK, OFFER_WINDOW_SCALE},
        clock::{EPOCH_NS, Now},
        flow::{V4, V6},
        options::MAX_WINDOW_SCALE,
    };

    fn options() -> impl Strategy<Value = Options> {
        (any::<u16>(), any::<Option<u8>>(), any::<bool>()).prop_map(|(mss, scale, sack)| Options {
            present: if scale.is_some() {
                OFFER_WINDOW_SCALE
            } else {
                0
            } | if sack { OFFER_SACK } else { 0 },
            mss,
            window_scale: scale.unwrap_or(0).min(MAX_WINDOW_SCALE),
            ..Options::default()
        })
    }

    fn v4() -> impl Strategy<Value = Flow<V4>> {
        any::<(u32, u32, u16, u16)>().prop_map(|(client, server, client_port, server_port)| Flow {
            net: V4 { client, server },
            client_port,
            server_port,
        })
    }

    fn v6() -> impl Strategy<Value = Flow<V6>> {
        any::<([u64; 2], [u64; 2], u16, u16)>().prop_map(
            |(client, server, client_port, server_port)| Flow {
                net: V6 { client, server },
                client_port,
                server_port,
            },
        )
    }

    fn key() -> impl Strategy<Value = EpochKey> {
        (any::<u64>(), any::<u64>(), 1u64..1 << 40).prop_map(|(k0, k1, epoch)| EpochKey {
            epoch,
            k0,
            k1,
        })
    }

    /// What the tables promise, computed another way.
    fn check<N: Net>(payload: Payload, options: &Options) {
        let offered = if options.mss == 0 {
            N::DEFAULT_MSS
        } else {
            options.mss
        };
        let rounded = N::MSS_TABLE.into_iter().rev().find(|m| *m <= offered);
        assert_eq!(payload.mss::<N>(), rounded.unwrap_or(N::MSS_TABLE[0]));
        let scale = options.has_window_scale().then(|| {
            WINDOW_SCALES[1..]
                .iter()
                .copied()
                .filter(|s| *s <= options.window_scale)
                .max()
                .unwrap()
        });
        assert_eq!(payload.window_scale(), scale);
        assert_eq!(payload.sack_permitted(), options.sack_permitted());
    }

    fn round_trip<N: Net>(flow: Flow<N>, isn: u32, options: &Options, key: &EpochKey) {
        let payload = Payload::new::<N>(options, key.epoch);
        let cookie = generate(&flow, isn, payload, key);
        let recovered = validate(&flow, isn, cookie, key).unwrap();
        assert_eq!(recovered, payload);
        check::<N>(recovered, options);
        for bit in 0..32 {
            assert_eq!(validate(&flow, isn, cookie ^ (1 << bit), key), None);
            assert_eq!(validate(&flow, isn ^ (1 << bit), cookie, key), None);
        }
        for bit in 0..16 {
            let client = Flow {
                client_port: flow.client_port ^ (1 << bit),
                ..flow
            };
            let server = Flow {
                server_port: flow.server_port ^ (1 << bit),
                ..flow
            };
            assert_eq!(validate(&client, isn, cookie, key), None);
            assert_eq!(validate(&server, isn, cookie, key), None);
        }
        for other in [key.epoch - 1, key.epoch + 1, key.epoch + 2] {
            assert_eq!(
                validate(
                    &flow,
                    isn,
                    cookie,
                    &EpochKey {
                        epoch: other,
                        ..*key
                    }
                ),
                None
            );
        }
    }

    #[test]
    fn tables_are_sorted() {
        assert!(V4::MSS_TABLE.is_sorted() && V6::MSS_TABLE.is_sorted());
        assert!(WINDOW_SCALES[1..].is_sorted());
    }

    /// Computed by an independent SipHash-2-4 over the words the module's text describes.
    #[test]
    fn a_fixed_cookie() {
        let key = EpochKey {
            epoch: 106_250_000,
            k0: 0x0706_0504_0302_0100,
            k1: 0x0f0e_0d0c_0b0a_0908,
        };
        let flow = Flow {
            net: V4 {
                client: 0xc633_6401,
                server: 0xcb00_7105,
            },
            client_port: 57788,
            server_port: 443,
        };
        let options = Options {
            present: OFFER_WINDOW_SCALE | OFFER_SACK,
            mss: 1460,
            window_scale: 8,
            ..Options::default()
        };
        let payload = Payload::new::<V4>(&options, key.epoch);
        assert_eq!(payload, Payload(6 << 5 | 6 << 2 | 1 << 1));
        assert_eq!(generate(&flow, 33_219_744, payload, &key), 0xafd31a75);
    }

    proptest! {
        #[test]
        fn v4_cookies_hold_and_nothing_else_does(
            flow in v4(), isn: u32, options in options(), key in key(), bit in 0..32u32,
        ) {
            round_trip(flow, isn, &options, &key);
            let cookie = generate(&flow, isn, Payload::new::<V4>(&options, key.epoch), &key);
            let V4 { client, server } = flow.net;
            for net in [V4 { client: client ^ (1 << bit), server }, V4 { client, server: server ^ (1 << bit) }] {
                prop_assert_eq!(validate(&Flow { net, ..flow }, isn, cookie, &key), None);
            }
        }

        #[test]
        fn v6_cookies_hold_and_nothing_else_does(
            flow in v6(), isn: u32, options in options(), key in key(), bit in 0..128usize,
        ) {
            round_trip(flow, isn, &options, &key);
            let cookie = generate(&flow, isn, Payload::new::<V6>(&options, key.epoch), &key);
            let mut net = flow.net;
            net.client[bit / 64] ^= 1 << (bit % 64);
            prop_assert_eq!(validate(&Flow { net, ..flow }, isn, cookie, &key), None);
            let mut net = flow.net;
            net.server[bit / 64] ^= 1 << (bit % 64);
            prop_assert_eq!(validate(&Flow { net, ..flow }, isn, cookie, &key), None);
        }

        /// With the clock in charge of which key is tried: honoured for 14 s at least, refused
        /// after 32 s at most, and before it was made (but for the skew that fleets are granted).
        #[test]
        fn cookies_expire(flow in v4(), isn: u32, options in options(), made in 100u64..1 << 30,
                          into in 0..EPOCH_NS, later in 0u64..200_000_000_000, sooner in 2_000_000_001u64..100_000_000_000) {
            let keys = |epoch: u64| EpochKey { epoch, k0: epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15), k1: !epoch };
            let wall = made * EPOCH_NS + into;
            let cookie = generate(&flow, isn, Payload::new::<V4>(&options, made), &keys(made));
            let holds = |wall: u64| {
                let epoch = Now::new(0, wall).epoch_of(Payload::claimed(cookie).parity());
                validate(&flow, isn, cookie, &keys(epoch)).is_some()
            };
            prop_assert!(holds(wall));
            if later <= 14_000_000_000 { prop_assert!(holds(wall + later)); }
            if later >= 2 * EPOCH_NS { prop_assert!(!holds(wall + later)); }
            // Earlier than two seconds before the epoch it was made in began.
            prop_assert!(!holds(wall - into - sooner));
        }

        #[test]
        fn timestamps_carry_the_exact_scale(options in options(), ecn: bool, sent in 0u64..1 << 60, rtt in 0u64..60_000) {
            let options = Options { present: options.present | if ecn { OFFER_ECN } else { 0 }, ..options };
            let stamp = Timestamp::new(sent, &options);
            let payload = Payload::new::<V4>(&options, 0);
            prop_assert_eq!(stamp.ecn(), ecn);
            prop_assert_eq!(stamp.window_scale(payload), options.has_window_scale().then_some(options.window_scale));
            let elapsed = stamp.elapsed_ms(sent + rtt * 1_000_000);
            // A tick is lost at either end at most, and a little less than 5 % of one is added.
            prop_assert!(elapsed as u64 <= rtt + 2 && elapsed as u64 + 2 >= rtt, "{elapsed} for {rtt}");
        }

        #[test]
        fn a_lying_timestamp_gets_what_the_cookie_says(options in options(), stamp: u32) {
            let payload = Payload::new::<V4>(&options, 0);
            let scale = Timestamp(stamp).window_scale(payload);
            prop_assert_eq!(scale.is_some(), options.has_window_scale());
            if let Some(scale) = scale {
                prop_assert!(scale <= MAX_WINDOW_SCALE);
                prop_assert!(scale >= payload.window_scale().unwrap());
            }
        }
    }
}
