//! The decisions of `synguard-common` over plain collections: the data plane without a kernel.
//!
//! [`HostTables`] holds what the maps, the clocks and the socket table hold on the kernel side, and
//! runs the same functions that the programs run. A test on the host needs nothing else; a test in
//! the kernel fills the maps from the same tables and holds the two against each other.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use synguard_common::{
    abi::{
        ADMISSION_BUCKETS, ADMISSION_LOCAL, ADMISSION_WAYS, ANSWERED_FREE, Address, AddressEntry,
        BUDGET_SLOTS, EpochKey, FlowCounts, FlowEntry, HalfOpen, KEY_SLOTS, MODE_ADAPTIVE, PortKey,
        STATE_CALM, STATE_GUARDED, SYN_CACHE_SLOTS, ServiceConfig, ServiceState, SourceEntry,
        TICKS_PER_SECOND, Tuple,
    },
    admit::{Admission, RequestAttributes, admit},
    clock::Now,
    egress::egress,
    flow::{Flow, Net},
    flowtable,
    ingress::ingress,
    options::{Options, Places},
    packet::{Frame, Leaving, Packet, PacketMut},
    profile::Profile,
    syncache,
    tables::{
        Bucket, Inserted, LiveBucket, LiveFlow, LiveSlot, Parked, Socket, State, Tables, Verdict,
    },
    wire::ipv6,
};

/// Numbers of services: slots of `SERVICES` and `STATES`, as the daemon sizes them.
pub const SERVICE_SLOTS: usize = 1024;

/// Flows there is room for, unless a test says otherwise.
const FLOW_ROOM: u32 = 4096;

/// What a slot of `SERVICES` holds that nobody wrote.
const EMPTY: ServiceConfig = ServiceConfig {
    high: 0,
    offers: 0,
    window: 0,
    mode: MODE_ADAPTIVE,
    admission: 0,
    rcv_wscale: 0,
    ttl: 0,
    learns: 0,
    pad: 0,
    mss: 0,
    pad2: 0,
};

/// A service as most tests want it: adaptive, admitted locally, everything offered.
pub const SERVICE: ServiceConfig = ServiceConfig {
    high: 1000,
    offers: 0b1111,
    window: 64240,
    mode: MODE_ADAPTIVE,
    admission: ADMISSION_LOCAL,
    rcv_wscale: 7,
    ttl: 64,
    learns: 0,
    pad: 0,
    mss: 0,
    pad2: 0,
};

/// What a trie has for the longest prefix that covers an address.
fn longest<V: Copy>(trie: &BTreeMap<(u32, [u8; 16]), V>, address: &Address) -> Option<V> {
    trie.iter()
        .rev()
        .find(|((bits, prefix), _)| covers(*bits, prefix, &address.0))
        .map(|(_, value)| *value)
}

/// The key of `(bits, address)` in `PREFIXES`.
pub type Prefix = (u32, Address);

/// Every table the decisions look at.
pub struct HostTables {
    addresses: HashMap<Address, AddressEntry>,
    prefixes: BTreeMap<(u32, [u8; 16]), AddressEntry>,
    ports: HashMap<PortKey, u16>,
    services: Vec<ServiceConfig>,
    states: Vec<Cell<ServiceState>>,
    keys: [EpochKey; KEY_SLOTS as usize],
    monotonic: Cell<u64>,
    wall_offset: Cell<u64>,
    admissions: Vec<[Cell<u64>; ADMISSION_WAYS]>,
    seed: u64,
    half_open: RefCell<HashMap<Tuple, HalfOpen>>,
    half_open_room: usize,
    /// IPv6 or not, because the kernel never finds one family's socket by the other's addresses.
    sockets: RefCell<HashMap<(bool, Tuple), Socket>>,
    listeners: HashSet<(bool, Address, u16)>,
    assigned: RefCell<Vec<RequestAttributes>>,
    round_trips: RefCell<Vec<(u16, u32)>>,
    flow_buckets: Vec<LiveBucket>,
    flows_created: Cell<u64>,
    flows_evicted: Cell<u64>,
    sources_verified: Cell<u64>,
    parked: Parked,
    verified: RefCell<HashMap<Address, u32>>,
    tick: Cell<u32>,
    draining: Cell<bool>,
    forwards: Cell<bool>,
    generic: Cell<bool>,
    settled_at: Cell<u32>,
    verified_ticks: Cell<u32>,
    sources: RefCell<BTreeMap<(u32, [u8; 16]), SourceEntry>>,
    syn_budget: Cell<u32>,
    answer_budget: Cell<u32>,
    /// Half a megabyte that few tests need.
    budgets: OnceCell<Vec<Cell<u64>>>,
    /// Where there is one.
    syn_cache: OnceCell<Vec<syncache::Live>>,
    may_remember: Cell<u32>,
}

