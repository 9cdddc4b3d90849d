//! TCP options as a SYN or a handshake ACK carries them (RFC 9293 section 3.1, RFC 7323, RFC 2018).
//!
//! Two readers with one meaning. [`fast`] looks at aligned 32-bit words and knows the words that
//! real stacks send: MSS first, then SACK-permitted, timestamps and window scale in the paddings
//! that Linux, Windows, the BSDs and Apple use. Anything else goes to [`Scanner`], which takes one
//! byte at a time and follows Linux's `tcp_parse_options`: an impossible length ends the parsing and
//! what was read before it stands; an option of the wrong length is skipped; the last of several
//! wins.

use crate::{
    abi::{OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE},
    packet::{Packet, View},
};

/// End of option list.
pub const EOL: u8 = 0;
/// No operation.
pub const NOP: u8 = 1;
/// Maximum segment size, four bytes in all.
pub const MSS: u8 = 2;
/// Window scale, three bytes in all.
pub const WINDOW_SCALE: u8 = 3;
/// SACK permitted, two bytes in all.
pub const SACK_PERMITTED: u8 = 4;
/// SACK blocks.
pub const SACK: u8 = 5;
/// Timestamps, ten bytes in all.
pub const TIMESTAMPS: u8 = 8;
/// TCP Fast Open cookie (RFC 7413).
pub const FAST_OPEN: u8 = 34;

/// Largest shift a window scale may ask for (RFC 7323 section 2.3).
pub const MAX_WINDOW_SCALE: u8 = 14;

/// What of a segment's options matters to a handshake.
///
/// Which options there were is one word of bits, the same bits as what a service offers
/// ([`crate::abi::OFFER_TIMESTAMPS`] and so on), so that agreeing on them is one AND. Branches
/// would be walked by the verifier in every combination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `OFFER_*` bits of the options that were there.
    pub present: u32,
    /// Maximum segment size; 0 where there was none (or it was 0).
    pub mss: u16,
    /// The shift of the window scale, at most [`MAX_WINDOW_SCALE`]; 0 where there was none.
    pub window_scale: u8,
    /// TSval.
    pub ts_val: u32,
    /// TSecr.
    pub ts_ecr: u32,
}

impl Options {
    /// Whether timestamps were there.
    #[inline(always)]
    pub const fn has_timestamps(&self) -> bool {
        self.present & OFFER_TIMESTAMPS != 0
    }

    /// Whether SACK was permitted.
    #[inline(always)]
    pub const fn sack_permitted(&self) -> bool {
        self.present & OFFER_SACK != 0
    }

    /// Whether there was a window scale.
    #[inline(always)]
    pub const fn has_window_scale(&self) -> bool {
        self.present & OFFER_WINDOW_SCALE != 0
    }

    /// Whether ECN was asked for, and there are timestamps to remember it by.
    #[inline(always)]
    pub const fn has_ecn(&self) -> bool {
        self.present & OFFER_ECN != 0
    }

    /// What the client wants and we offer. `ecn` is 1 where the SYN's flags ask for ECN
    /// (RFC 3168 section 6.1.1); it is had only with timestamps, in which alone it comes back to
    /// us.
    #[inline(always)]
    #[must_use]
    pub const fn agree(self, ecn: u32, offers: u32) -> Self {
        const TIMESTAMPS_AT: u32 = OFFER_TIMESTAMPS.trailing_zeros();
        const ECN_AT: u32 = OFFER_ECN.trailing_zeros();
        const SCALE_AT: u32 = OFFER_WINDOW_SCALE.trailing_zeros();
        let present = self.present & offers;
        let ecn = ((present >> TIMESTAMPS_AT) & ecn & 1) << ECN_AT;
        let scaling = (present >> SCALE_AT) & 1;
        Self {
            present: present | (ecn & offers),
            window_scale: self.window_scale & 0u8.wrapping_sub(scaling as u8),
            ..self
        }
    }

    #[inline(always)]
    fn permit_sack(&mut self) {
        self.present |= OFFER_SACK;
    }

    #[inline(always)]
    fn set_timestamps(&mut self, val: u32, ecr: u32) {
        self.present |= OFFER_TIMESTAMPS;
        self.ts_val = val;
        self.ts_ecr = ecr;
    }

