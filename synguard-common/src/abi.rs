//! What lies in the maps, byte for byte the same for the kernel side and the daemon.
//!
//! Integers, arrays and explicit padding only; sizes and offsets are asserted at compile time.
//! Integers are in host order unless a field says otherwise. Change anything here and
//! [`ABI_VERSION`] goes up.

use crate::verdict::Reason;

/// Version of every layout in this module; the daemon finds it in [`Runtime::abi_version`].
///
/// Programs outlive the daemon that loaded them, so a daemon may meet those of another version. All
/// that it knows of them then, and what therefore stays as it is in every version: `abi_version` and
/// `draining` at the beginning of [`Runtime`] (map `RUNTIME`), `left` at the beginning of [`Sweep`]
/// (map `SWEEP`), and that the program `synguard_sweep` brings the latter up to date when it is run on
/// any frame.
pub const ABI_VERSION: u32 = 4;

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
/// A valid ACK becomes the SYN that the client would have sent, and the two halves are spliced:
/// see [`crate::splice`].
pub const ADMISSION_PROXY: u8 = 2;
/// The SYN is answered with a SYN-ACK that acknowledges a cookie; the client's RST proves its
/// address, and its next SYN passes: see [`crate::reset`].
pub const ADMISSION_RESET: u8 = 3;

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
    /// 1 where the SYN-ACK offers what the server was seen to offer ([`ServiceState::profile`]),
    /// within `offers` and `mss`; 0 where it offers what is said here.
    pub learns: u8,
    /// Zero.
    pub pad: u8,
    /// Largest MSS of the SYN-ACK, bytes; 0 where only the MTU limits it.
    pub mss: u16,
    /// Zero.
    pub pad2: u16,
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
    /// What the service's servers were seen to offer in their SYN-ACKs: a
    /// [`crate::profile::Profile`]. Written by `synguard_out`.
    pub profile: u64,
    /// `OFFER_*` bits that a server fell short of after they had been promised: not learned again
    /// before [`crate::profile::WITHHELD_TICKS`] have passed. Written by `synguard_out`.
    pub withheld: u32,
    /// [`Clock::tick`] of the last such shortfall. Written by `synguard_out`.
    pub withheld_at: u32,
    /// [`Clock::tick`] at which a SYN last passed to learn the profile from its answer. Written by
    /// `synguard_in`.
    pub probed_at: u32,
    /// Zero.
    pub pad: u32,
}

/// Buckets of the handshake round-trip histogram.
pub const RTT_BUCKETS: usize = 14;

/// Room for reasons in [`ServiceStats`]; more than there are, so that adding one does not
/// change the layout.
pub const REASON_SLOTS: usize = 128;

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

// The programs bound an index by a mask.
const _: () = assert!(Reason::COUNT <= REASON_SLOTS && REASON_SLOTS.is_power_of_two());

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

/// Ticks of [`Clock::tick`] in a second.
pub const TICKS_PER_SECOND: u32 = 4;

/// Value of the array `CLOCK`, one entry. Written by the daemon every tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Wall-clock time (CLOCK_REALTIME) less monotonic time (CLOCK_MONOTONIC), ns.
    pub wall_offset: u64,
    /// Monotonic time (CLOCK_MONOTONIC) in quarters of a second, what flows are aged by: reading it
    /// costs the packet path a load, where a clock would cost a call. Where the daemon is gone, it
    /// stands still and nothing ages.
    pub tick: u32,
    /// Length of a jiffy, ns; 0 where it was not found out, and `bpf_ktime_get_coarse_ns` is asked.
    pub jiffy_ns: u32,
    /// Monotonic time less the jiffies' (`bpf_jiffies64` times `jiffy_ns`), ns. The kernel counts
    /// jiffies by the monotonic clock, and reading them costs a load where the clock costs a call.
    pub jiffy_offset: u64,
}

/// Value of the array `MOMENT`, one entry: both of the kernel's coarse clocks at one moment. Written
/// by `synguard_moment`, which the daemon runs to compare them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// `bpf_jiffies64`.
    pub jiffies: u64,
    /// `bpf_ktime_get_coarse_ns`: monotonic time at the last jiffy, ns.
    pub monotonic: u64,
}

