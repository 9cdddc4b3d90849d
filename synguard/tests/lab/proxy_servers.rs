//! Servers that are down or late, packets lost between edge and server, and links whose MTU must be
//! found out.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener},
    thread,
    time::{Duration, Instant},
};

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader};
use socket2::SockRef;
use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    frame::flags,
    link::Vlan,
    process,
    topology::{ForwardingOptions, Shape},
};

use crate::{
    client::{ECHO, HTTP, echo, exchange},
    guard::{PATIENCE, count, eventually, packets},
    proxy_rules::{ACK, Hook, Rules, SYN, SYN_ACK},
    proxy_site::{PROMPT, Place, SPARE, Site, at_each},
};

const SECOND: Duration = Duration::from_secs(1);

/// Runs a test at every place at once, guarded; most of their time is waiting.
fn everywhere_at_once(what: &str, test: impl Fn(Place, &Site) + Sync) {
    thread::scope(|scope| {
        for place in Place::ALL {
            let test = &test;
            if place.is_possible(what) {
                scope.spawn(move || test(place, &Site::plain(place)));
            }
        }
    });
}

/// The ACK that carries the cookie is lost. The client knows no better than that it is connected, and
/// that the window is shut: what it sends next is a probe of that.
#[test]
fn the_first_ack_is_lost() {
    let what = "the_first_ack_is_lost";
    at_each(&Place::ALL, what, |place, site, _| {
        for target in site.both(ECHO) {
            let rules = Rules::lose_first(site.client(), Hook::Output, ACK);
            let begin = Instant::now();
            let stream = site.connect(target);
            echo(&stream, b"a client that speaks first").unwrap();
            let took = begin.elapsed();
            assert_eq!(rules.lost(), 1, "{place:?}, {target}");
            assert!(
                took < Duration::from_secs(2),
                "{place:?}, {target}: {took:?}"
            );
            echo(&stream, b"and goes on").unwrap();
        }
    });
}

