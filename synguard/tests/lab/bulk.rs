//! Large transfers through a proxying edge, on wires that lose and reorder: the bytes are right, and
//! what either end is told by acknowledgements, SACK blocks and timestamps is what the other end said,
//! by the word of captures at both ends.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use synguard_lab::{
    capture::{Capture, Segment},
    client::{self, ConnectOptions},
    frame::flags,
    impair::{Direction, Impairment},
    netns::Netns,
    pattern::Pattern,
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions},
};

use crate::{guard::PATIENCE, routed};

const PORT: u16 = 5000;
const GIGABYTE: u64 = 1_000_000_000;
/// Connections that share it: one alone spends its time recovering from losses.
const STREAMS: u64 = 8;
/// Bytes written and read at once.
const CHUNK: usize = 256 << 10;
/// More than a transfer's segments, acknowledgements and what is sent again.
const SEGMENTS: usize = 4_000_000;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the client.
    Down,
    /// To the server.
    Up,
}

/// What a client asks for, in its first bytes: the way, the seed, and how many.
#[derive(Clone, Copy, Debug)]
struct Order {
    way: Way,
    seed: u64,
    bytes: u64,
}

impl Order {
    const LENGTH: usize = 17;

    fn encode(self) -> Vec<u8> {
        let way = [u8::from(self.way == Way::Up)];
        [
            &way[..],
            &self.seed.to_be_bytes(),
            &self.bytes.to_be_bytes(),
        ]
        .concat()
    }

    fn decode(bytes: [u8; Self::LENGTH]) -> Self {
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            way: if bytes[0] == 1 { Way::Up } else { Way::Down },
            seed: number(1),
            bytes: number(9),
        }
    }

    fn send(self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut sent = 0;
        while sent < self.bytes {
            let length = (self.bytes - sent).min(CHUNK as u64) as usize;
            Pattern::new(self.seed).fill(sent, &mut buffer[..length]);
            stream.write_all(&buffer[..length])?;
            sent += length as u64;
        }
        Ok(())
    }

    /// Receives and compares; says where the first wrong byte is.
    fn receive(self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut received = 0;
        while received < self.bytes {
            let length = stream.read(&mut buffer)?;
            if length == 0 || received + length as u64 > self.bytes {
                let message = format!("{received} and {length} bytes came of {}", self.bytes);
                return Err(std::io::Error::other(message));
            }
            let different = Pattern::new(self.seed).difference(received, &buffer[..length]);
            if let Some(at) = different {
                let message = format!("byte {} is wrong", received + at as u64);
                return Err(std::io::Error::other(message));
            }
            received += length as u64;
        }
        Ok(())
    }
}

/// Serves orders until the namespace is gone. A receiver says "ok" at the end.
fn serve(ns: &Netns) {
    let listener = ns
        .run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            std::thread::spawn(move || {
                let mut order = [0; Order::LENGTH];
                // A connection that only teaches ends here.
                if stream.read_exact(&mut order).is_err() {
                    return;
                }
                let order = Order::decode(order);
                let answer = match order.way {
                    Way::Down => order.send(&stream),
                    Way::Up => order
                        .receive(&stream)
                        .and_then(|()| stream.write_all(b"ok")),
                };
                if let Err(error) = answer {
                    println!("the server, {order:?}: {error}");
                }
            });
        }
    });
}

/// Has an order carried out, and waits until the other end has closed the connection, too; returns
/// its client's address.
#[track_caller]
fn carry_out(topology: &Forwarding, target: SocketAddr, order: Order) -> SocketAddr {
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..ConnectOptions::default()
    };
    let mut stream = client::connect(&topology.client, target, &options).unwrap();
    stream.write_all(&order.encode()).unwrap();
    match order.way {
        Way::Down => order.receive(&stream).unwrap(),
        Way::Up => {
            order.send(&stream).unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"ok");
        }
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "more than was ordered");
    stream.local_addr().unwrap()
}

/// One direction of a connection at one end, by its capture.
#[derive(Default)]
struct Flow<'a> {
    segments: Vec<(usize, &'a Segment)>,
    initial: u32,
    highest: u32,
    again: u64,
}