/// Value of the array `RUNTIME`, one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// [`ABI_VERSION`] of the programs' layouts. Written by the daemon.
    pub abi_version: u32,
    /// 1 while no service is guarded, whatever else is said, because the programs are to leave: cookies
    /// that are out are honoured, and flows go on. Written by the daemon.
    pub draining: u32,
    /// 1 once the driver turned out to have no room for XDP metadata: `synguard_admit` then
    /// checks every segment itself. Written by `synguard_in`.
    pub no_metadata: u32,
    /// 1 where `PREFIXES` has entries. Written by the daemon.
    pub has_prefixes: u32,
    /// Random, chosen at load: where a tuple lies in `ADMISSIONS`. Written by the daemon.
    pub seed: u64,
    /// 1 while any service has admission `proxy`, or flows of one are left: else `FLOWS` is not
    /// looked at for packets that leave. Written by the daemon.
    pub forwards: u32,
    /// Buckets of `FLOWS`. Written by the daemon.
    pub flow_buckets: u32,
    /// [`Clock::tick`] before which unknown segments of a proxied service pass: connections older
    /// than the daemon are learned meanwhile. Written by the daemon.
    pub settled_at: u32,
    /// How long a source stays verified (admission `reset`), ticks. Written by the daemon.
    pub verified_ticks: u32,
    /// How long an idle flow is kept, ticks. Written by the daemon.
    pub flow_idle_ticks: u32,
    /// Goes up after each change of `ADDRESSES` or `PREFIXES`: what was found before does not count
    /// any more. Written by the daemon.
    pub generation: u32,
    /// Zero, and stays so: see [`crate::tables::Tables::zero`].
    pub zero: u32,
    /// 1 where `SOURCES` has entries. Written by the daemon.
    pub has_sources: u32,
    /// SYNs of one source in a second that may come to nothing while their service is calm; 0 is no
    /// limit, [`MAX_BUDGET`] the largest. Written by the daemon.
    pub syn_budget: u32,
    /// The same while it is guarded: SYN-ACKs to one address that nobody answers. Written by the daemon.
    pub answer_budget: u32,
    /// 1 where SYNs that are answered are remembered in `SYN_CACHE`. Written by the daemon.
    pub syn_cache: u32,
    /// Zero.
    pub pad: u32,
}

/// Slots of the array `SYN_CACHE`, a power of two and no more than [`ADMISSION_BUCKETS`].
pub const SYN_CACHE_SLOTS: u32 = 1 << 12;
/// SYNs that one CPU remembers in a tick, at most.
pub const SYN_CACHE_PER_TICK: u32 = 128;

/// The slot is free.
pub const ANSWERED_FREE: u32 = 0;
/// It is being written.
pub const ANSWERED_BUSY: u32 = 1;
/// It holds a SYN.
pub const ANSWERED_LIVE: u32 = 2;

/// Value of the array `SYN_CACHE`: a SYN that was answered with a cookie. Written by `synguard_in`, freed
/// by `synguard_in`, `synguard_admit` and the daemon. The programs see it as a [`crate::syncache::Live`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The connection.
    pub tuple: Tuple,
    /// `ANSWERED_*`.
    pub state: u32,
    /// [`Clock::tick`] of the SYN.
    pub since: u32,
    /// The client's initial sequence number.
    pub client_isn: u32,
    /// Ours: the cookie.
    pub cookie: u32,
    /// TSval of the SYN, where timestamps were agreed on.
    pub ts_val: u32,
    /// The client's MSS, bytes.
    pub mss: u16,
    /// The service.
    pub service: u16,
    /// `OFFER_*` bits of what was agreed on.
    pub options: u8,
    /// The client's window scale, where that is among it.
    pub window_scale: u8,
    /// How often the SYN-ACK was sent again. Written by the daemon.
    pub tries: u8,
    /// Bytes of `link` that count.
    pub link_len: u8,
    /// The link header of the SYN, without the EtherType of what follows, in words whose bytes in memory
    /// are those on the wire.
    pub link: [u32; LINK_HEADER / 4],
}

/// A prefix is allowed.
pub const SOURCE_ALLOWED: u32 = 1;
/// A prefix is blocked.
pub const SOURCE_BLOCKED: u32 = 2;

