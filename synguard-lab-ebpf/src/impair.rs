//! A wire that loses and reorders packets.
//!
//! Both leave by the detour, a veth pair beside the wire whose far end polls once a millisecond. There
//! the lost ones are dropped and the others sent back to where they came from; what was sent on the
//! wire in the meantime has overtaken them. A lost one is not dropped at once because the sender's TCP
//! would be told, and would send it again as if it had never been sent.
//!
//! The mark of a packet says which it is; nothing else in the lab uses marks.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_get_prandom_u32, bpf_redirect},
    macros::map,
    maps::{Array, PerCpuArray},
    programs::TcContext,
};
use synguard_lab_ebpf::{Impairment, impaired};

use crate::packet::bytes;

/// Key: 0; value: what to do to packets. Written by the lab before the programs are attached, read by
/// both.
#[map]
static IMPAIRMENT: Array<Impairment> = Array::with_max_entries(1, 0);

/// Key: a slot of [`impaired`]; value: how often, per CPU. Written by `lab_impair`, read by the lab.
#[map]
static IMPAIRED: PerCpuArray<u64> = PerCpuArray::with_max_entries(impaired::COUNT, 0);

/// Key: 0; value: how many packets have gone straight. Written and read by `lab_impair`.
#[map]
static STRAIGHT: Array<u32> = Array::with_max_entries(1, 0);

/// Upper byte of the mark of a packet that is to be lost.
const LOST: u32 = 0xd6 << 24;
/// Upper byte of the mark of a packet that is delayed; below it are the lower bits of how many
/// packets had gone straight when it left.
const DELAYED: u32 = 0xd7 << 24;
const KIND: u32 = 0xff << 24;

const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100u16.to_be();
const ETHERTYPE_QINQ: u16 = 0x88a8u16.to_be();
const IPPROTO_TCP: u8 = 6;
/// Ethernet, two tags, an IPv6 header, and a TCP header without options.
const HEADERS: u32 = 14 + 8 + 40 + 20;

/// Decides about a packet at the end of the wire.
#[inline(always)]
pub fn impair(ctx: &TcContext) -> i32 {
    let (Some(settings), Some(straight)) = (IMPAIRMENT.get(0), STRAIGHT.get_ptr_mut(0)) else {
        return TC_ACT_SHOT;
    };
    let skb = ctx.skb.skb;
    // SAFETY: the context of this run.
    let mark = unsafe { (*skb).mark };
    // SAFETY: a map's value lives as long as the program. Other CPUs may count at the same time: an
    // increment lost to them can at most hide that a packet was overtaken.
    let passed = unsafe { *straight };
    if mark & KIND == DELAYED {
        if (mark ^ passed) & !KIND != 0 {
            count(impaired::OVERTAKEN);
        }
        // SAFETY: the context of this run.
        unsafe { (*skb).mark = 0 };
        return TC_ACT_UNSPEC;
    }
    if !concerns(ctx, settings.data_only != 0) {
        return TC_ACT_UNSPEC;
    }
    count(impaired::SEEN);
    let mark = if happens(settings.loss) {
        count(impaired::LOST);
        LOST
    } else if happens(settings.reorder) {
        count(impaired::DELAYED);
        DELAYED | passed & !KIND
    } else {
        // SAFETY: as for reading it.
        unsafe { *straight = passed.wrapping_add(1) };
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context of this run.
    unsafe { (*skb).mark = mark };
    redirect(settings.detour, 0)
}

/// At the far end of the detour: back to the wire.
#[inline(always)]
pub fn come_home(ctx: &TcContext) -> i32 {
    let Some(settings) = IMPAIRMENT.get(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context of this run.
    let mark = unsafe { (*ctx.skb.skb).mark };
    if mark & KIND != DELAYED {
        return TC_ACT_SHOT;
    }
    redirect(settings.home, settings.home_flags)
}

#[inline(always)]
fn redirect(index: u32, flags: u32) -> i32 {
    // SAFETY: any index will do: an unknown one drops the packet.
    unsafe { bpf_redirect(index, flags.into()) as i32 }
}

/// Whether an event of this probability, of 2^32, happens now.
#[inline(always)]
fn happens(probability: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() < probability }
}

#[inline(always)]
fn count(slot: u32) {
    if let Some(value) = IMPAIRED.get_ptr_mut(slot) {
        // SAFETY: the slot of this CPU. One run may interrupt another there and a count be lost, which
        // no test depends on.
        unsafe { *value += 1 };
    }
}

/// Whether this is a TCP packet, and has data if it must.
#[inline(always)]
fn concerns(ctx: &TcContext, data_only: bool) -> bool {
    if (ctx.data_end() - ctx.data()) < HEADERS as usize {
        // Only the linear part can be read. A packet that is shorter than all headers stays as it is.
        let _ = ctx.pull_data(HEADERS.min(ctx.len()));
    }
    data_length(ctx).is_some_and(|length| !data_only || length > 0)
}

/// How much data a TCP packet carries; `None` for any other packet.
#[inline(always)]
fn data_length(ctx: &TcContext) -> Option<u32> {
    let mut l3 = 14;
    let mut ethertype: u16 = bytes::<2>(ctx, 12)?.load(0);
    // One tag is beside the packet at this hook; a second one is in it.
    for _ in 0..2 {
        if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
            ethertype = bytes::<4>(ctx, l3)?.load(2);
            l3 += 4;
        }
    }
    let (l4, length) = match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = bytes::<20>(ctx, l3)?;
            let header = u32::from(ip.load::<u8>(0) & 0x0f) * 4;
            if ip.load::<u8>(9) != IPPROTO_TCP {
                return None;
            }
            let total = u32::from(u16::from_be(ip.load(2)));
            (l3 + header as usize, total.saturating_sub(header))
        }
        ETHERTYPE_IPV6 => {
            let ip = bytes::<40>(ctx, l3)?;
            if ip.load::<u8>(6) != IPPROTO_TCP {
                return None;
            }
            (l3 + 40, u32::from(u16::from_be(ip.load(4))))
        }
        _ => return None,
    };
    let header = u32::from(bytes::<14>(ctx, l4)?.load::<u8>(12) >> 4) * 4;
    Some(length.saturating_sub(header))
}
