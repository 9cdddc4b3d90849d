//! A small real server: HTTP/1.1 with keep-alive, and beside it a port where the server speaks first
//! and one that echoes. It runs on one thread inside a namespace.
//!
//! - `GET /`: a short text.
//! - `GET /bytes/N`: N bytes that [`payload`] makes, too.
//! - `GET /info`: what the server's kernel knows of this connection ([`TcpInfo`], as JSON).
//! - `POST /sink`: reads all, answers `{"bytes":…,"blake3":"…"}`.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    pin::Pin,
    sync::mpsc,
    task::{Context as TaskContext, Poll},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::LocalSet,
};

use crate::{
    client::{TcpInfo, tcp_info},
    cpu::Task,
    netns::Netns,
};

/// What `GET /` answers.
pub const GREETING: &str = "hello from behind the guard\n";
/// What the server says first on [`ServerOptions::banner_port`].
pub const BANNER: &str = "220 lab ready\r\n";

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Port for HTTP.
    pub port: u16,
    /// Port where the server sends [`BANNER`] as soon as it has accepted, then echoes.
    pub banner_port: Option<u16>,
    /// Port where everything comes back.
    pub echo_port: Option<u16>,
    /// Length of each listener's queue.
    pub backlog: i32,
    /// Listeners per port and family; more than one share the port by `SO_REUSEPORT`.
    pub listeners: usize,
    /// CPU the server is bound to.
    pub cpu: Option<usize>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            port: 80,
            banner_port: None,
            echo_port: None,
            backlog: 4096,
            listeners: 1,
            cpu: None,
        }
    }
}

/// A running server; ends when dropped.
pub struct HttpServer {
    task: Task,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl HttpServer {
    /// Starts a server and returns once it listens, on all addresses of both families.
    pub fn start(ns: &Netns, options: ServerOptions) -> Result<Self> {
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = ns.thread("lab-server", options.cpu, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, serve(options, ready, stopped))
        })?;
        let mut server = Self {
            task: Task::current(),
            stop: Some(stop),
            thread: Some(thread),
        };
        match is_ready.recv() {
            Ok(task) => server.task = task,
            Err(_) => {
                let failure = server.join().err();
                return Err(
                    failure.unwrap_or_else(|| anyhow!("the server ended before it listened"))
                );
            }
        }
        Ok(server)
    }

    /// The thread it runs on, for accounting.
    pub fn task(&self) -> Task {
        self.task
    }

    fn join(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            eprintln!("lab: server: {error:#}");
        }
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http,
    Banner,
    Echo,
}

async fn serve(
    options: ServerOptions,
    ready: mpsc::Sender<Task>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let ports = [
        (Some(options.port), Protocol::Http),
        (options.banner_port, Protocol::Banner),
        (options.echo_port, Protocol::Echo),
    ];
    for (port, protocol) in ports {
        let Some(port) = port else { continue };
        for _ in 0..options.listeners.max(1) {
            for address in [
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ] {
                let listener = listen(address, &options)
                    .with_context(|| format!("cannot listen on {address}"))?;
                tokio::task::spawn_local(accept(listener, protocol));
            }
        }
    }
    if ready.send(Task::current()).is_ok() {
        // An error means that the handle is gone, which is the signal.
        let _ = stopped.await;
    }
    Ok(())
}

fn listen(address: SocketAddr, options: &ServerOptions) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if options.listeners > 1 {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn accept(listener: TcpListener, protocol: Protocol) {
    loop {
        // An error here concerns one connection, or file descriptors that will be free again soon.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        // What fails on a connection is for its client to notice.
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            match protocol {
                Protocol::Http => {
                    let socket = stream.as_raw_fd();
                    let service = service_fn(move |request| answer(request, socket));
                    let mut server = http1::Builder::new();
                    let _ = server
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }
                Protocol::Banner => {
                    let _ = echo(stream, BANNER.as_bytes()).await;
                }
                Protocol::Echo => {
                    let _ = echo(stream, b"").await;
                }
            }
        });
    }
}

async fn echo(mut stream: TcpStream, first: &[u8]) -> std::io::Result<()> {
    stream.write_all(first).await?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

type Answer = Response<Either<Full<Bytes>, Payload>>;

/// Answers a request that came by `socket`, which the caller keeps open meanwhile.
async fn answer(request: Request<Incoming>, socket: RawFd) -> Result<Answer, Infallible> {
    let text = |status, text: String| {
        let mut response = Response::new(Either::Left(Full::new(Bytes::from(text))));
        *response.status_mut() = status;
        response
    };
    let path = request.uri().path();
    Ok(
        match (
            request.method(),
            path.strip_prefix("/bytes/").map(str::parse),
        ) {
            (&Method::GET, Some(Ok(length))) => Response::new(Either::Right(Payload::new(length))),
            (&Method::GET, None) if path == "/" => text(StatusCode::OK, GREETING.to_owned()),
            (&Method::GET, None) if path == "/info" => match info(socket) {
                Ok(info) => text(StatusCode::OK, info),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
            },
            (&Method::POST, None) if path == "/sink" => match drain(request.into_body()).await {
                Ok((length, hash)) => text(
                    StatusCode::OK,
                    format!("{{\"bytes\":{length},\"blake3\":\"{hash}\"}}"),
                ),
                Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /, /bytes/N, /info and POST /sink\n".to_owned(),
            ),
        },
    )
}

fn info(socket: RawFd) -> Result<String> {
    // SAFETY: hyper serves requests out of the future that owns the stream.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let info: TcpInfo = tcp_info(&socket)?;
    Ok(serde_json::to_string(&info)?)
}

async fn drain(mut body: Incoming) -> hyper::Result<(u64, blake3::Hash)> {
    let (mut length, mut hasher) = (0, blake3::Hasher::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len() as u64;
            hasher.update(&data);
        }
    }
    Ok((length, hasher.finalize()))
}

/// The body of `/bytes/N`: the first N bytes of a fixed pseudo-random sequence.
#[derive(Debug)]
pub struct Payload {
    left: u64,
    reader: blake3::OutputReader,
}

impl Payload {
    fn new(length: u64) -> Self {
        Self {
            left: length,
            reader: blake3::Hasher::new_derive_key("synguard lab payload").finalize_xof(),
        }
    }

    fn chunk(&mut self) -> Option<Bytes> {
        let length = self.left.min(64 * 1024);
        if length == 0 {
            return None;
        }
        let mut chunk = vec![0; length as usize];
        self.reader.fill(&mut chunk);
        self.left -= length;
        Some(chunk.into())
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.chunk().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// What `/bytes/N` answers, in pieces.
pub fn payload(length: u64) -> impl Iterator<Item = Bytes> {
    let mut payload = Payload::new(length);
    std::iter::from_fn(move || payload.chunk())
}

/// Hash of what `/bytes/N` answers.
pub fn payload_hash(length: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    payload(length).for_each(|chunk| {
        hasher.update(&chunk);
    });
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_prefixes_of_one_sequence() {
        let long: Vec<u8> = payload(200_000).flatten().collect();
        let short: Vec<u8> = payload(70_001).flatten().collect();
        assert_eq!((long.len(), short.len()), (200_000, 70_001));
        assert_eq!(short, long[..70_001]);
        assert_ne!(long[..1000], long[1000..2000]);
    }
}
