//! Writes the difference between two sets of tables to the kernel: whole or not at all.
//!
//! Packets are looked up all the while, so the order matters. Services and sets of ports come
//! first, then the addresses that point to them, and what nothing points to any more goes last.
//! Sets of ports are never changed in place (see [`super::tables`]). If a step fails, the steps
//! before it are taken back in reverse order.

use aya::maps::{MapError, lpm_trie::Key};
use synguard_common::abi::{Address, AddressEntry, PortEntry, PortKey, ServiceConfig, map};
use tracing::error;

use super::{
    error::one_line,
    maps::Maps,
    tables::{Port, Prefix, Tables},
    wire::Wire,
};

/// One write; `None` removes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// To `SERVICES`.
    Service(u16, Option<ServiceConfig>),
    /// To `PORTS`.
    Port(Port, Option<u16>),
    /// To `ADDRESSES`.
    Address([u8; 16], Option<AddressEntry>),
    /// To `PREFIXES`.
    Prefix(Prefix, Option<AddressEntry>),
    /// To [`synguard_common::abi::Runtime::has_prefixes`].
    HasPrefixes(bool),
}

/// Where steps are written to.
pub trait Sink {
    /// Writes one step.
    fn write(&mut self, step: &Step) -> Result<(), ApplyError>;
}

/// The write that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write map {map}: {reason}")]
pub struct ApplyError {
    /// The map.
    pub map: &'static str,
    /// What the kernel said.
    pub reason: String,
}

/// Brings `sink` from `old` to `new`; says how many writes that took. On an error the sink holds
/// `old` again.
pub fn apply(sink: &mut impl Sink, old: &Tables, new: &Tables) -> Result<usize, ApplyError> {
    let steps = steps(old, new);
    for (done, (step, _)) in steps.iter().enumerate() {
        let Err(error) = sink.write(step) else {
            continue;
        };
        for (_, undo) in steps[..done].iter().rev() {
            if let Err(again) = sink.write(undo) {
                error!(%again, "cannot take back a change of the tables");
            }
        }
        return Err(error);
    }
    Ok(steps.len())
}

/// The steps from `old` to `new`, each with the one that takes it back.
fn steps(old: &Tables, new: &Tables) -> Vec<(Step, Step)> {
    let mut add = Vec::new();
    let mut remove = Vec::new();
    diff(
        &old.services,
        &new.services,
        Step::Service,
        &mut add,
        &mut remove,
    );
    diff(&old.ports, &new.ports, Step::Port, &mut add, &mut remove);
    let (had, has) = (!old.prefixes.is_empty(), !new.prefixes.is_empty());
    if has && !had {
        add.push((Step::HasPrefixes(true), Step::HasPrefixes(false)));
    }
    if had && !has {
        // Removals run backwards: this one last but for services and ports.
        remove.push((Step::HasPrefixes(false), Step::HasPrefixes(true)));
    }
    diff(
        &old.prefixes,
        &new.prefixes,
        Step::Prefix,
        &mut add,
        &mut remove,
    );
    diff(
        &old.addresses,
        &new.addresses,
        Step::Address,
        &mut add,
        &mut remove,
    );
    add.extend(remove.into_iter().rev());
    add
}

fn diff<K: Copy + Ord, V: Copy + PartialEq>(
    old: &std::collections::BTreeMap<K, V>,
    new: &std::collections::BTreeMap<K, V>,
    step: impl Fn(K, Option<V>) -> Step,
    add: &mut Vec<(Step, Step)>,
    remove: &mut Vec<(Step, Step)>,
) {
    for (key, value) in new {
        let before = old.get(key).copied();
        if before != Some(*value) {
            add.push((step(*key, Some(*value)), step(*key, before)));
        }
    }
    for (key, value) in old {
        if !new.contains_key(key) {
            remove.push((step(*key, None), step(*key, Some(*value))));
        }
    }
}

