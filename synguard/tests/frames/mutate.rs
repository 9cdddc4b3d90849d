//! Changes to frames, at random: what the fuzzer makes of the catalogue's.

use std::net::IpAddr;

use synguard_lab::{
    fixtures::{Lane, SILENT, WEB, Way},
    frame::flags,
};

use crate::fuzz::{ACQUAINTED_PORT, CALM_PORT, EXCEPTED_PORT, LONGEST, OBSERVED_PORT};

/// SplitMix64 (Steele, Lea and Flood, 2014): enough randomness for choosing, the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Where headers start, as far as the frame is what it was built as.
pub fn layout(frame: &[u8]) -> (usize, usize) {
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
pub fn become_acquaintance(frame: &mut [u8]) {
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
pub fn successor(last: &[u8], random: &mut Random) -> Vec<u8> {
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
pub fn mutate(frame: &mut Vec<u8>, random: &mut Random, corpus: &[(Way, Vec<u8>)]) {
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
            let (_, other) = &corpus[random.below(corpus.len())];
            let at = random.below(len.min(other.len()));
            frame.truncate(at);
            frame.extend_from_slice(&other[at..]);
        }
    }
}

/// What a server might send back.
pub fn reply(frame: &[u8], random: &mut Random) -> Vec<u8> {
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