impl Default for HostTables {
    fn default() -> Self {
        Self {
            addresses: HashMap::new(),
            prefixes: BTreeMap::new(),
            ports: HashMap::new(),
            services: vec![EMPTY; SERVICE_SLOTS],
            states: vec![Cell::default(); SERVICE_SLOTS],
            keys: [EpochKey::default(); KEY_SLOTS as usize],
            monotonic: Cell::new(0),
            wall_offset: Cell::new(0),
            admissions: (0..ADMISSION_BUCKETS).map(|_| Default::default()).collect(),
            seed: 0,
            half_open: RefCell::default(),
            half_open_room: usize::MAX,
            sockets: RefCell::default(),
            listeners: HashSet::new(),
            assigned: RefCell::default(),
            round_trips: RefCell::default(),
            flow_buckets: buckets(FLOW_ROOM),
            flows_created: Cell::new(0),
            flows_evicted: Cell::new(0),
            sources_verified: Cell::new(0),
            parked: Parked::default(),
            verified: RefCell::default(),
            tick: Cell::new(0),
            draining: Cell::new(false),
            forwards: Cell::new(false),
            generic: Cell::new(false),
            settled_at: Cell::new(0),
            verified_ticks: Cell::new(u32::MAX),
            sources: RefCell::default(),
            syn_budget: Cell::new(0),
            answer_budget: Cell::new(0),
            budgets: OnceCell::new(),
            syn_cache: OnceCell::new(),
            may_remember: Cell::new(0),
        }
    }
}

/// An address as the tables have it: an IPv4 one mapped.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address(ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => Address(ip.octets()),
    }
}

/// A connection as packets from the client name it.
pub fn tuple(client: SocketAddr, server: SocketAddr) -> Tuple {
    Tuple {
        client: address(client.ip()),
        server: address(server.ip()),
        client_port: client.port(),
        server_port: server.port(),
        pad: 0,
    }
}

// Builders: what the daemon writes.
impl HostTables {
    /// Gives a number to a service. Numbers from [`SERVICE_SLOTS`] on have no slot and are ignored.
    pub fn service(mut self, number: u16, config: ServiceConfig) -> Self {
        if let Some(slot) = self.services.get_mut(usize::from(number)) {
            *slot = config;
        }
        self
    }

    /// Starts a service guarded.
    pub fn guarded(self, number: u16) -> Self {
        self.turn_guarded(number, 0);
        self
    }

    /// Protects an address.
    pub fn address(mut self, ip: IpAddr, entry: AddressEntry) -> Self {
        self.addresses.insert(address(ip), entry);
        self
    }

    /// Protects a prefix; the length is the family's own.
    pub fn prefix(mut self, ip: IpAddr, bits: u8, entry: AddressEntry) -> Self {
        let bits = u32::from(bits) + if ip.is_ipv4() { 96 } else { 0 };
        self.prefixes.insert((bits, address(ip).0), entry);
        self
    }

    /// Gives a port of the address with this `ports_id` to another service, 0 to except it.
    pub fn port(mut self, ports_id: u32, port: u16, service: u16) -> Self {
        let key = PortKey {
            ports_id,
            port,
            pad: 0,
        };
        self.ports.insert(key, service);
        self
    }

    /// Puts the key of an epoch in place.
    pub fn key(mut self, key: EpochKey) -> Self {
        self.keys[key.epoch as usize % KEY_SLOTS as usize] = key;
        self
    }

    /// Room in the half-open table.
    pub fn half_open_room(self, half_open_room: usize) -> Self {
        Self {
            half_open_room,
            ..self
        }
    }

    /// Room in the flow table: for at least so many, and at least one bucket.
    pub fn flow_room(self, flows: u32) -> Self {
        Self {
            flow_buckets: buckets(flows),
            ..self
        }
    }

