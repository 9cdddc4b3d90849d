//! The flow table and the table of verified sources: what there is in them, and what the programs
//! counted.

use aya::maps::MapError;
use synguard_common::abi::{Errand, FlowCounts, FlowEntry, Sweep, Tuple};

use super::{maps::FlowMaps, wire::Wire};

impl FlowMaps {
    /// What the programs counted, summed over the CPUs.
    pub fn counted(&self) -> Result<FlowCounts, MapError> {
        let per_cpu = self.counts.get(&0, 0)?;
        let sum = |total: FlowCounts, part: &Wire<FlowCounts>| FlowCounts {
            created: total.created.wrapping_add(part.0.created),
            verified: total.verified.wrapping_add(part.0.verified),
        };
        Ok(per_cpu.iter().fold(FlowCounts::default(), sum))
    }

    /// What the last sweep found.
    pub fn swept(&self) -> Result<Sweep, MapError> {
        self.sweep.get(&0, 0).map(|Wire(sweep)| sweep)
    }

    /// A flow, if it is still there.
    pub fn flow(&self, tuple: &Tuple) -> Result<Option<FlowEntry>, MapError> {
        match self.flows.get(&Wire(*tuple), 0) {
            Ok(Wire(flow)) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
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
