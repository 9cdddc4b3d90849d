//! The kernel's tables with their types, taken out of the loaded object once.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, sync::Arc};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, Queue},
};
use synguard_common::abi::{
    self, Address, AddressEntry, Clock, EpochKey, Errand, FlowCounts, HalfOpen, Moment, PortEntry,
    PortKey, Runtime, ServiceConfig, ServiceStats, SourceEntry, Sweep, Tuple, VerifiedSource, map,
};

use super::{
    batch::Batches,
    error::{LoadError, one_line},
    flows::FlowTable,
    ledger::Books,
    pins::Pins,
    shared::{Shareable, Shared},
    states::States,
    syncache::SynCache,
    wire::Wire,
};

/// `HALF_OPEN`.
pub type HalfOpenMap = HashMap<MapData, Wire<Tuple>, Wire<HalfOpen>>;
/// The same, read as a whole.
pub type HalfOpenBatches = Batches<Wire<Tuple>, Wire<HalfOpen>>;

/// The tables of flows and verified sources, for a thread of their own.
pub struct FlowMaps {
    /// Connections of proxied services.
    pub table: FlowTable,
    /// What the programs counted.
    pub counts: PerCpuArray<MapData, Wire<FlowCounts>>,
    /// Sources that answered a cookie with RST.
    pub verified: HashMap<MapData, Wire<Address>, Wire<VerifiedSource>>,
    /// What there is to do.
    pub errands: Queue<MapData, Wire<Errand>>,
    /// What the last sweep found.
    pub sweep: Array<MapData, Wire<Sweep>>,
}

/// Where the tables come from.
pub enum Source<'a> {
    /// An object that has made them. It keeps its own descriptors: programs that are yet to be loaded
    /// name maps by them.
    Object(&'a Ebpf),
    /// Pins.
    Pins(&'a Pins),
}

impl Source<'_> {
    fn open(&self, name: &str) -> Result<MapData, LoadError> {
        match self {
            Self::Pins(pins) => Ok(pins.map(name)?),
            Self::Object(ebpf) => {
                let map = ebpf
                    .map(name)
                    .and_then(data)
                    .ok_or_else(|| LoadError::Object(format!("map {name} is missing")))?;
                again(map).map_err(|error| LoadError::Kernel {
                    what: format!("open map {name}"),
                    reason: one_line(&error),
                })
            }
        }
    }

    fn typed<M>(&self, name: &str) -> Result<M, LoadError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let map = self.open(name)?;
        let typed = Map::from_map_data(map).and_then(M::try_from);
        typed.map_err(|error| self.unfit(name, &one_line(&error)))
    }

    fn shared<T: Shareable>(&self, name: &str) -> Result<Arc<Shared<T>>, LoadError> {
        let mapped = Shared::map(&self.open(name)?);
        mapped
            .map(Arc::new)
            .map_err(|error| self.unfit(name, &error.to_string()))
    }

    fn unfit(&self, name: &str, reason: &str) -> LoadError {
        match self {
            Self::Object(_) => LoadError::Object(format!("map {name}: {reason}")),
            Self::Pins(pins) => pins.damaged(format!("map {name}: {reason}")).into(),
        }
    }
}

/// A second descriptor of a map.
fn again(map: &MapData) -> Result<MapData, MapError> {
    let fd = map.fd().as_fd().try_clone_to_owned();
    MapData::from_fd(fd.map_err(failed)?)
}

fn failed(error: io::Error) -> MapError {
    MapError::IoError(error)
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::Queue(data) => Some(data),
        _ => None,
    }
}

/// Every table the daemon reads or writes. `ADMISSIONS` is the programs' own.
pub struct Maps {
    /// Address → service.
    pub addresses: HashMap<MapData, Wire<Address>, Wire<AddressEntry>>,
    /// Prefix → service.
    pub prefixes: LpmTrie<MapData, Wire<Address>, Wire<AddressEntry>>,
    /// Port → service, where ports differ.
    pub ports: HashMap<MapData, Wire<PortKey>, Wire<PortEntry>>,
    /// What services are configured to do.
    pub services: Array<MapData, Wire<ServiceConfig>>,
    /// What the programs counted.
    pub stats: PerCpuArray<MapData, Wire<ServiceStats>>,
    /// Cookie keys.
    pub keys: Array<MapData, Wire<EpochKey>>,
    /// Wall-clock offset.
    pub clock: Array<MapData, Wire<Clock>>,
    /// What both sides tell each other.
    pub runtime: Array<MapData, Wire<Runtime>>,
    /// Half-open connections; the sweep opens it once more with [`Maps::open_half_open`].
    pub half_open: HalfOpenMap,
    /// Prefixes of sources, and what is said of them.
    pub sources: LpmTrie<MapData, Wire<Address>, Wire<SourceEntry>>,
    /// What sources have asked for lately; the programs' own.
    pub budgets: Array<MapData, u64>,
    /// SYNs that were answered, shared memory.
    pub syn_cache: Arc<SynCache>,
    /// How many were remembered lately; the programs' own.
    pub syn_cache_used: PerCpuArray<MapData, u64>,
    /// The tables of flows, until they are taken.
    pub flows: Option<FlowMaps>,
    /// Both coarse clocks, until they are taken.
    pub moments: Option<Array<MapData, Wire<Moment>>>,
    /// State of services, shared memory.
    pub states: Arc<States>,
    /// Who has which number, and what the daemon counts, shared memory.
    pub books: Arc<Books>,
    half_open_again: MapData,
    infos: BTreeMap<&'static str, MapInfo>,
}

