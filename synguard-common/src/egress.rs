//! What leaves by the interface: what the TC program `synguard_out` learns from it, and what it
//! changes for spliced connections.
//!
//! What a server sends cannot be forged from outside. So this is where half-open connections are
//! confirmed, where it is learned what servers offer ([`crate::profile`]) and which connections
//! exist ([`crate::splice`]), and where splices are completed.
//!
//! Completing one takes a single packet, the server's SYN-ACK. Rewritten into the client's ACK it
//! goes back in, a copy, to the server; rewritten again it goes on to the client as a window
//! update. Both keep the SYN-ACK's length, with NOPs for the options that only a SYN has, because
//! a change of length would need another checksum of the pseudo-header.

use crate::{
    abi::{
        ADMISSION_PROXY, CLOSING_RESET, CLOSING_SERVER, FLOW_KNOWN, FLOW_PENDING, FLOW_SPLICED,
        OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE, SERVICE_NONE,
        TICKS_PER_SECOND, Tuple,
    },
    flow::{Flow, Net, V4, V6},
    flowtable, icmp,
    ingress::service_of,
    options::{self, NOP_NOP_TIMESTAMPS, Options},
    packet::{Leaving, PacketMut, View, ViewMut},
    profile, splice,
    tables::{LiveFlow, State, Tables, Verdict},
    translate,
    verdict::Reason,
    wire::{checksum, ethernet, ipv4, ipv6, tcp},
};

/// Looks at a frame; `None` where it concerns no connection of ours.
#[inline(always)]
pub fn egress<P: Leaving, T: Tables>(mut packet: P, tables: &T) -> Option<Verdict> {
    let (ethertype, at) = ethernet::payload(&packet)?;
    let at = at + tables.zero();
    if at > ethernet::MAX_HEADER {
        return None;
    }
    if ethertype == ethernet::IPV4 {
        let ip = ipv4::Header::read(packet.view(at, ipv4::HEADER)?);
        if ip.protocol == ipv4::ICMP {
            return error(packet, tables);
        }
        if ip.protocol != ipv4::TCP || ip.fragment & ipv4::OFFSET_MASK != 0 {
            return None;
        }
        let net = V4 {
            client: ip.destination,
            server: ip.source,
        };
        segment(&mut packet, tables, net, at + ip.header_len as usize)
    } else if ethertype == ethernet::IPV6 {
        let ip = ipv6::Header::read(packet.view(at, ipv6::HEADER)?);
        let net = V6 {
            client: ip.destination,
            server: ip.source,
        };
        if ip.next_header == ipv6::ICMP {
            return error(packet, tables);
        }
        let payload_at = at + ipv6::HEADER;
        let at = if ip.next_header == ipv6::TCP {
            payload_at
        } else {
            match ipv6::upper(&packet, payload_at, ip.next_header) {
                ipv6::Upper::Tcp { at, .. } => at,
                _ => return None,
            }
        };
        segment(&mut packet, tables, net, at)
    } else {
        None
    }
}

#[inline(always)]
fn error<P: Leaving, T: Tables>(packet: P, tables: &T) -> Option<Verdict> {
    (tables.forwards() && icmp::outward(packet, *tables))
        .then_some(Verdict::none(Reason::IcmpTranslatedOut))
}

#[inline(always)]
fn segment<N: Net, P: Leaving, T: Tables>(
    packet: &mut P,
    tables: &T,
    net: N,
    at: usize,
) -> Option<Verdict> {
    let at = at + tables.zero();
    if at > tcp::MAX_AT {
        return None;
    }
    let header = tcp::Header::read(packet.view(at, tcp::HEADER)?);
    let header_len = header.header_len as usize;
    if header_len < tcp::HEADER {
        return None;
    }
    let flow = Flow {
        net,
        client_port: header.destination,
        server_port: header.source,
    };
    let tuple = flow.tuple();
    if tables.forwards() {
        if let Some(live) = flowtable::find(tables, &tuple) {
            if let Some(reason) = follow(packet, tables, live, &header, at) {
                return Some(Verdict::on(live.service.get(), reason));
            }
        } else if let Some(service) = talks(tables, &flow, &header)
            && let Some(live) = flowtable::enter(tables, &tuple)
        {
            live.server_ack.set(header.acknowledgment);
            live.server_next.set(header.sequence);
            splice::know(live, service, tables.tick());
            return Some(Verdict::on(service, Reason::FlowLearned));
        }
    }
    half_open::<N, P, T>(packet, tables, &tuple, &header, at)
}

// ---- half-open connections ----------------------------------------------------------------------

