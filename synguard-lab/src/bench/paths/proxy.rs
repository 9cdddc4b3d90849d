//! Paths of admission `proxy`. The programs have learned the server's profile from its SYN-ACK before
//! each of them.

use synguard_common::verdict::Reason;

use super::{CALM, GUARDED, Leaves, OUT, Path, hashed, plain};
use crate::bench::{
    flows::{self, Flows},
    frames::{self, Kind, Syn},
    scene::{Admission, State},
};

const CHALLENGE: Path = Path {
    admission: Admission::Proxy,
    ..GUARDED
};

const FORGED: Path = Path {
    leaves: &[Leaves::Service(Reason::AckInvalid)],
    ..CHALLENGE
};

const START: Path = Path {
    afresh: true,
    leaves: &[Leaves::Service(Reason::SpliceStarted)],
    ..CHALLENGE
};

const INWARD: Path = Path {
    flows: Flows::Spliced,
    leaves: &[Leaves::Service(Reason::Translated)],
    ..CHALLENGE
};

const OUTWARD: Path = Path {
    admission: Admission::Proxy,
    state: State::Guarded,
    flows: Flows::Spliced,
    leaves: &[Leaves::Service(Reason::TranslatedOut)],
    ..OUT
};

const KNOWN: Path = Path {
    flows: Flows::Known,
    leaves: &[Leaves::Service(Reason::FlowKnown)],
    ..CHALLENGE
};

