//! Floods of every kind: what was there lives on, what comes gets in, and the counters say what
//! happened to the rest.

use std::time::Duration;

use synguard::model::ServiceStatus;
use synguard_common::verdict::Reason;
use synguard_lab::{
    edge::{CLIENT_V4, CLIENT_V6, Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    flood::{FloodSpec, Kind, Options, Rate, Source},
    frame::{Extension, Frame, TcpOption, flags},
    load::{LoadClient, LoadOptions, Pattern},
    skip_unless_root,
    wire::Wire,
};

use crate::{
    client::{ECHO, HTTP, Talk, both, connect, exchange, serve},
    guard::{Guard, admitted, challenged, count, eventually, packets},
};

/// What each kind of flood must be counted as, with its share of the frames in eighths.
const KINDS: [(Kind, &[(Reason, u64)]); 6] = [
    (Kind::Syn, &[(Reason::Challenged, 8)]),
    (Kind::Ack, &[(Reason::AckInvalid, 8)]),
    (Kind::Rst, &[(Reason::RstUnknown, 8)]),
    (Kind::Fin, &[(Reason::AckInvalid, 8)]),
    (
        Kind::Nonsense,
        // SYN+FIN, SYN+FIN+ACK; SYN+RST, all flags, SYN+RST+FIN; none, FIN, FIN+PSH+URG.
        &[(Reason::SynFin, 2), (Reason::SynRst, 3), (Reason::NoAck, 3)],
    ),
    (
        Kind::Mixed,
        &[
            (Reason::Challenged, 2),
            (Reason::AckInvalid, 3),
            (Reason::RstUnknown, 1),
            (Reason::SynFin, 1),
            (Reason::NoAck, 1),
        ],
    ),
];

/// New clients while something goes on; all must be served.
struct Clients(LoadClient);

impl Clients {
    fn start(edge: &Edge, v6: bool) -> Self {
        let target = both(HTTP)[usize::from(v6)];
        let load = LoadOptions {
            sources: edge.client_sources(v6),
            limit: Duration::from_secs(10),
            ..LoadOptions::new(target, Pattern::Open(200))
        };
        Self(LoadClient::start(&edge.client, load).unwrap())
    }

    #[track_caller]
    fn finish(self, when: &str) {
        let report = self.0.stop().unwrap();
        assert!(report.ok > 0 && report.failed() == 0, "{when}: {report:?}");
    }
}

fn difference(after: &ServiceStatus, before: &ServiceStatus, reason: Reason) -> u64 {
    packets(after, reason) - packets(before, reason)
}

fn floods(v6: bool) {
    const FRAMES: u64 = 120_000;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let talk = Talk::start(&edge, both(ECHO)[usize::from(v6)]);
    for (kind, expected) in KINDS {
        let when = format!("under a flood of kind {kind:?}, IPv6: {v6}");
        let before = guard.service();
        let flood = FloodSpec {
            frames: FRAMES,
            ..FloodSpec::new(kind, Rate::Pps(100_000), both(HTTP)[usize::from(v6)])
        };
        let flood = edge.flood(flood).unwrap();
        let clients = Clients::start(&edge, v6);
        talk.lives(&when);
        let sent = flood.wait().unwrap();
        talk.lives(&when);
        clients.finish(&when);
        assert_eq!(sent, FRAMES, "{when}");

        let after = guard.service();
        for (reason, eighths) in expected {
            let counted = difference(&after, &before, *reason);
            let least = sent * eighths / 8;
            // Random draws, and a ring of 256 frames that a busy machine may find full.
            assert!(
                counted > least * 8 / 10 && counted < least * 12 / 10 + 5000,
                "{when}: {counted} × {}, not about {least}\n{after:?}",
                reason.label()
            );
        }
        // What is not listed does not happen: nothing of a flood gets in.
        for reason in [
            Reason::AdmitRefused,
            Reason::AdmitInvalid,
            Reason::NoRoom,
            Reason::NoKey,
        ] {
            assert_eq!(
                difference(&after, &before, reason),
                0,
                "{when}: {}",
                reason.label()
            );
        }
        assert!(difference(&after, &before, Reason::Admitted) > 0, "{when}");
    }
    talk.finish();
}

#[test]
fn floods_of_every_kind() {
    if skip_unless_root("floods_of_every_kind") {
        floods(false);
    }
}

#[test]
fn floods_of_every_kind_over_ipv6() {
    if skip_unless_root("floods_of_every_kind_over_ipv6") {
        floods(true);
    }
}

#[test]
fn a_syn_flood_as_fast_as_the_core_can() {
    if !skip_unless_root("a_syn_flood_as_fast_as_the_core_can") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    // Adaptive: the flood itself must turn it guarded.
    let guard = Guard::start(&edge, &[]);
    let target = both(HTTP)[0];
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let flood = FloodSpec {
        duration: Duration::from_secs(3),
        cpu: Some(1),
        ..FloodSpec::new(Kind::Syn, Rate::FlatOut, target)
    };
    let flood = edge.flood(flood).unwrap();
    eventually("guarded", || {
        (guard.service().state == "guarded").then_some(())
    });
    let fresh = connect(&edge, target);
    exchange(&fresh, 100_000);
    talk.lives("under a flat-out flood");
    let sent = flood.wait().unwrap();
    talk.finish();
    exchange(&fresh, 100_000);
    let service = guard.service();
    println!("{sent} SYNs sent, {} challenged", challenged(&service));
    assert_eq!(
        (service.guarded_total, packets(&service, Reason::SynCrossed)),
        (1, 1)
    );
    assert!(challenged(&service) > 100_000, "{service:?}");
    assert!(service.half_open <= u64::from(service.high), "{service:?}");
}

/// Only SYNs make anything half-open: the rest is the kernel's business while a service is calm.
#[test]
fn floods_without_syns_leave_it_calm() {
    if !skip_unless_root("floods_without_syns_leave_it_calm") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::start(&edge, &[]);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let clients = Clients::start(&edge, false);
    for kind in [Kind::Ack, Kind::Rst, Kind::Fin, Kind::Nonsense] {
        let flood = FloodSpec {
            frames: 10_000,
            ..FloodSpec::new(kind, Rate::Pps(20_000), both(HTTP)[0])
        };
        edge.flood(flood).unwrap().wait().unwrap();
        talk.lives(&format!("under a flood of kind {kind:?} while calm"));
    }
    clients.finish("while calm");
    talk.finish();
    let service = guard.service();
    assert_eq!(
        (service.state.as_str(), service.guarded_total),
        ("calm", 0),
        "{service:?}"
    );
    assert_eq!(
        (service.half_open, challenged(&service)),
        (0, 0),
        "{service:?}"
    );
    assert!(packets(&service, Reason::Calm) > 30_000, "{service:?}");
}

/// A flood with the addresses and ports of a connection: whoever knows the tuple but no number.
#[test]
fn a_flood_from_the_tuple_of_a_connection() {
    if !skip_unless_root("a_flood_from_the_tuple_of_a_connection") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let _guard = Guard::always(&edge);
    for target in both(ECHO) {
        let talk = Talk::start(&edge, target);
        for kind in [Kind::Syn, Kind::Rst, Kind::Ack, Kind::Fin, Kind::Nonsense] {
            let flood = FloodSpec {
                frames: 5000,
                source: Source::Exact(talk.local),
                options: Options::Timestamps,
                ..FloodSpec::new(kind, Rate::Pps(20_000), target)
            };
            edge.flood(flood).unwrap().wait().unwrap();
            talk.lives(&format!("under {kind:?} of its own tuple {}", talk.local));
        }
        talk.finish();
    }
}

/// Sends each frame many times while a connection talks and clients come; what is counted under
/// `reason` must be all of them, and nobody may be answered.
fn tricks(
    edge: &Edge,
    guard: &Guard,
    wire: &Wire,
    v6: bool,
    cases: Vec<(&str, Vec<Vec<u8>>, Reason)>,
) {
    const TIMES: u64 = 300;
    let talk = Talk::start(edge, both(ECHO)[usize::from(v6)]);
    for (what, frames, reason) in cases {
        let before = guard.service();
        // What hides its service is counted apart from them.
        let hidden = || count(&guard.status().unprotected, reason);
        let hidden_before = hidden();
        let clients = Clients::start(edge, v6);
        let answers_before = edge.counters().unwrap();
        for _ in 0..TIMES {
            for frame in &frames {
                wire.send(frame).unwrap();
            }
        }
        talk.lives(what);
        eventually(what, || {
            let counted = difference(&guard.service(), &before, reason);
            (counted + hidden() - hidden_before >= TIMES).then_some(())
        });
        clients.finish(what);
        let after = guard.service();
        let answers = edge.counters().unwrap();
        let counted = difference(&after, &before, reason) + hidden() - hidden_before;
        let syn_acks = answers.syn_ack - answers_before.syn_ack;
        if reason == Reason::Challenged {
            // The clients' own, and one that a client sent twice.
            let clients = difference(&after, &before, Reason::Admitted);
            assert!(
                (TIMES..TIMES + 3).contains(&(counted - clients)),
                "{what}: {after:?}"
            );
            assert_eq!(syn_acks, TIMES, "{what}: {answers:?}");
        } else {
            assert_eq!(
                (counted, syn_acks),
                (TIMES, 0),
                "{what}: {after:?}, {answers:?}"
            );
        }
        assert_eq!((answers.rst, answers.other), (0, 0), "{what}: {answers:?}");
    }
    talk.finish();
}

#[test]
fn fragments_and_other_tricks() {
    if !skip_unless_root("fragments_and_other_tricks") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let wire = edge.client_wire().unwrap();
    let frame = || -> Frame {
        let from = ([198, 18, 5, 6], 7000).into();
        edge.frame(from, (SERVER_V4, HTTP).into())
    };
    let syn = || frame().options(TcpOption::linux_syn(1460, 7));
    tricks(
        &edge,
        &guard,
        &wire,
        false,
        vec![
            (
                "a SYN in two fragments",
                syn().build_fragments(&[24]),
                Reason::Fragment,
            ),
            (
                "a whole SYN that says more follows",
                vec![syn().fragment(0, true).build()],
                Reason::Fragment,
            ),
            (
                "a SYN behind IP options",
                vec![syn().ip_options(&[1; 8]).build()],
                Reason::Challenged,
            ),
            (
                "a SYN with data",
                vec![syn().payload(b"GET /").build()],
                Reason::Challenged,
            ),
            (
                "a SYN of the wrong version",
                vec![syn().lie_version(6).build()],
                Reason::BadIp,
            ),
            (
                "a header longer than the packet",
                vec![frame().lie_data_offset(15).build()],
                Reason::BadTcp,
            ),
            (
                "a header shorter than a header",
                vec![frame().lie_data_offset(4).build()],
                Reason::BadTcp,
            ),
            (
                "a SYN-ACK from nowhere",
                vec![frame().flags(flags::SYN | flags::ACK).build()],
                Reason::SynAckUnknown,
            ),
            (
                "a SYN with ECE and CWR",
                vec![syn().flags(flags::SYN | flags::ECE | flags::CWR).build()],
                Reason::Challenged,
            ),
            (
                "a SYN with PSH and URG",
                vec![syn().flags(flags::SYN | flags::PSH | flags::URG).build()],
                Reason::Challenged,
            ),
        ],
    );
    // A SYN from the server's own address, and from those nobody may answer.
    let sources = [
        [10, 77, 0, 2],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
    ];
    for source in sources {
        let before = guard.service();
        let syn = edge.frame((source, 7000).into(), (SERVER_V4, HTTP).into());
        wire.send(&syn.build()).unwrap();
        let after = eventually("a SYN is counted", || {
            let after = guard.service();
            (after.syns > before.syns).then_some(after)
        });
        let counted = difference(&after, &before, Reason::BadSource);
        assert_eq!(counted, 1, "from {source:?}: {after:?}");
    }
    exchange(&connect(&edge, (SERVER_V4, HTTP).into()), 1000);
}

#[test]
fn extension_headers() {
    if !skip_unless_root("extension_headers") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let wire = edge.client_wire().unwrap();
    let frame = || -> Frame {
        let from = ("2001:2::5".parse::<std::net::IpAddr>().unwrap(), 7000).into();
        edge.frame(from, (SERVER_V6, HTTP).into())
    };
    let syn = || frame().options(TcpOption::linux_syn(1440, 7));
    let many = |n| (0..n).fold(syn(), |frame, _| frame.extension(Extension::destination(1)));
    tricks(
        &edge,
        &guard,
        &wire,
        true,
        vec![
            (
                "behind hop-by-hop options",
                vec![syn().extension(Extension::hop_by_hop()).build()],
                Reason::Challenged,
            ),
            (
                "behind six headers",
                vec![many(6).build()],
                Reason::Challenged,
            ),
            (
                "behind seven headers",
                vec![many(7).build()],
                Reason::BadExtension,
            ),
            (
                "a first fragment",
                vec![syn().extension(Extension::fragment(0, true, 9)).build()],
                Reason::Fragment,
            ),
            (
                "in two fragments",
                syn().build_fragments(&[24]),
                Reason::Fragment,
            ),
        ],
    );
    exchange(&connect(&edge, (SERVER_V6, HTTP).into()), 1000);
}

/// ACKs for cookies of others, of other tuples and of long ago are worth nothing; a real one is,
/// but only for its own tuple.
#[test]
fn stolen_and_altered_cookies() {
    if !skip_unless_root("stolen_and_altered_cookies") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let wire = edge.client_wire().unwrap();
    for (from, other, target) in [
        (
            (CLIENT_V4, 700).into(),
            (CLIENT_V4, 701).into(),
            both(HTTP)[0],
        ),
        (
            (CLIENT_V6, 700).into(),
            (CLIENT_V6, 701).into(),
            both(HTTP)[1],
        ),
    ] {
        let before = guard.service();
        let syn = edge
            .frame(from, target)
            .seq(9)
            .options(TcpOption::linux_syn(1400, 1));
        let answer = wire
            .exchange(&syn.build(), Duration::from_secs(2))
            .unwrap()
            .unwrap();
        let ack = |from| edge.frame(from, target).flags(flags::ACK).seq(10);
        let cookie = answer.seq;
        for bit in 0..32 {
            let altered = (cookie ^ (1 << bit)).wrapping_add(1);
            wire.send(&ack(from).ack(altered).build()).unwrap();
        }
        wire.send(&ack(other).ack(cookie.wrapping_add(1)).build())
            .unwrap();
        wire.send(&ack(from).seq(11).ack(cookie.wrapping_add(1)).build())
            .unwrap();
        wire.send(&ack(from).ack(cookie).build()).unwrap();
        eventually("all forgeries are counted", || {
            (difference(&guard.service(), &before, Reason::AckInvalid) >= 35).then_some(())
        });
        let after = guard.service();
        assert_eq!(
            difference(&after, &before, Reason::AckInvalid),
            35,
            "{after:?}"
        );
        assert_eq!(admitted(&after), admitted(&before), "{after:?}");
    }
}
