//! Edges that forward, without any guard: every shape carries TCP of both families intact, and is
//! what it says it is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use synguard_lab::{
    client::{self, ConnectOptions},
    flood::{FloodSpec, Kind, Rate},
    http::{self, HttpServer, ServerOptions},
    link::{End, Vlan},
    netns::Netns,
    programs::Programs,
    skip_unless_root,
    topology::{Ecn, Forwarding, ForwardingOptions, Shape, Stack, skip_unless_nft},
};

const SECOND: Duration = Duration::from_secs(1);

fn skip(what: &str, shape: Shape) -> bool {
    !skip_unless_root(what) || shape == Shape::Dnat && !skip_unless_nft(what)
}

fn start_server(topology: &Forwarding) -> HttpServer {
    let options = ServerOptions {
        port: topology.server_port(80),
        echo_port: Some(topology.server_port(7)),
        ..ServerOptions::default()
    };
    HttpServer::start(&topology.server, options).unwrap()
}

/// An echo, and a body each way with its hash compared, in both families.
fn round_trips(topology: &Forwarding) {
    let _server = start_server(topology);
    for v6 in [false, true] {
        let target = topology.dial(v6, 7);
        let mut stream =
            client::connect(&topology.client, target, &ConnectOptions::default()).unwrap();
        stream.write_all(b"round").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"round");
        transfers(topology, v6, 1_000_000);
    }
}

/// A body of this size each way on one connection, which is returned.
fn transfers(topology: &Forwarding, v6: bool, size: usize) -> std::net::TcpStream {
    let options = ConnectOptions {
        timeout: 20 * SECOND,
        ..ConnectOptions::default()
    };
    let stream = client::connect(&topology.client, topology.dial(v6, 80), &options).unwrap();
    let bytes = client::get(&stream, &format!("/bytes/{size}")).unwrap();
    assert_eq!(
        (bytes.status, blake3::hash(&bytes.body)),
        (200, http::payload_hash(size as u64)),
    );
    let sink = client::post(&stream, "/sink", &bytes.body).unwrap();
    let expected = format!(
        "{{\"bytes\":{size},\"blake3\":\"{}\"}}",
        http::payload_hash(size as u64)
    );
    assert_eq!(String::from_utf8(sink.body).unwrap(), expected);
    stream
}

