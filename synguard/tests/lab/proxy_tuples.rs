//! Tuples that are used again, frames of others that must not count, and many connections in a row:
//! what becomes of flows when clients come and go.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::libc;
use synguard_common::verdict::Reason;
use synguard_lab::{
    client::ConnectOptions,
    edge::{CLIENT_V4, CLIENT_V6},
    frame::{TcpOption, flags},
    http,
    load::{LoadOptions, Pattern, Report},
    topology::{Shape, Stack},
};

use crate::{
    client::{ECHO, HTTP, ask_and_have_it_closed, echo, run_load, stalled},
    guard::{PATIENCE, eventually, packets},
    proxy_site::{Place, Site, at_each},
};

/// The client's first address with a port.
fn from(target: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match target {
        SocketAddr::V4(_) => CLIENT_V4.into(),
        SocketAddr::V6(_) => CLIENT_V6.into(),
    };
    (address, port).into()
}

fn connect_from(site: &Site, target: SocketAddr, port: u16) -> TcpStream {
    let options = ConnectOptions {
        source: Some(from(target, port)),
        ..ConnectOptions::default()
    };
    site.connect_with(target, options)
}

/// The server ends first, and keeps the tuple in TIME_WAIT.
#[test]
fn a_tuple_in_time_wait_is_used_again() {
    const ROUNDS: u64 = 5;
    let what = "a_tuple_in_time_wait_is_used_again";
    at_each(&Place::ALL, what, |place, site, guard| {
        for (timestamps, port) in [(true, 40_000), (false, 40_001)] {
            let stack = Stack {
                timestamps,
                ..Stack::default()
            };
            stack.apply(site.client()).unwrap();
            for target in site.both(HTTP) {
                for round in 0..ROUNDS {
                    let begin = Instant::now();
                    ask_and_have_it_closed(&connect_from(site, target, port));
                    // A second is what a lost SYN costs.
                    let took = begin.elapsed();
                    assert!(
                        took < Duration::from_millis(900),
                        "{place:?}, {target}, timestamps {timestamps}, round {round}: {took:?}"
                    );
                }
            }
        }
        let service = guard.service();
        assert_eq!(
            packets(&service, Reason::SpliceCompleted),
            4 * ROUNDS,
            "{service:?}"
        );
    });
}

/// Ends a connection without a word to its peer.
fn vanish(stream: TcpStream) {
    const TCP_REPAIR: libc::c_int = 19;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_TCP,
            TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The client comes again before anybody knows that it has gone. At once, so that the numbers of both
/// connections are as close as Linux ever makes them.
#[test]
fn a_client_that_vanished_comes_again() {
    const CLIENTS: u16 = 16;
    const ROUNDS: usize = 6;
    let places = [
        Place::Behind(Shape::Routed),
        Place::Behind(Shape::Dnat),
        Place::OnEdge,
    ];
    let what = "a_client_that_vanished_comes_again";
    at_each(&places, what, |place, site, guard| {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let target = site.both(ECHO)[usize::from(client % 2)];
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let begin = Instant::now();
                        let stream = connect_from(site, target, 40_000 + client);
                        echo(&stream, b"here again").unwrap();
                        let took = begin.elapsed();
                        assert!(
                            took < Duration::from_secs(2),
                            "{place:?}, {target}, round {round}: {took:?}"
                        );
                        vanish(stream);
                    }
                });
            }
        });
        let service = guard.service();
        assert!(
            packets(&service, Reason::SpliceChallenged) > 0,
            "{service:?}"
        );
        // Each replaced its predecessor. Those that taught the daemon are flows, too.
        eventually("as many flows as clients", || {
            let flows = guard.status().flows;
            (flows.spliced == u64::from(CLIENTS)).then_some(())
        });
    });
}

