//! The maps. Layouts are in `synguard_common::abi`; sizes marked "set at load" are the daemon's to
//! choose.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue},
};
use synguard_common::abi::{
    ADMISSION_BUCKETS, Address, AddressEntry, AdmissionBucket, Answered, BUDGET_SLOTS, Clock,
    ERRAND_SLOTS, EpochKey, Errand, FOUND_SLOTS, FlowBucket, FlowCounts, Found, HalfOpen,
    KEY_SLOTS, Ledger, MAX_SOURCES, Moment, PortEntry, PortKey, Runtime, SYN_CACHE_SLOTS,
    ServiceConfig, ServiceState, ServiceStats, SourceEntry, Sweep, Tuple, VerifiedSource,
};
use synguard_common::{options::Scanner, tables::Parked};

/// `BPF_F_MMAPABLE`: the daemon maps the array's memory.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: what an LPM trie demands.
const NO_PREALLOC: u32 = 1;

/// Protected address → its service. Written by the daemon, read by every program. Set at load.
#[map]
pub static ADDRESSES: HashMap<Address, AddressEntry> = HashMap::with_max_entries(4096, 0);

/// Protected prefix → its service, for addresses that `ADDRESSES` does not have. Written by the
/// daemon, read by every program. Set at load.
#[map]
pub static PREFIXES: LpmTrie<Address, AddressEntry> = LpmTrie::with_max_entries(4096, NO_PREALLOC);

/// Port that differs from the others of its address → its service. Written by the daemon, read by
/// every program. Set at load.
#[map]
pub static PORTS: HashMap<PortKey, PortEntry> = HashMap::with_max_entries(65536, 0);

/// Service number → what the daemon decided for it. Written by the daemon, read by every program.
/// Set at load.
#[map]
pub static SERVICES: Array<ServiceConfig> = Array::with_max_entries(1024, 0);

/// Service number → its state. Written and read by both sides. Set at load.
#[map]
pub static STATES: Array<ServiceState> = Array::with_max_entries(1024, MMAPABLE);

/// Service number → counters. Written by every program, read by the daemon. Set at load.
#[map]
pub static STATS: PerCpuArray<ServiceStats> = PerCpuArray::with_max_entries(1024, 0);

/// Epoch modulo the ring → key. Written by the daemon, read by `synguard_in` and
/// `synguard_admit`.
#[map]
pub static KEYS: Array<EpochKey> = Array::with_max_entries(KEY_SLOTS, 0);

/// 0 → wall clock. Written by the daemon, read by `synguard_in` and `synguard_admit`.
#[map]
pub static CLOCK: Array<Clock> = Array::with_max_entries(1, 0);

/// 0 → odds and ends. Written by the daemon and `synguard_in`, read by every program.
#[map]
pub static RUNTIME: Array<Runtime> = Array::with_max_entries(1, 0);

/// Connection → its half-open state. Written by `synguard_in` and `synguard_out`, expired by the
/// daemon. Set at load.
#[map]
pub static HALF_OPEN: HashMap<Tuple, HalfOpen> = HashMap::with_max_entries(65536, 0);

/// Hash of a tuple → admissions of the last moments. Written and read by `synguard_in` and
/// `synguard_admit`.
#[map]
pub static ADMISSIONS: Array<AdmissionBucket> = Array::with_max_entries(ADMISSION_BUCKETS, 0);

/// 0 → the scanner of unusual TCP options. Written and read by `synguard_in` and `synguard_admit`
/// within one packet.
#[map]
pub static SCANNER: PerCpuArray<Scanner> = PerCpuArray::with_max_entries(1, 0);

/// Hash of a tuple → connections of proxied services. Written by `synguard_in` and `synguard_out`,
/// emptied by `synguard_sweep`. Set at load.
#[map]
pub static FLOWS: Array<FlowBucket> = Array::with_max_entries(1, 0);

/// 0 → how many flows and verified sources were entered. Written by `synguard_in` and `synguard_out`,
/// read by the daemon.
#[map]
pub static FLOW_COUNTS: PerCpuArray<FlowCounts> = PerCpuArray::with_max_entries(1, 0);

/// Address that answered a cookie with RST → since when. Written and read by `synguard_in`; the least
/// recently used ones go when it is full. Set at load.
#[map]
pub static VERIFIED: LruHashMap<Address, VerifiedSource> = LruHashMap::with_max_entries(65536, 0);

/// What the daemon is to do for flows. Filled by `synguard_sweep`, emptied by the daemon.
#[map]
pub static ERRANDS: Queue<Errand> = Queue::with_max_entries(ERRAND_SLOTS, 0);

/// 0 → what the last sweep found. Written by `synguard_sweep`, read by the daemon.
#[map]
pub static SWEEP: Array<Sweep> = Array::with_max_entries(1, 0);

/// Service number → what the daemon must not forget. Written and read by the daemon. Set at load.
#[map]
pub static LEDGER: Array<Ledger> = Array::with_max_entries(1024, MMAPABLE);

/// 0 → a segment between two functions, a [`Parked`]. Written and read by `synguard_in` within one packet.
#[map]
pub static PARKED: PerCpuArray<[u64; size_of::<Parked>() / 8]> =
    PerCpuArray::with_max_entries(1, 0);

/// Hash of an address → what it was found to be. Written and read by every program.
#[map]
pub static FOUND: PerCpuArray<Found> = PerCpuArray::with_max_entries(FOUND_SLOTS, 0);

/// Prefix of a source → what the operator says of it. Written by the daemon, read by `synguard_in`.
#[map]
pub static SOURCES: LpmTrie<Address, SourceEntry> =
    LpmTrie::with_max_entries(MAX_SOURCES, NO_PREALLOC);

/// Hash of a source → its budget, see `synguard_common::sources`. Written and read by `synguard_in`.
#[map]
pub static BUDGETS: Array<u64> = Array::with_max_entries(BUDGET_SLOTS, 0);

/// Hash of a tuple → a SYN that was answered. Written by `synguard_in`, freed by `synguard_admit` and the
/// daemon too.
#[map]
pub static SYN_CACHE: Array<Answered> = Array::with_max_entries(SYN_CACHE_SLOTS, MMAPABLE);

/// 0 → the tick in the upper half, and SYNs remembered in it. Written and read by `synguard_in`.
#[map]
pub static SYN_CACHE_USED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// 0 → both coarse clocks. Written by `synguard_moment`, read by the daemon.
#[map]
pub static MOMENT: Array<Moment> = Array::with_max_entries(1, 0);