/// Value of the LPM trie `SOURCES`, whose key is a prefix of an [`Address`]. Written by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceEntry {
    /// `SOURCE_*`.
    pub list: u32,
    /// [`Clock::tick`] from which on it says nothing any more; 0 is never.
    pub until: u32,
}

/// Room in `SOURCES`, entries.
pub const MAX_SOURCES: u32 = 1 << 20;

/// Entries of the array `BUDGETS`, a power of two: words of [`crate::sources`].
pub const BUDGET_SLOTS: u32 = 1 << 16;
/// The largest limit that a budget can hold to.
pub const MAX_BUDGET: u32 = u16::MAX as u32;

/// Entries of the per-CPU array `FOUND`, a power of two.
pub const FOUND_SLOTS: u32 = 256;

/// Value of `FOUND`: what an address was last found to be. Written and read by the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub address: Address,
    /// What `ADDRESSES` or `PREFIXES` have for it; zero where they have nothing.
    pub entry: AddressEntry,
    /// [`Runtime::generation`] of that.
    pub generation: u32,
    /// 1 where they have something.
    pub protected: u32,
}

/// The client's ACK came, and its SYN was passed to the server, which has not answered yet.
pub const FLOW_PENDING: u8 = 1;
/// Both halves are established and spliced.
pub const FLOW_SPLICED: u8 = 2;
/// Never spliced: the server was seen talking on it, or its handshake was seen to end.
pub const FLOW_KNOWN: u8 = 3;
/// Values of [`FlowEntry::state`], 0 ("none") included.
pub const FLOW_STATES: usize = 4;

/// The client sent a FIN.
pub const CLOSING_CLIENT: u8 = 1 << 0;
/// The server sent a FIN.
pub const CLOSING_SERVER: u8 = 1 << 1;
/// Either sent a RST.
pub const CLOSING_RESET: u8 = 1 << 2;

/// Bytes of a link header, at most: both addresses and two VLAN tags, without the EtherType of what
/// follows.
pub const LINK_HEADER: usize = 20;

/// A connection of a proxied service, in [`FlowBucket`]. Written by `synguard_in` and
/// `synguard_out`, removed by `synguard_sweep`. The programs see it as a
/// [`crate::tables::LiveFlow`].
///
/// "Client side" is the sequence space that the client knows, which begins with our cookie;
/// "server side" the one that begins with the server's own initial sequence number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// Client side less server side: added to sequence numbers from the server, taken from the
    /// client's acknowledgements.
    pub delta: u32,
    /// The same for timestamps. While the flow is pending, our TSval as the client last echoed it.
    pub ts_delta: u32,
    /// Our initial sequence number: the cookie.
    pub cookie: u32,
    /// The client's initial sequence number.
    pub client_isn: u32,
    /// Sequence number after the last that the server has sent, client side.
    pub server_next: u32,
    /// What the server has last acknowledged.
    pub server_ack: u32,
    /// TSval of the client's ACK.
    pub client_tsval: u32,
    /// [`Clock::tick`] of the last packet.
    pub seen_at: u32,
    /// [`Clock::tick`] at which the SYN was last passed to the server.
    pub sent_at: u32,
    /// Window of the client's ACK, as it was on the wire.
    pub window: u16,
    /// The client's MSS, bytes.
    pub mss: u16,
    /// The service.
    pub service: u16,
    /// `FLOW_*`.
    pub state: u8,
    /// `CLOSING_*` bits.
    pub closing: u8,
    /// `OFFER_*` bits of what was agreed on with the client.
    pub options: u8,
    /// Window scale of the client.
    pub client_scale: u8,
    /// Window scale that the client was promised.
    pub promised_scale: u8,
    /// Window scale of the server.
    pub server_scale: u8,
    /// How often the SYN was passed again. Of a flow that is not spliced: 1 until the handshake of
    /// the connection that took its place was seen to end.
    pub tries: u8,
    /// Bytes of `link` that count.
    pub link_len: u8,
    /// Zero.
    pub pad: u16,
    /// The link header of the client's ACK, without the EtherType of what follows.
    pub link: [u8; LINK_HEADER],
}

/// Ways of a [`FlowBucket`], a power of two.
pub const FLOW_WAYS: usize = 8;