#[inline(always)]
fn half_open<N: Net, P: Leaving, T: Tables>(
    packet: &P,
    tables: &T,
    tuple: &Tuple,
    header: &tcp::Header,
    at: usize,
) -> Option<Verdict> {
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST;
    let control = header.flags & CONTROL;
    // A RST without ACK answers a segment that had an ACK of its own, which anybody can forge; one
    // that refuses a SYN acknowledges it (RFC 9293 section 3.10.7.1).
    if control != tcp::SYN | tcp::ACK && control != tcp::RST | tcp::ACK {
        return None;
    }
    let entry = tables.half_open(tuple)?;
    let service = entry.service;
    let client_isn = header.acknowledgment.wrapping_sub(1);
    let reason = if control & tcp::SYN != 0 {
        if !tables.half_open_confirm(tuple, client_isn, header.sequence) {
            return None;
        }
        if tables.service(service)?.admission == ADMISSION_PROXY {
            learn_profile::<N, T>(tables, service, &read_options(packet, tables, header, at));
        }
        Reason::SynAckSeen
    } else {
        if client_isn != entry.client_isn || !tables.half_open_remove(tuple) {
            return None;
        }
        tables.state(service)?.half_open_sub();
        Reason::ServerReset
    };
    Some(Verdict::on(service, reason))
}

/// The options of a server's SYN-ACK, with ECN where its flags accept it (RFC 3168 section 6.1.1).
#[inline(always)]
fn read_options<P: Leaving, T: Tables>(
    packet: &P,
    tables: &T,
    header: &tcp::Header,
    at: usize,
) -> Options {
    let len = header.header_len as usize - tcp::HEADER;
    let options = options::read(packet, at + tcp::HEADER, len, tables.zero());
    let ecn = header.flags & (tcp::ECE | tcp::CWR) == tcp::ECE;
    Options {
        present: options.present | (OFFER_ECN * ecn as u32),
        ..options
    }
}

#[inline(always)]
fn learn_profile<N: Net, T: Tables>(tables: &T, service: u16, seen: &Options) {
    let Some(state) = tables.state(service) else {
        return;
    };
    let withheld = profile::withheld(state.withheld(), tables.tick());
    let known = state.profile();
    let learned = known.learn(seen, withheld, N::OVERHEAD);
    if learned != known {
        state.set_profile(learned);
    }
}

// ---- flows ------------------------------------------------------------------------------------

/// The proxied service, if the segment shows that a connection of it exists: it is no answer to
/// something forged, as a RST or SYN-ACK may be.
#[inline(always)]
fn talks<N: Net, T: Tables>(tables: &T, flow: &Flow<N>, header: &tcp::Header) -> Option<u16> {
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST;
    let control = header.flags & CONTROL;
    if control != tcp::ACK && control != tcp::SYN {
        return None;
    }
    let entry = tables.address(&flow.net.server())?;
    let service = service_of(tables, &entry, flow.server_port);
    (service != SERVICE_NONE && tables.service(service)?.admission == ADMISSION_PROXY)
        .then_some(service)
}

/// What becomes of a server's segment of a known flow; `None` where that is nothing.
#[inline(always)]
fn follow<P: Leaving, T: Tables>(
    packet: &mut P,
    tables: &T,
    live: &LiveFlow,
    header: &tcp::Header,
    at: usize,
) -> Option<Reason> {
    let tick = tables.tick();
    let flags = header.flags;
    let client_next = live.client_isn.get().wrapping_add(1);
    if live.state.get() == FLOW_PENDING {
        if flags & tcp::RST != 0 {
            return refused(packet, live, header, at);
        }
        if flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
            && header.acknowledgment == client_next
        {
            return Some(complete(packet, *tables, live, at));
        }
        return Some(challenged(packet, live, header, at, tick));
    }
    if flags & tcp::SYN != 0 {
        let again = flags & tcp::ACK != 0
            && live.state.get() == FLOW_SPLICED
            && header.acknowledgment == client_next
            && header.sequence.wrapping_add(live.delta.get()) == live.cookie.get();
        if again {
            // The ACK that we sent was lost on the way to the server.
            return Some(complete(packet, *tables, live, at));
        }
        // The server has begun another connection with the same tuple, without us.
        live.server_ack.set(header.acknowledgment);
        live.server_next.set(header.sequence);
        splice::know(live, live.service.get(), tick);
        live.tries.set(1);
        return None;
    }
    if live.seen_at.get() != tick {
        live.seen_at.set(tick);
    }
    if flags & tcp::RST != 0 {
        splice::close(live, CLOSING_RESET);
    } else {
        let closing = live.closing.get();
        let now = (closing & !CLOSING_RESET)
            | if flags & tcp::FIN != 0 {
                CLOSING_SERVER
            } else {
                0
            };
        if now != closing {
            live.closing.set(now);
        }
        if live.state.get() == FLOW_KNOWN && live.tries.get() != 0 {
            live.tries.set(0);
        }
        live.server_ack.set(header.acknowledgment);
        live.server_next
            .set(header.sequence.wrapping_add(live.delta.get()));
    }
    if live.state.get() == FLOW_KNOWN {
        return None;
    }
    translate::outward(packet, at, header.header_len as usize, live)?;
    Some(Reason::TranslatedOut)
}

