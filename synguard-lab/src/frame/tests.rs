//! The builder against etherparse's reading of what it builds.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;

fn v4() -> Frame {
    Frame::tcp(
        "192.0.2.1:40000".parse().unwrap(),
        "198.51.100.2:443".parse().unwrap(),
    )
}

fn v6() -> Frame {
    Frame::tcp(
        "[2001:db8::1]:40000".parse().unwrap(),
        "[2001:db8::2]:443".parse().unwrap(),
    )
}

#[test]
fn fields_arrive() {
    for frame in [v4(), v6()] {
        let frame = frame
            .vlan(0x88a8, 100)
            .vlan(0x8100, 0x6007)
            .ttl(9)
            .tos(0xb9)
            .seq(0xdead_beef)
            .ack(0x0102_0304)
            .flags(flags::PSH | flags::ACK)
            .window(1234)
            .urgent(7)
            .options([TcpOption::Nop, TcpOption::Nop, TcpOption::Timestamps(5, 6)])
            .payload(b"odd")
            .pad_to(200);
        let bytes = frame.build();
        let read = describe(&bytes).unwrap();
        assert_eq!(bytes.len(), 200);
        assert_eq!(read.tags, [(0x88a8, 100), (0x8100, 0x6007)]);
        assert_eq!(
            (read.ttl, read.tos, read.seq, read.ack),
            (9, 0xb9, 0xdead_beef, 0x0102_0304)
        );
        assert_eq!(
            (read.flags, read.window, read.urgent),
            (flags::PSH | flags::ACK, 1234, 7)
        );
        assert_eq!(read.timestamps(), Some((5, 6)));
        assert_eq!(read.payload, b"odd");
        assert_eq!(read.padding, 200 - 22 - read.ip_length);
        assert!(read.ip_checksum_ok && read.tcp_checksum_ok, "{read}");
    }
}

#[test]
fn checksums_agree_with_etherparse() {
    for frame in [v4(), v6()] {
        for length in [0, 1, 2, 1001] {
            let bytes = frame
                .clone()
                .options(TcpOption::linux_syn(1460, 77))
                .payload(&vec![0xa5; length])
                .build();
            let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
                panic!("no TCP")
            };
            let expected = match packet.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                    tcp.to_header()
                        .calc_checksum_ipv4(&header, tcp.payload())
                        .unwrap()
                }
                NetSlice::Ipv6(ip) => tcp
                    .to_header()
                    .calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(tcp.checksum(), expected, "{length} bytes");
        }
    }
}

#[test]
fn checksums_break_on_demand() {
    assert!(
        !describe(&v4().bad_tcp_checksum().build())
            .unwrap()
            .tcp_checksum_ok
    );
    assert!(
        !describe(&v6().bad_tcp_checksum().build())
            .unwrap()
            .tcp_checksum_ok
    );
    let read = describe(&v4().bad_ip_checksum().build()).unwrap();
    assert!(!read.ip_checksum_ok && read.tcp_checksum_ok);
}

#[test]
fn extension_headers_chain() {
    let bytes = v6()
        .extension(Extension::hop_by_hop())
        .extension(Extension::routing())
        .extension(Extension::destination(0))
        .extension(Extension::destination(200))
        .extension(Extension::authentication())
        .build();
    let read = describe(&bytes).unwrap();
    assert!(read.tcp_checksum_ok && read.has_flags(flags::SYN), "{read}");
}

#[test]
fn ip_options_are_skipped() {
    let read = describe(&v4().ip_options(&[7, 7, 4, 0, 0, 0, 0]).build()).unwrap();
    assert_eq!(read.ip_options.len(), 8);
    assert!(read.ip_checksum_ok && read.tcp_checksum_ok);
}

#[test]
fn fragments_cover_the_segment() {
    for frame in [v4().payload(&[9; 100]), v6().payload(&[9; 100])] {
        let whole = frame.build();
        // Not 64: etherparse 0.19 takes an IPv6 fragment at that offset for a whole packet.
        let parts = frame.build_fragments(&[24, 72]);
        assert_eq!(parts.len(), 3);
        let mut joined = Vec::new();
        for part in &parts {
            assert!(describe(part).is_err(), "a fragment is not an answer");
            let packet = SlicedPacket::from_ethernet(part).unwrap();
            let payload = packet.ip_payload().unwrap();
            assert!(payload.fragmented);
            joined.extend_from_slice(payload.payload);
        }
        assert_eq!(joined, whole[whole.len() - 120..]);
    }
}

#[test]
fn lies_are_told() {
    assert_eq!(v4().lie_version(5).build()[14] >> 4, 5);
    assert_eq!(v4().lie_header_words(3).build()[14] & 15, 3);
    assert_eq!(
        v4().lie_ip_length(999).build()[16..18],
        999u16.to_be_bytes()
    );
    assert_eq!(v4().lie_data_offset(4).build()[46] >> 4, 4);
    assert_eq!(v4().truncate_to(30).build().len(), 30);
}
