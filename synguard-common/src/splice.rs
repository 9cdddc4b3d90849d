//! `proxy` admission, the client's side: what becomes of a segment for a proxied service.
//!
//! An ACK with a valid cookie becomes the SYN that the client would have sent, and a flow
//! ([`LiveFlow`]) remembers what was promised. The server's SYN-ACK completes the splice on its way
//! out ([`crate::egress`]); until then the client has a window of zero and waits. From there on
//! every segment is translated ([`crate::translate`]).
//!
//! Connections that were never spliced, because they are older than the flood, are flows too: the
//! server was seen talking on them, which nobody outside can forge.
//!
//! No segment without a valid cookie makes a flow, replaces one, or ends one that its server does
//! not end too.

use crate::{
    abi::{
        CLOSING_CLIENT, CLOSING_RESET, FLOW_KNOWN, FLOW_PENDING, FLOW_SPLICED, OFFER_ECN,
        OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE, TICKS_PER_SECOND,
    },
    cookie::{Payload, Timestamp},
    expiry,
    flow::{Flow, Net, V4, V6},
    flowtable,
    handshake::{self, Handshake, Towards},
    ingress::{Segment, half_open_step, has_grace, is_guarded, nonsense, validate},
    options,
    packet::{Arriving, View, ViewMut},
    sources,
    syncache::{self, Exact},
    tables::{LiveFlow, State, Tables, Verdict},
    translate,
    verdict::Reason,
    wire::{checksum, ethernet, ipv4, tcp},
};

/// How far a segment may be from what its flow has seen before it is asked for a cookie: more than
/// most windows, and little of the sequence space. A longer-lived connection that jumps further
/// pays for one hash.
const NEAR: u32 = 1 << 24;
/// How far a RST may be from what the server has acknowledged and still count as one.
const RESET_NEAR: u32 = 1 << 16;

/// Puts a segment (other than a SYN) for a proxied service aside for [`parked`].
#[inline(always)]
pub fn park<N: Net, T: Tables>(tables: &T, flow: &Flow<N>, segment: &Segment) {
    let Some(parked) = tables.parked() else {
        return;
    };
    flow.net.park(parked);
    parked.client_port.set(flow.client_port);
    parked.server_port.set(flow.server_port);
    parked.service.set(segment.service);
    parked.family.set(N::HEADER as u16);
    parked.ip_at.set(segment.ip_at as u32);
    parked.tcp_at.set(segment.tcp_at as u32);
    parked.end.set(segment.end as u32);
    parked.probe.set(0);
}

/// Decides on the segment that was put aside.
///
/// Functions in a row, not in each other, because of the stack; and because the verifier, which
/// knows nothing of what was parked, walks each of them once, not once for every way that leads
/// here.
#[inline(always)]
pub fn parked<P: Arriving, T: Tables>(mut packet: P, tables: &T) -> Verdict {
    let Some(parked) = tables.parked() else {
        return Verdict::none(Reason::Unprotected);
    };
    if parked.family.get() as usize == V4::HEADER {
        decide::<V4, P, T>(&mut packet, tables)
    } else {
        decide::<V6, P, T>(&mut packet, tables)
    }
}

#[inline(always)]
fn decide<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let next = match segment::<N, P, T>(packet, *tables) {
        Next::Ask { known } => match check::<N, P, T>(packet, *tables) {
            Ack::Good(payload) => Next::Done(start::<N, P, T>(packet, *tables, payload)),
            Ack::Bad(reason) => Next::Done(reason),
            Ack::Stray if known => again::<N, P, T>(packet, *tables),
            Ack::Stray => Next::Done(stray(tables)),
        },
        next => next,
    };
    let reason = match next {
        Next::Done(reason) => reason,
        Next::Pending => pending::<N, P, T>(packet, *tables),
        // Asked twice: not to be.
        Next::Ask { .. } => Reason::AckInvalid,
    };
    if reason as u32 == Reason::HandshakeDone as u32 {
        learn::<N, P, T>(packet, *tables);
    }
    let service = tables.parked().map_or(0, |parked| parked.service.get());
    match tables.service(service) {
        Some(config) => Verdict::of(config, service, reason, false),
        None => Verdict::none(Reason::Unprotected),
    }
}

/// What comes next.
enum Next {
    /// Nothing.
    Done(Reason),
    /// The segment may show a cookie. `known`: its tuple has a flow.
    Ask { known: bool },
    /// It is of a flow whose server has not answered.
    Pending,
}

