//! The SYN cache: a client whose final ACK is lost, and that waits for its server to speak.

use std::{
    io::{ErrorKind, Read as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use synguard_common::verdict::Reason;
use synguard_lab::topology::Shape;

use crate::{
    client::BANNER,
    guard::{Guard, packets},
    proxy_rules::{ACK, Hook, Rules},
    proxy_site::{Place, Site},
};

const PLACES: [(Place, &str); 2] = [
    (Place::OnEdge, "local"),
    (Place::Behind(Shape::Routed), "proxy"),
];

/// Connects, loses the ACK that ends the handshake, and reads what the server says first.
fn banner(site: &Site, v6: bool, patience: Duration) -> std::io::Result<Duration> {
    let rules = Rules::lose_first(site.client(), Hook::Output, ACK);
    let begin = Instant::now();
    let mut stream: TcpStream = site.connect(site.dial(v6, BANNER));
    stream.set_read_timeout(Some(patience))?;
    let read = stream.read(&mut [0; 64]);
    assert_eq!(rules.lost(), 1);
    let count = read?;
    assert!(count > 0, "the end");
    Ok(begin.elapsed())
}

fn guard(site: &Site, admission: &str, daemon: &str) -> Guard {
    if admission == "proxy" {
        let guard = site.guard_by(admission, daemon, "", &[]);
        site.teach(&guard);
        guard
    } else {
        site.guard_by(admission, daemon, "", &["--mode", "always"])
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_though_the_ack_is_lost() {
    for (place, admission) in PLACES {
        if !place.is_possible("a_server_that_speaks_first_is_heard_though_the_ack_is_lost") {
            return;
        }
        let site = Site::plain(place);
        let _server = site.serve();

        // Without a cache it waits for ever.
        let without = guard(&site, admission, "syn_cache = false");
        let error = banner(&site, false, Duration::from_secs(4)).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{error}"
        );
        assert_eq!(without.service().reminded_total, 0);
        without.stop();

        let with = guard(&site, admission, "syn_cache = true");
        for (n, v6) in [(1, false), (2, true)] {
            let before = packets(&with.service(), Reason::Challenged);
            let took = banner(&site, v6, Duration::from_secs(4)).unwrap();
            // One second, a tick of the daemon's clock before and after it, and what a busy machine takes.
            let range = Duration::from_millis(700)..Duration::from_millis(2500);
            assert!(range.contains(&took), "{place:?}: {took:?}");
            let service = with.service();
            assert_eq!(service.reminded_total, n, "{service:?}");
            assert_eq!(packets(&service, Reason::Challenged), before + 2);
        }
        with.stop();
    }
}
