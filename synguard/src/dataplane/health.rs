//! How full the kernel's tables are.
//!
//! The daemon is the only writer of all but the half-open table, and counts that one on every
//! sweep; walking tables of a million entries at each scrape would tell no more.

use synguard_common::abi::map;

use super::{maps::Maps, tables::Tables};
use crate::model::MapFill;

/// Fill of every table that can fill up; `half_open` is what the last sweep met.
pub fn fill(maps: &Maps, tables: &Tables, half_open: u64) -> Vec<MapFill> {
    [
        (map::HALF_OPEN, half_open),
        (map::ADDRESSES, tables.addresses.len() as u64),
        (map::PORTS, tables.ports.len() as u64),
        (map::PREFIXES, tables.prefixes.len() as u64),
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