/// The server refuses a pending connection, which its client believes to be established: the RST is
/// given the sequence number that the client expects (RFC 5961 section 3.2).
#[inline(always)]
fn refused<P: Leaving>(
    packet: &mut P,
    live: &LiveFlow,
    header: &tcp::Header,
    at: usize,
) -> Option<Reason> {
    splice::close(live, CLOSING_RESET);
    let sequence = live.cookie.get().wrapping_add(1);
    packet
        .view_mut(at + tcp::field::SEQUENCE, 4)?
        .set_u32(0, sequence);
    let sum = checksum::difference(header.sequence, sequence);
    packet.adjust_checksum(at + tcp::field::CHECKSUM, sum)?;
    Some(Reason::SpliceRefused)
}

/// The server holds an older connection of the tuple and answers the SYN with an ACK of that (RFC
/// 5961 section 4). What the client would do is send a RST, and its SYN again.
#[inline(always)]
fn challenged<P: Leaving>(
    packet: &mut P,
    live: &LiveFlow,
    header: &tcp::Header,
    at: usize,
    tick: u32,
) -> Reason {
    live.sent_at.set(tick.wrapping_sub(TICKS_PER_SECOND));
    let reset = Segment {
        sequence: header.acknowledgment,
        acknowledgment: 0,
        flags: tcp::RST,
        window: 0,
        stamps: None,
    };
    match send_back(packet, at, &reset) {
        Some(true) => Reason::SpliceChallenged,
        _ => Reason::SpliceFailed,
    }
}

/// Completes the splice from the server's SYN-ACK, or resets both sides where it falls short of what
/// the client was promised.
#[inline(never)]
fn complete<P: Leaving, T: Tables>(
    packet: &mut P,
    tables: T,
    live: &LiveFlow,
    at: usize,
) -> Reason {
    let Some(view) = packet.view(at, tcp::HEADER) else {
        return Reason::SpliceFailed;
    };
    let header = tcp::Header::read(view);
    let seen = read_options(packet, &tables, &header, at);
    let promised = live.options.get() as u32;
    let cookie = live.cookie.get();
    let client_next = live.client_isn.get().wrapping_add(1);
    let missing = promised & !seen.present;
    if missing != 0 {
        withhold(&tables, live.service.get(), missing);
        splice::close(live, CLOSING_RESET);
        let to_server = Segment {
            sequence: client_next,
            acknowledgment: 0,
            flags: tcp::RST,
            window: 0,
            stamps: None,
        };
        let to_client = Segment {
            sequence: cookie.wrapping_add(1),
            acknowledgment: client_next,
            flags: tcp::RST | tcp::ACK,
            window: 0,
            stamps: None,
        };
        // A server that could not be told gives up by itself.
        let _ = send_back(packet, at, &to_server);
        return match rewrite(packet, at, &to_client) {
            Some(()) => Reason::SpliceShort,
            None => Reason::SpliceFailed,
        };
    }

    let stamps = promised & OFFER_TIMESTAMPS != 0;
    if live.state.get() == FLOW_PENDING {
        let ours = live.ts_delta.get();
        live.delta.set(cookie.wrapping_sub(header.sequence));
        live.ts_delta.set(if stamps {
            ours.wrapping_sub(seen.ts_val)
        } else {
            0
        });
        live.server_scale.set(seen.window_scale);
        live.server_next.set(cookie.wrapping_add(1));
        live.server_ack.set(client_next);
        live.seen_at.set(tables.tick());
        // Last: what comes back in must find the rest in place.
        live.state.set(FLOW_SPLICED);
    }
    let client_tsval = live.client_tsval.get();
    let ts_delta = live.ts_delta.get();
    // In generic mode the ACK passes XDP once more, which translates it as it does the client's.
    let (server_next, server_tsval) = if tables.generic() {
        (cookie.wrapping_add(1), seen.ts_val.wrapping_add(ts_delta))
    } else {
        (header.sequence.wrapping_add(1), seen.ts_val)
    };
    let ack = Segment {
        sequence: client_next,
        acknowledgment: server_next,
        flags: tcp::ACK,
        window: live.window.get(),
        stamps: stamps.then_some((client_tsval, server_tsval)),
    };
    if send_back(packet, at, &ack) != Some(true) {
        return Reason::SpliceFailed;
    }
    let scale = if promised & OFFER_WINDOW_SCALE != 0 {
        live.promised_scale.get()
    } else {
        0
    };
    let update = Segment {
        sequence: cookie.wrapping_add(1),
        acknowledgment: client_next,
        flags: tcp::ACK,
        window: translate::rescale(header.window, 0, scale),
        stamps: stamps.then_some((seen.ts_val.wrapping_add(ts_delta), client_tsval)),
    };
    match rewrite(packet, at, &update) {
        Some(()) => Reason::SpliceCompleted,
        None => Reason::SpliceFailed,
    }
}