/// A flow and its key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSlot {
    /// The connection.
    pub tuple: Tuple,
    /// Its state.
    pub flow: FlowEntry,
}

/// Value of the array `FLOWS`, see [`crate::flowtable`]. The programs see it as a
/// [`crate::tables::LiveBucket`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowBucket {
    /// For each way part of its key's hash, or [`crate::flowtable::FREE`].
    pub tags: [u32; FLOW_WAYS],
    /// The ways.
    pub slots: [FlowSlot; FLOW_WAYS],
}

/// What the daemon is asked to do for a flow. Value of the queue `ERRANDS`, filled by
/// `synguard_sweep`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// The connection.
    pub tuple: Tuple,
    /// Its flow, as it was.
    pub flow: FlowEntry,
    /// `ERRAND_*`.
    pub what: u32,
    /// Zero.
    pub pad: u32,
}

/// Show `synguard_in` the client's ACK again, so that its SYN is passed once more.
pub const ERRAND_RETRY: u32 = 1;
/// Refuse the connection in the server's name, which keeps silent.
pub const ERRAND_REFUSE: u32 = 2;
/// Room in `ERRANDS`.
pub const ERRAND_SLOTS: u32 = 4096;

/// Value of the array `SWEEP`, one entry: what `synguard_sweep` found and did. Written by it, read by
/// the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Flows that the last sweep left and that need the programs: pending or spliced, and not over.
    pub left: u64,
    /// Flows by state (`FLOW_*`) that the last sweep left.
    pub by_state: [u64; FLOW_STATES],
    /// Flows that ended, in the last sweep's count: with `CLOSING_*` bits that mean they are over.
    pub closing: u64,
    /// Flows removed for their age since the programs were loaded.
    pub removed: u64,
    /// Errands there was no room for since then.
    pub errands_lost: u64,
}

/// Value of the per-CPU array `FLOW_COUNTS`, one entry. Written by the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Flows entered under a tuple that had none.
    pub created: u64,
    /// Flows that made room for another.
    pub evicted: u64,
    /// Sources entered in `VERIFIED` that were not in it.
    pub verified: u64,
}

/// Value of the LRU hash `VERIFIED`, key [`Address`]: a source that answered a cookie with RST.
/// Written by `synguard_in`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedSource {
    /// [`Clock::tick`] of the RST.
    pub since: u32,
    /// Zero.
    pub pad: u32,
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
    pub service: u16,
    /// 1 once the server's SYN-ACK was seen.
    pub confirmed: u8,
    /// Bytes of `link` that count.
    pub link_len: u8,
    /// The link header of the SYN, without the EtherType of what follows, in words whose bytes in memory
    /// are those on the wire.
    pub link: [u32; LINK_HEADER / 4],
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

/// Bytes of [`Ledger::name`].
pub const LEDGER_NAME: usize = 64;
/// Counters of a [`Ledger`].
pub const LEDGER_COUNTS: usize = 8;

