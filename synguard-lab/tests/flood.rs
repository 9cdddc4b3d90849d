//! The flood generator: its frames are right, all of them arrive, and at the rate asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use synguard_lab::{
    edge::{CLIENT_V4, Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    flood::{FloodSpec, Kind, Options, Rate, Source},
    frame::{Answer, TcpOption, describe, flags},
    link::Vlan,
    programs::Programs,
    skip_unless_root,
    testrun::{self, Action},
    wire::Wire,
};

/// Floods have a core to themselves, each in its turn.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const SECOND: Duration = Duration::from_secs(1);

/// What arrives at the server's end of a flood of `frames`.
fn sample(edge: &Edge, spec: FloodSpec, frames: u64) -> Vec<Answer> {
    let wire = Wire::open(&edge.server_end).unwrap();
    let sent = edge
        .flood(FloodSpec {
            frames,
            ..spec.clone()
        })
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(sent, frames);
    let mut answers = Vec::new();
    while let Some(frame) = wire.receive(SECOND / 5).unwrap() {
        // Neighbour discovery is on the wire, too.
        if let Ok(answer) = describe(&frame)
            && answer.destination == spec.target
        {
            answers.push(answer);
        }
    }
    answers
}

fn all(target: SocketAddr, kind: Kind, options: Options) -> FloodSpec {
    FloodSpec {
        options,
        ..FloodSpec::new(kind, Rate::Pps(2000), target)
    }
}

#[test]
fn frames_are_right() {
    if !skip_unless_root("frames_are_right") {
        return;
    }
    let _turn = turn();
    let tags: [&[Vlan]; 3] = [
        &[],
        &[Vlan::customer(7)],
        &[Vlan::service(7), Vlan::customer(8)],
    ];
    for vlans in tags {
        let edge = Edge::new(EdgeOptions {
            vlans: vlans.to_vec(),
            ..EdgeOptions::default()
        })
        .unwrap();
        for target in [SocketAddr::from((SERVER_V4, 80)), (SERVER_V6, 80).into()] {
            for (kind, options) in [
                (Kind::Syn, Options::LinuxSyn),
                (Kind::Syn, Options::None),
                (Kind::Ack, Options::Timestamps),
                (Kind::Mixed, Options::None),
            ] {
                let answers = sample(&edge, all(target, kind, options), 100);
                let what = format!("{vlans:?} {target} {kind:?} {options:?}");
                assert_eq!(answers.len(), 100, "{what}");
                let tags: Vec<_> = vlans.iter().map(|vlan| (vlan.tpid, vlan.id)).collect();
                for answer in &answers {
                    assert!(
                        answer.ip_checksum_ok && answer.tcp_checksum_ok,
                        "{what}: {answer}"
                    );
                    assert!(in_flood_prefix(answer.source), "{what}: {answer}");
                    assert_eq!(
                        (answer.destination, &answer.tags),
                        (target, &tags),
                        "{what}"
                    );
                    assert_eq!(
                        answer.ack != 0,
                        answer.flags & flags::ACK != 0,
                        "{what}: {answer}"
                    );
                }
                let distinct =
                    |of: fn(&Answer) -> u64| answers.iter().map(of).collect::<HashSet<_>>().len();
                assert!(distinct(|answer| answer.seq.into()) > 98, "{what}");
                assert!(
                    distinct(|answer| answer.source.port().into()) > 90,
                    "{what}"
                );
                let sources: HashSet<_> = answers.iter().map(|answer| answer.source.ip()).collect();
                assert!(sources.len() > 90, "{what}");
                match (kind, options) {
                    (Kind::Syn, Options::LinuxSyn) => {
                        assert!(answers.iter().all(|answer| answer.has_flags(flags::SYN)
                            && answer.options
                                == TcpOption::linux_syn(1460, answer.timestamps().unwrap().0)));
                    }
                    (Kind::Ack, _) => assert!(
                        answers
                            .iter()
                            .all(|answer| answer.timestamps().unwrap().1 != 0)
                    ),
                    (Kind::Mixed, _) => {
                        assert!(distinct(|answer| answer.flags.into()) >= 6, "{what}")
                    }
                    _ => {}
                }
            }
        }
    }
}

fn in_flood_prefix(source: SocketAddr) -> bool {
    match source {
        SocketAddr::V4(source) => {
            source.ip().octets()[0] == 198 && source.ip().octets()[1] & 0xfe == 18
        }
        SocketAddr::V6(source) => source.ip().segments()[..3] == [0x2001, 2, 0],
    }
}

#[test]
fn a_connection_can_be_aimed_at() {
    if !skip_unless_root("a_connection_can_be_aimed_at") {
        return;
    }
    let _turn = turn();
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let victim = SocketAddr::from((CLIENT_V4, 4321));
    let spec = FloodSpec {
        source: Source::Exact(victim),
        ..all((SERVER_V4, 80).into(), Kind::Rst, Options::None)
    };
    let answers = sample(&edge, spec, 50);
    assert_eq!(answers.len(), 50);
    assert!(
        answers
            .iter()
            .all(|answer| answer.source == victim && answer.flags & flags::RST != 0)
    );
    assert!(answers.iter().all(|answer| answer.tcp_checksum_ok));
}

