//! The map `LEDGER` as shared memory: which number is whose, and what the daemon counts itself.
//!
//! It outlives the daemon as the tables do. Without it the next one could not tell which service the
//! numbers in the tables mean, and its counters would begin again.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

use synguard_common::abi::{LEDGER_COUNTS, LEDGER_NAME, Ledger, SERVICE_NONE};

use super::shared::{Shareable, Shared};

/// What is counted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// Turns from guarded to calm.
    Calmed,
    /// Half-open connections given up, for their age or under pressure.
    Expired,
    /// How many of these the server was told to forget.
    Released,
    /// SYN-ACKs sent again.
    Reminded,
}

/// What is counted of the whole box, in the slot of no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum BoxCount {
    /// SYNs sent again to servers that kept silent.
    Retried,
    /// Clients refused in the name of such servers.
    Refused,
    /// Errands that failed.
    ErrandsFailed,
}

/// [`Ledger`] as shared memory.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedLedger {
    name: [AtomicU64; LEDGER_NAME / 8],
    counts: [AtomicU64; LEDGER_COUNTS],
}

const _: () = {
    assert!(size_of::<SharedLedger>() == size_of::<Ledger>());
    assert!(offset_of!(SharedLedger, name) == offset_of!(Ledger, name));
    assert!(offset_of!(SharedLedger, counts) == offset_of!(Ledger, counts));
};

// SAFETY: see the assertions above.
unsafe impl Shareable for SharedLedger {}

/// The mapped array.
pub type Books = Shared<SharedLedger>;

impl SharedLedger {
    /// The name written here; `None` where the number is free.
    pub fn name(&self) -> Option<String> {
        let words = self
            .name
            .each_ref()
            .map(|word| word.load(Ordering::Acquire).to_ne_bytes());
        let bytes = words.as_flattened();
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Writes a name of fewer than [`LEDGER_NAME`] bytes, the first word last: whoever dies in between has
    /// left no name.
    pub fn set_name(&self, name: &str) {
        let mut bytes = [0; LEDGER_NAME];
        let length = name.len().min(LEDGER_NAME - 1);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.name[0].store(0, Ordering::Release);
        for (word, bytes) in self.name.iter().zip(bytes.as_chunks::<8>().0).rev() {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Release);
        }
    }

    /// Frees the number: counters first.
    pub fn clear(&self) {
        for count in &self.counts {
            count.store(0, Ordering::Release);
        }
        self.set_name("");
    }

    fn add(&self, index: usize, by: u64) {
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn read(&self, index: usize) -> u64 {
        self.counts
            .get(index)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Books {
    /// Counts something of a service.
    pub fn count(&self, service: u16, what: Count, by: u64) {
        if let Some(slot) = self.get(service) {
            slot.add(what as usize, by);
        }
    }

    /// What was counted.
    pub fn counted(&self, service: u16, what: Count) -> u64 {
        self.get(service).map_or(0, |slot| slot.read(what as usize))
    }

    /// Counts something of the whole box.
    pub fn count_box(&self, what: BoxCount) {
        if let Some(slot) = self.get(SERVICE_NONE) {
            slot.add(what as usize, 1);
        }
    }

    /// What was counted.
    pub fn counted_box(&self, what: BoxCount) -> u64 {
        self.get(SERVICE_NONE)
            .map_or(0, |slot| slot.read(what as usize))
    }

    /// Who has which number.
    pub fn names(&self) -> Vec<(String, u16)> {
        let numbers = 1..=u16::MAX;
        let slots = self.slots().iter().skip(1);
        numbers
            .zip(slots)
            .filter_map(|(number, slot)| Some((slot.name()?, number)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_counts_are_kept_until_the_number_is_free() {
        let books = Books::anonymous(4).unwrap();
        let long = "x".repeat(63);
        books.get(1).unwrap().set_name("web");
        books.get(3).unwrap().set_name(&long);
        assert_eq!(books.names(), [("web".into(), 1), (long.clone(), 3)]);
        books.get(3).unwrap().set_name("b");
        assert_eq!(books.names()[1], ("b".into(), 3));
        books.count(1, Count::Expired, 5);
        books.count(1, Count::Expired, 2);
        books.count(4, Count::Expired, 2);
        books.count_box(BoxCount::Refused);
        assert_eq!(books.counted(1, Count::Expired), 7);
        assert_eq!(books.counted(1, Count::Calmed), 0);
        assert_eq!(books.counted_box(BoxCount::Refused), 1);
        books.get(1).unwrap().clear();
        assert_eq!(books.counted(1, Count::Expired), 0);
        assert_eq!(books.names(), [("b".into(), 3)]);
    }
}
