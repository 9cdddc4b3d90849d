//! What a connection agrees on is what it would have agreed on without the guard: seen from both
//! ends, untouched, watched and guarded.

use std::net::{SocketAddr, TcpStream};

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, EdgeOptions},
    http,
    link::Vlan,
    skip_unless_root,
};

use crate::{
    client::{Agreed, BANNER, Ends, HTTP, both, exchange, serve},
    guard::{Guard, PATIENCE, admitted, challenged},
};

/// What a case changes.
#[derive(Default)]
struct Case {
    edge: EdgeOptions,
    client_sysctls: &'static [(&'static str, u32)],
    server_sysctls: &'static [(&'static str, u32)],
    connect: ConnectOptions,
    arguments: &'static [&'static str],
    config: &'static str,
    /// Not for IPv6.
    only_v4: bool,
    /// What both ends must have agreed on: timestamps, SACK, window scaling, ECN.
    agreed: Agreed,
}

/// Makes a connection, has it carry a megabyte each way, and looks at both ends.
#[track_caller]
fn meet(edge: &Edge, target: SocketAddr, options: &ConnectOptions) -> (TcpStream, Ends) {
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..options.clone()
    };
    let stream = client::connect(&edge.client, target, &options).unwrap();
    // Before the transfer: the kernel lowers and raises what it sends later on.
    let ends = Ends::of(&stream);
    exchange(&stream, 1_000_000);
    (stream, ends)
}

/// Compares a connection that was made from a cookie with one that the kernel made itself.
#[track_caller]
fn compare(free: &Ends, guarded: &Ends, target: SocketAddr, what: &str) {
    let what = format!("{what}, {target}\nwithout: {free:?}\nguarded: {guarded:?}");
    guarded.assert_made_from_cookie(free, target, &what);
    let Ends { client, server } = guarded;
    assert_eq!(client.send_scale, server.receive_scale, "{what}");
    assert_eq!(client.send_scale, free.client.send_scale, "{what}");
    assert_eq!((client.retransmits, server.retransmits), (0, 0), "{what}");
}

/// A connection of each kind and family: without the guard, calm, guarded. All live to the end.
fn run(name: &str, case: Case) {
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(case.edge.clone()).unwrap();
    for (sysctl, value) in case.client_sysctls {
        edge.client.set_sysctl(sysctl, value).unwrap();
    }
    for (sysctl, value) in case.server_sysctls {
        edge.server.set_sysctl(sysctl, value).unwrap();
    }
    let _server = serve(&edge);
    let targets = &both(HTTP)[..if case.only_v4 { 1 } else { 2 }];
    let mut streams = Vec::new();
    let mut free = Vec::new();
    for &target in targets {
        let (stream, ends) = meet(&edge, target, &case.connect);
        assert_eq!(
            Agreed::of(&ends.client),
            case.agreed,
            "{name} without a guard: {ends:?}"
        );
        streams.push(stream);
        free.push(ends);
    }

    let guard = Guard::with_config(&edge, case.config, case.arguments);
    for (&target, free) in targets.iter().zip(&free) {
        let (stream, ends) = meet(&edge, target, &case.connect);
        ends.assert_untouched(free, &format!("{name}, calm, {target}"));
        streams.push(stream);
    }
    let calm = guard.service();
    assert_eq!(
        (challenged(&calm), admitted(&calm)),
        (0, 0),
        "{name}: {calm:?}"
    );

    guard.set_mode("always");
    for (&target, free) in targets.iter().zip(&free) {
        let (stream, ends) = meet(&edge, target, &case.connect);
        compare(free, &ends, target, name);
        streams.push(stream);
    }
    let guarded = guard.service();
    assert_eq!(
        admitted(&guarded),
        targets.len() as u64,
        "{name}: {guarded:?}"
    );
    assert!(
        challenged(&guarded) >= targets.len() as u64,
        "{name}: {guarded:?}"
    );

    for stream in &streams {
        exchange(stream, 10_000);
    }
    guard.stop();
    for stream in &streams {
        exchange(stream, 10_000);
    }
}

#[test]
fn linux_defaults() {
    run("linux_defaults", Case::default());
}

