//! The lab's wires carry what they should: TCP over both families, tagged and untagged, seen from
//! both ends and from the wire itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::Command,
    time::Duration,
};

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{CLIENT_V4, CLIENT_V6, Edge, EdgeOptions, FLOOD_V4, SERVER_V4, SERVER_V6},
    frame::{TcpOption, flags},
    http::{self, HttpServer, ServerOptions},
    link::Vlan,
    load::{LoadClient, LoadOptions, Pattern},
    netns::{self, Netns},
    process::Process,
    skip_unless_root,
};

const SECOND: Duration = Duration::from_secs(1);

fn servers() -> [SocketAddr; 2] {
    [(SERVER_V4, 80).into(), (SERVER_V6, 80).into()]
}

/// One connection of each family: a greeting, a body each way, hashes compared.
fn round_trips(edge: &Edge) {
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    for target in servers() {
        let stream = client::connect(&edge.client, target, &ConnectOptions::default()).unwrap();
        assert_eq!(
            client::get(&stream, "/").unwrap().body,
            http::GREETING.as_bytes()
        );
        let bytes = client::get(&stream, "/bytes/1000000").unwrap();
        assert_eq!(
            (bytes.status, blake3::hash(&bytes.body)),
            (200, http::payload_hash(1_000_000)),
            "{target}"
        );
        let sink = client::post(&stream, "/sink", &bytes.body).unwrap();
        let expected = format!(
            "{{\"bytes\":1000000,\"blake3\":\"{}\"}}",
            http::payload_hash(1_000_000)
        );
        assert_eq!(String::from_utf8(sink.body).unwrap(), expected);
        assert_eq!(client::get(&stream, "/nothing").unwrap().status, 404);
        let info = client::tcp_info(&stream).unwrap();
        assert!(
            info.timestamps && info.sack && info.window_scaling,
            "{info:?}"
        );
    }
}

#[test]
fn plain_wire() {
    if !skip_unless_root("plain_wire") {
        return;
    }
    round_trips(&Edge::new(EdgeOptions::default()).unwrap());
}

#[test]
fn neighbours_are_found_without_help() {
    if !skip_unless_root("neighbours_are_found_without_help") {
        return;
    }
    round_trips(
        &Edge::new(EdgeOptions {
            static_neighbours: false,
            ..EdgeOptions::default()
        })
        .unwrap(),
    );
}

#[test]
fn jumbo_frames() {
    if !skip_unless_root("jumbo_frames") {
        return;
    }
    let edge = Edge::new(EdgeOptions {
        mtu: 9000,
        ..EdgeOptions::default()
    })
    .unwrap();
    round_trips(&edge);
    let _server = HttpServer::start(
        &edge.server,
        ServerOptions {
            port: 81,
            ..ServerOptions::default()
        },
    )
    .unwrap();
    let stream = client::connect(
        &edge.client,
        (SERVER_V4, 81).into(),
        &ConnectOptions::default(),
    )
    .unwrap();
    assert_eq!(client::tcp_info(&stream).unwrap().advertised_mss, 8948);
}

#[test]
fn tags_are_on_the_wire() {
    if !skip_unless_root("tags_are_on_the_wire") {
        return;
    }
    for vlans in [
        vec![Vlan::customer(100)],
        vec![Vlan::service(100), Vlan::customer(200)],
    ] {
        let edge = Edge::new(EdgeOptions {
            vlans: vlans.clone(),
            ..EdgeOptions::default()
        })
        .unwrap();
        round_trips(&edge);

        let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
        let wire = edge.client_wire().unwrap();
        let syn = edge
            .frame((CLIENT_V4, 1000).into(), (SERVER_V4, 80).into())
            .options(TcpOption::linux_syn(1400, 9));
        let answer = wire
            .exchange(&syn.build(), SECOND)
            .unwrap()
            .expect("an answer");
        assert!(
            answer.has_flags(flags::SYN | flags::ACK) && answer.tcp_checksum_ok,
            "{answer}"
        );
        let expected: Vec<_> = vlans.iter().map(|vlan| (vlan.tpid, vlan.id)).collect();
        assert_eq!(answer.tags, expected);
        assert_eq!(
            (answer.mss(), answer.timestamps().unwrap().1),
            (Some(1460), 9)
        );
    }
}

#[test]
fn a_wrong_checksum_has_no_answer() {
    if !skip_unless_root("a_wrong_checksum_has_no_answer") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let wire = edge.client_wire().unwrap();
    for (from, to) in [
        ((CLIENT_V4, 1000).into(), servers()[0]),
        ((CLIENT_V6, 1000).into(), servers()[1]),
    ] {
        let syn = edge.frame(from, to);
        assert_eq!(
            wire.exchange(&syn.clone().bad_tcp_checksum().build(), SECOND / 5)
                .unwrap(),
            None
        );
        let answer = wire
            .exchange(&syn.build(), SECOND)
            .unwrap()
            .expect("an answer");
        assert_eq!(
            (answer.ack, answer.destination_mac),
            (1, edge.client_end.mac),
            "{answer}"
        );
    }
}

#[test]
fn answers_to_flood_sources_are_counted_and_dropped() {
    if !skip_unless_root("answers_to_flood_sources_are_counted_and_dropped") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let wire = edge.client_wire().unwrap();
    let source = SocketAddr::from((FLOOD_V4.0, 1));
    let open = edge.frame(source, (SERVER_V4, 80).into());
    let closed = edge.frame(source, (SERVER_V4, 81).into());
    assert_eq!(wire.exchange(&open.build(), SECOND / 5).unwrap(), None);
    assert_eq!(wire.exchange(&closed.build(), SECOND / 5).unwrap(), None);
    let counters = edge.counters().unwrap();
    assert_eq!((counters.syn_ack, counters.rst), (1, 1), "{counters:?}");
}