    /// The seed of `ADMISSIONS` and `FLOWS`; the flows there are move to where it puts them.
    pub fn seed(self, seed: u64) -> Self {
        let flows = self.flow_entries();
        let moved = Self {
            seed,
            flow_buckets: (self.flow_buckets.iter().map(|_| LiveBucket::default())).collect(),
            ..self
        };
        let (created, evicted) = (moved.flows_created.get(), moved.flows_evicted.get());
        for (key, entry) in flows {
            moved.enter_flow(key, &entry);
        }
        moved.flows_created.set(created);
        moved.flows_evicted.set(evicted);
        moved
    }

    /// Adds a listener.
    pub fn listener(mut self, at: SocketAddr) -> Self {
        self.listeners
            .insert((at.is_ipv6(), address(at.ip()), at.port()));
        self
    }
}

// What changes while packets come.
impl HostTables {
    /// Sets the monotonic clock, ns.
    pub fn set_monotonic(&self, ns: u64) {
        self.monotonic.set(ns);
    }

    /// The monotonic clock, ns.
    pub fn monotonic(&self) -> u64 {
        self.monotonic.get()
    }

    /// Sets the offset of wall-clock time, ns.
    pub fn set_wall_offset(&self, ns: u64) {
        self.wall_offset.set(ns);
    }

    /// The offset of wall-clock time, ns.
    pub fn wall_offset(&self) -> u64 {
        self.wall_offset.get()
    }

    /// Says what the socket table holds for a tuple.
    pub fn set_socket(&self, client: SocketAddr, server: SocketAddr, socket: Socket) {
        let key = (client.is_ipv6(), tuple(client, server));
        self.sockets.borrow_mut().insert(key, socket);
    }

    /// Turns a service guarded, as the daemon does; 0 stands for all.
    pub fn turn_guarded(&self, number: u16, now: u64) {
        if let Some(slot) = self.states.get(usize::from(number)) {
            slot.set(ServiceState {
                state: STATE_GUARDED,
                guarded_at: now,
                ..slot.get()
            });
        }
    }

    /// Turns a service calm, as the daemon does: cookies stay good until `grace_until`.
    pub fn turn_calm(&self, number: u16, grace_until: u64) {
        if let Some(slot) = self.states.get(usize::from(number)) {
            slot.set(ServiceState {
                state: STATE_CALM,
                grace_until,
                ..slot.get()
            });
        }
    }

    /// Enters a half-open connection, and counts it.
    pub fn enter_half_open(&self, key: Tuple, entry: HalfOpen) {
        if self.half_open.borrow_mut().insert(key, entry).is_none()
            && let Some(slot) = self.states.get(entry.service as usize)
        {
            StateRef(slot).half_open_add();
        }
    }

    /// Sets [`synguard_common::abi::Clock::tick`].
    pub fn set_tick(&self, tick: u32) {
        self.tick.set(tick);
    }

    /// Sets [`synguard_common::abi::Runtime::draining`].
    pub fn set_draining(&self, draining: bool) {
        self.draining.set(draining);
    }

    /// Sets [`synguard_common::abi::Runtime::forwards`], `generic` and `settled_at`.
    pub fn set_runtime(&self, forwards: bool, generic: bool, settled_at: u32) {
        self.forwards.set(forwards);
        self.generic.set(generic);
        self.settled_at.set(settled_at);
    }

    /// Sets [`synguard_common::abi::Runtime::verified_ticks`].
    pub fn set_verified_ticks(&self, ticks: u32) {
        self.verified_ticks.set(ticks);
    }

    /// Lists a prefix; the length is the family's own.
    pub fn list_source(&self, ip: IpAddr, bits: u8, entry: SourceEntry) {
        let bits = u32::from(bits) + if ip.is_ipv4() { 96 } else { 0 };
        self.sources
            .borrow_mut()
            .insert((bits, address(ip).0), entry);
    }

    /// `SOURCES`.
    pub fn sources(&self) -> Vec<(Prefix, SourceEntry)> {
        let sources = self.sources.borrow();
        let sources = sources.iter();
        sources
            .map(|((bits, bytes), entry)| ((*bits, Address(*bytes)), *entry))
            .collect()
    }

    /// Sets [`synguard_common::abi::Runtime::syn_budget`] and `answer_budget`.
    pub fn set_budgets(&self, syn: u32, answer: u32) {
        self.syn_budget.set(syn);
        self.answer_budget.set(answer);
    }

