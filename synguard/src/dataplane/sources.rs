//! The table `SOURCES`: what is to be in it, and the writes that bring it there.
//!
//! Packets are looked up all the while. Longer prefixes are written before shorter ones, and afterwards
//! what is not wanted any more is removed, the shortest first: then a source of which the old table and
//! the new one say the same never meets anything else in between. If a write fails, those before it are
//! taken back in reverse order.

use std::net::Ipv4Addr;

use aya::maps::{MapError, lpm_trie::Key as TrieKey};
use ipnet::IpNet;
use synguard_common::abi::{Address, SOURCE_ALLOWED, SOURCE_BLOCKED, SourceEntry, map};
use tracing::error;

use super::{
    apply::{ApplyError, gone, refused},
    maps::Maps,
    tables::{Prefix as Key, prefix_key},
    wire::Wire,
};
use crate::lists::{InForce, List};

/// Ticks by which the end of an entry may differ without being written again: clocks are slewed, and
/// moments rounded.
const SAME_TICKS: u32 = 4;
/// Ends further away than this are left to the daemon: ticks count around after 34 years.
const TICKS_AHEAD: u32 = 1 << 30;

/// Entries in the order of their keys.
pub type Table = Vec<(Key, SourceEntry)>;

/// Where sources are written to.
pub trait Sink {
    /// Writes an entry; `None` removes it.
    fn write(&mut self, key: Key, entry: Option<SourceEntry>) -> Result<(), ApplyError>;
    /// Says whether there is anything to look up.
    fn set_any(&mut self, any: bool) -> Result<(), ApplyError>;
}

/// The table for what is in force. `tick` says at which tick a moment comes.
pub fn compile(
    in_force: &[InForce],
    now: u32,
    tick: impl Fn(crate::journal::Timestamp) -> u32,
) -> Table {
    let mut table: Table = Vec::with_capacity(in_force.len() + 1);
    let ipv4 = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    let mut swallows_ipv4 = false;
    for each in in_force {
        let net = each.prefix.net();
        if let IpNet::V6(v6) = net
            && v6.prefix_len() < 96
            && v6.contains(&ipv4)
        {
            swallows_ipv4 = true;
        }
        let until = each.until.map_or(0, |until| match tick(until) {
            at if at.wrapping_sub(now) > TICKS_AHEAD => 0,
            // 0 is never.
            at => at.max(1),
        });
        let list = match each.list {
            List::Allow => SOURCE_ALLOWED,
            List::Block => SOURCE_BLOCKED,
        };
        table.push((prefix_key(net), SourceEntry { list, until }));
    }
    table.sort_unstable_by_key(|(key, _)| *key);
    // IPv4 lies inside `::/0` when it is mapped, but a prefix of IPv6 says nothing about it.
    let all_ipv4 = (96, ipv4.octets());
    if swallows_ipv4 && let Err(at) = table.binary_search_by_key(&all_ipv4, |(key, _)| *key) {
        table.insert(at, (all_ipv4, SourceEntry::default()));
    }
    table
}

/// The table as it is in the kernel, left by another daemon.
pub fn read_back(maps: &Maps) -> Result<Table, ApplyError> {
    let mut table = Table::new();
    for entry in maps.sources.iter() {
        let (key, Wire(entry)) = entry.map_err(refused(map::SOURCES))?;
        let Wire(Address(address)) = key.data();
        table.push(((key.prefix_len(), address), entry));
    }
    table.sort_unstable_by_key(|(key, _)| *key);
    Ok(table)
}

/// A write, and the one that takes it back.
#[derive(Clone, Copy)]
enum Step {
    Entry {
        key: Key,
        before: Option<SourceEntry>,
        after: Option<SourceEntry>,
    },
    Any {
        before: bool,
        after: bool,
    },
}

impl Step {
    fn write(self, sink: &mut impl Sink) -> Result<(), ApplyError> {
        match self {
            Self::Entry { key, after, .. } => sink.write(key, after),
            Self::Any { after, .. } => sink.set_any(after),
        }
    }

    fn undo(self, sink: &mut impl Sink) -> Result<(), ApplyError> {
        match self {
            Self::Entry { key, before, .. } => sink.write(key, before),
            Self::Any { before, .. } => sink.set_any(before),
        }
    }
}

