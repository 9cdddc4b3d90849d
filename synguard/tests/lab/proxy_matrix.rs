//! What a spliced connection agrees on is what it would have agreed on without the guard, for servers
//! behind an edge of every shape and on the edge: seen from both ends, untouched, calm and guarded.
//! The twin of `connections.rs`.

use std::{
    cell::Cell,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use synguard_common::{profile::MAX_LEARNED_SCALE, verdict::Reason};
use synguard_lab::{
    client::ConnectOptions,
    link::Vlan,
    topology::{Ecn, ForwardingOptions, Shape, Stack},
};

use crate::{
    client::{Agreed, Ends, HTTP, exchange},
    guard::{challenged, packets},
    proxy_site::{PROMPT, Place, Site},
};

/// What clients differ in.
struct Case {
    name: &'static str,
    stack: Stack,
    connect: ConnectOptions,
    /// Not for IPv6.
    only_v4: bool,
}

/// A client like any other.
fn plain(name: &'static str) -> Case {
    Case {
        name,
        stack: Stack::default(),
        connect: ConnectOptions::default(),
        only_v4: false,
    }
}

fn with_stack(name: &'static str, stack: Stack) -> Case {
    Case {
        stack,
        ..plain(name)
    }
}

fn with_options(name: &'static str, connect: ConnectOptions) -> Case {
    Case {
        connect,
        ..plain(name)
    }
}

/// Every kind of client.
fn clients() -> Vec<Case> {
    let usual = Stack::default();
    let mss = |mss| ConnectOptions {
        mss: Some(mss),
        ..ConnectOptions::default()
    };
    let no_timestamps = Stack {
        timestamps: false,
        ..usual
    };
    vec![
        plain("as Linux comes"),
        with_stack("no timestamps", no_timestamps),
        with_stack(
            "no scaling",
            Stack {
                scaling: false,
                ..usual
            },
        ),
        with_stack(
            "no SACK",
            Stack {
                sack: false,
                ..usual
            },
        ),
        with_stack(
            "no options",
            Stack {
                timestamps: false,
                sack: false,
                scaling: false,
                ecn: Ecn::Off,
            },
        ),
        with_stack(
            "ECN",
            Stack {
                ecn: Ecn::Request,
                ..usual
            },
        ),
        Case {
            // 200 kB of buffer make a scale of 2 or so, never the usual 7 to 10.
            connect: ConnectOptions {
                receive_buffer: Some(100_000),
                ..ConnectOptions::default()
            },
            ..with_stack("a small scale", no_timestamps)
        },
        with_options("small segments", mss(1220)),
        Case {
            // Below what every IPv6 host must take.
            only_v4: true,
            ..with_options("segments of the default size", mss(536))
        },
    ]
}

/// Makes a connection, looks at both ends, and has it carry bytes each way. `made` counts connections.
///
/// A busy machine holds things up, and its kernels then send again what is not lost. It will not do so
/// three times in a row, unlike a guard that loses something.
#[track_caller]
fn meet(site: &Site, target: SocketAddr, case: &Case, made: &Cell<u64>) -> (TcpStream, Ends) {
    let mut tries = Vec::new();
    while tries.len() < 3 {
        let begin = Instant::now();
        let stream = site.connect_with(target, case.connect.clone());
        let ends = Ends::of(&stream);
        let took = begin.elapsed();
        made.set(made.get() + 1);
        if took < PROMPT && (ends.client.retransmits, ends.server.retransmits) == (0, 0) {
            exchange(&stream, 300_000);
            return (stream, ends);
        }
        tries.push((took, ends));
    }
    panic!("{}, {target}: none was prompt: {tries:?}", case.name);
}

/// Compares a spliced connection with one that nobody touched.
#[track_caller]
fn compare(free: &Ends, guarded: &Ends, target: SocketAddr, what: &str) {
    let what = format!("{what}, {target}\nwithout: {free:?}\nguarded: {guarded:?}");
    guarded.assert_made_from_cookie(free, target, &what);
    let Ends { client, server } = guarded;
    assert_eq!(Agreed::of(client), Agreed::of(&free.client), "{what}");
    // The client scales windows by what the server was seen to promise, up to a limit.
    let promised = free.client.send_scale.min(MAX_LEARNED_SCALE);
    assert_eq!(free.client.send_scale, server.receive_scale, "{what}");
    if client.timestamps && client.sack && client.window_scaling {
        assert_eq!(client.send_scale, promised, "{what}");
    } else {
        // Where the server lacks an option, a SYN a second passes to see whether it still does.
        let passed = free.client.send_scale;
        assert!([promised, passed].contains(&client.send_scale), "{what}");
    }
}

/// Every client in both families: without the guard, calm, guarded. All connections live to the end,
/// those that were not spliced also without the daemon.
fn run(what: &str, place: Place, options: ForwardingOptions, xdp: &str, cases: &[Case]) {
    let what = format!("{what}, {place:?}");
    if !place.is_possible(&what) {
        return;
    }
    let site = Site::new(place, options);
    let _server = site.serve();
    let cases: Vec<(&Case, SocketAddr)> = cases
        .iter()
        .flat_map(|case| {
            let targets = site.both(HTTP).into_iter();
            targets
                .filter(|target| !case.only_v4 || target.is_ipv4())
                .map(move |target| (case, target))
        })
        .collect();
    let made = Cell::new(0);
    let meet_all = || -> Vec<(TcpStream, Ends)> {
        let each = |&(case, target): &(&Case, SocketAddr)| {
            case.stack.apply(site.client()).unwrap();
            meet(&site, target, case, &made)
        };
        cases.iter().map(each).collect()
    };
    let free = meet_all();

    let guard = site.guard_by("proxy", "", "", &["--xdp-mode", xdp]);
    let calm = meet_all();
    for (((case, target), (_, free)), (_, calm)) in cases.iter().zip(&free).zip(&calm) {
        calm.assert_untouched(free, &format!("{what}, {}, calm, {target}", case.name));
    }
    let service = guard.service();
    assert_eq!(challenged(&service), 0, "{what}: {service:?}");
    assert_eq!(service.half_open, 0, "{what}: {service:?}");

    guard.set_mode("always");
    let begin = Instant::now();
    made.set(0);
    let guarded = meet_all();
    for (((case, target), (_, free)), (_, guarded)) in cases.iter().zip(&free).zip(&guarded) {
        compare(free, guarded, *target, &format!("{what}, {}", case.name));
    }
    let service = guard.service();
    // Clients that ask for what no server was seen to have may probe it, one a second.
    let [probed, challenged, started, completed] = [
        Reason::ProfileProbe,
        Reason::Challenged,
        Reason::SpliceStarted,
        Reason::SpliceCompleted,
    ]
    .map(|reason| packets(&service, reason));
    assert!(
        probed <= begin.elapsed().as_secs() + 1,
        "{what}: {service:?}"
    );
    let spliced = made.get() - probed;
    assert_eq!(
        (challenged, started, completed),
        (spliced, spliced, spliced),
        "{what}: {service:?}"
    );
    if let Site::Behind(forwarding) = &site
        && place == Place::Behind(Shape::Dnat)
    {
        assert_eq!(forwarding.invalid().unwrap(), 0, "{what}: conntrack");
    }

    let all = || free.iter().chain(&calm).chain(&guarded);
    all().for_each(|(stream, _)| exchange(stream, 10_000));
    guard.set_mode("observe");
    all().for_each(|(stream, _)| exchange(stream, 10_000));
    // A splice ends with its translator, unlike all the others.
    guard.stop();
    let untouched = free.iter().chain(&calm);
    untouched.for_each(|(stream, _)| exchange(stream, 10_000));
}

fn run_at(places: &[Place], what: &str, options: &ForwardingOptions, xdp: &str, cases: &[Case]) {
    for &place in places {
        run(what, place, options.clone(), xdp, cases);
    }
}

/// Where what is tried has nothing to do with how the edge forwards.
const SOME: [Place; 2] = [Place::Behind(Shape::Routed), Place::OnEdge];

#[test]
fn clients_of_every_kind() {
    run_at(
        &Place::ALL,
        "clients_of_every_kind",
        &ForwardingOptions::default(),
        "native",
        &clients(),
    );
}

#[test]
fn generic_xdp() {
    run_at(
        &Place::ALL,
        "generic_xdp",
        &ForwardingOptions::default(),
        "generic",
        &clients()[..5],
    );
}

#[test]
fn large_packets() {
    let options = ForwardingOptions {
        outer_mtu: 9000,
        inner_mtu: 9000,
        ..ForwardingOptions::default()
    };
    run_at(&SOME, "large_packets", &options, "native", &clients()[..2]);
}

#[test]
fn servers_without_timestamps() {
    let options = ForwardingOptions {
        server_stack: Stack {
            timestamps: false,
            ..Stack::default()
        },
        ..ForwardingOptions::default()
    };
    run_at(
        &SOME,
        "servers_without_timestamps",
        &options,
        "native",
        &clients()[..2],
    );
}

#[test]
fn tags_on_the_wire() {
    for (xdp, vlans) in [
        ("native", vec![Vlan::customer(100)]),
        ("native", vec![Vlan::service(100), Vlan::customer(200)]),
        ("generic", vec![Vlan::customer(100)]),
    ] {
        let options = ForwardingOptions {
            vlans,
            ..ForwardingOptions::default()
        };
        for shape in [Shape::Routed, Shape::Bridged] {
            run(
                &format!("tags_on_the_wire, {:?}", options.vlans),
                Place::Behind(shape),
                options.clone(),
                xdp,
                &clients()[..2],
            );
        }
    }
}