    #[inline(always)]
    fn set_window_scale(&mut self, shift: u8) {
        self.present |= OFFER_WINDOW_SCALE;
        self.window_scale = if shift > MAX_WINDOW_SCALE {
            MAX_WINDOW_SCALE
        } else {
            shift
        };
    }
}

/// Reads `len` bytes of options (a multiple of four, at most 40) from `at`. `zero` is
/// [`crate::tables::Tables::zero`].
#[inline(always)]
pub fn read<P: Packet + ?Sized>(packet: &P, at: usize, len: usize, zero: usize) -> Options {
    let options = match fast(packet, at, len) {
        Some(options) => options,
        None => packet.scan(at, len),
    };
    Options {
        present: options.present.wrapping_add(zero as u32),
        mss: options.mss.wrapping_add(zero as u16),
        window_scale: options.window_scale.wrapping_add(zero as u8),
        ..options
    }
}

/// Reads the timestamps of a handshake's ACK, which has no other option that matters.
#[inline(always)]
pub fn timestamps<P: Packet + ?Sized>(packet: &P, at: usize, len: usize) -> Options {
    let mut options = Options::default();
    if len == 0 {
        return options;
    }
    // One view, not an option for each word: of those that are none LLVM spills what was never
    // there, "R4 !read_ok".
    if len >= 12
        && let Some(view) = packet.view(at, 12)
        && view.u32(0) == NOP_NOP_TIMESTAMPS
    {
        options.set_timestamps(view.u32(4), view.u32(8));
        return options;
    }
    packet.scan(at, len)
}

const MSS_WORD: u32 = 0x0204;
const NOP_SCALE: u32 = 0x01_0303;
const NOP_NOP_SACK: u32 = 0x0101_0402;
const SACK_END: u32 = 0x0402_0000;
pub(crate) const NOP_NOP_TIMESTAMPS: u32 = 0x0101_080a;
const SACK_TIMESTAMPS: u32 = 0x0402_080a;

/// Reads options laid out in one of the usual ways; `None` for any other.
///
/// A tree over whole words rather than a loop with a state: LLVM would unroll the loop into every
/// combination of states (ten thousand instructions), and the verifier would walk them all.
#[inline(always)]
pub fn fast<P: Packet + ?Sized>(packet: &P, at: usize, len: usize) -> Option<Options> {
    let word = |i: usize| packet.view(at + i * 4, 4).map(|view| view.u32(0));
    let mut options = Options::default();
    if len == 0 {
        return Some(options);
    }
    let first = word(0)?;
    if len == 12 && first == NOP_NOP_TIMESTAMPS {
        // Every segment of an established connection with timestamps.
        options.set_timestamps(word(1)?, word(2)?);
        return Some(options);
    }
    if first >> 16 != MSS_WORD {
        return None;
    }
    options.mss = first as u16;
    if len == 4 {
        return Some(options);
    }
    let second = word(1)?;
    if second == SACK_TIMESTAMPS || second == NOP_NOP_TIMESTAMPS {
        // Linux, with and without SACK.
        if second == SACK_TIMESTAMPS {
            options.permit_sack();
        }
        if len == 16 {
            options.set_timestamps(word(2)?, word(3)?);
            return Some(options);
        }
        let scale = word(4)?;
        if len != 20 || scale >> 8 != NOP_SCALE {
            return None;
        }
        options.set_timestamps(word(2)?, word(3)?);
        options.set_window_scale(scale as u8);
        return Some(options);
    }
    if second == NOP_NOP_SACK {
        // Linux without timestamps.
        options.permit_sack();
        if len == 8 {
            return Some(options);
        }
        let scale = word(2)?;
        if len != 12 || scale >> 8 != NOP_SCALE {
            return None;
        }
        options.set_window_scale(scale as u8);
        return Some(options);
    }
    if second >> 8 != NOP_SCALE {
        return None;
    }
    options.set_window_scale(second as u8);
    if len == 8 {
        return Some(options);
    }
    let third = word(2)?;
    if len == 12 && third == NOP_NOP_SACK {
        // Windows.
        options.permit_sack();
        return Some(options);
    }
    if len == 20 && third == SACK_TIMESTAMPS {
        // FreeBSD.
        options.permit_sack();
        options.set_timestamps(word(3)?, word(4)?);
        return Some(options);
    }
    if len == 24 && third == NOP_NOP_TIMESTAMPS && word(5)? == SACK_END {
        // Apple.
        options.permit_sack();
        options.set_timestamps(word(3)?, word(4)?);
        return Some(options);
    }
    None
}