/// Brings `sink` from `old` to `new`. `old` is what there is from then on; on an error it is what it was,
/// and so is the sink.
pub fn apply(sink: &mut impl Sink, old: &mut Table, mut new: Table) -> Result<(), ApplyError> {
    let steps = steps(old, &mut new);
    for (done, step) in steps.iter().enumerate() {
        let Err(error) = step.write(sink) else {
            continue;
        };
        for undo in steps[..done].iter().rev() {
            if let Err(again) = undo.undo(sink) {
                error!(%again, "cannot take back a change of the lists of sources");
            }
        }
        return Err(error);
    }
    *old = new;
    Ok(())
}

/// The writes. Entries of `new` that are in `old` but for a moment of their end become what they are
/// there.
fn steps(old: &Table, new: &mut Table) -> Vec<Step> {
    let has = !new.is_empty();
    let (mut steps, mut removals) = (Vec::new(), Vec::new());
    let mut left = old.iter().peekable();
    let remove = |(key, entry): &(Key, SourceEntry)| Step::Entry {
        key: *key,
        before: Some(*entry),
        after: None,
    };
    for (key, entry) in new {
        while let Some(gone) = left.next_if(|(other, _)| other < key) {
            removals.push(remove(gone));
        }
        let before = left.next_if(|(other, _)| other == key).map(|(_, e)| *e);
        match before {
            Some(before) if is_same(before, *entry) => *entry = before,
            before => steps.push(Step::Entry {
                key: *key,
                before,
                after: Some(*entry),
            }),
        }
    }
    removals.extend(left.map(remove));
    // Keys begin with the length.
    steps.reverse();
    // Also where nothing changes: another daemon may have ended half-way.
    steps.push(Step::Any {
        before: !old.is_empty(),
        after: has,
    });
    steps.append(&mut removals);
    steps
}

fn is_same(a: SourceEntry, b: SourceEntry) -> bool {
    let apart = (a.until.wrapping_sub(b.until) as i32).unsigned_abs();
    a.list == b.list && (a.until == 0) == (b.until == 0) && apart <= SAME_TICKS
}

