//! The kernel's tables, as the decisions see them. The eBPF side implements this over maps and
//! helpers, host tests over plain collections.

use core::cell::Cell;

use crate::{
    abi::{
        Address, AddressEntry, EpochKey, FLOW_WAYS, FlowBucket, FlowEntry, FlowSlot, HalfOpen,
        KEY_SLOTS, LINK_HEADER, MODE_OBSERVE, PortKey, ServiceConfig, SourceEntry, Tuple,
    },
    clock::Now,
    flow::{Flow, Net},
    profile::Profile,
    sources, syncache,
    verdict::Reason,
};

/// What the kernel's socket table holds for a tuple (`bpf_skc_lookup_tcp`: connections first, then
/// listeners).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing: no connection and no listener.
    None,
    /// A socket in LISTEN that takes connections for this address and port.
    Listener,
    /// A half-open connection: a request socket in SYN_RECV (`TCP_NEW_SYN_RECV`).
    Request,
    /// A connection in TIME_WAIT.
    TimeWait,
    /// A connection in any other state.
    Connection,
}

/// What became of an insertion into the half-open table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is there now and was not before.
    New,
    /// It was there already.
    Exists,
    /// There is no room.
    Full,
}

/// The live state of one service, see [`crate::abi::ServiceState`].
pub trait State: Copy {
    /// `STATE_*`.
    fn state(self) -> u32;
    /// Connections in the half-open table.
    fn half_open(self) -> u64;
    /// Until when cookies are honoured though the service is calm, monotonic ns.
    fn grace_until(self) -> u64;
    /// Adds one half-open connection, atomically; the count it brings about.
    fn half_open_add(self) -> u64;
    /// Takes one away, atomically.
    fn half_open_sub(self);
    /// Turns the service guarded at `now` (monotonic ns); only one of several CPUs counts it.
    fn turn_guarded(self, now: u64);
    /// What the service's servers were seen to offer.
    fn profile(self) -> Profile;
    /// Replaces that.
    fn set_profile(self, profile: Profile);
    /// `OFFER_*` bits withheld, and the tick at which that was decided.
    fn withheld(self) -> (u32, u32);
    /// Replaces these.
    fn withhold(self, options: u32, tick: u32);
    /// Claims this tick's second for a probing SYN: true for one caller in each second.
    fn claim_probe(self, tick: u32) -> bool;
}

/// A [`FlowEntry`] in its map, where other CPUs work on it too. Every field is a word of its own,
/// read and written by one instruction; nothing relies on two of them agreeing but what one
/// direction of a connection, which is one CPU's, wrote itself. (The eBPF target has no atomics of
/// these widths.)
#[repr(C)]
#[derive(Debug, Default)]
pub struct LiveFlow {
    /// [`FlowEntry::delta`].
    pub delta: Cell<u32>,
    /// [`FlowEntry::ts_delta`].
    pub ts_delta: Cell<u32>,
    /// [`FlowEntry::cookie`].
    pub cookie: Cell<u32>,
    /// [`FlowEntry::client_isn`].
    pub client_isn: Cell<u32>,
    /// [`FlowEntry::server_next`].
    pub server_next: Cell<u32>,
    /// [`FlowEntry::server_ack`].
    pub server_ack: Cell<u32>,
    /// [`FlowEntry::client_tsval`].
    pub client_tsval: Cell<u32>,
    /// [`FlowEntry::seen_at`].
    pub seen_at: Cell<u32>,
    /// [`FlowEntry::sent_at`].
    pub sent_at: Cell<u32>,
    /// [`FlowEntry::window`].
    pub window: Cell<u16>,
    /// [`FlowEntry::mss`].
    pub mss: Cell<u16>,
    /// [`FlowEntry::service`].
    pub service: Cell<u16>,
    /// [`FlowEntry::state`].
    pub state: Cell<u8>,
    /// [`FlowEntry::closing`].
    pub closing: Cell<u8>,
    /// [`FlowEntry::options`].
    pub options: Cell<u8>,
    /// [`FlowEntry::client_scale`].
    pub client_scale: Cell<u8>,
    /// [`FlowEntry::promised_scale`].
    pub promised_scale: Cell<u8>,
    /// [`FlowEntry::server_scale`].
    pub server_scale: Cell<u8>,
    /// [`FlowEntry::tries`].
    pub tries: Cell<u8>,
    /// [`FlowEntry::link_len`].
    pub link_len: Cell<u8>,
    /// [`FlowEntry::pad`].
    pub pad: Cell<u16>,
    /// [`FlowEntry::link`]: words whose bytes in memory are those on the wire.
    pub link: [Cell<u32>; LINK_HEADER / 4],
}