#[test]
fn the_server_speaks_first_and_echoes() {
    if !skip_unless_root("the_server_speaks_first_and_echoes") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let options = ServerOptions {
        banner_port: Some(25),
        echo_port: Some(7),
        listeners: 3,
        ..ServerOptions::default()
    };
    let _server = HttpServer::start(&edge.server, options).unwrap();
    for (port, first) in [(25, http::BANNER), (7, "")] {
        let mut stream = client::connect(
            &edge.client,
            (SERVER_V4, port).into(),
            &ConnectOptions::default(),
        )
        .unwrap();
        stream.write_all(b"round").unwrap();
        let mut read = vec![0; first.len() + 5];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), format!("{first}round"));
    }
}

#[test]
fn clients_are_served_and_counted() {
    if !skip_unless_root("clients_are_served_and_counted") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let options = LoadOptions {
        sources: edge.client_sources(false),
        duration: SECOND * 2,
        ..LoadOptions::new(servers()[0], Pattern::Open(500))
    };
    let report = LoadClient::start(&edge.client, options)
        .unwrap()
        .wait()
        .unwrap();
    assert!((950..=1001).contains(&report.attempted), "{report:?}");
    assert_eq!(report.ok, report.attempted, "{report:?}");
    assert!(report.latency_ms(50.0).unwrap() < 50.0);
    assert!(server.task().time().unwrap() > Duration::ZERO);

    let options = LoadOptions {
        connections: 1000,
        ..LoadOptions::new(servers()[1], Pattern::Closed(8))
    };
    let report = LoadClient::start(&edge.client, options)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!((report.attempted, report.ok), (1000, 1000), "{report:?}");

    // Nobody listens there.
    let options = LoadOptions {
        connections: 10,
        ..LoadOptions::new((SERVER_V4, 81).into(), Pattern::Closed(1))
    };
    let report = LoadClient::start(&edge.client, options)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(
        (report.attempted, report.ok, report.resets),
        (10, 0, 10),
        "{report:?}"
    );

    // Nobody is there: the connection times out at its limit.
    let options = LoadOptions {
        connections: 2,
        limit: SECOND / 5,
        ..LoadOptions::new("198.18.0.1:80".parse().unwrap(), Pattern::Closed(2))
    };
    edge.client
        .netlink(async |handle| {
            let index = edge.client_end.index;
            synguard_lab::link::add_route(
                &handle,
                index,
                FLOOD_V4.0.into(),
                FLOOD_V4.1,
                SERVER_V4.into(),
            )
            .await
        })
        .unwrap();
    let report = LoadClient::start(&edge.client, options)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!((report.connect_timeouts, report.ok), (2, 0), "{report:?}");
}

#[test]
fn a_process_lives_in_the_namespace_and_dies_with_its_handle() {
    if !skip_unless_root("a_process_lives_in_the_namespace_and_dies_with_its_handle") {
        return;
    }
    let ns = Netns::create("process").unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args([
        "-c",
        "readlink /proc/self/ns/net; readlink /proc/self/ns/mnt; echo ready >&2; exec sleep 60",
    ]);
    let mut process = Process::spawn(&ns, shell).unwrap();
    process.wait_for_line("ready", SECOND * 5).unwrap();
    let lines = process
        .wait_until(SECOND, |lines| (lines.len() == 3).then(|| lines.to_vec()))
        .unwrap();
    let inside = ns
        .run(|| Ok(std::fs::read_link("/proc/thread-self/ns/net")?))
        .unwrap();
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    assert!(
        lines.contains(&inside.display().to_string())
            && lines.contains(&mounts.display().to_string()),
        "{lines:?}"
    );
    assert!(
        process
            .wait_for_line("nothing of the kind", SECOND / 5)
            .is_err()
    );

    let path = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&path).exists());
    drop(process);
    assert!(!std::path::Path::new(&path).exists());

    let mut failing = Command::new("/bin/sh");
    failing.args(["-c", "echo no such thing; exit 3"]);
    let mut failing = Process::spawn(&ns, failing).unwrap();
    let error = failing.wait_for_line("ready", SECOND * 5).unwrap_err();
    assert!(format!("{error:#}").contains("no such thing"), "{error:#}");
}

#[test]
fn leftovers_of_the_dead_are_swept() {
    if !skip_unless_root("leftovers_of_the_dead_are_swept") {
        return;
    }
    let ours = Netns::create("alive").unwrap();
    // A process that has ended: its id is free, as a crashed lab's is.
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let leftover = format!("/run/netns/sgl-{dead}-0-left");
    let foreign = format!("/run/netns/other-{dead}-0-left");
    for path in [&leftover, &foreign] {
        std::fs::write(path, "").unwrap();
    }
    let mounted = Command::new("mount")
        .args(["--bind", &format!("/run/netns/{}", ours.name()), &leftover])
        .status()
        .unwrap();
    assert!(mounted.success());

    let swept = netns::sweep().unwrap();
    let foreign_stays = std::path::Path::new(&foreign).exists();
    std::fs::remove_file(&foreign).unwrap();
    assert!(swept.contains(&format!("sgl-{dead}-0-left")), "{swept:?}");
    assert!(foreign_stays && !std::path::Path::new(&leftover).exists());

    let path = format!("/run/netns/{}", ours.name());
    assert!(
        std::path::Path::new(&path).exists(),
        "a live process's namespace stays"
    );
    drop(ours);
    assert!(!std::path::Path::new(&path).exists());
}