impl Sink for Maps {
    fn write(
        &mut self,
        (length, address): Key,
        entry: Option<SourceEntry>,
    ) -> Result<(), ApplyError> {
        let key = TrieKey::new(length, Wire(Address(address)));
        let result = match entry {
            Some(entry) => self.sources.insert(&key, Wire(entry), 0),
            None => gone(self.sources.remove(&key)),
        };
        result.map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENOSPC) => {
                let room = self.capacity(map::SOURCES).unwrap_or(0);
                ApplyError {
                    map: map::SOURCES,
                    reason: format!("it has room for {room} prefixes; use fewer, shorter ones"),
                }
            }
            _ => refused(map::SOURCES)(error),
        })
    }

    fn set_any(&mut self, any: bool) -> Result<(), ApplyError> {
        self.change_runtime(|runtime| runtime.has_sources = any.into())
            .map_err(refused(map::RUNTIME))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::Timestamp;

    /// A table in memory that refuses the write number `fail_at`, and watches sources whose verdict must
    /// not change.
    struct Memory {
        entries: BTreeMap<Key, SourceEntry>,
        any: bool,
        writes: usize,
        fail_at: Option<usize>,
        watched: Vec<([u8; 16], u32)>,
    }

    impl Memory {
        fn holding(table: &Table) -> Self {
            Self {
                entries: table.iter().copied().collect(),
                any: !table.is_empty(),
                writes: 0,
                fail_at: None,
                watched: Vec::new(),
            }
        }

        fn verdict(&self, source: [u8; 16]) -> u32 {
            if !self.any {
                return 0;
            }
            let covers = |(length, address): &Key| {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                u128::from_be_bytes(source) & mask == u128::from_be_bytes(*address)
            };
            let longest = self.entries.iter().rev().find(|(key, _)| covers(key));
            longest.map_or(0, |(_, entry)| entry.list)
        }

        fn step(&mut self) -> Result<(), ApplyError> {
            self.writes += 1;
            if self.fail_at == Some(self.writes) {
                return Err(ApplyError {
                    map: "TEST",
                    reason: "full".into(),
                });
            }
            Ok(())
        }

        fn check(&self) {
            for (source, verdict) in &self.watched {
                assert_eq!(self.verdict(*source), *verdict, "{source:?}");
            }
        }
    }

    impl Sink for Memory {
        fn write(&mut self, key: Key, entry: Option<SourceEntry>) -> Result<(), ApplyError> {
            self.step()?;
            match entry {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key),
            };
            self.check();
            Ok(())
        }

        fn set_any(&mut self, any: bool) -> Result<(), ApplyError> {
            self.step()?;
            self.any = any;
            self.check();
            Ok(())
        }
    }

    /// Prefixes of a net of 16 addresses, so that they cover each other.
    fn table() -> impl Strategy<Value = Table> {
        let entry = (0u32..=4, 0u8..16, 1u32..=2);
        proptest::collection::vec(entry, 0..12).prop_map(|entries| {
            let entry = |(bits, host, list): (u32, u8, u32)| {
                let mut address = [0; 16];
                address[15] = host & (0xf0u8 >> bits & 0x0f);
                ((124 + bits, address), SourceEntry { list, until: 0 })
            };
            let table: BTreeMap<_, _> = entries.into_iter().map(entry).collect();
            table.into_iter().collect()
        })
    }

    proptest! {
        #[test]
        fn whoever_stays_what_he_is_meets_nothing_else_on_the_way(
            old in table(),
            new in table(),
            fail_at in 1usize..20,
        ) {
            let mut memory = Memory::holding(&old);
            let after = Memory::holding(&new);
            let sources = (0..16).map(|host| {
                let mut source = [0; 16];
                source[15] = host;
                source
            });
            memory.watched = sources
                .map(|source| (source, memory.verdict(source)))
                .filter(|(source, verdict)| after.verdict(*source) == *verdict)
                .collect();
            let mut held = old.clone();
            apply(&mut memory, &mut held, new.clone()).unwrap();
            prop_assert_eq!(&memory.entries, &after.entries);
            prop_assert_eq!(memory.any, after.any);
            prop_assert_eq!(&held, &new);

            // Half-way it fails: all is as it was, and nobody noticed.
            let mut failing = Memory { fail_at: Some(fail_at), ..Memory::holding(&old) };
            failing.watched = std::mem::take(&mut memory.watched);
            let mut held = old.clone();
            let before: BTreeMap<_, _> = old.iter().copied().collect();
            if apply(&mut failing, &mut held, new).is_err() {
                prop_assert_eq!(&failing.entries, &before);
                prop_assert_eq!(failing.any, !old.is_empty());
                prop_assert_eq!(held, old);
            }
        }
    }

    fn in_force(prefix: &str, list: List, until: Option<u64>) -> InForce {
        InForce {
            prefix: prefix.parse().unwrap(),
            list,
            until: until.map(Timestamp::from_millis),
        }
    }

    #[test]
    fn prefixes_become_keys_and_moments_ticks() {
        let tick = |until: Timestamp| (until.millis() / 250) as u32;
        let all = [
            in_force("192.0.2.0/24", List::Block, Some(1000)),
            in_force("192.0.2.1", List::Allow, None),
            in_force(
                "2001:db8::/32",
                List::Block,
                Some(u64::from(u32::MAX) * 250),
            ),
        ];
        let table = compile(&all, 0, tick);
        let said: Vec<_> = table
            .iter()
            .map(|((length, _), entry)| (*length, entry.list, entry.until))
            .collect();
        assert_eq!(
            said,
            [
                (32, SOURCE_BLOCKED, 0),
                (120, SOURCE_BLOCKED, 4),
                (128, SOURCE_ALLOWED, 0)
            ]
        );
        // All of IPv6 is not all of IPv4.
        let mut six = vec![in_force("::/0", List::Block, None)];
        let table = compile(&six, 0, tick);
        assert_eq!(table[1].0.0, 96);
        assert_eq!(table[1].1, SourceEntry::default());
        six.push(in_force("0.0.0.0/0", List::Allow, None));
        let both = compile(&six, 0, tick);
        assert_eq!((both.len(), both[1].1.list), (2, SOURCE_ALLOWED));
    }

    #[test]
    fn a_clock_that_is_slewed_costs_no_writes() {
        let at = |until| vec![((128, [1; 16]), SourceEntry { list: 1, until })];
        let mut old = at(100);
        let mut memory = Memory::holding(&old);
        apply(&mut memory, &mut old, at(104)).unwrap();
        assert_eq!(old, at(100));
        apply(&mut memory, &mut old, at(105)).unwrap();
        assert_eq!(old, at(105));
        apply(&mut memory, &mut old, at(0)).unwrap();
        assert_eq!(memory.entries.values().next().unwrap().until, 0);
    }
}
