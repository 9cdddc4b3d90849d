//! `reset` admission, for boxes that see only what arrives: the answers leave by another way.
//!
//! The SYN is answered with a SYN-ACK whose *acknowledgement number* is the cookie. A client that
//! exists finds it unacceptable and answers with a RST of that very number (RFC 9293 section
//! 3.10.7.3), which proves that it receives what is sent to its address. Its source is then
//! verified for a while, and its next SYN passes. Linux sends that at once, others after their
//! retransmission timeout.
//!
//! The cookie is hashed without the client's initial sequence number, which a RST does not carry.
//! What is no SYN passes unchecked: of a connection that leaves by another way nothing is known
//! that could not be forged, and a segment of none costs the server a RST, not memory.

use crate::{
    abi::EpochKey,
    cookie::{self, Payload},
    flow::{Flow, Net},
    handshake::Handshake,
    ingress::validate,
    sources,
    tables::Tables,
    verdict::Reason,
    wire::tcp,
};

/// Makes a SYN-ACK the question that only a client at its source can answer.
#[inline(always)]
pub fn question<N: Net>(answer: &mut Handshake, flow: &Flow<N>, payload: Payload, key: &EpochKey) {
    let cookie = cookie::generate(flow, 0, payload, key);
    answer.acknowledgment = cookie;
    // Of no meaning, and no constant.
    answer.sequence = !cookie;
    answer.flags = tcp::SYN | tcp::ACK;
    answer.options = 0;
}

/// Decides on a segment other than a SYN. A function of its own, for the sake of the stack.
#[inline(never)]
pub fn segment<N: Net, T: Tables>(tables: T, flow: &Flow<N>, flags: u16, sequence: u32) -> Reason {
    if flags & (tcp::RST | tcp::SYN) == tcp::RST
        && validate(&tables, flow, 0, sequence, tables.now()).is_some()
    {
        tables.verify(&flow.net.client());
        sources::refund(&tables, &flow.net.client());
        return Reason::SourceVerified;
    }
    Reason::Unchecked
}