/// A [`FlowSlot`] in its map.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LiveSlot {
    /// [`FlowSlot::tuple`], in words.
    pub key: [Cell<u64>; size_of::<Tuple>() / 8],
    /// [`FlowSlot::flow`].
    pub flow: LiveFlow,
}

/// A [`FlowBucket`] in its map.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LiveBucket {
    /// [`FlowBucket::tags`].
    pub tags: [Cell<u32>; FLOW_WAYS],
    /// [`FlowBucket::slots`].
    pub slots: [LiveSlot; FLOW_WAYS],
}

const _: () = {
    assert!(size_of::<LiveSlot>() == size_of::<FlowSlot>());
    assert!(core::mem::offset_of!(LiveSlot, flow) == core::mem::offset_of!(FlowSlot, flow));
    assert!(size_of::<LiveBucket>() == size_of::<FlowBucket>());
    assert!(core::mem::offset_of!(LiveBucket, slots) == core::mem::offset_of!(FlowBucket, slots));
};

/// A segment on its way from one function to the next, of which each has the stack to itself: those
/// of a chain of calls add up, to 512 bytes at most.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Parked {
    /// Addresses, as [`Net::park`] puts them.
    pub addresses: [Cell<u64>; 4],
    /// The client's port.
    pub client_port: Cell<u16>,
    /// The server's port.
    pub server_port: Cell<u16>,
    /// The service.
    pub service: Cell<u16>,
    /// Length of an IP header, by which the families differ.
    pub family: Cell<u16>,
    /// Where the IP header starts.
    pub ip_at: Cell<u32>,
    /// Where the TCP header starts.
    pub tcp_at: Cell<u32>,
    /// Where the packet ends.
    pub end: Cell<u32>,
    /// 1 where the segment is a window probe, whose sequence number is one less than the ACK's would be;
    /// else 0.
    pub probe: Cell<u32>,
}

macro_rules! same_layout {
    ($($field:ident),*) => {
        const _: () = {
            assert!(size_of::<LiveFlow>() == size_of::<FlowEntry>());
            $(assert!(
                core::mem::offset_of!(LiveFlow, $field) == core::mem::offset_of!(FlowEntry, $field)
            );)*
        };
    };
}

same_layout!(
    delta,
    ts_delta,
    cookie,
    client_isn,
    server_next,
    server_ack,
    client_tsval,
    seen_at,
    sent_at,
    window,
    mss,
    service,
    state,
    closing,
    options,
    client_scale,
    promised_scale,
    server_scale,
    tries,
    link_len,
    pad,
    link
);

/// One bucket of [`crate::abi::map::ADMISSIONS`].
pub trait Bucket: Copy {
    /// Entry `way`, below [`crate::abi::ADMISSION_WAYS`].
    fn get(self, way: usize) -> u64;
    /// Writes it.
    fn set(self, way: usize, value: u64);
}

/// All tables. Copied freely: on the kernel side it is no more than the program's context.
pub trait Tables: Copy {
    /// See [`State`].
    type State<'a>: State
    where
        Self: 'a;
    /// See [`Bucket`].
    type Bucket<'a>: Bucket
    where
        Self: 'a;

    /// `ADDRESSES`, then `PREFIXES` if there are any.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// `PORTS`.
    fn port(&self, key: &PortKey) -> Option<u16>;
    /// `SERVICES`.
    fn service(&self, number: u16) -> Option<&ServiceConfig>;
    /// `STATES`; number 0 stands for all services, see [`crate::abi::ServiceState`].
    fn state(&self, number: u16) -> Option<Self::State<'_>>;
    /// A slot of `KEYS`, whatever epoch its key belongs to.
    fn key_slot(&self, slot: u32) -> Option<&EpochKey>;
    /// Both clocks.
    fn now(&self) -> Now;
    /// A bucket of `ADMISSIONS`.
    fn bucket(&self, index: u32) -> Option<Self::Bucket<'_>>;
    /// Zero, which the verifier takes for any number. Adding it makes the verifier forget what it
    /// knows of a value, and ways through the program that differ in nothing else are walked once:
    /// without it, every combination of VLAN tags, extension headers and TCP options is walked to
    /// the end, half a million instructions of the million allowed.
    fn zero(&self) -> usize;
    /// The number itself, of which LLVM then knows nothing: it keeps arithmetic from becoming a branch,
    /// of which the verifier would follow both ways.
    fn hidden(&self, number: u64) -> u64;
    /// [`crate::abi::Runtime::seed`].
    fn seed(&self) -> u64;