#[test]
fn a_server_that_is_down_refuses() {
    everywhere_at_once("a_server_that_is_down_refuses", |place, site| {
        let server = site.serve();
        let guard = site.guard_knowingly();
        drop(server);
        // A process that is just being started, by a test beside this one, may hold it open.
        let port = site.bound(false, HTTP).port();
        eventually("nobody listens", || {
            (!process::listens(site.server(), port).unwrap()).then_some(())
        });
        for target in site.both(HTTP) {
            let begin = Instant::now();
            // The connection may be seen to come about before it is seen to end.
            let refused = client::connect(site.client(), target, &Default::default());
            let error = match refused {
                Ok(mut stream) => stream.read(&mut [0]).unwrap_err(),
                Err(error) => error.downcast().unwrap(),
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{place:?}");
            // Four places at once, on a busy machine; a second is what any retry would take.
            let took = begin.elapsed();
            assert!(took < 5 * PROMPT, "{place:?}, {target}: {took:?}");
        }
        let service = guard.service();
        assert_eq!(
            packets(&service, Reason::SpliceRefused),
            2,
            "{place:?}: {service:?}"
        );
        let _server = site.serve();
        for target in site.both(HTTP) {
            exchange(&site.connect(target), 10_000);
        }
    });
}

/// A conversation in which the client begins, on a connection of which there is one.
#[track_caller]
fn talk_once(site: &Site, v6: bool, what: &str) {
    let bound = site.bound(v6, SPARE);
    let listener = site.server().run(|| Ok(TcpListener::bind(bound)?)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stream = site.connect(site.dial(v6, SPARE));
    (&stream).write_all(b"ping").unwrap();
    let (mut server, peer) = eventually(what, || listener.accept().ok());
    assert_eq!(peer, stream.local_addr().unwrap(), "{what}");
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = [0; 4];
    server.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ping", "{what}");
    server.write_all(b"pong").unwrap();
    (&stream).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"pong", "{what}");
    let second = listener.accept().map_err(|error| error.kind());
    assert_eq!(
        second.err(),
        Some(ErrorKind::WouldBlock),
        "{what}: a second connection"
    );
}

#[test]
fn a_server_that_answers_late() {
    everywhere_at_once("a_server_that_answers_late", |place, site| {
        let server = site.serve();
        let guard = site.guard_knowingly();
        let begin = Instant::now();
        let rules = Rules::lose(site.server(), Hook::Input, SYN);
        thread::scope(|scope| {
            for v6 in [false, true] {
                scope.spawn(move || talk_once(site, v6, &format!("{place:?}, IPv6 {v6}")));
            }
            thread::sleep(2 * SECOND);
            drop(rules);
        });
        // The SYN comes at once, after one second, and after two more.
        let took = begin.elapsed();
        assert!(
            (2 * SECOND..5 * SECOND).contains(&took),
            "{place:?}: {took:?}"
        );
        let service = guard.service();
        assert_eq!(
            packets(&service, Reason::SpliceStarted),
            2,
            "{place:?}: {service:?}"
        );
        assert_eq!(
            packets(&service, Reason::SpliceCompleted),
            2,
            "{place:?}: {service:?}"
        );
        drop(server);
    });
}

/// Clients that do not wait for a late server: one that resets, and comes again by the same tuple,
/// and one that has ended its side before there is another.
#[test]
fn clients_that_give_up_on_a_late_server() {
    everywhere_at_once("clients_that_give_up_on_a_late_server", |place, site| {
        let _server = site.serve();
        let guard = site.guard_knowingly();
        for v6 in [false, true] {
            let what = format!("{place:?}, IPv6 {v6}");
            let bound = site.bound(v6, SPARE);
            let listener = site.server().run(|| Ok(TcpListener::bind(bound)?)).unwrap();
            listener.set_nonblocking(true).unwrap();

            let rules = Rules::lose(site.server(), Hook::Input, SYN);
            let stream = site.connect(site.dial(v6, SPARE));
            let port = stream.local_addr().unwrap();
            eventually(&what, || (rules.lost() == 1).then_some(()));
            SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(stream);
            // Nobody asks the server again.
            thread::sleep(2 * SECOND);
            assert_eq!(rules.lost(), 1, "{what}");
            assert!(listener.accept().is_err(), "{what}");

            let options = ConnectOptions {
                source: Some(port),
                ..ConnectOptions::default()
            };
            let mut stream = site.connect_with(site.dial(v6, SPARE), options);
            stream.write_all(b"last words").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            drop(rules);
            let (mut server, peer) = eventually(&what, || listener.accept().ok());
            assert_eq!(peer, port, "{what}");
            server.set_nonblocking(false).unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            server.read_to_string(&mut text).unwrap();
            assert_eq!(text, "last words", "{what}");
            server.write_all(b"heard").unwrap();
            drop(server);
            text.clear();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "heard", "{what}");
        }
        let service = guard.service();
        assert_eq!(
            packets(&service, Reason::SpliceStarted),
            4,
            "{place:?}: {service:?}"
        );
    });
}

/// The first SYN, SYN-ACK and ACK behind the edge get lost, each in its turn.
fn lose_each(what: &str, site: &Site, xdp: &str) {
    let _server = site.serve();
    let _guard = site.guard_in(xdp);
    for (hook, lost) in [
        (Hook::Input, SYN),
        (Hook::Output, SYN_ACK),
        (Hook::Input, ACK),
    ] {
        for v6 in [false, true] {
            let what = format!("{what}, IPv6 {v6}, first {lost:?}");
            let rules = Rules::lose_first(site.server(), hook, lost);
            let begin = Instant::now();
            talk_once(site, v6, &what);
            let took = begin.elapsed();
            assert_eq!(rules.lost(), 1, "{what}");
            assert!(took < 2 * SECOND, "{what}: {took:?}");
        }
    }
}

#[test]
fn the_inner_handshake_loses_a_packet() {
    everywhere_at_once("the_inner_handshake_loses_a_packet", |place, site| {
        lose_each(&format!("{place:?}"), site, "native");
    });
}

/// What is sent again is made by the daemon: with the tags of the wire, and in the XDP mode there is.
#[test]
fn the_inner_handshake_loses_a_packet_of_another_form() {
    let what = "the_inner_handshake_loses_a_packet_of_another_form";
    let tags = || vec![Vlan::service(100), Vlan::customer(200)];
    thread::scope(|scope| {
        for shape in [Shape::Routed, Shape::Bridged] {
            for (xdp, vlans) in [("generic", vec![]), ("native", tags())] {
                let place = Place::Behind(shape);
                if !place.is_possible(what) {
                    continue;
                }
                scope.spawn(move || {
                    let what = format!("{shape}, {xdp}, {vlans:?}");
                    let options = ForwardingOptions {
                        vlans,
                        ..ForwardingOptions::default()
                    };
                    lose_each(&what, &Site::new(place, options), xdp);
                });
            }
        }
    });
}

