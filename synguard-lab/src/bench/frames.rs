//! Rings of frames for the paths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::{
    harness::Harness,
    random::Random,
    scene::{PORT, Scene},
};
use crate::{
    edge::{SERVER_V4, SERVER_V6},
    frame::{Frame, TcpOption, describe, flags},
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
    fn server(self) -> SocketAddr {
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
    let mut random = Random::new(1);
    (0..RING).map(move |_| {
        let (word, isn) = (random.word(), random.word() as u32);
        let address: IpAddr = match kind {
            Kind::V4 => Ipv4Addr::from_bits(0xc612_0000 | (word >> 32) as u32 & 0x0001_ffff).into(),
            Kind::V6 => Ipv6Addr::from_bits(0x2001_0002 << 96 | u128::from(word)).into(),
        };
        Client { address: (address, 1024 | word as u16).into(), isn }
    })
}

/// What a SYN carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// Linux's options.
    Linux,
}

/// SYNs for the service.
pub fn syns(kind: Kind, bare: Bare) -> Ring {
    clients(kind)
        .map(|client| {
            let frame = Frame::tcp(client.address, kind.server()).seq(client.isn);
            match bare {
                Bare::Linux => frame.options(TcpOption::linux_syn(1460, client.isn ^ 0x5555)),
            }
            .build()
        })
        .collect()
}

/// The ACKs that complete handshakes by cookie, in the way of Linux; with the cookie that the
/// program under test has just answered the client's SYN with, or with a wrong bit in its MAC.
pub fn acks(harness: &mut Harness, kind: Kind, valid: bool) -> Result<Ring> {
    harness.set_ring(&syns(kind, Bare::Linux))?;
    clients(kind)
        .map(|client| {
            let answer = describe(&harness.run_once()?)?;
            ensure!(
                answer.has_flags(flags::SYN | flags::ACK) && answer.destination == client.address,
                "a SYN from {} was answered with {answer}",
                client.address
            );
            let cookie = answer.seq ^ if valid { 0 } else { 1 << 8 };
            Ok(Frame::tcp(client.address, kind.server())
                .flags(flags::ACK)
                .seq(client.isn.wrapping_add(1))
                .ack(cookie.wrapping_add(1))
                .options(timestamps(client.isn))
                .build())
        })
        .collect()
}

fn timestamps(value: u32) -> [TcpOption; 3] {
    [TcpOption::Nop, TcpOption::Nop, TcpOption::Timestamps(value, value ^ 0x5555)]
}

/// Segments of the connections that there are.
pub fn established(scene: &Scene, kind: Kind) -> Result<Ring> {
    let connections = scene.connections(kind == Kind::V6)?;
    ensure!(!connections.is_empty(), "the server has no connections");
    let mut random = Random::new(2);
    Ok(connections
        .iter()
        .cycle()
        .take(RING)
        .map(|(client, server)| {
            Frame::tcp(*client, *server)
                .flags(flags::ACK)
                .seq(random.word() as u32)
                .ack(random.word() as u32)
                .options(timestamps(random.word() as u32))
                .build()
        })
        .collect())
}

/// TCP to an address that no service covers.
pub fn unprotected() -> Ring {
    let server = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), PORT));
    clients(Kind::V4)
        .map(|client| {
            Frame::tcp(client.address, server).flags(flags::ACK).options(timestamps(client.isn)).build()
        })
        .collect()
}
