//! ICMP errors, built with the packet that they are about, and checked.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{Frame, sum};

/// An ICMP or ICMPv6 error to be built.
#[derive(Clone, Debug)]
pub struct IcmpError {
    envelope: Frame,
    kind: u8,
    code: u8,
    rest: u32,
    quoted: Vec<u8>,
    break_checksum: bool,
}

impl IcmpError {
    /// An error about `packet`, which it quotes whole. `envelope` says how it travels: addresses (of
    /// one family), tags and all that is not TCP's.
    pub fn about(packet: &Frame, envelope: Frame, kind: u8, code: u8) -> Self {
        Self {
            envelope,
            kind,
            code,
            rest: 0,
            quoted: packet.packet(),
            break_checksum: false,
        }
    }

    /// Need to fragment, or packet too big: the path takes no more than `mtu` bytes.
    pub fn too_big(packet: &Frame, envelope: Frame, mtu: u16) -> Self {
        let (kind, code) = if envelope.source.is_ipv6() {
            (2, 0)
        } else {
            (3, 4)
        };
        Self {
            rest: u32::from(mtu),
            ..Self::about(packet, envelope, kind, code)
        }
    }

    /// Quotes no more than so many bytes of the packet.
    pub fn quotes(mut self, bytes: usize) -> Self {
        self.quoted.truncate(bytes);
        self
    }

    /// Makes the checksum wrong.
    pub fn bad_checksum(self) -> Self {
        Self {
            break_checksum: true,
            ..self
        }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.rest.to_be_bytes());
        message.extend(&self.quoted);
        let v6 = self.envelope.source.is_ipv6();
        let start = if v6 {
            let (from, to) = (self.envelope.source.ip(), self.envelope.destination.ip());
            sum::pseudo_header(from, to, V6, message.len())
        } else {
            0
        };
        let mut checksum = !sum::fold(sum::add(start, &message));
        if self.break_checksum {
            checksum ^= 0x0100;
        }
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let envelope = self.envelope.clone().protocol(if v6 { V6 } else { V4 });
        envelope.wrap(&message, &envelope.extensions, envelope.fragment)
    }
}

const V4: u8 = 1;
const V6: u8 = 58;

impl From<Frame> for Vec<u8> {
    fn from(frame: Frame) -> Self {
        frame.build()
    }
}

impl From<IcmpError> for Vec<u8> {
    fn from(error: IcmpError) -> Self {
        error.build()
    }
}

/// Makes sure that a frame with an ICMP message has the checksums it should have, as etherparse
/// counts them.
pub fn check_icmp(frame: &[u8]) -> Result<()> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| anyhow::anyhow!("{error}"))?;
    let net = packet.net.as_ref().context("no IP packet")?;
    match (net, &packet.transport) {
        (NetSlice::Ipv4(ip), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            ensure!(
                header.calc_header_checksum() == header.header_checksum,
                "wrong IP checksum"
            );
            let expected = icmp.icmp_type().calc_checksum(icmp.payload());
            ensure!(icmp.checksum() == expected, "wrong ICMP checksum");
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header().to_header();
            let expected = icmp
                .icmp_type()
                .calc_checksum(header.source, header.destination, icmp.payload())
                .context("too long a message")?;
            ensure!(icmp.checksum() == expected, "wrong ICMPv6 checksum");
        }
        (_, other) => bail!("no ICMP message but {other:?}"),
    }
    Ok(())
}

/// The ends of what carries an error: a router has no port.
pub fn envelope(from: IpAddr, to: IpAddr) -> Frame {
    Frame::tcp(SocketAddr::new(from, 0), SocketAddr::new(to, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_agree_with_etherparse() {
        for (client, server, router) in [
            ("192.0.2.1:4000", "198.51.100.2:443", "203.0.113.9"),
            ("[2001:db8::1]:4000", "[2001:db8::2]:443", "2001:db8::9"),
        ] {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            let packet = Frame::tcp(server, client).payload(&[7; 33]);
            let envelope = envelope(router.parse().unwrap(), server.ip()).vlan(0x8100, 3);
            for error in [
                IcmpError::too_big(&packet, envelope.clone(), 1280),
                IcmpError::about(&packet, envelope.clone(), 3, 1),
                IcmpError::about(&packet, envelope.clone(), 3, 1).quotes(28),
            ] {
                check_icmp(&error.build()).unwrap();
                assert!(check_icmp(&error.bad_checksum().build()).is_err());
            }
        }
    }
}
