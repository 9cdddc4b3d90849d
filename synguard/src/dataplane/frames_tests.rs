//! The frames, taken apart by etherparse and summed up by hand.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use synguard_common::abi::{Address, FLOW_PENDING, LINK_HEADER, OFFER_SACK};

use super::*;
use crate::dataplane::wire::mapped;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn tuple(client: &str, server: &str) -> Tuple {
    Tuple {
        client: Address(mapped(client.parse().unwrap())),
        server: Address(mapped(server.parse().unwrap())),
        client_port: 40_000,
        server_port: 443,
        pad: 0,
    }
}

/// A pending flow whose ACK came to us with these tags.
fn flow(tags: &[[u8; 4]], options: u32) -> FlowEntry {
    let mut header = [&OUR_MAC[..], &CLIENT_MAC, tags.as_flattened()].concat();
    let link_len = header.len() as u8;
    // What does not count may be anything.
    header.resize(LINK_HEADER, 0xee);
    let mut link = [0; LINK_HEADER];
    link.copy_from_slice(&header);
    FlowEntry {
        delta: 0,
        ts_delta: 0x0102_0304,
        cookie: 0xffff_ffff,
        client_isn: 0x8000_0000,
        server_next: 0,
        server_ack: 0,
        client_tsval: 0xa0b0_c0d0,
        seen_at: 0,
        sent_at: 0,
        window: 501,
        mss: 1460,
        service: 1,
        state: FLOW_PENDING,
        closing: 0,
        options: options as u8,
        client_scale: 7,
        promised_scale: 7,
        server_scale: 0,
        tries: 0,
        link_len,
        pad: 0,
        link,
    }
}

/// RFC 1071, over the pseudo-header too where there is one.
fn sums_up(parts: &[&[u8]]) -> bool {
    let bytes = parts.concat();
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// What a frame says, once its lengths and checksums have been found right.
struct Seen {
    macs: [[u8; 6]; 2],
    tags: Vec<u16>,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    tcp: TcpHeader,
}

fn take_apart(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let ethernet = packet.to_owned_link();
    let Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)) = packet.net else {
        panic!("{packet:?}")
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("{packet:?}")
    };
    assert!(tcp.payload().is_empty());
    let segment = tcp.slice();
    let length = (segment.len() as u32).to_be_bytes();
    let (from, to): (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            assert!(sums_up(&[header.slice()]));
            assert_eq!(header.ttl(), 64);
            assert_eq!(usize::from(header.total_len()), 20 + segment.len());
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            assert_eq!(header.hop_limit(), 64);
            assert_eq!(usize::from(header.payload_length()), segment.len());
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        _ => unreachable!(),
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    assert!(sums_up(&[
        &octets(from),
        &octets(to),
        &length,
        &[0, 0, 0, 6],
        segment
    ]));
    Seen {
        macs: ethernet,
        tags: packet.vlan_ids().iter().map(|id| id.value()).collect(),
        from: (from, tcp.source_port()),
        to: (to, tcp.destination_port()),
        tcp: tcp.to_header(),
    }
}

trait OwnedLink {
    fn to_owned_link(&self) -> [[u8; 6]; 2];
}

impl OwnedLink for SlicedPacket<'_> {
    /// Destination and source.
    fn to_owned_link(&self) -> [[u8; 6]; 2] {
        let Some(etherparse::LinkSlice::Ethernet2(ethernet)) = &self.link else {
            panic!("{self:?}")
        };
        [ethernet.destination(), ethernet.source()]
    }
}

const PAIRS: [(&str, &str); 2] = [
    ("192.0.2.1", "198.51.100.2"),
    ("2001:db8::1", "2001:db8::2"),
];
const TAGS: [&[[u8; 4]]; 3] = [
    &[],
    &[[0x81, 0, 0, 7]],
    &[[0x88, 0xa8, 0x20, 100], [0x81, 0, 0, 7]],
];

#[test]
fn the_clients_ack_is_as_it_was() {
    for (client, server) in PAIRS {
        for tags in TAGS {
            for options in [OFFER_TIMESTAMPS | OFFER_SACK, OFFER_SACK] {
                let flow = flow(tags, options);
                let frame = client_ack(&tuple(client, server), &flow).unwrap();
                let seen = take_apart(&frame);
                assert_eq!(seen.macs, [OUR_MAC, CLIENT_MAC]);
                assert_eq!(frame[12..12 + 4 * tags.len()], *tags.as_flattened());
                assert_eq!(seen.tags.len(), tags.len());
                assert_eq!(seen.from, (client.parse().unwrap(), 40_000));
                assert_eq!(seen.to, (server.parse().unwrap(), 443));
                let mut expected = TcpHeader::new(40_000, 443, 0x8000_0001, 501);
                expected.ack = true;
                expected.acknowledgment_number = 0;
                expected.checksum = seen.tcp.checksum;
                if options & OFFER_TIMESTAMPS != 0 {
                    // RFC 7323 appendix A, byte for byte.
                    expected
                        .set_options_raw(&[1, 1, 8, 10, 0xa0, 0xb0, 0xc0, 0xd0, 1, 2, 3, 4])
                        .unwrap();
                }
                assert_eq!(seen.tcp, expected);
            }
        }
    }
}