#[inline(always)]
fn withhold<T: Tables>(tables: &T, service: u16, options: u32) {
    const LEARNED: u32 = OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE | OFFER_ECN;
    let Some(state) = tables.state(service) else {
        return;
    };
    let tick = tables.tick();
    let withheld = profile::withheld(state.withheld(), tick);
    state.withhold((withheld | options) & LEARNED, tick);
    state.set_profile(state.profile().without(options));
}

/// A segment without data, to be written over another.
#[derive(Clone, Copy)]
struct Segment {
    sequence: u32,
    acknowledgment: u32,
    flags: u16,
    window: u16,
    /// TSval and TSecr.
    stamps: Option<(u32, u32)>,
}

const NOPS: u32 = 0x0101_0101;

/// Rewrites the header at `at` and has the interface receive a copy, from client to server. The frame
/// itself is left from server to client again. `Some(false)` where the kernel refuses the copy.
#[inline(always)]
fn send_back<P: Leaving>(packet: &mut P, at: usize, segment: &Segment) -> Option<bool> {
    rewrite(packet, at, segment)?;
    turn_round(packet, at)?;
    let sent = packet.receive_copy();
    turn_round(packet, at)?;
    Some(sent)
}

/// Writes a segment over the TCP header at `at`, whose length and ports stay.
#[inline(always)]
fn rewrite<P: PacketMut>(packet: &mut P, at: usize, segment: &Segment) -> Option<()> {
    let header_len = tcp::Header::read(packet.view(at, tcp::HEADER)?).header_len as usize;
    let old = tcp::header_sum(packet, at, header_len)?;
    {
        let mut view = packet.view_mut(at, tcp::HEADER)?;
        view.set_u32(tcp::field::SEQUENCE, segment.sequence);
        view.set_u32(tcp::field::ACKNOWLEDGMENT, segment.acknowledgment);
        view.set_u16(
            tcp::field::OFFSET_FLAGS,
            ((header_len as u16 >> 2) << 12) | segment.flags,
        );
        view.set_u16(tcp::field::WINDOW, segment.window);
        view.set_u16(tcp::field::URGENT, 0);
    }
    let (stamped, val, ecr) = match segment.stamps {
        Some((val, ecr)) => (true, val, ecr),
        None => (false, 0, 0),
    };
    for word in 0..tcp::MAX_OPTIONS / 4 {
        if tcp::HEADER + word * 4 >= header_len {
            break;
        }
        let value = match word {
            0 if stamped => NOP_NOP_TIMESTAMPS,
            1 if stamped => val,
            2 if stamped => ecr,
            _ => NOPS,
        };
        packet
            .view_mut(at + tcp::HEADER + word * 4, 4)?
            .set_u32(0, value);
    }
    let new = tcp::header_sum(packet, at, header_len)?;
    // Both sums contain the checksum field, which has not changed yet.
    let sum = checksum::finish(old) as u64 + checksum::fold(new) as u64;
    packet.adjust_checksum(at + tcp::field::CHECKSUM, sum)
}

/// Link addresses, IP addresses and ports trade places: no checksum changes by that.
#[inline(always)]
fn turn_round<P: PacketMut>(packet: &mut P, at: usize) -> Option<()> {
    let (ethertype, ip_at) = ethernet::payload(packet)?;
    crate::handshake::swap_ethernet(packet)?;
    if ethertype == ethernet::IPV4 {
        let view = packet.view(ip_at, ipv4::HEADER)?;
        let (source, destination) = (
            view.u32(ipv4::field::SOURCE),
            view.u32(ipv4::field::DESTINATION),
        );
        let mut view = packet.view_mut(ip_at, ipv4::HEADER)?;
        view.set_u32(ipv4::field::SOURCE, destination);
        view.set_u32(ipv4::field::DESTINATION, source);
    } else {
        for word in [0, 8] {
            let view = packet.view(ip_at, ipv6::HEADER)?;
            let source = view.u64(ipv6::field::SOURCE + word);
            let destination = view.u64(ipv6::field::DESTINATION + word);
            let mut view = packet.view_mut(ip_at, ipv6::HEADER)?;
            view.set_u64(ipv6::field::SOURCE + word, destination);
            view.set_u64(ipv6::field::DESTINATION + word, source);
        }
    }
    let view = packet.view(at, 4)?;
    let (source, destination) = (view.u16(0), view.u16(2));
    let mut view = packet.view_mut(at, 4)?;
    view.set_u16(tcp::field::SOURCE, destination);
    view.set_u16(tcp::field::DESTINATION, source);
    Some(())
}
