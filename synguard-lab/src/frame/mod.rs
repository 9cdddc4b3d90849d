//! Builds TCP frames, right by default and wrong on demand, and reads frames back.
//!
//! Independent of `synguard-common` on purpose: tests hold the one against the other.
//!
//! ```
//! use synguard_lab::frame::{Frame, TcpOption, describe, flags};
//!
//! let syn = Frame::tcp("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
//!     .vlan(0x8100, 7)
//!     .seq(42)
//!     .options(TcpOption::linux_syn(1460, 1))
//!     .build();
//! let read = describe(&syn).unwrap();
//! assert!(read.has_flags(flags::SYN) && read.tcp_checksum_ok);
//! ```

mod answer;
mod icmp;
mod option;
pub(crate) mod sum;

use std::net::{IpAddr, SocketAddr};

pub use answer::{Answer, describe};
pub use icmp::{IcmpError, check_icmp, envelope};
pub use option::TcpOption;

/// TCP flags, as they lie in byte 13 of the header.
pub mod flags {
    #![allow(missing_docs, reason = "the names of RFC 9293 and RFC 3168")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    pub const ECE: u8 = 0x40;
    pub const CWR: u8 = 0x80;

    /// The names of the flags that are set, `SYN|ACK` for example.
    pub fn name(flags: u8) -> String {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set: Vec<_> = names
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| flags >> bit & 1 == 1)
            .map(|(_, name)| name)
            .collect();
        if set.is_empty() {
            "none".into()
        } else {
            set.join("|")
        }
    }
}

/// An IPv6 extension header: its number and everything behind the next-header byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The number that announces the header.
    pub number: u8,
    /// The header without its first byte.
    pub body: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options: padding only.
    pub fn hop_by_hop() -> Self {
        Self {
            number: 0,
            body: vec![0, 1, 4, 0, 0, 0, 0],
        }
    }

    /// Destination options: padding only, of `8 * (units + 1)` bytes in all.
    pub fn destination(units: u8) -> Self {
        // PadN fills at most 257 bytes; several follow each other where that is not enough.
        let mut body = vec![units];
        let mut left = 8 * usize::from(units) + 6;
        while left > 0 {
            let take = match left {
                1..=257 => left,
                // Never leave a single byte, which PadN cannot fill.
                258 => 256,
                _ => 257,
            };
            body.extend([1, (take - 2) as u8]);
            body.resize(body.len() + take - 2, 0);
            left -= take;
        }
        Self { number: 60, body }
    }

    /// A routing header of an unknown type with no segments left.
    pub fn routing() -> Self {
        Self {
            number: 43,
            body: vec![0, 253, 0, 0, 0, 0, 0],
        }
    }

    /// A fragment header; the offset is in bytes, a multiple of eight.
    pub fn fragment(offset: u16, more: bool, id: u32) -> Self {
        let mut body = vec![0];
        body.extend((offset & 0xfff8 | u16::from(more)).to_be_bytes());
        body.extend(id.to_be_bytes());
        Self { number: 44, body }
    }

    /// An authentication header with a 12-byte check value of zeroes (its length counts words).
    pub fn authentication() -> Self {
        let mut body = vec![4, 0, 0];
        body.resize(23, 0);
        Self { number: 51, body }
    }
}

/// A TCP frame to be built. Fields that are `None` come out right.
#[derive(Clone, Debug)]
pub struct Frame {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    tags: Vec<(u16, u16)>,
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
    tos: u8,
    label: u32,
    ip_id: u16,
    fragment: u16,
    ip_options: Vec<u8>,
    extensions: Vec<Extension>,
    protocol: u8,
    seq: u32,
    ack: u32,
    flags: u8,
    reserved: u8,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    version: Option<u8>,
    header_words: Option<u8>,
    ip_length: Option<u16>,
    data_offset: Option<u8>,
    break_ip_checksum: bool,
    break_tcp_checksum: bool,
    no_tcp_checksum: bool,
    pad_to: usize,
    truncate_to: usize,
}

/// The bit Don't Fragment within the 16 bits that hold flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

