//! What lies in the maps, byte for byte the same for the kernel side and the daemon.
//!
//! Integers, arrays and explicit padding only; sizes and offsets are asserted at compile time.
//! Integers are in host order unless a field says otherwise. Change anything here and
//! [`ABI_VERSION`] goes up.

use crate::verdict::Reason;

/// Version of every layout in this module; the daemon finds it in [`Runtime::abi_version`].
pub const ABI_VERSION: u32 = 1;

/// Service number of "no service". Number 0 of every per-service table belongs to the packets of
/// no service.
pub const SERVICE_NONE: u16 = 0;

/// An IPv6 address, or an IPv4 one mapped to `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2), in
/// network order. Key of the map `ADDRESSES`.
///
/// Keys are aligned to eight bytes because they are built on the eBPF stack, where LLVM merges
/// neighbouring stores and the verifier insists on alignment.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u8; 16]);

/// Value of `ADDRESSES` and of `PREFIXES`, a longest-prefix-match trie over the same addresses (the
/// length of an IPv4 prefix counts the 96 bits before it): which service an address belongs to.
/// Written by the daemon, read by every program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// First half of the keys in `PORTS` that concern this address; 0 where no port differs from
    /// the others.
    pub ports_id: u32,
    /// Service of every port that `PORTS` does not list; [`SERVICE_NONE`] where there is none.
    pub service: u16,
    /// MTU of the device that has the address, in bytes: what our MSS is taken from.
    pub mtu: u16,
}

/// Key of the map `PORTS`; the value is a [`PortEntry`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// [`AddressEntry::ports_id`].
    pub ports_id: u32,
    /// TCP port, host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Value of the map `PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// The service, or [`SERVICE_NONE`] to except the port.
    pub service: u16,
    /// Zero.
    pub pad: u16,
}

/// Service is guarded whenever its half-open count says so.
pub const MODE_ADAPTIVE: u8 = 0;
/// Service is guarded for ever.
pub const MODE_ALWAYS: u8 = 1;
/// Nothing is answered or dropped; what would have been is counted in
/// [`ServiceStats::observed`].
pub const MODE_OBSERVE: u8 = 2;

/// No admission is possible: the service is watched and never guarded.
pub const ADMISSION_NONE: u8 = 0;
/// A valid ACK becomes a socket of this box (`bpf_sk_assign_tcp_reqsk`).
pub const ADMISSION_LOCAL: u8 = 1;

/// The SYN-ACK may carry timestamps (`net.ipv4.tcp_timestamps`).
pub const OFFER_TIMESTAMPS: u32 = 1 << 0;
/// The SYN-ACK may permit SACK (`net.ipv4.tcp_sack`).
pub const OFFER_SACK: u32 = 1 << 1;
/// The SYN-ACK may carry a window scale (`net.ipv4.tcp_window_scaling`).
pub const OFFER_WINDOW_SCALE: u32 = 1 << 2;
/// The SYN-ACK may accept ECN (`net.ipv4.tcp_ecn`).
pub const OFFER_ECN: u32 = 1 << 3;

/// Value of the array `SERVICES`, index = service number. Written by the daemon only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Half-open connections at which an adaptive service becomes guarded.
    pub high: u32,
    /// `OFFER_*` bits.
    pub offers: u32,
    /// Window of the SYN-ACK, unscaled, in bytes.
    pub window: u16,
    /// `MODE_*`.
    pub mode: u8,
    /// `ADMISSION_*`.
    pub admission: u8,
    /// Window scale the SYN-ACK promises, 0..=14.
    pub rcv_wscale: u8,
    /// Time to live or hop limit of the SYN-ACK.
    pub ttl: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// The service passes everything and counts its half-open connections.
pub const STATE_CALM: u32 = 0;
/// The service answers every SYN with a cookie.
pub const STATE_GUARDED: u32 = 1;

/// Value of the array `STATES`, index = service number. Slot 0 stands for all: it is guarded while
/// any service is that drops, and decides on packets whose service cannot be known. Written by both
/// sides, field by field:
/// the map is memory-mapped by the daemon, so that it never overwrites a count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// Connections in the half-open table; atomic. Kernel adds and subtracts, daemon subtracts
    /// what it expires.
    pub half_open: u64,
    /// `STATE_*`: the kernel turns it guarded, the daemon turns it calm.
    pub state: u32,
    /// Times the kernel turned it guarded.
    pub guarded_count: u32,
    /// Monotonic coarse time of the last turn to guarded, ns. Written by the kernel.
    pub guarded_at: u64,
    /// Until when cookies are still honoured in state calm, monotonic ns. Written by the daemon.
    pub grace_until: u64,
}

/// Buckets of the handshake round-trip histogram.
pub const RTT_BUCKETS: usize = 14;

/// Room for reasons in [`ServiceStats`]; more than there are, so that adding one does not
/// change the layout.
pub const REASON_SLOTS: usize = 64;

/// Value of the per-CPU array `STATS`, index = service number. Written by the kernel, summed by
/// the daemon at scrape time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceStats {
    /// Packets by [`Reason`].
    pub reasons: [u64; REASON_SLOTS],
    /// Packets by the [`Reason`] they would have left with, in mode observe.
    pub observed: [u64; REASON_SLOTS],
    /// Handshake round trips by upper bound: bucket `i` holds those of at most 2^i ms that the
    /// bucket before does not; the last holds the rest.
    pub rtt: [u64; RTT_BUCKETS],
    /// Sum of the round trips, ms.
    pub rtt_sum_ms: u64,
    /// SYNs received, whatever became of them.
    pub syns: u64,
}

