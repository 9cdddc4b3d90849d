//! Reads a frame back, strictly, so that a test can assert on every field of an answer.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{TcpOption, flags, sum};

/// A TCP packet as it lies on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Sender's MAC address.
    pub source_mac: [u8; 6],
    /// Receiver's MAC address.
    pub destination_mac: [u8; 6],
    /// VLAN tags, outermost first: EtherType and tag control information.
    pub tags: Vec<(u16, u16)>,
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// IPv4 identification; 0 for IPv6.
    pub ip_id: u16,
    /// The bit Don't Fragment; set for IPv6.
    pub dont_fragment: bool,
    /// IPv4 options.
    pub ip_options: Vec<u8>,
    /// Length of the IP packet.
    pub ip_length: usize,
    /// Bytes of the frame behind the IP packet.
    pub padding: usize,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags; see [`flags`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options.
    pub options: Vec<TcpOption>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Whether the IPv4 header's checksum is right; true for IPv6.
    pub ip_checksum_ok: bool,
    /// Whether the TCP checksum is right.
    pub tcp_checksum_ok: bool,
}

/// Reads a frame that holds a whole TCP packet; anything else is an error that says what it is.
pub fn describe(frame: &[u8]) -> Result<Answer> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mac = |at: usize| -> [u8; 6] { std::array::from_fn(|i| frame[at + i]) };
    let (tags, l3) = tags(frame)?;

    let (
        source_ip,
        destination_ip,
        ttl,
        tos,
        ip_id,
        dont_fragment,
        ip_options,
        ip_length,
        segment,
        ip_checksum_ok,
    );
    match packet
        .net
        .as_ref()
        .context("the frame holds no IP packet")?
    {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            source_ip = IpAddr::V4(header.source_addr());
            destination_ip = IpAddr::V4(header.destination_addr());
            ttl = header.ttl();
            tos = header.slice()[1];
            ip_id = header.identification();
            dont_fragment = header.dont_fragment();
            ip_options = header.options().to_vec();
            ip_length = usize::from(header.total_len());
            ip_checksum_ok = sum::fold(sum::add(0, header.slice())) == 0xffff;
            segment = ip.payload();
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            source_ip = IpAddr::V6(header.source_addr());
            destination_ip = IpAddr::V6(header.destination_addr());
            ttl = header.hop_limit();
            tos = header.traffic_class();
            (ip_id, dont_fragment, ip_options) = (0, true, Vec::new());
            ip_length = 40 + usize::from(header.payload_length());
            ip_checksum_ok = true;
            segment = ip.payload();
        }
        other => bail!("the frame holds no IP packet but {other:?}"),
    }
    if segment.fragmented {
        bail!("the frame holds a fragment");
    }
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        bail!(
            "the frame holds no TCP segment but IP protocol {}",
            segment.ip_number.0
        );
    };
    Ok(Answer {
        source_mac: mac(6),
        destination_mac: mac(0),
        tags,
        source: SocketAddr::new(source_ip, tcp.source_port()),
        destination: SocketAddr::new(destination_ip, tcp.destination_port()),
        ttl,
        tos,
        ip_id,
        dont_fragment,
        ip_options,
        ip_length,
        padding: frame.len().saturating_sub(l3 + ip_length),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: tcp.header_slice()[13],
        window: tcp.window_size(),
        urgent: tcp.urgent_pointer(),
        options: TcpOption::parse_all(tcp.options())?,
        payload: tcp.payload().to_vec(),
        ip_checksum_ok,
        tcp_checksum_ok: sum::fold(sum::segment(source_ip, destination_ip, segment.payload))
            == 0xffff,
    })
}

/// The VLAN tags of a frame and the offset of what they wrap.
fn tags(frame: &[u8]) -> Result<(Vec<(u16, u16)>, usize)> {
    let word = |at: usize| -> Result<u16> {
        let bytes = frame
            .get(at..at + 2)
            .context("the frame ends within its tags")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (mut tags, mut at) = (Vec::new(), 12);
    while matches!(word(at)?, 0x8100 | 0x88a8) {
        tags.push((word(at)?, word(at + 2)?));
        at += 4;
    }
    Ok((tags, at + 2))
}

impl Answer {
    /// Whether exactly these flags are set.
    pub fn has_flags(&self, flags: u8) -> bool {
        self.flags == flags
    }

    /// The MSS option, if there is one.
    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|option| match option {
            TcpOption::Mss(size) => Some(*size),
            _ => None,
        })
    }

    /// The window scale option, if there is one.
    pub fn window_scale(&self) -> Option<u8> {
        self.options.iter().find_map(|option| match option {
            TcpOption::WindowScale(shift) => Some(*shift),
            _ => None,
        })
    }

    /// Whether selective acknowledgements are permitted.
    pub fn sack_permitted(&self) -> bool {
        self.options.contains(&TcpOption::SackPermitted)
    }

    /// The timestamps, value and echo, if there are any.
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        self.options.iter().find_map(|option| match option {
            TcpOption::Timestamps(value, echo) => Some((*value, *echo)),
            _ => None,
        })
    }
}

/// One line, in the manner of tcpdump.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (tpid, tci) in &self.tags {
            write!(f, "[{tpid:04x} {}] ", tci & 0xfff)?;
        }
        write!(
            f,
            "{} > {} {} seq {} ack {} win {}",
            self.source,
            self.destination,
            flags::name(self.flags),
            self.seq,
            self.ack,
            self.window
        )?;
        write!(f, " {:?} length {}", self.options, self.payload.len())?;
        if !self.ip_checksum_ok {
            write!(f, " (bad IP checksum)")?;
        }
        if !self.tcp_checksum_ok {
            write!(f, " (bad TCP checksum)")?;
        }
        Ok(())
    }
}
