//! Connections of a proxied service: their entries in the flow table, and their segments.

use std::net::SocketAddr;

use anyhow::Result;
use synguard::dataplane::wire::mapped;
use synguard_common::abi::{
    Address, FLOW_KNOWN, FLOW_SPLICED, FlowEntry, LINK_HEADER, OFFER_SACK, OFFER_TIMESTAMPS,
    OFFER_WINDOW_SCALE, Tuple,
};

use super::{
    frames::{Client, Kind, Ring, clients, timestamps},
    scene::SERVICE,
};
use crate::frame::{Frame, TcpOption, describe, flags};

/// What is in the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// Nothing.
    Nothing,
    /// A spliced connection of every client of the ring, over either family.
    Spliced,
    /// The same with a server whose window scale is not the one that was promised.
    Rescaled,
    /// A connection of every client that came about without us.
    Known,
}

/// Window scale that the clients were promised.
const SCALE: u8 = 7;

/// The key of a connection.
pub fn tuple(client: SocketAddr, server: SocketAddr) -> Tuple {
    Tuple {
        client: Address(mapped(client.ip())),
        server: Address(mapped(server.ip())),
        client_port: client.port(),
        server_port: server.port(),
        pad: 0,
    }
}

/// The keys of what a ring of clients' frames belongs to.
pub fn tuples(ring: &Ring) -> Result<Vec<Tuple>> {
    ring.iter()
        .map(|frame| {
            let read = describe(frame)?;
            Ok(tuple(read.source, read.destination))
        })
        .collect()
}

impl Flows {
    /// The entries.
    pub fn entries(self) -> Vec<(Tuple, FlowEntry)> {
        if self == Self::Nothing {
            return Vec::new();
        }
        [Kind::V4, Kind::V6]
            .into_iter()
            .flat_map(|kind| clients(kind).map(move |client| (kind, client)))
            .map(|(kind, client)| (tuple(client.address, kind.server()), self.entry(client)))
            .collect()
    }

    fn entry(self, client: Client) -> FlowEntry {
        let numbers = Numbers::of(client);
        let common = FlowEntry {
            delta: 0,
            ts_delta: 0,
            cookie: 0,
            client_isn: 0,
            server_next: numbers.server_next,
            server_ack: numbers.client_next,
            client_tsval: 0,
            seen_at: 0,
            sent_at: 0,
            window: 0,
            mss: 0,
            service: SERVICE,
            state: FLOW_KNOWN,
            closing: 0,
            options: 0,
            client_scale: 0,
            promised_scale: 0,
            server_scale: 0,
            tries: 0,
            link_len: 0,
            pad: 0,
            link: [0; LINK_HEADER],
        };
        if self == Self::Known {
            return common;
        }
        FlowEntry {
            delta: numbers.delta,
            ts_delta: client.isn.rotate_left(13) | 1,
            cookie: numbers.server_next.wrapping_sub(1),
            client_isn: client.isn,
            window: 502,
            mss: 1460,
            state: FLOW_SPLICED,
            options: (OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE) as u8,
            client_scale: SCALE,
            promised_scale: SCALE,
            server_scale: SCALE + u8::from(self == Self::Rescaled),
            ..common
        }
    }
}

/// Where a connection stands: right after its handshake.
struct Numbers {
    /// What the client sends next.
    client_next: u32,
    /// What the server sends next, as the client counts.
    server_next: u32,
    /// What the client counts more than the server.
    delta: u32,
}

impl Numbers {
    fn of(client: Client) -> Self {
        Self {
            client_next: client.isn.wrapping_add(1),
            server_next: !client.isn,
            delta: client.isn.rotate_left(7) | 1,
        }
    }
}

const DATA: &[u8] = b"sixteen bytes...";

/// Data of the clients: timestamps and sixteen bytes.
pub fn from_clients(kind: Kind) -> Ring {
    segments(kind, |client, frame| {
        frame.options(timestamps(client.isn)).payload(DATA)
    })
}

/// ACKs of the clients that lack three pieces: timestamps and as many SACK blocks as fit beside.
pub fn from_clients_with_sack(kind: Kind) -> Ring {
    segments(kind, |client, frame| {
        let next = Numbers::of(client).server_next;
        let block = |at: u32| {
            let left = next.wrapping_add(at);
            (left, left.wrapping_add(1448))
        };
        let blocks = [2896, 5792, 8688].map(block).to_vec();
        let sack = [TcpOption::Nop, TcpOption::Nop, TcpOption::Sack(blocks)];
        frame.options(timestamps(client.isn).into_iter().chain(sack))
    })
}

fn segments(kind: Kind, finish: impl Fn(Client, Frame) -> Frame) -> Ring {
    clients(kind)
        .map(|client| {
            let numbers = Numbers::of(client);
            let frame = Frame::tcp(client.address, kind.server())
                .flags(flags::ACK)
                .seq(numbers.client_next)
                .ack(numbers.server_next);
            finish(client, frame).build()
        })
        .collect()
}

/// Data of the server to the clients of spliced connections, in the server's numbers.
pub fn from_server(kind: Kind) -> Ring {
    to_clients(kind, |numbers| {
        numbers.server_next.wrapping_sub(numbers.delta)
    })
}

/// Data of the server to the clients of connections that came about without us.
pub fn from_server_known(kind: Kind) -> Ring {
    to_clients(kind, |numbers| numbers.server_next)
}

fn to_clients(kind: Kind, sequence: fn(&Numbers) -> u32) -> Ring {
    clients(kind)
        .map(|client| {
            let numbers = Numbers::of(client);
            Frame::tcp(kind.server(), client.address)
                .flags(flags::ACK | flags::PSH)
                .seq(sequence(&numbers))
                .ack(numbers.client_next)
                .options(timestamps(client.isn))
                .payload(DATA)
                .build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use synguard_lab_ebpf::FRAME_MAX;

    use super::*;
    use crate::bench::frames::tagged;

    #[test]
    fn every_segment_belongs_to_an_entry() {
        for flows in [Flows::Spliced, Flows::Rescaled, Flows::Known] {
            let entries: std::collections::HashMap<_, _> = flows.entries().into_iter().collect();
            for kind in [Kind::V4, Kind::V6] {
                for ring in [from_clients(kind), from_clients_with_sack(kind)] {
                    for (frame, tuple) in ring.iter().zip(tuples(&ring).unwrap()) {
                        let read = describe(frame).unwrap();
                        assert_eq!(read.seq, entries[&tuple].server_ack);
                        assert_eq!(read.ack, entries[&tuple].server_next);
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_server_sends_is_what_the_client_expects() {
        let entries: std::collections::HashMap<_, _> =
            Flows::Spliced.entries().into_iter().collect();
        for frame in from_server(Kind::V4) {
            let read = describe(&frame).unwrap();
            let entry = entries[&tuple(read.destination, read.source)];
            assert_eq!(read.seq.wrapping_add(entry.delta), entry.server_next);
        }
    }

    #[test]
    fn the_longest_frame_fits() {
        for frame in tagged(from_clients_with_sack(Kind::V6)) {
            assert!(frame.len() <= FRAME_MAX && frame.len().is_multiple_of(2));
        }
    }
}