const _: () = assert!(Reason::COUNT <= REASON_SLOTS);

/// Slots of the key ring: the key of epoch `e` lies at `e % KEY_SLOTS`.
pub const KEY_SLOTS: u32 = 8;

/// Value of the array `KEYS`. Written by the daemon, ahead of its epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochKey {
    /// The epoch the key belongs to; any other value means that there is no key for it.
    pub epoch: u64,
    /// First half of the SipHash key.
    pub k0: u64,
    /// Second half of the SipHash key.
    pub k1: u64,
}

/// Value of the array `CLOCK`, one entry. Written by the daemon about once a second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Wall-clock time (CLOCK_REALTIME) less monotonic time (CLOCK_MONOTONIC), ns.
    pub wall_offset: u64,
}

/// Value of the array `RUNTIME`, one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// [`ABI_VERSION`] of the programs' layouts. Written by the daemon.
    pub abi_version: u32,
    /// 1 once the driver turned out to have no room for XDP metadata: `synguard_admit` then
    /// checks every segment itself. Written by `synguard_in`.
    pub no_metadata: u32,
    /// 1 where `PREFIXES` has entries. Written by the daemon.
    pub has_prefixes: u32,
    /// Zero, and stays so: see [`crate::tables::Tables::zero`].
    pub zero: u32,
    /// Random, chosen at load: where a tuple lies in `ADMISSIONS`. Written by the daemon.
    pub seed: u64,
}

/// A TCP connection as packets from the client name it. Key of the map `HALF_OPEN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The client's address.
    pub client: Address,
    /// The server's address.
    pub server: Address,
    /// The client's port, host order.
    pub client_port: u16,
    /// The server's port, host order.
    pub server_port: u16,
    /// Zero.
    pub pad: u32,
}

/// Value of the map `HALF_OPEN`. Written by `synguard_in` (on a passed SYN) and `synguard_out`
/// (on the server's SYN-ACK), expired by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// When the SYN passed, monotonic coarse ns.
    pub since: u64,
    /// The client's initial sequence number.
    pub client_isn: u32,
    /// The server's initial sequence number, once `confirmed`.
    pub server_isn: u32,
    /// The service.
    pub service: u32,
    /// 1 once the server's SYN-ACK was seen.
    pub confirmed: u32,
}

/// Buckets of the map `ADMISSIONS`, a power of two.
pub const ADMISSION_BUCKETS: u32 = 1 << 14;
/// Entries of a bucket.
pub const ADMISSION_WAYS: usize = 4;

/// Value of the array `ADMISSIONS`: tuples with a valid cookie of the last moments, see
/// [`crate::recent`]. Written and read by `synguard_in` and `synguard_admit`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionBucket {
    /// The entries.
    pub ways: [u64; ADMISSION_WAYS],
}

/// Names of the maps, as the loader finds them.
pub mod map {
    /// Hash: [`super::Address`] → [`super::AddressEntry`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// LPM trie: [`super::Address`] → [`super::AddressEntry`].
    pub const PREFIXES: &str = "PREFIXES";
    /// Hash: [`super::PortKey`] → [`super::PortEntry`].
    pub const PORTS: &str = "PORTS";
    /// Array: service number → [`super::ServiceConfig`].
    pub const SERVICES: &str = "SERVICES";
    /// Array, memory-mapped: service number → [`super::ServiceState`].
    pub const STATES: &str = "STATES";
    /// Per-CPU array: service number → [`super::ServiceStats`].
    pub const STATS: &str = "STATS";
    /// Array: epoch modulo [`super::KEY_SLOTS`] → [`super::EpochKey`].
    pub const KEYS: &str = "KEYS";
    /// Array of one: [`super::Clock`].
    pub const CLOCK: &str = "CLOCK";
    /// Array of one: [`super::Runtime`].
    pub const RUNTIME: &str = "RUNTIME";
    /// Hash: [`super::Tuple`] → [`super::HalfOpen`].
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// Array: bucket → [`super::AdmissionBucket`].
    pub const ADMISSIONS: &str = "ADMISSIONS";
}

/// Asserts the size of a layout and that it holds no hidden padding.
macro_rules! layout {
    ($($type:ty = $size:literal: $($field:ident $at:literal),*;)+) => {
        $(const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(core::mem::offset_of!($type, $field) == $at);)*
        };)+
    };
}

layout! {
    Address = 16: ;
    AddressEntry = 8: ports_id 0, service 4, mtu 6;
    PortKey = 8: ports_id 0, port 4, pad 6;
    PortEntry = 4: service 0, pad 2;
    ServiceConfig = 16: high 0, offers 4, window 8, mode 10, admission 11, rcv_wscale 12, ttl 13, pad 14;
    ServiceState = 32: half_open 0, state 8, guarded_count 12, guarded_at 16, grace_until 24;
    ServiceStats = 1152: reasons 0, observed 512, rtt 1024, rtt_sum_ms 1136, syns 1144;
    EpochKey = 24: epoch 0, k0 8, k1 16;
    Clock = 8: wall_offset 0;
    Runtime = 24: abi_version 0, no_metadata 4, has_prefixes 8, zero 12, seed 16;
    Tuple = 40: client 0, server 16, client_port 32, server_port 34, pad 36;
    HalfOpen = 24: since 0, client_isn 8, server_isn 12, service 16, confirmed 20;
    AdmissionBucket = 32: ways 0;
}