#[test]
fn a_hundred_thousand_frames_arrive() {
    if !skip_unless_root("a_hundred_thousand_frames_arrive") {
        return;
    }
    let _turn = turn();
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let mut programs = Programs::load().unwrap();
    let _link = programs.attach("floor_drop", &edge.server_end).unwrap();
    let counters = programs.counters().unwrap();
    edge.pin_napi(0, 1).unwrap();
    let target = (SERVER_V4, 80).into();
    let spec = FloodSpec {
        frames: 100_000,
        cpu: Some(1),
        ..FloodSpec::new(Kind::Syn, Rate::Pps(40_000), target)
    };
    let before = edge.client_end.statistic("tx_dropped").unwrap();
    let sent = edge.flood(spec).unwrap().wait().unwrap();
    std::thread::sleep(SECOND / 10);
    assert_eq!((sent, edge.counters().unwrap().sent), (100_000, 100_000));
    // On a busy machine the receiver may be late now and then; a veth drops what its ring of 256
    // frames has no room for, and says so.
    let arrived = counters.read().unwrap().dropped;
    let lost = edge.client_end.statistic("tx_dropped").unwrap() - before;
    assert!(
        arrived >= 60_000,
        "{arrived} of 100,000 arrived, {lost} found no room"
    );
    assert!(
        (100_000..100_020).contains(&(arrived + lost)),
        "{arrived} arrived and {lost} found no room"
    );
}

#[test]
fn the_rate_is_kept() {
    if !skip_unless_root("the_rate_is_kept") {
        return;
    }
    let _turn = turn();
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    for rate in [200, 5_000, 50_000] {
        let spec = FloodSpec {
            duration: SECOND * 2,
            ..FloodSpec::new(Kind::Syn, Rate::Pps(rate), (SERVER_V4, 80).into())
        };
        let started = Instant::now();
        let sent = edge.flood(spec).unwrap().wait().unwrap();
        let measured = sent as f64 / started.elapsed().as_secs_f64();
        let error = (measured / rate as f64 - 1.0).abs();
        assert!(error < 0.1, "{measured:.0} a second instead of {rate}");
    }
}

#[test]
fn a_flood_stops_when_told() {
    if !skip_unless_root("a_flood_stops_when_told") {
        return;
    }
    let _turn = turn();
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let flood = edge
        .flood(FloodSpec::new(
            Kind::Ack,
            Rate::FlatOut,
            (SERVER_V4, 80).into(),
        ))
        .unwrap();
    std::thread::sleep(SECOND);
    assert!(!flood.is_finished());
    let asked = Instant::now();
    let sent = flood.stop().unwrap();
    // It is asked between two batches of half a second of what the flood last got of its core, and
    // may get less of it meanwhile.
    assert!(asked.elapsed() < 5 * SECOND, "took {:?}", asked.elapsed());
    assert!(sent > 100_000, "{sent} frames in a second");
}

#[test]
fn an_echo_comes_back_to_the_peer() {
    if !skip_unless_root("an_echo_comes_back_to_the_peer") {
        return;
    }
    let _turn = turn();
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let mut programs = Programs::load().unwrap();
    let _link = programs.attach("floor_tx", &edge.server_end).unwrap();
    edge.pin_napi(0, 1).unwrap();
    let target = (SERVER_V4, 80).into();
    let spec = FloodSpec {
        frames: 20_000,
        cpu: Some(1),
        ..FloodSpec::new(Kind::Syn, Rate::Pps(50_000), target)
    };
    edge.flood(spec).unwrap().wait().unwrap();
    std::thread::sleep(SECOND / 10);
    let counters = edge.counters().unwrap();
    // Less than all for the reason given above.
    assert!(
        counters.echo >= 10_000 && counters.syn_ack == 0,
        "{counters:?}"
    );
}

#[test]
fn floors_do_what_they_say() {
    if !skip_unless_root("floors_do_what_they_say") {
        return;
    }
    let _turn = turn();
    let mut programs = Programs::load().unwrap();
    let frame = synguard_lab::frame::Frame::tcp(
        "10.0.0.1:1".parse().unwrap(),
        "10.0.0.2:2".parse().unwrap(),
    )
    .macs([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12])
    .build();
    for (name, action) in [
        ("floor_empty", Action::Pass),
        ("floor_siphash", Action::Pass),
        ("floor_drop", Action::Drop),
        ("lab_pass", Action::Pass),
    ] {
        let outcome = testrun::run(programs.program(name).unwrap(), &frame).unwrap();
        assert_eq!((outcome.action, &outcome.frame), (action, &frame), "{name}");
    }
    let echo = testrun::run(programs.program("floor_tx").unwrap(), &frame).unwrap();
    let swapped = describe(&echo.frame).unwrap();
    assert_eq!(echo.action, Action::Tx);
    assert_eq!(
        (swapped.source_mac, swapped.destination_mac),
        ([7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 5, 6])
    );

    let empty = testrun::repeat(
        programs.program("floor_empty").unwrap(),
        &frame,
        None,
        100_000,
    )
    .unwrap();
    let hash = testrun::repeat(
        programs.program("floor_siphash").unwrap(),
        &frame,
        None,
        100_000,
    )
    .unwrap();
    assert!(
        hash.duration > empty.duration,
        "{:?} and {:?}",
        hash.duration,
        empty.duration
    );
}
