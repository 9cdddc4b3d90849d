//! The catalogue's frames, changed at random: host and kernel must agree on every one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use synguard_common::{
    abi::{AddressEntry, MODE_ALWAYS, MODE_OBSERVE, SERVICE_NONE, ServiceConfig},
    tables::Verdict,
    verdict::{Action, Reason},
};
use synguard_lab::{
    fixtures::{
        self, KEYS, Lane, OTHER, Present, PresentKind, SILENT, SUBJECT, Side as _, WEB,
        check_answer,
    },
    frame::flags,
    host::{HostTables, SERVICE},
    skip_unless_root,
};

use crate::{corpus, kernel::KernelSide};

/// Frames in all, about ten seconds' worth.
const FRAMES: u32 = 300_000;
/// Fewer where they take longer than this.
const LIMIT: Duration = Duration::from_secs(20);
/// After so many, half-open tables and states begin anew.
const ROUND: u32 = 5_000;
/// Longest frame: what fits the first buffer of a test run, with the answer's room to grow.
const LONGEST: usize = 3_000;
/// Another run is another seed away.
const SEED_VARIABLE: &str = "SYNGUARD_FUZZ_SEED";
const SEED: u64 = 0x5379_6e47_7561_7264;

const MTU: u16 = 1500;
/// Port of a calm service, on which something listens.
pub const CALM_PORT: u16 = 8080;
/// Port of an observed one, likewise.
pub const OBSERVED_PORT: u16 = 8443;
const EXCEPTED_PORT: u16 = 22;
/// Client port of the one connection that really exists.
const ACQUAINTED_PORT: u16 = 19_990;
const OBSERVED: u16 = 900;
/// The service whose servers are somewhere behind.
pub const PROXIED: u16 = 901;
/// The one of which only what arrives is seen.
pub const RESET: u16 = 902;