    /// Lets so many SYNs be remembered.
    pub fn remember(&self, syns: u32) {
        let new = || (0..SYN_CACHE_SLOTS).map(|_| Default::default()).collect();
        self.syn_cache.get_or_init(new);
        self.may_remember.set(syns);
    }

    /// SYNs that are remembered.
    pub fn remembered(&self) -> usize {
        let slots = self.syn_cache.get().into_iter().flatten();
        slots
            .filter(|live| live.state.get() != ANSWERED_FREE)
            .count()
    }

    /// Both of these.
    pub fn budgets(&self) -> (u32, u32) {
        (self.syn_budget.get(), self.answer_budget.get())
    }

    /// Enters a flow, and counts it.
    pub fn enter_flow(&self, key: Tuple, entry: &FlowEntry) {
        if let Some(flow) = flowtable::enter(&self, &key) {
            fill(flow, entry);
        }
    }

    /// Enters a verified source.
    pub fn enter_verified(&self, source: Address, since: u32) {
        self.verified.borrow_mut().insert(source, since);
    }

    /// Sets what a service's servers were seen to offer.
    pub fn set_profile(&self, number: u16, profile: Profile) {
        if let Some(slot) = self.states.get(usize::from(number)) {
            StateRef(slot).set_profile(profile);
        }
    }

    /// Empties the half-open table, the flow table and the verified sources, counts anew, and sets
    /// every service calm, without grace.
    pub fn reset_states(&self) {
        self.half_open.borrow_mut().clear();
        for bucket in &self.flow_buckets {
            bucket.tags.iter().for_each(|tag| tag.set(flowtable::FREE));
        }
        self.verified.borrow_mut().clear();
        self.flows_created.set(0);
        self.sources_verified.set(0);
        for state in &self.states {
            state.take();
        }
    }
}

// What a test looks at, and what the kernel's maps are filled from.
impl HostTables {
    /// `ADDRESSES`.
    pub fn addresses(&self) -> impl Iterator<Item = (Address, AddressEntry)> {
        self.addresses.iter().map(|(key, entry)| (*key, *entry))
    }

    /// `PREFIXES`.
    pub fn prefixes(&self) -> impl Iterator<Item = (Prefix, AddressEntry)> {
        self.prefixes
            .iter()
            .map(|((bits, bytes), entry)| ((*bits, Address(*bytes)), *entry))
    }

    /// `PORTS`.
    pub fn ports(&self) -> impl Iterator<Item = (PortKey, u16)> {
        self.ports.iter().map(|(key, service)| (*key, *service))
    }

    /// `SERVICES`.
    pub fn services(&self) -> &[ServiceConfig] {
        &self.services
    }

    /// `KEYS`.
    pub fn keys(&self) -> &[EpochKey] {
        &self.keys
    }

    /// State of a service; the beginning's for a number without a slot.
    pub fn service_state(&self, number: u16) -> ServiceState {
        self.states
            .get(usize::from(number))
            .map_or_else(ServiceState::default, Cell::get)
    }

    /// `HALF_OPEN`.
    pub fn half_open_entries(&self) -> HashMap<Tuple, HalfOpen> {
        self.half_open.borrow().clone()
    }

    /// `FLOWS`.
    pub fn flow_entries(&self) -> HashMap<Tuple, FlowEntry> {
        self.flow_buckets
            .iter()
            .flat_map(|bucket| bucket.tags.iter().zip(&bucket.slots))
            .filter(|(tag, _)| tag.get() != flowtable::FREE)
            .map(|(_, slot)| (slot_tuple(slot), flow_entry(&slot.flow)))
            .collect()
    }

    /// `VERIFIED`: source and tick.
    pub fn verified_sources(&self) -> HashMap<Address, u32> {
        self.verified.borrow().clone()
    }

    /// How long a source stays verified, ticks.
    pub fn verified_ticks(&self) -> u32 {
        self.verified_ticks.get()
    }

    /// Flows entered under a tuple that had none, and sources verified that were not.
    pub fn flow_counts(&self) -> FlowCounts {
        FlowCounts {
            created: self.flows_created.get(),
            evicted: self.flows_evicted.get(),
            verified: self.sources_verified.get(),
        }
    }

    /// What [`Admission::assign`] was given since the last call.
    pub fn take_assigned(&self) -> Vec<RequestAttributes> {
        self.assigned.take()
    }

