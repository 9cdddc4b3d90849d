//! How connections come about while a service is guarded, beyond the plain client: reused tuples,
//! closed ports, shared ports, connections from inside, SYNs with data, requests of many segments.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{CLIENT_V4, CLIENT_V6, Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    flood::{FloodSpec, Kind, Rate},
    http::{self, HttpServer, ServerOptions},
    netns::Netns,
    skip_unless_root,
};

use crate::{
    client::{HTTP, Talk, ask_and_have_it_closed, both, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted, challenged, eventually, packets},
};

/// Well below the 200 ms that a lost segment costs, and beyond what a busy machine does often.
const PROMPT: Duration = Duration::from_millis(150);

/// A listener with a queue of its own, in a namespace.
fn listener(
    ns: &Netns,
    address: SocketAddr,
    protocol: Option<Protocol>,
) -> std::io::Result<TcpListener> {
    let socket = ns.run(|| {
        Ok(Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            protocol,
        ))
    });
    let socket = socket.unwrap()?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(512)?;
    Ok(socket.into())
}

#[test]
fn a_tuple_in_time_wait_is_used_again() {
    if !skip_unless_root("a_tuple_in_time_wait_is_used_again") {
        return;
    }
    for timestamps in [1, 0] {
        let edge = Edge::new(EdgeOptions::default()).unwrap();
        edge.client
            .set_sysctl("net.ipv4.tcp_timestamps", timestamps)
            .unwrap();
        let _server = serve(&edge);
        let guard = Guard::always(&edge);
        const ROUNDS: u64 = 5;
        for (target, source) in [
            (
                (SERVER_V4, HTTP).into(),
                SocketAddr::from((CLIENT_V4, 40_000)),
            ),
            ((SERVER_V6, HTTP).into(), (CLIENT_V6, 40_000).into()),
        ] {
            for round in 0..ROUNDS {
                let options = ConnectOptions {
                    source: Some(source),
                    timeout: PATIENCE,
                    ..ConnectOptions::default()
                };
                let begin = Instant::now();
                let stream = client::connect(&edge.client, target, &options)
                    .with_context(|| format!("round {round}, timestamps {timestamps}"))
                    .unwrap();
                ask_and_have_it_closed(&stream);
                // A second is what a lost SYN costs.
                assert!(
                    begin.elapsed() < Duration::from_millis(900),
                    "{:?}",
                    begin.elapsed()
                );
            }
        }
        let service = guard.service();
        assert_eq!(
            packets(&service, Reason::SynTimeWait),
            2 * (ROUNDS - 1),
            "{service:?}"
        );
        assert_eq!(admitted(&service), 2, "{service:?}");
    }
}

#[test]
fn a_port_without_a_listener_refuses() {
    if !skip_unless_root("a_port_without_a_listener_refuses") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let guard = Guard::always(&edge);
    let refused = |target: SocketAddr| {
        let begin = Instant::now();
        let error = client::connect(&edge.client, target, &ConnectOptions::default()).unwrap_err();
        let kind = error
            .chain()
            .find_map(|e| e.downcast_ref::<std::io::Error>())
            .unwrap()
            .kind();
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{error:#}");
        assert!(
            begin.elapsed() < Duration::from_millis(900),
            "{:?}",
            begin.elapsed()
        );
    };
    both(HTTP).into_iter().for_each(refused);
    assert_eq!(packets(&guard.service(), Reason::NoListener), 2);

    // A listener that comes, goes and comes again.
    for _ in 0..2 {
        let server = serve(&edge);
        let streams = both(HTTP).map(|target| connect(&edge, target));
        streams.iter().for_each(|stream| exchange(stream, 10_000));
        drop(server);
        both(HTTP).into_iter().for_each(refused);
    }
    assert_eq!(admitted(&guard.service()), 4);
}

#[test]
fn listeners_that_share_a_port_share_the_connections() {
    if !skip_unless_root("listeners_that_share_a_port_share_the_connections") {
        return;
    }
    const LISTENERS: usize = 4;
    const CLIENTS: usize = 200;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let guard = Guard::always(&edge);
    for target in both(81) {
        let listeners: Vec<_> = (0..LISTENERS)
            .map(|_| listener(&edge.server, target, None).unwrap())
            .collect();
        let mut streams: Vec<_> = (0..CLIENTS).map(|_| connect(&edge, target)).collect();
        streams
            .iter_mut()
            .for_each(|stream| stream.write_all(b"x").unwrap());
        let mut accepted = [0; LISTENERS];
        eventually("every connection is accepted", || {
            for (listener, count) in listeners.iter().zip(&mut accepted) {
                listener.set_nonblocking(true).unwrap();
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.read_exact(&mut [0]).unwrap();
                    *count += 1;
                }
            }
            (accepted.iter().sum::<usize>() == CLIENTS).then_some(())
        });
        // An even share is 50; fewer than 20 once in ten million times.
        assert!(
            accepted.iter().all(|count| *count >= 20),
            "{target}: {accepted:?}"
        );
    }
    assert_eq!(admitted(&guard.service()), 2 * CLIENTS as u64);
}

