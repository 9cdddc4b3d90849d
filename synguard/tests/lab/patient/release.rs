//! Half-open connections at every place: counted as the server counts them, and released when their time
//! is over, so that the server forgets them too. By raw frames from clients that nobody hears.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use synguard::model::ServiceStatus;
use synguard_common::verdict::Reason;
use synguard_lab::{
    edge::{FLOOD_V4, FLOOD_V6},
    frame::{Frame, TcpOption, flags},
    topology::Shape,
    wire::Wire,
};

use crate::{
    client::{HTTP, exchange},
    guard::{Guard, eventually, packets, within},
    halfopen::syn_received,
    proxy_site::{Place, Site},
};

const ISN: u32 = 0x8765_4321;
/// Half-open connections of each family.
const EACH: u16 = 15;
const ALL: u64 = 2 * EACH as u64;

/// The n-th of many clients of a family.
fn spoofed(n: u16, v6: bool) -> SocketAddr {
    if v6 {
        let address = u128::from(FLOOD_V6.0) + 1 + u128::from(n);
        (Ipv6Addr::from(address), 2000 + n).into()
    } else {
        let address = u32::from(FLOOD_V4.0) + 1 + u32::from(n % 250);
        (Ipv4Addr::from(address), 2000 + n).into()
    }
}

/// What clients send, to the port that serves.
struct Clients<'a> {
    site: &'a Site,
    wire: Wire,
}

impl<'a> Clients<'a> {
    fn new(site: &'a Site) -> Self {
        let wire = site.wire();
        Self { site, wire }
    }

    fn frame(&self, n: u16, v6: bool) -> Frame {
        let target = self.site.dial(v6, HTTP);
        self.site.frame(spoofed(n, v6), target)
    }

    /// The SYNs of these clients of both families.
    fn syns(&self, clients: impl Iterator<Item = u16>) {
        for n in clients {
            for v6 in [false, true] {
                let options = TcpOption::linux_syn(1440, 1);
                let syn = self.frame(n, v6).seq(ISN).options(options);
                self.wire.send(&syn.build()).unwrap();
            }
        }
    }
}

/// Waits until as many are half-open, for synguard and for the server.
#[track_caller]
fn half_open(site: &Site, guard: &Guard, expected: u64) -> ServiceStatus {
    let what = format!("{expected} half-open");
    eventually(&what, || {
        let service = guard.service();
        let both = (service.half_open, syn_received(site.server()));
        (both == (expected, expected)).then_some(service)
    })
}

/// Places, the admission there, and the mode of XDP.
const PLACES: [(Place, &str, &str); 5] = [
    (Place::OnEdge, "local", "native"),
    (Place::OnEdge, "local", "generic"),
    (Place::Behind(Shape::Routed), "proxy", "native"),
    (Place::Behind(Shape::Bridged), "proxy", "native"),
    (Place::Behind(Shape::Dnat), "proxy", "generic"),
];

/// At all of them at once: most of the time is waited for.
fn at_places(test: &str, body: impl Fn(&Site, &str, &str) + Sync) {
    std::thread::scope(|scope| {
        for (place, admission, xdp) in PLACES {
            let body = &body;
            scope.spawn(move || {
                if place.is_possible(test) {
                    let site = Site::plain(place);
                    let _server = site.serve();
                    println!("{test}: {place:?}, {admission}, {xdp} XDP");
                    body(&site, admission, xdp);
                }
            });
        }
    });
}

#[test]
fn the_count_is_that_of_the_server_and_the_stale_are_released() {
    at_places("the_count_is_that_of_the_server", |site, admission, xdp| {
        let service = "high = 3000\nlow = 1000\nhalf_open_timeout = \"4s\"";
        let guard = site.guard_by(admission, "", service, &["--xdp-mode", xdp]);
        let clients = Clients::new(site);
        clients.syns(0..EACH);
        half_open(site, &guard, ALL);
        // Sent again, given up, and forged: by some of them.
        clients.syns(0..3);
        for v6 in [false, true] {
            let forged = clients.frame(3, v6).flags(flags::ACK).seq(ISN + 1).ack(99);
            let reset = clients.frame(4, v6).flags(flags::RST).seq(ISN + 1);
            for frame in [forged, reset] {
                clients.wire.send(&frame.build()).unwrap();
            }
        }
        let service = half_open(site, &guard, ALL - 2);
        assert_eq!(packets(&service, Reason::HalfOpenReset), 2, "{service:?}");
        let ages: u64 = eventually("the ages of all of them", || {
            let service = guard.service();
            let ages: u64 = service.half_open_ages.iter().map(|(_, count)| count).sum();
            (service.half_open_oldest > 0.0).then_some(ages)
        });
        assert_eq!(ages, ALL - 2);

        let service = half_open(site, &guard, 0);
        let released = (service.expired_total, service.released_total);
        assert_eq!(released, (ALL - 2, ALL - 2), "{service:?}");
        // By the programs, as if their clients had done it.
        assert_eq!(packets(&service, Reason::HalfOpenReset), ALL, "{service:?}");
        assert_eq!(service.state, "calm");
        exchange(&site.connect(site.dial(false, HTTP)), 1000);
        eventually("none is old", || {
            (guard.service().half_open_oldest == 0.0).then_some(())
        });
        guard.stop();
    });
}

