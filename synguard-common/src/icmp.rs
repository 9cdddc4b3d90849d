//! ICMP errors about segments of spliced connections: the TCP header that they quote is translated
//! like the segment itself, or its sender would not recognise it, and path-MTU discovery fail.
//!
//! An error that arrives quotes what the server sent, by the sequence number that the client knows;
//! one that leaves quotes what the client sent, by the acknowledgement that the server knows. The
//! quoted options and checksum stay as they are: no host looks at them (RFC 5927 section 4), and they
//! may be cut off.

use crate::{
    abi::{FLOW_SPLICED, Tuple},
    flow::{Flow, V4, V6},
    flowtable,
    packet::{PacketMut, View, ViewMut},
    tables::Tables,
    wire::{checksum, ethernet, ipv4, ipv6, tcp},
};

/// Length of the ICMP header before the quotation, bytes, in both families.
const HEADER: usize = 8;
const CHECKSUM: usize = 2;
/// What every router quotes of the segment, bytes.
const QUOTED: usize = 8;

/// Types of ICMP errors about a packet (RFC 792): destination unreachable, time exceeded,
/// parameter problem.
const ERRORS: [u8; 3] = [3, 11, 12];
/// Types of ICMPv6 errors end here (RFC 4443 section 2.1): those below are 1 to 4.
const LAST_ERROR_V6: u8 = 4;

/// Translates an error that arrives; false where it is none about a spliced connection.
///
/// A function of its own, for the sake of the stack.
#[inline(never)]
pub fn inward<P: PacketMut, T: Tables>(mut packet: P, tables: T) -> bool {
    translate(&mut packet, &tables, true).is_some()
}

/// Translates an error that leaves, likewise.
#[inline(never)]
pub fn outward<P: PacketMut, T: Tables>(mut packet: P, tables: T) -> bool {
    translate(&mut packet, &tables, false).is_some()
}

/// A quoted connection: its key, where the ICMP header starts, where the TCP header does, and where the
/// packet ends.
type Quotation = (Tuple, usize, usize, usize);

#[inline(always)]
fn translate<P: PacketMut, T: Tables>(packet: &mut P, tables: &T, inward: bool) -> Option<()> {
    let (tuple, icmp_at, tcp_at, end) = find(packet, tables, inward)?;
    let live = flowtable::find(tables, &tuple)?;
    if live.state.get() != FLOW_SPLICED {
        return None;
    }
    let delta = live.delta.get();
    let (field, by) = if inward {
        (tcp::field::SEQUENCE, 0u32.wrapping_sub(delta))
    } else {
        (tcp::field::ACKNOWLEDGMENT, delta)
    };
    // What is behind the packet is not covered by its checksum.
    if tcp_at + field + 4 > end {
        return None;
    }
    let old = packet.view(tcp_at + field, 4)?.u32(0);
    let new = old.wrapping_add(by);
    packet.view_mut(tcp_at + field, 4)?.set_u32(0, new);
    packet.adjust_checksum(icmp_at + CHECKSUM, checksum::difference(old, new))
}

#[inline(always)]
fn find<P: PacketMut, T: Tables>(packet: &P, tables: &T, inward: bool) -> Option<Quotation> {
    let (ethertype, at) = ethernet::payload(packet)?;
    let at = at + tables.zero();
    if at > ethernet::MAX_HEADER {
        return None;
    }
    if ethertype == ethernet::IPV4 {
        find_v4(packet, at, inward)
    } else if ethertype == ethernet::IPV6 {
        find_v6(packet, at, inward)
    } else {
        None
    }
}

#[inline(always)]
fn find_v4<P: PacketMut>(packet: &P, at: usize, inward: bool) -> Option<Quotation> {
    let ip = ipv4::Header::read(packet.view(at, ipv4::HEADER)?);
    let header_len = ip.header_len as usize;
    if ip.protocol != ipv4::ICMP
        || ip.fragment & (ipv4::OFFSET_MASK | ipv4::MORE_FRAGMENTS) != 0
        || header_len < ipv4::HEADER
    {
        return None;
    }
    let icmp_at = at + header_len;
    let kind = packet.view(icmp_at, HEADER)?.u8(0);
    if kind != ERRORS[0] && kind != ERRORS[1] && kind != ERRORS[2] {
        return None;
    }
    let quoted_at = icmp_at + HEADER;
    let quoted = ipv4::Header::read(packet.view(quoted_at, ipv4::HEADER)?);
    let quoted_len = quoted.header_len as usize;
    if quoted.protocol != ipv4::TCP
        || quoted.fragment & ipv4::OFFSET_MASK != 0
        || quoted_len < ipv4::HEADER
    {
        return None;
    }
    let tcp_at = quoted_at + quoted_len;
    let (client_port, server_port) = orient(ports(packet, tcp_at)?, inward);
    let (client, server) = orient((quoted.source, quoted.destination), inward);
    let flow = Flow {
        net: V4 { client, server },
        client_port,
        server_port,
    };
    Some((flow.tuple(), icmp_at, tcp_at, at + ip.total_len as usize))
}

#[inline(always)]
fn find_v6<P: PacketMut>(packet: &P, at: usize, inward: bool) -> Option<Quotation> {
    // Extension headers before an ICMPv6 error, or before the TCP header it quotes, are not
    // followed: hosts send neither.
    let ip = ipv6::Header::read(packet.view(at, ipv6::HEADER)?);
    if ip.next_header != ipv6::ICMP {
        return None;
    }
    let icmp_at = at + ipv6::HEADER;
    let kind = packet.view(icmp_at, HEADER)?.u8(0);
    if kind == 0 || kind > LAST_ERROR_V6 {
        return None;
    }
    let quoted_at = icmp_at + HEADER;
    let quoted = ipv6::Header::read(packet.view(quoted_at, ipv6::HEADER)?);
    if quoted.next_header != ipv6::TCP {
        return None;
    }
    let tcp_at = quoted_at + ipv6::HEADER;
    let (client_port, server_port) = orient(ports(packet, tcp_at)?, inward);
    let (client, server) = orient((quoted.source, quoted.destination), inward);
    let flow = Flow {
        net: V6 { client, server },
        client_port,
        server_port,
    };
    let end = icmp_at + ip.payload_len as usize;
    Some((flow.tuple(), icmp_at, tcp_at, end))
}

/// The client's and the server's, of what a quotation has as its source and destination: what arrives
/// quotes the server.
#[inline(always)]
fn orient<A>((source, destination): (A, A), inward: bool) -> (A, A) {
    if inward {
        (destination, source)
    } else {
        (source, destination)
    }
}

#[inline(always)]
fn ports<P: PacketMut>(packet: &P, at: usize) -> Option<(u16, u16)> {
    let view = packet.view(at, QUOTED)?;
    Some((
        view.u16(tcp::field::SOURCE),
        view.u16(tcp::field::DESTINATION),
    ))
}
