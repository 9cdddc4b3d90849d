//! What a captured packet looked like on Ethernet, which is what the programs see: captures on `any`
//! and on tunnels have other link headers, or none.

use std::borrow::Cow;

use synguard_common::wire::ethernet;

/// Link types of captures (<https://www.tcpdump.org/linktypes.html>).
const ETHERNET: i32 = 1;
const RAW: i32 = 101;
/// What some systems write for it.
const RAW_OTHERS: [i32; 2] = [12, 14];
const LINUX_SLL: i32 = 113;
const IPV4: i32 = 228;
const IPV6: i32 = 229;
const LINUX_SLL2: i32 = 276;

/// Bytes of an Ethernet header.
pub const HEADER: usize = 14;
/// Addresses to begin a frame with where the capture has none: locally administered, to a host.
const HOST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const BROADCAST: [u8; 6] = [0xff; 6];
const MULTICAST: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0x01];

/// `ARPHRD_*` of devices whose "protocol" is no EtherType (FRAD, netlink, GRE, IEEE 802.11).
const NO_ETHERTYPE: [u16; 7] = [770, 778, 801, 802, 803, 804, 824];

/// Which way a packet went, seen from the protected box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It arrived: the XDP program's.
    In,
    /// It left: the TC egress program's.
    Out,
}

/// A frame for the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// With an Ethernet header.
    pub bytes: Cow<'a, [u8]>,
    /// Whether its link-layer addresses are those it had.
    pub addressed: bool,
    /// Which way it went, seen from the machine that captured, where the link header tells.
    pub direction: Option<Direction>,
}

/// Whether [`frame`] can do anything with packets of this link type.
pub fn is_known(link: i32) -> bool {
    matches!(link, ETHERNET | RAW | LINUX_SLL | IPV4 | IPV6 | LINUX_SLL2)
        || RAW_OTHERS.contains(&link)
}

/// The frame that a packet of this link type was; `None` where that cannot be told.
pub fn frame(link: i32, packet: &[u8]) -> Option<Frame<'_>> {
    let plain = |bytes, addressed| Frame {
        bytes,
        addressed,
        direction: None,
    };
    match link {
        ETHERNET => (packet.len() >= HEADER).then(|| plain(Cow::Borrowed(packet), true)),
        LINUX_SLL => {
            let (header, payload) = packet.split_first_chunk::<16>()?;
            let [
                kind_high,
                kind,
                hw_high,
                hw,
                _,
                length,
                address @ ..,
                high,
                low,
            ] = *header;
            cooked(
                u16::from_be_bytes([kind_high, kind]),
                u16::from_be_bytes([hw_high, hw]),
                (length, address),
                [high, low],
                payload,
            )
        }
        LINUX_SLL2 => {
            let (header, payload) = packet.split_first_chunk::<20>()?;
            let [
                high,
                low,
                _,
                _,
                _,
                _,
                _,
                _,
                hw_high,
                hw,
                kind,
                length,
                address @ ..,
            ] = *header;
            cooked(
                u16::from(kind),
                u16::from_be_bytes([hw_high, hw]),
                (length, address),
                [high, low],
                payload,
            )
        }
        _ if is_known(link) => {
            let protocol = match packet.first()? >> 4 {
                4 => ethernet::IPV4,
                6 => ethernet::IPV6,
                _ => return None,
            };
            let bytes = build(HOST, SENDER, protocol.to_be_bytes(), packet);
            Some(plain(bytes, false))
        }
        _ => None,
    }
}

/// Linux's cooked headers have what `struct sockaddr_ll` has: `kind` is `sll_pkttype`.
fn cooked(
    kind: u16,
    hardware: u16,
    (length, address): (u8, [u8; 8]),
    protocol: [u8; 2],
    payload: &[u8],
) -> Option<Frame<'_>> {
    if NO_ETHERTYPE.contains(&hardware) {
        return None;
    }
    let destination = match kind {
        1 => BROADCAST,
        2 => MULTICAST,
        _ => HOST,
    };
    let source = match address {
        [a, b, c, d, e, f, _, _] if length == 6 => [a, b, c, d, e, f],
        _ => SENDER,
    };
    Some(Frame {
        bytes: build(destination, source, protocol, payload),
        addressed: false,
        direction: Some(if kind == 4 {
            Direction::Out
        } else {
            Direction::In
        }),
    })
}

fn build<'a>(
    destination: [u8; 6],
    source: [u8; 6],
    protocol: [u8; 2],
    payload: &[u8],
) -> Cow<'a, [u8]> {
    Cow::Owned([&destination[..], &source, &protocol, payload].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_stays_as_it_is() {
        let packet = [7; 60];
        let frame = frame(ETHERNET, &packet).unwrap();
        assert_eq!((&frame.bytes[..], frame.direction), (&packet[..], None));
        assert!(super::frame(ETHERNET, &packet[..13]).is_none());
    }

    #[test]
    fn cooked_headers_become_ethernet_and_tell_the_direction() {
        for (kind, destination, direction) in [
            (0, HOST, Direction::In),
            (1, BROADCAST, Direction::In),
            (2, MULTICAST, Direction::In),
            (3, HOST, Direction::In),
            (4, HOST, Direction::Out),
        ] {
            let from = [2, 3, 4, 5, 6, 7];
            let v1 = [&[0, kind, 0, 1, 0, 6][..], &from, &[0, 0, 0x08, 0x00, 0x45]].concat();
            let v2 = [
                &[0x08, 0x00, 0, 0, 0, 0, 0, 9, 0, 1, kind, 6][..],
                &from,
                &[0, 0, 0x45],
            ]
            .concat();
            let expected = [&destination[..], &from, &[0x08, 0x00, 0x45]].concat();
            for (link, packet) in [(LINUX_SLL, &v1), (LINUX_SLL2, &v2)] {
                let frame = frame(link, packet).unwrap();
                assert_eq!(frame.bytes, expected, "{link} {kind}");
                assert_eq!(frame.direction, Some(direction));
                assert!(super::frame(link, &packet[..15]).is_none());
            }
        }
    }

    #[test]
    fn without_a_link_header_the_version_tells() {
        for link in [RAW, 12, 14, IPV4] {
            let frame = frame(link, &[0x45, 1]).unwrap();
            assert_eq!(frame.bytes[12..], [0x08, 0x00, 0x45, 1]);
        }
        let frame = frame(IPV6, &[0x60]).unwrap();
        assert_eq!(frame.bytes[12..], [0x86, 0xdd, 0x60]);
        for nothing in [&[][..], &[0x15], &[0xf0]] {
            assert_eq!(super::frame(RAW, nothing), None);
        }
    }

    #[test]
    fn other_links_are_not_guessed_at() {
        // IEEE 802.11 with radiotap, and the same cooked.
        assert!(!is_known(127));
        assert_eq!(frame(127, &[0; 60]), None);
        let mut cooked = [0; 60];
        cooked[2..4].copy_from_slice(&803u16.to_be_bytes());
        assert_eq!(frame(LINUX_SLL, &cooked), None);
    }
}