/// A parked segment, taken up again.
struct Taken<N> {
    flow: Flow<N>,
    tcp: tcp::Header,
    ip_at: usize,
    tcp_at: usize,
    end: usize,
    service: u16,
}

/// Where headers start at the latest.
const MAX_AT: usize = 0x3fff;

#[inline(always)]
fn take<N: Net, P: Arriving, T: Tables>(packet: &P, tables: &T) -> Option<Taken<N>> {
    let parked = tables.parked()?;
    // Bounds again, for the verifier, which knows nothing of what is in a map.
    let tcp_at = parked.tcp_at.get() as usize & MAX_AT;
    let ip_at = parked.ip_at.get() as usize & 0x1f;
    let mut tcp = tcp::Header::read(packet.view(tcp_at, tcp::HEADER)?);
    tcp.sequence = tcp.sequence.wrapping_add(parked.probe.get());
    Some(Taken {
        flow: Flow {
            net: N::unpark(parked),
            client_port: parked.client_port.get(),
            server_port: parked.server_port.get(),
        },
        tcp,
        ip_at,
        tcp_at,
        end: parked.end.get() as usize & 0x1_ffff,
        service: parked.service.get(),
    })
}

/// Decides on a segment, but for its cookie.
#[inline(never)]
fn segment<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T) -> Next {
    decided::<N, P, T>(packet, &tables).unwrap_or(Next::Done(Reason::Unprotected))
}

#[inline(always)]
fn decided<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: &T) -> Option<Next> {
    let taken = take::<N, P, T>(packet, tables)?;
    let config = tables.service(taken.service)?;
    let state = tables.state(taken.service)?;
    let tcp = &taken.tcp;
    let guarded = is_guarded(tables, config, state);
    if guarded && let Some(reason) = nonsense(tcp, taken.tcp_at, taken.end) {
        return Some(Next::Done(reason));
    }
    let tuple = taken.flow.tuple();
    let known = flowtable::find(tables, &tuple);
    // What a flow of the tuple was before is over where the server has begun another connection.
    let begun = match known {
        Some(live) => live.state.get() == FLOW_KNOWN && live.tries.get() != 0,
        None => true,
    };
    if let Some(live) = known
        && !begun
        && fits(live, &taken)
    {
        return Some(follow(packet, tables, &taken, live));
    }
    if begun && state.half_open() != 0 {
        let (sequence, acknowledgment) = (tcp.sequence, tcp.acknowledgment);
        let flow = &taken.flow;
        if let Some(reason) = half_open_step(*tables, flow, tcp.flags, sequence, acknowledgment) {
            return Some(Next::Done(reason));
        }
    }
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST;
    if tcp.flags & CONTROL == tcp::ACK && (guarded || has_grace(tables, state)) {
        return Some(Next::Ask {
            known: known.is_some(),
        });
    }
    if let Some(live) = known {
        return Some(follow(packet, tables, &taken, live));
    }
    Some(Next::Done(if !guarded {
        Reason::Calm
    } else if unsettled(tables) {
        Reason::Settling
    } else if tcp.flags & tcp::RST != 0 {
        Reason::RstUnknown
    } else if tcp.flags & tcp::SYN != 0 {
        Reason::SynAckUnknown
    } else {
        Reason::AckInvalid
    }))
}

/// Whether connections older than the daemon may still be unknown.
#[inline(always)]
fn unsettled<T: Tables>(tables: &T) -> bool {
    (tables.tick().wrapping_sub(tables.settled_at()) as i32) < 0
}

/// An ACK of a known flow that showed no cookie.
#[inline(never)]
fn again<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T) -> Next {
    if let Some(taken) = take::<N, P, T>(packet, &tables)
        && let Some(live) = flowtable::find(&tables, &taken.flow.tuple())
    {
        return follow(packet, &tables, &taken, live);
    }
    Next::Done(Reason::AckInvalid)
}

/// An ACK of no flow that showed no cookie.
#[inline(always)]
fn stray<T: Tables>(tables: &T) -> Reason {
    let service = tables.parked().map_or(0, |parked| parked.service.get());
    match (tables.service(service), tables.state(service)) {
        (Some(config), Some(state)) if !is_guarded(tables, config, state) => Reason::Calm,
        _ if unsettled(tables) => Reason::Settling,
        _ => Reason::AckInvalid,
    }
}

