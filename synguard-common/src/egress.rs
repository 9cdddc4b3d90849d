//! What leaves by the interface: what the TC program `synguard_out` learns from it. Nothing is
//! changed or held back.

use crate::{
    flow::{Flow, Net, V4, V6},
    packet::Packet,
    tables::{State, Tables, Verdict},
    verdict::Reason,
    wire::{ethernet, ipv4, ipv6, tcp},
};

/// Looks at a frame; `None` where it concerns no half-open connection.
#[inline(always)]
pub fn egress<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T) -> Option<Verdict> {
    let (ethertype, at) = ethernet::payload(packet)?;
    if ethertype == ethernet::IPV4 {
        let ip = ipv4::Header::read(packet.view(at, ipv4::HEADER)?);
        if ip.protocol != ipv4::TCP || ip.fragment & ipv4::OFFSET_MASK != 0 {
            return None;
        }
        let net = V4 {
            client: ip.destination,
            server: ip.source,
        };
        learn(packet, tables, net, at + ip.header_len as usize)
    } else if ethertype == ethernet::IPV6 {
        let ip = ipv6::Header::read(packet.view(at, ipv6::HEADER)?);
        let net = V6 {
            client: ip.destination,
            server: ip.source,
        };
        // The kernel's SYN-ACKs and RSTs carry no extension headers unless an application asks for
        // them on its listener; such a connection stays unconfirmed.
        if ip.next_header != ipv6::TCP {
            return None;
        }
        learn(packet, tables, net, at + ipv6::HEADER)
    } else {
        None
    }
}

#[inline(always)]
fn learn<N: Net, P: Packet + ?Sized, T: Tables>(
    packet: &P,
    tables: &T,
    net: N,
    at: usize,
) -> Option<Verdict> {
    let header = tcp::Header::read(packet.view(at, tcp::HEADER)?);
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST;
    let control = header.flags & CONTROL;
    // A RST without ACK answers a segment that had an ACK of its own, which anybody can forge; one
    // that refuses a SYN acknowledges it (RFC 9293 section 3.10.7.1).
    if control != tcp::SYN | tcp::ACK && control != tcp::RST | tcp::ACK {
        return None;
    }
    let flow = Flow {
        net,
        client_port: header.destination,
        server_port: header.source,
    };
    let tuple = flow.tuple();
    let entry = tables.half_open(&tuple)?;
    let client_isn = header.acknowledgment.wrapping_sub(1);
    let reason = if control & tcp::SYN != 0 {
        if !tables.half_open_confirm(&tuple, client_isn, header.sequence) {
            return None;
        }
        Reason::SynAckSeen
    } else {
        if client_isn != entry.client_isn || !tables.half_open_remove(&tuple) {
            return None;
        }
        tables.state(entry.service as u16)?.half_open_sub();
        Reason::ServerReset
    };
    Some(Verdict {
        service: entry.service as u16,
        reason,
        observe: false,
        syn: false,
    })
}
