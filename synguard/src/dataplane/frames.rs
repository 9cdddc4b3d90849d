//! Frames that stand for one end of a pending flow, made from what the flow's entry remembers.

use std::net::IpAddr;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, TcpOptionElement,
    ether_type,
};
use synguard_common::abi::{
    Answered, FlowEntry, HalfOpen, LINK_HEADER, OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS,
    OFFER_WINDOW_SCALE, Tuple,
};

use super::wire::unmapped;

/// Of every frame made here.
const TTL: u8 = 64;
/// Length of a link-layer address.
const MAC: usize = 6;

/// The client's ACK, as it came and made the flow: the programs turn it into the client's SYN once
/// more. `None` where the entry makes no sense.
pub fn client_ack(tuple: &Tuple, flow: &FlowEntry) -> Option<Vec<u8>> {
    let mut tcp = TcpHeader::new(
        tuple.client_port,
        tuple.server_port,
        flow.client_isn.wrapping_add(1),
        flow.window,
    );
    tcp.ack = true;
    tcp.acknowledgment_number = flow.cookie.wrapping_add(1);
    if u32::from(flow.options) & OFFER_TIMESTAMPS != 0 {
        // While the flow is pending, `ts_delta` is our TSval as the client last echoed it.
        tcp.set_options(&[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(flow.client_tsval, flow.ts_delta),
        ])
        .ok()?;
    }
    frame(
        link(flow)?,
        unmapped(tuple.client.0),
        unmapped(tuple.server.0),
        tcp,
    )
}

/// The server's refusal of the client's SYN (RFC 9293 section 3.10.7.1), in the place of a server
/// that keeps silent. `None` where the entry makes no sense.
pub fn refusal(tuple: &Tuple, flow: &FlowEntry) -> Option<Vec<u8>> {
    let mut tcp = TcpHeader::new(tuple.server_port, tuple.client_port, 0, 0);
    tcp.rst = true;
    tcp.ack = true;
    tcp.acknowledgment_number = flow.client_isn.wrapping_add(1);
    let mut link = link(flow)?.to_vec();
    // The addresses trade places; tags stay.
    link[..2 * MAC].rotate_left(MAC);
    frame(
        &link,
        unmapped(tuple.server.0),
        unmapped(tuple.client.0),
        tcp,
    )
}

/// A RST in the client's name, which ends a half-open connection at its server: in its window, being
/// just what it expects next (RFC 9293 section 3.10.7.4; `tcp_check_req`). `None` where the entry makes
/// no sense.
pub fn release(tuple: &Tuple, entry: &HalfOpen) -> Option<Vec<u8>> {
    let sequence = entry.client_isn.wrapping_add(1);
    let mut tcp = TcpHeader::new(tuple.client_port, tuple.server_port, sequence, 0);
    tcp.rst = true;
    let link = link_bytes(&entry.link, entry.link_len);
    if link.len() < 2 * MAC {
        return None;
    }
    frame(
        &link,
        unmapped(tuple.client.0),
        unmapped(tuple.server.0),
        tcp,
    )
}

/// The client's SYN that was answered, with the options that were agreed on: the programs answer it once
/// more. `None` where the entry makes no sense.
pub fn client_syn(entry: &Answered) -> Option<Vec<u8>> {
    let Tuple {
        client,
        server,
        client_port,
        server_port,
        ..
    } = entry.tuple;
    let options = u32::from(entry.options);
    let mut tcp = TcpHeader::new(client_port, server_port, entry.client_isn, u16::MAX);
    tcp.syn = true;
    if options & OFFER_ECN != 0 {
        (tcp.ece, tcp.cwr) = (true, true);
    }
    let mut elements = vec![TcpOptionElement::MaximumSegmentSize(entry.mss)];
    if options & OFFER_SACK != 0 {
        elements.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
    }
    if options & OFFER_TIMESTAMPS != 0 {
        elements.push(TcpOptionElement::Timestamp(entry.ts_val, 0));
    }
    if options & OFFER_WINDOW_SCALE != 0 {
        elements.push(TcpOptionElement::Noop);
        elements.push(TcpOptionElement::WindowScale(entry.window_scale));
    }
    tcp.set_options(&elements).ok()?;
    let link = link_bytes(&entry.link, entry.link_len);
    if link.len() < 2 * MAC {
        return None;
    }
    frame(&link, unmapped(client.0), unmapped(server.0), tcp)
}

/// A link header that lies in words, without the last EtherType.
pub fn link_bytes(link: &[u32; LINK_HEADER / 4], len: u8) -> Vec<u8> {
    let bytes = link.iter().flat_map(|word| word.to_ne_bytes());
    bytes.take(usize::from(len)).collect()
}

/// The link header of the client's ACK, without the last EtherType.
pub fn link(flow: &FlowEntry) -> Option<&[u8]> {
    let link = flow.link.get(..usize::from(flow.link_len))?;
    (link.len() >= 2 * MAC).then_some(link)
}

fn frame(link: &[u8], from: IpAddr, to: IpAddr, mut tcp: TcpHeader) -> Option<Vec<u8>> {
    let length = tcp.header_len_u16();
    let (ethertype, ip) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let mut ip = Ipv4Header::new(length, TTL, IpNumber::TCP, from, to).ok()?;
            ip.header_checksum = ip.calc_header_checksum();
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[]).ok()?;
            (ether_type::IPV4, IpHeaders::Ipv4(ip, Default::default()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: length,
                next_header: IpNumber::TCP,
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
            };
            tcp.checksum = tcp.calc_checksum_ipv6(&ip, &[]).ok()?;
            (ether_type::IPV6, IpHeaders::Ipv6(ip, Default::default()))
        }
        _ => return None,
    };
    let mut frame = link.to_vec();
    frame.extend_from_slice(&ethertype.0.to_be_bytes());
    ip.write(&mut frame).ok()?;
    frame.extend_from_slice(&tcp.to_bytes());
    Some(frame)
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
