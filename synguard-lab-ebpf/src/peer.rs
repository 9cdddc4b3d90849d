//! The client's end of a veth under flood: answers to flood sources are counted and dropped before
//! the client's kernel sees them, so that it stays free for the legitimate clients.

use aya_ebpf::{bindings::xdp_action, macros::map, maps::Array, programs::XdpContext};
use synguard_lab_ebpf::{FloodSources, counter};

use crate::{count, packet::bytes};

/// Key: 0; value: the prefixes that flood sources come from. Written by the lab before the program
/// is attached, read by `lab_peer`.
#[map]
static FLOOD_SOURCES: Array<FloodSources> = Array::with_max_entries(1, 0);

const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100u16.to_be();
const ETHERTYPE_QINQ: u16 = 0x88a8u16.to_be();
const IPPROTO_TCP: u8 = 6;

const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;

/// Counts and drops what concerns flood sources, passes the rest.
#[inline(always)]
pub fn receive(ctx: &XdpContext) -> u32 {
    count(counter::RECEIVED);
    match classify(ctx) {
        Some(slot) => {
            count(slot);
            xdp_action::XDP_DROP
        }
        None => xdp_action::XDP_PASS,
    }
}

/// The counter of a packet to or from a flood source; `None` for any other packet.
#[inline(always)]
fn classify(ctx: &XdpContext) -> Option<u32> {
    let sources = FLOOD_SOURCES.get(0)?;
    let mut l3 = 14;
    let mut ethertype: u16 = bytes::<2>(ctx, 12)?.load(0);
    for _ in 0..2 {
        if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
            ethertype = bytes::<4>(ctx, l3)?.load(2);
            l3 += 4;
        }
    }
    let (from, to, l4) = match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = bytes::<20>(ctx, l3)?;
            if ip.load::<u8>(9) != IPPROTO_TCP {
                return None;
            }
            let (net, mask) = (
                u32::from_ne_bytes(sources.v4),
                u32::from_ne_bytes(sources.v4_mask),
            );
            let header = usize::from(ip.load::<u8>(0) & 0x0f) * 4;
            (
                ip.load::<u32>(12) & mask == net,
                ip.load::<u32>(16) & mask == net,
                l3 + header,
            )
        }
        ETHERTYPE_IPV6 => {
            let ip = bytes::<40>(ctx, l3)?;
            if ip.load::<u8>(6) != IPPROTO_TCP {
                return None;
            }
            let (net, mask) = (
                u64::from_ne_bytes(sources.v6),
                u64::from_ne_bytes(sources.v6_mask),
            );
            (
                ip.load::<u64>(8) & mask == net,
                ip.load::<u64>(24) & mask == net,
                l3 + 40,
            )
        }
        _ => return None,
    };
    if from {
        return Some(counter::ECHO);
    }
    if !to {
        return None;
    }
    let flags: u8 = bytes::<14>(ctx, l4)?.load(13);
    Some(if flags & SYN_ACK == SYN_ACK {
        counter::SYN_ACK
    } else if flags & RST != 0 {
        counter::RST
    } else {
        counter::OTHER
    })
}