/// What `ip` says of a namespace.
fn ip(ns: &Netns, arguments: &[&str]) -> String {
    let output = ns
        .run(|| Ok(Command::new("ip").args(arguments).output()?))
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn sent(end: &End) -> u64 {
    end.statistic("tx_packets").unwrap()
}

#[test]
fn every_shape_carries_both_families() {
    for shape in Shape::ALL {
        let what = format!("every_shape_carries_both_families, {shape}");
        if skip(&what, shape) {
            continue;
        }
        round_trips(&Forwarding::new(shape, ForwardingOptions::default()).unwrap());
    }
}

#[test]
fn every_shape_carries_tags_and_finds_neighbours() {
    for shape in Shape::ALL {
        let what = format!("every_shape_carries_tags_and_finds_neighbours, {shape}");
        if skip(&what, shape) {
            continue;
        }
        let options = ForwardingOptions {
            vlans: vec![Vlan::service(100), Vlan::customer(200)],
            static_neighbours: false,
            ..ForwardingOptions::default()
        };
        round_trips(&Forwarding::new(shape, options).unwrap());
    }
}

#[test]
fn a_dropped_topology_leaves_nothing() {
    for shape in Shape::ALL {
        let what = format!("a_dropped_topology_leaves_nothing, {shape}");
        if skip(&what, shape) {
            continue;
        }
        let options = ForwardingOptions {
            narrow_mtu: (shape == Shape::Routed).then_some(1400),
            ..ForwardingOptions::default()
        };
        let topology = Forwarding::new(shape, options).unwrap();
        let namespaces = [&topology.client, &topology.edge, &topology.server];
        let paths: Vec<_> = namespaces
            .into_iter()
            .chain(&topology.hops)
            .map(|ns| format!("/run/netns/{}", ns.name()))
            .collect();
        assert!(paths.iter().all(|path| Path::new(path).exists()));
        drop(topology);
        let left: Vec<_> = paths
            .iter()
            .filter(|path| Path::new(path).exists())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_bridge_has_no_address() {
    if !skip_unless_root("a_bridge_has_no_address") {
        return;
    }
    let topology = Forwarding::bridged(ForwardingOptions::default()).unwrap();
    round_trips(&topology);
    let addresses = ip(&topology.edge, &["-o", "address", "show"]);
    let others: Vec<_> = addresses
        .lines()
        .filter(|line| line.split_whitespace().nth(1) != Some("lo"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    let port = ip(
        &topology.edge,
        &["-o", "link", "show", &topology.outside.name],
    );
    assert!(port.contains("master br0"), "{port}");
}

#[test]
fn translation_changes_address_and_port() {
    let what = "translation_changes_address_and_port";
    if skip(what, Shape::Dnat) {
        return;
    }
    let topology = Forwarding::dnat(ForwardingOptions::default()).unwrap();
    for v6 in [false, true] {
        let (dialled, bound) = (topology.dial(v6, 80), topology.bound(v6, 80));
        assert_ne!((dialled.ip(), dialled.port()), (bound.ip(), bound.port()));
        let listener = topology
            .server
            .run(|| Ok(TcpListener::bind(bound)?))
            .unwrap();
        let stream =
            client::connect(&topology.client, dialled, &ConnectOptions::default()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(accepted.local_addr().unwrap(), bound);
        assert_eq!(peer, stream.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), dialled);
    }
    assert_eq!(topology.invalid().unwrap(), 0);
}

/// A segment that belongs to no connection is dropped; without tracking it reaches the server.
#[test]
fn tracking_drops_what_it_has_not_seen_begin() {
    for shape in [Shape::Routed, Shape::Bridged, Shape::Dnat] {
        let what = format!("tracking_drops_what_it_has_not_seen_begin, {shape}");
        if skip(&what, Shape::Dnat) {
            continue;
        }
        let options = ForwardingOptions {
            conntrack: true,
            ..ForwardingOptions::default()
        };
        let topology = Forwarding::new(shape, options).unwrap();
        round_trips(&topology);
        assert_eq!(topology.invalid().unwrap(), 0, "{shape}");
        let _server = start_server(&topology);
        let wire = topology.client_wire().unwrap();
        for v6 in [false, true] {
            let from = SocketAddr::new(topology.client_sources(v6)[0], 999);
            let ack = topology.frame(from, topology.dial(v6, 80)).ack(1);
            let ack = ack.flags(synguard_lab::frame::flags::ACK);
            let answer = wire.exchange(&ack.build(), SECOND / 5).unwrap();
            assert_eq!(answer, None, "{shape}");
            assert_eq!(topology.invalid().unwrap(), 1 + u64::from(v6), "{shape}");
        }
    }

    if skip_unless_root("without tracking") {
        let topology = Forwarding::routed(ForwardingOptions::default()).unwrap();
        let _server = start_server(&topology);
        let wire = topology.client_wire().unwrap();
        let from = SocketAddr::new(topology.client_sources(false)[0], 999);
        let ack = topology.frame(from, topology.dial(false, 80)).ack(1);
        let ack = ack.flags(synguard_lab::frame::flags::ACK);
        let answer = wire.exchange(&ack.build(), SECOND).unwrap();
        assert!(
            answer.is_some_and(|answer| answer.has_flags(synguard_lab::frame::flags::RST)),
            "the server resets what it does not know"
        );
        assert!(topology.invalid().is_err());
    }
}

#[test]
fn asymmetric_answers_go_round_the_edge() {
    if !skip_unless_root("asymmetric_answers_go_round_the_edge") {
        return;
    }
    let topology = Forwarding::asymmetric(ForwardingOptions::default()).unwrap();
    let bypass = topology.bypass.as_ref().unwrap();
    let _server = start_server(&topology);
    for v6 in [false, true] {
        let wire = topology.client_wire().unwrap();
        let (inward, outward, round) = (
            sent(&topology.inside),
            sent(&topology.outside),
            sent(&bypass.server_end),
        );
        transfers(&topology, v6, 1_000_000);
        // A megabyte is more than 600 packets each way.
        assert!(sent(&topology.inside) - inward > 600);
        assert!(sent(&bypass.server_end) - round > 600);
        // Neighbour discovery may say a word; TCP says none.
        assert!(sent(&topology.outside) - outward < 5);
        let seen = wire.receive_tcp(SECOND / 10, |_| true).unwrap();
        assert_eq!(seen.map(|answer| answer.to_string()), None);
    }
}

#[test]
fn a_narrow_link_is_discovered() {
    for shape in [Shape::Routed, Shape::Dnat, Shape::Asymmetric] {
        let what = format!("a_narrow_link_is_discovered, {shape}");
        if skip(&what, shape) {
            continue;
        }
        let options = ForwardingOptions {
            narrow_mtu: Some(1400),
            ..ForwardingOptions::default()
        };
        let topology = Forwarding::new(shape, options).unwrap();
        let _server = start_server(&topology);
        for v6 in [false, true] {
            let fresh = client::connect(
                &topology.client,
                topology.dial(v6, 80),
                &ConnectOptions::default(),
            )
            .unwrap();
            let headers = if v6 { 40 + 32 } else { 20 + 32 };
            let before = client::tcp_info(&fresh).unwrap().send_mss;
            assert_eq!(before, 1500 - headers, "{shape}");
            drop(fresh);
            let stream = transfers(&topology, v6, 3_000_000);
            let info = client::tcp_info(&stream).unwrap();
            assert_eq!(info.send_mss, 1400 - headers, "{shape}");
            // The kernel's word for what an ICMP error has taught it.
            let target = topology.dial(v6, 80).ip().to_string();
            let route = ip(&topology.client, &["route", "get", &target]);
            assert!(route.contains("mtu 1400"), "{route}");
        }
    }
}

#[test]
fn a_smaller_inner_wire_limits_what_the_server_asks_for() {
    if !skip_unless_root("a_smaller_inner_wire_limits_what_the_server_asks_for") {
        return;
    }
    let options = ForwardingOptions {
        inner_mtu: 1400,
        ..ForwardingOptions::default()
    };
    let topology = Forwarding::routed(options).unwrap();
    let _server = start_server(&topology);
    let stream = transfers(&topology, false, 100_000);
    let info = client::tcp_info(&stream).unwrap();
    assert_eq!((info.send_mss, info.advertised_mss), (1348, 1448));
}

#[test]
fn stacks_have_the_options_they_were_given() {
    if !skip_unless_root("stacks_have_the_options_they_were_given") {
        return;
    }
    let plain = Stack {
        timestamps: false,
        sack: false,
        scaling: false,
        ecn: Ecn::Off,
    };
    let full = Stack {
        ecn: Ecn::Request,
        ..Stack::default()
    };
    for (client_stack, server_stack) in [(full, full), (full, plain), (plain, full)] {
        let options = ForwardingOptions {
            client_stack,
            server_stack,
            ..ForwardingOptions::default()
        };
        let topology = Forwarding::routed(options).unwrap();
        let _server = start_server(&topology);
        let stream = transfers(&topology, false, 1000);
        let info = client::tcp_info(&stream).unwrap();
        let both = client_stack == server_stack;
        assert_eq!(
            [info.timestamps, info.sack, info.window_scaling, info.ecn],
            [both; 4],
            "{info:?}"
        );
    }
}

#[test]
fn floods_reach_the_server_and_answers_are_counted() {
    for shape in Shape::ALL {
        let what = format!("floods_reach_the_server_and_answers_are_counted, {shape}");
        if skip(&what, shape) {
            continue;
        }
        let topology = Forwarding::new(shape, ForwardingOptions::default()).unwrap();
        let _server = start_server(&topology);
        topology
            .server
            .set_sysctl("net.ipv4.tcp_syncookies", 2)
            .unwrap();
        for v6 in [false, true] {
            let before = topology.counters().unwrap().syn_ack;
            let mut spec = FloodSpec::new(Kind::Syn, Rate::Pps(2000), topology.dial(v6, 80));
            spec.frames = 500;
            spec.duration = 2 * SECOND;
            assert_eq!(topology.flood(spec).unwrap().wait().unwrap(), 500);
            let enough = || topology.counters().unwrap().syn_ack - before >= 450;
            let waited = (0..20).any(|_| {
                enough() || {
                    std::thread::sleep(SECOND / 20);
                    false
                }
            });
            assert!(waited, "{shape}: {:?}", topology.counters().unwrap());
        }
    }
}

/// What a guard does to the interface changes how a veth works: frames arrive by XDP, answers leave
/// by `XDP_TX`.
#[test]
fn every_shape_can_be_guarded() {
    for shape in Shape::ALL {
        let what = format!("every_shape_can_be_guarded, {shape}");
        if skip(&what, shape) {
            continue;
        }
        for vlans in [vec![], vec![Vlan::customer(100)]] {
            let options = ForwardingOptions {
                vlans,
                ..ForwardingOptions::default()
            };
            let guarded = |name| {
                let topology = Forwarding::new(shape, options.clone()).unwrap();
                let mut programs = Programs::load().unwrap();
                let link = programs.attach(name, &topology.outside).unwrap();
                assert_eq!(topology.pin_napi(0, 1).unwrap().len(), 1);
                (link, topology)
            };
            let (_pass, topology) = guarded("lab_pass");
            round_trips(&topology);

            // An echo comes back to whom it went out from, and is not forwarded.
            let (_echo, topology) = guarded("floor_tx");
            let wire = topology.client_wire().unwrap();
            for v6 in [false, true] {
                let from = SocketAddr::new(topology.client_sources(v6)[0], 999);
                let syn = topology.frame(from, topology.dial(v6, 80)).seq(77);
                wire.send(&syn.build()).unwrap();
                let echo = wire.receive_tcp(SECOND, |answer| answer.seq == 77).unwrap();
                let echo = echo.expect("an echo");
                assert_eq!(echo.destination_mac, topology.client_end.mac, "{echo}");
                assert_eq!(echo.tags.len(), topology.vlans().len());
            }
        }
    }
}

#[test]
fn what_a_shape_cannot_have_is_refused() {
    let narrow = ForwardingOptions {
        narrow_mtu: Some(1400),
        ..ForwardingOptions::default()
    };
    let unequal = ForwardingOptions {
        inner_mtu: 1400,
        ..ForwardingOptions::default()
    };
    let tracked = ForwardingOptions {
        conntrack: true,
        ..ForwardingOptions::default()
    };
    let high = ForwardingOptions {
        ports: vec![80, 60000],
        ..ForwardingOptions::default()
    };
    for (shape, options, word) in [
        (Shape::Bridged, narrow, "narrow_mtu"),
        (Shape::Bridged, unequal, "inner_mtu"),
        (Shape::Asymmetric, tracked, "conntrack"),
        (Shape::Dnat, high, "port 60000"),
    ] {
        let error = Forwarding::new(shape, options).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn the_client_has_many_addresses() {
    if !skip_unless_root("the_client_has_many_addresses") {
        return;
    }
    let topology = Forwarding::bridged(ForwardingOptions::default()).unwrap();
    let _server = start_server(&topology);
    for v6 in [false, true] {
        let source: IpAddr = *topology.client_sources(v6).last().unwrap();
        let options = ConnectOptions {
            source: Some(SocketAddr::new(source, 0)),
            ..ConnectOptions::default()
        };
        let stream = client::connect(&topology.client, topology.dial(v6, 80), &options).unwrap();
        assert_eq!(client::get(&stream, "/").unwrap().status, 200);
    }
}