/// Whether a segment is where its flow stands, as far as that is known; one that is not may belong
/// to a new connection of the same tuple.
///
/// Linux's next initial sequence number is close to the last connection's for a second, and a cookie
/// may be close to anything. So what has no data, as the ACK of a new connection, must be exactly
/// where the server waits for it: it is, unless data is on its way before it.
#[inline(always)]
fn fits<N: Net>(flow: &LiveFlow, taken: &Taken<N>) -> bool {
    let tcp = &taken.tcp;
    let bare = taken.tcp_at + tcp.header_len as usize >= taken.end;
    if flow.state.get() == FLOW_SPLICED
        && tcp.acknowledgment == flow.cookie.get().wrapping_add(1)
        && tcp.sequence.wrapping_sub(flow.client_isn.get()) <= 1
    {
        // The very ACK that it began with, again, or a probe of the window it was promised: its cookie
        // holds still, but starts nothing new.
        return true;
    }
    if flow.state.get() == FLOW_PENDING {
        return tcp.acknowledgment == flow.cookie.get().wrapping_add(1);
    }
    let reach = if bare { 0 } else { NEAR };
    near(tcp.sequence, flow.server_ack.get(), reach)
        && near(tcp.acknowledgment, flow.server_next.get(), NEAR)
        && !expiry::is_over(flow.closing.get())
}

#[inline(always)]
const fn near(a: u32, b: u32, by: u32) -> bool {
    a.wrapping_sub(b).wrapping_add(by) <= 2 * by
}

/// What becomes of a segment of a known flow.
#[inline(always)]
fn follow<N: Net, P: Arriving, T: Tables>(
    packet: &mut P,
    tables: &T,
    taken: &Taken<N>,
    live: &LiveFlow,
) -> Next {
    if live.state.get() == FLOW_PENDING {
        return Next::Pending;
    }
    let tcp = &taken.tcp;
    let tick = tables.tick();
    if live.seen_at.get() != tick {
        live.seen_at.set(tick);
    }
    // A FIN or RST that the server would not take is none to us either.
    if tcp.flags & tcp::RST != 0 {
        if near(tcp.sequence, live.server_ack.get(), RESET_NEAR) {
            close(live, CLOSING_RESET);
        }
    } else if tcp.flags & tcp::FIN != 0 && near(tcp.sequence, live.server_ack.get(), NEAR) {
        close(live, CLOSING_CLIENT);
    }
    if live.state.get() == FLOW_KNOWN {
        return Next::Done(Reason::FlowKnown);
    }
    let header_len = tcp.header_len as usize;
    if header_len < tcp::HEADER {
        return Next::Done(Reason::BadTcp);
    }
    Next::Done(
        match translate::inward(packet, taken.tcp_at, header_len, tcp.flags, live) {
            Some(()) => Reason::Translated,
            None => Reason::BadTcp,
        },
    )
}

/// A segment of a flow whose server has not answered: it can only be about the handshake.
#[inline(never)]
fn pending<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T) -> Reason {
    let Some(taken) = take::<N, P, T>(packet, &tables) else {
        return Reason::SplicePending;
    };
    let Some(live) = flowtable::find(&tables, &taken.flow.tuple()) else {
        return Reason::SplicePending;
    };
    let tcp = &taken.tcp;
    let tick = tables.tick();
    if tcp.flags & tcp::RST != 0 {
        if tcp.sequence == live.client_isn.get().wrapping_add(1) {
            close(live, CLOSING_RESET);
            return match bare_reset(packet, &taken) {
                Some(()) => Reason::Translated,
                None => Reason::BadTcp,
            };
        }
        return Reason::SplicePending;
    }
    if tick.wrapping_sub(live.sent_at.get()) < TICKS_PER_SECOND {
        return Reason::SplicePending;
    }
    live.sent_at.set(tick);
    live.tries.set(live.tries.get().wrapping_add(1));
    match write_syn(packet, &taken, live) {
        Some(()) => Reason::SpliceRetried,
        None => Reason::SpliceFailed,
    }
}

/// Makes a RST one without acknowledgement: a server that has not seen our ACK takes it by the
/// sequence number alone, but ignores one that acknowledges what it has not sent (Linux:
/// `tcp_check_req`).
#[inline(always)]
fn bare_reset<N: Net, P: Arriving>(packet: &mut P, taken: &Taken<N>) -> Option<()> {
    let at = taken.tcp_at + tcp::field::OFFSET_FLAGS;
    let old = packet.view(at, 2)?.u16(0);
    let new = old & !tcp::ACK;
    packet.view_mut(at, 2)?.set_u16(0, new);
    let sum = checksum::difference(old as u32, new as u32);
    packet.adjust_checksum(taken.tcp_at + tcp::field::CHECKSUM, sum)
}

