//! The table of flows: an array of buckets of eight ways, found by a hash of the tuple.
//!
//! The kernel's own hash maps would do, but a lookup in them is a chain of calls (41 ns where a
//! SipHash takes 22) and an insertion into a full LRU map takes half a microsecond. An array is
//! looked up by a few instructions of the program itself, and room is made by choosing the way that
//! was silent for longest.
//!
//! Each tuple has two buckets and goes where more ways are free, so that the table is filled to
//! three quarters before a tuple finds both full ("the power of two choices"); it then takes the place
//! of the flow that was longest without a packet.
//!
//! A way is taken by exchanging its tag, so that of two CPUs one gets it. Its state stays 0 until
//! its new owner has filled it in: nobody sees half a flow. That a way is given to another tuple
//! while a packet of its last one is being looked at costs at most that packet.

use crate::{
    abi::{FLOW_WAYS, Tuple},
    tables::{LiveBucket, LiveFlow, Tables},
};

/// Tag of a way that is free.
pub const FREE: u32 = 0;
/// Tag of a way between two owners.
const BUSY: u32 = 1;

/// Where a tuple lies, and what it is recognised by there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its buckets, as fractions of the table: see [`index`].
    buckets: [u32; 2],
    /// Neither [`FREE`] nor busy.
    tag: u32,
}

impl Place {
    /// The place of a tuple. The hash is keyed so that nobody can aim at a bucket: every round
    /// multiplies what depends on the seed.
    #[inline(always)]
    pub fn of(tuple: &Tuple, seed: u64) -> Self {
        const K: u64 = 0x9e37_79b9_7f4a_7c15;
        const L: u64 = 0xd6e8_feb8_6659_fd93;
        let words = words(tuple);
        // Two lanes, because a multiplication is slow to come and cheap beside another.
        let mut a = (words[1] ^ seed).wrapping_mul(K);
        let mut b = (words[3] ^ seed.rotate_left(32)).wrapping_mul(L);
        a = (a ^ (a >> 32) ^ words[0]).wrapping_mul(L);
        b = (b ^ (b >> 32) ^ words[2]).wrapping_mul(K);
        a = (a ^ (a >> 29) ^ words[4]).wrapping_mul(K);
        let mut hash = a ^ (b >> 31) ^ b;
        hash = (hash ^ (hash >> 32)).wrapping_mul(L);
        Self {
            buckets: [(hash >> 32) as u32, (hash.wrapping_mul(K) >> 32) as u32],
            tag: (hash as u32) | 2,
        }
    }
}

impl Place {
    /// Its two buckets in a table of so many.
    pub const fn buckets(&self, buckets: u32) -> [u32; 2] {
        [
            index(self.buckets[0], buckets),
            index(self.buckets[1], buckets),
        ]
    }

    /// What its way is marked with.
    pub const fn tag(&self) -> u32 {
        self.tag
    }
}

/// The bucket at `fraction` (of 2^32) of a table of so many: a multiplication, for a number that
/// need be no power of two.
#[inline(always)]
pub const fn index(fraction: u32, buckets: u32) -> u32 {
    ((fraction as u64 * buckets as u64) >> 32) as u32
}

/// Buckets of a table for `flows` flows: so many that it is three quarters full with them, at least
/// one.
pub const fn buckets_for(flows: u32) -> u32 {
    let buckets = (flows as u64 * 4).div_ceil(3 * FLOW_WAYS as u64);
    if buckets == 0 { 1 } else { buckets as u32 }
}

/// Flows for which [`buckets_for`] makes this many buckets.
pub const fn flows_for(buckets: u32) -> u32 {
    buckets.saturating_mul(3 * FLOW_WAYS as u32 / 4)
}

const _: () = assert!(buckets_for(flows_for(1)) == 1 && buckets_for(flows_for(43_691)) == 43_691);

/// A tuple as words, in the order in which they lie in memory.
#[inline(always)]
fn words(tuple: &Tuple) -> [u64; 5] {
    let (client, server) = (&tuple.client.0, &tuple.server.0);
    [
        word(client, 0),
        word(client, 8),
        word(server, 0),
        word(server, 8),
        tuple.client_port as u64 | ((tuple.server_port as u64) << 16),
    ]
}

#[inline(always)]
fn word(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from_ne_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
        bytes[at + 4],
        bytes[at + 5],
        bytes[at + 6],
        bytes[at + 7],
    ])
}

/// The way of a bucket that has the tuple, if one has.
#[inline(always)]
fn way_of(bucket: &LiveBucket, tag: u32, words: &[u64; 5]) -> Option<usize> {
    let mut way = 0;
    while way < FLOW_WAYS {
        if bucket.tags[way].get() == tag {
            let key = &bucket.slots[way].key;
            if key[4].get() == words[4]
                && key[1].get() == words[1]
                && key[3].get() == words[3]
                && key[0].get() == words[0]
                && key[2].get() == words[2]
            {
                return Some(way);
            }
        }
        way += 1;
    }
    None
}

/// The flow of a tuple.
#[inline(always)]
pub fn find<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<&'t LiveFlow> {
    let place = Place::of(tuple, tables.seed());
    let words = words(tuple);
    let live = either(tables, place, &words)?;
    (live.state.get() != 0).then_some(live)
}

