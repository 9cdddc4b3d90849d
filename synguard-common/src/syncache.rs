//! SYNs that were answered a moment ago, in a SYN cache (Lemon 2002; FreeBSD's `tcp_syncache.c`) of fixed
//! size beside the cookies.
//!
//! The initial sequence number of the answer is a cookie all the same, so an entry is a help and never
//! needed: what has no room goes without. With one, the client gets its MSS and window scale exactly,
//! and a SYN-ACK that nobody has answered after a second is sent again, and after three. That helps
//! whoever lost the SYN-ACK, and above all a client whose final ACK was lost and that then waits for the
//! server to speak (SSH, SMTP): it would wait for ever, for nothing of it is left here.
//!
//! Each tuple has one slot, found by a hash, and no entry that lives is pushed out: while a flood fills
//! the table, it costs its SYNs the look at a counter ([`Tables::may_remember`]), from the one on that is
//! one too many.

use core::cell::Cell;

use crate::{
    abi::{
        ANSWERED_BUSY, ANSWERED_FREE, ANSWERED_LIVE, Answered, LINK_HEADER, OFFER_WINDOW_SCALE,
        SYN_CACHE_SLOTS, TICKS_PER_SECOND,
    },
    flow::{Flow, Net},
    packet::Packet,
    recent,
    tables::Tables,
    wire::ethernet,
};

/// How long an entry lives, ticks: four seconds after the last SYN-ACK.
pub const LIFE: u32 = 7 * TICKS_PER_SECOND;
/// When the SYN-ACK is sent again, ticks after the SYN (RFC 6298: after 1 s, and 2 more).
pub const AGAIN: [u32; 2] = [TICKS_PER_SECOND, 3 * TICKS_PER_SECOND];

/// An [`Answered`] in its map, where other CPUs and the daemon work on it too.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Live {
    /// [`Answered::tuple`], in words.
    pub tuple: [Cell<u64>; 5],
    /// [`Answered::state`].
    pub state: Cell<u32>,
    /// [`Answered::since`].
    pub since: Cell<u32>,
    /// [`Answered::client_isn`].
    pub client_isn: Cell<u32>,
    /// [`Answered::cookie`].
    pub cookie: Cell<u32>,
    /// [`Answered::ts_val`].
    pub ts_val: Cell<u32>,
    /// [`Answered::mss`].
    pub mss: Cell<u16>,
    /// [`Answered::service`].
    pub service: Cell<u16>,
    /// [`Answered::options`].
    pub options: Cell<u8>,
    /// [`Answered::window_scale`].
    pub window_scale: Cell<u8>,
    /// [`Answered::tries`].
    pub tries: Cell<u8>,
    /// [`Answered::link_len`].
    pub link_len: Cell<u8>,
    /// [`Answered::link`].
    pub link: [Cell<u32>; LINK_HEADER / 4],
}

macro_rules! same_layout {
    ($($field:ident),*) => {
        const _: () = {
            assert!(size_of::<Live>() == size_of::<Answered>());
            $(assert!(core::mem::offset_of!(Live, $field) == core::mem::offset_of!(Answered, $field));)*
        };
    };
}

same_layout!(
    tuple,
    state,
    since,
    client_isn,
    cookie,
    ts_val,
    mss,
    service,
    options,
    window_scale,
    tries,
    link_len,
    link
);

/// What is remembered of a SYN's options, in one register: MSS in the upper half, then the window scale and
/// `OFFER_*` bits. Never zero for a SYN that was remembered, for it has an MSS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact(pub u32);

impl Exact {
    /// Of these.
    #[inline(always)]
    pub const fn new(mss: u16, window_scale: u8, options: u32) -> Self {
        Self((mss as u32) << 16 | (window_scale as u32) << 8 | options)
    }

    /// Whether anything is known.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 != 0
    }

    /// The client's MSS, bytes.
    #[inline(always)]
    pub const fn mss(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The client's window scale; 0 where there is none.
    #[inline(always)]
    pub const fn window_scale(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether windows are scaled.
    #[inline(always)]
    pub const fn scales(self) -> bool {
        self.0 & OFFER_WINDOW_SCALE != 0
    }
}

/// What is no slot.
const NOWHERE: u32 = u32::MAX;

#[inline(always)]
fn slot<N: Net, T: Tables>(tables: &T, flow: &Flow<N>) -> u32 {
    recent::Place::of(*flow, tables.seed()).bucket & (SYN_CACHE_SLOTS - 1)
}

#[inline(always)]
fn is_of<N: Net>(live: &Live, flow: &Flow<N>) -> bool {
    let [a, b] = flow.net.client().words();
    let [c, d] = flow.net.server().words();
    let ports = ports(flow);
    live.tuple[0].get() == a.to_be()
        && live.tuple[1].get() == b.to_be()
        && live.tuple[2].get() == c.to_be()
        && live.tuple[3].get() == d.to_be()
        && live.tuple[4].get() == ports
}

/// The last word of a tuple, as it lies in memory.
#[inline(always)]
fn ports<N: Net>(flow: &Flow<N>) -> u64 {
    flow.client_port as u64 | (flow.server_port as u64) << 16
}

/// What of a SYN is to be remembered, as it fits in registers.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// Its sequence number, and our cookie.
    pub numbers: u64,
    /// Its TSval, service and where the IP header starts.
    pub rest: u64,
}