    /// `HALF_OPEN`: an entry, copied.
    fn half_open(&self, tuple: &Tuple) -> Option<HalfOpen>;
    /// Inserts an entry unless there is one.
    fn half_open_insert(&self, tuple: &Tuple, entry: &HalfOpen) -> Inserted;
    /// Removes an entry; false where there was none.
    fn half_open_remove(&self, tuple: &Tuple) -> bool;
    /// Marks an entry as answered by the server with these initial sequence numbers.
    fn half_open_confirm(&self, tuple: &Tuple, client_isn: u32, server_isn: u32) -> bool;

    /// The bucket of `FLOWS` at this fraction of it, see [`crate::flowtable::index`].
    fn flow_bucket(&self, fraction: u32) -> Option<&LiveBucket>;
    /// Writes `new` to a word that is `old`, atomically; false where it is not.
    fn exchange(&self, word: &Cell<u32>, old: u32, new: u32) -> bool;
    /// Counts a new flow, and whether another made room for it
    /// ([`crate::abi::FlowCounts`]).
    fn count_flow(&self, evicted: bool);
    /// Room for one segment on each CPU.
    fn parked(&self) -> Option<&Parked>;
    /// [`crate::abi::Clock::tick`].
    fn tick(&self) -> u32;
    /// [`crate::abi::Runtime::draining`].
    fn draining(&self) -> bool;
    /// [`crate::abi::Runtime::forwards`].
    fn forwards(&self) -> bool;
    /// Whether XDP runs in generic mode on the interface, so that a packet it receives from us comes
    /// by it once more.
    fn generic(&self) -> bool;
    /// [`crate::abi::Runtime::settled_at`].
    fn settled_at(&self) -> u32;
    /// Whether a source is in `VERIFIED` and has been for no longer than
    /// [`crate::abi::Runtime::verified_ticks`].
    fn is_verified(&self, source: &Address) -> bool;
    /// Enters a source in `VERIFIED`, or renews it.
    fn verify(&self, source: &Address);

    /// [`crate::abi::Runtime::has_sources`].
    fn has_sources(&self) -> bool;
    /// `SOURCES`: what is said of the longest prefix that covers an address.
    fn source(&self, source: &Address) -> Option<SourceEntry>;
    /// [`crate::abi::Runtime::syn_budget`].
    fn syn_budget(&self) -> u32;
    /// [`crate::abi::Runtime::answer_budget`].
    fn answer_budget(&self) -> u32;
    /// A slot of `BUDGETS`, below [`crate::abi::BUDGET_SLOTS`].
    fn budget(&self, slot: u32) -> Option<&sources::Slot>;

    /// [`crate::abi::Runtime::syn_cache`].
    fn syn_cache(&self) -> bool;
    /// Whether one more SYN may be remembered now, on this CPU; it is counted.
    fn may_remember(&self) -> bool;
    /// A slot of `SYN_CACHE`, below [`crate::abi::SYN_CACHE_SLOTS`].
    fn answered(&self, slot: u32) -> Option<&syncache::Live>;

    /// The kernel's socket table.
    fn socket<N: Net>(&self, flow: &Flow<N>) -> Socket;
}

/// The key of `epoch`, if it is in place.
#[inline(always)]
pub fn key<T: Tables>(tables: &T, epoch: u64) -> Option<&EpochKey> {
    match tables.key_slot(epoch as u32 % KEY_SLOTS) {
        Some(key) if key.epoch == epoch => Some(key),
        _ => None,
    }
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The service it belongs to, or [`crate::abi::SERVICE_NONE`].
    pub service: u16,
    /// Why.
    pub reason: Reason,
    /// The service is in mode observe: the packet passes, and the reason is counted as what would
    /// have been.
    pub observe: bool,
    /// It is a SYN (without ACK) for a service.
    pub syn: bool,
}

impl Verdict {
    /// The verdict on a packet of a service.
    #[inline(always)]
    pub const fn of(config: &ServiceConfig, service: u16, reason: Reason, syn: bool) -> Self {
        Self {
            service,
            reason,
            // A cookie handed out before the mode was changed is honoured for real, and so is a
            // splice.
            observe: config.mode == MODE_OBSERVE && !reason.is_kept_in_observe(),
            syn,
        }
    }

    /// The same where the mode makes no difference: what was begun in earnest is seen through.
    #[inline(always)]
    pub const fn on(service: u16, reason: Reason) -> Self {
        Self {
            service,
            reason,
            observe: false,
            syn: false,
        }
    }

    /// The verdict on a packet of no service.
    #[inline(always)]
    pub const fn none(reason: Reason) -> Self {
        Self::on(crate::abi::SERVICE_NONE, reason)
    }
}
