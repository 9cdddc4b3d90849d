//! The paths that are measured: what the service's state is, which packets come, how each must leave,
//! and what it may cost (DESIGN.md section 10).

use anyhow::Result;
use synguard_common::verdict::{Action, Reason};

use super::{
    frames::{self, Bare, Kind, Ring},
    harness::Harness,
    scene::{Scene, State},
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
    /// The service's state.
    pub state: State,
    /// What is half-open.
    pub half_open: HalfOpen,
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
    state: State::Guarded,
    half_open: HalfOpen::Nothing,
    ring: |_, _| Ok(frames::syns(Kind::V4, Bare::Linux)),
    leaves: &[Leaves::Service(Reason::Challenged)],
    goal: None,
};

const CALM: Path = Path { state: State::Calm, leaves: &[Leaves::Service(Reason::Calm)], ..GUARDED };

/// Every path, in the order of the results.
pub const PATHS: &[Path] = &[
    Path {
        name: "guarded_syn_v4",
        about: "SYN with Linux's options, answered with a cookie",
        goal: hashed(75.0),
        ..GUARDED
    },
    Path {
        name: "forged_ack_v4",
        about: "ACK without a valid cookie, dropped",
        ring: |_, harness| frames::acks(harness, Kind::V4, false),
        leaves: &[Leaves::Service(Reason::AckInvalid)],
        goal: hashed(65.0),
        ..GUARDED
    },
    Path {
        name: "established_v4",
        about: "segment of a connection, service guarded",
        ring: |scene, _| frames::established(scene, Kind::V4),
        leaves: &[Leaves::Service(Reason::Established)],
        goal: plain(40.0),
        ..GUARDED
    },
    Path {
        name: "unprotected_v4",
        about: "TCP to an address of no service",
        ring: |_, _| Ok(frames::unprotected()),
        leaves: &[Leaves::NoService(Reason::Unprotected)],
        goal: plain(15.0),
        ..GUARDED
    },
];