#[test]
fn without_timestamps_scaling_and_sack_survive() {
    run(
        "without_timestamps_scaling_and_sack_survive",
        Case {
            client_sysctls: &[("net.ipv4.tcp_timestamps", 0)],
            agreed: Agreed {
                timestamps: false,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn without_timestamps_at_the_server() {
    run(
        "without_timestamps_at_the_server",
        Case {
            server_sysctls: &[("net.ipv4.tcp_timestamps", 0)],
            agreed: Agreed {
                timestamps: false,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn without_window_scaling() {
    run(
        "without_window_scaling",
        Case {
            client_sysctls: &[("net.ipv4.tcp_window_scaling", 0)],
            agreed: Agreed {
                window_scaling: false,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn a_small_window_scale() {
    run(
        "a_small_window_scale",
        Case {
            // 200 kB of buffer make a scale of 2 or so, never the usual 7 to 10.
            connect: ConnectOptions {
                receive_buffer: Some(100_000),
                ..ConnectOptions::default()
            },
            client_sysctls: &[("net.ipv4.tcp_timestamps", 0)],
            agreed: Agreed {
                timestamps: false,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn without_sack() {
    run(
        "without_sack",
        Case {
            client_sysctls: &[("net.ipv4.tcp_sack", 0)],
            agreed: Agreed {
                sack: false,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn without_any_option_but_the_mss() {
    run(
        "without_any_option_but_the_mss",
        Case {
            client_sysctls: &[
                ("net.ipv4.tcp_sack", 0),
                ("net.ipv4.tcp_timestamps", 0),
                ("net.ipv4.tcp_window_scaling", 0),
            ],
            agreed: Agreed {
                timestamps: false,
                sack: false,
                window_scaling: false,
                ecn: false,
            },
            ..Case::default()
        },
    );
}

#[test]
fn small_segments() {
    run(
        "small_segments",
        Case {
            connect: ConnectOptions {
                mss: Some(1220),
                ..ConnectOptions::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn segments_of_the_default_size() {
    run(
        "segments_of_the_default_size",
        Case {
            connect: ConnectOptions {
                mss: Some(536),
                ..ConnectOptions::default()
            },
            // Below what every IPv6 host must take.
            only_v4: true,
            ..Case::default()
        },
    );
}

#[test]
fn large_packets() {
    run(
        "large_packets",
        Case {
            edge: EdgeOptions {
                mtu: 9000,
                ..EdgeOptions::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn explicit_congestion_notification() {
    let ecn = &[("net.ipv4.tcp_ecn", 1)];
    run(
        "explicit_congestion_notification",
        Case {
            client_sysctls: ecn,
            server_sysctls: ecn,
            agreed: Agreed {
                ecn: true,
                ..Agreed::default()
            },
            ..Case::default()
        },
    );
}

#[test]
fn generic_xdp() {
    run(
        "generic_xdp",
        Case {
            arguments: &["--xdp-mode", "generic"],
            ..Case::default()
        },
    );
}

#[test]
fn the_server_speaks_first() {
    let name = "the_server_speaks_first";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let _guard = Guard::always(&edge);
    for target in both(BANNER) {
        let stream = crate::client::connect(&edge, target);
        let mut banner = vec![0; http::BANNER.len()];
        std::io::Read::read_exact(&mut &stream, &mut banner).unwrap();
        assert_eq!(banner, http::BANNER.as_bytes());
        crate::client::echo(&stream, b"and then the client").unwrap();
    }
}

/// A kernel without VLAN devices has the lab put a macvlan device in their place, which the daemon
/// cannot know to be one. There it is told the addresses; and, for two tags, that the device is to be
/// guarded too: the kernel takes only the outer tag off by itself, and admission needs bare IP.
fn run_tagged(name: &str, vlans: Vec<Vlan>) {
    const ADDRESSES: &str = r#"
        [[service]]
        name = "default"
        addresses = ["10.77.0.2", "fd77::2"]
    "#;
    if !skip_unless_root(name) {
        return;
    }
    let edge = EdgeOptions {
        vlans,
        ..EdgeOptions::default()
    };
    let top = Edge::new(edge.clone()).unwrap().server_top.name.clone();
    let stand_in = top == "vlan";
    if stand_in {
        println!("{name}: no CONFIG_VLAN_8021Q here, the lab's stand-in does it");
    }
    run(
        name,
        Case {
            config: if stand_in { ADDRESSES } else { "" },
            arguments: if stand_in && edge.vlans.len() > 1 {
                &["-i", "vlan", "--xdp-mode", "auto"]
            } else {
                &[]
            },
            edge,
            ..Case::default()
        },
    );
}

#[test]
fn one_tag() {
    run_tagged("one_tag", vec![Vlan::customer(100)]);
}

#[test]
fn two_tags() {
    run_tagged("two_tags", vec![Vlan::service(100), Vlan::customer(200)]);
}
