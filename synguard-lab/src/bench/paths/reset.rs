//! Paths of admission `reset`.

use synguard_common::verdict::Reason;

use super::{GUARDED, Leaves, Path, hashed};
use crate::bench::{
    frames::{self, Kind, Syn},
    scene::Admission,
};

const QUESTION: Path = Path {
    admission: Admission::Reset,
    ..GUARDED
};

/// It passes: a segment of a connection whose other direction is not seen cannot be told from it.
const FORGED: Path = Path {
    leaves: &[Leaves::Service(Reason::Unchecked)],
    ..QUESTION
};

/// In the order of the results.
pub const PATHS: &[Path] = &[
    Path {
        name: "reset_guarded_syn_v4",
        about: "SYN with Linux's options, answered with a SYN-ACK that acknowledges a cookie",
        goal: hashed(50.0),
        ..QUESTION
    },
    Path {
        name: "reset_guarded_syn_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Tagged(1))),
        goal: hashed(53.0),
        ..QUESTION
    },
    Path {
        name: "reset_guarded_syn_v6",
        about: "the same over IPv6",
        ring: |_, _| Ok(frames::syns(Kind::V6, Syn::Linux)),
        goal: hashed(65.0),
        ..QUESTION
    },
    Path {
        name: "reset_forged_rst_v4",
        about: "RST whose cookie has a wrong MAC: passed, its source is not verified",
        ring: |_, harness| frames::forged_rsts(harness, Kind::V4),
        goal: hashed(45.0),
        ..FORGED
    },
    Path {
        name: "reset_forged_rst_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, harness| Ok(frames::tagged(frames::forged_rsts(harness, Kind::V4)?)),
        goal: hashed(48.0),
        ..FORGED
    },
    Path {
        name: "reset_forged_rst_v6",
        about: "the same over IPv6",
        ring: |_, harness| frames::forged_rsts(harness, Kind::V6),
        goal: hashed(60.0),
        ..FORGED
    },
];
