//! The kernel's tables for the decisions in `synguard-common`: maps, clocks and the socket lookup.

use core::cell::Cell;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple, xdp_md},
    helpers::{
        bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_sk_release, bpf_skc_lookup_tcp,
        bpf_skc_to_tcp_sock,
    },
    maps::lpm_trie::Key,
};
use synguard_common::{
    abi::{
        Address, AddressEntry, AdmissionBucket, EpochKey, FOUND_SLOTS, Found, HalfOpen, PortKey,
        Runtime, STATE_CALM, STATE_GUARDED, SYN_CACHE_PER_TICK, ServiceConfig, ServiceState,
        SourceEntry, TICKS_PER_SECOND, Tuple, VerifiedSource,
    },
    admit::{Admission, RequestAttributes},
    clock::Now,
    flow::{Flow, Net},
    flowtable,
    profile::Profile,
    syncache,
    tables::{Bucket, Inserted, LiveBucket, Parked, Socket, State, Tables},
    wire::ipv4,
};

use crate::{
    atomic, count, cursor, kfunc,
    maps::{
        ADDRESSES, ADMISSIONS, BUDGETS, CLOCK, FLOW_COUNTS, FLOWS, FOUND, HALF_OPEN, KEYS, MOMENT,
        PARKED, PORTS, PREFIXES, RUNTIME, SERVICES, SOURCES, STATES, SYN_CACHE, SYN_CACHE_USED,
        VERIFIED,
    },
};

/// `BPF_NOEXIST`: insert only what is not there.
const NOEXIST: u64 = 1;
/// `EEXIST`, as helpers return it.
const EEXIST: i32 = -17;
/// `BPF_F_CURRENT_NETNS`: the network namespace of the device, or of the skb.
const CURRENT_NETNS: u64 = u64::MAX;

/// TCP states as `struct bpf_sock` names them (`include/net/tcp_states.h`).
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// The kernel, seen from a program with context `C`.
pub struct Kernel<C> {
    ctx: *mut C,
    generic: bool,
}

impl<C> Clone for Kernel<C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Kernel<C> {}

impl Kernel<xdp_md> {
    /// From an XDP program.
    #[inline(always)]
    pub fn of_xdp(ctx: *mut xdp_md) -> Self {
        Self {
            ctx,
            generic: false,
        }
    }
}

impl Kernel<__sk_buff> {
    /// From a TC program.
    #[inline(always)]
    pub fn of_skb(ctx: *mut __sk_buff) -> Self {
        Self {
            ctx,
            generic: false,
        }
    }

    /// From a program that looks at no packet.
    #[inline(always)]
    pub fn of_nothing() -> Self {
        Self {
            ctx: core::ptr::null_mut(),
            generic: false,
        }
    }

    /// From a TC program on an interface whose XDP program runs in generic mode.
    #[inline(always)]
    pub fn of_skb_behind_generic(ctx: *mut __sk_buff) -> Self {
        Self { ctx, generic: true }
    }
}

/// A service's state in its map.
#[derive(Clone, Copy)]
pub struct StateRef(*mut ServiceState);

