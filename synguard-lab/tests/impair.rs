//! A wire that loses and reorders does, at the rate it was given, and TCP gets over it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{net::SocketAddr, time::Duration};

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    http::{self, HttpServer, ServerOptions},
    impair::{Direction, Impaired, Impairment, Packets},
    link::{End, Vlan},
    netns::Netns,
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions},
};

const SIZE: u64 = 20_000_000;

/// A body each way on one connection, compared.
fn transfers(client: &Netns, target: SocketAddr) {
    let options = ConnectOptions {
        timeout: Duration::from_secs(60),
        ..ConnectOptions::default()
    };
    let stream = client::connect(client, target, &options).unwrap();
    let bytes = client::get(&stream, &format!("/bytes/{SIZE}")).unwrap();
    assert_eq!(blake3::hash(&bytes.body), http::payload_hash(SIZE));
    let sink = client::post(&stream, "/sink", &bytes.body).unwrap();
    let expected = format!(
        "{{\"bytes\":{SIZE},\"blake3\":\"{}\"}}",
        http::payload_hash(SIZE)
    );
    assert_eq!(String::from_utf8(sink.body).unwrap(), expected);
}

/// Transfers with an impairment at one end, applied before it begins, and what it did.
fn impaired(
    impairment: Impairment,
    end: &End,
    direction: Direction,
    transfer: impl FnOnce(),
) -> Impaired {
    let wire = impairment.apply(end, direction).unwrap();
    transfer();
    let counters = wire.counters().unwrap();
    println!("{direction:?} {impairment:?}: {counters:?}");
    counters
}

/// That about this many of a thousand are it, within five standard deviations.
fn assert_share(count: u64, seen: u64, per_mille: u64) {
    let mean = (seen * per_mille) as f64 / 1000.0;
    assert!(
        (count as f64 - mean).abs() < 5.0 * mean.sqrt(),
        "{count} of {seen} are not {per_mille} of a thousand"
    );
}

#[test]
fn both_ends_and_directions_lose_and_reorder() {
    if !skip_unless_root("both_ends_and_directions_lose_and_reorder") {
        return;
    }
    let impairment = Impairment {
        loss_per_mille: 10,
        reorder_per_mille: 20,
        packets: Packets::Data,
    };
    for v6 in [false, true] {
        let topology = Forwarding::routed(ForwardingOptions::default()).unwrap();
        let _server = HttpServer::start(&topology.server, ServerOptions::default()).unwrap();
        for end in [&topology.client_end, &topology.server_end] {
            for direction in [Direction::Sent, Direction::Received] {
                let happened = impaired(impairment, end, direction, || {
                    transfers(&topology.client, topology.dial(v6, 80));
                });
                // 20 MB are 13,800 full segments, each seen once at least: none was GSO's or GRO's.
                assert!(happened.seen > 13_000, "{happened:?}");
                assert_share(happened.lost, happened.seen, 10);
                assert_share(happened.delayed, happened.seen, 20);
                assert!(happened.overtaken > happened.delayed / 4, "{happened:?}");
                assert!(happened.overtaken <= happened.delayed, "{happened:?}");
            }
        }
    }
}

#[test]
fn tagged_wires_lose_and_reorder() {
    if !skip_unless_root("tagged_wires_lose_and_reorder") {
        return;
    }
    let edge = Edge::new(EdgeOptions {
        vlans: vec![Vlan::service(100), Vlan::customer(200)],
        ..EdgeOptions::default()
    })
    .unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let impairment = Impairment {
        loss_per_mille: 5,
        reorder_per_mille: 20,
        packets: Packets::Any,
    };
    for (target, direction) in [
        ((SERVER_V4, 80).into(), Direction::Sent),
        ((SERVER_V6, 80).into(), Direction::Received),
    ] {
        let happened = impaired(impairment, &edge.client_end, direction, || {
            transfers(&edge.client, target);
        });
        assert!(happened.seen > 13_000, "{happened:?}");
        assert_share(happened.lost, happened.seen, 5);
        assert!(happened.overtaken > 0, "{happened:?}");
    }
}

/// A counter of a namespace's TCP, from `/proc/net/netstat`.
fn netstat(ns: &Netns, name: &str) -> u64 {
    let text = ns
        .run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))
        .unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let column = names.split(' ').position(|column| column == name).unwrap();
    values.split(' ').nth(column).unwrap().parse().unwrap()
}