#[test]
fn connections_from_inside_are_left_alone() {
    if !skip_unless_root("connections_from_inside_are_left_alone") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _outside = HttpServer::start(&edge.client, ServerOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let flood = FloodSpec::new(Kind::Mixed, Rate::Pps(50_000), (SERVER_V4, HTTP).into());
    let flood = edge.flood(flood).unwrap();
    let before = admitted(&guard.service());
    for target in [
        SocketAddr::from((CLIENT_V4, HTTP)),
        (CLIENT_V6, HTTP).into(),
    ] {
        for _ in 0..20 {
            let options = ConnectOptions {
                timeout: PATIENCE,
                ..ConnectOptions::default()
            };
            let stream = client::connect(&edge.server, target, &options).unwrap();
            assert_eq!(client::tcp_info(&stream).unwrap().retransmits, 0);
            exchange(&stream, 100_000);
        }
    }
    flood.stop().unwrap();
    let service = guard.service();
    assert_eq!(admitted(&service), before, "{service:?}");
    assert!(packets(&service, Reason::Established) > 40, "{service:?}");
}

#[test]
fn a_syn_with_data_gets_through() {
    const MSG_FASTOPEN: i32 = 0x2000_0000;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    if !skip_unless_root("a_syn_with_data_gets_through") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    // Data in the SYN without a cookie of the server's (4), as a client would send that had one.
    edge.client.set_sysctl("net.ipv4.tcp_fastopen", 5).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let wire = edge.client_wire().unwrap();
    for target in both(HTTP) {
        let address = SockAddr::from(target);
        let socket = edge
            .client
            .run(|| Ok(Socket::new(address.domain(), Type::STREAM, None)?));
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let begin = Instant::now();
        let sent = socket
            .send_to_with_flags(REQUEST, &address, MSG_FASTOPEN)
            .unwrap();
        assert_eq!(sent, REQUEST.len());
        let mut answer = String::new();
        (&socket).read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with(http::GREETING), "{answer:?}");
        assert!(
            begin.elapsed() < Duration::from_millis(900),
            "{:?}",
            begin.elapsed()
        );
    }
    // The data was in the SYN, or this test tests nothing: the answer acknowledges the SYN alone.
    let syn = edge
        .frame(
            (Ipv4Addr::new(10, 77, 0, 60), 999).into(),
            (SERVER_V4, HTTP).into(),
        )
        .seq(100)
        .payload(REQUEST);
    let answer = wire.exchange(&syn.build(), PATIENCE).unwrap().unwrap();
    assert_eq!((answer.ack, answer.payload.len()), (101, 0), "{answer}");
    let service = guard.service();
    assert_eq!(
        (admitted(&service), challenged(&service)),
        (2, 3),
        "{service:?}"
    );
}

#[test]
fn a_request_of_many_segments_right_after_the_ack() {
    if !skip_unless_root("a_request_of_many_segments_right_after_the_ack") {
        return;
    }
    const WORKERS: usize = 8;
    const EACH: usize = 100;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let body = vec![0x5a; 8192];
    let slow = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (edge, body, slow) = (&edge, &body, &slow);
            scope.spawn(move || {
                for _ in 0..EACH {
                    let begin = Instant::now();
                    let stream = connect(edge, both(HTTP)[worker % 2]);
                    let answer = client::post(&stream, "/sink", body).unwrap();
                    let expected =
                        format!("{{\"bytes\":8192,\"blake3\":\"{}\"}}", blake3::hash(body));
                    assert_eq!(String::from_utf8(answer.body).unwrap(), expected);
                    let (time, info) = (begin.elapsed(), client::tcp_info(&stream).unwrap());
                    if time > PROMPT || info.retransmits > 0 {
                        slow.lock().unwrap().push((time, info.retransmits));
                    }
                }
            });
        }
    });
    let service = guard.service();
    assert_eq!(admitted(&service), (WORKERS * EACH) as u64, "{service:?}");
    let slow = slow.into_inner().unwrap();
    // What a busy machine delays by itself; with a race lost, nearly every connection would be here.
    assert!(slow.len() <= WORKERS * EACH / 100, "{slow:?}");
}

#[test]
fn multipath_listeners_are_excepted() {
    let name = "multipath_listeners_are_excepted";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let target = (SERVER_V4, 8080).into();
    let listener = match listener(&edge.server, target, Some(Protocol::MPTCP)) {
        Ok(listener) => listener,
        Err(error) => {
            println!("SKIP {name}: no MPTCP socket: {error}");
            return;
        }
    };
    let guard = Guard::always(&edge);
    let service = guard.service();
    let [excepted] = service.excepted.as_slice() else {
        panic!("{service:?}")
    };
    assert!(
        excepted.contains("port 8080 of 10.77.0.2") && excepted.contains("MPTCP"),
        "{excepted}"
    );

    let mut stream = connect(&edge, target);
    stream.write_all(b"over one path").unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut text = [0; 13];
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"over one path");
    assert_eq!(challenged(&guard.service()), 0);
}

#[test]
fn a_long_transfer_each_way_under_flood() {
    if !skip_unless_root("a_long_transfer_each_way_under_flood") {
        return;
    }
    const BYTES: usize = 200_000_000;
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let _guard = Guard::always(&edge);
    let target = (SERVER_V4, HTTP).into();
    let talk = Talk::start(&edge, (SERVER_V4, crate::client::ECHO).into());
    let flood = FloodSpec {
        duration: Duration::from_secs(60),
        ..FloodSpec::new(Kind::Mixed, Rate::Pps(100_000), target)
    };
    let flood = edge.flood(flood).unwrap();
    let stream = connect(&edge, target);
    exchange(&stream, BYTES);
    assert!(!flood.is_finished(), "the flood ended before the transfer");
    let info = client::tcp_info(&stream).unwrap();
    println!("{info:?}");
    assert!(flood.stop().unwrap() > 0);
    talk.lives("during the transfer");
    talk.finish();
}