/// In the order of the results.
pub const PATHS: &[Path] = &[
    Path {
        name: "proxy_guarded_syn_v4",
        about: "SYN with Linux's options, answered with a cookie and what the server offers",
        goal: hashed(50.0),
        ..CHALLENGE
    },
    Path {
        name: "proxy_guarded_syn_v4_windows",
        about: "the same with Windows' options",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Windows)),
        goal: hashed(50.0),
        ..CHALLENGE
    },
    Path {
        name: "proxy_guarded_syn_v4_vlan1",
        about: "Linux's options behind one VLAN tag",
        ring: |_, _| Ok(frames::syns(Kind::V4, Syn::Tagged(1))),
        goal: hashed(53.0),
        ..CHALLENGE
    },
    Path {
        name: "proxy_guarded_syn_v6",
        about: "Linux's options over IPv6",
        ring: |_, _| Ok(frames::syns(Kind::V6, Syn::Linux)),
        goal: hashed(65.0),
        ..CHALLENGE
    },
    Path {
        name: "proxy_forged_ack_v4",
        about: "ACK whose cookie has a wrong MAC, dropped",
        ring: |_, harness| frames::acks(harness, Kind::V4, false),
        goal: hashed(45.0),
        ..FORGED
    },
    Path {
        name: "proxy_forged_ack_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, harness| Ok(frames::tagged(frames::acks(harness, Kind::V4, false)?)),
        goal: hashed(48.0),
        ..FORGED
    },
    Path {
        name: "proxy_forged_ack_v6",
        about: "the same over IPv6",
        ring: |_, harness| frames::acks(harness, Kind::V6, false),
        goal: hashed(60.0),
        ..FORGED
    },
    Path {
        name: "proxy_valid_ack_v4",
        about: "ACK with a valid cookie, turned into a SYN: one insert, of a connection that the flow table does not have",
        ring: |_, harness| frames::acks(harness, Kind::V4, true),
        goal: hashed(250.0),
        ..START
    },
    Path {
        name: "proxy_valid_ack_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, harness| Ok(frames::tagged(frames::acks(harness, Kind::V4, true)?)),
        goal: hashed(253.0),
        ..START
    },
    Path {
        name: "proxy_valid_ack_v6",
        about: "the same over IPv6",
        ring: |_, harness| frames::acks(harness, Kind::V6, true),
        goal: hashed(265.0),
        ..START
    },
    Path {
        name: "proxy_translated_in_v4",
        about: "client's data of a spliced connection, with timestamps",
        ring: |_, _| Ok(flows::from_clients(Kind::V4)),
        goal: plain(60.0),
        ..INWARD
    },
    Path {
        name: "proxy_translated_in_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, _| Ok(frames::tagged(flows::from_clients(Kind::V4))),
        goal: plain(63.0),
        ..INWARD
    },
    Path {
        name: "proxy_translated_in_v4_sack",
        about: "client's ACK with timestamps and three SACK blocks",
        ring: |_, _| Ok(flows::from_clients_with_sack(Kind::V4)),
        goal: plain(60.0),
        ..INWARD
    },
    Path {
        name: "proxy_translated_in_v6",
        about: "client's data over IPv6",
        ring: |_, _| Ok(flows::from_clients(Kind::V6)),
        goal: plain(75.0),
        ..INWARD
    },
    Path {
        name: "proxy_translated_in_v6_sack",
        about: "the ACK with three SACK blocks over IPv6",
        ring: |_, _| Ok(flows::from_clients_with_sack(Kind::V6)),
        goal: plain(75.0),
        ..INWARD
    },
    Path {
        name: "proxy_translated_out_v4",
        about: "TC egress: server's data of a spliced connection, with timestamps",
        ring: |_, _| Ok(flows::from_server(Kind::V4)),
        goal: plain(60.0),
        ..OUTWARD
    },
    Path {
        name: "proxy_translated_out_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, _| Ok(frames::tagged(flows::from_server(Kind::V4))),
        goal: plain(63.0),
        ..OUTWARD
    },
    Path {
        name: "proxy_translated_out_v4_rescaled",
        about: "the same from a server whose window scale is not the promised one",
        ring: |_, _| Ok(flows::from_server(Kind::V4)),
        flows: Flows::Rescaled,
        goal: plain(60.0),
        ..OUTWARD
    },
    Path {
        name: "proxy_translated_out_v6",
        about: "server's data over IPv6",
        ring: |_, _| Ok(flows::from_server(Kind::V6)),
        goal: plain(75.0),
        ..OUTWARD
    },
    Path {
        name: "proxy_known_in_v4",
        about: "client's data of a connection that the server was seen talking on, passed as it is",
        ring: |_, _| Ok(flows::from_clients(Kind::V4)),
        goal: plain(60.0),
        ..KNOWN
    },
    Path {
        name: "proxy_known_in_v4_vlan1",
        about: "the same behind one VLAN tag",
        ring: |_, _| Ok(frames::tagged(flows::from_clients(Kind::V4))),
        goal: plain(63.0),
        ..KNOWN
    },
    Path {
        name: "proxy_known_in_v6",
        about: "the same over IPv6",
        ring: |_, _| Ok(flows::from_clients(Kind::V6)),
        goal: plain(75.0),
        ..KNOWN
    },
    Path {
        name: "proxy_known_out_v4",
        about: "TC egress: server's data of such a connection",
        ring: |_, _| Ok(flows::from_server_known(Kind::V4)),
        flows: Flows::Known,
        leaves: &[Leaves::Uncounted],
        ..OUTWARD
    },
    Path {
        name: "proxy_calm_non_syn_v4",
        about: "client's data, service calm, the server was seen talking",
        state: State::Calm,
        ring: |_, _| Ok(flows::from_clients(Kind::V4)),
        goal: plain(30.0),
        ..KNOWN
    },
    Path {
        name: "proxy_calm_non_syn_v6",
        about: "the same over IPv6",
        state: State::Calm,
        ring: |_, _| Ok(flows::from_clients(Kind::V6)),
        goal: plain(45.0),
        ..KNOWN
    },
    Path {
        name: "proxy_calm_non_syn_v4_unknown",
        about: "client's data, service calm, of a connection that is in no table",
        ring: |_, _| Ok(flows::from_clients(Kind::V4)),
        admission: Admission::Proxy,
        goal: plain(30.0),
        ..CALM
    },
    Path {
        name: "proxy_unrelated_out_v4",
        about: "TC egress: data of a connection of no proxied service",
        ring: |_, _| Ok(frames::unprotected_out()),
        admission: Admission::Proxy,
        leaves: &[Leaves::Uncounted],
        ..OUT
    },
];