#[test]
fn no_server_is_told_where_that_is_off() {
    let place = Place::OnEdge;
    if !place.is_possible("no_server_is_told_where_that_is_off") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    for (service, mode) in [("release = false", "adaptive"), ("", "observe")] {
        let service = format!("high = 3000\nlow = 1000\nhalf_open_timeout = \"1s\"\n{service}");
        let guard = site.guard_by("local", "", &service, &["--mode", mode]);
        let clients = Clients::new(&site);
        let before = syn_received(site.server());
        let first = before as u16;
        clients.syns(first..first + EACH);
        let service = eventually("they are given up", || {
            let service = guard.service();
            (service.expired_total == ALL).then_some(service)
        });
        assert_eq!((service.half_open, service.released_total), (0, 0));
        assert_eq!(syn_received(site.server()), before + ALL, "{mode}");
        guard.stop();
    }
}

#[test]
fn under_pressure_the_oldest_are_released_first() {
    at_places(
        "under_pressure_the_oldest_are_released_first",
        |site, admission, xdp| {
            let service = "high = 40\nlow = 11\nhalf_open_timeout = \"60s\"";
            let guard = site.guard_by(admission, "", service, &["--xdp-mode", xdp]);
            let clients = Clients::new(site);
            clients.syns(0..EACH);
            half_open(site, &guard, ALL);
            std::thread::sleep(Duration::from_secs(1));
            clients.syns(EACH..EACH + 5);
            let service = half_open(site, &guard, 40);
            assert_eq!(service.state, "guarded");
            // One fewer than `low`: the last ten are the youngest, and their SYNs are a second younger.
            let service = within(Duration::from_secs(12), "some are released", || {
                let service = guard.service();
                (service.half_open == 10).then_some(service)
            });
            assert_eq!(service.released_total, 30, "{service:?}");
            half_open(site, &guard, 10);
            let left = site
                .server()
                .run(|| {
                    let output = std::process::Command::new("ss")
                        .args(["-Htn", "state", "syn-recv"])
                        .output()?;
                    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
                })
                .unwrap();
            for n in EACH..EACH + 5 {
                let port = format!(":{}", 2000 + n);
                let of = left.lines().filter(|line| line.trim_end().ends_with(&port));
                assert_eq!(of.count(), 2, "client {n} in\n{left}");
            }
            guard.stop();
        },
    );
}

/// Room for 1024 and watermarks that nobody reaches: the table is what overflows.
#[test]
fn a_full_table_guards_the_service() {
    const ROOM: u16 = 1024;
    let place = Place::OnEdge;
    if !place.is_possible("a_full_table_guards_the_service") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    // Two services share the room.
    let service = format!(
        "ports = [{HTTP}]\nhigh = 1000\nlow = 10\n\n[[service]]\nname = \"rest\"\nhigh = 1000\nlow = 10"
    );
    let guard = site.guard_by("local", "half_open_entries = 1024", &service, &[]);
    let wire = site.wire();
    let send = |n: u16, port: u16| {
        let target = site.dial(false, port);
        let options = TcpOption::linux_syn(1440, 1);
        let syn = site
            .frame(spoofed(n, false), target)
            .seq(ISN)
            .options(options);
        wire.send(&syn.build()).unwrap();
    };
    for n in 0..ROOM / 2 {
        send(n, HTTP);
        send(n, crate::client::ECHO);
    }
    let counts = || {
        guard
            .status()
            .services
            .iter()
            .map(|s| s.half_open)
            .sum::<u64>()
    };
    eventually("the table is full", || {
        (counts() == u64::from(ROOM)).then_some(())
    });
    let state = |name: &str| {
        let services = guard.status().services;
        services.into_iter().find(|s| s.name == name).unwrap()
    };
    assert_eq!([state("web").state, state("rest").state], ["calm", "calm"]);
    send(ROOM, HTTP);
    send(ROOM + 1, HTTP);
    let web = eventually("guarded", || {
        let web = state("web");
        (web.state == "guarded" && web.syns == u64::from(ROOM / 2) + 2).then_some(web)
    });
    assert_eq!(packets(&web, Reason::SynTableFull), 1, "{web:?}");
    assert_eq!(packets(&web, Reason::Challenged), 1, "{web:?}");
    assert_eq!(state("rest").state, "calm");
    guard.stop();
}