/// Where [`Scanner`] is inside an option.
const AT_KIND: u64 = 0;
const AT_LENGTH: u64 = 1;
const AT_BODY: u64 = 2;

/// Reads options one byte at a time.
///
/// Its state is plain words, because the kernel side keeps it in a map.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Scanner {
    value: u64,
    /// MSS, or 0.
    mss: u64,
    /// Window scale plus one, or 0.
    window_scale: u64,
    sack_permitted: u64,
    has_timestamps: u64,
    timestamps: u64,
    /// Bytes of the option list.
    total: u64,
    /// How many of them were not fed yet.
    remaining: u64,
    state: u64,
    kind: u64,
    length: u64,
    left: u64,
    places: Places,
}

/// Where in a list of options those are that a splice changes: offsets in bytes from the start of
/// the list to the data behind kind and length, 0 where there is no such option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Places {
    /// Of TSval.
    pub timestamps: u32,
    /// Of the first SACK block.
    pub sack: u32,
    /// How many SACK blocks there are, at most [`MAX_SACK_BLOCKS`].
    pub sack_blocks: u32,
    /// Zero.
    pub pad: u32,
}

/// SACK blocks that there is room for (RFC 2018 section 3).
pub const MAX_SACK_BLOCKS: u32 = 4;

impl Scanner {
    /// A scanner for a list of `len` bytes.
    #[inline(always)]
    pub const fn new(len: usize) -> Self {
        Self {
            value: 0,
            mss: 0,
            window_scale: 0,
            sack_permitted: 0,
            has_timestamps: 0,
            timestamps: 0,
            total: len as u64,
            remaining: len as u64,
            state: AT_KIND,
            kind: 0,
            length: 0,
            left: 0,
            places: Places {
                timestamps: 0,
                sack: 0,
                sack_blocks: 0,
                pad: 0,
            },
        }
    }

    /// Where it was found.
    #[inline(always)]
    pub const fn places(&self) -> Places {
        self.places
    }

    /// What was found.
    #[inline(always)]
    pub fn options(&self) -> Options {
        let mut options = Options {
            mss: self.mss as u16,
            ..Options::default()
        };
        if self.sack_permitted != 0 {
            options.permit_sack();
        }
        if self.window_scale != 0 {
            options.set_window_scale((self.window_scale - 1) as u8);
        }
        if self.has_timestamps != 0 {
            options.set_timestamps((self.timestamps >> 32) as u32, self.timestamps as u32);
        }
        options
    }

    /// Takes the next byte; false once there is nothing more to learn.
    #[inline(always)]
    pub fn step(&mut self, byte: u8) -> bool {
        if self.remaining == 0 {
            return false;
        }
        self.remaining -= 1;
        let byte = byte as u64;
        if self.state == AT_KIND {
            if byte == EOL as u64 {
                return false;
            }
            if byte != NOP as u64 {
                self.kind = byte;
                self.state = AT_LENGTH;
            }
            return true;
        }
        if self.state == AT_LENGTH {
            // "silly options" and partial ones end the list.
            if byte < 2 || byte - 2 > self.remaining {
                return false;
            }
            self.length = byte;
            self.left = byte - 2;
            self.value = 0;
            self.state = AT_BODY;
        } else {
            self.value = (self.value << 8) | byte;
            self.left = self.left.wrapping_sub(1);
        }
        if self.left == 0 {
            self.complete();
            self.state = AT_KIND;
        }
        true
    }

