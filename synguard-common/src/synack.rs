//! Our answer to a SYN, written over the SYN itself.
//!
//! Ethernet and IP addresses and ports trade places, VLAN tags stay, IP options and extension
//! headers go, and the TCP options are laid out as Linux lays them out
//! (`tcp_options_write`).

use crate::{
    abi::ServiceConfig,
    cookie::Timestamp,
    flow::{Flow, Net},
    options::Options,
    packet::{PacketMut, View, ViewMut},
    wire::{checksum, ethernet, ipv4, ipv6, tcp},
};

/// What the SYN-ACK is to say.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The client's initial sequence number.
    pub isn: u32,
    /// Our initial sequence number.
    pub cookie: u32,
    /// Our MSS, bytes.
    pub mss: u16,
    /// The options that were agreed on.
    pub options: Options,
    /// Our TSval, where `options` has timestamps.
    pub timestamp: Timestamp,
}

/// 1 where a SYN with these flags asks for ECN (RFC 3168 section 6.1.1), else 0.
#[inline(always)]
pub const fn asks_for_ecn(flags: u16) -> u32 {
    const ECE_AT: u32 = tcp::ECE.trailing_zeros();
    const CWR_AT: u32 = tcp::CWR.trailing_zeros();
    ((flags >> ECE_AT) & (flags >> CWR_AT) & 1) as u32
}

/// Length of the TCP options of an answer, bytes.
#[inline(always)]
fn options_len(options: &Options) -> usize {
    let mut len = 4;
    if options.has_timestamps() {
        len += 12;
    } else if options.sack_permitted() {
        len += 4;
    }
    if options.has_window_scale() {
        len += 4;
    }
    len
}

/// Rewrites the frame of `frame_len` bytes, whose IP header is at `at`, into the answer. False where the driver
/// has no room for it; the frame is then as it was.
#[inline(always)]
pub fn write<N: Net, P: PacketMut>(
    packet: &mut P,
    at: usize,
    frame_len: usize,
    flow: Flow<N>,
    config: &ServiceConfig,
    answer: &Answer,
) -> bool {
    let tcp_at = at + N::HEADER;
    let tcp_len = tcp::HEADER + options_len(&answer.options);
    let needed = tcp_at + tcp_len;
    // Padding to the shortest frame stays where it is: the wire has it anyway.
    let wanted = if needed < ethernet::MIN_FRAME {
        ethernet::MIN_FRAME
    } else {
        needed
    };
    let delta = wanted as isize - frame_len as isize;
    if delta != 0 && !packet.resize(delta) {
        return false;
    }
    swap_ethernet(packet).is_some()
        && write_ip::<N, P>(packet, at, flow, config, tcp_len as u16).is_some()
        && write_tcp(packet, tcp_at, flow, config, answer, tcp_len).is_some()
}

#[inline(always)]
fn swap_ethernet<P: PacketMut>(packet: &mut P) -> Option<()> {
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
    flow: Flow<N>,
    config: &ServiceConfig,
    tcp_len: u16,
) -> Option<()> {
    let mut view = packet.view_mut(at, N::HEADER)?;
    flow.net.write_answer(&mut view, config.ttl, tcp_len);
    Some(())
}

#[inline(always)]
fn write_tcp<N: Net, P: PacketMut>(
    packet: &mut P,
    at: usize,
    flow: Flow<N>,
    config: &ServiceConfig,
    answer: &Answer,
    tcp_len: usize,
) -> Option<()> {
    let options = &answer.options;
    let header = tcp::Header {
        source: flow.server_port,
        destination: flow.client_port,
        sequence: answer.cookie,
        acknowledgment: answer.isn.wrapping_add(1),
        header_len: tcp_len as u8,
        flags: tcp::SYN | tcp::ACK | if options.has_ecn() { tcp::ECE } else { 0 },
        window: config.window,
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
    put(0x0204_0000 | answer.mss as u32)?;
    if options.has_timestamps() {
        put(if options.sack_permitted() {
            0x0402_080a
        } else {
            0x0101_080a
        })?;
        put(answer.timestamp.0)?;
        put(options.ts_val)?;
    } else if options.sack_permitted() {
        put(0x0101_0402)?;
    }
    if options.has_window_scale() {
        put(0x0103_0300 | config.rcv_wscale as u32)?;
    }
    let header = tcp::Header {
        checksum: checksum::finish(sum),
        ..header
    };
    header.write(&mut packet.view_mut(at, tcp::HEADER)?);
    Some(())
}

/// The part of the answer's IP header that differs between the families.
pub trait WriteAnswer {
    /// Writes the IP header of an answer with `tcp_len` bytes of TCP, from server to client.
    fn write_answer(self, view: &mut impl ViewMut, ttl: u8, tcp_len: u16);
}

impl WriteAnswer for crate::flow::V4 {
    #[inline(always)]
    fn write_answer(self, view: &mut impl ViewMut, ttl: u8, tcp_len: u16) {
        let header = ipv4::Header {
            version: 4,
            header_len: ipv4::HEADER as u8,
            tos: 0,
            total_len: ipv4::HEADER as u16 + tcp_len,
            // RFC 6864: the identification of an atomic datagram means nothing.
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl,
            protocol: ipv4::TCP,
            checksum: 0,
            source: self.server,
            destination: self.client,
        };
        ipv4::Header {
            checksum: header.compute_checksum(),
            ..header
        }
        .write(view);
    }
}

impl WriteAnswer for crate::flow::V6 {
    #[inline(always)]
    fn write_answer(self, view: &mut impl ViewMut, ttl: u8, tcp_len: u16) {
        ipv6::Header {
            version_class_flow: 6 << 28,
            payload_len: tcp_len,
            next_header: ipv6::TCP,
            hop_limit: ttl,
            source: self.server,
            destination: self.client,
        }
        .write(view);
    }
}
