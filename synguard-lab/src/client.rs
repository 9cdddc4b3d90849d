//! Single connections, for tests: made inside a namespace with chosen options, used from anywhere,
//! and asked about by `TCP_INFO`.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Address, and port unless 0, it comes from; none for the kernel's choice.
    pub source: Option<SocketAddr>,
    /// How long it may take, and how long a read or write may take later.
    pub timeout: Duration,
    /// Largest segment it asks for.
    pub mss: Option<u32>,
    /// Size of its receive buffer, from which the kernel chooses the window scale.
    pub receive_buffer: Option<usize>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            source: None,
            timeout: Duration::from_secs(5),
            mss: None,
            receive_buffer: None,
        }
    }
}

/// Connects from a namespace. Scaling, SACK, timestamps and ECN are sysctls of the namespace.
pub fn connect(ns: &Netns, target: SocketAddr, options: &ConnectOptions) -> Result<TcpStream> {
    ns.run(|| {
        let socket = socket(options.source, target).context("cannot make a socket")?;
        if let Some(mss) = options.mss {
            socket
                .set_tcp_mss(mss)
                .with_context(|| format!("cannot set MSS {mss}"))?;
        }
        if let Some(size) = options.receive_buffer {
            socket
                .set_recv_buffer_size(size)
                .with_context(|| format!("cannot set a buffer of {size} bytes"))?;
        }
        socket
            .connect_timeout(&target.into(), options.timeout)
            .with_context(|| format!("cannot connect to {target} from namespace {}", ns.name()))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(options.timeout))?;
        stream.set_write_timeout(Some(options.timeout))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// A socket for a connection from `source`; port 0 leaves the choice to `connect`, which knows
/// which ports are free for this target.
pub(crate) fn socket(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        if source.port() == 0 {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        }
        socket.bind(&source.into())?;
    }
    Ok(socket)
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Asks for a path; the connection can be used again afterwards.
pub fn get(stream: &TcpStream, path: &str) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
    exchange(stream, &request, &[]).with_context(|| format!("GET {path}"))
}

/// Sends a body to a path; the connection can be used again afterwards.
pub fn post(stream: &TcpStream, path: &str, body: &[u8]) -> Result<Answer> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(stream, &request, body).with_context(|| format!("POST {path}"))
}

fn exchange(mut stream: &TcpStream, head: &str, body: &[u8]) -> Result<Answer> {
    // One write, as a real client does: a small body shares the segment.
    stream
        .write_all(&[head.as_bytes(), body].concat())
        .context("cannot send the request")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).context("no answer")?;
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.with_context(|| format!("the answer begins with {line:?}"))?;
    let mut length = None;
    loop {
        line.clear();
        reader
            .read_line(&mut line)
            .context("the answer's head ends early")?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let Some(length) = length else {
        bail!("the answer does not say how long it is")
    };
    let mut body = vec![0; length];
    reader
        .read_exact(&mut body)
        .context("the answer ends early")?;
    Ok(Answer { status, body })
}

/// What the kernel knows of a connection (`TCP_INFO`), as far as tests ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpInfo {
    /// State; 1 is established.
    pub state: u8,
    /// Both sides use timestamps.
    pub timestamps: bool,
    /// Both sides use SACK.
    pub sack: bool,
    /// Both sides scale windows.
    pub window_scaling: bool,
    /// Both sides use ECN.
    pub ecn: bool,
    /// Scale of the windows the peer announces.
    pub send_scale: u8,
    /// Scale of the windows we announce.
    pub receive_scale: u8,
    /// Largest segment we send.
    pub send_mss: u32,
    /// Largest segment we have asked for.
    pub advertised_mss: u32,
    /// Segments sent again, over the connection's life.
    pub retransmits: u32,
    /// Smoothed round trip time.
    pub rtt: Duration,
}

/// Asks the server's kernel about a connection to [`http::HttpServer`](crate::http::HttpServer).
pub fn server_info(stream: &TcpStream) -> Result<TcpInfo> {
    let answer = get(stream, "/info")?;
    serde_json::from_slice(&answer.body)
        .with_context(|| format!("/info answers {:?}", String::from_utf8_lossy(&answer.body)))
}

/// Asks the kernel about a connection.
pub fn tcp_info(stream: &impl AsFd) -> Result<TcpInfo> {
    // SAFETY: all zeroes is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a structure of that size.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("TCP_INFO");
    }
    let has = |option: u8| info.tcpi_options & option != 0;
    // Two bit fields of four bits each: the first one is the low half on little-endian machines.
    let scales = info.tcpi_snd_rcv_wscale;
    let (send_scale, receive_scale) = if cfg!(target_endian = "little") {
        (scales & 0x0f, scales >> 4)
    } else {
        (scales >> 4, scales & 0x0f)
    };
    Ok(TcpInfo {
        state: info.tcpi_state,
        timestamps: has(1),
        sack: has(2),
        window_scaling: has(4),
        ecn: has(8),
        send_scale,
        receive_scale,
        send_mss: info.tcpi_snd_mss,
        advertised_mss: info.tcpi_advmss,
        retransmits: info.tcpi_total_retrans,
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
    })
}
