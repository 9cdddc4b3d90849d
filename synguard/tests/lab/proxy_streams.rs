//! What applications do with a connection, spliced: many requests, early ends, resets, urgent data,
//! readers that pause. Behind an edge of every shape and on the edge, in both families.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use socket2::SockRef;
use synguard_common::verdict::Reason;
use synguard_lab::{client, http, netns::Netns, topology::Shape};

use crate::{
    client::{BANNER, ECHO, HTTP, echo, exchange},
    guard::{Guard, PATIENCE, eventually, packets},
    proxy_rules::{FIN, Hook, PROBE_TIMER, Rules, sockets, state},
    proxy_site::{Place, SPARE, Site},
};

/// What is tried at each place, in each family.
type Conversation = fn(&Site, &Guard, bool);

const CONVERSATIONS: [(&str, Conversation); 7] = [
    ("many requests on one connection", many_requests),
    ("the server speaks first", the_server_speaks_first),
    ("one side ends and the other goes on", one_side_ends),
    ("both sides end at once", both_sides_end),
    ("either side resets", either_side_resets),
    ("urgent data", urgent_data),
    ("either side stops reading for a while", either_side_stops),
];

fn converse(place: Place, xdp: &str) {
    if !place.is_possible(&format!("conversations, {place:?}")) {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    let guard = site.guard_in(xdp);
    for (name, conversation) in CONVERSATIONS {
        for v6 in [false, true] {
            let begin = Instant::now();
            conversation(&site, &guard, v6);
            println!("{name}, IPv6 {v6}: {:?}", begin.elapsed());
        }
    }
    let service = guard.service();
    for reason in [Reason::SpliceFailed, Reason::AckInvalid, Reason::BadTcp] {
        assert_eq!(packets(&service, reason), 0, "{place:?}: {service:?}");
    }
}

#[test]
fn behind_a_router() {
    converse(Place::Behind(Shape::Routed), "native");
}

#[test]
fn behind_a_bridge() {
    converse(Place::Behind(Shape::Bridged), "native");
}

#[test]
fn behind_address_translation() {
    converse(Place::Behind(Shape::Dnat), "native");
}

#[test]
fn in_generic_mode() {
    converse(Place::Behind(Shape::Routed), "generic");
}

#[test]
fn on_the_edge() {
    converse(Place::OnEdge, "native");
}

/// Both ends of a connection to a server of the test's own.
#[track_caller]
fn pair(site: &Site, v6: bool) -> (TcpStream, TcpStream) {
    let bound = site.bound(v6, SPARE);
    let listener = site.server().run(|| Ok(TcpListener::bind(bound)?)).unwrap();
    let client = site.connect(site.dial(v6, SPARE));
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_write_timeout(Some(PATIENCE)).unwrap();
    (client, server)
}

fn bytes(length: usize) -> Vec<u8> {
    http::payload(length as u64).flatten().collect()
}

fn read_all(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

/// The socket of this port at an end.
fn socket(ns: &Netns, local: SocketAddr, remote: SocketAddr) -> Option<crate::proxy_rules::Socket> {
    let ports = (local.port(), remote.port());
    sockets(ns)
        .into_iter()
        .find(|socket| (socket.local_port, socket.remote_port) == ports)
}

fn many_requests(site: &Site, _: &Guard, v6: bool) {
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: lab\r\n\r\n";
    const LAST: &str = "GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    const REQUESTS: usize = 50;
    // One after the other, of sizes around that of a segment.
    let stream = site.connect(site.dial(v6, HTTP));
    for size in [
        0, 1, 1399, 1400, 1447, 1448, 1449, 2896, 65_535, 65_536, 1_000_000,
    ] {
        exchange(&stream, size);
    }
    // All at once.
    let mut stream = site.connect(site.dial(v6, HTTP));
    let requests = REQUEST.repeat(REQUESTS - 1) + LAST;
    stream.write_all(requests.as_bytes()).unwrap();
    let answers = String::from_utf8(read_all(&stream).unwrap()).unwrap();
    assert_eq!(
        answers.matches(http::GREETING).count(),
        REQUESTS,
        "{answers}"
    );
}

fn the_server_speaks_first(site: &Site, _: &Guard, v6: bool) {
    let stream = site.connect(site.dial(v6, BANNER));
    let mut banner = vec![0; http::BANNER.len()];
    (&stream).read_exact(&mut banner).unwrap();
    assert_eq!(banner, http::BANNER.as_bytes());
    echo(&stream, b"and then the client").unwrap();
}

fn one_side_ends(site: &Site, _: &Guard, v6: bool) {
    let sent = bytes(500_000);
    // The client ends, the server goes on.
    let stream = site.connect(site.dial(v6, ECHO));
    std::thread::scope(|scope| {
        let back = scope.spawn(|| read_all(&stream).unwrap());
        (&stream).write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(back.join().unwrap() == sent);
    });
    // The server ends, the client goes on.
    let (client, server) = pair(site, v6);
    std::thread::scope(|scope| {
        let there = scope.spawn(|| read_all(&client).unwrap());
        (&server).write_all(&sent).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert!(there.join().unwrap() == sent);
    });
    std::thread::scope(|scope| {
        let there = scope.spawn(|| read_all(&server).unwrap());
        (&client).write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(there.join().unwrap() == sent);
    });
}

/// Each FIN is on its way before its sender has the other: the server's input loses the client's first.
fn both_sides_end(site: &Site, _: &Guard, v6: bool) {
    let (client, server) = pair(site, v6);
    let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let rules = Rules::lose_first(site.server(), Hook::Input, FIN);
    client.shutdown(Shutdown::Write).unwrap();
    eventually("a FIN is lost", || (rules.lost() == 1).then_some(()));
    server.shutdown(Shutdown::Write).unwrap();
    eventually("the client has both FINs in view", || {
        (socket(site.client(), near, far)?.state == state::CLOSING).then_some(())
    });
    assert!(read_all(&client).unwrap().is_empty());
    assert!(read_all(&server).unwrap().is_empty());
    drop((client, server));
    eventually("both are done", || {
        let client = socket(site.client(), near, far);
        let server = socket(site.server(), site.bound(v6, SPARE), near);
        [client, server]
            .into_iter()
            .flatten()
            .all(|socket| socket.state == state::TIME_WAIT)
            .then_some(())
    });
}

fn either_side_resets(site: &Site, guard: &Guard, v6: bool) {
    // Those whose time is up are expired, and no longer there.
    let over = || {
        let flows = guard.status().flows;
        flows.closing + flows.expired_total
    };
    for client_resets in [true, false] {
        let before = over();
        let (client, server) = pair(site, v6);
        (&client).write_all(b"ping").unwrap();
        (&server).read_exact(&mut [0; 4]).unwrap();
        let (resets, is_reset) = match client_resets {
            true => (client, server),
            false => (server, client),
        };
        SockRef::from(&resets)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(resets);
        let error = (&is_reset).read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionReset,
            "client resets: {client_resets}"
        );
        eventually("its flow is over", || (over() > before).then_some(()));
    }
}

fn urgent_data(site: &Site, _: &Guard, v6: bool) {
    let (client, server) = pair(site, v6);
    for (from, to) in [(&client, &server), (&server, &client)] {
        let mut text = [0; 6];
        (&mut &*from).write_all(b"before").unwrap();
        assert_eq!(SockRef::from(from).send_out_of_band(b"!").unwrap(), 1);
        (&mut &*from).write_all(b"beyond").unwrap();
        (&mut &*to).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"before");
        let mut urgent = [std::mem::MaybeUninit::uninit()];
        let read = eventually("the urgent byte is there", || {
            SockRef::from(to).recv_out_of_band(&mut urgent).ok()
        });
        assert_eq!(read, 1);
        // SAFETY: the kernel has just written it.
        assert_eq!(unsafe { urgent[0].assume_init() }, b'!');
        (&mut &*to).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"beyond");
    }
}

/// A reader pauses until its window is shut, and the sender asks whether it has opened.
fn either_side_stops(site: &Site, _: &Guard, v6: bool) {
    const BYTES: usize = 12_000_000;
    let sent = bytes(BYTES);
    let (client, server) = pair(site, v6);
    let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let bound = site.bound(v6, SPARE);
    for (from, to, ns, local, remote) in [
        (&client, &server, site.client(), near, far),
        (&server, &client, site.server(), bound, near),
    ] {
        std::thread::scope(|scope| {
            let (mut from, mut to) = (from, to);
            let sent = &sent;
            let writer = scope.spawn(move || from.write_all(sent).unwrap());
            eventually("the window is shut", || {
                (socket(ns, local, remote)?.timer == PROBE_TIMER).then_some(())
            });
            assert!(!writer.is_finished(), "nothing was held back");
            let mut there = vec![0; BYTES];
            to.read_exact(&mut there).unwrap();
            assert!(there == *sent);
            writer.join().unwrap();
        });
    }
    let info = client::tcp_info(&client).unwrap();
    println!("{info:?}");
}
