//! The lab's programs: peers of a veth, the flood generator, VLAN tags, loss and reordering, and the
//! floors of the bench.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    reason = "the attribute `xdp` makes a function that its comment is not moved to"
)]

mod bench;
mod flood;
mod floor;
mod impair;
mod packet;
mod peer;
mod tag;

use aya_ebpf::{
    bindings::{TC_ACT_OK, xdp_action},
    macros::{classifier, map, xdp},
    maps::PerCpuArray,
    programs::{TcContext, XdpContext},
};
use synguard_lab_ebpf::{bench::slot, counter};

/// Key: a slot of [`counter`]; value: how often, per CPU. Written by every program here, read by
/// the lab.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// Adds one to a counter.
#[inline(always)]
fn count(slot: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the slot of this CPU; an XDP program is not interrupted by another on its CPU.
        unsafe { *value += 1 };
    }
}

/// Passes everything. A veth delivers what its peer sends by `XDP_TX` only while it runs an XDP
/// program itself, or polls by NAPI for another reason.
#[xdp(frags)]
pub fn lab_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What the client's end of a veth runs: see [`peer`].
#[xdp(frags)]
pub fn lab_peer(ctx: XdpContext) -> u32 {
    peer::receive(&ctx)
}

/// Writes one frame of a flood and sends it: see [`flood`].
#[xdp]
pub fn lab_flood(ctx: XdpContext) -> u32 {
    flood::send(&ctx)
}

/// Ingress of a macvlan device that stands in for a VLAN device: see [`tag`].
#[classifier]
pub fn lab_tag_in(ctx: TcContext) -> i32 {
    tag::take_off(&ctx)
}

/// Egress of the same.
#[classifier]
pub fn lab_tag_out(ctx: TcContext) -> i32 {
    tag::put_on(&ctx)
}

/// Loses and delays packets at an end of a wire, in one direction: see [`impair`].
#[classifier]
pub fn lab_impair(ctx: TcContext) -> i32 {
    impair::impair(&ctx)
}

/// Where the detour of the delayed ones ends.
#[classifier]
pub fn lab_detour(ctx: TcContext) -> i32 {
    impair::come_home(&ctx)
}

/// What an empty program costs.
#[xdp(frags)]
pub fn floor_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What sending a packet back costs: swaps the MAC addresses.
#[xdp(frags)]
pub fn floor_tx(ctx: XdpContext) -> u32 {
    floor::echo(&ctx)
}

/// What SipHash-2-4 over 24 bytes of the packet costs.
#[xdp(frags)]
pub fn floor_siphash(ctx: XdpContext) -> u32 {
    floor::siphash(&ctx)
}

/// What looking the packet's socket up costs.
#[xdp(frags)]
pub fn floor_lookup(ctx: XdpContext) -> u32 {
    floor::lookup(&ctx)
}

/// What looking the packet's connection up in a hash table costs.
#[xdp(frags)]
pub fn floor_hash(ctx: XdpContext) -> u32 {
    floor::hash(&ctx)
}

/// The same in an LRU hash table.
#[xdp(frags)]
pub fn floor_lru(ctx: XdpContext) -> u32 {
    floor::lru(&ctx)
}

/// What entering the packet's connection in an LRU hash table costs.
#[xdp(frags)]
pub fn floor_insert(ctx: XdpContext) -> u32 {
    floor::insert(&ctx)
}

/// What counting and dropping a packet costs.
#[xdp(frags)]
pub fn floor_drop(_ctx: XdpContext) -> u32 {
    count(counter::DROPPED);
    xdp_action::XDP_DROP
}

/// The harness of the bench around a program that does nothing: see [`bench`].
#[xdp(frags)]
pub fn bench_empty(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::EMPTY }>(&ctx)
}

/// The harness around the program under test.
#[xdp(frags)]
pub fn bench_subject(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::SUBJECT }>(&ctx)
}

/// The harness around `floor_tx`.
#[xdp(frags)]
pub fn bench_tx(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::TX }>(&ctx)
}

/// The harness around `floor_siphash`.
#[xdp(frags)]
pub fn bench_siphash(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::SIPHASH }>(&ctx)
}

/// The harness around `floor_lookup`.
#[xdp(frags)]
pub fn bench_lookup(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::LOOKUP }>(&ctx)
}

/// The harness around `floor_hash`.
#[xdp(frags)]
pub fn bench_hash(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::HASH }>(&ctx)
}

/// The harness around `floor_lru`.
#[xdp(frags)]
pub fn bench_lru(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::LRU }>(&ctx)
}

/// The harness around `floor_insert`.
#[xdp(frags)]
pub fn bench_insert(ctx: XdpContext) -> u32 {
    bench::xdp::<{ slot::INSERT }>(&ctx)
}

/// The harness for TC programs, around one that does nothing.
#[classifier]
pub fn bench_tc_empty(ctx: TcContext) -> i32 {
    bench::tc::<{ slot::EMPTY }>(&ctx)
}

/// The harness for TC programs, around the one under test.
#[classifier]
pub fn bench_tc_subject(ctx: TcContext) -> i32 {
    bench::tc::<{ slot::SUBJECT }>(&ctx)
}

/// A TC program that does nothing.
#[classifier]
pub fn floor_tc_empty(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