impl Maps {
    /// Tables that were just made: the programs get what they need to use them.
    pub fn create(source: &Source<'_>) -> Result<Self, LoadError> {
        let seed = getrandom::u64().map_err(|error| LoadError::Kernel {
            what: "get random numbers".into(),
            reason: error.to_string(),
        })?;
        let mut maps = Self::open(source, seed)?;
        let runtime = Runtime {
            abi_version: abi::ABI_VERSION,
            seed,
            flow_buckets: maps.infos.get(map::FLOWS).map_or(0, MapInfo::max_entries),
            ..Runtime::default()
        };
        maps.runtime
            .set(0, Wire(runtime), 0)
            .map_err(|error| LoadError::Kernel {
                what: format!("write map {}", map::RUNTIME),
                reason: one_line(&error),
            })?;
        Ok(maps)
    }

    /// Tables that are in use.
    pub fn adopt(source: &Source<'_>) -> Result<Self, LoadError> {
        let runtime: Array<MapData, Wire<Runtime>> = source.typed(map::RUNTIME)?;
        let Wire(runtime) = runtime
            .get(&0, 0)
            .map_err(|error| source.unfit(map::RUNTIME, &one_line(&error)))?;
        Self::open(source, runtime.seed)
    }

    fn open(source: &Source<'_>, seed: u64) -> Result<Self, LoadError> {
        let mut infos = BTreeMap::new();
        for name in [
            map::ADDRESSES,
            map::PREFIXES,
            map::PORTS,
            map::HALF_OPEN,
            map::FLOWS,
            map::VERIFIED,
            map::SOURCES,
        ] {
            if let Ok(info) = source.open(name)?.info() {
                infos.insert(name, info);
            }
        }
        Ok(Self {
            addresses: source.typed(map::ADDRESSES)?,
            prefixes: source.typed(map::PREFIXES)?,
            ports: source.typed(map::PORTS)?,
            services: source.typed(map::SERVICES)?,
            stats: source.typed(map::STATS)?,
            keys: source.typed(map::KEYS)?,
            clock: source.typed(map::CLOCK)?,
            runtime: source.typed(map::RUNTIME)?,
            half_open: source.typed(map::HALF_OPEN)?,
            sources: source.typed(map::SOURCES)?,
            budgets: source.typed(map::BUDGETS)?,
            syn_cache: source.shared(map::SYN_CACHE)?,
            syn_cache_used: source.typed(map::SYN_CACHE_USED)?,
            flows: Some(FlowMaps {
                table: FlowTable::new(source.typed(map::FLOWS)?, seed),
                counts: source.typed(map::FLOW_COUNTS)?,
                verified: source.typed(map::VERIFIED)?,
                errands: source.typed(map::ERRANDS)?,
                sweep: source.typed(map::SWEEP)?,
            }),
            moments: Some(source.typed(map::MOMENT)?),
            states: source.shared(map::STATES)?,
            books: source.shared(map::LEDGER)?,
            half_open_again: source.open(map::HALF_OPEN)?,
            infos,
        })
    }

    /// Changes [`Runtime`]. `no_metadata` is the programs' to write: read, change, write, and that
    /// only where something changes.
    pub fn change_runtime(&mut self, change: impl FnOnce(&mut Runtime)) -> Result<(), MapError> {
        let Wire(before) = self.runtime.get(&0, 0)?;
        let mut after = before;
        change(&mut after);
        if after == before {
            return Ok(());
        }
        self.runtime.set(0, Wire(after), 0)
    }

    /// Room in the table `name`.
    pub fn capacity(&self, name: &str) -> Option<u64> {
        let entries = u64::from(self.infos.get(name)?.max_entries());
        Some(match name {
            map::FLOWS => entries * abi::FLOW_WAYS as u64,
            _ => entries,
        })
    }

    /// Two more handles of the half-open table, for a thread of its own: one for entries, one for all.
    pub fn open_half_open(&self) -> Result<(HalfOpenMap, HalfOpenBatches), MapError> {
        let data = || again(&self.half_open_again);
        let batches = Batches::new(data()?).map_err(failed)?;
        Ok((HashMap::try_from(Map::from_map_data(data()?)?)?, batches))
    }
}
