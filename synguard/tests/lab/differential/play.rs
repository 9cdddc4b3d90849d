//! Plays scripts: one end of a connection at a time, and both ends of many in a topology.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use fastrand::Rng;
use socket2::{Domain, SockRef, Socket, Type};
use synguard_lab::{client::tcp_info, netns::Netns, pattern::Pattern, topology::Forwarding};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{Semaphore, oneshot, watch},
    time::{error::Elapsed, timeout, timeout_at},
};

use super::script::{Begins, Ending, LISTENERS, Part, Role, Script};

/// How long a connection may take in all.
const LIMIT: Duration = Duration::from_secs(20);
/// Connections at the same time.
const CONCURRENT: usize = 100;
/// Clients' ports begin here, below those that the kernel chooses.
const FIRST_PORT: u16 = 10_000;

/// How an end saw a connection end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By the other end's FIN.
    Fin,
    /// By the other end's RST.
    Rst,
    /// By itself.
    Own,
    /// Otherwise; never, if it did not in time.
    Otherwise(String),
}

/// What an end has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes received, and their hash.
    pub received: u64,
    pub hash: blake3::Hash,
    /// The first byte that is not what was sent.
    pub wrong: Option<u64>,
    pub end: End,
}

impl Outcome {
    fn nothing(why: impl Into<String>) -> Self {
        Self {
            received: 0,
            hash: blake3::hash(&[]),
            wrong: None,
            end: End::Otherwise(why.into()),
        }
    }
}

/// What both ends have to show, client first; and what may differ.
#[derive(Clone, Debug)]
pub struct Played {
    pub outcomes: [Outcome; 2],
    pub took: Duration,
    /// Segments sent again, by both ends.
    pub again: u32,
}

/// What is known of an end's receiving half.
#[derive(Clone, Copy, Default)]
struct Progress {
    received: u64,
    over: bool,
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// What takes too long fails like anything else.
fn late<T>(_: Elapsed) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::TimedOut, "never"))
}

/// Receives until there is nothing more, or as much as the script has.
async fn receive(
    mut stream: ReadHalf<'_>,
    script: &Script,
    role: Role,
    progress: watch::Sender<Progress>,
) -> Outcome {
    let part = script.part(role);
    let stops = script.ending.broken_off().is_some_and(|(by, _)| by == role);
    let pattern = Pattern::new(script.part(role.other()).seed);
    let limit = script.receives(role);
    let (mut received, mut wrong, mut hash) = (0u64, None, blake3::Hasher::new());
    let mut buffer = vec![0; part.largest_read];
    let deadline = Instant::now() + LIMIT;
    let end = loop {
        let mut room = buffer.len();
        if stops {
            if received == limit {
                break End::Own;
            }
            room = room.min((limit - received) as usize);
        }
        let read = stream.read(&mut buffer[..room]);
        match timeout_at(deadline.into(), read).await.unwrap_or_else(late) {
            Ok(0) => break End::Fin,
            Ok(length) => {
                let bytes = &buffer[..length];
                let different = pattern.difference(received, bytes);
                wrong = wrong.or(different.map(|at| received + at as u64));
                hash.update(bytes);
                received += length as u64;
                progress.send_modify(|progress| progress.received = received);
            }
            Err(error) if is_reset(&error) => break End::Rst,
            Err(error) => break End::Otherwise(error.to_string()),
        }
    };
    progress.send_modify(|progress| progress.over = true);
    Outcome {
        received,
        hash: hash.finalize(),
        wrong,
        end,
    }
}