    #[inline(always)]
    fn complete(&mut self) {
        if self.kind == MSS as u64 && self.length == 4 {
            if self.value != 0 {
                self.mss = self.value;
            }
        } else if self.kind == WINDOW_SCALE as u64 && self.length == 3 {
            self.window_scale = self.value + 1;
        } else if self.kind == SACK_PERMITTED as u64 && self.length == 2 {
            self.sack_permitted = 1;
        } else if self.kind == TIMESTAMPS as u64 && self.length == 10 {
            self.has_timestamps = 1;
            self.timestamps = self.value;
            self.places.timestamps = self.body_at();
        } else if self.kind == SACK as u64 && self.length >= 10 && (self.length - 2) & 7 == 0 {
            self.places.sack = self.body_at();
            self.places.sack_blocks = ((self.length - 2) >> 3) as u32;
        }
    }

    /// Where the data of the option that has just ended began.
    #[inline(always)]
    const fn body_at(&self) -> u32 {
        (self.total - self.remaining - (self.length - 2)) as u32
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn both(bytes: &[u8]) -> Options {
        let slow = bytes.scan(0, bytes.len());
        assert_eq!(read(bytes, 0, bytes.len(), 0), slow);
        if let Some(fast) = fast(bytes, 0, bytes.len()) {
            assert_eq!(fast, slow, "{bytes:02x?}");
        }
        slow
    }

    #[test]
    fn the_lists_that_real_stacks_send_are_fast() {
        let linux = [
            2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
        ];
        let windows = [2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
        let apple = [
            2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 4, 2, 0, 0,
        ];
        let freebsd = [
            2, 4, 5, 0xb4, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0,
        ];
        let later = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 4];
        assert_eq!(both(&later).ts_ecr, 4);
        for bytes in [
            &linux[..],
            &later,
            &windows,
            &apple,
            &freebsd,
            &[2, 4, 5, 0xb4],
            &[],
        ] {
            assert!(fast(bytes, 0, bytes.len()).is_some(), "{bytes:02x?}");
            both(bytes);
        }
        assert_eq!(
            both(&linux),
            Options {
                present: OFFER_WINDOW_SCALE | OFFER_SACK | OFFER_TIMESTAMPS,
                mss: 1460,
                window_scale: 7,
                ts_val: 7,
                ts_ecr: 0,
            }
        );
        assert_eq!(both(&windows).window_scale, 8);
        assert!(both(&apple).sack_permitted() && both(&apple).has_timestamps());
    }

    #[test]
    fn odd_lists() {
        // Unaligned window scale after an unknown option.
        assert_eq!(both(&[34, 5, 1, 2, 3, 3, 3, 9]).window_scale, 9);
        // A shift above 14 is taken for 14.
        assert_eq!(both(&[1, 3, 3, 200]).window_scale, 14);
        // Length 0 and 1 end the list; what came before stands.
        assert_eq!(
            both(&[2, 4, 2, 24, 3, 0, 3, 3]),
            Options {
                mss: 536,
                ..Options::default()
            }
        );
        // So does a length beyond the list.
        assert!(!both(&[8, 10, 0, 0]).has_timestamps());
        assert!(!both(&[1, 1, 8, 10, 0, 0, 0, 1]).has_timestamps());
        // A wrong length for the kind is skipped over.
        assert_eq!(both(&[2, 3, 7, 3, 3, 5, 1, 1]).mss, 0);
        // EOL hides what follows.
        assert_eq!(both(&[0, 2, 4, 5]).mss, 0);
        // MSS 0 counts as none, the last of several wins.
        assert_eq!(both(&[2, 4, 5, 0xb4, 2, 4, 0, 0]).mss, 1460);
        assert_eq!(both(&[2, 4, 5, 0xb4, 2, 4, 2, 24]).mss, 536);
    }

    proptest! {
        #[test]
        fn fast_and_slow_agree_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..=10)) {
            let mut bytes = bytes;
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            both(&bytes);
        }

        #[test]
        fn fast_and_slow_agree_on_likely_words(words in prop::collection::vec(prop_oneof![
            any::<u16>().prop_map(|m| 0x0204_0000 | m as u32),
            any::<u8>().prop_map(|s| 0x0103_0300 | s as u32),
            Just(0x0402_080au32), Just(0x0101_080a), Just(0x0101_0402), Just(0x0402_0101),
            Just(0x0402_0000), Just(0x0101_0101), Just(0u32), any::<u32>(),
        ], 0..=10)) {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
            both(&bytes);
        }
    }
}
