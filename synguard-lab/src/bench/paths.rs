//! The paths that are measured: what the service's state is, which packets come, how each must leave,
//! and what it may cost: the goals that the project has set itself.

mod lists;
mod local;
mod proxy;
mod reset;

use anyhow::Result;
use synguard_common::verdict::{Action, Reason};

use super::{
    flows::Flows,
    frames::{self, Kind, Ring, Syn},
    harness::Harness,
    scene::{Admission, Scene, State},
};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `synguard_in`.
    In,
    /// `synguard_admit`.
    Admit,
    /// `synguard_out`.
    Out,
}

/// What is in the half-open table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOpen {
    /// Nothing.
    Nothing,
    /// One connection that has nothing to do with the packets, counted as half-open.
    Another,
    /// Every connection of the ring.
    All,
}

/// How a packet must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Counted for the service.
    Service(Reason),
    /// Counted for no service.
    NoService(Reason),
    /// Counted as what would have been, in mode observe.
    Observed(Reason),
    /// Without being counted.
    Uncounted,
}

impl Leaves {
    /// What happens to the packet.
    pub const fn action(self) -> Action {
        match self {
            Self::Service(reason) | Self::NoService(reason) => reason.action(),
            Self::Observed(_) | Self::Uncounted => Action::Pass,
        }
    }
}

/// What a path may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Nanoseconds, on a machine where SipHash-2-4 of 24 bytes takes 24.
    pub ns: f64,
    /// Whether the hash is part of it, so that the goal scales with what the hash costs here.
    pub hash: bool,
}

const fn hashed(ns: f64) -> Option<Goal> {
    Some(Goal { ns, hash: true })
}

const fn plain(ns: f64) -> Option<Goal> {
    Some(Goal { ns, hash: false })
}

/// One path.
#[derive(Clone, Copy)]
pub struct Path {
    /// Its name in the results.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The program.
    pub hook: Hook,
    /// The service's admission.
    pub admission: Admission,
    /// Its state.
    pub state: State,
    /// What is half-open.
    pub half_open: HalfOpen,
    /// What is in the flow table.
    pub flows: Flows,
    /// Sources that are blocked, none of which sends anything.
    pub sources: usize,
    /// Whether the flows that the packets make are removed, unmeasured, before they come again.
    pub afresh: bool,
    /// The packets.
    pub ring: fn(&Scene, &mut Harness) -> Result<Ring>,
    /// How they leave, one after the other and over again. The cost is that of one such sequence.
    pub leaves: &'static [Leaves],
    /// What it may cost.
    pub goal: Option<Goal>,
}

const GUARDED: Path = Path {
    name: "",
    about: "",
    hook: Hook::In,
    admission: Admission::Local,
    state: State::Guarded,
    half_open: HalfOpen::Nothing,
    flows: Flows::Nothing,
    sources: 0,
    afresh: false,
    ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Linux)),
    leaves: &[Leaves::Service(Reason::Challenged)],
    goal: None,
};

const CALM: Path = Path {
    state: State::Calm,
    leaves: &[Leaves::Service(Reason::Calm)],
    ..GUARDED
};

const OUT: Path = Path {
    hook: Hook::Out,
    leaves: &[Leaves::Uncounted],
    ..CALM
};

/// Every path, in the order of the results.
pub fn all() -> impl Iterator<Item = &'static Path> {
    [local::PATHS, lists::PATHS, proxy::PATHS, reset::PATHS]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = std::collections::HashSet::new();
        for path in all() {
            assert!(!path.name.is_empty() && !path.about.is_empty());
            assert!(names.insert(path.name), "{}", path.name);
        }
    }

    #[test]
    fn a_ring_holds_whole_sequences() {
        for path in all() {
            assert!(
                frames::RING.is_multiple_of(path.leaves.len()),
                "{}",
                path.name
            );
        }
    }
}