/// `SERVICES` of a number without a service: watched by nobody, guarded never.
const NO_SERVICE: ServiceConfig = ServiceConfig {
    high: u32::MAX,
    offers: 0,
    window: 0,
    mode: synguard_common::abi::MODE_OBSERVE,
    admission: synguard_common::abi::ADMISSION_NONE,
    rcv_wscale: 0,
    ttl: 0,
    learns: 0,
    pad: 0,
    mss: 0,
    pad2: 0,
};

impl Sink for Maps {
    fn write(&mut self, step: &Step) -> Result<(), ApplyError> {
        let (map, result) = match *step {
            Step::Service(number, config) => (
                map::SERVICES,
                self.services
                    .set(u32::from(number), Wire(config.unwrap_or(NO_SERVICE)), 0),
            ),
            Step::Port((ports_id, port), service) => {
                let key = Wire(PortKey {
                    ports_id,
                    port,
                    pad: 0,
                });
                let result = match service {
                    Some(service) => self
                        .ports
                        .insert(key, Wire(PortEntry { service, pad: 0 }), 0),
                    None => gone(self.ports.remove(&key)),
                };
                (map::PORTS, result)
            }
            Step::Address(address, entry) => {
                let key = Wire(Address(address));
                let result = match entry {
                    Some(entry) => self.addresses.insert(key, Wire(entry), 0),
                    None => gone(self.addresses.remove(&key)),
                };
                (map::ADDRESSES, result)
            }
            Step::Prefix((length, address), entry) => {
                let key = Key::new(length, Wire(Address(address)));
                let result = match entry {
                    Some(entry) => self.prefixes.insert(&key, Wire(entry), 0),
                    None => gone(self.prefixes.remove(&key)),
                };
                (map::PREFIXES, result)
            }
            Step::HasPrefixes(has_prefixes) => {
                let changed = self.change_runtime(|runtime| {
                    runtime.has_prefixes = u32::from(has_prefixes);
                });
                (map::RUNTIME, changed)
            }
        };
        result.map_err(refused(map))?;
        if matches!(
            step,
            Step::Address(..) | Step::Prefix(..) | Step::HasPrefixes(_)
        ) {
            // What the programs have kept of it is outdated.
            self.change_runtime(|runtime| {
                runtime.generation = runtime.generation.wrapping_add(1);
            })
            .map_err(refused(map::RUNTIME))?;
        }
        Ok(())
    }
}

/// The tables as they are in the kernel: what another daemon has left, whole or half-way through a
/// change.
pub fn read_back(maps: &Maps) -> Result<Tables, ApplyError> {
    let mut tables = Tables::default();
    for entry in maps.addresses.iter() {
        let (Wire(Address(address)), Wire(entry)) = entry.map_err(refused(map::ADDRESSES))?;
        tables.addresses.insert(address, entry);
    }
    for entry in maps.prefixes.iter() {
        let (key, Wire(entry)) = entry.map_err(refused(map::PREFIXES))?;
        let Wire(Address(address)) = key.data();
        tables.prefixes.insert((key.prefix_len(), address), entry);
    }
    for entry in maps.ports.iter() {
        let (Wire(key), Wire(entry)) = entry.map_err(refused(map::PORTS))?;
        tables.ports.insert((key.ports_id, key.port), entry.service);
    }
    for number in 1..maps.services.len() {
        let Wire(config) = maps
            .services
            .get(&number, 0)
            .map_err(refused(map::SERVICES))?;
        // All zero is a number that never was a service's; a watermark is never zero.
        if config.high != 0 && config != NO_SERVICE {
            tables.services.insert(number as u16, config);
        }
    }
    tables.follow_ports();
    Ok(tables)
}

/// What the kernel said of a write to `map`.
pub(super) fn refused(map: &'static str) -> impl Fn(MapError) -> ApplyError {
    move |error| ApplyError {
        map,
        reason: one_line(&error),
    }
}

