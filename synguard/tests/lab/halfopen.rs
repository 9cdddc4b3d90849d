//! What counts as half-open, and how it makes a service guarded and calm: by raw frames, so that
//! every SYN and ACK is one of ours.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use synguard_common::verdict::Reason;
use synguard_lab::{
    edge::{Edge, EdgeOptions, FLOOD_V4, SERVER_V4},
    flood::{FloodSpec, Kind, Rate},
    frame::{Answer, Frame, TcpOption, flags},
    link,
    netns::Netns,
    skip_unless_root,
    wire::Wire,
};

use crate::{
    client::{HTTP, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted, challenged, eventually, packets, within},
};

const TARGET: (Ipv4Addr, u16) = (SERVER_V4, HTTP);
const SECOND: Duration = Duration::from_secs(1);
const ISN: u32 = 0x1234_5678;
/// An address on the client's wire that no kernel has: nobody answers for it but the test.
const RAW: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);

/// Half-open connections that the server's kernel knows, in both families.
pub fn syn_received(ns: &Netns) -> u64 {
    const SYN_RECV: &str = "03";
    let of = |table: &str| {
        let path = format!("/proc/thread-self/net/{table}");
        let table = ns.run(|| Ok(std::fs::read_to_string(path)?)).unwrap();
        let states = table
            .lines()
            .skip(1)
            .map(|line| line.split_ascii_whitespace().nth(3));
        states.filter(|state| *state == Some(SYN_RECV)).count() as u64
    };
    of("tcp") + of("tcp6")
}

/// The n-th of many clients whose answers nobody hears.
fn spoofed(n: u16) -> SocketAddr {
    let IpAddr::V4(base) = FLOOD_V4.0.into() else {
        unreachable!()
    };
    let address = Ipv4Addr::from(u32::from(base) + 1 + u32::from(n % 250));
    (address, 2000 + n).into()
}

fn syn(edge: &Edge, from: SocketAddr) -> Vec<u8> {
    edge.frame(from, TARGET.into())
        .seq(ISN)
        .options(TcpOption::linux_syn(1460, 1))
        .build()
}

/// Makes the server send to [`RAW`] by way of the client's end.
fn know_raw(edge: &Edge) {
    let (index, mac) = (edge.server_top.index, edge.client_end.mac);
    edge.server
        .netlink(async |handle| link::add_neighbour(&handle, index, RAW.into(), mac).await)
        .unwrap();
}

/// The frame that answers a SYN-ACK.
fn reply(edge: &Edge, answer: &Answer) -> Frame {
    edge.frame(answer.destination, answer.source)
        .flags(flags::ACK)
        .seq(answer.ack)
        .ack(answer.seq.wrapping_add(1))
        .options(match answer.timestamps() {
            Some((val, _)) => vec![
                TcpOption::Nop,
                TcpOption::Nop,
                TcpOption::Timestamps(2, val),
            ],
            None => vec![],
        })
}

/// Asks for `/` on a connection whose SYN-ACK is `answer`; the ACK comes first, then the request.
fn finish_handshake(edge: &Edge, wire: &Wire, answer: &Answer) -> Option<Answer> {
    let request = b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n";
    wire.send(&reply(edge, answer).build()).unwrap();
    let request = reply(edge, answer)
        .flags(flags::ACK | flags::PSH)
        .payload(request)
        .build();
    wire.send(&request).unwrap();
    let (to, from) = (answer.destination, answer.source);
    wire.receive_tcp(2 * SECOND, |got| {
        got.source == from && got.destination == to && !got.payload.is_empty()
    })
    .unwrap()
}

