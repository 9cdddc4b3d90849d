//! Paths of admission `local`, and those that have nothing to do with admission.

use synguard_common::verdict::Reason;

use super::{CALM, GUARDED, HalfOpen, Hook, Leaves, OUT, Path, hashed, plain};
use crate::bench::{
    frames::{self, Kind, Syn},
    scene::State,
};

/// In the order of the results.
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
