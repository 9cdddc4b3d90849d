//! What takes its time, all at once: servers that never answer, connections that are idle, connections
//! older than the guard, a service that becomes calm again.

use std::{
    io::{ErrorKind, Read as _},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use synguard_common::verdict::Reason;
use synguard_lab::{
    frame::flags,
    load::{LoadClient, LoadOptions, Pattern},
    topology::Shape,
};

use crate::{
    client::{ECHO, HTTP, echo, exchange, stalled},
    guard::{PATIENCE, eventually, packets, within},
    proxy_rules::{Hook, Rules, SYN, sockets},
    proxy_site::{Place, Site},
};

const SECOND: Duration = Duration::from_secs(1);

/// One of the things that take their time.
type Test = fn(Site);

#[test]
fn what_takes_its_time() {
    let what = "what_takes_its_time";
    if !Place::Behind(Shape::Dnat).is_possible(what) {
        return;
    }
    thread::scope(|scope| {
        let tests: [(&str, Test); 5] = [
            ("a_server_that_never_answers", a_server_that_never_answers),
            ("a_server_that_is_nowhere", a_server_that_is_nowhere),
            ("idle_connections", idle_connections),
            ("older_connections", older_connections),
            (
                "clients_notice_neither_switch",
                clients_notice_neither_switch,
            ),
        ];
        for (name, test) in tests {
            scope.spawn(move || {
                let begin = Instant::now();
                test(Site::plain(Place::Behind(Shape::Routed)));
                println!("{name}: {:?}", begin.elapsed());
            });
        }
    });
}

/// Connects, and waits for as long as a minute for the reset.
#[track_caller]
fn connect_and_be_reset(site: &Site, target: SocketAddr) {
    let mut stream = site.connect(target);
    stream.set_read_timeout(Some(60 * SECOND)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{target}");
}

/// The SYN is sent five times, after 0, 1, 3, 7 and 15 s; at 31 s the client is refused.
fn a_server_that_never_answers(site: Site) {
    let _server = site.serve();
    let guard = site.guard_knowingly();
    let silence = Rules::lose(site.server(), Hook::Input, SYN);
    let begin = Instant::now();
    thread::scope(|scope| {
        for target in site.both(HTTP) {
            let site = &site;
            scope.spawn(move || {
                connect_and_be_reset(site, target);
                let took = begin.elapsed();
                assert!(
                    (30 * SECOND..36 * SECOND).contains(&took),
                    "{target}: {took:?}"
                );
            });
        }
    });
    assert_eq!(silence.lost(), 2 * 5, "SYNs");
    eventually("it is counted", || {
        let flows = guard.status().flows;
        ((flows.retried_total, flows.refused_total) == (2 * 4, 2)).then_some(())
    });
    let service = guard.service();
    assert_eq!(packets(&service, Reason::SpliceStarted), 2, "{service:?}");
    drop(silence);
    for target in site.both(HTTP) {
        exchange(&site.connect(target), 10_000);
    }
}

/// Nobody has the address: the edge itself finds that out, and says so in ICMP errors, which do not
/// end a connection that the client believes to be established (RFC 5461). The end comes as with
/// silence.
fn a_server_that_is_nowhere(site: Site) {
    let nobody = [false, true].map(|v6| {
        let server = site.dial(v6, HTTP).ip();
        // The last byte of the server's address is 2.
        let nobody = server.to_string().strip_suffix('2').unwrap().to_owned() + "99";
        SocketAddr::new(nobody.parse().unwrap(), HTTP)
    });
    // Nothing is ever learned of its options, and no SYN goes to ask.
    let service = format!(
        "[[service]]\nname = \"nobody\"\naddresses = [\"{}\", \"{}\"]\nmode = \"always\"\n\
         admission = \"proxy\"\nserver = {{ timestamps = true, sack = true, window_scale = 7 }}\n",
        nobody[0].ip(),
        nobody[1].ip()
    );
    let guard = site.guard_by("proxy", "", &service, &[]);
    let begin = Instant::now();
    thread::scope(|scope| {
        for target in nobody {
            let site = &site;
            scope.spawn(move || {
                connect_and_be_reset(site, target);
                let took = begin.elapsed();
                assert!(took < 36 * SECOND, "{target}: {took:?}");
            });
        }
    });
    assert_eq!(guard.status().flows.refused_total, 2);
}

/// Idle for longer than any other deadline of a flow, and for less and more than the one that is
/// meant for it. Ten minutes differ from twelve seconds in nothing else: no timer is in between.
fn idle_connections(site: Site) {
    let _server = site.serve();
    let guard = site.guard_by("proxy", "flow_idle_timeout = \"20s\"", "", &[]);
    site.teach(&guard);
    let taught = guard.status().flows.expired_total;
    let idle = site.both(ECHO).map(|target| site.connect(target));
    let abandoned = site.both(ECHO).map(|target| site.connect(target));
    let all = || idle.iter().chain(&abandoned);
    all().for_each(|stream| echo(stream, b"first").unwrap());
    thread::sleep(12 * SECOND);
    idle.iter()
        .for_each(|stream| echo(stream, b"later").unwrap());
    // The two that are silent go, beside those that taught the daemon, and the others stay.
    within(20 * SECOND, "the abandoned ones expire", || {
        let flows = guard.status().flows;
        (flows.spliced == 2 && flows.expired_total >= taught + 2).then_some(())
    });
    idle.iter()
        .for_each(|stream| echo(stream, b"and again").unwrap());
}

/// Connections that are there before the guard is, and what is nobody's once it has settled.
fn older_connections(site: Site) {
    let _server = site.serve();
    let older = site.both(ECHO).map(|target| site.connect(target));
    older
        .iter()
        .for_each(|stream| echo(stream, b"before").unwrap());
    let guard = site.guard_knowingly();
    let attached = Instant::now();
    // The server is heard on them.
    older
        .iter()
        .for_each(|stream| echo(stream, b"guarded").unwrap());
    thread::sleep((61 * SECOND).saturating_sub(attached.elapsed()));
    older
        .iter()
        .for_each(|stream| echo(stream, b"settled").unwrap());
    let service = guard.service();
    assert!(packets(&service, Reason::FlowKnown) > 0, "{service:?}");

    let wire = site.wire();
    let before = guard.status().flows;
    for target in site.both(ECHO) {
        let stranger = SocketAddr::new(
            older[usize::from(target.is_ipv6())]
                .local_addr()
                .unwrap()
                .ip(),
            999,
        );
        for (flags, reason) in [
            (flags::ACK, Reason::AckInvalid),
            (flags::FIN | flags::ACK, Reason::AckInvalid),
            (flags::RST, Reason::RstUnknown),
            (flags::SYN | flags::ACK, Reason::SynAckUnknown),
        ] {
            let dropped = packets(&guard.service(), reason);
            let frame = site.frame(stranger, target).seq(1).ack(1).flags(flags);
            wire.send(&frame.build()).unwrap();
            eventually(reason.label(), || {
                (packets(&guard.service(), reason) == dropped + 1).then_some(())
            });
        }
    }
    let after = guard.status().flows;
    assert_eq!(
        after.created_total, before.created_total,
        "{before:?}, {after:?}"
    );
    older
        .iter()
        .for_each(|stream| echo(stream, b"still there").unwrap());
    assert!(
        sockets(site.server())
            .iter()
            .all(|socket| socket.remote_port != 999)
    );
}

/// A service becomes calm and guarded again under steady traffic: no client fails over it, and neither
/// does a connection that began before, whenever that was.
fn clients_notice_neither_switch(site: Site) {
    let _server = site.serve();
    let before = site.both(HTTP).map(|target| site.connect(target));
    let guard = site.guard_knowingly();
    let during = site.both(HTTP).map(|target| site.connect(target));
    let load = LoadOptions {
        limit: PATIENCE,
        ..LoadOptions::new(site.dial(false, HTTP), Pattern::Open(300))
    };
    let load = LoadClient::start(site.client(), load).unwrap();
    thread::sleep(SECOND);
    guard.set_mode("adaptive");
    within(40 * SECOND, "calm again", || {
        (guard.service().state == "calm").then_some(())
    });
    let after = site.both(HTTP).map(|target| site.connect(target));
    let all = || before.iter().chain(&during).chain(&after);
    all().for_each(|stream| exchange(stream, 100_000));
    thread::sleep(SECOND);
    guard.set_mode("always");
    thread::sleep(SECOND);
    let report = load.stop().unwrap();
    println!("{report:?}, over 100 ms: {}", stalled(&report));
    assert!(report.ok > 1000 && report.failed() == 0, "{report:?}");
    assert!(stalled(&report) <= report.ok / 100, "{report:?}");
    all().for_each(|stream| exchange(stream, 100_000));
    guard.set_mode("observe");
    all().for_each(|stream| exchange(stream, 100_000));
}
