//! Tuples admitted in the last 100 ms.
//!
//! When the client's ACK and its first data arrive in one NAPI batch, both are looked at before TCP
//! has seen either. Both would be admitted, two children made, and the connection stall for 200 ms;
//! the segments after them have no cookie to show and would be dropped. So a tuple with a valid
//! cookie is remembered for a moment: its further segments pass, and only one of them is given a
//! socket.
//!
//! The table is an array of small buckets found by a hash of the tuple, so that nothing is
//! allocated. An entry holds 32 hash bits and the time; a false match (one in 2^32 for each entry
//! alive) lets a stray segment pass to the kernel, which then has no connection for it. Updates are
//! not atomic: segments of one flow arrive on one CPU, and a lost entry costs a retransmission.

use crate::{
    abi::{ADMISSION_BUCKETS, ADMISSION_WAYS},
    flow::{Flow, Net},
    tables::Bucket,
};

/// How long an entry counts, in units of 2^20 ns: 100 ms.
const FRESH: u32 = 96;
/// The clock's bits within an entry.
const TIME_MASK: u32 = 0x7fff_ffff;
/// A socket was given to a segment of this tuple.
const CLAIMED: u32 = 1 << 31;

/// Where a tuple lies, and what it is recognised by there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket.
    pub bucket: u32,
    tag: u32,
}

impl Place {
    /// The place of a flow. The hash is keyed so that nobody can aim at a bucket, and cheap: it
    /// guards nothing.
    #[inline(always)]
    pub fn of<N: Net>(flow: Flow<N>, seed: u64) -> Self {
        let ports = ((flow.client_port as u64) << 16) | flow.server_port as u64;
        let mut hash = (flow.net.mix() ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        hash = (hash ^ ports ^ seed.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
        hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self {
            bucket: (hash >> 40) as u32 & (ADMISSION_BUCKETS - 1),
            tag: hash as u32,
        }
    }
}

#[inline(always)]
const fn clock(now: u64) -> u32 {
    (now >> 20) as u32 & TIME_MASK
}

#[inline(always)]
const fn fresh(entry: u64, now: u32) -> bool {
    entry != 0 && now.wrapping_sub(entry as u32) & TIME_MASK < FRESH
}

/// The way of a tuple that was recorded lately.
#[inline(always)]
fn find<B: Bucket>(bucket: B, place: Place, now: u32) -> Option<usize> {
    let mut way = 0;
    while way < ADMISSION_WAYS {
        let entry = bucket.get(way);
        if (entry >> 32) as u32 == place.tag && fresh(entry, now) {
            return Some(way);
        }
        way += 1;
    }
    None
}

/// Writes an entry over one that no longer counts, or over the oldest.
#[inline(always)]
fn put<B: Bucket>(bucket: B, entry: u64, now: u32) {
    let mut oldest = 0;
    let mut oldest_age = 0;
    let mut way = 0;
    while way < ADMISSION_WAYS {
        let there = bucket.get(way);
        let age = if there == 0 {
            TIME_MASK
        } else {
            now.wrapping_sub(there as u32) & TIME_MASK
        };
        if age >= oldest_age {
            oldest = way;
            oldest_age = age;
        }
        way += 1;
    }
    bucket.set(oldest, entry);
}

/// Remembers that a segment of the tuple had a valid cookie at `now` (monotonic ns).
#[inline(always)]
pub fn record<B: Bucket>(bucket: B, place: Place, now: u64) {
    let now = clock(now);
    if find(bucket, place, now).is_none() {
        put(bucket, ((place.tag as u64) << 32) | now as u64, now);
    }
}

/// Whether a segment of the tuple had a valid cookie in the last 100 ms.
#[inline(always)]
pub fn seen<B: Bucket>(bucket: B, place: Place, now: u64) -> bool {
    find(bucket, place, clock(now)).is_some()
}

/// Takes the right to give a socket to a segment of the tuple; false where another segment had it
/// in the last 100 ms.
#[inline(always)]
pub fn claim<B: Bucket>(bucket: B, place: Place, now: u64) -> bool {
    let now = clock(now);
    let entry = ((place.tag as u64) << 32) | (CLAIMED | now) as u64;
    match find(bucket, place, now) {
        Some(way) => {
            if bucket.get(way) as u32 & CLAIMED != 0 {
                return false;
            }
            bucket.set(way, entry);
        }
        None => put(bucket, entry, now),
    }
    true
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::flow::V4;

    const MS: u64 = 1_000_000;

    impl Bucket for &[Cell<u64>; ADMISSION_WAYS] {
        fn get(self, way: usize) -> u64 {
            self[way].get()
        }
        fn set(self, way: usize, value: u64) {
            self[way].set(value);
        }
    }

    fn place(client_port: u16) -> Place {
        Place::of(
            Flow {
                net: V4 {
                    client: 1,
                    server: 2,
                },
                client_port,
                server_port: 80,
            },
            99,
        )
    }

    #[test]
    fn only_one_segment_is_given_a_socket() {
        let bucket = &Default::default();
        let now = 5_000_000 * MS;
        assert!(!seen(bucket, place(1), now));
        record(bucket, place(1), now);
        assert!(seen(bucket, place(1), now + 90 * MS));
        assert!(claim(bucket, place(1), now + MS));
        assert!(!claim(bucket, place(1), now + 2 * MS));
        // Recording again does not give the right back.
        record(bucket, place(1), now + 3 * MS);
        assert!(!claim(bucket, place(1), now + 4 * MS));
        // After 100 ms a new connection may have the tuple.
        assert!(!seen(bucket, place(1), now + 103 * MS));
        assert!(claim(bucket, place(1), now + 103 * MS));
    }

    #[test]
    fn a_claim_needs_no_record() {
        let bucket = &Default::default();
        assert!(claim(bucket, place(1), MS));
        assert!(!claim(bucket, place(1), 2 * MS));
    }

    #[test]
    fn the_oldest_gives_way() {
        let bucket = &Default::default();
        for port in 1..=4 {
            record(bucket, place(port), port as u64 * 10 * MS);
        }
        record(bucket, place(5), 50 * MS);
        assert!(!seen(bucket, place(1), 50 * MS));
        for port in 2..=5 {
            assert!(seen(bucket, place(port), 50 * MS), "{port}");
        }
    }

    #[test]
    fn the_clock_may_wrap() {
        let bucket = &Default::default();
        let wrap = (TIME_MASK as u64 + 1) << 20;
        record(bucket, place(1), wrap - MS);
        assert!(seen(bucket, place(1), wrap + MS));
        assert!(!seen(bucket, place(1), wrap + 200 * MS));
    }
}