/// Sets `CLOSING_*` bits.
#[inline(always)]
pub fn close(flow: &LiveFlow, bits: u8) {
    let closing = flow.closing.get();
    if closing & bits != bits {
        flow.closing.set(closing | bits);
    }
}

/// Enters the connection whose handshake the parked segment completes without us.
#[inline(never)]
fn learn<N: Net, P: Arriving, T: Tables>(packet: &P, tables: T) -> Option<()> {
    let taken = take::<N, P, T>(packet, &tables)?;
    let live = flowtable::enter(&tables, &taken.flow.tuple())?;
    live.server_ack.set(taken.tcp.sequence);
    live.server_next.set(taken.tcp.acknowledgment);
    know(live, taken.service, tables.tick());
    Some(())
}

/// Fills in a flow that is not spliced, but for its sequence numbers, which come first: its state is
/// set last.
#[inline(always)]
pub fn know(live: &LiveFlow, service: u16, tick: u32) {
    live.delta.set(0);
    live.ts_delta.set(0);
    live.cookie.set(0);
    live.client_isn.set(0);
    live.client_tsval.set(0);
    live.seen_at.set(tick);
    live.sent_at.set(0);
    live.window.set(0);
    live.mss.set(0);
    live.service.set(service);
    live.closing.set(0);
    live.options.set(0);
    live.client_scale.set(0);
    live.promised_scale.set(0);
    live.server_scale.set(0);
    live.tries.set(0);
    live.link_len.set(0);
    live.pad.set(0);
    for word in &live.link {
        word.set(0);
    }
    live.state.set(FLOW_KNOWN);
}

/// What an ACK turned out to be.
enum Ack {
    /// It shows no cookie of ours.
    Stray,
    /// Its cookie holds, but it is not to be believed.
    Bad(Reason),
    /// Its cookie says this.
    Good(Payload),
}

/// Checks the cookie of the parked ACK, and what makes it credible.
#[inline(never)]
fn check<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T) -> Ack {
    let Some(taken) = take::<N, P, T>(packet, &tables) else {
        return Ack::Stray;
    };
    let (tcp, at, flow) = (&taken.tcp, taken.tcp_at, &taken.flow);
    let header_len = tcp.header_len as usize;
    if header_len < tcp::HEADER || at + header_len > taken.end {
        return Ack::Bad(Reason::BadTcp);
    }
    let cookie = tcp.acknowledgment.wrapping_sub(1);
    let honoured = |isn| validate(&tables, flow, isn, cookie, tables.now());
    let payload = match honoured(tcp.sequence.wrapping_sub(1)) {
        Some(payload) => payload,
        // The ACK was lost, and the client has data for a window of zero: Linux probes it with the
        // sequence number before (`tcp_xmit_probe_skb`), others with a byte of data.
        None if at + header_len == taken.end => {
            let (Some(payload), Some(parked)) = (honoured(tcp.sequence), tables.parked()) else {
                return Ack::Stray;
            };
            parked.probe.set(1);
            payload
        }
        None => return Ack::Stray,
    };
    match is_intact(packet, &taken) {
        true => {
            sources::refund(&tables, &flow.net.client());
            Ack::Good(payload)
        }
        false => Ack::Bad(Reason::BadChecksum),
    }
}

/// Whether the TCP checksum is right.
#[inline(always)]
fn is_intact<N: Net, P: Arriving>(packet: &P, taken: &Taken<N>) -> bool {
    let at = taken.tcp_at;
    let header_len = taken.tcp.header_len as usize;
    let len = taken.end - at;
    let Some(header) = tcp::header_sum(packet, at, header_len) else {
        return false;
    };
    let mut sum = header + taken.flow.net.sum() + ipv4::TCP as u64 + len as u64;
    if len > header_len {
        match packet.sum(at + header_len, len - header_len) {
            Some(data) => sum += data,
            None => return false,
        }
    }
    checksum::fold(sum) == 0xffff
}

/// Makes a flow of the parked ACK, whose cookie says `payload`, and the client's SYN of its frame.
#[inline(never)]
fn start<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T, payload: Payload) -> Reason {
    let exact = remembered::<N, P, T>(packet, tables);
    started::<N, P, T>(packet, &tables, payload, exact).unwrap_or(Reason::SpliceFailed)
}

/// What the SYN cache has of the parked ACK's SYN. A function of its own, for the sake of the stack.
#[inline(never)]
fn remembered<N: Net, P: Arriving, T: Tables>(packet: &mut P, tables: T) -> Exact {
    if !tables.syn_cache() {
        return Exact::default();
    }
    match take::<N, P, T>(packet, &tables) {
        Some(taken) => {
            let isn = taken.tcp.sequence.wrapping_sub(1);
            let cookie = taken.tcp.acknowledgment.wrapping_sub(1);
            syncache::exact(&tables, &taken.flow, isn, cookie)
        }
        None => Exact::default(),
    }
}