/// Removing what is not there is what was wanted.
pub(super) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tables::{Facts, LocalAddress, Target, compile};

    /// Tables in memory that refuse the write number `fail_at`, and check after each write that
    /// no packet would meet something half-applied.
    struct Memory {
        tables: Tables,
        has_prefixes: bool,
        writes: usize,
        fail_at: Option<usize>,
    }

    impl Memory {
        fn holding(tables: &Tables, fail_at: Option<usize>) -> Self {
            let has_prefixes = !tables.prefixes.is_empty();
            Self {
                tables: tables.clone(),
                has_prefixes,
                writes: 0,
                fail_at,
            }
        }

        fn check(&self) {
            let entries = self
                .tables
                .addresses
                .values()
                .chain(self.tables.prefixes.values());
            for entry in entries {
                assert!(entry.service == 0 || self.tables.services.contains_key(&entry.service));
                if entry.ports_id != 0 {
                    assert!(
                        self.tables
                            .ports
                            .keys()
                            .any(|(id, _)| *id == entry.ports_id)
                    );
                }
            }
            for service in self.tables.ports.values() {
                assert!(*service == 0 || self.tables.services.contains_key(service));
            }
            assert!(self.has_prefixes || self.tables.prefixes.is_empty());
        }
    }

    fn put<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }

    impl Sink for Memory {
        fn write(&mut self, step: &Step) -> Result<(), ApplyError> {
            if self.fail_at == Some(self.writes) {
                self.fail_at = None;
                return Err(ApplyError {
                    map: "TEST",
                    reason: "full".into(),
                });
            }
            self.writes += 1;
            match *step {
                Step::Service(key, value) => put(&mut self.tables.services, key, value),
                Step::Port(key, value) => put(&mut self.tables.ports, key, value),
                Step::Address(key, value) => put(&mut self.tables.addresses, key, value),
                Step::Prefix(key, value) => put(&mut self.tables.prefixes, key, value),
                Step::HasPrefixes(has) => self.has_prefixes = has,
            }
            self.check();
            Ok(())
        }
    }

    fn same(memory: &Memory, tables: &Tables) {
        assert_eq!(memory.tables.services, tables.services);
        assert_eq!(memory.tables.ports, tables.ports);
        assert_eq!(memory.tables.addresses, tables.addresses);
        assert_eq!(memory.tables.prefixes, tables.prefixes);
        assert_eq!(memory.has_prefixes, !tables.prefixes.is_empty());
    }

    /// Number, prefix and ports.
    type Brief = (
        u16,
        Option<&'static str>,
        Option<std::ops::RangeInclusive<u16>>,
    );

    fn tables(services: &[Brief], previous: &Tables) -> Tables {
        let targets: Vec<Target> = services
            .iter()
            .map(|(number, prefix, ports)| Target {
                number: *number,
                name: String::new(),
                prefixes: prefix.map(|net| vec![net.parse().unwrap()]),
                ports: ports.clone().map(|range| vec![range]),
                config: ServiceConfig {
                    high: u32::from(*number),
                    ..NO_SERVICE
                },
            })
            .collect();
        let address = LocalAddress {
            address: "192.0.2.1".parse().unwrap(),
            mtu: 1500,
        };
        let facts = Facts {
            addresses: vec![address],
            mtu: 1500,
            ..Facts::default()
        };
        compile(&targets, &facts, previous).unwrap()
    }

    #[test]
    fn every_change_is_whole_or_not_at_all_and_never_dangles() {
        let nothing = Tables::default();
        let a = tables(
            &[(1, None, Some(80..=90)), (2, Some("10.0.0.0/8"), None)],
            &nothing,
        );
        let b = tables(
            &[
                (1, None, Some(80..=85)),
                (3, Some("10.1.0.0/16"), Some(1..=3)),
            ],
            &a,
        );
        let c = tables(&[(4, None, None)], &b);
        for (old, new) in [(&nothing, &a), (&a, &b), (&b, &c), (&c, &nothing), (&b, &a)] {
            let mut memory = Memory::holding(old, None);
            let writes = apply(&mut memory, old, new).unwrap();
            assert!(writes > 0);
            same(&memory, new);
            for fail_at in 0..writes {
                let mut memory = Memory::holding(old, Some(fail_at));
                apply(&mut memory, old, new).unwrap_err();
                same(&memory, old);
            }
        }
        assert_eq!(apply(&mut Memory::holding(&a, None), &a, &a).unwrap(), 0);
    }
}