impl State for StateRef {
    #[inline(always)]
    fn state(self) -> u32 {
        // SAFETY: a live map value; other CPUs and the daemon write it, hence volatile.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    #[inline(always)]
    fn half_open(self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).half_open).read_volatile() }
    }

    #[inline(always)]
    fn grace_until(self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).grace_until).read_volatile() }
    }

    #[inline(always)]
    fn half_open_add(self) -> u64 {
        // SAFETY: a live map value, aligned as the map's values are.
        unsafe { atomic::fetch_add(&raw mut (*self.0).half_open, 1).wrapping_add(1) }
    }

    #[inline(always)]
    fn half_open_sub(self) {
        // SAFETY: as above.
        unsafe { atomic::fetch_add(&raw mut (*self.0).half_open, u64::MAX) };
    }

    #[inline(always)]
    fn turn_guarded(self, now: u64) {
        // SAFETY: as above. Only the CPU whose exchange succeeds counts.
        unsafe {
            if atomic::compare_exchange(&raw mut (*self.0).state, STATE_CALM, STATE_GUARDED) {
                (&raw mut (*self.0).guarded_at).write_volatile(now);
                let count = &raw mut (*self.0).guarded_count;
                count.write_volatile(count.read_volatile().wrapping_add(1));
            }
        }
    }

    #[inline(always)]
    fn profile(self) -> Profile {
        // SAFETY: as above.
        Profile(unsafe { (&raw const (*self.0).profile).read_volatile() })
    }

    #[inline(always)]
    fn set_profile(self, profile: Profile) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).profile).write_volatile(profile.0) };
    }

    #[inline(always)]
    fn withheld(self) -> (u32, u32) {
        // SAFETY: as above.
        unsafe {
            (
                (&raw const (*self.0).withheld).read_volatile(),
                (&raw const (*self.0).withheld_at).read_volatile(),
            )
        }
    }

    #[inline(always)]
    fn withhold(self, options: u32, tick: u32) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).withheld_at).write_volatile(tick);
            (&raw mut (*self.0).withheld).write_volatile(options);
        }
    }

    #[inline(always)]
    fn claim_probe(self, tick: u32) -> bool {
        // SAFETY: as above. Only one CPU's exchange succeeds.
        unsafe {
            let at = (&raw const (*self.0).probed_at).read_volatile();
            tick.wrapping_sub(at) >= TICKS_PER_SECOND
                && atomic::compare_exchange(&raw mut (*self.0).probed_at, at, tick)
        }
    }
}

/// A bucket in its map.
#[derive(Clone, Copy)]
pub struct BucketRef(*mut AdmissionBucket);

impl Bucket for BucketRef {
    #[inline(always)]
    fn get(self, way: usize) -> u64 {
        // SAFETY: a live map value; callers stay below ADMISSION_WAYS.
        unsafe {
            (&raw const (*self.0).ways)
                .cast::<u64>()
                .add(way)
                .read_volatile()
        }
    }

    #[inline(always)]
    fn set(self, way: usize, value: u64) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).ways)
                .cast::<u64>()
                .add(way)
                .write_volatile(value)
        };
    }
}

/// `bpf_skc_lookup_tcp` for a flow.
#[inline(always)]
fn lookup<C, N: Net>(ctx: *mut C, flow: &Flow<N>) -> *mut bpf_sock {
    if N::HEADER == ipv4::HEADER {
        lookup_v4(ctx, flow)
    } else {
        lookup_v6(ctx, flow)
    }
}

/// The IPv4 half of `struct bpf_sock_tuple`, in network order.
#[repr(C, align(8))]
struct Tuple4 {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    destination_port: u16,
}

/// The IPv6 half.
#[repr(C, align(8))]
struct Tuple6 {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: u16,
    destination_port: u16,
}

#[inline(always)]
fn lookup_v4<C, N: Net>(ctx: *mut C, flow: &Flow<N>) -> *mut bpf_sock {
    let [.., a, b, c, d] = flow.net.client().0;
    let [.., e, f, g, h] = flow.net.server().0;
    let mut tuple = Tuple4 {
        source: [a, b, c, d],
        destination: [e, f, g, h],
        source_port: flow.client_port.to_be(),
        destination_port: flow.server_port.to_be(),
    };
    // SAFETY: `ctx` is the program's context, and the tuple has the twelve bytes announced.
    unsafe {
        bpf_skc_lookup_tcp(
            ctx.cast(),
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
            12,
            CURRENT_NETNS,
            0,
        )
    }
}

/// A function of its own, for the sake of the stack.
#[inline(never)]
fn lookup_v6<C, N: Net>(ctx: *mut C, flow: &Flow<N>) -> *mut bpf_sock {
    let mut tuple = Tuple6 {
        source: flow.net.client().0,
        destination: flow.net.server().0,
        source_port: flow.client_port.to_be(),
        destination_port: flow.server_port.to_be(),
    };
    // SAFETY: `ctx` is the program's context, and the tuple has the 36 bytes announced.
    unsafe {
        bpf_skc_lookup_tcp(
            ctx.cast(),
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
            36,
            CURRENT_NETNS,
            0,
        )
    }
}

