//! The Internet checksum (RFC 1071): sums are kept in 64 bits and folded once at the end.
//!
//! Adding whole 32-bit words is right because 2^16 is 1 modulo 2^16 - 1, and a 64-bit sum of the
//! few words of a header cannot overflow.

/// Folds a sum of 16- or 32-bit words to the 16-bit one's complement sum.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for a sum: its complement.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// What [`adjust`] is given for a word that was `old` and is `new`. Those of several words add up.
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// A checksum field after a change of what it covers (RFC 1624, equation 3).
#[inline(always)]
pub const fn adjust(field: u16, difference: u64) -> u16 {
    finish(!field as u64 + difference)
}

/// Sum of bytes as big-endian 16-bit words, the last padded with zero. For the host.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|w| u16::from_be_bytes(*w) as u64).sum();
    sum + rest.first().map_or(0, |b| (*b as u64) << 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
    }

    proptest! {
        #[test]
        fn words_of_any_width_give_one_sum(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            let wide = padded.as_chunks::<4>().0.iter().map(|w| u32::from_be_bytes(*w) as u64).sum();
            prop_assert_eq!(fold(wide), fold(sum(&bytes)));
        }
    }
}