#[test]
fn forged_acks_do_not_lower_the_count() {
    if !skip_unless_root("forged_acks_do_not_lower_the_count") {
        return;
    }
    const CLIENTS: u16 = 200;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::with_config(&edge, "[defaults]\nhigh = 3000\nlow = 1000\n", &[]);
    let wire = edge.client_wire().unwrap();
    for n in 0..CLIENTS {
        wire.send(&syn(&edge, spoofed(n))).unwrap();
    }
    eventually("200 half-open", || {
        (guard.service().half_open == u64::from(CLIENTS)).then_some(())
    });
    assert_eq!(syn_received(&edge.server), u64::from(CLIENTS));

    // The right sequence number, as an eavesdropper before the server would have it, and a thousand
    // guesses at the acknowledgement; with RST and data among them.
    for guess in 0..5u32 {
        for n in 0..CLIENTS {
            let ack = 0x9e37_79b9u32.wrapping_mul(guess * 1000 + u32::from(n) + 1);
            let frame = edge.frame(spoofed(n), TARGET.into()).seq(ISN + 1).ack(ack);
            let frame = match guess {
                0..3 => frame.flags(flags::ACK),
                3 => frame.flags(flags::ACK | flags::PSH).payload(b"x"),
                // Far outside the window.
                _ => frame.flags(flags::RST).seq(ISN.wrapping_add(0x4000_0000)),
            };
            wire.send(&frame.build()).unwrap();
        }
    }
    // Random tuples as well.
    let flood = FloodSpec {
        frames: 20_000,
        ..FloodSpec::new(Kind::Ack, Rate::Pps(50_000), TARGET.into())
    };
    edge.flood(flood).unwrap().wait().unwrap();
    // Everything before it has been dealt with when this one has.
    exchange(&connect(&edge, TARGET.into()), 1000);

    let service = guard.service();
    assert_eq!(service.half_open, u64::from(CLIENTS), "{service:?}");
    assert_eq!(syn_received(&edge.server), u64::from(CLIENTS));
    assert_eq!(
        (service.state.as_str(), challenged(&service)),
        ("calm", 0),
        "{service:?}"
    );
    // The one connection that was real came and left.
    assert_eq!(packets(&service, Reason::HandshakeDone), 1, "{service:?}");
}

#[test]
fn a_flood_raises_the_count_by_its_frames() {
    if !skip_unless_root("a_flood_raises_the_count_by_its_frames") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::with_config(&edge, "[defaults]\nhigh = 3000\nlow = 1000\n", &[]);
    let spec = FloodSpec {
        frames: 300,
        ..FloodSpec::new(Kind::Syn, Rate::Pps(2000), TARGET.into())
    };
    assert_eq!(edge.flood(spec).unwrap().wait().unwrap(), 300);
    let count = eventually("300 SYNs", || {
        let service = guard.service();
        (service.syns == 300).then_some(service.half_open)
    });
    // Two of 300 random tuples are the same once in a million times; what counts is the kernel.
    assert_eq!(count, syn_received(&edge.server));
    assert!(count > 290, "{count}");
}

#[test]
fn guarded_at_the_watermark_and_calm_after_the_flood() {
    if !skip_unless_root("guarded_at_the_watermark_and_calm_after_the_flood") {
        return;
    }
    const HIGH: u16 = 50;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    know_raw(&edge);
    let _server = serve(&edge);
    let config = "[defaults]\nhigh = 50\nlow = 25\ncalm_seconds = 15\nhalf_open_timeout = \"2s\"\n";
    let guard = Guard::with_config(&edge, config, &[]);
    let wire = edge.client_wire().unwrap();
    let before = connect(&edge, TARGET.into());

    // Entries live for two seconds: these are sent in far less.
    for n in 1..HIGH {
        wire.send(&syn(&edge, spoofed(n))).unwrap();
    }
    // One of the SYNs is that of the connection.
    let service = eventually("one below the watermark", || {
        let service = guard.service();
        (service.syns >= u64::from(HIGH)).then_some(service)
    });
    assert_eq!(
        (service.half_open, service.state.as_str()),
        (49, "calm"),
        "{service:?}"
    );
    assert_eq!(
        (packets(&service, Reason::SynCrossed), challenged(&service)),
        (0, 0)
    );

    // Three frames in one go. The first brings the count to the watermark and passes, the second
    // must be answered with a cookie already: no daemon could be that quick.
    for n in HIGH..HIGH + 3 {
        wire.send(&syn(&edge, spoofed(n))).unwrap();
    }
    let service = eventually("three more SYNs", || {
        let service = guard.service();
        (service.syns >= u64::from(HIGH) + 3).then_some(service)
    });
    assert_eq!(service.state, "guarded", "{service:?}");
    assert_eq!(packets(&service, Reason::SynCrossed), 1, "{service:?}");
    assert_eq!(packets(&service, Reason::SynTracked), 50, "{service:?}");
    assert_eq!(challenged(&service), 2, "{service:?}");
    assert_eq!(service.guarded_total, 1, "{service:?}");
    assert!(syn_received(&edge.server) <= u64::from(HIGH));
    exchange(&before, 1000);
    exchange(&connect(&edge, TARGET.into()), 1000);

    // A SYN a second, so that there is a fresh cookie when the service becomes calm: handed out
    // while it was guarded, returned when it is not.
    let mut port = 30_000;
    let mut cookie = None;
    let limit = Duration::from_secs(30);
    within(limit, "calm again", || {
        let from = (RAW, port).into();
        port += 1;
        let answer = wire.exchange(&syn(&edge, from), SECOND).unwrap();
        let service = guard.service();
        // Its answer is a cookie if the service was guarded still.
        let calm = service.state == "calm";
        if !calm {
            cookie = answer;
            std::thread::sleep(SECOND / 3);
        }
        calm.then_some(())
    });
    let service = guard.service();
    assert_eq!(
        (service.calmed_total, service.guarded_total),
        (1, 1),
        "{service:?}"
    );
    let admitted_before = admitted(&service);
    let answer = finish_handshake(&edge, &wire, &cookie.expect("a cookie"));
    let service = guard.service();
    assert_eq!(admitted(&service), admitted_before + 1, "{service:?}");
    let answer = answer.expect("an answer over a connection of the grace period");
    assert!(answer.payload.starts_with(b"HTTP/1.1 200"), "{answer}");

    // Calm means that the kernel answers again.
    let challenged_before = challenged(&service);
    exchange(&connect(&edge, TARGET.into()), 1000);
    assert_eq!(challenged(&guard.service()), challenged_before);
    exchange(&before, 1000);
}

