//! TCP (RFC 9293): the fixed header, flags, and options as a list.
//!
//! The handshake's own reader of options is [`crate::options`]; the list here is for whoever looks
//! at, or writes, any option: tests, and programs on the host.

use super::{ethernet, ipv6};
use crate::{
    options,
    packet::{Packet, View, ViewMut},
};

/// Length of the header without options, bytes.
pub const HEADER: usize = 20;
/// Longest option list, bytes.
pub const MAX_OPTIONS: usize = 40;
/// Where the header starts in a frame at the latest, of those that are understood.
pub const MAX_AT: usize = ethernet::MAX_HEADER + ipv6::HEADER + ipv6::MAX_CHAIN;

/// No more data from sender.
pub const FIN: u16 = 0x001;
/// Synchronize sequence numbers.
pub const SYN: u16 = 0x002;
/// Reset the connection.
pub const RST: u16 = 0x004;
/// Push function.
pub const PSH: u16 = 0x008;
/// Acknowledgement field is significant.
pub const ACK: u16 = 0x010;
/// Urgent pointer field is significant.
pub const URG: u16 = 0x020;
/// ECN-echo (RFC 3168).
pub const ECE: u16 = 0x040;
/// Congestion window reduced (RFC 3168).
pub const CWR: u16 = 0x080;
/// Accurate ECN (RFC 9768), once the nonce sum.
pub const AE: u16 = 0x100;

/// Positions of the fields.
pub mod field {
    /// Source port.
    pub const SOURCE: usize = 0;
    /// Destination port.
    pub const DESTINATION: usize = 2;
    /// Sequence number.
    pub const SEQUENCE: usize = 4;
    /// Acknowledgement number.
    pub const ACKNOWLEDGMENT: usize = 8;
    /// Data offset, reserved bits and flags.
    pub const OFFSET_FLAGS: usize = 12;
    /// Window.
    pub const WINDOW: usize = 14;
    /// Checksum.
    pub const CHECKSUM: usize = 16;
    /// Urgent pointer.
    pub const URGENT: usize = 18;
}

/// The fixed part of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgment: u32,
    /// Length of header and options, bytes; less than [`HEADER`] where it is nonsense.
    pub header_len: u8,
    /// Flags, with the three reserved bits above [`AE`].
    pub flags: u16,
    /// Window, unscaled.
    pub window: u16,
    /// Checksum as it lies there.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Header {
    /// Reads the fixed part from a view of [`HEADER`] bytes.
    #[inline(always)]
    pub fn read(view: impl View) -> Self {
        let offset_flags = view.u16(field::OFFSET_FLAGS);
        Self {
            source: view.u16(field::SOURCE),
            destination: view.u16(field::DESTINATION),
            sequence: view.u32(field::SEQUENCE),
            acknowledgment: view.u32(field::ACKNOWLEDGMENT),
            header_len: ((offset_flags >> 12) << 2) as u8,
            flags: offset_flags & 0xfff,
            window: view.u16(field::WINDOW),
            checksum: view.u16(field::CHECKSUM),
            urgent: view.u16(field::URGENT),
        }
    }

    /// Writes the fixed part, the checksum as it stands in the header.
    #[inline(always)]
    pub fn write(&self, view: &mut impl ViewMut) {
        view.set_u16(field::SOURCE, self.source);
        view.set_u16(field::DESTINATION, self.destination);
        view.set_u32(field::SEQUENCE, self.sequence);
        view.set_u32(field::ACKNOWLEDGMENT, self.acknowledgment);
        view.set_u16(field::OFFSET_FLAGS, self.offset_flags());
        view.set_u16(field::WINDOW, self.window);
        view.set_u16(field::CHECKSUM, self.checksum);
        view.set_u16(field::URGENT, self.urgent);
    }

    #[inline(always)]
    const fn offset_flags(&self) -> u16 {
        ((self.header_len as u16 >> 2) << 12) | (self.flags & 0xfff)
    }

    /// The sum of the fixed part without its checksum field, for [`super::checksum`].
    #[inline(always)]
    pub const fn sum(&self) -> u64 {
        self.source as u64
            + self.destination as u64
            + self.sequence as u64
            + self.acknowledgment as u64
            + self.offset_flags() as u64
            + self.window as u64
            + self.urgent as u64
    }
}