/// The longest prefix that covers an address. A function of its own, for the sake of the stack.
#[inline(never)]
fn prefix(address: &Address) -> Option<&'static AddressEntry> {
    // The key proper starts at four bytes, so that the address in it is aligned to eight.
    #[repr(C, align(8))]
    struct Aligned(u32, Key<Address>);
    let key = Aligned(0, Key::new(128, *address));
    PREFIXES.get(&key.1)
}

/// The same in the lists of sources.
#[inline(never)]
fn source_prefix(address: &Address) -> Option<&'static SourceEntry> {
    #[repr(C, align(8))]
    struct Aligned(u32, Key<Address>);
    let key = Aligned(0, Key::new(128, *address));
    SOURCES.get(&key.1)
}

/// Writes down both coarse clocks.
#[inline(always)]
pub fn moment() {
    if let Some(moment) = MOMENT.get_ptr_mut(0) {
        // SAFETY: a live map value; helpers without arguments.
        unsafe {
            (*moment).jiffies = bpf_jiffies64();
            (*moment).monotonic = bpf_ktime_get_coarse_ns();
        }
    }
}

#[inline(always)]
fn runtime() -> Option<&'static Runtime> {
    RUNTIME.get(0)
}

/// Where in `FOUND` an address lies: keyed, so that nobody outside can make two of them trade
/// places for ever.
#[inline(always)]
fn slot(address: &Address, seed: u64) -> u32 {
    let [high, low] = words(address);
    let hash = (high ^ low.rotate_left(17) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 56) as u32 & (FOUND_SLOTS - 1)
}

#[inline(always)]
fn words(address: &Address) -> [u64; 2] {
    let words = (&raw const address.0).cast::<u64>();
    // SAFETY: sixteen bytes, aligned to eight.
    unsafe { [words.read(), words.add(1).read()] }
}

/// Asks the tables, and keeps what they say. A function of its own, for the sake of the stack and
/// because it is seldom needed.
#[inline(never)]
fn look_up(found: *mut Found, address: &Address) {
    let Some(runtime) = runtime() else {
        return;
    };
    // Before the look: what changes from here on makes it outdated.
    let generation = runtime.generation;
    // SAFETY: the daemon replaces values, it never frees one in use (RCU).
    let entry = match unsafe { ADDRESSES.get(address) } {
        Some(entry) => Some(entry),
        None if runtime.has_prefixes == 0 => None,
        None => prefix(address),
    };
    let nothing = AddressEntry {
        ports_id: 0,
        service: 0,
        mtu: 0,
    };
    // SAFETY: this CPU's value, as the caller has it.
    unsafe {
        (*found).address = *address;
        (*found).entry = *entry.unwrap_or(&nothing);
        (*found).protected = entry.is_some() as u32;
        (*found).generation = generation;
    }
}

impl<C> Tables for Kernel<C> {
    type State<'a>
        = StateRef
    where
        C: 'a;
    type Bucket<'a>
        = BucketRef
    where
        C: 'a;

    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let runtime = runtime()?;
        let found = FOUND.get_ptr_mut(slot(address, runtime.seed))?;
        // SAFETY: this CPU's value, plain words.
        unsafe {
            if (*found).generation != runtime.generation
                || words(&(*found).address) != words(address)
            {
                look_up(found, address);
            }
            ((*found).protected != 0).then_some((*found).entry)
        }
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<u16> {
        // SAFETY: as above.
        unsafe { PORTS.get(key) }.map(|entry| entry.service)
    }

    #[inline(always)]
    fn service(&self, number: u16) -> Option<&ServiceConfig> {
        SERVICES.get(number as u32)
    }

    #[inline(always)]
    fn state(&self, number: u16) -> Option<StateRef> {
        STATES.get_ptr_mut(number as u32).map(StateRef)
    }

    #[inline(always)]
    fn key_slot(&self, slot: u32) -> Option<&EpochKey> {
        KEYS.get(slot)
    }

