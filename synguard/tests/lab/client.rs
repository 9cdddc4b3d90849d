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

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, SERVER_V4, SERVER_V6},
    http::{self, HttpServer, ServerOptions},
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
        let stream = connect(edge, target);
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