/// Sends what the script has; an error if the other end does not want it.
async fn send(
    mut stream: WriteHalf<'_>,
    script: &Script,
    role: Role,
    mut progress: watch::Receiver<Progress>,
) -> io::Result<()> {
    let part = script.part(role);
    let all = script.receives(role);
    let begun = progress.wait_for(|progress| match part.begins {
        Begins::AtOnce => true,
        Begins::AfterAll => progress.over || progress.received >= all,
        Begins::AfterFin => progress.over,
    });
    begun.await.map_err(io::Error::other)?;
    let (pattern, mut rng) = (Pattern::new(part.seed), Rng::with_seed(part.seed));
    let mut buffer = vec![0; part.largest_write];
    let mut sent = 0;
    while sent < part.bytes {
        let length = rng
            .u64(1..=part.largest_write as u64)
            .min(part.bytes - sent) as usize;
        pattern.fill(sent, &mut buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
        sent += length as u64;
        if part.pauses.is_some_and(|n| rng.u32(0..n) == 0) {
            tokio::time::sleep(Duration::from_micros(rng.u64(0..2000))).await;
        }
    }
    if script.ending == Ending::Orderly {
        stream.shutdown().await?;
    }
    Ok(())
}

/// What the kernel answers to an `ioctl` that asks for a number of bytes.
fn queued(stream: &TcpStream, request: libc::Ioctl) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: these requests write one int.
    match unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until all that was written is acknowledged and, for an end that leaves something unread,
/// until there is something to leave.
async fn settled(stream: &TcpStream, unread: bool) -> io::Result<()> {
    while queued(stream, libc::TIOCOUTQ)? > 0 || unread && queued(stream, libc::FIONREAD)? == 0 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    Ok(())
}

/// Plays one end, not for ever.
async fn play(mut stream: TcpStream, script: &Script, role: Role) -> (Outcome, u32) {
    let (progress, watched) = watch::channel(Progress::default());
    let (reader, writer) = stream.split();
    let (mut outcome, sent) = tokio::join!(
        receive(reader, script, role, progress),
        timeout(LIMIT, send(writer, script, role, watched))
    );
    match sent.unwrap_or_else(late) {
        Ok(()) => {}
        // The kernel tells of a reset once: to whoever asks first.
        Err(error) if is_reset(&error) => outcome.end = End::Rst,
        Err(error) => outcome.end = End::Otherwise(format!("sending: {error}")),
    }
    if outcome.end == End::Own {
        let unread = matches!(script.ending, Ending::Unread { .. });
        let settled = timeout(LIMIT, settled(&stream, unread)).await;
        if let Err(error) = settled.unwrap_or_else(late) {
            outcome.end = End::Otherwise(format!("before the end: {error}"));
        }
    }
    let again = tcp_info(&stream).map_or(0, |info| info.retransmits);
    if outcome.end == End::Own && matches!(script.ending, Ending::Reset { .. }) {
        // Dropped with this, it is reset.
        if let Err(error) = stream.set_zero_linger() {
            outcome.end = End::Otherwise(error.to_string());
        }
    }
    (outcome, again)
}

/// Sets what a part has chosen.
fn prepare(socket: SockRef, part: &Part) -> io::Result<()> {
    if let Some(size) = part.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = part.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    if let Some(clamp) = part.clamp {
        let clamp = clamp as libc::c_int;
        // SAFETY: the option is an int that lives through the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_TCP,
                libc::TCP_WINDOW_CLAMP,
                (&raw const clamp).cast(),
                size_of_val(&clamp) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.set_tcp_nodelay(part.nodelay)
}

/// Who waits for a connection at the server, by the client's address.
type Expected = Arc<Mutex<HashMap<SocketAddr, (Script, oneshot::Sender<(Outcome, u32)>)>>>;

/// A topology with a server that plays along, until it is gone.
pub struct Stage {
    pub topology: Forwarding,
    expected: Expected,
}

impl Stage {
    pub fn new(topology: Forwarding) -> Self {
        let expected = Expected::default();
        let (ready, is_ready) = mpsc::channel();
        let known = expected.clone();
        let serve = move || {
            let runtime = runtime();
            runtime.block_on(async {
                for (port, mss, buffer) in LISTENERS {
                    for address in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
                        let listener = listen(address.parse().unwrap(), mss, buffer).unwrap();
                        tokio::spawn(accept(listener, known.clone()));
                    }
                }
                ready.send(()).unwrap();
                std::future::pending::<anyhow::Result<()>>().await
            })
        };
        topology.server.thread("server", None, serve).unwrap();
        is_ready.recv().unwrap();
        Self { topology, expected }
    }

    /// Packets that its wires have lost so far.
    pub fn lost_packets(&self) -> u64 {
        let Forwarding {
            client,
            edge,
            server,
            ..
        } = &self.topology;
        let lost = [client, edge, server].map(|ns| ns.lost_packets().unwrap());
        lost.iter().sum()
    }

    /// Plays scripts, many at a time; returns what became of each, in their order.
    pub fn play(&self, scripts: &[Script]) -> Vec<Played> {
        let client: &Netns = &self.topology.client;
        client
            .run(|| {
                runtime().block_on(async {
                    let places = Semaphore::new(CONCURRENT);
                    let played = scripts.iter().map(async |script| {
                        let _place = places.acquire().await?;
                        Ok(self.play_one(script).await)
                    });
                    futures_util::future::try_join_all(played).await
                })
            })
            .unwrap()
    }

    async fn play_one(&self, script: &Script) -> Played {
        let sources = self.topology.client_sources(script.v6);
        let count = sources.len() as u64;
        let source = sources[(script.number % count) as usize];
        let port = FIRST_PORT + (script.number / count) as u16;
        let (send, outcome) = oneshot::channel();
        let source = SocketAddr::new(source, port);
        let expected = (script.clone(), send);
        self.expected.lock().unwrap().insert(source, expected);

        let target = self.topology.dial(script.v6, LISTENERS[script.listener].0);
        let begun = Instant::now();
        let client = match timeout(LIMIT, connect(source, target, script)).await {
            Ok(Ok(stream)) => play(stream, script, Role::Client).await,
            Ok(Err(error)) => self.give_up(source, &format!("connecting: {error}")),
            Err(_) => self.give_up(source, "never connected"),
        };
        let server = match timeout(2 * LIMIT, outcome).await {
            Ok(Ok(outcome)) => outcome,
            _ => (Outcome::nothing("never accepted"), 0),
        };
        Played {
            outcomes: [client.0, server.0],
            took: begun.elapsed(),
            again: client.1 + server.1,
        }
    }
}

impl Stage {
    /// Has the server expect a client no longer.
    fn give_up(&self, source: SocketAddr, why: &str) -> (Outcome, u32) {
        self.expected.lock().unwrap().remove(&source);
        (Outcome::nothing(why), 0)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// A socket, non-blocking as tokio wants it.
fn socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen(address: SocketAddr, mss: Option<u32>, buffer: Option<usize>) -> io::Result<TcpListener> {
    let socket = socket(Domain::for_address(address))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(mss) = mss {
        socket.set_tcp_mss(mss)?;
    }
    if let Some(size) = buffer {
        socket.set_recv_buffer_size(size)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, expected: Expected) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        // Who is not expected came to be seen, not to play.
        let Some((script, outcome)) = expected.lock().unwrap().remove(&peer) else {
            continue;
        };
        tokio::spawn(async move {
            let played = match prepare(SockRef::from(&stream), script.part(Role::Server)) {
                Ok(()) => play(stream, &script, Role::Server).await,
                Err(error) => (Outcome::nothing(format!("options: {error}")), 0),
            };
            // Nobody waits for it where the client has given up.
            let _ = outcome.send(played);
        });
    }
}

async fn connect(source: SocketAddr, target: SocketAddr, script: &Script) -> io::Result<TcpStream> {
    let part = script.part(Role::Client);
    let socket = socket(Domain::for_address(target))?;
    if let Some(mss) = part.mss {
        socket.set_tcp_mss(mss)?;
    }
    prepare(SockRef::from(&socket), part)?;
    socket.bind(&source.into())?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // Not by tokio's own connect, which says nothing but "reset" of a connection that was already
    // reset, when there may be something to read. What fails otherwise fails again at the first read.
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    Ok(stream)
}
