//! Translation between the two sequence spaces of a spliced connection.
//!
//! The client knows the connection by our cookie, the server by its own initial sequence number, so
//! what differs is the server's half: its sequence numbers and timestamps on the way out, the
//! client's acknowledgements, SACK edges (RFC 2018) and timestamp echoes (RFC 7323) on the way in.
//! Windows of the server are scaled again where its scale is not the promised one. Every change
//! adds to one difference, by which the checksum is brought up to date (RFC 1624).

use crate::{
    abi::OFFER_WINDOW_SCALE,
    options::{MAX_SACK_BLOCKS, NOP_NOP_TIMESTAMPS},
    packet::{PacketMut, View, ViewMut},
    tables::LiveFlow,
    wire::{checksum, tcp},
};

const NOP_NOP_SACK: u32 = 0x01_0105;
/// Length of NOP, NOP and a timestamp option.
const TIMESTAMPS_LEN: usize = 12;

/// What is added to the numbers in a segment's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shift {
    ts_val: u32,
    ts_ecr: u32,
    sack: u32,
}

/// Translates a client's segment for the server. `at` is where its TCP header of `header_len` bytes
/// starts. `None` where it is cut short.
#[inline(always)]
pub fn inward<P: PacketMut>(
    packet: &mut P,
    at: usize,
    header_len: usize,
    flags: u16,
    flow: &LiveFlow,
) -> Option<()> {
    let delta = 0u32.wrapping_sub(flow.delta.get());
    let mut sum = 0;
    if flags & tcp::ACK != 0 {
        sum += add(packet, at + tcp::field::ACKNOWLEDGMENT, delta)?;
    }
    let shift = Shift {
        ts_val: 0,
        ts_ecr: 0u32.wrapping_sub(flow.ts_delta.get()),
        sack: delta,
    };
    sum += options(packet, at + tcp::HEADER, header_len - tcp::HEADER, shift)?;
    packet.adjust_checksum(at + tcp::field::CHECKSUM, sum)
}

/// Translates a server's segment for the client, likewise.
#[inline(always)]
pub fn outward<P: PacketMut>(
    packet: &mut P,
    at: usize,
    header_len: usize,
    flow: &LiveFlow,
) -> Option<()> {
    let mut sum = add(packet, at + tcp::field::SEQUENCE, flow.delta.get())?;
    let (from, to) = (flow.server_scale.get(), flow.promised_scale.get());
    if from != to && flow.options.get() as u32 & OFFER_WINDOW_SCALE != 0 {
        let old = packet.view(at + tcp::field::WINDOW, 2)?.u16(0);
        let new = rescale(old, from, to);
        packet.view_mut(at + tcp::field::WINDOW, 2)?.set_u16(0, new);
        sum += checksum::difference(old as u32, new as u32);
    }
    let shift = Shift {
        ts_val: flow.ts_delta.get(),
        ts_ecr: 0,
        sack: 0,
    };
    sum += options(packet, at + tcp::HEADER, header_len - tcp::HEADER, shift)?;
    packet.adjust_checksum(at + tcp::field::CHECKSUM, sum)
}

/// A window that was scaled by `from`, scaled by `to` (RFC 7323 section 2.2). Rounded down, because
/// servers drop what ends beyond their window; but one that is open stays open, by a unit of the scale.
#[inline(always)]
pub const fn rescale(window: u16, from: u8, to: u8) -> u16 {
    let (from, to) = (from & 15, to & 15);
    let bytes = (window as u32) << from;
    let scaled = bytes >> to;
    if scaled > u16::MAX as u32 {
        u16::MAX
    } else if scaled == 0 && bytes != 0 {
        1
    } else {
        scaled as u16
    }
}

/// Adds to the word at `at`; the difference that makes to an aligned checksum.
#[inline(always)]
fn add<P: PacketMut>(packet: &mut P, at: usize, by: u32) -> Option<u64> {
    if by == 0 {
        return Some(0);
    }
    let old = packet.view(at, 4)?.u32(0);
    let new = old.wrapping_add(by);
    packet.view_mut(at, 4)?.set_u32(0, new);
    Some(checksum::difference(old, new))
}