/// Value of `LEDGER`: what the daemon must still know when it starts again. Written and read by the
/// daemon alone, which gives the counters their meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Name of the service, zeros behind it; all zero where the number is free.
    pub name: [u8; LEDGER_NAME],
    /// What the daemon counted.
    pub counts: [u64; LEDGER_COUNTS],
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
    /// Array of one: [`super::Moment`].
    pub const MOMENT: &str = "MOMENT";
    /// Array of one: [`super::Runtime`].
    pub const RUNTIME: &str = "RUNTIME";
    /// Hash: [`super::Tuple`] → [`super::HalfOpen`].
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// Array: bucket → [`super::AdmissionBucket`].
    pub const ADMISSIONS: &str = "ADMISSIONS";
    /// Array: bucket → [`super::FlowBucket`].
    pub const FLOWS: &str = "FLOWS";
    /// Per-CPU array of one: [`super::FlowCounts`].
    pub const FLOW_COUNTS: &str = "FLOW_COUNTS";
    /// LRU hash: [`super::Address`] → [`super::VerifiedSource`].
    pub const VERIFIED: &str = "VERIFIED";
    /// Queue: [`super::Errand`].
    pub const ERRANDS: &str = "ERRANDS";
    /// Array of one: [`super::Sweep`].
    pub const SWEEP: &str = "SWEEP";
    /// Array, memory-mapped: service number → [`super::Ledger`].
    pub const LEDGER: &str = "LEDGER";
    /// Per-CPU array of one: [`crate::options::Scanner`].
    pub const SCANNER: &str = "SCANNER";
    /// Per-CPU array of one: [`crate::tables::Parked`].
    pub const PARKED: &str = "PARKED";
    /// Per-CPU array: hash of an address → [`super::Found`].
    pub const FOUND: &str = "FOUND";

    /// LPM trie: [`super::Address`] → [`super::SourceEntry`].
    pub const SOURCES: &str = "SOURCES";
    /// Array: hash of a source → a word of [`crate::sources`].
    pub const BUDGETS: &str = "BUDGETS";
    /// Array, memory-mapped: hash of a tuple → [`super::Answered`].
    pub const SYN_CACHE: &str = "SYN_CACHE";
    /// Per-CPU array of one: the tick, and SYNs remembered in it.
    pub const SYN_CACHE_USED: &str = "SYN_CACHE_USED";

    /// Every map.
    pub const ALL: [&str; 25] = [
        ADDRESSES,
        PREFIXES,
        PORTS,
        SERVICES,
        STATES,
        STATS,
        KEYS,
        CLOCK,
        MOMENT,
        RUNTIME,
        HALF_OPEN,
        ADMISSIONS,
        FLOWS,
        FLOW_COUNTS,
        VERIFIED,
        ERRANDS,
        SWEEP,
        LEDGER,
        SCANNER,
        PARKED,
        FOUND,
        SOURCES,
        BUDGETS,
        SYN_CACHE,
        SYN_CACHE_USED,
    ];
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
    ServiceConfig = 20: high 0, offers 4, window 8, mode 10, admission 11, rcv_wscale 12, ttl 13,
        learns 14, pad 15, mss 16, pad2 18;
    ServiceState = 56: half_open 0, state 8, guarded_count 12, guarded_at 16, grace_until 24,
        profile 32, withheld 40, withheld_at 44, probed_at 48, pad 52;
    ServiceStats = 2176: reasons 0, observed 1024, rtt 2048, rtt_sum_ms 2160, syns 2168;
    EpochKey = 24: epoch 0, k0 8, k1 16;
    Clock = 24: wall_offset 0, tick 8, jiffy_ns 12, jiffy_offset 16;
    Moment = 16: jiffies 0, monotonic 8;
    Runtime = 72: abi_version 0, draining 4, no_metadata 8, has_prefixes 12, seed 16, forwards 24,
        flow_buckets 28, settled_at 32, verified_ticks 36, flow_idle_ticks 40, generation 44, zero 48,
        has_sources 52, syn_budget 56, answer_budget 60, syn_cache 64, pad 68;
    Answered = 88: tuple 0, state 40, since 44, client_isn 48, cookie 52, ts_val 56, mss 60, service 62,
        options 64, window_scale 65, tries 66, link_len 67, link 68;
    SourceEntry = 8: list 0, until 4;
    Found = 32: address 0, entry 16, generation 24, protected 28;
    FlowEntry = 72: delta 0, ts_delta 4, cookie 8, client_isn 12, server_next 16, server_ack 20,
        client_tsval 24, seen_at 28, sent_at 32, window 36, mss 38, service 40, state 42,
        closing 43, options 44, client_scale 45, promised_scale 46, server_scale 47, tries 48,
        link_len 49, pad 50, link 52;
    FlowSlot = 112: tuple 0, flow 40;
    FlowBucket = 928: tags 0, slots 32;
    Errand = 120: tuple 0, flow 40, what 112, pad 116;
    Sweep = 64: left 0, by_state 8, closing 40, removed 48, errands_lost 56;
    Ledger = 128: name 0, counts 64;
    FlowCounts = 24: created 0, evicted 8, verified 16;
    VerifiedSource = 8: since 0, pad 4;
    Tuple = 40: client 0, server 16, client_port 32, server_port 34, pad 36;
    HalfOpen = 40: since 0, client_isn 8, server_isn 12, service 16, confirmed 18, link_len 19, link 20;
    AdmissionBucket = 32: ways 0;
}