/// The flow in either bucket.
#[inline(always)]
fn either<'t, T: Tables>(tables: &'t T, place: Place, words: &[u64; 5]) -> Option<&'t LiveFlow> {
    let [first, second] = place.buckets;
    if let Some(live) = slot(tables, first, place.tag, words) {
        return Some(live);
    }
    slot(tables, second, place.tag, words)
}

#[inline(always)]
fn slot<'t, T: Tables>(
    tables: &'t T,
    index: u32,
    tag: u32,
    words: &[u64; 5],
) -> Option<&'t LiveFlow> {
    let bucket = tables.flow_bucket(index)?;
    let way = way_of(bucket, tag, words)?;
    // The verifier is to see one way, not to go on for each of eight.
    let way = way.wrapping_add(tables.zero()) & (FLOW_WAYS - 1);
    Some(&bucket.slots[way].flow)
}

/// A way for a tuple: the one it has, or a new one, whose key is in place and whose state is 0. The
/// caller fills it in, and its state last. `None` where another CPU is at the same way.
#[inline(always)]
pub fn enter<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<&'t LiveFlow> {
    match look(tables, tuple) {
        // Another CPU is filling it in: not to be taken from it, or two connections would mix.
        Some(live) if live.state.get() == 0 => None,
        Some(live) => {
            live.state.set(0);
            Some(live)
        }
        None => claim(tables, tuple),
    }
}

// Functions of their own, one after the other, for the sake of the stack.

#[inline(never)]
fn look<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<&'t LiveFlow> {
    either(tables, Place::of(tuple, tables.seed()), &words(tuple))
}

/// A way that is free, or that another tuple must leave.
#[inline(never)]
fn claim<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<&'t LiveFlow> {
    let place = Place::of(tuple, tables.seed());
    let [first, second] = place.buckets;
    let (mut here, mut there) = (space(tables, first)?, space(tables, second)?);
    if (here | there) >> WAY_BITS == 0 {
        // The times lie with the flows, not with the tags: not looked at where there is space.
        (here, there) = (silence(tables, first)?, silence(tables, second)?);
    }
    let (index, best) = if here >= there {
        (first, here)
    } else {
        (second, there)
    };
    let bucket = tables.flow_bucket(index)?;
    let way = best as usize & (FLOW_WAYS - 1);
    let (tag, slot) = (&bucket.tags[way], &bucket.slots[way]);
    let old = tag.get();
    if old == BUSY || !tables.exchange(tag, old, BUSY) {
        return None;
    }
    slot.flow.state.set(0);
    slot.flow.seen_at.set(tables.tick());
    for (cell, word) in slot.key.iter().zip(words(tuple)) {
        cell.set(word);
    }
    tag.set(place.tag);
    tables.count_flow(old != FREE);
    Some(&slot.flow)
}

/// How many ways of a bucket are free, above the number of one of them.
///
/// Without branches, which the verifier would follow in every combination.
#[inline(always)]
fn space<T: Tables>(tables: &T, fraction: u32) -> Option<u64> {
    let bucket = tables.flow_bucket(fraction)?;
    let (mut free, mut chosen) = (0, 0);
    for way in 0..FLOW_WAYS {
        // All ones where the tag is 0: the borrow of `tag - 1`.
        let tag = bucket.tags[way].get() as u64;
        let mask = sign(tables, tag.wrapping_sub(1));
        // Not `mask & 1`: the verifier of Linux 6.18 follows both outcomes of an AND with a constant.
        free = u64::wrapping_sub(free, mask);
        chosen ^= (chosen ^ way as u64) & mask;
    }
    Some((free << WAY_BITS) + (chosen & (FLOW_WAYS as u64 - 1)))
}

/// For how long the way of a bucket that was silent for longest was so, in ticks, above its number.
#[inline(always)]
fn silence<T: Tables>(tables: &T, fraction: u32) -> Option<u64> {
    /// Ticks by which a packet may be ahead of this CPU's clock.
    const AHEAD: u32 = 8;
    let bucket = tables.flow_bucket(fraction)?;
    let now = tables.tick().wrapping_add(AHEAD);
    let mut longest = 0u64;
    for way in 0..FLOW_WAYS {
        let age = now.wrapping_sub(bucket.slots[way].flow.seen_at.get()) as u64;
        let mine = (age << WAY_BITS) + way as u64;
        // All ones where `mine` is more.
        let mask = sign(tables, longest.wrapping_sub(mine));
        longest ^= (longest ^ mine) & mask;
    }
    Some(longest)
}

/// All ones where the number is negative, else zero. Hidden before and after, or LLVM makes a
/// comparison of it and a branch of that.
#[inline(always)]
fn sign<T: Tables>(tables: &T, number: u64) -> u64 {
    tables.hidden((tables.hidden(number) as i64 >> 63) as u64)
}

/// Bits of the number of a way.
const WAY_BITS: u32 = FLOW_WAYS.trailing_zeros();

/// Frees a way, unless another CPU has just taken it; true if it did.
#[inline(always)]
pub fn free<T: Tables>(tables: &T, bucket: &LiveBucket, way: usize, tag: u32) -> bool {
    tag > BUSY && tables.exchange(&bucket.tags[way & (FLOW_WAYS - 1)], tag, FREE)
}