/// Frames that anybody can send, with the addresses of a client: its connections go on, and nothing is
/// made, changed or removed.
#[test]
fn frames_of_others_change_nothing() {
    const FRAMES: u32 = 2000;
    let what = "frames_of_others_change_nothing";
    at_each(&Place::ALL, what, |place, site, guard| {
        let mut random = http::payload(1 << 20).flatten();
        let mut number = || u32::from_be_bytes([(); 4].map(|()| random.next().unwrap()));
        let mut talks = Vec::new();
        for target in site.both(ECHO) {
            let talk = site.connect(target);
            echo(&talk, b"before").unwrap();
            talks.push(talk);
            let talk = talks.last().unwrap();
            let settled = eventually("the sweep has seen it", || {
                let flows = guard.status().flows;
                (flows.spliced == talks.len() as u64).then_some(flows)
            });
            let before = packets(&guard.service(), Reason::SpliceStarted);
            let existing = talk.local_addr().unwrap();
            let wire = site.wire();
            let kinds = [
                flags::SYN,
                flags::ACK,
                flags::RST,
                flags::RST | flags::ACK,
                flags::FIN,
                flags::FIN | flags::ACK,
                flags::SYN | flags::ACK,
                flags::PSH | flags::ACK,
            ];
            for n in 0..FRAMES {
                let source = match n % 2 {
                    0 => existing,
                    _ => SocketAddr::new(existing.ip(), 20_000 + (number() % 10_000) as u16),
                };
                let flags = kinds[(n / 2) as usize % kinds.len()];
                let frame = site
                    .frame(source, target)
                    .seq(number())
                    .ack(number())
                    .flags(flags);
                let frame = match n % 3 {
                    0 => frame.payload(b"not from me"),
                    1 => frame.options([
                        TcpOption::Nop,
                        TcpOption::Nop,
                        TcpOption::Timestamps(number(), number()),
                    ]),
                    _ => frame,
                };
                wire.send(&frame.build()).unwrap();
                if n % 64 == 0 {
                    echo(talk, b"meanwhile").unwrap();
                }
            }
            echo(talk, b"afterwards").unwrap();
            std::thread::sleep(Duration::from_millis(600));
            let flows = guard.status().flows;
            let name = format!("{place:?}, {target}: {settled:?}, then {flows:?}");
            assert_eq!(flows.created_total, settled.created_total, "{name}");
            assert_eq!(flows.entries(), settled.entries(), "{name}");
            assert_eq!(flows.spliced, settled.spliced, "{name}");
            assert_eq!(flows.expired_total, settled.expired_total, "{name}");
            let service = guard.service();
            assert_eq!(
                packets(&service, Reason::SpliceStarted),
                before,
                "{service:?}"
            );
        }
    });
}

/// Short connections, sixteen at a time.
fn load(site: &Site, target: SocketAddr, connections: u64) -> Report {
    let load = LoadOptions {
        connections,
        limit: PATIENCE,
        ..LoadOptions::new(target, Pattern::Closed(16))
    };
    run_load(site.client(), load)
}

#[test]
fn short_connections() {
    const CONNECTIONS: u64 = 4000;
    // A hiccup or two of a busy machine hold up all sixteen.
    const HICCUPS: u64 = 64;
    at_each(&Place::ALL, "short_connections", |place, site, guard| {
        for target in site.both(HTTP) {
            let report = load(site, target, CONNECTIONS);
            let name = format!(
                "{place:?}, {target}: {report:?}, over 100 ms: {}",
                stalled(&report)
            );
            println!("{name}");
            assert_eq!((report.ok, report.failed()), (CONNECTIONS, 0), "{name}");
            if stalled(&report) > HICCUPS {
                let free = Site::plain(place);
                let _server = free.serve();
                let free = load(&free, target, CONNECTIONS);
                let allowed = stalled(&free) + HICCUPS;
                assert!(stalled(&report) <= allowed, "{name}\nwithout: {free:?}");
            }
        }
        let service = guard.service();
        let spliced = packets(&service, Reason::SpliceCompleted);
        assert!(spliced >= 2 * CONNECTIONS, "{service:?}");
        for reason in [Reason::SpliceFailed, Reason::FlowTableFull, Reason::NoKey] {
            assert_eq!(packets(&service, reason), 0, "{service:?}");
        }
        eventually("all are over", || {
            (guard.status().flows.pending == 0).then_some(())
        });
        assert_eq!(guard.status().flows.evicted_total, 0);
        assert_eq!(guard.service().half_open, 0);
    });
}