    /// Round trips counted since the last call: service and ms.
    pub fn take_round_trips(&self) -> Vec<(u16, u32)> {
        self.round_trips.take()
    }
}

// The programs.
impl HostTables {
    /// `synguard_in`: the verdict and the frame as it leaves.
    pub fn run_ingress(&self, bytes: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let mut frame = frame(bytes)?;
        let verdict = ingress(&mut frame, &self);
        Ok((verdict, frame.bytes().to_vec()))
    }

    /// `synguard_admit`, for a frame that XDP marked.
    pub fn run_admit(&self, bytes: &[u8]) -> Result<Option<Verdict>> {
        Ok(admit(&mut frame(bytes)?, &self))
    }

    /// `synguard_out`.
    pub fn run_egress(&self, bytes: &[u8]) -> Result<Option<Verdict>> {
        Ok(self.run_egress_whole(bytes)?.verdict)
    }

    /// `synguard_out`, with what becomes of the frame.
    pub fn run_egress_whole(&self, bytes: &[u8]) -> Result<Departure> {
        let mut outgoing = Outgoing {
            frame: frame(bytes)?,
            copies: Vec::new(),
        };
        let verdict = egress(&mut outgoing, &self);
        Ok(Departure {
            verdict,
            frame: outgoing.frame.bytes().to_vec(),
            copies: outgoing.copies,
        })
    }
}

fn frame(bytes: &[u8]) -> Result<Frame> {
    Frame::new(bytes).with_context(|| format!("a frame of {} bytes is too long", bytes.len()))
}

/// What came of a frame that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The verdict, if there is one.
    pub verdict: Option<Verdict>,
    /// The frame as it goes on, or would if the verdict were another.
    pub frame: Vec<u8>,
    /// The copies that the interface received.
    pub copies: Vec<Vec<u8>>,
}

/// A frame that is about to leave.
struct Outgoing {
    frame: Frame,
    copies: Vec<Vec<u8>>,
}

impl Packet for Outgoing {
    type View<'a> = &'a [u8];

    fn view(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.frame.view(at, len)
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn scan(&self, at: usize, len: usize) -> Options {
        self.frame.scan(at, len)
    }

    fn places(&self, at: usize, len: usize) -> Places {
        self.frame.places(at, len)
    }
}

impl PacketMut for Outgoing {
    type ViewMut<'a> = &'a mut [u8];

    fn view_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.frame.view_mut(at, len)
    }

    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()> {
        self.frame.adjust_checksum(at, difference)
    }
}

impl Leaving for Outgoing {
    fn receive_copy(&mut self) -> bool {
        self.copies.push(self.frame.bytes().to_vec());
        true
    }
}

/// State of a service.
#[derive(Clone, Copy)]
pub struct StateRef<'a>(&'a Cell<ServiceState>);

impl State for StateRef<'_> {
    fn state(self) -> u32 {
        self.0.get().state
    }

    fn half_open(self) -> u64 {
        self.0.get().half_open
    }

    fn grace_until(self) -> u64 {
        self.0.get().grace_until
    }

    fn half_open_add(self) -> u64 {
        let mut state = self.0.get();
        state.half_open = state.half_open.wrapping_add(1);
        self.0.set(state);
        state.half_open
    }

    fn half_open_sub(self) {
        let mut state = self.0.get();
        state.half_open = state.half_open.wrapping_sub(1);
        self.0.set(state);
    }

    fn turn_guarded(self, now: u64) {
        let state = self.0.get();
        if state.state == STATE_CALM {
            self.0.set(ServiceState {
                state: STATE_GUARDED,
                guarded_count: state.guarded_count.wrapping_add(1),
                guarded_at: now,
                ..state
            });
        }
    }

    fn profile(self) -> Profile {
        Profile(self.0.get().profile)
    }

    fn set_profile(self, profile: Profile) {
        self.0.set(ServiceState {
            profile: profile.0,
            ..self.0.get()
        });
    }

    fn withheld(self) -> (u32, u32) {
        let state = self.0.get();
        (state.withheld, state.withheld_at)
    }

    fn withhold(self, options: u32, tick: u32) {
        self.0.set(ServiceState {
            withheld: options,
            withheld_at: tick,
            ..self.0.get()
        });
    }

    fn claim_probe(self, tick: u32) -> bool {
        let state = self.0.get();
        if tick.wrapping_sub(state.probed_at) < TICKS_PER_SECOND {
            return false;
        }
        self.0.set(ServiceState {
            probed_at: tick,
            ..state
        });
        true
    }
}