/// Everything at once: [`WEB`] and the rest guarded, one port calm, one observed, one excepted.
fn world() -> HostTables {
    let mut tables = HostTables::default()
        .half_open_room(fixtures::HALF_OPEN_ROOM as usize)
        .service(
            SUBJECT,
            ServiceConfig {
                mode: MODE_ALWAYS,
                ..SERVICE
            },
        )
        .service(
            OTHER,
            ServiceConfig {
                high: 40,
                ..SERVICE
            },
        )
        .service(
            OBSERVED,
            ServiceConfig {
                mode: MODE_OBSERVE,
                high: 3,
                ..SERVICE
            },
        )
        .port(1, CALM_PORT, OTHER)
        .port(1, OBSERVED_PORT, OBSERVED)
        .port(1, EXCEPTED_PORT, SERVICE_NONE);
    for epoch in KEYS {
        tables = tables.key(fixtures::key_of(epoch));
    }
    for kind in [Lane::KINDS[0], Lane::KINDS[3]] {
        let lane = Lane::new(kind, 0);
        let entry = AddressEntry {
            ports_id: 1,
            service: SUBJECT,
            mtu: MTU,
        };
        tables = tables
            .address(lane.server_ip(), entry)
            .listener(lane.server())
            .listener(lane.server_at(CALM_PORT))
            .listener(lane.server_at(OBSERVED_PORT));
    }
    tables
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough randomness for choosing, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Where headers start, as far as the frame is what it was built as.
fn layout(frame: &[u8]) -> (usize, usize) {
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    let ip = at + 2;
    let tcp = match frame.get(ip).map(|byte| byte >> 4) {
        Some(6) => ip + 40,
        _ => ip + usize::from(frame.get(ip).map_or(5, |byte| byte & 15)) * 4,
    };
    (ip, tcp)
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Makes a frame one of the connection that really exists.
fn become_acquaintance(frame: &mut [u8]) {
    let (ip, tcp) = layout(frame);
    put(frame, tcp, &ACQUAINTED_PORT.to_be_bytes());
    match Lane::new(Lane::KINDS[0], 0).acquaintance().ip() {
        IpAddr::V4(client) if frame.get(ip).is_some_and(|byte| byte >> 4 == 4) => {
            put(frame, ip + 12, &client.octets());
        }
        _ => {
            if let IpAddr::V6(client) = Lane::new(Lane::KINDS[3], 0).acquaintance().ip() {
                put(frame, ip + 8, &client.octets());
            }
        }
    }
}

/// What the same client might send next: what a connection is made of comes in sequence.
fn successor(last: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = last.to_vec();
    let (_, tcp) = layout(&frame);
    if let Some(place) = frame.get_mut(tcp + 4..tcp + 8) {
        let sequence = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
        let next = sequence.wrapping_add(random.of(&[0, 1, 1, 2, 1461, 65_536]));
        place.copy_from_slice(&next.to_be_bytes());
    }
    let flags = random.of(&[flags::SYN, flags::ACK, flags::RST, flags::FIN | flags::ACK]);
    put(&mut frame, tcp + 13, &[flags]);
    frame
}

/// One change.
fn mutate(frame: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>]) {
    let (ip, tcp) = layout(frame);
    let len = frame.len();
    match random.below(14) {
        // Bits and bytes anywhere among the headers.
        0 => {
            let at = random.below(len.min(tcp + 60));
            frame[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = random.below(len.min(tcp + 60));
            frame[at] = random.of(&[0, 1, 2, 3, 4, 5, 6, 8, 34, 44, 60, 0x7f, 0x80, 0xfe, 0xff]);
        }
        2 => {
            let at = random.below(len.min(tcp + 60));
            let value = random.next() as u16;
            let value = random.of(&[0, 1, value, 0x7fff, 0x8000, 0xffff]);
            put(frame, at, &value.to_be_bytes());
        }
        // Lengths.
        3 => frame.truncate(14 + random.below(len - 13)),
        4 => frame.resize((len + random.below(200)).min(LONGEST), random.next() as u8),
        5 => {
            let length = (len - ip.min(len)) as u16;
            let length = length
                .wrapping_add(random.below(41) as u16)
                .wrapping_sub(20);
            let at = if frame.get(ip).is_some_and(|byte| byte >> 4 == 6) {
                4
            } else {
                2
            };
            put(frame, ip + at, &length.to_be_bytes());
        }
        6 => put(frame, tcp + 12, &[(random.next() as u8) & 0xf0]),
        // TCP.
        7 => put(frame, tcp + 13, &[random.next() as u8]),
        8 => {
            let port = random.of(&[WEB, WEB, SILENT, CALM_PORT, OBSERVED_PORT, EXCEPTED_PORT]);
            put(frame, tcp + 2, &port.to_be_bytes());
        }
        9 => {
            let mut options = [0; 40];
            for byte in &mut options {
                *byte = random.of(&[0, 1, 1, 2, 3, 4, 5, 8, 10, 2, 4, 3, 253]);
            }
            put(frame, tcp + 12, &[0xf0]);
            let end = len.min(tcp + 60);
            if tcp + 20 < end {
                put(frame, tcp + 20, &options[..end - tcp - 20]);
            }
        }
        10 => {
            // A plausible option somewhere.
            let at = tcp + 20 + random.below(20);
            let choices: [&[u8]; 6] = [
                &[2, 4, 5, 0xb4],
                &[3, 3, 9],
                &[4, 2],
                &[8, 10, 1, 2, 3, 4, 0, 0, 0, 0],
                &[1, 1],
                &[0],
            ];
            put(frame, at, random.of(&choices));
        }
        // IP.
        11 => put(frame, ip, &[random.next() as u8]),
        12 => {
            let at = if frame.get(ip).is_some_and(|byte| byte >> 4 == 6) {
                6
            } else {
                9
            };
            let next = random.of(&[0, 6, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 139, 140]);
            put(frame, ip + at, &[next]);
        }
        // The end of another frame.
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let at = random.below(len.min(other.len()));
            frame.truncate(at);
            frame.extend_from_slice(&other[at..]);
        }
    }
}

#[test]
fn host_and_kernel_agree_on_any_frame() {
    if !skip_unless_root("host and kernel agree on any frame") {
        return;
    }
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => SEED,
    };
    let mut side = KernelSide::new().unwrap();
    side.set_up(world()).unwrap();
    // One connection that frames may hit upon.
    for kind in [Lane::KINDS[0], Lane::KINDS[3]] {
        let lane = Lane::new(kind, ACQUAINTED_PORT);
        side.open(Present {
            kind: PresentKind::Connection,
            client: lane.acquaintance(),
            server: lane.server(),
        })
        .unwrap();
    }
    let corpus: Vec<_> = corpus()
        .into_iter()
        .filter(|frame| frame.len() <= LONGEST)
        .collect();
    let mut random = Random(seed);
    let mut reasons = BTreeMap::new();
    let mut last = corpus[0].clone();
    let mut done = 0;
    let begin = Instant::now();
    for number in 0..FRAMES {
        if begin.elapsed() > LIMIT {
            assert!(number > FRAMES / 5, "only {number} frames in {LIMIT:?}");
            break;
        }
        done = number + 1;
        if number.is_multiple_of(ROUND) {
            side.finish().unwrap();
            side.reset_states().unwrap();
            if (number / ROUND).is_multiple_of(2) {
                side.guard(SERVICE_NONE).unwrap();
            }
            // The clock must not run away from the keys.
            side.set_wall(fixtures::wall(0, Duration::from_secs(1)))
                .unwrap();
        }
        let mut frame = corpus[random.below(corpus.len())].clone();
        if random.chance(3) {
            become_acquaintance(&mut frame);
        }
        if random.chance(15) {
            frame = successor(&last, &mut random);
        }
        for _ in 0..random.below(5) {
            mutate(&mut frame, &mut random, &corpus);
        }
        frame.resize(frame.len().clamp(14, LONGEST), 0);
        let reason = run(&mut side, &frame)
            .with_context(|| format!("seed {seed}, frame {number}: {frame:02x?}"))
            .unwrap();
        *reasons.entry(reason.label()).or_insert(0u32) += 1;
        if random.chance(10) {
            let verdicts = others(&mut side, &frame, &mut random)
                .with_context(|| format!("seed {seed}, behind frame {number}: {frame:02x?}"))
                .unwrap();
            for verdict in verdicts.into_iter().flatten() {
                *reasons.entry(verdict.reason.label()).or_insert(0u32) += 1;
            }
        }
        side.settle();
        last = frame;
    }
    side.finish().unwrap();
    println!("{done} frames in {:?}: {reasons:?}", begin.elapsed());
    // A fuzzer that reaches nothing finds nothing.
    for reason in [
        Reason::Challenged,
        Reason::CookieValid,
        Reason::AckInvalid,
        Reason::BadTcp,
        Reason::BadExtension,
        Reason::Fragment,
        Reason::Established,
        Reason::SynTracked,
        Reason::SynCrossed,
        Reason::SynAckSeen,
        Reason::ServerReset,
        Reason::Admitted,
        Reason::AdmitInvalid,
        Reason::HalfOpenReset,
        Reason::JustAdmitted,
        Reason::NoListener,
        Reason::Unprotected,
        Reason::NotTcp,
    ] {
        assert!(
            reasons.contains_key(reason.label()),
            "{} is never reached",
            reason.label()
        );
    }
}