/// Behind a link that is narrower than it seems from either end. What the client must know comes from
/// inside, about segments that were translated.
#[test]
fn a_narrow_link_behind_the_edge() {
    const MTU: u32 = 1400;
    let what = "a_narrow_link_behind_the_edge";
    for shape in [Shape::Routed, Shape::Dnat] {
        let place = Place::Behind(shape);
        if !place.is_possible(what) {
            continue;
        }
        let options = ForwardingOptions {
            narrow_mtu: Some(MTU),
            ..ForwardingOptions::default()
        };
        let site = Site::new(place, options);
        let _server = site.serve();
        let guard = site.guard_knowingly();
        for (target, headers) in site.both(HTTP).into_iter().zip([40, 60]) {
            let stream = site.connect(target);
            let wide = client::tcp_info(&stream).unwrap().send_mss;
            exchange(&stream, 2_000_000);
            let narrow = client::tcp_info(&stream).unwrap().send_mss;
            let full = MTU - headers - 12;
            assert!(
                wide > full && narrow <= full,
                "{place:?}, {target}: {wide}, then {narrow}"
            );
            let narrow = client::server_info(&stream).unwrap().send_mss;
            assert!(narrow <= full, "{place:?}, {target}, server: {narrow}");
        }
        let others = guard.status().unprotected;
        assert!(count(&others, Reason::IcmpTranslatedOut) >= 2, "{others:?}");
    }
}

/// A router between client and edge says that what the server sends is too big. It quotes the segment
/// as it was outside, which the server would not know.
#[test]
fn a_narrow_link_before_the_edge() {
    const MTU: u16 = 1300;
    let what = "a_narrow_link_before_the_edge";
    at_each(&Place::ALL, what, |place, site, guard| {
        for (target, headers) in site.both(HTTP).into_iter().zip([40, 60]) {
            let name = format!("{place:?}, {target}");
            let stream = site.connect(target);
            let near = stream.local_addr().unwrap();
            let wide = client::server_info(&stream).unwrap().send_mss;
            let wire = site.wire();
            exchange(&stream, 0);
            // The end of what the server says next, if it does.
            let heard = |patience| {
                let heard = wire.receive_tcp(patience, |answer| {
                    answer.source == target
                        && answer.destination == near
                        && !answer.payload.is_empty()
                });
                let heard = heard.unwrap()?;
                Some(heard.seq.wrapping_add(heard.payload.len() as u32))
            };
            let mut next = heard(PATIENCE).unwrap();
            // What the server has said last, of the two answers.
            while let Some(later) = heard(PROMPT) {
                next = later;
            }

            let quoted = site
                .frame(target, near)
                .flags(flags::ACK)
                .seq(next)
                .payload(&[0; 1400]);
            let quoted = &quoted.build()[14..][..100];
            let to_edge = site.frame(near, target).build();
            let (destination, source) = (&to_edge[..6], &to_edge[6..12]);
            let link = PacketBuilder::ethernet2(
                source.try_into().unwrap(),
                destination.try_into().unwrap(),
            );
            let mut error = Vec::new();
            match (near.ip(), target.ip()) {
                (std::net::IpAddr::V4(router), std::net::IpAddr::V4(server)) => link
                    .ipv4(router.octets(), server.octets(), 64)
                    .icmpv4(Icmpv4Type::DestinationUnreachable(
                        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: MTU },
                    ))
                    .write(&mut error, quoted),
                (std::net::IpAddr::V6(router), std::net::IpAddr::V6(server)) => link
                    .ipv6(router.octets(), server.octets(), 64)
                    .icmpv6(Icmpv6Type::PacketTooBig { mtu: MTU.into() })
                    .write(&mut error, quoted),
                _ => unreachable!(),
            }
            .unwrap();
            wire.send(&error).unwrap();
            exchange(&stream, 1_000_000);
            let narrow = client::server_info(&stream).unwrap().send_mss;
            let full = u32::from(MTU) - headers - 12;
            assert!(
                wide > full && narrow <= full,
                "{name}: {wide}, then {narrow}"
            );
        }
        let others = guard.status().unprotected;
        assert_eq!(count(&others, Reason::IcmpTranslated), 2, "{others:?}");
    });
}
