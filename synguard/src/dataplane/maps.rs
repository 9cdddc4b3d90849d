//! The kernel's tables with their types, taken out of the loaded object once.

use std::{collections::BTreeMap, sync::Arc};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, Queue},
};
use synguard_common::abi::{
    self, Address, AddressEntry, Clock, EpochKey, Errand, FlowCounts, HalfOpen, PortEntry, PortKey,
    Runtime, ServiceConfig, ServiceStats, Sweep, Tuple, VerifiedSource, map,
};

use super::{error::LoadError, flows::FlowTable, states::States, wire::Wire};

/// `HALF_OPEN`.
pub type HalfOpenMap = HashMap<MapData, Wire<Tuple>, Wire<HalfOpen>>;

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
    /// The tables of flows, until they are taken.
    pub flows: Option<FlowMaps>,
    /// State of services, shared memory.
    pub states: Arc<States>,
    infos: BTreeMap<&'static str, MapInfo>,
}

impl Maps {
    /// Takes the tables out of `ebpf`. The programs hold on to them by themselves once loaded, but
    /// must be loaded while these are alive.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut infos = BTreeMap::new();
        for name in [
            map::ADDRESSES,
            map::PREFIXES,
            map::PORTS,
            map::HALF_OPEN,
            map::FLOWS,
            map::VERIFIED,
        ] {
            if let Some(
                Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) | Map::Array(data),
            ) = ebpf.map(name)
                && let Ok(info) = data.info()
            {
                infos.insert(name, info);
            }
        }
        // It stays in `ebpf`, as programs that are yet to be loaded name maps by descriptor.
        let states = match ebpf.map(map::STATES) {
            Some(Map::Array(data)) => States::map(data).map_err(|error| LoadError::Kernel {
                what: format!("map {} into memory", map::STATES),
                reason: error.to_string(),
            })?,
            _ => {
                return Err(LoadError::Object(format!(
                    "there is no array {}",
                    map::STATES
                )));
            }
        };
        let seed = getrandom::u64().map_err(|error| LoadError::Kernel {
            what: "get random numbers".into(),
            reason: error.to_string(),
        })?;
        let mut maps = Self {
            addresses: typed(ebpf, map::ADDRESSES)?,
            prefixes: typed(ebpf, map::PREFIXES)?,
            ports: typed(ebpf, map::PORTS)?,
            services: typed(ebpf, map::SERVICES)?,
            stats: typed(ebpf, map::STATS)?,
            keys: typed(ebpf, map::KEYS)?,
            clock: typed(ebpf, map::CLOCK)?,
            runtime: typed(ebpf, map::RUNTIME)?,
            half_open: typed(ebpf, map::HALF_OPEN)?,
            flows: Some(FlowMaps {
                table: FlowTable::new(typed(ebpf, map::FLOWS)?, seed),
                counts: typed(ebpf, map::FLOW_COUNTS)?,
                verified: typed(ebpf, map::VERIFIED)?,
                errands: typed(ebpf, map::ERRANDS)?,
                sweep: typed(ebpf, map::SWEEP)?,
            }),
            states: Arc::new(states),
            infos,
        };
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
                reason: super::error::one_line(&error),
            })?;
        Ok(maps)
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

    /// A second handle of the half-open table, for a thread of its own.
    pub fn open_half_open(&self) -> Result<HalfOpenMap, MapError> {
        let id = self.infos.get(map::HALF_OPEN).map_or(0, MapInfo::id);
        HashMap::try_from(Map::HashMap(MapData::from_id(id)?))
    }
}

fn remove(ebpf: &mut Ebpf, name: &str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| LoadError::Object(format!("map {name} is missing")))
}

pub(super) fn typed<M>(ebpf: &mut Ebpf, name: &str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = MapError>,
{
    M::try_from(remove(ebpf, name)?).map_err(|error| {
        LoadError::Object(format!("map {name}: {}", super::error::one_line(&error)))
    })
}