/// Shifts the options of `len` bytes (a multiple of four, at most 40) at `at`.
///
/// Segments of established connections carry timestamps, SACK blocks or both, each behind two NOPs;
/// anything else is searched for.
#[inline(always)]
fn options<P: PacketMut>(packet: &mut P, at: usize, len: usize, shift: Shift) -> Option<u64> {
    if len == 0 {
        return Some(0);
    }
    let first = packet.view(at, 4)?.u32(0);
    if first != NOP_NOP_TIMESTAMPS {
        return blocks(packet, at, len, first, shift);
    }
    let sum = add(packet, at + 4, shift.ts_val)? + add(packet, at + 8, shift.ts_ecr)?;
    if len == TIMESTAMPS_LEN {
        return Some(sum);
    }
    let next = packet.view(at + TIMESTAMPS_LEN, 4)?.u32(0);
    let shift = Shift {
        ts_val: 0,
        ts_ecr: 0,
        ..shift
    };
    // The list is searched from its beginning, of which the timestamps are done.
    if next >> 8 != NOP_NOP_SACK {
        return Some(sum + elsewhere(packet, at, len, &shift)?);
    }
    Some(
        sum + blocks(
            packet,
            at + TIMESTAMPS_LEN,
            len - TIMESTAMPS_LEN,
            next,
            shift,
        )?,
    )
}

/// Shifts SACK blocks behind two NOPs, which fill the rest of the list.
#[inline(always)]
fn blocks<P: PacketMut>(
    packet: &mut P,
    at: usize,
    len: usize,
    first: u32,
    shift: Shift,
) -> Option<u64> {
    if first >> 8 != NOP_NOP_SACK || (first & 0xff) as usize + 2 != len {
        return elsewhere(packet, at, len, &shift);
    }
    let mut sum = 0;
    for edge in 0..2 * MAX_SACK_BLOCKS as usize {
        if 4 + edge * 4 >= len {
            break;
        }
        sum += add(packet, at + 4 + edge * 4, shift.sack)?;
    }
    Some(sum)
}

/// Shifts options wherever they are, at odd offsets too. A function of its own, for the sake of the
/// stack.
#[inline(never)]
fn elsewhere<P: PacketMut>(packet: &mut P, at: usize, len: usize, shift: &Shift) -> Option<u64> {
    let places = packet.places(at, len);
    let mut sum = 0;
    if places.timestamps != 0 {
        sum += add_at(packet, at, places.timestamps, shift.ts_val)?;
        sum += add_at(packet, at, places.timestamps + 4, shift.ts_ecr)?;
    }
    if places.sack != 0 && shift.sack != 0 {
        for edge in 0..2 * MAX_SACK_BLOCKS {
            if edge >= 2 * places.sack_blocks {
                break;
            }
            sum += add_at(packet, at, places.sack + edge * 4, shift.sack)?;
        }
    }
    Some(sum)
}