impl Frame {
    /// A SYN without options from `source` to `destination`, which must be of one family.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            source,
            destination,
            ttl: 64,
            tos: 0,
            label: 0,
            ip_id: 0x1234,
            fragment: DONT_FRAGMENT,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            protocol: 6,
            seq: 0,
            ack: 0,
            flags: flags::SYN,
            reserved: 0,
            window: 64240,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            version: None,
            header_words: None,
            ip_length: None,
            data_offset: None,
            break_ip_checksum: false,
            break_tcp_checksum: false,
            no_tcp_checksum: false,
            pad_to: 0,
            truncate_to: usize::MAX,
        }
    }

    /// MAC addresses.
    pub fn macs(self, source: [u8; 6], destination: [u8; 6]) -> Self {
        Self {
            source_mac: source,
            destination_mac: destination,
            ..self
        }
    }

    /// Adds a VLAN tag inside those there are.
    pub fn vlan(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// Time to live, or hop limit.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// Type of service, or traffic class: DSCP and ECN.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// IPv6 flow label, 20 bits.
    pub fn label(self, label: u32) -> Self {
        Self { label, ..self }
    }

    /// IPv4 identification.
    pub fn ip_id(self, ip_id: u16) -> Self {
        Self { ip_id, ..self }
    }

    /// IPv4 options, filled up to words with end-of-list.
    pub fn ip_options(self, options: &[u8]) -> Self {
        let mut ip_options = options.to_vec();
        ip_options.resize(options.len().next_multiple_of(4), 0);
        Self { ip_options, ..self }
    }

    /// Adds an IPv6 extension header behind those there are.
    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Marks the packet as a fragment that starts at `offset` bytes, without cutting it; see
    /// [`Frame::build_fragments`] for real ones.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        if self.source.is_ipv6() {
            let id = u32::from(self.ip_id);
            return self.extension(Extension::fragment(offset, more, id));
        }
        let fragment = (offset / 8) | if more { MORE_FRAGMENTS } else { 0 };
        Self { fragment, ..self }
    }

    /// The protocol number that announces the TCP header, for pretending it is something else.
    pub fn protocol(self, protocol: u8) -> Self {
        Self { protocol, ..self }
    }

    /// Sequence number.
    pub fn seq(self, seq: u32) -> Self {
        Self { seq, ..self }
    }

    /// Acknowledgement number; the flag is set with [`Frame::flags`].
    pub fn ack(self, ack: u32) -> Self {
        Self { ack, ..self }
    }

    /// Flags, instead of SYN.
    pub fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// The four reserved bits beside the data offset.
    pub fn reserved(self, reserved: u8) -> Self {
        Self { reserved, ..self }
    }

    /// Window.
    pub fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }

    /// Urgent pointer.
    pub fn urgent(self, urgent: u16) -> Self {
        Self { urgent, ..self }
    }

    /// TCP options, filled up to words with end-of-list.
    pub fn options(self, options: impl IntoIterator<Item = TcpOption>) -> Self {
        let mut bytes = Vec::new();
        options
            .into_iter()
            .for_each(|option| option.emit(&mut bytes));
        self.raw_options(&bytes)
    }

    /// TCP options byte by byte, sensible or not, filled up to words with end-of-list.
    pub fn raw_options(self, bytes: &[u8]) -> Self {
        let mut options = bytes.to_vec();
        options.resize(bytes.len().next_multiple_of(4), 0);
        Self { options, ..self }
    }

    /// Payload.
    pub fn payload(self, payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..self
        }
    }

    /// Makes the IP version field say something else.
    pub fn lie_version(self, version: u8) -> Self {
        Self {
            version: Some(version),
            ..self
        }
    }

    /// Makes the IPv4 header length field say something else, in words.
    pub fn lie_header_words(self, words: u8) -> Self {
        Self {
            header_words: Some(words),
            ..self
        }
    }

    /// Makes the IP length field say something else.
    pub fn lie_ip_length(self, length: u16) -> Self {
        Self {
            ip_length: Some(length),
            ..self
        }
    }

    /// Makes the TCP data offset say something else, in words.
    pub fn lie_data_offset(self, words: u8) -> Self {
        Self {
            data_offset: Some(words),
            ..self
        }
    }

    /// Makes the IPv4 header checksum wrong.
    pub fn bad_ip_checksum(self) -> Self {
        Self {
            break_ip_checksum: true,
            ..self
        }
    }

    /// Makes the TCP checksum wrong.
    pub fn bad_tcp_checksum(self) -> Self {
        Self {
            break_tcp_checksum: true,
            ..self
        }
    }

    /// Leaves the TCP checksum zero.
    pub fn bare_checksum(self) -> Self {
        Self {
            no_tcp_checksum: true,
            ..self
        }
    }

    /// Fills the frame up with zeroes behind the packet, as Ethernet does to reach 60 bytes.
    pub fn pad_to(self, length: usize) -> Self {
        Self {
            pad_to: length,
            ..self
        }
    }

    /// Cuts the frame off.
    pub fn truncate_to(self, length: usize) -> Self {
        Self {
            truncate_to: length,
            ..self
        }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        self.wrap(&self.segment(), &self.extensions, self.fragment)
    }

    /// The IP packet alone.
    pub fn packet(&self) -> Vec<u8> {
        self.build().split_off(14 + 4 * self.tags.len())
    }

    /// The packet in fragments, cut at these offsets into the TCP segment; each must be a multiple
    /// of eight within the segment, in rising order.
    pub fn build_fragments(&self, cuts: &[usize]) -> Vec<Vec<u8>> {
        let segment = self.segment();
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([segment.len()]);
        starts
            .zip(ends)
            .map(|(start, end)| {
                let more = end < segment.len();
                if self.source.is_ipv6() {
                    let mut extensions = self.extensions.clone();
                    extensions.push(Extension::fragment(
                        start as u16,
                        more,
                        u32::from(self.ip_id),
                    ));
                    self.wrap(&segment[start..end], &extensions, 0)
                } else {
                    let fragment = (start / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 };
                    self.wrap(&segment[start..end], &[], fragment)
                }
            })
            .collect()
    }

    /// TCP header and payload.
    fn segment(&self) -> Vec<u8> {
        let words = self
            .data_offset
            .unwrap_or((5 + self.options.len() / 4) as u8);
        let mut segment = Vec::with_capacity(60 + self.payload.len());
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([words << 4 | self.reserved & 0x0f, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(&self.options);
        segment.extend(&self.payload);
        let mut checksum = !sum::fold(sum::segment(
            self.source.ip(),
            self.destination.ip(),
            &segment,
        ));
        if self.break_tcp_checksum {
            checksum ^= 0x0100;
        }
        if self.no_tcp_checksum {
            checksum = 0;
        }
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        segment
    }

    /// Puts Ethernet, tags and IP around a payload.
    fn wrap(&self, payload: &[u8], extensions: &[Extension], fragment: u16) -> Vec<u8> {
        let mut frame = Vec::with_capacity(128 + payload.len());
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let start = frame.len();
                let words = self
                    .header_words
                    .unwrap_or((5 + self.ip_options.len() / 4) as u8);
                let length = self
                    .ip_length
                    .unwrap_or((20 + self.ip_options.len() + payload.len()) as u16);
                frame.extend([self.version.unwrap_or(4) << 4 | words & 0x0f, self.tos]);
                frame.extend(length.to_be_bytes());
                frame.extend(self.ip_id.to_be_bytes());
                frame.extend(fragment.to_be_bytes());
                frame.extend([self.ttl, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(&self.ip_options);
                let mut checksum = !sum::fold(sum::add(0, &frame[start..]));
                if self.break_ip_checksum {
                    checksum ^= 0x0100;
                }
                frame[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            (source, destination) => {
                frame.extend([0x86, 0xdd]);
                let extended: usize = extensions
                    .iter()
                    .map(|extension| extension.body.len() + 1)
                    .sum();
                let length = self.ip_length.unwrap_or((extended + payload.len()) as u16);
                frame.extend([
                    self.version.unwrap_or(6) << 4 | self.tos >> 4,
                    self.tos << 4 | (self.label >> 16) as u8 & 15,
                    (self.label >> 8) as u8,
                    self.label as u8,
                ]);
                frame.extend(length.to_be_bytes());
                let mut next = extensions
                    .iter()
                    .map(|extension| extension.number)
                    .chain([self.protocol]);
                frame.extend([next.next().unwrap_or(self.protocol), self.ttl]);
                for address in [source, destination] {
                    match address {
                        IpAddr::V4(address) => frame.extend(address.to_ipv6_mapped().octets()),
                        IpAddr::V6(address) => frame.extend(address.octets()),
                    }
                }
                for extension in extensions {
                    frame.push(next.next().unwrap_or(self.protocol));
                    frame.extend(&extension.body);
                }
            }
        }
        frame.extend(payload);
        if frame.len() < self.pad_to {
            frame.resize(self.pad_to, 0);
        }
        frame.truncate(self.truncate_to);
        frame
    }
}

#[cfg(test)]
mod tests;