#[test]
fn a_refusal_goes_the_other_way() {
    for (client, server) in PAIRS {
        for tags in TAGS {
            let flow = flow(tags, OFFER_TIMESTAMPS);
            let frame = refusal(&tuple(client, server), &flow).unwrap();
            let seen = take_apart(&frame);
            assert_eq!(seen.macs, [CLIENT_MAC, OUR_MAC]);
            assert_eq!(frame[12..12 + 4 * tags.len()], *tags.as_flattened());
            assert_eq!(seen.from, (server.parse().unwrap(), 443));
            assert_eq!(seen.to, (client.parse().unwrap(), 40_000));
            let mut expected = TcpHeader::new(443, 40_000, 0, 0);
            expected.rst = true;
            expected.ack = true;
            expected.acknowledgment_number = 0x8000_0001;
            expected.checksum = seen.tcp.checksum;
            assert_eq!(seen.tcp, expected);
        }
    }
}

/// A half-open connection whose SYN came to us with these tags.
fn half_open(tags: &[[u8; 4]]) -> HalfOpen {
    let FlowEntry { link_len, link, .. } = flow(tags, 0);
    HalfOpen {
        since: 0,
        client_isn: u32::MAX,
        server_isn: 7,
        service: 1,
        confirmed: 1,
        link_len,
        link: std::array::from_fn(|n| u32::from_ne_bytes(*link.as_chunks().0.get(n).unwrap())),
    }
}

/// A SYN that was answered, with all options or these.
fn answered(client: &str, server: &str, tags: &[[u8; 4]], options: u32) -> Answered {
    let HalfOpen { link_len, link, .. } = half_open(tags);
    Answered {
        tuple: tuple(client, server),
        state: 2,
        since: 0,
        client_isn: 0x8000_0000,
        cookie: 7,
        ts_val: 0xa0b0_c0d0,
        mss: 1387,
        service: 1,
        options: options as u8,
        window_scale: 9,
        tries: 0,
        link_len,
        link,
    }
}

#[test]
fn the_clients_syn_has_what_was_agreed_on() {
    let sack: &[u8] = &[4, 2];
    let stamps: &[u8] = &[8, 10, 0xa0, 0xb0, 0xc0, 0xd0, 0, 0, 0, 0];
    let scale: &[u8] = &[1, 3, 3, 9];
    for (client, server) in PAIRS {
        for tags in TAGS {
            for options in 0..16u32 {
                let frame = client_syn(&answered(client, server, tags, options)).unwrap();
                let seen = take_apart(&frame);
                assert_eq!(seen.macs, [OUR_MAC, CLIENT_MAC]);
                assert_eq!(frame[12..12 + 4 * tags.len()], *tags.as_flattened());
                assert_eq!(seen.from, (client.parse().unwrap(), 40_000));
                assert_eq!(seen.to, (server.parse().unwrap(), 443));
                let tcp = &seen.tcp;
                let ecn = options & OFFER_ECN != 0;
                assert_eq!((tcp.syn, tcp.ack, tcp.rst), (true, false, false));
                assert_eq!((tcp.ece, tcp.cwr), (ecn, ecn));
                assert_eq!(tcp.sequence_number, 0x8000_0000);
                let mut expected = vec![2, 4, 0x05, 0x6b];
                for (bit, bytes) in [
                    (OFFER_SACK, sack),
                    (OFFER_TIMESTAMPS, stamps),
                    (OFFER_WINDOW_SCALE, scale),
                ] {
                    if options & bit != 0 {
                        expected.extend_from_slice(bytes);
                    }
                }
                expected.resize(expected.len().next_multiple_of(4), 0);
                assert_eq!(tcp.options.as_slice(), expected);
            }
        }
    }
}

#[test]
fn a_release_is_the_clients_next_segment() {
    for (client, server) in PAIRS {
        for tags in TAGS {
            let frame = release(&tuple(client, server), &half_open(tags)).unwrap();
            let seen = take_apart(&frame);
            assert_eq!(seen.macs, [OUR_MAC, CLIENT_MAC]);
            assert_eq!(frame[12..12 + 4 * tags.len()], *tags.as_flattened());
            assert_eq!(seen.from, (client.parse().unwrap(), 40_000));
            assert_eq!(seen.to, (server.parse().unwrap(), 443));
            let mut expected = TcpHeader::new(40_000, 443, 0, 0);
            expected.rst = true;
            expected.checksum = seen.tcp.checksum;
            assert_eq!(seen.tcp, expected);
        }
    }
}

#[test]
fn nonsense_makes_no_frame() {
    let mixed = tuple("192.0.2.1", "2001:db8::2");
    assert_eq!(client_ack(&mixed, &flow(&[], 0)), None);
    assert_eq!(refusal(&mixed, &flow(&[], 0)), None);
    let fine = tuple("192.0.2.1", "192.0.2.2");
    for link_len in [0, 11, LINK_HEADER as u8 + 1, u8::MAX] {
        let wrong = FlowEntry {
            link_len,
            ..flow(&[], 0)
        };
        assert_eq!(client_ack(&fine, &wrong), None, "{link_len}");
        assert_eq!(refusal(&fine, &wrong), None, "{link_len}");
        let wrong = HalfOpen {
            link_len,
            ..half_open(&[])
        };
        let made = release(&fine, &wrong);
        assert!(made.is_none() || link_len > 11, "{link_len}");
    }
}