#[inline(always)]
fn started<N: Net, P: Arriving, T: Tables>(
    packet: &mut P,
    tables: &T,
    payload: Payload,
    exact: Exact,
) -> Option<Reason> {
    let taken = take::<N, P, T>(packet, tables)?;
    let (tcp, at, flow) = (&taken.tcp, taken.tcp_at, &taken.flow);
    let header_len = tcp.header_len as usize;
    if header_len < tcp::HEADER {
        return Some(Reason::BadTcp);
    }
    let client_isn = tcp.sequence.wrapping_sub(1);
    let cookie = tcp.acknowledgment.wrapping_sub(1);
    let received = options::timestamps(packet, at + tcp::HEADER, header_len - tcp::HEADER);
    let stamp = Timestamp(received.ts_ecr);
    let timestamps = received.has_timestamps();
    let scales = payload.has_window_scale();
    let scale = if timestamps {
        stamp.scale(payload)
    } else if exact.is_known() {
        exact.window_scale()
    } else {
        payload.scale()
    };
    let ecn = timestamps && stamp.ecn();
    let agreed = (OFFER_TIMESTAMPS * timestamps as u32)
        | (OFFER_SACK * payload.sack_permitted() as u32)
        | (OFFER_WINDOW_SCALE * scales as u32)
        | (OFFER_ECN * ecn as u32);
    let promised = tables.state(taken.service)?.profile().window_scale();
    let config = tables.service(taken.service)?;
    let tick = tables.tick();

    let Some(live) = flowtable::enter(tables, &flow.tuple()) else {
        return Some(Reason::FlowTableFull);
    };
    live.delta.set(0);
    live.ts_delta.set(received.ts_ecr);
    live.cookie.set(cookie);
    live.client_isn.set(client_isn);
    live.server_next.set(tcp.acknowledgment);
    live.server_ack.set(tcp.sequence);
    live.client_tsval.set(received.ts_val);
    live.seen_at.set(tick);
    live.sent_at.set(tick);
    live.window.set(tcp.window);
    live.mss.set(if exact.is_known() {
        exact.mss()
    } else {
        payload.mss::<N>()
    });
    live.service.set(taken.service);
    live.closing.set(0);
    live.options.set(agreed as u8);
    live.client_scale.set(scale * scales as u8);
    live.promised_scale.set(if config.learns != 0 {
        promised
    } else {
        config.rcv_wscale
    });
    live.server_scale.set(0);
    live.tries.set(0);
    live.pad.set(0);
    copy_link(packet, taken.ip_at, live)?;
    live.state.set(FLOW_PENDING);
    Some(match write_syn(packet, &taken, live) {
        Some(()) => Reason::SpliceStarted,
        None => Reason::SpliceFailed,
    })
}

/// Copies the link header, up to the EtherType of IP.
#[inline(always)]
fn copy_link<P: Arriving>(packet: &P, ip_at: usize, live: &LiveFlow) -> Option<()> {
    let len = ethernet::before_type(ip_at);
    live.link_len.set(len as u8);
    for (index, word) in live.link.iter().enumerate() {
        word.set(ethernet::word(packet, index, len)?);
    }
    Some(())
}

/// Writes the client's SYN over a segment of its flow.
#[inline(always)]
fn write_syn<N: Net, P: Arriving>(packet: &mut P, taken: &Taken<N>, live: &LiveFlow) -> Option<()> {
    let at = taken.ip_at;
    let hop = N::hop(packet.view(at, N::HEADER)?);
    let options = live.options.get() as u32;
    let scale = live.client_scale.get();
    let ecn = if options & OFFER_ECN != 0 {
        tcp::ECE | tcp::CWR
    } else {
        0
    };
    let syn = Handshake {
        sequence: live.client_isn.get(),
        acknowledgment: 0,
        flags: tcp::SYN | ecn,
        // A SYN's window is not scaled (RFC 7323 section 2.2).
        window: translate::rescale(live.window.get(), scale, 0),
        mss: live.mss.get(),
        options,
        window_scale: scale,
        ts_val: live.client_tsval.get(),
        ts_ecr: 0,
        hop,
    };
    let frame_len = packet.frame_len(taken.end);
    handshake::write(packet, at, frame_len, &taken.flow, Towards::Server, &syn).then_some(())
}