/// The receiver's kernel says so, too; and that nothing was lost.
#[test]
fn the_receiver_sees_the_other_order() {
    if !skip_unless_root("the_receiver_sees_the_other_order") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let order = || netstat(&edge.server, "TCPOFOQueue");
    transfers(&edge.client, (SERVER_V4, 80).into());
    assert_eq!(order(), 0, "in order without impairment");
    let impairment = Impairment {
        reorder_per_mille: 20,
        ..Impairment::default()
    };
    let happened = impaired(impairment, &edge.client_end, Direction::Sent, || {
        transfers(&edge.client, (SERVER_V4, 80).into());
    });
    assert_eq!(happened.lost, 0);
    assert!(order() > 100, "{} out of order", order());
}

/// Four of them at once: both directions of both ends.
#[test]
fn impairments_add_up() {
    if !skip_unless_root("impairments_add_up") {
        return;
    }
    let topology = Forwarding::asymmetric(ForwardingOptions::default()).unwrap();
    let bypass = topology.bypass.as_ref().unwrap();
    let _server = HttpServer::start(&topology.server, ServerOptions::default()).unwrap();
    let impairment = Impairment {
        loss_per_mille: 3,
        reorder_per_mille: 10,
        packets: Packets::Any,
    };
    let wires: Vec<_> = [
        (&topology.client_end, Direction::Sent),
        (&topology.server_end, Direction::Received),
        (&bypass.server_end, Direction::Sent),
        (&bypass.client_end, Direction::Received),
        (&bypass.client_end, Direction::Sent),
    ]
    .into_iter()
    .map(|(end, direction)| impairment.apply(end, direction).unwrap())
    .collect();
    transfers(&topology.client, topology.dial(true, 80));
    let counters: Vec<_> = wires.iter().map(|wire| wire.counters().unwrap()).collect();
    println!("{counters:?}");
    let (last, others) = counters.split_last().unwrap();
    assert!(
        others
            .iter()
            .all(|counters| counters.lost > 0 && counters.overtaken > 0),
        "{counters:?}"
    );
    // Nothing of TCP takes the bypass towards the server.
    assert_eq!(*last, Impaired::default());
}

/// A packet lost on the way is one that the sender believes sent: it comes again by retransmission.
#[test]
fn what_is_lost_is_sent_again() {
    if !skip_unless_root("what_is_lost_is_sent_again") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let lossy = Impairment {
        loss_per_mille: 20,
        packets: Packets::Data,
        ..Impairment::default()
    };
    let wire = lossy.apply(&edge.client_end, Direction::Sent).unwrap();
    let options = ConnectOptions::default();
    let stream = client::connect(&edge.client, (SERVER_V4, 80).into(), &options).unwrap();
    let body = vec![7; 5_000_000];
    let answer = client::post(&stream, "/sink", &body).unwrap();
    assert_eq!(answer.status, 200);
    let lost = wire.counters().unwrap().lost;
    let again = u64::from(client::tcp_info(&stream).unwrap().retransmits);
    assert!(
        lost > 20 && again >= lost,
        "{lost} lost, {again} sent again"
    );
}

/// An impairment that has ended leaves neither programs nor devices behind.
#[test]
fn a_wire_is_whole_again_afterwards() {
    if !skip_unless_root("a_wire_is_whole_again_afterwards") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = HttpServer::start(&edge.server, ServerOptions::default()).unwrap();
    let devices = || {
        edge.client
            .run_with_sysfs(|| Ok(std::fs::read_dir("/sys/class/net")?.count()))
            .unwrap()
    };
    let before = devices();
    let dead = Impairment {
        loss_per_mille: 1000,
        ..Impairment::default()
    };
    let options = ConnectOptions {
        timeout: Duration::from_millis(300),
        ..ConnectOptions::default()
    };
    let wire = dead.apply(&edge.client_end, Direction::Received).unwrap();
    assert!(devices() > before);
    assert!(client::connect(&edge.client, (SERVER_V4, 80).into(), &options).is_err());
    assert!(wire.counters().unwrap().lost > 0);
    drop(wire);
    assert_eq!(devices(), before);
    assert!(client::connect(&edge.client, (SERVER_V4, 80).into(), &options).is_ok());

    let bare = Impairment {
        packets: Packets::Data,
        ..dead
    };
    let _wire = bare.apply(&edge.client_end, Direction::Sent).unwrap();
    let stream = client::connect(&edge.client, (SERVER_V4, 80).into(), &options).unwrap();
    assert!(client::get(&stream, "/").is_err(), "its data is lost");
}
