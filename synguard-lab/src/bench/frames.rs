//! Rings of frames for the paths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::{
    harness::{Harness, Target},
    random::Random,
    scene::{PORT, Scene},
};
use crate::{
    edge::{SERVER_V4, SERVER_V6},
    frame::{Answer, Frame, TcpOption, describe, flags},
};

/// Frames of a ring: enough that no branch predictor knows them by heart, few enough for the cache.
pub const RING: usize = 256;

/// Frames of equal length.
pub type Ring = Vec<Vec<u8>>;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Kind {
    /// Where the service listens.
    pub fn server(self) -> SocketAddr {
        let address: IpAddr = match self {
            Self::V4 => SERVER_V4.into(),
            Self::V6 => SERVER_V6.into(),
        };
        (address, PORT).into()
    }
}

/// One end of a connection that is made up, and its initial sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Address and port.
    pub address: SocketAddr,
    /// Initial sequence number.
    pub isn: u32,
}

/// Clients in the networks for benchmarks (RFC 2544, RFC 5180).
pub fn clients(kind: Kind) -> impl Iterator<Item = Client> {
    made_up(kind, 1)
}

fn made_up(kind: Kind, seed: u64) -> impl Iterator<Item = Client> {
    let mut random = Random::new(seed);
    (0..RING).map(move |_| {
        let (word, isn) = (random.word(), random.word() as u32);
        let address: IpAddr = match kind {
            Kind::V4 => Ipv4Addr::from_bits(0xc612_0000 | (word >> 32) as u32 & 0x0001_ffff).into(),
            Kind::V6 => Ipv6Addr::from_bits(0x2001_0002 << 96 | u128::from(word)).into(),
        };
        Client {
            address: (address, 1024 | word as u16).into(),
            isn,
        }
    })
}

/// What a SYN looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syn {
    /// As Linux sends it: 20 bytes of options.
    Linux,
    /// As Windows sends it: no timestamps.
    Windows,
    /// No options at all: 54 bytes, which Ethernet pads to 60.
    Bare,
    /// Linux's options in an order that no stack uses.
    Odd,
    /// Linux's, behind this many VLAN tags.
    Tagged(usize),
}

impl Syn {
    fn shape(self, frame: Frame, timestamp: u32) -> Frame {
        match self {
            Self::Linux => frame.options(TcpOption::linux_syn(1460, timestamp)),
            Self::Windows => frame.options(TcpOption::windows_syn(1460)),
            Self::Bare => frame.pad_to(60),
            Self::Odd => frame.options([
                TcpOption::Nop,
                TcpOption::WindowScale(7),
                TcpOption::Timestamps(timestamp, 0),
                TcpOption::SackPermitted,
                TcpOption::Mss(1460),
            ]),
            Self::Tagged(tags) => {
                // The outer of two is a service tag (802.1ad), the inner one is 802.1Q.
                let tags = &[(0x88a8, 200), (0x8100, 100)][2 - tags..];
                let tagged = tags
                    .iter()
                    .fold(frame, |frame, (tpid, tci)| frame.vlan(*tpid, *tci));
                Self::Linux.shape(tagged, timestamp)
            }
        }
    }
}

/// SYNs for the service.
pub fn syns(kind: Kind, syn: Syn) -> Ring {
    syns_to(kind.server(), kind, syn)
}

/// SYNs to a port of the service that nobody listens at.
pub fn syns_to_nobody() -> Ring {
    syns_to((SERVER_V4, PORT + 1).into(), Kind::V4, Syn::Linux)
}

fn syns_to(server: SocketAddr, kind: Kind, syn: Syn) -> Ring {
    clients(kind)
        .map(|client| syn_of(client, server, syn))
        .collect()
}

fn syn_of(client: Client, server: SocketAddr, syn: Syn) -> Vec<u8> {
    let frame = Frame::tcp(client.address, server).seq(client.isn);
    syn.shape(frame, client.isn ^ 0x5555).build()
}

/// SYNs, each followed by the RST with which its client gives up.
pub fn syns_given_up() -> Ring {
    let syns = syns(Kind::V4, Syn::Linux);
    let pairs = syns.into_iter().zip(rsts()).take(RING / 2);
    pairs
        .flat_map(|(syn, mut rst)| {
            // The harness wants frames of one length; this is Ethernet's padding.
            rst.resize(syn.len(), 0);
            [syn, rst]
        })
        .collect()
}

/// RSTs that fit the clients' SYNs.
pub fn rsts() -> Ring {
    clients(Kind::V4)
        .map(|client| {
            let rst = Frame::tcp(client.address, Kind::V4.server()).flags(flags::RST);
            rst.seq(client.isn.wrapping_add(1)).pad_to(60).build()
        })
        .collect()
}

