//! IPv6 (RFC 8200) and the extension headers that may stand before TCP.

use crate::packet::{Packet, View, ViewMut};

/// Length of the fixed header, bytes.
pub const HEADER: usize = 40;
/// Most extension headers that are followed; RFC 8200 names six that a packet may reasonably have.
/// A packet with more is dropped for a guarded service (RFC 8504 section 5.3 lets a node limit
/// them).
pub const MAX_EXTENSIONS: usize = 6;

/// Longest chain of extension headers that is followed, bytes: each at most 256 units of eight.
pub const MAX_CHAIN: usize = MAX_EXTENSIONS * 2048;

/// Traffic class and flow label in the first word.
pub const CLASS_AND_LABEL: u32 = 0x0fff_ffff;

/// Next-header value of hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next-header value of TCP.
pub const TCP: u8 = 6;
/// Next-header value of a routing header.
pub const ROUTING: u8 = 43;
/// Next-header value of a fragment header.
pub const FRAGMENT: u8 = 44;
/// Next-header value of an authentication header (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Next-header value of destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Next-header value of ICMPv6 (RFC 4443).
pub const ICMP: u8 = 58;
/// Next-header value of a mobility header (RFC 6275).
pub const MOBILITY: u8 = 135;
/// Next-header value of the Host Identity Protocol (RFC 7401).
pub const HIP: u8 = 139;
/// Next-header value of Shim6 (RFC 5533).
pub const SHIM6: u8 = 140;

/// Positions of the fields.
pub mod field {
    /// Version, traffic class and flow label.
    pub const VERSION_CLASS_FLOW: usize = 0;
    /// Payload length.
    pub const PAYLOAD_LENGTH: usize = 4;
    /// Next header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SOURCE: usize = 8;
    /// Destination address.
    pub const DESTINATION: usize = 24;
}

/// The fixed header. Addresses are two host-order words, most significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version (6), traffic class and flow label.
    pub version_class_flow: u32,
    /// Length of everything after this header, bytes.
    pub payload_len: u16,
    /// Next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u64; 2],
    /// Destination address.
    pub destination: [u64; 2],
}

#[inline(always)]
fn address(view: impl View, at: usize) -> [u64; 2] {
    [view.u64(at), view.u64(at + 8)]
}

impl Header {
    /// Reads the header from a view of [`HEADER`] bytes.
    #[inline(always)]
    pub fn read(view: impl View) -> Self {
        Self {
            version_class_flow: view.u32(field::VERSION_CLASS_FLOW),
            payload_len: view.u16(field::PAYLOAD_LENGTH),
            next_header: view.u8(field::NEXT_HEADER),
            hop_limit: view.u8(field::HOP_LIMIT),
            source: address(view, field::SOURCE),
            destination: address(view, field::DESTINATION),
        }
    }

    /// Writes the header.
    #[inline(always)]
    pub fn write(&self, view: &mut impl ViewMut) {
        view.set_u32(field::VERSION_CLASS_FLOW, self.version_class_flow);
        view.set_u16(field::PAYLOAD_LENGTH, self.payload_len);
        view.set_u8(field::NEXT_HEADER, self.next_header);
        view.set_u8(field::HOP_LIMIT, self.hop_limit);
        view.set_u64(field::SOURCE, self.source[0]);
        view.set_u64(field::SOURCE + 8, self.source[1]);
        view.set_u64(field::DESTINATION, self.destination[0]);
        view.set_u64(field::DESTINATION + 8, self.destination[1]);
    }
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// TCP, starting here; `fragment` where it is the first of several fragments.
    Tcp {
        /// Offset of the TCP header in the frame.
        at: usize,
        /// More fragments follow.
        fragment: bool,
    },
    /// Something else.
    Other,
    /// A fragment that is not the first: nobody gets it unless the first went through.
    LaterFragment,
    /// More headers than are followed, or one cut short: what stands behind is not known.
    Hidden,
}

