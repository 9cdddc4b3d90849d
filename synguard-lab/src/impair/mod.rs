//! Loss and reordering at one end of a wire, by two TC programs and a detour: what netem would do on
//! kernels that have it. See `synguard-lab-ebpf/src/impair.rs`.
//!
//! ```no_run
//! use synguard_lab::{
//!     edge::{Edge, EdgeOptions},
//!     impair::{Direction, Impairment},
//! };
//!
//! # fn main() -> anyhow::Result<()> {
//! let edge = Edge::new(EdgeOptions::default())?;
//! let one_percent = Impairment {
//!     loss_per_mille: 10,
//!     ..Impairment::default()
//! };
//! let wire = one_percent.apply(&edge.client_end, Direction::Sent)?;
//! // Connections made now lose one packet in a hundred on their way to the edge.
//! println!("{:?}", wire.counters()?);
//! # Ok(())
//! # }
//! ```

mod detour;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::programs::{TcAttachType, tc::SchedClassifierLink};

use self::detour::Detour;
use crate::{
    link::End,
    programs::{ImpairedReader, Programs},
};

/// How long a delayed packet is held at most; half of it in the mean.
const HOLD: Duration = Duration::from_millis(1);

/// What happens to TCP packets. Everything else, neighbour discovery for one, is left alone, and so
/// are floods, which go round the hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// How many of a thousand packets are lost.
    pub loss_per_mille: u16,
    /// How many of a thousand are delayed by up to a millisecond, so that later ones overtake them.
    pub reorder_per_mille: u16,
    /// Which packets it happens to.
    pub packets: Packets,
}

/// Which TCP packets may be impaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packets {
    /// All, handshakes and bare acknowledgements, too.
    #[default]
    Any,
    /// Those with data.
    Data,
}

/// Which packets of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that leave by it.
    Sent,
    /// Those that arrive at it.
    Received,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impaired {
    /// Packets that it could have happened to.
    pub seen: u64,
    /// Packets lost.
    pub lost: u64,
    /// Packets delayed.
    pub delayed: u64,
    /// Packets delayed that at least one other has overtaken.
    pub overtaken: u64,
}

/// An impairment in force; ends when dropped.
pub struct ImpairedWire {
    counters: ImpairedReader,
    // Dropped in this order: nothing enters the detour any more when it goes.
    _links: [SchedClassifierLink; 2],
    _detour: Detour,
    _programs: Programs,
}

impl Impairment {
    /// Puts it in force at `end`. Not for the guarded interface, whose hooks are the daemon's: take
    /// the other end of the wire.
    ///
    /// From now on, and for good, connections made send, and the end receives, packets as they are on
    /// the wire and none that GSO or GRO have put together.
    pub fn apply(self, end: &End, direction: Direction) -> Result<ImpairedWire> {
        let [loss, reorder] = [self.loss_per_mille, self.reorder_per_mille].map(of_two_to_the_32);
        detour::limit_to_segments(end)?;
        let detour = Detour::new(end, HOLD)?;
        let (hook, flags) = match direction {
            Direction::Sent => (TcAttachType::Egress, 0),
            Direction::Received => (TcAttachType::Ingress, BPF_F_INGRESS),
        };
        let mut programs = Programs::load()?;
        programs.set_impairment(synguard_lab_ebpf::Impairment {
            loss: loss?,
            reorder: reorder?,
            data_only: u32::from(self.packets == Packets::Data),
            detour: detour.entry.index,
            home: end.index,
            home_flags: flags,
        })?;
        let exit = &detour.exit;
        let links = [
            programs.attach_tc("lab_detour", &exit.ns, &exit.name, TcAttachType::Ingress)?,
            programs.attach_tc("lab_impair", &end.ns, &end.name, hook)?,
        ];
        Ok(ImpairedWire {
            counters: programs.impaired().context("cannot count")?,
            _links: links,
            _detour: detour,
            _programs: programs,
        })
    }
}

/// Flag of `bpf_redirect`: as if the device had received it.
const BPF_F_INGRESS: u32 = 1;

/// A probability as the programs want it.
fn of_two_to_the_32(per_mille: u16) -> Result<u32> {
    if per_mille > 1000 {
        bail!("{per_mille} of a thousand packets are too many: at most 1000");
    }
    Ok((u64::from(u32::MAX) * u64::from(per_mille) / 1000) as u32)
}

impl ImpairedWire {
    /// What has happened since it was put in force.
    pub fn counters(&self) -> Result<Impaired> {
        self.counters.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities() {
        assert_eq!(of_two_to_the_32(0).unwrap(), 0);
        assert_eq!(of_two_to_the_32(500).unwrap(), u32::MAX / 2);
        assert_eq!(of_two_to_the_32(1000).unwrap(), u32::MAX);
        assert!(of_two_to_the_32(1001).is_err());
    }
}