    #[inline(always)]
    fn now(&self) -> Now {
        let Some(clock) = CLOCK.get(0) else {
            return Now::new(0, 0);
        };
        // SAFETY: no arguments, no effects.
        let monotonic = unsafe {
            match clock.jiffy_ns {
                0 => bpf_ktime_get_coarse_ns(),
                jiffy => bpf_jiffies64()
                    .wrapping_mul(jiffy as u64)
                    .wrapping_add(clock.jiffy_offset),
            }
        };
        Now::new(monotonic, clock.wall_offset)
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<BucketRef> {
        ADMISSIONS.get_ptr_mut(index).map(BucketRef)
    }

    #[inline(always)]
    fn zero(&self) -> usize {
        // SAFETY: a live map value; volatile, or LLVM would read it once and share what it knows.
        RUNTIME.get(0).map_or(0, |runtime| unsafe {
            (&raw const runtime.zero).read_volatile()
        }) as usize
    }

    #[inline(always)]
    fn hidden(&self, number: u64) -> u64 {
        cursor::hidden(number as usize) as u64
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        RUNTIME.get(0).map_or(0, |runtime| runtime.seed)
    }

    #[inline(always)]
    fn half_open(&self, tuple: &Tuple) -> Option<HalfOpen> {
        // SAFETY: values are reused by the map while we look; a torn copy at worst fails to match.
        unsafe { HALF_OPEN.get(tuple) }.copied()
    }

    #[inline(always)]
    fn half_open_insert(&self, tuple: &Tuple, entry: &HalfOpen) -> Inserted {
        match HALF_OPEN.insert(tuple, entry, NOEXIST) {
            Ok(()) => Inserted::New,
            Err(EEXIST) => Inserted::Exists,
            Err(_) => Inserted::Full,
        }
    }

    #[inline(always)]
    fn half_open_remove(&self, tuple: &Tuple) -> bool {
        HALF_OPEN.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn half_open_confirm(&self, tuple: &Tuple, client_isn: u32, server_isn: u32) -> bool {
        let Some(entry) = HALF_OPEN.get_ptr_mut(tuple) else {
            return false;
        };
        // SAFETY: a live map value. The flag goes last, so that a reader that sees it sees the
        // numbers too.
        unsafe {
            (&raw mut (*entry).client_isn).write_volatile(client_isn);
            (&raw mut (*entry).server_isn).write_volatile(server_isn);
            (&raw mut (*entry).confirmed).write_volatile(1);
        }
        true
    }

    #[inline(always)]
    fn flow_bucket(&self, fraction: u32) -> Option<&LiveBucket> {
        let index = flowtable::index(fraction, runtime()?.flow_buckets);
        // SAFETY: a live map value of the same layout, whose words are read and written whole.
        FLOWS
            .get_ptr(index)
            .map(|bucket| unsafe { &*bucket.cast() })
    }

    #[inline(always)]
    fn exchange(&self, word: &Cell<u32>, old: u32, new: u32) -> bool {
        // SAFETY: a word of a live map value, aligned as it is there.
        unsafe { atomic::compare_exchange(word.as_ptr(), old, new) }
    }

    #[inline(always)]
    fn count_flow(&self, evicted: bool) {
        if let Some(counts) = FLOW_COUNTS.get_ptr_mut(0) {
            // SAFETY: this CPU's value.
            unsafe {
                (*counts).created += 1;
                (*counts).evicted += evicted as u64;
            }
        }
    }

    #[inline(always)]
    fn parked(&self) -> Option<&Parked> {
        // SAFETY: this CPU's value, of plain words.
        PARKED.get_ptr(0).map(|parked| unsafe { &*parked.cast() })
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        CLOCK.get(0).map_or(0, |clock| clock.tick)
    }

    #[inline(always)]
    fn draining(&self) -> bool {
        runtime().is_some_and(|runtime| runtime.draining != 0)
    }

    #[inline(always)]
    fn forwards(&self) -> bool {
        runtime().is_some_and(|runtime| runtime.forwards != 0)
    }

    #[inline(always)]
    fn generic(&self) -> bool {
        self.generic
    }

    #[inline(always)]
    fn settled_at(&self) -> u32 {
        runtime().map_or(0, |runtime| runtime.settled_at)
    }

    #[inline(always)]
    fn is_verified(&self, source: &Address) -> bool {
        let (Some(entry), Some(runtime)) = (VERIFIED.get_ptr(source), runtime()) else {
            return false;
        };
        // SAFETY: a live map value.
        let since = unsafe { (&raw const (*entry).since).read_volatile() };
        self.tick().wrapping_sub(since) < runtime.verified_ticks
    }

    #[inline(always)]
    fn verify(&self, source: &Address) {
        let entry = VerifiedSource {
            since: self.tick(),
            pad: 0,
        };
        let new = VERIFIED.get_ptr(source).is_none();
        if VERIFIED.insert(source, entry, 0).is_ok()
            && new
            && let Some(counts) = FLOW_COUNTS.get_ptr_mut(0)
        {
            // SAFETY: this CPU's value.
            unsafe { (*counts).verified += 1 };
        }
    }

    #[inline(always)]
    fn has_sources(&self) -> bool {
        runtime().is_some_and(|runtime| runtime.has_sources != 0)
    }

    #[inline(always)]
    fn source(&self, source: &Address) -> Option<SourceEntry> {
        source_prefix(source).copied()
    }

    #[inline(always)]
    fn syn_budget(&self) -> u32 {
        runtime().map_or(0, |runtime| runtime.syn_budget)
    }

    #[inline(always)]
    fn answer_budget(&self) -> u32 {
        runtime().map_or(0, |runtime| runtime.answer_budget)
    }

    #[inline(always)]
    fn budget(&self, slot: u32) -> Option<&Cell<u64>> {
        // SAFETY: a live map value, read and written whole.
        BUDGETS.get_ptr(slot).map(|slot| unsafe { &*slot.cast() })
    }

    #[inline(always)]
    fn syn_cache(&self) -> bool {
        runtime().is_some_and(|runtime| runtime.syn_cache != 0)
    }

    #[inline(always)]
    fn may_remember(&self) -> bool {
        let Some(used) = SYN_CACHE_USED.get_ptr_mut(0) else {
            return false;
        };
        let tick = (self.tick() as u64) << 32;
        // SAFETY: this CPU's value.
        unsafe {
            if *used & !0xffff_ffff != tick {
                *used = tick | 1;
                return true;
            }
            if *used as u32 >= SYN_CACHE_PER_TICK {
                return false;
            }
            *used += 1;
        }
        true
    }

    #[inline(always)]
    fn answered(&self, slot: u32) -> Option<&syncache::Live> {
        // SAFETY: a live map value of the same layout, whose words are read and written whole.
        SYN_CACHE.get_ptr(slot).map(|live| unsafe { &*live.cast() })
    }

    #[inline(always)]
    fn socket<N: Net>(&self, flow: &Flow<N>) -> Socket {
        let sock = lookup(self.ctx, flow);
        if sock.is_null() {
            return Socket::None;
        }
        // SAFETY: the helper returned a socket and a reference to it, which is given back.
        let state = unsafe {
            let state = (&raw const (*sock).state).read_volatile();
            bpf_sk_release(sock.cast());
            state
        };
        match state {
            TCP_LISTEN => Socket::Listener,
            TCP_NEW_SYN_RECV => Socket::Request,
            TCP_TIME_WAIT => Socket::TimeWait,
            _ => Socket::Connection,
        }
    }
}

impl Admission for Kernel<__sk_buff> {
    #[inline(always)]
    fn assign<N: Net>(&self, flow: &Flow<N>, attributes: &mut RequestAttributes) -> bool {
        let sock = lookup(self.ctx, flow);
        if sock.is_null() {
            return false;
        }
        // SAFETY: the helper returned a socket and a reference to it, which is given back on every
        // way out.
        unsafe {
            let mut assigned = false;
            if (&raw const (*sock).state).read_volatile() == TCP_LISTEN {
                let tcp = bpf_skc_to_tcp_sock(sock.cast());
                if !tcp.is_null() {
                    assigned = kfunc::sk_assign_tcp_reqsk(self.ctx, tcp.cast(), attributes) == 0;
                }
            }
            bpf_sk_release(sock.cast());
            assigned
        }
    }

    #[inline(always)]
    fn round_trip(&self, service: u16, ms: u32) {
        count::round_trip(service, ms);
    }
}