#[test]
fn half_open_connections_are_given_up_with_age() {
    if !skip_unless_root("half_open_connections_are_given_up_with_age") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let config = "[defaults]\nhigh = 3000\nlow = 1000\nhalf_open_timeout = \"1s\"\n";
    let guard = Guard::with_config(&edge, config, &[]);
    let wire = edge.client_wire().unwrap();
    for n in 0..20 {
        wire.send(&syn(&edge, spoofed(n))).unwrap();
    }
    let expired = within(PATIENCE, "the count falls to 0", || {
        let service = guard.service();
        (service.syns == 20 && service.half_open == 0).then_some(service.expired_total)
    });
    assert_eq!(expired, 20);
    assert_eq!(syn_received(&edge.server), 0, "and the server knows");
}

/// Whoever holds a cookie gets in though the mode was changed meanwhile.
#[test]
fn a_cookie_outlives_a_change_of_mode() {
    if !skip_unless_root("a_cookie_outlives_a_change_of_mode") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    know_raw(&edge);
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let wire = edge.client_wire().unwrap();
    for (port, mode) in [(30_000, "adaptive"), (30_001, "observe")] {
        guard.set_mode("always");
        let answer = wire
            .exchange(&syn(&edge, (RAW, port).into()), SECOND)
            .unwrap();
        guard.set_mode(mode);
        let got = finish_handshake(&edge, &wire, &answer.expect("a cookie"));
        let service = guard.service();
        assert!(
            got.is_some(),
            "no answer after always became {mode}: {service:?}"
        );
    }
}

#[test]
fn a_request_in_the_same_batch_as_the_ack() {
    if !skip_unless_root("a_request_in_the_same_batch_as_the_ack") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    know_raw(&edge);
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    // What arrives within two milliseconds is received in one go, as by a NIC that coalesces
    // interrupts.
    edge.server_end.moderate(Duration::from_millis(2)).unwrap();
    let wire = edge.client_wire().unwrap();
    for port in 30_000..30_200 {
        let answer = wire
            .exchange(&syn(&edge, (RAW, port).into()), SECOND)
            .unwrap();
        let answer = answer.expect("a cookie");
        let got = finish_handshake(&edge, &wire, &answer).expect("an answer");
        assert!(got.payload.starts_with(b"HTTP/1.1 200"), "{got}");
        // The client would have to send what got lost again: here it never does.
        assert_eq!(got.ack, answer.ack.wrapping_add(29), "{got}");
    }
    let service = guard.service();
    assert_eq!(
        (admitted(&service), challenged(&service)),
        (200, 200),
        "{service:?}"
    );
}
