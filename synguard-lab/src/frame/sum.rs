//! The Internet checksum (RFC 1071), plainly: the tests' oracle, not synguard's.

use std::net::IpAddr;

/// Adds the 16-bit big-endian words of `bytes`; a last odd byte counts as the upper half.
pub(crate) fn add(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |sum, word| {
        let word = u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// The sum as 16 bits, carries added in; 0xffff over data that contains its own checksum.
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum over a TCP segment and its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn segment(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u32 {
    add(
        pseudo_header(source, destination, 6, segment.len()),
        segment,
    )
}

/// Sum of the pseudo-header before `length` bytes of a protocol.
pub(crate) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> u32 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [&source.octets()[..], &destination.octets()[..]].concat()
        }
        (source, destination) => [v6(source), v6(destination)].concat(),
    };
    let sum = add(u32::from(protocol), &addresses);
    add(sum, &(length as u32).to_be_bytes())
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
