//! What proxy and reset admission keep in the kernel's maps: filled, emptied and read.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use synguard::dataplane::{Dataplane, FlowMaps, wire::Wire as Layout};
use synguard_common::abi::{
    Address, FlowCounts, FlowEntry, ServiceState, Tuple, VerifiedSource, map,
};
use synguard_lab::host::HostTables;

/// Room in either table: more than any test needs, so that nothing is evicted.
pub const ROOM: u32 = 8192;

/// A service's state, written whole before a frame comes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct State(ServiceState);

// SAFETY: `repr(C)`, integers without hidden padding, as `synguard_common::abi` asserts.
unsafe impl Pod for State {}

/// The tables.
pub struct Flows {
    maps: FlowMaps,
    states: Array<MapData, State>,
    before: FlowCounts,
    host_before: FlowCounts,
}

impl Flows {
    /// Takes the tables of loaded programs.
    pub fn take(dataplane: &mut Dataplane) -> Result<Self> {
        let maps = dataplane.maps.flows.take().context("no flow tables")?;
        let before = maps.counted()?;
        Ok(Self {
            maps,
            states: states(dataplane)?,
            before,
            host_before: FlowCounts::default(),
        })
    }

    /// Empties both tables.
    pub fn clear(&mut self) -> Result<()> {
        let flows = self.maps.table.entries()?;
        let tuples: Vec<Tuple> = flows.into_iter().map(|(tuple, _)| tuple).collect();
        self.maps.table.remove(&tuples)?;
        let verified: Vec<_> = self.maps.verified.keys().collect::<Result<_, _>>()?;
        for key in verified {
            self.maps.verified.remove(&key)?;
        }
        self.before = self.maps.counted()?;
        Ok(())
    }

    /// Fills the tables and the states of `services` from the host's.
    pub fn fill(&mut self, tables: &HostTables, services: &[u16]) -> Result<()> {
        self.host_before = tables.flow_counts();
        for (key, flow) in tables.flow_entries() {
            ensure!(self.maps.table.insert(&key, flow)?, "no room for {key:?}");
        }
        for (key, since) in tables.verified_sources() {
            let source = VerifiedSource { since, pad: 0 };
            self.maps.verified.insert(Layout(key), Layout(source), 0)?;
        }
        for service in services {
            let state = State(tables.service_state(*service));
            self.states.set(u32::from(*service), state, 0)?;
        }
        Ok(())
    }

    /// The flows, which are the host's too.
    pub fn agreed(&self, host: &HostTables) -> Result<HashMap<Tuple, FlowEntry>> {
        let kernel: HashMap<Tuple, FlowEntry> = self.maps.table.entries()?.into_iter().collect();
        let host = host.flow_entries();
        for (key, flow) in &kernel {
            let other = host.get(key);
            ensure!(
                other == Some(flow),
                "flow {key:?}: kernel {flow:?}\nhost {other:?}"
            );
        }
        let missing = host.keys().find(|key| !kernel.contains_key(key));
        ensure!(missing.is_none(), "flow only on the host: {missing:?}");
        Ok(kernel)
    }

    /// Makes sure that the rest is the same on both sides.
    pub fn check(&self, host: &HostTables) -> Result<()> {
        self.agreed(host)?;
        let kernel: HashMap<Address, u32> = self
            .maps
            .verified
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.0, value.0.since)))
            .collect::<Result<_, _>>()?;
        let verified = host.verified_sources();
        ensure!(
            kernel == verified,
            "verified: kernel {kernel:?}, host {verified:?}"
        );
        let now = self.maps.counted()?;
        let kernel = FlowCounts {
            created: now.created - self.before.created,
            evicted: now.evicted - self.before.evicted,
            verified: now.verified - self.before.verified,
        };
        let host = host.flow_counts();
        let host = FlowCounts {
            created: host.created - self.host_before.created,
            evicted: host.evicted - self.host_before.evicted,
            verified: host.verified - self.host_before.verified,
        };
        ensure!(kernel == host, "counted: kernel {kernel:?}, host {host:?}");
        Ok(())
    }
}

/// A handle of `STATES` that takes whole values.
fn states(dataplane: &Dataplane) -> Result<Array<MapData, State>> {
    let ids = dataplane.xdp()?.info()?.map_ids()?.unwrap_or_default();
    for id in ids {
        let data = MapData::from_id(id)?;
        if data.info()?.name_as_str() == Some(map::STATES) {
            return Ok(Array::try_from(Map::Array(data))?);
        }
    }
    anyhow::bail!("the program has no map {}", map::STATES)
}
