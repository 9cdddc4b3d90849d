//! Real sockets in the server's namespace, in whatever state a fixture asks for.

use std::{
    io::Read as _,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Socket, Type};
use synguard_lab::{
    client::{self, ConnectOptions},
    edge::Edge,
    fixtures::{Present, PresentKind},
    frame::TcpOption,
    wire::Wire,
};

/// Makes sockets; what it made is closed by [`Sockets::close`] or when dropped.
pub struct Sockets {
    listeners: Vec<TcpListener>,
    streams: Vec<TcpStream>,
    opening: Vec<Socket>,
}

/// States as `/proc/net/tcp` numbers them.
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const TIME_WAIT: u8 = 6;

impl Sockets {
    /// Listens; the calling thread is in the server's namespace.
    pub fn listen(addresses: &[SocketAddr]) -> Result<Self> {
        let listen = |address| {
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
        };
        Ok(Self {
            listeners: addresses.iter().map(listen).collect::<Result<_>>()?,
            streams: Vec::new(),
            opening: Vec::new(),
        })
    }

    /// Makes one socket; the calling thread is in the server's namespace.
    pub fn open(&mut self, edge: &Edge, wire: &Wire, present: Present) -> Result<()> {
        let Present {
            kind,
            client,
            server,
        } = present;
        match kind {
            PresentKind::Connection => {
                let pair = self.connect(edge, client, server)?;
                self.streams.extend(pair);
            }
            PresentKind::TimeWait => {
                let [mut ours, theirs] = self.connect(edge, client, server)?;
                theirs.shutdown(Shutdown::Write)?;
                ours.read_exact(&mut [0]).err().context("data came")?;
                drop(ours);
                wait_for(client, server, TIME_WAIT)?;
            }
            PresentKind::Request => {
                let syn = edge.frame(client, server).options([TcpOption::Mss(1400)]);
                wire.send(&syn.build())?;
                wait_for(client, server, SYN_RECV)?;
            }
            PresentKind::Opening => {
                let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
                socket.bind(&server.into())?;
                socket.set_nonblocking(true)?;
                // In progress, for ever.
                let _ = socket.connect(&client.into());
                self.opening.push(socket);
                wait_for(client, server, SYN_SENT)?;
            }
        }
        Ok(())
    }

    /// Both ends of a connection, the client's first.
    fn connect(&self, edge: &Edge, from: SocketAddr, to: SocketAddr) -> Result<[TcpStream; 2]> {
        let listener = self
            .listeners
            .iter()
            .find(|listener| listener.local_addr().is_ok_and(|address| address == to))
            .with_context(|| format!("nothing listens on {to}"))?;
        let options = ConnectOptions {
            source: Some(from),
            ..ConnectOptions::default()
        };
        let ours = client::connect(&edge.client, to, &options)?;
        let (theirs, peer) = listener.accept()?;
        if peer != from {
            bail!("accepted {peer} instead of {from}");
        }
        Ok([ours, theirs])
    }

    /// Closes what was opened; listeners stay.
    pub fn close(&mut self) {
        self.streams.clear();
        self.opening.clear();
    }
}

/// Waits until the server's kernel has a socket of this tuple in this state.
fn wait_for(client: SocketAddr, server: SocketAddr, state: u8) -> Result<()> {
    let path = match server {
        SocketAddr::V4(_) => "/proc/thread-self/net/tcp",
        SocketAddr::V6(_) => "/proc/thread-self/net/tcp6",
    };
    let end = Instant::now() + Duration::from_secs(5);
    // Ports name the tuple well enough: every fixture has its own.
    let (local, remote) = (
        format!(":{:04X}", server.port()),
        format!(":{:04X}", client.port()),
    );
    let state = format!("{state:02X}");
    while Instant::now() < end {
        let table = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let found = table.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            matches!(fields[..], [_, l, r, s, ..]
                if l.ends_with(&local) && r.ends_with(&remote) && s == state)
        });
        if found {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("no socket {client} > {server} in state {state} after 5 s")
}
