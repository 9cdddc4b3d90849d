//! The flow table and the table of verified sources: what there is in them, and what the programs
//! counted.

use aya::maps::{Array, MapData, MapError};
use synguard_common::{
    abi::{Errand, FlowBucket, FlowCounts, FlowEntry, FlowSlot, Sweep, Tuple},
    flowtable::{FREE, Place},
};

use super::{maps::FlowMaps, wire::Wire};

impl FlowMaps {
    /// What the programs counted, summed over the CPUs.
    pub fn counted(&self) -> Result<FlowCounts, MapError> {
        let per_cpu = self.counts.get(&0, 0)?;
        let sum = |total: FlowCounts, part: &Wire<FlowCounts>| FlowCounts {
            created: total.created.wrapping_add(part.0.created),
            evicted: total.evicted.wrapping_add(part.0.evicted),
            verified: total.verified.wrapping_add(part.0.verified),
        };
        Ok(per_cpu.iter().fold(FlowCounts::default(), sum))
    }

    /// What the last sweep found.
    pub fn swept(&self) -> Result<Sweep, MapError> {
        self.sweep.get(&0, 0).map(|Wire(sweep)| sweep)
    }

    /// The next thing to do, if there is one.
    pub fn errand(&mut self) -> Result<Option<Errand>, MapError> {
        match self.errands.pop(0) {
            Ok(Wire(errand)) => Ok(Some(errand)),
            Err(MapError::ElementNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `FLOWS`, as [`synguard_common::flowtable`] lays it out. The daemon leaves it to the programs;
/// this is for looking at them, and for tests. Whole buckets are read and written, so nothing else
/// may be writing.
pub struct FlowTable {
    buckets: Array<MapData, Wire<FlowBucket>>,
    seed: u64,
}

impl FlowTable {
    /// Over the map, with the seed that the programs have.
    pub fn new(buckets: Array<MapData, Wire<FlowBucket>>, seed: u64) -> Self {
        Self { buckets, seed }
    }

    /// Enters a flow, in place of one of the same tuple; false where both its buckets are full.
    pub fn insert(&mut self, tuple: &Tuple, flow: FlowEntry) -> Result<bool, MapError> {
        let place = Place::of(tuple, self.seed);
        let slot = FlowSlot {
            tuple: *tuple,
            flow,
        };
        let has = |bucket: &FlowBucket, way: usize| {
            bucket.tags[way] == place.tag() && bucket.slots[way].tuple == *tuple
        };
        let free = |bucket: &FlowBucket, way: usize| bucket.tags[way] == FREE;
        Ok(self.put(&place, has, slot)? || self.put(&place, free, slot)?)
    }

    fn put(
        &mut self,
        place: &Place,
        fits: impl Fn(&FlowBucket, usize) -> bool,
        slot: FlowSlot,
    ) -> Result<bool, MapError> {
        for index in place.buckets(self.buckets.len()) {
            let Wire(mut bucket) = self.buckets.get(&index, 0)?;
            if let Some(way) = (0..bucket.tags.len()).find(|way| fits(&bucket, *way)) {
                bucket.tags[way] = place.tag();
                bucket.slots[way] = slot;
                self.buckets.set(index, Wire(bucket), 0)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every flow there is.
    pub fn entries(&self) -> Result<Vec<(Tuple, FlowEntry)>, MapError> {
        let mut entries = Vec::new();
        for index in 0..self.buckets.len() {
            let Wire(bucket) = self.buckets.get(&index, 0)?;
            for (tag, slot) in bucket.tags.iter().zip(&bucket.slots) {
                if *tag != FREE {
                    entries.push((slot.tuple, slot.flow));
                }
            }
        }
        Ok(entries)
    }

    /// Removes these flows, as far as they are there.
    pub fn remove(&mut self, tuples: &[Tuple]) -> Result<(), MapError> {
        for tuple in tuples {
            let place = Place::of(tuple, self.seed);
            for index in place.buckets(self.buckets.len()) {
                let Wire(mut bucket) = self.buckets.get(&index, 0)?;
                let has = |way: &usize| {
                    bucket.tags[*way] == place.tag() && bucket.slots[*way].tuple == *tuple
                };
                if let Some(way) = (0..bucket.tags.len()).find(has) {
                    bucket.tags[way] = FREE;
                    self.buckets.set(index, Wire(bucket), 0)?;
                }
            }
        }
        Ok(())
    }
}
