//! How full the kernel's tables are.
//!
//! The tables of what passes by are counted on every sweep, and of all others the daemon is the only
//! writer; walking tables of a million entries at each scrape would tell no more.

use synguard_common::abi::map;

use super::{maps::Maps, tables::Tables};
use crate::model::MapFill;

/// Entries that the last sweeps left.
#[derive(Clone, Copy, Debug)]
pub struct Swept {
    /// Half-open connections.
    pub half_open: u64,
    /// Connections of proxied services.
    pub flows: u64,
    /// Verified sources.
    pub verified: u64,
}

/// Fill of every table that can fill up.
pub fn fill(maps: &Maps, tables: &Tables, sources: u64, swept: Swept) -> Vec<MapFill> {
    [
        (map::HALF_OPEN, swept.half_open),
        (map::FLOWS, swept.flows),
        (map::VERIFIED, swept.verified),
        (map::ADDRESSES, tables.addresses.len() as u64),
        (map::PORTS, tables.ports.len() as u64),
        (map::PREFIXES, tables.prefixes.len() as u64),
        (map::SOURCES, sources),
    ]
    .into_iter()
    .filter_map(|(name, entries)| {
        Some(MapFill {
            name: name.to_owned(),
            entries,
            capacity: maps.capacity(name)?,
        })
    })
    .collect()
}
