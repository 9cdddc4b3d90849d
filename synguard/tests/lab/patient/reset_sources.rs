//! Admission `reset`, where answers leave by another way, and where they do not: a client shows once
//! that it receives what is sent to its address, and connects as ever from then on.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use synguard::model::Snapshot;
use synguard_common::verdict::Reason;
use synguard_lab::{
    client,
    frame::{TcpOption, flags},
    topology::Shape,
};

use crate::{
    client::{ECHO, HTTP, echo, exchange},
    guard::{Guard, eventually, packets, within},
    proxy_site::{PROMPT, Place, Site},
};

/// What the first connection of a source may take: one retransmission timeout of a SYN, and a margin.
const ONCE: Duration = Duration::from_millis(1200);

fn site(shape: Shape) -> Site {
    Site::plain(Place::Behind(shape))
}

/// How often sources were asked, verified, and let through.
fn counts(guard: &Guard) -> [u64; 3] {
    let service = guard.service();
    [
        Reason::Challenged,
        Reason::SourceVerified,
        Reason::SynVerified,
    ]
    .map(|reason| packets(&service, reason))
}

/// How many sources the table holds.
fn verified(status: &Snapshot) -> u64 {
    let mut maps = status.maps.iter();
    maps.find(|map| map.name == "VERIFIED").unwrap().entries
}

/// Connects; says how long that took, too.
#[track_caller]
fn connect(site: &Site, target: SocketAddr) -> (TcpStream, Duration) {
    let begin = Instant::now();
    let stream = site.connect(target);
    (stream, begin.elapsed())
}

#[test]
fn a_source_is_verified_once() {
    const LATER: u64 = 20;
    for shape in [
        Shape::Asymmetric,
        Shape::Routed,
        Shape::Bridged,
        Shape::Dnat,
    ] {
        let what = format!("a_source_is_verified_once, {shape}");
        if !Place::Behind(shape).is_possible(&what) {
            continue;
        }
        let site = site(shape);
        let _server = site.serve();
        let older = site.both(ECHO).map(|target| site.connect(target));
        let guard = site.guard_by("reset", "", "mode = \"always\"", &[]);
        for (family, target) in site.both(HTTP).into_iter().enumerate() {
            let family = family as u64;
            let (stream, took) = connect(&site, target);
            println!("{what}, {target}: the first took {took:?}");
            assert!(took < ONCE, "{what}, {target}: {took:?}");
            exchange(&stream, 1_000_000);
            let [asked, verified, passed] = counts(&guard);
            let before = (1 + LATER) * family;
            assert_eq!(
                (asked, verified, passed),
                (1 + family, 1 + family, before + 1),
                "{what}"
            );

            let mut slow = 0;
            for _ in 0..LATER {
                let (stream, took) = connect(&site, target);
                slow += u64::from(took > PROMPT);
                // Nothing of such a connection is changed.
                let ends = [
                    client::tcp_info(&stream).unwrap(),
                    client::server_info(&stream).unwrap(),
                ];
                for end in ends {
                    let options = [end.timestamps, end.sack, end.window_scaling];
                    assert_eq!(options, [true; 3], "{what}: {ends:?}");
                }
                exchange(&stream, 10_000);
            }
            assert!(slow <= 1, "{what}: {slow} of {LATER} were slow");
            assert_eq!(
                counts(&guard),
                [asked, verified, before + 1 + LATER],
                "{what}"
            );
        }
        older
            .iter()
            .for_each(|stream| echo(stream, b"still there").unwrap());
        eventually("both sources are counted", || {
            let status = guard.status();
            ((status.flows.verified_total, verified(&status)) == (2, 2)).then_some(())
        });
    }
}

#[test]
fn verification_ends() {
    let what = "verification_ends";
    if !Place::Behind(Shape::Asymmetric).is_possible(what) {
        return;
    }
    let site = site(Shape::Asymmetric);
    let _server = site.serve();
    let guard = site.guard_by(
        "reset",
        "verified_timeout = \"3s\"",
        "mode = \"always\"",
        &[],
    );
    let target = site.dial(false, HTTP);
    let (stream, _) = connect(&site, target);
    let begin = Instant::now();
    let _second = connect(&site, target);
    let asked = counts(&guard);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "too slow a machine to tell"
    );
    assert_eq!(asked, [1, 1, 2]);
    thread::sleep(Duration::from_millis(3500));
    let _third = connect(&site, target);
    assert_eq!(counts(&guard), [2, 2, 3]);
    // What was made while it lasted goes on.
    exchange(&stream, 100_000);
    within(Duration::from_secs(15), "the table is empty", || {
        (verified(&guard.status()) == 0).then_some(())
    });
}

/// No frame that does not carry the cookie verifies a source; the right one does, once.
#[test]
fn only_the_cookie_verifies() {
    let what = "only_the_cookie_verifies";
    if !Place::Behind(Shape::Asymmetric).is_possible(what) {
        return;
    }
    let site = site(Shape::Asymmetric);
    let _server = site.serve();
    let guard = site.guard_by("reset", "", "mode = \"always\"", &[]);
    let wire = site.wire();
    for (target, source) in site
        .both(HTTP)
        .into_iter()
        .zip(["10.77.0.200", "fd77::200"])
    {
        // An address on the client's wire that no kernel has: nobody answers for it but the test.
        let source = SocketAddr::new(source.parse().unwrap(), 2000);
        let syn = site
            .frame(source, target)
            .seq(1000)
            .options(TcpOption::linux_syn(1460, 1));
        let asked = wire
            .exchange(&syn.clone().build(), Duration::from_secs(5))
            .unwrap()
            .unwrap();
        assert!(asked.has_flags(flags::SYN | flags::ACK), "{asked}");
        assert_ne!(asked.ack, 1001, "{asked}");

        let [_, verified, _] = counts(&guard);
        let reset = |seq: u32, from: SocketAddr| {
            site.frame(from, target).seq(seq).flags(flags::RST).build()
        };
        let neighbour = SocketAddr::new(source.ip(), 2001);
        for wrong in [
            reset(asked.ack.wrapping_add(1), source),
            reset(asked.ack ^ 1 << 31, source),
            reset(1001, source),
            reset(asked.ack, neighbour),
            site.frame(source, target)
                .seq(asked.ack)
                .flags(flags::ACK)
                .build(),
            site.frame(source, target)
                .ack(asked.ack)
                .flags(flags::ACK)
                .build(),
        ] {
            wire.send(&wrong).unwrap();
        }
        let again = wire
            .exchange(&syn.clone().seq(2000).build(), Duration::from_secs(5))
            .unwrap();
        assert!(
            again.is_some_and(|again| again.ack != 2001),
            "it was let through"
        );
        assert_eq!(counts(&guard)[1], verified);

        wire.send(&reset(asked.ack, source)).unwrap();
        eventually("it is verified", || {
            (counts(&guard)[1] == verified + 1).then_some(())
        });
        let [_, _, passed] = counts(&guard);
        wire.send(&syn.clone().seq(3000).build()).unwrap();
        eventually("its SYN passes", || {
            (counts(&guard)[2] == passed + 1).then_some(())
        });
    }
}
