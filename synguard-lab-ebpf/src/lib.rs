//! What the lab's programs and the lab agree on: the values of the maps, slot by slot.
//!
//! `synguard-lab` fills these structures and writes them with one map update; the programs in
//! `main.rs` read them. Integers, arrays and explicit padding only. Fields named `_be` and byte
//! arrays are in network order, everything else is in host order.
#![no_std]

/// Slots of the map `COUNTERS`: one `u64` per CPU each.
pub mod counter {
    /// Frames `lab_peer` has looked at.
    pub const RECEIVED: u32 = 0;
    /// SYN-ACKs to a flood source; dropped.
    pub const SYN_ACK: u32 = 1;
    /// RSTs to a flood source; dropped.
    pub const RST: u32 = 2;
    /// Anything else of TCP to a flood source, challenge ACKs for example; dropped.
    pub const OTHER: u32 = 3;
    /// Frames that come back *from* a flood source, as an echo by `floor_tx` does; dropped.
    pub const ECHO: u32 = 4;
    /// Frames written by `lab_flood`.
    pub const SENT: u32 = 5;
    /// Frames that `floor_drop` dropped.
    pub const DROPPED: u32 = 6;
    /// How many slots there are.
    pub const COUNT: u32 = 7;
}

/// Which sources are the flood's: the one value of the map `FLOOD_SOURCES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodSources {
    /// IPv4 prefix, host bits zero.
    pub v4: [u8; 4],
    /// Ones where `v4` counts.
    pub v4_mask: [u8; 4],
    /// IPv6 prefix, of at most 64 bits.
    pub v6: [u8; 8],
    /// Ones where `v6` counts.
    pub v6_mask: [u8; 8],
}

/// Longest frame a flood is made of: two tags, IPv6, and a TCP header with 20 bytes of options are
/// 122 bytes.
pub const FRAME_MAX: usize = 128;

/// The frames a flood is made of: the one value of the map `FLOOD`.
///
/// A frame is the template with random bits added to the fields that vary. Those fields and both
/// checksums are zero in the template, so the two sums only need the varying words added.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// The frame.
    pub template: [u8; FRAME_MAX],
    /// Source address before random bits; an IPv4 one is in the first four bytes.
    pub source: [u8; 16],
    /// Ones where the source address is random.
    pub source_random: [u8; 16],
    /// TCP flags, one of the eight drawn for each frame.
    pub flags: [u8; 8],
    /// Least time between two frames, in nanoseconds; 0 for as fast as can be.
    pub gap_ns: u64,
    /// Length of the frame.
    pub len: u32,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the TCP header.
    pub l4: u32,
    /// Offset of the TCP timestamp option's TSval, 0 where there is none.
    pub timestamp: u32,
    /// Sum over the IPv4 header's 16-bit words, as they lie in memory.
    pub ip_sum: u32,
    /// Sum over pseudo-header, TCP header and payload, as they lie in memory.
    pub tcp_sum: u32,
    /// Source port before random bits.
    pub port_be: u16,
    /// Ones where the source port is random.
    pub port_random: u16,
    /// 4 or 6.
    pub ip_version: u32,
}

/// Most tags a wire has.
pub const TAGS_MAX: usize = 2;

/// One VLAN tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// EtherType of the tag; 0 where there is none.
    pub tpid_be: u16,
    /// VLAN identifier.
    pub id: u16,
}

/// The tags of a wire, outermost first: the one value of the map `TAGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// The tags.
    pub tags: [Tag; TAGS_MAX],
}

/// What is done to the packets of a wire: the one value of the map `IMPAIRMENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// A packet is lost when 32 random bits are less than this.
    pub loss: u32,
    /// A packet takes the detour when 32 random bits are less than this.
    pub reorder: u32,
    /// Not 0 if packets without data are left alone.
    pub data_only: u32,
    /// Interface index of the detour's entry.
    pub detour: u32,
    /// Interface index of where the detour leads back to.
    pub home: u32,
    /// Flags of the redirect back: 0 to be sent there, `BPF_F_INGRESS` to be received.
    pub home_flags: u32,
}

/// Slots of the map `IMPAIRED`: one `u64` per CPU each.
pub mod impaired {
    /// TCP packets that could have been impaired.
    pub const SEEN: u32 = 0;
    /// Packets lost.
    pub const LOST: u32 = 1;
    /// Packets that took the detour.
    pub const DELAYED: u32 = 2;
    /// Packets that others have passed while they were on the detour.
    pub const OVERTAKEN: u32 = 3;
    /// How many slots there are.
    pub const COUNT: u32 = 4;
}

/// What the bench's harness and the bench agree on.
pub mod bench {
    use super::FRAME_MAX;

    /// Frames that one measurement can go round.
    pub const FRAMES: u32 = 1024;

    /// Values of the map `BENCH_FRAMES`: what a frame is restored to before the program under test
    /// sees it.
    #[repr(C, align(8))]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Frame(pub [u8; FRAME_MAX]);

    /// What a measurement goes round: the one value of the map `BENCH`.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Round {
        /// Length of every frame, in bytes; even, at most [`FRAME_MAX`].
        pub length: u32,
        /// Number of frames less one; the number is a power of two.
        pub mask: u32,
    }

    /// Slots of the maps `BENCH_XDP` and `BENCH_TC`: what the harness calls. Constants in the
    /// harness, so that the call is a jump and the maps need not be written between measurements.
    pub mod slot {
        /// A program that does nothing.
        pub const EMPTY: u32 = 0;
        /// The program under test.
        pub const SUBJECT: u32 = 1;
        /// `floor_tx`.
        pub const TX: u32 = 2;
        /// `floor_siphash`.
        pub const SIPHASH: u32 = 3;
        /// `floor_lookup`.
        pub const LOOKUP: u32 = 4;
        /// `floor_hash`.
        pub const HASH: u32 = 5;
        /// `floor_lru`.
        pub const LRU: u32 = 6;
        /// `floor_insert`.
        pub const INSERT: u32 = 7;
        /// How many slots there are.
        pub const COUNT: u32 = 8;
    }

    const _: () = assert!(FRAMES.is_power_of_two());
    const _: () = assert!(size_of::<Frame>() == FRAME_MAX);
    const _: () = assert!(size_of::<Round>() == 8);
}

const _: () = assert!(size_of::<FloodSources>() == 24);
const _: () = assert!(size_of::<Impairment>() == 24);
const _: () = assert!(size_of::<Tags>() == 4 * TAGS_MAX);
const _: () = assert!(size_of::<Flood>() == FRAME_MAX + 16 + 16 + 8 + 8 + 8 * 4);