/// A number relative to another, as signed distance.
fn distance(number: u32, from: u32) -> i64 {
    i64::from(number.wrapping_sub(from) as i32)
}

/// What a capture at one end has of a connection, seen from that end.
struct End<'a> {
    sent: Flow<'a>,
    received: Flow<'a>,
}

impl<'a> End<'a> {
    #[track_caller]
    fn new(capture: &'a [Segment], local: SocketAddr, peer: SocketAddr) -> Self {
        let mut ends = [Flow::default(), Flow::default()];
        for (place, segment) in capture.iter().enumerate() {
            let flow = match (segment.source, segment.destination) {
                pair if pair == (local, peer) => &mut ends[0],
                pair if pair == (peer, local) => &mut ends[1],
                _ => continue,
            };
            if segment.flags & flags::SYN != 0 {
                flow.initial = segment.seq;
                flow.highest = segment.seq.wrapping_add(1);
            }
            let end = segment.seq.wrapping_add(segment.payload);
            if distance(end, flow.highest) > 0 {
                flow.highest = end;
            } else if segment.payload > 0 {
                flow.again += 1;
            }
            flow.segments.push((place, segment));
        }
        let [sent, received] = ends;
        for flow in [&sent, &received] {
            assert!(!flow.segments.is_empty(), "no connection {local} {peer}");
        }
        Self { sent, received }
    }

    /// Asserts that every SACK edge it received lies in what it had sent by then, and that every TSecr
    /// is a TSval it had sent by then; returns how many blocks there were.
    #[track_caller]
    fn is_told_the_truth(&self, who: &str) -> u64 {
        let mut sent = self.sent.segments.iter().peekable();
        let (mut highest, mut values) = (self.sent.initial, HashSet::new());
        let mut blocks = 0;
        for (place, segment) in &self.received.segments {
            while let Some((_, earlier)) = sent.next_if(|(earlier, _)| earlier < place) {
                let end = earlier.seq.wrapping_add(earlier.payload);
                let end =
                    end.wrapping_add(u32::from(earlier.flags & (flags::SYN | flags::FIN) != 0));
                if distance(end, highest) > 0 {
                    highest = end;
                }
                values.extend(earlier.timestamps.map(|(value, _)| value));
            }
            let within =
                |number| distance(number, self.sent.initial) > 0 && distance(number, highest) <= 0;
            if segment.flags & flags::ACK != 0 {
                assert!(within(segment.ack), "{who}, acknowledged: {segment:?}");
                if let Some((_, echo)) = segment.timestamps {
                    assert!(values.contains(&echo), "{who}, echoed: {segment:?}");
                }
            }
            for &(left, right) in &segment.sack {
                let order = distance(right, left) > 0;
                assert!(
                    order && within(left) && within(right),
                    "{who}, selected: {segment:?}; sent {} to {highest}",
                    self.sent.initial
                );
                blocks += 1;
            }
        }
        blocks
    }
}

/// A segment with SACK blocks, in numbers that both ends must agree on: its sequence number relative to
/// the beginning of its own direction, all others to that of what it acknowledges.
type Selected = (u32, u32, Vec<(u32, u32)>);

fn selected(acknowledgements: &Flow, acknowledged: &Flow) -> HashSet<Selected> {
    let from = |base: u32| move |number: u32| number.wrapping_sub(base);
    let relative = from(acknowledged.initial);
    let segments = acknowledgements.segments.iter();
    segments
        .filter(|(_, segment)| !segment.sack.is_empty())
        .map(|(_, segment)| {
            let blocks = segment
                .sack
                .iter()
                .map(|(l, r)| (relative(*l), relative(*r)));
            let seq = from(acknowledgements.initial)(segment.seq);
            (seq, relative(segment.ack), blocks.collect())
        })
        .collect()
}

/// What the captures of a connection have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    segments: usize,
    again: u64,
    blocks: u64,
}

