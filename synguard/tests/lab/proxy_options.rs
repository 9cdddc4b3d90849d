//! Options of either side: an option is in use exactly where both have it, once the server's are known;
//! and what becomes of clients when a server has fewer than it was seen to have.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use synguard_common::{profile::MAX_LEARNED_SCALE, verdict::Reason};
use synguard_lab::{
    client::{self, ConnectOptions, TcpInfo},
    topology::{Ecn, ForwardingOptions, Shape, Stack},
};

use crate::{
    client::{HTTP, exchange},
    guard::{PATIENCE, eventually, packets},
    proxy_rules::{sockets, state},
    proxy_site::{Place, Site},
};

/// Every combination of timestamps, SACK and scaling.
fn stacks() -> impl Iterator<Item = Stack> {
    (0..8u8).map(|bits| Stack {
        timestamps: bits & 1 != 0,
        sack: bits & 2 != 0,
        scaling: bits & 4 != 0,
        ecn: Ecn::Accept,
    })
}

fn used(info: &TcpInfo) -> [bool; 3] {
    [info.timestamps, info.sack, info.window_scaling]
}

#[test]
fn an_option_is_used_where_both_sides_have_it() {
    let what = "an_option_is_used_where_both_sides_have_it";
    let place = Place::Behind(Shape::Routed);
    if !place.is_possible(what) {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    for server in stacks() {
        server.apply(site.server()).unwrap();
        Stack::default().apply(site.client()).unwrap();
        let guard = site.guard_knowingly();
        let begin = Instant::now();
        for client in stacks() {
            client.apply(site.client()).unwrap();
            for target in site.both(HTTP) {
                let name = format!("client {client:?}, server {server:?}, {target}");
                let stream = site.connect(target);
                let expected = [
                    client.timestamps && server.timestamps,
                    client.sack && server.sack,
                    client.scaling && server.scaling,
                ];
                let ends = [
                    client::tcp_info(&stream).unwrap(),
                    client::server_info(&stream).unwrap(),
                ];
                for end in ends {
                    assert_eq!(used(&end), expected, "{name}: {ends:?}");
                }
                let [client, server] = ends;
                assert_eq!(
                    client.send_scale,
                    server.receive_scale.min(MAX_LEARNED_SCALE),
                    "{name}: {ends:?}"
                );
                assert!(
                    server.send_scale <= client.receive_scale,
                    "{name}: {ends:?}"
                );
                exchange(&stream, 100_000);
            }
        }
        let service = guard.service();
        // One that asks for what the server was not seen to have may go and ask it, once a second.
        let probed = packets(&service, Reason::ProfileProbe);
        assert!(probed <= begin.elapsed().as_secs() + 1, "{service:?}");
        assert_eq!(
            packets(&service, Reason::SpliceCompleted) + probed,
            16,
            "{service:?}"
        );
        assert_eq!(packets(&service, Reason::SpliceShort), 0, "{service:?}");
    }
}

/// Connects from a port and asks something. What comes first, a reset, the connection or the request,
/// is chance.
fn ask(site: &Site, target: SocketAddr, port: u16) -> std::io::Result<usize> {
    let unspecified: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let options = ConnectOptions {
        source: Some((unspecified, port).into()),
        timeout: PATIENCE,
        ..ConnectOptions::default()
    };
    let mut stream = client::connect(site.client(), target, &options)
        .map_err(|error| error.downcast::<std::io::Error>().unwrap())?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    stream.read(&mut [0; 100])
}

/// Options that go one after the other, from a server that was seen to have all. Each costs one client
/// its connection, at both ends, and none after it.
#[test]
fn a_server_falls_short_of_what_was_promised() {
    let what = "a_server_falls_short_of_what_was_promised";
    let all = Stack {
        ecn: Ecn::Request,
        ..Stack::default()
    };
    let no_timestamps = Stack {
        timestamps: false,
        ..all
    };
    let no_sack = Stack {
        sack: false,
        ..no_timestamps
    };
    let no_ecn = Stack {
        ecn: Ecn::Off,
        ..no_sack
    };
    let none = Stack {
        scaling: false,
        ..no_ecn
    };
    // ECN is agreed on only with timestamps beside it, which have the room to remember it.
    let ecn_first = Stack {
        ecn: Ecn::Off,
        ..all
    };
    for place in [Place::Behind(Shape::Dnat), Place::OnEdge] {
        for steps in [
            &[no_timestamps, no_sack, none][..],
            &[ecn_first, no_ecn, none],
        ] {
            if !place.is_possible(what) {
                continue;
            }
            let options = ForwardingOptions {
                client_stack: all,
                server_stack: all,
                ..ForwardingOptions::default()
            };
            let site = Site::new(place, options);
            let _server = site.serve();
            let guard = site.guard_knowingly();
            let target = |round: usize| site.both(HTTP)[round % 2];
            exchange(&site.connect(target(0)), 10_000);
            let mut short = 0;
            for (round, stack) in steps.iter().enumerate() {
                stack.apply(site.server()).unwrap();
                short += 1;
                let name = format!("{place:?}, {stack:?}");

                let port = 41_000 + round as u16;
                let error = ask(&site, target(round), port).expect_err(&name);
                assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                    ),
                    "{name}: {error:?}"
                );
                eventually("nothing is left of it at the server", || {
                    let sockets = sockets(site.server());
                    let left = sockets.iter().any(|s| {
                        s.remote_port == port
                            && [state::SYN_RECEIVED, state::ESTABLISHED].contains(&s.state)
                    });
                    (!left).then_some(())
                });
                let service = guard.service();
                assert_eq!(
                    packets(&service, Reason::SpliceShort),
                    short,
                    "{name}: {service:?}"
                );

                for next in 0..2 {
                    let stream = site.connect(target(round + next));
                    let expected = [stack.timestamps, stack.sack, stack.scaling];
                    assert_eq!(
                        used(&client::tcp_info(&stream).unwrap()),
                        expected,
                        "{name}"
                    );
                    assert_eq!(
                        used(&client::server_info(&stream).unwrap()),
                        expected,
                        "{name}"
                    );
                    exchange(&stream, 100_000);
                }
                assert_eq!(
                    packets(&guard.service(), Reason::SpliceShort),
                    short,
                    "{name}"
                );
            }

            // What was withheld is not believed again at once, for it may be another server's.
            all.apply(site.server()).unwrap();
            guard.set_mode("observe");
            let stream = site.connect(target(0));
            assert_eq!(used(&client::tcp_info(&stream).unwrap()), [true; 3]);
            guard.set_mode("always");
            let stream = site.connect_with(target(0), ConnectOptions::default());
            assert_eq!(used(&client::tcp_info(&stream).unwrap()), [false; 3]);
            exchange(&stream, 10_000);
            let withheld = guard.service().server.unwrap().withheld;
            assert!(withheld.len() >= 3, "{withheld:?}");
        }
    }
}