/// The ACKs that complete handshakes by cookie, in the way of Linux; with the cookie that the
/// program under test has just answered the client's SYN with, or with a wrong bit in its MAC.
pub fn acks(harness: &mut Harness, kind: Kind, valid: bool) -> Result<Ring> {
    // Two sets of clients: for a moment, whatever follows a valid ACK passes as part of its
    // connection.
    let clients: Vec<_> = made_up(kind, if valid { 3 } else { 4 }).collect();
    let syns: Ring = clients
        .iter()
        .map(|client| syn_of(*client, kind.server(), Syn::Linux))
        .collect();
    harness.set_ring(&syns)?;
    clients
        .into_iter()
        .map(|client| {
            let answer = answer(harness, client)?;
            let cookie = answer.seq ^ if valid { 0 } else { WRONG_MAC };
            Ok(Frame::tcp(client.address, kind.server())
                .flags(flags::ACK)
                .seq(client.isn.wrapping_add(1))
                .ack(cookie.wrapping_add(1))
                .options(timestamps(client.isn))
                .build())
        })
        .collect()
}

/// A bit of a cookie that belongs to its MAC.
const WRONG_MAC: u32 = 1 << 8;

/// RSTs to the questions of `reset` admission that the program under test has just answered their
/// clients' SYNs with, with a wrong bit in the MAC.
pub fn forged_rsts(harness: &mut Harness, kind: Kind) -> Result<Ring> {
    harness.set_ring(&syns(kind, Syn::Linux))?;
    clients(kind)
        .map(|client| {
            let cookie = answer(harness, client)?.ack ^ WRONG_MAC;
            let rst = Frame::tcp(client.address, kind.server()).flags(flags::RST);
            Ok(rst.seq(cookie).pad_to(60).build())
        })
        .collect()
}

/// The SYN-ACK of the program under test to the next SYN of the ring, which is this client's.
fn answer(harness: &Harness, client: Client) -> Result<Answer> {
    let answer = describe(&harness.run_once(Target::Subject)?)?;
    ensure!(
        answer.has_flags(flags::SYN | flags::ACK) && answer.destination == client.address,
        "a SYN from {} was answered with {answer}",
        client.address
    );
    Ok(answer)
}

/// The same frames behind an 802.1Q tag.
pub fn tagged(ring: Ring) -> Ring {
    const ADDRESSES: usize = 12;
    ring.into_iter()
        .map(|mut frame| {
            frame.splice(ADDRESSES..ADDRESSES, [0x81, 0x00, 0x00, 0x64]);
            frame
        })
        .collect()
}

/// The timestamps of a segment, as Linux sends them.
pub fn timestamps(value: u32) -> [TcpOption; 3] {
    [
        TcpOption::Nop,
        TcpOption::Nop,
        TcpOption::Timestamps(value, value ^ 0x5555),
    ]
}

/// Segments of the connections that there are, from their clients.
pub fn established(scene: &Scene, kind: Kind) -> Result<Ring> {
    segments(scene, kind, |client, server| (client, server))
}

/// Segments of the same connections from the server.
pub fn from_server(scene: &Scene) -> Result<Ring> {
    segments(scene, Kind::V4, |client, server| (server, client))
}

fn segments(
    scene: &Scene,
    kind: Kind,
    ends: fn(SocketAddr, SocketAddr) -> (SocketAddr, SocketAddr),
) -> Result<Ring> {
    let connections = scene.connections(kind == Kind::V6)?;
    ensure!(!connections.is_empty(), "the server has no connections");
    let mut random = Random::new(2);
    let frames = connections
        .iter()
        .cycle()
        .take(RING)
        .map(|(client, server)| {
            let (from, to) = ends(*client, *server);
            Frame::tcp(from, to)
                .flags(flags::ACK | flags::PSH)
                .seq(random.word() as u32)
                .ack(random.word() as u32)
                .options(timestamps(random.word() as u32))
                .payload(b"sixteen bytes...")
                .build()
        });
    Ok(frames.collect())
}

/// The server's SYN-ACKs to the clients.
pub fn syn_acks() -> Ring {
    clients(Kind::V4)
        .map(|client| {
            Frame::tcp(Kind::V4.server(), client.address)
                .flags(flags::SYN | flags::ACK)
                .seq(!client.isn)
                .ack(client.isn.wrapping_add(1))
                .options(TcpOption::linux_syn(1460, client.isn))
                .build()
        })
        .collect()
}

/// TCP to an address that no service covers.
pub fn unprotected() -> Ring {
    let server = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), PORT));
    to_others(|client| {
        Frame::tcp(client.address, server)
            .flags(flags::ACK)
            .options(timestamps(client.isn))
    })
}

/// TCP from an address that no service covers.
pub fn unprotected_out() -> Ring {
    let server = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), PORT));
    to_others(|client| {
        Frame::tcp(server, client.address)
            .flags(flags::ACK)
            .options(timestamps(client.isn))
    })
}

/// UDP to the protected address.
pub fn udp() -> Ring {
    const UDP: u8 = 17;
    to_others(|client| Frame::tcp(client.address, Kind::V4.server()).protocol(UDP))
}

fn to_others(frame: impl Fn(Client) -> Frame) -> Ring {
    clients(Kind::V4)
        .map(|client| frame(client).build())
        .collect()
}
