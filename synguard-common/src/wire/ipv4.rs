//! IPv4 (RFC 791).

use super::checksum;
use crate::packet::{View, ViewMut};

/// Length of the header without options, bytes.
pub const HEADER: usize = 20;
/// Longest header, bytes.
pub const MAX_HEADER: usize = 60;
/// Protocol number of ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;

/// Do not fragment, in the word of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Fragment offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// Positions of the fields.
pub mod field {
    /// Version and header length in 32-bit words.
    pub const VERSION_IHL: usize = 0;
    /// Type of service: DSCP and ECN.
    pub const TOS: usize = 1;
    /// Total length.
    pub const TOTAL_LENGTH: usize = 2;
    /// Identification.
    pub const IDENTIFICATION: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: usize = 10;
    /// Source address.
    pub const SOURCE: usize = 12;
    /// Destination address.
    pub const DESTINATION: usize = 16;
}

/// The fixed part of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version, 4 where this is IPv4.
    pub version: u8,
    /// Length of the header, bytes; less than [`HEADER`] where it is nonsense.
    pub header_len: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of header and payload, bytes.
    pub total_len: u16,
    /// Identification.
    pub identification: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum as it lies there.
    pub checksum: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

impl Header {
    /// Reads the fixed part from a view of [`HEADER`] bytes.
    #[inline(always)]
    pub fn read(view: impl View) -> Self {
        let first = view.u8(field::VERSION_IHL);
        Self {
            version: first >> 4,
            header_len: (first & 0xf) << 2,
            tos: view.u8(field::TOS),
            total_len: view.u16(field::TOTAL_LENGTH),
            identification: view.u16(field::IDENTIFICATION),
            fragment: view.u16(field::FRAGMENT),
            ttl: view.u8(field::TTL),
            protocol: view.u8(field::PROTOCOL),
            checksum: view.u16(field::CHECKSUM),
            source: view.u32(field::SOURCE),
            destination: view.u32(field::DESTINATION),
        }
    }

    /// Writes the fixed part, the checksum as it stands in the header.
    #[inline(always)]
    pub fn write(&self, view: &mut impl ViewMut) {
        view.set_u8(
            field::VERSION_IHL,
            (self.version << 4) | (self.header_len >> 2),
        );
        view.set_u8(field::TOS, self.tos);
        view.set_u16(field::TOTAL_LENGTH, self.total_len);
        view.set_u16(field::IDENTIFICATION, self.identification);
        view.set_u16(field::FRAGMENT, self.fragment);
        view.set_u8(field::TTL, self.ttl);
        view.set_u8(field::PROTOCOL, self.protocol);
        view.set_u16(field::CHECKSUM, self.checksum);
        view.set_u32(field::SOURCE, self.source);
        view.set_u32(field::DESTINATION, self.destination);
    }

    /// The checksum of the fixed part; for headers without options.
    #[inline(always)]
    pub const fn compute_checksum(&self) -> u16 {
        let first = ((self.version << 4) | (self.header_len >> 2)) as u64;
        checksum::finish(
            ((first << 8) | self.tos as u64)
                + self.total_len as u64
                + self.identification as u64
                + self.fragment as u64
                + (((self.ttl as u64) << 8) | self.protocol as u64)
                + self.source as u64
                + self.destination as u64,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_written_and_the_checksum_closes(bytes: [u8; HEADER]) {
            let header = Header::read(&bytes[..]);
            let mut out = [0u8; HEADER];
            header.write(&mut &mut out[..]);
            prop_assert_eq!(out, bytes);

            let right = Header { checksum: header.compute_checksum(), ..header };
            right.write(&mut &mut out[..]);
            prop_assert_eq!(checksum::fold(checksum::sum(&out)), 0xffff);
        }
    }
}
