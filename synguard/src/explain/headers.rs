//! What a packet's headers say, for people: addresses, ports and flags. The verdict does not come
//! from here.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};

/// Where a packet comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port, of protocols that have ports.
    pub port: Option<u16>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// The headers of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Source and destination, of IP packets.
    pub ends: Option<(Endpoint, Endpoint)>,
    /// `tcp`, `udp`, …; a number where there is no name for it here.
    pub protocol: String,
    /// Flags of TCP, as tcpdump writes them: `S` for SYN, `.` for ACK, …
    pub flags: Option<String>,
}

impl Headers {
    /// Of an Ethernet frame, which may be cut short.
    pub fn read(frame: &[u8]) -> Self {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
            return Self {
                protocol: "?".to_owned(),
                ..Self::default()
            };
        };
        let (source, destination, number): (IpAddr, IpAddr, _) = match &packet.net {
            Some(LaxNetSlice::Ipv4(v4)) => (
                v4.header().source_addr().into(),
                v4.header().destination_addr().into(),
                v4.payload_ip_number(),
            ),
            Some(LaxNetSlice::Ipv6(v6)) => (
                v6.header().source_addr().into(),
                v6.header().destination_addr().into(),
                v6.payload().ip_number,
            ),
            other => {
                let protocol = match other {
                    Some(LaxNetSlice::Arp(_)) => "arp".to_owned(),
                    _ => ethertype(frame),
                };
                return Self {
                    protocol,
                    ..Self::default()
                };
            }
        };
        let (mut ports, mut flags) = (None, None);
        match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                ports = Some((tcp.source_port(), tcp.destination_port()));
                flags = Some(flags_of(tcp));
            }
            Some(TransportSlice::Udp(udp)) => {
                ports = Some((udp.source_port(), udp.destination_port()));
            }
            _ => {}
        }
        let source = Endpoint {
            address: source,
            port: ports.map(|(port, _)| port),
        };
        let destination = Endpoint {
            address: destination,
            port: ports.map(|(_, port)| port),
        };
        Self {
            ends: Some((source, destination)),
            protocol: match number {
                IpNumber::TCP => "tcp".to_owned(),
                IpNumber::UDP => "udp".to_owned(),
                IpNumber::ICMP => "icmp".to_owned(),
                IpNumber::IPV6_ICMP => "icmp6".to_owned(),
                IpNumber(other) => format!("ip {other}"),
            },
            flags,
        }
    }
}

fn ethertype(frame: &[u8]) -> String {
    match frame.get(12..14) {
        Some([high, low]) => format!("{high:02x}{low:02x}"),
        _ => "?".to_owned(),
    }
}

/// In tcpdump's order.
fn flags_of(tcp: &TcpSlice<'_>) -> String {
    let letters: String = [
        (tcp.fin(), 'F'),
        (tcp.syn(), 'S'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), '.'),
        (tcp.urg(), 'U'),
        (tcp.ece(), 'E'),
        (tcp.cwr(), 'W'),
    ]
    .into_iter()
    .filter_map(|(set, letter)| set.then_some(letter))
    .collect();
    if letters.is_empty() {
        "none".to_owned()
    } else {
        letters
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn ends_and_flags_as_tcpdump_writes_them() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .single_vlan(7u16.try_into().unwrap())
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .tcp(1234, 80, 1, 1000)
            .syn()
            .ece()
            .cwr()
            .write(&mut frame, &[])
            .unwrap();
        let headers = Headers::read(&frame);
        let (source, destination) = headers.ends.unwrap();
        assert_eq!(source.to_string(), "192.0.2.1:1234");
        assert_eq!(destination.to_string(), "192.0.2.2:80");
        assert_eq!(headers.flags.as_deref(), Some("SEW"));
        assert_eq!(headers.protocol, "tcp");

        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([0xfd; 16], [0xfe; 16], 64)
            .udp(53, 99)
            .write(&mut frame, b"payload")
            .unwrap();
        // The ends are there though the rest is not.
        for length in [frame.len(), frame.len() - 5] {
            let headers = Headers::read(&frame[..length]);
            assert_eq!((&*headers.protocol, &headers.flags), ("udp", &None));
            let (source, _) = headers.ends.unwrap();
            assert!(source.to_string().ends_with("fdfd]:53"), "{source}");
        }
        let headers = Headers::read(&frame[..14 + 40]);
        assert_eq!(headers.ends.unwrap().0.port, None);
    }

    #[test]
    fn what_is_no_ip_has_no_ends() {
        let frame = [&[2; 12][..], &[0x88, 0xcc], &[0; 46]].concat();
        let headers = Headers::read(&frame);
        assert_eq!((headers.ends, &*headers.protocol), (None, "88cc"));
        assert_eq!(Headers::read(&[1; 5]).protocol, "?");
    }
}