/// A bucket of `ADMISSIONS`.
#[derive(Clone, Copy)]
pub struct BucketRef<'a>(&'a [Cell<u64>; ADMISSION_WAYS]);

impl Bucket for BucketRef<'_> {
    fn get(self, way: usize) -> u64 {
        self.0[way].get()
    }

    fn set(self, way: usize, value: u64) {
        self.0[way].set(value);
    }
}

impl<'t> Tables for &'t HostTables {
    type State<'a>
        = StateRef<'a>
    where
        't: 'a;
    type Bucket<'a>
        = BucketRef<'a>
    where
        't: 'a;

    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let longest = || longest(&self.prefixes, address);
        self.addresses.get(address).copied().or_else(longest)
    }

    fn port(&self, key: &PortKey) -> Option<u16> {
        self.ports.get(key).copied()
    }

    fn service(&self, number: u16) -> Option<&ServiceConfig> {
        self.services.get(usize::from(number))
    }

    fn state(&self, number: u16) -> Option<StateRef<'_>> {
        self.states.get(usize::from(number)).map(StateRef)
    }

    fn key_slot(&self, slot: u32) -> Option<&EpochKey> {
        self.keys.get(slot as usize)
    }

    fn now(&self) -> Now {
        Now::new(self.monotonic.get(), self.wall_offset.get())
    }

    fn bucket(&self, index: u32) -> Option<BucketRef<'_>> {
        self.admissions.get(index as usize).map(BucketRef)
    }

    fn zero(&self) -> usize {
        0
    }

    fn hidden(&self, number: u64) -> u64 {
        number
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn half_open(&self, tuple: &Tuple) -> Option<HalfOpen> {
        self.half_open.borrow().get(tuple).copied()
    }

    fn half_open_insert(&self, tuple: &Tuple, entry: &HalfOpen) -> Inserted {
        let mut table = self.half_open.borrow_mut();
        if table.contains_key(tuple) {
            return Inserted::Exists;
        }
        if table.len() >= self.half_open_room {
            return Inserted::Full;
        }
        table.insert(*tuple, *entry);
        Inserted::New
    }

    fn half_open_remove(&self, tuple: &Tuple) -> bool {
        self.half_open.borrow_mut().remove(tuple).is_some()
    }

    fn half_open_confirm(&self, tuple: &Tuple, client_isn: u32, server_isn: u32) -> bool {
        let mut table = self.half_open.borrow_mut();
        let Some(entry) = table.get_mut(tuple) else {
            return false;
        };
        *entry = HalfOpen {
            client_isn,
            server_isn,
            confirmed: 1,
            ..*entry
        };
        true
    }

    fn flow_bucket(&self, fraction: u32) -> Option<&LiveBucket> {
        let index = flowtable::index(fraction, self.flow_buckets.len() as u32);
        self.flow_buckets.get(index as usize)
    }

    fn exchange(&self, word: &Cell<u32>, old: u32, new: u32) -> bool {
        let is_old = word.get() == old;
        if is_old {
            word.set(new);
        }
        is_old
    }

    fn count_flow(&self, evicted: bool) {
        self.flows_created.set(self.flows_created.get() + 1);
        let evictions = self.flows_evicted.get() + u64::from(evicted);
        self.flows_evicted.set(evictions);
    }

    fn parked(&self) -> Option<&Parked> {
        Some(&self.parked)
    }

    fn tick(&self) -> u32 {
        self.tick.get()
    }

    fn draining(&self) -> bool {
        self.draining.get()
    }

    fn forwards(&self) -> bool {
        self.forwards.get()
    }

    fn generic(&self) -> bool {
        self.generic.get()
    }

    fn settled_at(&self) -> u32 {
        self.settled_at.get()
    }

    fn is_verified(&self, source: &Address) -> bool {
        self.verified
            .borrow()
            .get(source)
            .is_some_and(|since| self.tick.get().wrapping_sub(*since) < self.verified_ticks.get())
    }

    fn verify(&self, source: &Address) {
        let known = self.verified.borrow_mut().insert(*source, self.tick.get());
        let new = u64::from(known.is_none());
        self.sources_verified.set(self.sources_verified.get() + new);
    }

    fn has_sources(&self) -> bool {
        !self.sources.borrow().is_empty()
    }

    fn source(&self, source: &Address) -> Option<SourceEntry> {
        longest(&self.sources.borrow(), source)
    }

    fn syn_budget(&self) -> u32 {
        self.syn_budget.get()
    }

    fn answer_budget(&self) -> u32 {
        self.answer_budget.get()
    }

    fn budget(&self, slot: u32) -> Option<&Cell<u64>> {
        let new = || (0..BUDGET_SLOTS).map(|_| Cell::new(0)).collect();
        self.budgets.get_or_init(new).get(slot as usize)
    }

    fn syn_cache(&self) -> bool {
        self.syn_cache.get().is_some()
    }

    fn may_remember(&self) -> bool {
        let left = self.may_remember.get();
        self.may_remember.set(left.saturating_sub(1));
        left > 0
    }

    fn answered(&self, slot: u32) -> Option<&syncache::Live> {
        self.syn_cache.get()?.get(slot as usize)
    }

    fn socket<N: Net>(&self, flow: &Flow<N>) -> Socket {
        let v6 = N::HEADER == ipv6::HEADER;
        if let Some(socket) = self.sockets.borrow().get(&(v6, flow.tuple())) {
            return *socket;
        }
        if self
            .listeners
            .contains(&(v6, flow.net.server(), flow.server_port))
        {
            Socket::Listener
        } else {
            Socket::None
        }
    }
}

