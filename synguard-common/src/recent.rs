//! Tuples admitted in the last 100 ms.
//!
//! When the client's ACK and its first data arrive in one NAPI batch, both are looked at before TCP
//! has seen either. Both would be admitted, two children made, and the connection stall for 200 ms;
//! the segments after them have no cookie to show and would be dropped. So a tuple with a valid
//! cookie is remembered for a moment: its further segments pass, and only one of them is given a
//! socket.
//!
//! A tuple may be used again sooner than that, by a client that is done in a few milliseconds; so
//! what is claimed is not the tuple but the attempt, known by the client's initial sequence number.
//!
//! The table is an array of small buckets found by a hash of the tuple, so that nothing is
//! allocated. A false match of a tuple (one in 2^24 for each entry alive in the bucket) lets a
//! stray segment pass to the kernel, which has no connection for it. Updates are not atomic:
//! segments of one flow arrive on one CPU, and a lost entry costs a retransmission.
//!
//! ```text
//!   63              40 39               24   23   22              0
//!  +------------------+-------------------+------+----------------+
//!  |  hash of tuple   |  hash of the ISN  | claim | time, 2^20 ns |
//!  +------------------+-------------------+------+----------------+
//! ```

use crate::{
    abi::{ADMISSION_BUCKETS, ADMISSION_WAYS},
    flow::{Flow, Net},
    tables::Bucket,
};

/// How long an entry counts, in units of 2^20 ns: 100 ms.
const FRESH: u64 = 96;
const TIME_MASK: u64 = (1 << 23) - 1;
/// A socket was given to a segment of this attempt.
const CLAIMED: u64 = 1 << 23;
const ATTEMPT_AT: u32 = 24;
const TUPLE_AT: u32 = 40;

/// Where a tuple lies, and what it is recognised by there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket.
    pub bucket: u32,
    /// 24 bits of hash.
    tag: u64,
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
            tag: hash & 0xff_ffff,
        }
    }

    /// What an entry for the attempt with this initial sequence number begins with: all but claim
    /// and time.
    #[inline(always)]
    const fn attempt(self, isn: u32) -> u64 {
        let isn = (isn.wrapping_mul(0x9e37_79b1) >> 16) as u64;
        (self.tag << TUPLE_AT) | (isn << ATTEMPT_AT)
    }
}

#[inline(always)]
const fn clock(now: u64) -> u64 {
    (now >> 20) & TIME_MASK
}

#[inline(always)]
const fn age(entry: u64, now: u64) -> u64 {
    now.wrapping_sub(entry) & TIME_MASK
}

/// The way whose entry counts still and begins with `wanted`, down to bit `down_to`.
#[inline(always)]
fn find<B: Bucket>(bucket: B, wanted: u64, down_to: u32, now: u64) -> Option<usize> {
    let mut way = 0;
    while way < ADMISSION_WAYS {
        let entry = bucket.get(way);
        if entry != 0 && entry >> down_to == wanted >> down_to && age(entry, now) < FRESH {
            return Some(way);
        }
        way += 1;
    }
    None
}

/// Writes an entry over an earlier attempt of its tuple, over one that was never written, or over
/// the oldest.
#[inline(always)]
fn put<B: Bucket>(bucket: B, entry: u64, now: u64) {
    let mut chosen = 0;
    let mut chosen_age = 0;
    let mut way = 0;
    while way < ADMISSION_WAYS {
        let there = bucket.get(way);
        let age = if there == 0 || there >> TUPLE_AT == entry >> TUPLE_AT {
            TIME_MASK
        } else {
            age(there, now)
        };
        if age >= chosen_age {
            chosen = way;
            chosen_age = age;
        }
        way += 1;
    }
    bucket.set(chosen, entry);
}

/// Remembers that a segment of the attempt with `isn` had a valid cookie at `now` (monotonic ns).
#[inline(always)]
pub fn record<B: Bucket>(bucket: B, place: Place, isn: u32, now: u64) {
    let now = clock(now);
    let attempt = place.attempt(isn);
    if find(bucket, attempt, ATTEMPT_AT, now).is_none() {
        put(bucket, attempt | now, now);
    }
}

/// Whether a segment of the tuple had a valid cookie in the last 100 ms.
#[inline(always)]
pub fn seen<B: Bucket>(bucket: B, place: Place, now: u64) -> bool {
    find(bucket, place.tag << TUPLE_AT, TUPLE_AT, clock(now)).is_some()
}

/// Takes the right to give a socket to a segment of the attempt with `isn`; false where another
/// segment of it had that in the last 100 ms.
#[inline(always)]
pub fn claim<B: Bucket>(bucket: B, place: Place, isn: u32, now: u64) -> bool {
    let now = clock(now);
    let attempt = place.attempt(isn);
    let entry = attempt | CLAIMED | now;
    match find(bucket, attempt, ATTEMPT_AT, now) {
        Some(way) => {
            if bucket.get(way) & CLAIMED != 0 {
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
    const ISN: u32 = 77;

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
        record(bucket, place(1), ISN, now);
        assert!(seen(bucket, place(1), now + 90 * MS));
        assert!(claim(bucket, place(1), ISN, now + MS));
        assert!(!claim(bucket, place(1), ISN, now + 2 * MS));
        // Recording again does not give the right back.
        record(bucket, place(1), ISN, now + 3 * MS);
        assert!(!claim(bucket, place(1), ISN, now + 4 * MS));
        // After 100 ms a new connection may have the tuple.
        assert!(!seen(bucket, place(1), now + 103 * MS));
        assert!(claim(bucket, place(1), ISN, now + 103 * MS));
    }

    #[test]
    fn the_next_attempt_on_a_tuple_is_another() {
        let bucket = &Default::default();
        record(bucket, place(1), ISN, MS);
        assert!(claim(bucket, place(1), ISN, 2 * MS));
        // The client is done and opens the next connection from the same port.
        record(bucket, place(1), ISN + 1, 20 * MS);
        assert!(claim(bucket, place(1), ISN + 1, 21 * MS));
        assert!(!claim(bucket, place(1), ISN + 1, 22 * MS));
        assert!(seen(bucket, place(1), 23 * MS));
        // One entry serves for the tuple.
        assert_eq!(bucket.iter().filter(|way| way.get() != 0).count(), 1);
    }

    #[test]
    fn a_claim_needs_no_record() {
        let bucket = &Default::default();
        assert!(claim(bucket, place(1), ISN, MS));
        assert!(!claim(bucket, place(1), ISN, 2 * MS));
    }

    #[test]
    fn the_oldest_gives_way() {
        let bucket = &Default::default();
        for port in 1..=4 {
            record(bucket, place(port), ISN, port as u64 * 10 * MS);
        }
        record(bucket, place(5), ISN, 50 * MS);
        assert!(!seen(bucket, place(1), 50 * MS));
        for port in 2..=5 {
            assert!(seen(bucket, place(port), 50 * MS), "{port}");
        }
    }

    #[test]
    fn the_clock_may_wrap() {
        let bucket = &Default::default();
        let wrap = (TIME_MASK + 1) << 20;
        record(bucket, place(1), ISN, wrap - MS);
        assert!(seen(bucket, place(1), wrap + MS));
        assert!(!seen(bucket, place(1), wrap + 200 * MS));
    }
}