/// Compares what both ends of a connection have sent and received.
#[track_caller]
fn compare(what: &str, way: Way, at_client: &End, at_server: &End) -> Shown {
    let to_client = at_client.is_told_the_truth(&format!("{what}, the client"));
    let to_server = at_server.is_told_the_truth(&format!("{what}, the server"));
    // What the receiver selected is what the sender hears. It may hear it twice: what is delayed on
    // its way to the client is captured before and after.
    let (receiver, sender, blocks) = match way {
        Way::Down => (at_client, at_server, to_server),
        Way::Up => (at_server, at_client, to_client),
    };
    let said = selected(&receiver.sent, &receiver.received);
    for selection in selected(&sender.received, &sender.sent) {
        assert!(
            said.contains(&selection),
            "{what}: nobody said {selection:?}"
        );
    }
    Shown {
        segments: receiver.received.segments.len(),
        again: sender.sent.again,
        blocks,
    }
}

/// Has a gigabyte transferred, and compares the captures of both ends.
#[track_caller]
fn transfer(topology: &Forwarding, v6: bool, way: Way, what: &str) -> Shown {
    let target = topology.dial(v6, PORT);
    let captures = [&topology.client_end, &topology.server_end]
        .map(|end| Capture::start(end, SEGMENTS).unwrap());
    let orders = (0..STREAMS).map(|seed| Order {
        way,
        seed,
        bytes: GIGABYTE / STREAMS,
    });
    let sources: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = orders
            .map(|order| scope.spawn(move || carry_out(topology, target, order)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // The last acknowledgement.
    std::thread::sleep(Duration::from_millis(50));
    let [at_client, at_server] = captures.map(|capture| capture.stop().unwrap().whole().unwrap());
    let mut all = Shown::default();
    for source in sources {
        let what = format!("{what}, from {source}");
        let shown = compare(
            &what,
            way,
            &End::new(&at_client, source, target),
            &End::new(&at_server, target, source),
        );
        all.segments += shown.segments;
        all.again += shown.again;
        all.blocks += shown.blocks;
    }
    all
}

/// Transfers through a guarded edge with something wrong with its wire.
fn transfers(name: &str, impairment: Impairment, transfers: &[(bool, Way)]) {
    if !skip_unless_root(name) {
        return;
    }
    let topology = Forwarding::routed(ForwardingOptions::default()).unwrap();
    serve(&topology.server);
    let guard = routed::guard(&topology);
    let targets = [false, true].map(|v6| topology.dial(v6, PORT));
    routed::teach(&guard, &topology, &targets);
    let wires = [Direction::Sent, Direction::Received]
        .map(|direction| impairment.apply(&topology.client_end, direction).unwrap());
    for &(v6, way) in transfers {
        let what = format!("{name}, {way:?}, IPv{}", if v6 { 6 } else { 4 });
        let before = routed::spliced(&guard);
        let begun = Instant::now();
        let shown = transfer(&topology, v6, way, &what);
        println!("{what}: {:.1?}, {shown:?}", begun.elapsed());
        assert_eq!(routed::spliced(&guard) - before, STREAMS, "{what}");
        assert!(shown.blocks > 1000, "{what}: {shown:?}");
        assert!(
            impairment.loss_per_mille == 0 || shown.again > 1000,
            "{what}: {shown:?}"
        );
    }
    for wire in wires {
        println!("{name}: {:?}", wire.counters().unwrap());
    }
}

#[test]
fn a_gigabyte_each_way_with_loss() {
    let loss = Impairment {
        loss_per_mille: 10,
        ..Impairment::default()
    };
    let all = [
        (false, Way::Down),
        (false, Way::Up),
        (true, Way::Down),
        (true, Way::Up),
    ];
    transfers("a_gigabyte_each_way_with_loss", loss, &all);
}

#[test]
fn a_gigabyte_each_way_with_reordering() {
    let reordering = Impairment {
        reorder_per_mille: 10,
        ..Impairment::default()
    };
    let all = [(true, Way::Down), (false, Way::Up)];
    transfers("a_gigabyte_each_way_with_reordering", reordering, &all);
}