impl Admission for &HostTables {
    fn assign<N: Net>(&self, _flow: &Flow<N>, attributes: &mut RequestAttributes) -> bool {
        self.assigned.borrow_mut().push(*attributes);
        true
    }

    fn round_trip(&self, service: u16, ms: u32) {
        self.round_trips.borrow_mut().push((service, ms));
    }
}

/// Gives a live entry these contents.
fn fill(live: &LiveFlow, entry: &FlowEntry) {
    live.delta.set(entry.delta);
    live.ts_delta.set(entry.ts_delta);
    live.cookie.set(entry.cookie);
    live.client_isn.set(entry.client_isn);
    live.server_next.set(entry.server_next);
    live.server_ack.set(entry.server_ack);
    live.client_tsval.set(entry.client_tsval);
    live.seen_at.set(entry.seen_at);
    live.sent_at.set(entry.sent_at);
    live.window.set(entry.window);
    live.mss.set(entry.mss);
    live.service.set(entry.service);
    live.state.set(entry.state);
    live.closing.set(entry.closing);
    live.options.set(entry.options);
    live.client_scale.set(entry.client_scale);
    live.promised_scale.set(entry.promised_scale);
    live.server_scale.set(entry.server_scale);
    live.tries.set(entry.tries);
    live.link_len.set(entry.link_len);
    for (word, bytes) in live.link.iter().zip(entry.link.as_chunks::<4>().0) {
        word.set(u32::from_ne_bytes(*bytes));
    }
}

/// The key of a live entry.
fn slot_tuple(slot: &LiveSlot) -> Tuple {
    let mut bytes = [0; size_of::<Tuple>()];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&slot.key) {
        *chunk = word.get().to_ne_bytes();
    }
    let half = |at: usize| std::array::from_fn(|i| bytes[at + i]);
    let port = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    Tuple {
        client: Address(half(0)),
        server: Address(half(16)),
        client_port: port(32),
        server_port: port(34),
        pad: 0,
    }
}

/// A table with room for so many flows.
fn buckets(flows: u32) -> Vec<LiveBucket> {
    let count = flowtable::buckets_for(flows);
    (0..count).map(|_| LiveBucket::default()).collect()
}

/// The contents of a live entry.
pub fn flow_entry(live: &LiveFlow) -> FlowEntry {
    let mut entry = FlowEntry {
        delta: live.delta.get(),
        ts_delta: live.ts_delta.get(),
        cookie: live.cookie.get(),
        client_isn: live.client_isn.get(),
        server_next: live.server_next.get(),
        server_ack: live.server_ack.get(),
        client_tsval: live.client_tsval.get(),
        seen_at: live.seen_at.get(),
        sent_at: live.sent_at.get(),
        window: live.window.get(),
        mss: live.mss.get(),
        service: live.service.get(),
        state: live.state.get(),
        closing: live.closing.get(),
        options: live.options.get(),
        client_scale: live.client_scale.get(),
        promised_scale: live.promised_scale.get(),
        server_scale: live.server_scale.get(),
        tries: live.tries.get(),
        link_len: live.link_len.get(),
        pad: 0,
        link: [0; _],
    };
    for (bytes, word) in entry.link.as_chunks_mut::<4>().0.iter_mut().zip(&live.link) {
        *bytes = word.get().to_ne_bytes();
    }
    entry
}