/// The server's window scale is not the promised one, because it changed after it was learned or
/// because it is too large: its windows are said in the promised one.
#[test]
fn windows_are_scaled_as_promised() {
    // Bounds and default of receive buffers: scales of 7 at most, and of 10.
    const SMALL: &str = "4096 131072 262144";
    const LARGE: &str = "4096 131072 33554432";
    let what = "windows_are_scaled_as_promised";
    for place in [Place::Behind(Shape::Routed), Place::OnEdge] {
        if !place.is_possible(what) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        for (before, after) in [(SMALL, LARGE), (LARGE, LARGE)] {
            let buffers = |sizes| {
                site.server()
                    .set_sysctl("net.ipv4.tcp_rmem", sizes)
                    .unwrap()
            };
            buffers(before);
            let guard = site.guard_knowingly();
            buffers(after);
            for target in site.both(HTTP) {
                let stream = site.connect(target);
                let client = client::tcp_info(&stream).unwrap();
                let server = client::server_info(&stream).unwrap();
                assert_ne!(
                    client.send_scale, server.receive_scale,
                    "{place:?}: {client:?}, {server:?}"
                );
                exchange(&stream, 5_000_000);
            }
            let service = guard.service();
            assert_eq!(packets(&service, Reason::SpliceCompleted), 2, "{service:?}");
        }
    }
}