/// The TC programs on a frame and on an answer to it; both sides are compared there.
fn others(
    side: &mut KernelSide,
    frame: &[u8],
    random: &mut Random,
) -> Result<[Option<Verdict>; 2]> {
    // The kernel makes no skb of less than an IP header, which stands alone once tags are off.
    if frame.len() < layout(frame).0 + 40 {
        return Ok([None, None]);
    }
    let admitted = side.admit(frame)?;
    Ok([admitted, side.egress(&reply(frame, random))?.verdict])
}

/// What a server might send back.
fn reply(frame: &[u8], random: &mut Random) -> Vec<u8> {
    let mut reply = frame.to_vec();
    let (ip, tcp) = layout(frame);
    let (at, width) = match frame[ip] >> 4 {
        6 => (ip + 8, 16),
        _ => (ip + 12, 4),
    };
    for (at, width) in [(at, width), (tcp, 2)] {
        if let Some(both) = frame.get(at..at + 2 * width) {
            put(&mut reply, at, &both[width..]);
            put(&mut reply, at + width, &both[..width]);
        }
    }
    if let Some(sequence) = frame.get(tcp + 4..tcp + 8) {
        let isn = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
        let acknowledgment = isn.wrapping_add(random.of(&[0, 1, 1, 1, 2]));
        put(&mut reply, tcp + 8, &acknowledgment.to_be_bytes());
        put(&mut reply, tcp + 4, &0x5eed_u32.to_be_bytes());
    }
    let flags = random.of(&[
        flags::SYN | flags::ACK,
        flags::RST | flags::ACK,
        flags::RST,
        flags::ACK,
    ]);
    put(&mut reply, tcp + 13, &[flags]);
    reply
}

/// One frame on both sides, and the answer read.
fn run(side: &mut KernelSide, frame: &[u8]) -> Result<Reason> {
    let outcome = side.both(frame)?;
    if outcome.action == Action::Answer {
        check_answer(frame, &outcome.frame, &SERVICE, MTU).context("the answer")?;
    }
    Ok(outcome.verdict.reason)
}
