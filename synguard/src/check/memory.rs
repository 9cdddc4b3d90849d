//! How much memory the tables take, before they are made.

use aya_obj::generated::bpf_map_type;
use synguard_common::abi::map;

use crate::{
    dataplane::{LoadError, Options, load},
    model::Config,
};

/// What the kernel adds to each entry of a hash table, and to each node of a trie.
const HASH_ENTRY: u64 = 48;
const TRIE_NODE: u64 = 40;
/// A bucket of a hash table.
const BUCKET: u64 = 16;

/// Bytes that the tables of a configuration take, on a machine with so many CPUs.
pub fn of_tables(config: &Config, cpus: u64) -> Result<u64, LoadError> {
    let options = Options {
        half_open_entries: config.half_open_entries,
        flow_entries: config.flow_entries,
        verified_entries: config.verified_entries,
    };
    let entries = load::map_entries(&options);
    let object = load::object()?;
    Ok(object
        .maps
        .iter()
        .map(|(name, table)| {
            let set = entries.iter().find(|(other, _)| other == name);
            let entries = match name.as_str() {
                // Room for a million, of which nothing is made before it is needed.
                map::SOURCES => config.sources.listed.entries().len() as u32,
                _ => set.map_or_else(|| table.max_entries(), |(_, entries)| *entries),
            };
            of_map(
                table.map_type(),
                table.key_size().into(),
                table.value_size().into(),
                entries.into(),
                cpus,
            )
        })
        .sum())
}

/// As the kernel's `map_mem_usage` has it, near enough.
fn of_map(kind: u32, key: u64, value: u64, entries: u64, cpus: u64) -> u64 {
    let (key, value) = (key.next_multiple_of(8), value.next_multiple_of(8));
    let is = |other: bpf_map_type| kind == other as u32;
    if is(bpf_map_type::BPF_MAP_TYPE_HASH) || is(bpf_map_type::BPF_MAP_TYPE_LRU_HASH) {
        entries * (HASH_ENTRY + key + value) + entries.next_power_of_two() * BUCKET
    } else if is(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY) {
        entries * (value * cpus + 8)
    } else if is(bpf_map_type::BPF_MAP_TYPE_LPM_TRIE) {
        // Made as they are needed; inner nodes are at most as many.
        entries * (TRIE_NODE + key + value)
    } else {
        entries * value
    }
}
