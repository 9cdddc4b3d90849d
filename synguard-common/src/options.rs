//! TCP options as a SYN or a handshake ACK carries them (RFC 9293 section 3.1, RFC 7323, RFC 2018).
//!
//! Two readers with one meaning. [`fast`] looks at aligned 32-bit words and knows the words that
//! real stacks send: MSS first, then SACK-permitted, timestamps and window scale in the paddings
//! that Linux, Windows, the BSDs and Apple use. Anything else goes to [`Scanner`], which takes one
//! byte at a time and follows Linux's `tcp_parse_options`: an impossible length ends the parsing and
//! what was read before it stands; an option of the wrong length is skipped; the last of several
//! wins.

use crate::packet::{Packet, View};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size; 0 where there was none (or it was 0).
    pub mss: u16,
    /// Window scale was there.
    pub has_window_scale: bool,
    /// The shift, at most [`MAX_WINDOW_SCALE`].
    pub window_scale: u8,
    /// SACK was permitted.
    pub sack_permitted: bool,
    /// Timestamps were there.
    pub has_timestamps: bool,
    /// TSval.
    pub ts_val: u32,
    /// TSecr.
    pub ts_ecr: u32,
}

impl Options {
    #[inline(always)]
    fn set_window_scale(&mut self, shift: u8) {
        self.has_window_scale = true;
        self.window_scale = if shift > MAX_WINDOW_SCALE { MAX_WINDOW_SCALE } else { shift };
    }
}

/// Reads `len` bytes of options (a multiple of four, at most 40) from `at`.
#[inline(always)]
pub fn read<P: Packet + ?Sized>(packet: &P, at: usize, len: usize) -> Options {
    match fast(packet, at, len) {
        Some(options) => options,
        None => slow(packet, at, len),
    }
}

/// The slow path of [`read`], on its own for tests.
#[inline(always)]
pub fn slow<P: Packet + ?Sized>(packet: &P, at: usize, len: usize) -> Options {
    let mut scanner = Scanner::new(len as u8);
    packet.scan(at, len, &mut scanner);
    scanner.options
}

/// Words the fast path looks at; the longest usual list is six words (Apple's).
const FAST_WORDS: usize = 6;

/// Reads options laid out in one of the usual ways; `None` for any other.
#[inline(always)]
pub fn fast<P: Packet + ?Sized>(packet: &P, at: usize, len: usize) -> Option<Options> {
    if len > FAST_WORDS * 4 {
        return None;
    }
    let mut options = Options::default();
    // Words still to be taken as the two halves of a timestamps option.
    let mut timestamps = 0;
    for i in 0..FAST_WORDS {
        if i * 4 >= len {
            break;
        }
        let word = packet.view(at + i * 4, 4)?.u32(0);
        if timestamps == 2 {
            options.ts_val = word;
            timestamps = 1;
        } else if timestamps == 1 {
            options.ts_ecr = word;
            options.has_timestamps = true;
            timestamps = 0;
        } else if word >> 16 == 0x0204 {
            if word as u16 != 0 {
                options.mss = word as u16;
            }
        } else if word == 0x0402_080a {
            options.sack_permitted = true;
            timestamps = 2;
        } else if word == 0x0101_080a {
            timestamps = 2;
        } else if word >> 8 == 0x01_0303 {
            options.set_window_scale(word as u8);
        } else if word == 0x0101_0402 || word == 0x0402_0101 {
            options.sack_permitted = true;
        } else if word == 0x0402_0000 {
            options.sack_permitted = true;
            break;
        } else if word == 0 {
            break;
        } else if word != 0x0101_0101 {
            return None;
        }
    }
    // A timestamps option cut off by the end of the header is not one; let the scanner say so.
    if timestamps != 0 { None } else { Some(options) }
}

/// Where [`Scanner`] is inside an option.
const AT_KIND: u8 = 0;
const AT_LENGTH: u8 = 1;
const AT_BODY: u8 = 2;

/// Reads options one byte at a time. The state is plain integers so that it can lie on the eBPF
/// stack across calls of `bpf_loop`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scanner {
    /// What was found so far.
    pub options: Options,
    value: u64,
    /// Bytes of the option list that were not fed yet.
    remaining: u8,
    state: u8,
    kind: u8,
    length: u8,
    left: u8,
}

impl Scanner {
    /// A scanner for a list of `len` bytes.
    pub const fn new(len: u8) -> Self {
        Self {
            options: Options {
                mss: 0,
                has_window_scale: false,
                window_scale: 0,
                sack_permitted: false,
                has_timestamps: false,
                ts_val: 0,
                ts_ecr: 0,
            },
            value: 0,
            remaining: len,
            state: AT_KIND,
            kind: 0,
            length: 0,
            left: 0,
        }
    }

    /// Takes the next byte; false once there is nothing more to learn.
    #[inline(always)]
    pub fn step(&mut self, byte: u8) -> bool {
        if self.remaining == 0 {
            return false;
        }
        self.remaining -= 1;
        if self.state == AT_KIND {
            if byte == EOL {
                return false;
            }
            if byte != NOP {
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
            self.value = (self.value << 8) | byte as u64;
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
        let value = self.value;
        if self.kind == MSS && self.length == 4 {
            if value as u16 != 0 {
                self.options.mss = value as u16;
            }
        } else if self.kind == WINDOW_SCALE && self.length == 3 {
            self.options.set_window_scale(value as u8);
        } else if self.kind == SACK_PERMITTED && self.length == 2 {
            self.options.sack_permitted = true;
        } else if self.kind == TIMESTAMPS && self.length == 10 {
            self.options.has_timestamps = true;
            self.options.ts_val = (value >> 32) as u32;
            self.options.ts_ecr = value as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn both(bytes: &[u8]) -> Options {
        let slow = slow(bytes, 0, bytes.len());
        if let Some(fast) = fast(bytes, 0, bytes.len()) {
            assert_eq!(fast, slow, "{bytes:02x?}");
        }
        slow
    }

    #[test]
    fn the_lists_that_real_stacks_send_are_fast() {
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7];
        let windows = [2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
        let apple = [2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 4, 2, 0, 0];
        let freebsd = [2, 4, 5, 0xb4, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0];
        for bytes in [&linux[..], &windows, &apple, &freebsd, &[2, 4, 5, 0xb4], &[]] {
            assert!(fast(bytes, 0, bytes.len()).is_some(), "{bytes:02x?}");
            both(bytes);
        }
        assert_eq!(
            both(&linux),
            Options {
                mss: 1460,
                has_window_scale: true,
                window_scale: 7,
                sack_permitted: true,
                has_timestamps: true,
                ts_val: 7,
                ts_ecr: 0,
            }
        );
        assert_eq!(both(&windows).window_scale, 8);
        assert!(both(&apple).sack_permitted && both(&apple).has_timestamps);
    }

    #[test]
    fn odd_lists() {
        // Unaligned window scale after an unknown option.
        assert_eq!(both(&[34, 5, 1, 2, 3, 3, 3, 9]).window_scale, 9);
        // A shift above 14 is taken for 14.
        assert_eq!(both(&[1, 3, 3, 200]).window_scale, 14);
        // Length 0 and 1 end the list; what came before stands.
        assert_eq!(both(&[2, 4, 2, 24, 3, 0, 3, 3]), Options { mss: 536, ..Options::default() });
        // So does a length beyond the list.
        assert!(!both(&[8, 10, 0, 0]).has_timestamps);
        assert!(!both(&[1, 1, 8, 10, 0, 0, 0, 1]).has_timestamps);
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
