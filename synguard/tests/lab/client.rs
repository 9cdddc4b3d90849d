//! What tests do with connections, whatever the test is about.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use synguard_common::flow::{Net as _, V4, V6};
use synguard_lab::{
    client::{self, ConnectOptions, TcpInfo},
    edge::{Edge, SERVER_V4, SERVER_V6},
    http::{self, HttpServer, ServerOptions},
    load::{LoadClient, LoadOptions, Report},
    netns::Netns,
};

use crate::guard::PATIENCE;

pub const HTTP: u16 = 80;
pub const BANNER: u16 = 2525;
pub const ECHO: u16 = 7;

/// A server on every port above.
pub fn serve(edge: &Edge) -> HttpServer {
    HttpServer::start(
        &edge.server,
        ServerOptions {
            port: HTTP,
            banner_port: Some(BANNER),
            echo_port: Some(ECHO),
            ..ServerOptions::default()
        },
    )
    .unwrap()
}

/// A port of the server in both families.
pub fn both(port: u16) -> [SocketAddr; 2] {
    [(SERVER_V4, port).into(), (SERVER_V6, port).into()]
}

/// Connects as a patient client.
#[track_caller]
pub fn connect(edge: &Edge, target: SocketAddr) -> TcpStream {
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..ConnectOptions::default()
    };
    client::connect(&edge.client, target, &options).unwrap()
}

/// Has bytes travel both ways and compares them.
#[track_caller]
pub fn exchange(stream: &TcpStream, bytes: usize) {
    let answer = client::get(stream, &format!("/bytes/{bytes}")).unwrap();
    let expected = http::payload_hash(bytes as u64);
    assert_eq!((answer.status, blake3::hash(&answer.body)), (200, expected));
    let sink = client::post(stream, "/sink", &answer.body).unwrap();
    assert_eq!(
        String::from_utf8(sink.body).unwrap(),
        format!("{{\"bytes\":{bytes},\"blake3\":\"{expected}\"}}")
    );
}

/// Sends a text to the echo port and waits for it.
pub fn echo(mut stream: &TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    if back == text {
        Ok(())
    } else {
        Err(std::io::Error::other("something else came back"))
    }
}

/// Asks, and has the server end the connection first, so that TIME_WAIT is on its side.
#[track_caller]
pub fn ask_and_have_it_closed(mut stream: &TcpStream) {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(http::GREETING), "{answer:?}");
}

/// Has clients of a namespace make connections, to the end.
#[track_caller]
pub fn run_load(ns: &Netns, load: LoadOptions) -> Report {
    LoadClient::start(ns, load).unwrap().wait().unwrap()
}

/// Connections that took longer than 100 ms. A lost segment costs 200 ms or a second, whereas the
/// machine's own hiccups come with the guard as without.
pub fn stalled(report: &Report) -> u64 {
    report.latency.len() - report.latency.count_between(0, 100_000)
}

/// Options that both ends of a connection use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub timestamps: bool,
    pub sack: bool,
    pub window_scaling: bool,
    pub ecn: bool,
}

/// As Linux comes.
impl Default for Agreed {
    fn default() -> Self {
        Self {
            timestamps: true,
            sack: true,
            window_scaling: true,
            ecn: false,
        }
    }
}

impl Agreed {
    /// Those that one end says it uses.
    pub fn of(info: &TcpInfo) -> Self {
        Self {
            timestamps: info.timestamps,
            sack: info.sack,
            window_scaling: info.window_scaling,
            ecn: info.ecn,
        }
    }
}

/// A connection seen from both ends.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub client: TcpInfo,
    pub server: TcpInfo,
}

impl Ends {
    /// As they are now.
    #[track_caller]
    pub fn of(stream: &TcpStream) -> Self {
        let server = client::server_info(stream).unwrap();
        Self {
            client: client::tcp_info(stream).unwrap(),
            server,
        }
    }

    /// Asserts that they agreed on the same as those of a connection without the guard.
    #[track_caller]
    pub fn assert_untouched(&self, free: &Self, what: &str) {
        assert_eq!(Agreed::of(&self.client), Agreed::of(&free.client), "{what}");
        let scales = |ends: &Self| (ends.client.send_scale, ends.server.send_scale);
        let sizes = |ends: &Self| (ends.client.send_mss, ends.server.send_mss);
        assert_eq!(
            (scales(self), sizes(self)),
            (scales(free), sizes(free)),
            "{what}"
        );
    }

    /// Asserts what is true of every connection that was made from a cookie, beside one that the
    /// kernels made themselves.
    #[track_caller]
    pub fn assert_made_from_cookie(&self, free: &Self, target: SocketAddr, what: &str) {
        let Self { client, server } = self;
        // Both ends know the same of each other, or one will send what the other mistakes.
        assert_eq!(Agreed::of(client), Agreed::of(server), "{what}");
        if client.timestamps {
            assert_eq!(server.send_scale, client.receive_scale, "{what}");
        } else {
            assert!(server.send_scale <= client.receive_scale, "{what}");
            // Every scale that common systems use is in the table.
            if [0, 2, 4, 6, 7, 8, 10].contains(&client.receive_scale) {
                assert_eq!(server.send_scale, client.receive_scale, "{what}");
            }
        }
        // The server's MSS reaches the client whole, the client's rounded down to the table.
        assert_eq!(client.send_mss, free.client.send_mss, "{what}");
        let timestamps = if client.timestamps { 12 } else { 0 };
        let full = free.server.send_mss + timestamps;
        let table = if target.is_ipv4() {
            V4::MSS_TABLE
        } else {
            V6::MSS_TABLE
        };
        let rounded = table
            .into_iter()
            .map(u32::from)
            .rfind(|mss| *mss <= full)
            .unwrap();
        assert_eq!(server.send_mss, rounded - timestamps, "{what}");
    }
}

/// A connection that exchanges bytes without a pause, on a thread of its own.
pub struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    pub local: SocketAddr,
}

impl Talk {
    /// Connects to the server's echo port and begins to talk.
    #[track_caller]
    pub fn start(edge: &Edge, target: SocketAddr) -> Self {
        Self::over(connect(edge, target))
    }

    /// Begins to talk on a connection to the server's echo port.
    pub fn over(stream: TcpStream) -> Self {
        let local = stream.local_addr().unwrap();
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ends, counts) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let round = counts.load(Ordering::Relaxed);
                echo(
                    &stream,
                    format!("round {round} of a long conversation").as_bytes(),
                )?;
                counts.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        Self {
            stop,
            rounds,
            thread: Some(thread),
            local,
        }
    }

    /// Asserts that it goes on: bytes are exchanged from now on.
    #[track_caller]
    pub fn lives(&self, when: &str) {
        let before = self.rounds.load(Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while self.rounds.load(Ordering::Relaxed) < before + 3 {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "a connection established before died {when}");
            assert!(
                Instant::now() < end,
                "a connection established before stalls {when}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it; it must have gone well to the end.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        thread
            .join()
            .unwrap()
            .expect("a connection established before failed");
    }
}