/// Adds to the word `offset` bytes into the list at `at`.
#[inline(always)]
fn add_at<P: PacketMut>(packet: &mut P, at: usize, offset: u32, by: u32) -> Option<u64> {
    // Of an offset that comes from a map, the verifier must be told that it is small.
    let offset = offset as usize & 63;
    let difference = add(packet, at + offset, by)?;
    // A word at an odd offset counts 256-fold: its bytes stand in the other halves of the words that
    // are summed.
    Some(if offset & 1 == 0 {
        difference
    } else {
        difference << 8
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::packet::Frame;

    /// A TCP header with these options, padded, and data; its checksum is right (without a
    /// pseudo-header, which translation does not touch).
    fn segment(options: &[u8], data: &[u8]) -> Vec<u8> {
        let len = 20 + options.len().next_multiple_of(4);
        let mut bytes = vec![0u8; len];
        let header = tcp::Header {
            source: 1,
            destination: 2,
            sequence: 0xffff_ff00,
            acknowledgment: 0x1000,
            header_len: len as u8,
            flags: tcp::ACK,
            window: 500,
            checksum: 0,
            urgent: 0,
        };
        header.write(&mut &mut bytes[..20]);
        bytes[20..20 + options.len()].copy_from_slice(options);
        bytes.extend(data);
        let sum = checksum::finish(checksum::sum(&bytes));
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn flow(delta: u32, ts_delta: u32) -> LiveFlow {
        let flow = LiveFlow::default();
        flow.delta.set(delta);
        flow.ts_delta.set(ts_delta);
        flow
    }

    /// The options of a segment as an independent reader sees them: TSval, TSecr, SACK edges.
    fn read(bytes: &[u8]) -> (Option<(u32, u32)>, Vec<u32>) {
        let len = (bytes[12] >> 4) as usize * 4;
        let mut rest = &bytes[20..len];
        let (mut stamps, mut edges) = (None, Vec::new());
        while let Some((option, after)) = tcp::TcpOption::read(rest) {
            match option {
                tcp::TcpOption::End => break,
                tcp::TcpOption::Timestamps(val, ecr) => stamps = Some((val, ecr)),
                tcp::TcpOption::Sack(blocks) => {
                    edges = blocks
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|w| u32::from_be_bytes(*w))
                        .collect();
                }
                _ => {}
            }
            rest = after;
        }
        (stamps, edges)
    }

    /// Options in some order, with some padding before each: at even and at odd offsets.
    fn lists() -> impl Strategy<Value = Vec<u8>> {
        let nops = || 0..4usize;
        (
            nops(),
            nops(),
            any::<bool>(),
            any::<bool>(),
            any::<(u32, u32)>(),
            prop::collection::vec(any::<(u32, u32)>(), 0..=3),
            any::<bool>(),
        )
            .prop_map(|(a, b, stamps, usual, (val, ecr), blocks, swap)| {
                let (a, b) = if usual { (2, 2) } else { (a, b) };
                let mut first = vec![1u8; a];
                if stamps {
                    first.extend([8, 10]);
                    first.extend(val.to_be_bytes());
                    first.extend(ecr.to_be_bytes());
                }
                let mut second = Vec::new();
                if !blocks.is_empty() {
                    second.extend(vec![1u8; b]);
                    second.extend([5, 2 + 8 * blocks.len() as u8]);
                    for (left, right) in &blocks {
                        second.extend(left.to_be_bytes());
                        second.extend(right.to_be_bytes());
                    }
                }
                if swap {
                    [second, first].concat()
                } else {
                    [first, second].concat()
                }
            })
            .prop_filter("room for forty bytes", |list| list.len() <= 40)
    }

    proptest! {
        #[test]
        fn a_segment_there_and_back_is_the_same(
            list in lists(), data in prop::collection::vec(any::<u8>(), 0..50), delta: u32, ts_delta: u32,
        ) {
            let before = segment(&list, &data);
            let mut frame = Frame::new(&before).unwrap();
            let len = (before[12] >> 4) as usize * 4;
            inward(&mut frame, 0, len, tcp::ACK, &flow(delta, ts_delta)).unwrap();
            let after = frame.bytes().to_vec();
            prop_assert_eq!(checksum::fold(checksum::sum(&after)), 0xffff);
            let header = tcp::Header::read(&after[..20]);
            prop_assert_eq!(header.acknowledgment, 0x1000u32.wrapping_sub(delta));
            prop_assert_eq!(header.sequence, 0xffff_ff00);
            let (stamps, edges) = read(&before);
            let (new_stamps, new_edges) = read(&after);
            prop_assert_eq!(new_stamps, stamps.map(|(val, ecr)| (val, ecr.wrapping_sub(ts_delta))));
            let expected: Vec<u32> = edges.iter().map(|e| e.wrapping_sub(delta)).collect();
            prop_assert_eq!(new_edges, expected);
            prop_assert_eq!(&after[len..], &before[len..]);

            // Back again, the same way.
            let back = flow(0u32.wrapping_sub(delta), 0u32.wrapping_sub(ts_delta));
            inward(&mut frame, 0, len, tcp::ACK, &back).unwrap();
            prop_assert_eq!(checksum::fold(checksum::sum(frame.bytes())), 0xffff);
            let mut again = frame.bytes().to_vec();
            again[16..18].copy_from_slice(&before[16..18]);
            prop_assert_eq!(again, before);
        }

        #[test]
        fn a_server_s_segment(list in lists(), data in prop::collection::vec(any::<u8>(), 0..50),
                              delta: u32, ts_delta: u32, from in 0u8..15, to in 0u8..15) {
            let before = segment(&list, &data);
            let mut frame = Frame::new(&before).unwrap();
            let len = (before[12] >> 4) as usize * 4;
            let flow = flow(delta, ts_delta);
            flow.options.set(OFFER_WINDOW_SCALE as u8);
            flow.server_scale.set(from);
            flow.promised_scale.set(to);
            outward(&mut frame, 0, len, &flow).unwrap();
            let after = frame.bytes();
            prop_assert_eq!(checksum::fold(checksum::sum(after)), 0xffff);
            let header = tcp::Header::read(&after[..20]);
            prop_assert_eq!(header.sequence, 0xffff_ff00u32.wrapping_add(delta));
            prop_assert_eq!(header.acknowledgment, 0x1000);
            let (stamps, edges) = read(&before);
            let (new_stamps, new_edges) = read(after);
            prop_assert_eq!(new_stamps, stamps.map(|(val, ecr)| (val.wrapping_add(ts_delta), ecr)));
            prop_assert_eq!(new_edges, edges);
        }

        #[test]
        fn windows_stay_open_and_do_not_grow(window: u16, from in 0u8..15, to in 0u8..15) {
            let scaled = rescale(window, from, to);
            let (old, new) = ((window as u64) << from, (scaled as u64) << to);
            prop_assert_eq!(scaled == 0, window == 0);
            prop_assert!(new <= old || scaled == 1);
            prop_assert!(new + (1 << to) > old || scaled == u16::MAX);
        }
    }
}
