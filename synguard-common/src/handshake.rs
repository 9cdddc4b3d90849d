//! Segments of a handshake, written over the frame that called for them: our SYN-ACK over the
//! client's SYN, and the client's SYN over the ACK that showed its cookie.
//!
//! VLAN tags stay, IP options and extension headers go, and the TCP options are laid out as Linux
//! lays them out (`tcp_options_write`).

use crate::{
    abi::{OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE},
    flow::{Flow, Net, V4, V6},
    packet::{Arriving, PacketMut, View, ViewMut},
    wire::{checksum, ethernet, ipv4, ipv6, tcp},
};

/// What the segment is to say.
#[derive(Clone, Copy, Debug)]
pub struct Handshake {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgment: u32,
    /// Flags.
    pub flags: u16,
    /// Window, bytes.
    pub window: u16,
    /// MSS, bytes.
    pub mss: u16,
    /// `OFFER_*` bits of the options it carries.
    pub options: u32,
    /// Window scale, where `options` has it.
    pub window_scale: u8,
    /// TSval, where `options` has timestamps.
    pub ts_val: u32,
    /// TSecr, likewise.
    pub ts_ecr: u32,
    /// The fields of the IP header that are not given by the rest.
    pub hop: Hop,
}

/// Who a rewritten frame goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// Back to the client: link addresses, IP addresses and ports trade places.
    Client,
    /// On to the server.
    Server,
}

/// Fields of an IP header that concern its journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Time to live or hop limit.
    pub limit: u8,
    /// IPv4: type of service. IPv6: traffic class and flow label, 28 bits.
    pub class: u32,
}

/// 1 where a SYN with these flags asks for ECN (RFC 3168 section 6.1.1), else 0.
#[inline(always)]
pub const fn asks_for_ecn(flags: u16) -> u32 {
    const ECE_AT: u32 = tcp::ECE.trailing_zeros();
    const CWR_AT: u32 = tcp::CWR.trailing_zeros();
    ((flags >> ECE_AT) & (flags >> CWR_AT) & 1) as u32
}

/// Length of the TCP options, bytes.
#[inline(always)]
fn options_len(options: u32) -> usize {
    let mut len = 4;
    if options & OFFER_TIMESTAMPS != 0 {
        len += 12;
    } else if options & OFFER_SACK != 0 {
        len += 4;
    }
    if options & OFFER_WINDOW_SCALE != 0 {
        len += 4;
    }
    len
}

/// Rewrites the frame of `frame_len` bytes, whose IP header is at `at`, into the segment. False
/// where the driver has no room for it; the frame is then as it was.
#[inline(always)]
pub fn write<N: Net, P: Arriving>(
    packet: &mut P,
    at: usize,
    frame_len: usize,
    flow: &Flow<N>,
    towards: Towards,
    handshake: &Handshake,
) -> bool {
    let tcp_at = at + N::HEADER;
    let tcp_len = tcp::HEADER + options_len(handshake.options);
    let needed = tcp_at + tcp_len;
    // Padding to the shortest frame stays where it is: the wire has it anyway.
    let wanted = if needed < ethernet::MIN_FRAME {
        ethernet::MIN_FRAME
    } else {
        needed
    };
    let delta = wanted as isize - frame_len as isize;
    if delta != 0 && !packet.resize(delta, at) {
        return false;
    }
    if towards == Towards::Client && swap_ethernet(packet).is_none() {
        return false;
    }
    write_ip(packet, at, flow, towards, handshake.hop, tcp_len).is_some()
        && write_tcp(packet, tcp_at, flow, towards, handshake, tcp_len).is_some()
}

/// Lets the link addresses trade places.
#[inline(always)]
pub fn swap_ethernet<P: PacketMut>(packet: &mut P) -> Option<()> {
    use ethernet::field::{DESTINATION, SOURCE};
    let view = packet.view(0, ethernet::field::TYPE)?;
    let (destination_high, destination_low) = (view.u32(DESTINATION), view.u16(DESTINATION + 4));
    let (source_high, source_low) = (view.u32(SOURCE), view.u16(SOURCE + 4));
    let mut view = packet.view_mut(0, ethernet::field::TYPE)?;
    view.set_u32(DESTINATION, source_high);
    view.set_u16(DESTINATION + 4, source_low);
    view.set_u32(SOURCE, destination_high);
    view.set_u16(SOURCE + 4, destination_low);
    Some(())
}