impl Syn {
    /// Of these.
    #[inline(always)]
    pub const fn new(isn: u32, cookie: u32, ts_val: u32, service: u16, ip_at: usize) -> Self {
        Self {
            numbers: (isn as u64) << 32 | cookie as u64,
            rest: (ts_val as u64) << 32 | (service as u64) << 16 | (ip_at as u64 & 0xffff),
        }
    }
}

/// Remembers a SYN that is being answered, if there is room. One that is remembered already stays as old
/// as it is.
#[inline(always)]
pub fn remember<N: Net, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow<N>,
    syn: Syn,
    exact: Exact,
) {
    let slot = enter(*tables, flow, syn.numbers);
    if slot != NOWHERE
        && let Some(live) = tables.answered(slot)
        && fill(packet, live, syn, exact).is_some()
    {
        live.state.set(ANSWERED_LIVE);
    }
}

// Functions of their own, one after the other, with the tables by value, for the sake of the stack.

/// The slot of a SYN that is not remembered yet, taken for it, and its tuple in place.
#[inline(never)]
fn enter<N: Net, T: Tables>(tables: T, flow: &Flow<N>, numbers: u64) -> u32 {
    let slot = slot(&tables, flow);
    let Some(live) = tables.answered(slot) else {
        return NOWHERE;
    };
    let tick = tables.tick();
    let state = live.state.get();
    if state == ANSWERED_BUSY {
        return NOWHERE;
    }
    if state == ANSWERED_LIVE && tick.wrapping_sub(live.since.get()) < LIFE {
        // Another's, or this very SYN: it may have been sent again by the daemon.
        let is_again = live.client_isn.get() == (numbers >> 32) as u32;
        if is_again || !is_of(live, flow) {
            return NOWHERE;
        }
    }
    if !tables.exchange(&live.state, state, ANSWERED_BUSY) {
        return NOWHERE;
    }
    let [a, b] = flow.net.client().words();
    let [c, d] = flow.net.server().words();
    live.tuple[0].set(a.to_be());
    live.tuple[1].set(b.to_be());
    live.tuple[2].set(c.to_be());
    live.tuple[3].set(d.to_be());
    live.tuple[4].set(ports(flow));
    live.since.set(tick);
    live.client_isn.set((numbers >> 32) as u32);
    live.cookie.set(numbers as u32);
    live.tries.set(0);
    slot
}

#[inline(never)]
fn fill<P: Packet>(packet: &P, live: &Live, syn: Syn, exact: Exact) -> Option<()> {
    live.ts_val.set((syn.rest >> 32) as u32);
    live.service.set((syn.rest >> 16) as u16);
    live.mss.set(exact.mss());
    live.window_scale.set(exact.window_scale());
    live.options.set(exact.0 as u8);
    let len = ethernet::before_type((syn.rest & 0xffff) as usize);
    live.link_len.set(len as u8);
    for (index, word) in live.link.iter().enumerate() {
        word.set(ethernet::word(packet, index, len)?);
    }
    Some(())
}

/// What is remembered of the SYN whose answer is acknowledged by a valid cookie: no more from here on.
#[inline(always)]
pub fn exact<N: Net, T: Tables>(tables: &T, flow: &Flow<N>, isn: u32, cookie: u32) -> Exact {
    if tables.syn_cache() {
        take(*tables, flow, (isn as u64) << 32 | cookie as u64)
    } else {
        Exact::default()
    }
}

#[inline(never)]
fn take<N: Net, T: Tables>(tables: T, flow: &Flow<N>, numbers: u64) -> Exact {
    match tables.answered(slot(&tables, flow)) {
        Some(live) if live.state.get() == ANSWERED_LIVE && is_of(live, flow) => {
            // Of whatever attempt: the client has done with the others.
            let isn = (numbers >> 32) as u32;
            let exact = if live.client_isn.get() == isn && live.cookie.get() == numbers as u32 {
                Exact::new(
                    live.mss.get(),
                    live.window_scale.get(),
                    live.options.get() as u32,
                )
            } else {
                Exact::default()
            };
            tables.exchange(&live.state, ANSWERED_LIVE, ANSWERED_FREE);
            exact
        }
        _ => Exact::default(),
    }
}

/// Forgets the SYN that a RST with this sequence number takes back: it acknowledges our SYN-ACK, and its
/// sender wants no other (RFC 9293 section 3.10.7.3).
#[inline(always)]
pub fn forget<N: Net, T: Tables>(tables: &T, flow: &Flow<N>, sequence: u32) {
    if tables.syn_cache() {
        refused(*tables, flow, sequence);
    }
}

#[inline(never)]
fn refused<N: Net, T: Tables>(tables: T, flow: &Flow<N>, sequence: u32) {
    if let Some(live) = tables.answered(slot(&tables, flow))
        && live.state.get() == ANSWERED_LIVE
        && live.client_isn.get() == sequence.wrapping_sub(1)
        && is_of(live, flow)
    {
        tables.exchange(&live.state, ANSWERED_LIVE, ANSWERED_FREE);
    }
}