/// Whether the first `bits` of both are equal.
fn covers(bits: u32, prefix: &[u8; 16], address: &[u8; 16]) -> bool {
    let differ = u128::from_be_bytes(*prefix) ^ u128::from_be_bytes(*address);
    differ.leading_zeros() >= bits
}

#[cfg(test)]
mod tests {
    use synguard_common::abi::{FLOW_KNOWN, FLOW_WAYS};

    use super::*;

    fn flow(seen_at: u32) -> FlowEntry {
        let live = LiveFlow::default();
        live.state.set(FLOW_KNOWN);
        live.seen_at.set(seen_at);
        flow_entry(&live)
    }

    fn connection(port: u16) -> Tuple {
        tuple(
            SocketAddr::from(([198, 18, 0, 1], port)),
            SocketAddr::from(([192, 0, 2, 1], 443)),
        )
    }

    #[test]
    fn a_full_bucket_forgets_who_was_silent_for_longest() {
        let tables = HostTables::default().flow_room(1);
        tables.set_tick(100);
        for way in 0..FLOW_WAYS as u16 {
            tables.enter_flow(connection(way), &flow(if way == 5 { 3 } else { 90 }));
        }
        // A tick ahead of this CPU's is no great age.
        tables.enter_flow(connection(2), &flow(101));
        assert_eq!(tables.flow_entries().len(), FLOW_WAYS);
        let entered = flowtable::enter(&&tables, &connection(99)).map(|flow| {
            assert_eq!(flow.state.get(), 0);
            fill(flow, &self::flow(100));
        });
        assert!(entered.is_some());
        let counts = tables.flow_counts();
        assert_eq!((counts.created, counts.evicted), (9, 1));
        let left = tables.flow_entries();
        assert!(left.contains_key(&connection(99)) && !left.contains_key(&connection(5)));
        assert_eq!(left.len(), FLOW_WAYS);
    }

    #[test]
    fn three_quarters_full_it_evicts_nobody_and_finds_everybody() {
        let tables = HostTables::default()
            .flow_room(10_000)
            .seed(0x1234_5678_9abc_def0);
        let capacity = tables.flow_buckets.len() * FLOW_WAYS;
        let flows = capacity * 3 / 4;
        let of = |i: usize| {
            let client = SocketAddr::from(([198, 18, (i >> 14) as u8, (i >> 6) as u8], i as u16));
            tuple(client, SocketAddr::from(([192, 0, 2, 1], 443)))
        };
        for i in 0..flows {
            tables.enter_flow(of(i), &flow(i as u32));
        }
        let evicted = tables.flow_counts().evicted;
        assert_eq!((tables.flow_entries().len(), evicted), (flows, 0));
        for i in 0..flows {
            let found = flowtable::find(&&tables, &of(i)).map(|flow| flow.seen_at.get());
            assert_eq!(found, Some(i as u32));
        }
        assert!(flowtable::find(&&tables, &of(flows)).is_none());
    }

    #[test]
    fn the_longest_prefix_wins_and_an_address_before_it() {
        let entry = |service| AddressEntry {
            ports_id: 0,
            service,
            mtu: 1500,
        };
        let tables = HostTables::default()
            .prefix("10.0.0.0".parse().unwrap(), 8, entry(1))
            .prefix("10.1.0.0".parse().unwrap(), 16, entry(2))
            .prefix("::".parse().unwrap(), 0, entry(3))
            .address("10.1.2.3".parse().unwrap(), entry(4));
        let service = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            (&tables).address(&address(ip)).map(|entry| entry.service)
        };
        assert_eq!(service("10.2.2.3"), Some(1));
        assert_eq!(service("10.1.2.4"), Some(2));
        assert_eq!(service("11.1.2.4"), Some(3));
        assert_eq!(service("10.1.2.3"), Some(4));
    }
}