#[inline(always)]
fn write_ip<N: Net, P: PacketMut>(
    packet: &mut P,
    at: usize,
    flow: &Flow<N>,
    towards: Towards,
    hop: Hop,
    tcp_len: usize,
) -> Option<()> {
    let mut view = packet.view_mut(at, N::HEADER)?;
    flow.net
        .write_header(&mut view, towards, hop, tcp_len as u16);
    Some(())
}

#[inline(always)]
fn write_tcp<N: Net, P: PacketMut>(
    packet: &mut P,
    at: usize,
    flow: &Flow<N>,
    towards: Towards,
    handshake: &Handshake,
    tcp_len: usize,
) -> Option<()> {
    let (source, destination) = match towards {
        Towards::Client => (flow.server_port, flow.client_port),
        Towards::Server => (flow.client_port, flow.server_port),
    };
    let options = handshake.options;
    let header = tcp::Header {
        source,
        destination,
        sequence: handshake.sequence,
        acknowledgment: handshake.acknowledgment,
        header_len: tcp_len as u8,
        flags: handshake.flags,
        window: handshake.window,
        checksum: 0,
        urgent: 0,
    };
    let mut sum = flow.net.sum() + ipv4::TCP as u64 + tcp_len as u64 + header.sum();
    let mut next = at + tcp::HEADER;
    let mut put = |word: u32| -> Option<()> {
        packet.view_mut(next, 4)?.set_u32(0, word);
        next += 4;
        sum += word as u64;
        Some(())
    };
    put(0x0204_0000 | handshake.mss as u32)?;
    if options & OFFER_TIMESTAMPS != 0 {
        put(if options & OFFER_SACK != 0 {
            0x0402_080a
        } else {
            0x0101_080a
        })?;
        put(handshake.ts_val)?;
        put(handshake.ts_ecr)?;
    } else if options & OFFER_SACK != 0 {
        put(0x0101_0402)?;
    }
    if options & OFFER_WINDOW_SCALE != 0 {
        put(0x0103_0300 | handshake.window_scale as u32)?;
    }
    let header = tcp::Header {
        checksum: checksum::finish(sum),
        ..header
    };
    header.write(&mut packet.view_mut(at, tcp::HEADER)?);
    Some(())
}

/// The part of the IP header that differs between the families.
pub trait IpHeader {
    /// Reads the journey's fields from a view of a header.
    fn hop(view: impl View) -> Hop;
    /// Writes a header without options, before `tcp_len` bytes of TCP.
    fn write_header(self, view: &mut impl ViewMut, towards: Towards, hop: Hop, tcp_len: u16);
}

impl IpHeader for V4 {
    #[inline(always)]
    fn hop(view: impl View) -> Hop {
        Hop {
            limit: view.u8(ipv4::field::TTL),
            class: view.u8(ipv4::field::TOS) as u32,
        }
    }

    #[inline(always)]
    fn write_header(self, view: &mut impl ViewMut, towards: Towards, hop: Hop, tcp_len: u16) {
        let (source, destination) = match towards {
            Towards::Client => (self.server, self.client),
            Towards::Server => (self.client, self.server),
        };
        let header = ipv4::Header {
            version: 4,
            header_len: ipv4::HEADER as u8,
            tos: hop.class as u8,
            total_len: ipv4::HEADER as u16 + tcp_len,
            // RFC 6864: the identification of an atomic datagram means nothing.
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: hop.limit,
            protocol: ipv4::TCP,
            checksum: 0,
            source,
            destination,
        };
        ipv4::Header {
            checksum: header.compute_checksum(),
            ..header
        }
        .write(view);
    }
}

impl IpHeader for V6 {
    #[inline(always)]
    fn hop(view: impl View) -> Hop {
        Hop {
            limit: view.u8(ipv6::field::HOP_LIMIT),
            class: view.u32(0) & ipv6::CLASS_AND_LABEL,
        }
    }

    #[inline(always)]
    fn write_header(self, view: &mut impl ViewMut, towards: Towards, hop: Hop, tcp_len: u16) {
        let (source, destination) = match towards {
            Towards::Client => (self.server, self.client),
            Towards::Server => (self.client, self.server),
        };
        ipv6::Header {
            version_class_flow: (6 << 28) | hop.class,
            payload_len: tcp_len,
            next_header: ipv6::TCP,
            hop_limit: hop.limit,
            source,
            destination,
        }
        .write(view);
    }
}