/// One TCP option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// End of option list: what follows is padding.
    End,
    /// No operation.
    Nop,
    /// Maximum segment size.
    Mss(u16),
    /// Window scale: the shift as sent, even above 14.
    WindowScale(u8),
    /// SACK permitted.
    SackPermitted,
    /// SACK blocks, eight bytes each.
    Sack(&'a [u8]),
    /// Timestamps: TSval, TSecr.
    Timestamps(u32, u32),
    /// TCP Fast Open cookie.
    FastOpen(&'a [u8]),
    /// Any other option, and known ones of an unusual length: kind and data.
    Unknown(u8, &'a [u8]),
}

impl<'a> TcpOption<'a> {
    /// Reads the option at the start of `bytes` and returns it with what follows; `None` where its
    /// length is impossible.
    pub fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&kind, rest) = bytes.split_first()?;
        match kind {
            options::EOL => return Some((Self::End, rest)),
            options::NOP => return Some((Self::Nop, rest)),
            _ => {}
        }
        let length = *rest.first()? as usize;
        let data = bytes.get(2..length)?;
        let option = match (kind, data) {
            (options::MSS, &[a, b]) => Self::Mss(u16::from_be_bytes([a, b])),
            (options::WINDOW_SCALE, &[shift]) => Self::WindowScale(shift),
            (options::SACK_PERMITTED, []) => Self::SackPermitted,
            (options::SACK, blocks) if !blocks.is_empty() && blocks.len().is_multiple_of(8) => {
                Self::Sack(blocks)
            }
            (options::TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => Self::Timestamps(
                u32::from_be_bytes([a, b, c, d]),
                u32::from_be_bytes([e, f, g, h]),
            ),
            (options::FAST_OPEN, cookie) => Self::FastOpen(cookie),
            (kind, data) => Self::Unknown(kind, data),
        };
        Some((option, &bytes[length..]))
    }

    /// Writes the option to the start of `out` and returns its length; `None` where there is no
    /// room.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        fn put(out: &mut [u8], kind: u8, data: &[u8]) -> Option<usize> {
            let length = 2 + data.len();
            let out = out.get_mut(..length)?;
            out[0] = kind;
            out[1] = u8::try_from(length).ok()?;
            out[2..].copy_from_slice(data);
            Some(length)
        }
        match *self {
            Self::End => out.first_mut().map(|b| *b = options::EOL).map(|()| 1),
            Self::Nop => out.first_mut().map(|b| *b = options::NOP).map(|()| 1),
            Self::Mss(mss) => put(out, options::MSS, &mss.to_be_bytes()),
            Self::WindowScale(shift) => put(out, options::WINDOW_SCALE, &[shift]),
            Self::SackPermitted => put(out, options::SACK_PERMITTED, &[]),
            Self::Sack(blocks) => put(out, options::SACK, blocks),
            Self::Timestamps(val, ecr) => {
                let both = ((val as u64) << 32) | ecr as u64;
                put(out, options::TIMESTAMPS, &both.to_be_bytes())
            }
            Self::FastOpen(cookie) => put(out, options::FAST_OPEN, cookie),
            Self::Unknown(kind, data) => put(out, kind, data),
        }
    }
}

/// Sum of the words of a header of `len` bytes, options included, for the checksum; `None` where the
/// packet ends before it does.
#[inline(always)]
pub fn header_sum<P: Packet>(packet: &P, at: usize, len: usize) -> Option<u64> {
    let mut sum = 0;
    for word in 0..(HEADER + MAX_OPTIONS) / 4 {
        if word * 4 >= len {
            break;
        }
        sum += packet.view(at + word * 4, 4)?.u32(0) as u64;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The SYN, SYN-ACK and ACK of a captured connection whose client, a Windows one, sends no
    /// timestamps.
    const SYN_BYTES: [u8; 32] = [
        0xe1, 0xbc, 0x01, 0xbb, 0x01, 0xfa, 0xe4, 0xa0, 0, 0, 0, 0, 0x80, 0x02, 0xfa, 0xf0, 0x75,
        0x2e, 0, 0, 2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2,
    ];
    const ACK_BYTES: [u8; 20] = [
        0xe1, 0xbc, 0x01, 0xbb, 0x01, 0xfa, 0xe4, 0xa1, 0xa1, 0x14, 0xd4, 0xfa, 0x50, 0x10, 0x02,
        0x05, 0x75, 0x22, 0, 0,
    ];

    #[test]
    fn a_captured_handshake() {
        let syn = Header::read(&SYN_BYTES[..]);
        assert_eq!(
            (syn.source, syn.destination, syn.sequence),
            (57788, 443, 33_219_744)
        );
        assert_eq!((syn.flags, syn.header_len, syn.window), (SYN, 32, 64240));
        let ack = Header::read(&ACK_BYTES[..]);
        assert_eq!(
            (ack.flags, ack.header_len, ack.sequence),
            (ACK, 20, syn.sequence + 1)
        );

        let mut rest = &SYN_BYTES[HEADER..];
        let mut found = Vec::new();
        while let Some((option, after)) = TcpOption::read(rest) {
            found.push(option);
            rest = after;
        }
        use TcpOption::*;
        assert_eq!(
            found,
            [Mss(1460), Nop, WindowScale(8), Nop, Nop, SackPermitted]
        );
    }

    #[test]
    fn impossible_lengths_are_no_option() {
        for bytes in [
            &[2u8][..],
            &[2, 0],
            &[2, 1],
            &[2, 4, 5],
            &[8, 11, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(TcpOption::read(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written(bytes: [u8; HEADER]) {
            let mut out = [0u8; HEADER];
            let header = Header::read(&bytes[..]);
            header.write(&mut &mut out[..]);
            prop_assert_eq!(out, bytes);

            let mut zeroed = bytes;
            zeroed[field::CHECKSUM..field::CHECKSUM + 2].fill(0);
            let expected = super::super::checksum::sum(&zeroed);
            prop_assert_eq!(
                super::super::checksum::fold(header.sum()), super::super::checksum::fold(expected)
            );
        }

        #[test]
        fn option_lists_survive(bytes in prop::collection::vec(any::<u8>(), 0..=MAX_OPTIONS)) {
            let mut rest = &bytes[..];
            let mut out = [0u8; MAX_OPTIONS];
            let mut at = 0;
            while let Some((option, after)) = TcpOption::read(rest) {
                at += option.write(&mut out[at..]).unwrap();
                rest = after;
            }
            prop_assert_eq!(&out[..at], &bytes[..bytes.len() - rest.len()]);
        }
    }
}
