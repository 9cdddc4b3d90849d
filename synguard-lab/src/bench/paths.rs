//! The paths that are measured: what the service's state is, which packets come, how each must leave,
//! and what it may cost: the goals that the project has set itself.

use anyhow::Result;
use synguard_common::verdict::{Action, Reason};

use super::{
    frames::{self, Kind, Ring, Syn},
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
pub const PATHS: &[Path] = &[
    Path {
        name: "guarded_syn_v4",
        about: "SYN with Linux's options, answered with a cookie",
        goal: hashed(75.0),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v4_windows",
        about: "the same with Windows' options",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Windows)),
        goal: hashed(75.0),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v4_bare",
        about: "the same without options, padded to 60 bytes",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Bare)),
        goal: hashed(75.0),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v4_vlan1",
        about: "Linux's options behind one VLAN tag",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Tagged(1))),
        goal: hashed(78.0),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v4_vlan2",
        about: "Linux's options behind two VLAN tags",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Tagged(2))),
        goal: hashed(78.0),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v4_odd_options",
        about: "options in an order that no stack uses: read byte by byte",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Odd)),
        ..GUARDED
    },
    Path {
        name: "guarded_syn_v6",
        about: "SYN with Linux's options, answered with a cookie",
        ring: |_, _| Ok(frames::syns(Kind::V6, Syn::Linux)),
        goal: hashed(90.0),
        ..GUARDED
    },
    Path {
        name: "forged_ack_v4",
        about: "ACK whose cookie has a wrong MAC, dropped",
        ring: |_, harness| frames::acks(harness, Kind::V4, false),
        leaves: &[Leaves::Service(Reason::AckInvalid)],
        goal: hashed(65.0),
        ..GUARDED
    },
    Path {
        name: "forged_ack_v6",
        about: "the same over IPv6",
        ring: |_, harness| frames::acks(harness, Kind::V6, false),
        leaves: &[Leaves::Service(Reason::AckInvalid)],
        goal: hashed(80.0),
        ..GUARDED
    },
    Path {
        name: "valid_ack_v4",
        about: "ACK with a valid cookie, marked for admission; without what TC ingress does then",
        ring: |_, harness| frames::acks(harness, Kind::V4, true),
        leaves: &[Leaves::Service(Reason::CookieValid)],
        ..GUARDED
    },
    Path {
        name: "established_v4",
        about: "data of a connection, service guarded",
        ring: |scene, _| frames::established(scene, Kind::V4),
        leaves: &[Leaves::Service(Reason::Established)],
        goal: plain(40.0),
        ..GUARDED
    },
    Path {
        name: "established_v6",
        about: "the same over IPv6",
        ring: |scene, _| frames::established(scene, Kind::V6),
        leaves: &[Leaves::Service(Reason::Established)],
        goal: plain(55.0),
        ..GUARDED
    },
    Path {
        name: "rst_unknown_v4",
        about: "RST of no connection, dropped",
        ring: |_, _| Ok(frames::rsts()),
        leaves: &[Leaves::Service(Reason::RstUnknown)],
        ..GUARDED
    },
    Path {
        name: "no_listener_syn_v4",
        about: "SYN to a port without a listener, passed",
        ring: |_, _| Ok(frames::syns_to_nobody()),
        leaves: &[Leaves::Service(Reason::NoListener)],
        ..GUARDED
    },
    Path {
        name: "observe_syn",
        about: "SYN with Linux's options, guarded in mode observe: passed; half-open already",
        state: State::Observe,
        leaves: &[Leaves::Observed(Reason::Challenged)],
        ..GUARDED
    },
    Path {
        name: "calm_syn",
        about: "two packets: a SYN passed and tracked (one insert), and the RST that ends it (one removal)",
        ring: |_, _| Ok(frames::syns_given_up()),
        leaves: &[
            Leaves::Service(Reason::SynTracked),
            Leaves::Service(Reason::HalfOpenReset),
        ],
        ..CALM
    },
    Path {
        name: "calm_non_syn_v4",
        about: "data of a connection, service calm, nothing half-open",
        ring: |scene, _| frames::established(scene, Kind::V4),
        goal: plain(30.0),
        ..CALM
    },
    Path {
        name: "calm_non_syn_v4_half_open",
        about: "the same while another connection is half-open",
        ring: |scene, _| frames::established(scene, Kind::V4),
        half_open: HalfOpen::Another,
        goal: plain(30.0),
        ..CALM
    },
    Path {
        name: "unprotected_v4",
        about: "TCP to an address of no service",
        ring: |_, _| Ok(frames::unprotected()),
        leaves: &[Leaves::NoService(Reason::Unprotected)],
        goal: plain(15.0),
        ..GUARDED
    },
    Path {
        name: "not_tcp",
        about: "UDP to the protected address",
        ring: |_, _| Ok(frames::udp()),
        leaves: &[Leaves::NoService(Reason::NotTcp)],
        goal: plain(15.0),
        ..GUARDED
    },
    Path {
        name: "tc_admit_unmarked",
        about: "TC ingress: a packet that XDP did not mark, as nearly all",
        hook: Hook::Admit,
        ring: |scene, _| frames::established(scene, Kind::V4),
        leaves: &[Leaves::Uncounted],
        ..GUARDED
    },
    Path {
        name: "tc_out_data",
        about: "TC egress: data of a connection",
        ring: |scene, _| frames::from_server(scene),
        ..OUT
    },
    Path {
        name: "tc_out_syn_ack",
        about: "TC egress: the server's SYN-ACK, which confirms a half-open connection",
        ring: |_, _| Ok(frames::syn_acks()),
        half_open: HalfOpen::All,
        leaves: &[Leaves::Service(Reason::SynAckSeen)],
        ..OUT
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (at, path) in PATHS.iter().enumerate() {
            assert!(!path.name.is_empty() && !path.about.is_empty());
            assert!(
                PATHS[at + 1..].iter().all(|other| other.name != path.name),
                "{}",
                path.name
            );
        }
    }

    #[test]
    fn a_ring_holds_whole_sequences() {
        for path in PATHS {
            assert!(
                frames::RING.is_multiple_of(path.leaves.len()),
                "{}",
                path.name
            );
        }
    }
}