/// Whether a next-header value announces an extension header.
#[inline(always)]
pub const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HIP
            | SHIM6
    )
}

/// Follows the extension headers that start at `at` with the kind `next_header`.
#[inline(always)]
pub fn upper<P: Packet + ?Sized>(packet: &P, at: usize, next_header: u8) -> Upper {
    let mut at = at;
    let mut next_header = next_header;
    let mut fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        if next_header == TCP {
            return Upper::Tcp { at, fragment };
        }
        if !is_extension(next_header) {
            return Upper::Other;
        }
        let Some(header) = packet.view(at, 8) else {
            return Upper::Hidden;
        };
        let units = header.u8(1) as usize;
        let len = if next_header == FRAGMENT {
            let offset = header.u16(2);
            if offset & 0xfff8 != 0 {
                return Upper::LaterFragment;
            }
            // An atomic fragment (RFC 6946), with no more to come, is a whole packet.
            fragment |= offset & 1 != 0;
            8
        } else if next_header == AUTHENTICATION {
            (units + 2) * 4
        } else {
            (units + 1) * 8
        };
        next_header = header.u8(0);
        at += len;
    }
    if next_header == TCP {
        Upper::Tcp { at, fragment }
    } else if is_extension(next_header) {
        Upper::Hidden
    } else {
        Upper::Other
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn extension_headers_are_followed_to_tcp() {
        let packet = [
            DESTINATION_OPTIONS,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0, // hop-by-hop
            AUTHENTICATION,
            0,
            0,
            0,
            0,
            0,
            0,
            0, // destination options
            FRAGMENT,
            4,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0, // AH
            TCP,
            0,
            0,
            1,
            0,
            0,
            0,
            9, // fragment header, first of several
            1,
            2,
        ];
        let tcp = packet.len() - 2;
        assert_eq!(
            upper(&packet[..], 0, HOP_BY_HOP),
            Upper::Tcp {
                at: tcp,
                fragment: true
            }
        );
        assert_eq!(upper(&packet[..tcp - 1], 0, HOP_BY_HOP), Upper::Hidden);
        assert_eq!(
            upper(&packet[..], 5, TCP),
            Upper::Tcp {
                at: 5,
                fragment: false
            }
        );
        assert_eq!(upper(&packet[..], 0, 17), Upper::Other);
        assert_eq!(
            upper(&[TCP, 0, 0, 8, 0, 0, 0, 0][..], 0, FRAGMENT),
            Upper::LaterFragment
        );
        assert_eq!(
            upper(&[TCP, 0, 0, 0, 0, 0, 0, 0][..], 0, FRAGMENT),
            Upper::Tcp {
                at: 8,
                fragment: false
            }
        );
    }

    #[test]
    fn six_are_followed_and_a_seventh_is_not() {
        let chain = |n: usize| -> Vec<u8> {
            (0..n)
                .flat_map(|i| {
                    [
                        if i + 1 == n { TCP } else { DESTINATION_OPTIONS },
                        0,
                        1,
                        4,
                        0,
                        0,
                        0,
                        0,
                    ]
                })
                .collect()
        };
        assert_eq!(
            upper(&chain(6)[..], 0, DESTINATION_OPTIONS),
            Upper::Tcp {
                at: 48,
                fragment: false
            }
        );
        assert_eq!(upper(&chain(7)[..], 0, DESTINATION_OPTIONS), Upper::Hidden);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written(bytes: [u8; HEADER]) {
            let mut out = [0u8; HEADER];
            Header::read(&bytes[..]).write(&mut &mut out[..]);
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn any_bytes_end_somewhere(bytes in prop::collection::vec(any::<u8>(), 0..128), next: u8) {
            if let Upper::Tcp { at, .. } = upper(&bytes[..], 0, next) {
                prop_assert!(at <= bytes.len() + 2048);
            }
        }
    }
}
