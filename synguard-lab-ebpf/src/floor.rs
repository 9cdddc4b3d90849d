//! Floors: the cost of steps that every guarded path contains, to measure the paths beside.

use aya_ebpf::{
    bindings::{bpf_sock_tuple, xdp_action},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
    macros::map,
    maps::{HashMap, LruHashMap},
    programs::XdpContext,
};
use synguard_common::{
    abi::{FlowEntry, Tuple},
    flow::{Flow, V4},
    siphash::SipHash24,
};

use crate::packet::bytes;

/// The key of [`siphash`]; read volatile, so that nothing of the hash is computed by the compiler.
static KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

/// Swaps the MAC addresses and sends the packet back.
#[inline(always)]
pub fn echo(ctx: &XdpContext) -> u32 {
    let Some(ethernet) = bytes::<14>(ctx, 0) else {
        return xdp_action::XDP_DROP;
    };
    let (to_high, to_low) = (ethernet.load::<u32>(0), ethernet.load::<u16>(4));
    let (from_high, from_low) = (ethernet.load::<u32>(6), ethernet.load::<u16>(10));
    ethernet.store(0, from_high);
    ethernet.store(4, from_low);
    ethernet.store(6, to_high);
    ethernet.store(10, to_low);
    xdp_action::XDP_TX
}

/// Hashes bytes 14 to 38, where IPv4 header and ports lie; passes the packet whatever the result.
#[inline(always)]
pub fn siphash(ctx: &XdpContext) -> u32 {
    let Some(packet) = bytes::<38>(ctx, 0) else {
        return xdp_action::XDP_DROP;
    };
    let key = (&raw const KEY).cast::<u64>();
    // SAFETY: both halves of a static.
    let (k0, k1) = unsafe { (key.read_volatile(), key.add(1).read_volatile()) };
    let hash = SipHash24::new(k0, k1)
        .word(packet.load(14))
        .word(packet.load(22))
        .word(packet.load(30))
        .finish();
    // The result must be of use, or the hash would be optimised away: one in 2^64 packets aborts.
    if hash == 0 {
        xdp_action::XDP_ABORTED
    } else {
        xdp_action::XDP_PASS
    }
}

/// `BPF_F_CURRENT_NETNS`: the network namespace of the device.
const CURRENT_NETNS: u64 = u64::MAX;

/// Looks for the socket of an IPv4 packet without IP options; passes the packet if there is one,
/// else drops it.
#[inline(always)]
pub fn lookup(ctx: &XdpContext) -> u32 {
    let Some(packet) = bytes::<38>(ctx, 0) else {
        return xdp_action::XDP_ABORTED;
    };
    // Both addresses and both ports lie in a packet as they do in `struct bpf_sock_tuple`.
    let mut tuple: [u32; 3] = [packet.load(26), packet.load(30), packet.load(34)];
    // SAFETY: the context of this run, and the twelve bytes announced.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            ctx.ctx.cast(),
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
            size_of_val(&tuple) as u32,
            CURRENT_NETNS,
            0,
        )
    };
    if socket.is_null() {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: the helper returned a socket and a reference to it.
    unsafe { bpf_sk_release(socket.cast()) };
    xdp_action::XDP_PASS
}

/// Key: a connection, 40 bytes; value: of no interest. Written by the bench, read by [`hash`].
#[map]
static FLOOR_HASH: HashMap<Tuple, u64> = HashMap::with_max_entries(1024, 0);

/// The same for [`lru`].
#[map]
static FLOOR_LRU: LruHashMap<Tuple, u64> = LruHashMap::with_max_entries(1024, 0);

/// Looks an IPv4 packet's connection up in a hash table; passes the packet if it is there, else drops
/// it.
#[inline(always)]
pub fn hash(ctx: &XdpContext) -> u32 {
    found(tuple(ctx).map(|tuple| FLOOR_HASH.get_ptr(tuple).is_some()))
}

/// The same in an LRU hash table.
#[inline(always)]
pub fn lru(ctx: &XdpContext) -> u32 {
    found(tuple(ctx).map(|tuple| FLOOR_LRU.get_ptr(tuple).is_some()))
}

/// Key: a connection; value: as large as a flow's. Written by [`insert`], emptied by the bench.
#[map]
static FLOOR_INSERT: LruHashMap<Tuple, [u64; FLOW_WORDS]> = LruHashMap::with_max_entries(4096, 0);
const FLOW_WORDS: usize = size_of::<FlowEntry>() / 8;

/// Enters an IPv4 packet's connection in an LRU hash table; passes the packet if that works, else drops
/// it.
#[inline(always)]
pub fn insert(ctx: &XdpContext) -> u32 {
    found(tuple(ctx).map(|tuple| FLOOR_INSERT.insert(tuple, [0; FLOW_WORDS], 0).is_ok()))
}

#[inline(always)]
fn found(found: Option<bool>) -> u32 {
    match found {
        None => xdp_action::XDP_ABORTED,
        Some(true) => xdp_action::XDP_PASS,
        Some(false) => xdp_action::XDP_DROP,
    }
}

/// The connection of an IPv4 packet without IP options.
#[inline(always)]
fn tuple(ctx: &XdpContext) -> Option<Tuple> {
    let packet = bytes::<38>(ctx, 0)?;
    let flow = Flow {
        net: V4 {
            client: u32::from_be(packet.load(26)),
            server: u32::from_be(packet.load(30)),
        },
        client_port: u16::from_be(packet.load(34)),
        server_port: u16::from_be(packet.load(36)),
    };
    Some(flow.tuple())
}
