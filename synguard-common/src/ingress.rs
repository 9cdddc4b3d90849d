//! The decision on every packet that arrives: what the XDP program `synguard_in` does.
//!
//! From the outside in: link, network, address, port, service; then, by the service's state,
//! [`calm`] or [`guarded`]. What no service covers leaves as soon as that is known. Whatever the
//! kernel would deliver to a guarded service is understood here, or dropped with a reason.

use crate::{
    abi::{
        ADMISSION_LOCAL, ADMISSION_NONE, ADMISSION_PROXY, ADMISSION_RESET, AddressEntry, HalfOpen,
        LINK_HEADER, MODE_ALWAYS, MODE_OBSERVE, PortKey, SERVICE_NONE, STATE_GUARDED,
        ServiceConfig,
    },
    cookie::{self, Payload, Timestamp},
    flow::{Flow, MAPPED, Net, V4, V6},
    halfopen,
    handshake::{self, Handshake, Hop, Towards},
    icmp, options,
    packet::{Arriving, Packet, View},
    profile::{self, Offer, Profile},
    recent, reset,
    sources::{self, Listed},
    splice,
    syncache::{self, Exact},
    tables::{Inserted, Socket, State, Tables, Verdict, key},
    verdict::Reason,
    wire::{ethernet, ipv4, ipv6, tcp},
};

/// Decides on a frame, and rewrites it where the verdict is to answer.
#[inline(always)]
pub fn ingress<P: Arriving, T: Tables>(packet: P, tables: &T) -> Verdict {
    let mut packet = packet;
    match locate(&mut packet, tables, Judge) {
        Some(verdict)
            if verdict.reason as u32 == Reason::NotTcp as u32
                && tables.forwards()
                && icmp::inward(&mut packet, *tables) =>
        {
            Verdict::none(Reason::IcmpTranslated)
        }
        Some(verdict) => verdict,
        None => splice::parked(packet, tables),
    }
}

struct Judge;

impl<P: Arriving, T: Tables> Visitor<P, T> for Judge {
    /// `None`: a segment of a proxied service, which is parked.
    type Output = Option<Verdict>;

    #[inline(always)]
    fn segment<N: Net>(
        self,
        mut packet: P,
        tables: &T,
        flow: &Flow<N>,
        segment: &Segment,
    ) -> Option<Verdict> {
        judge(&mut packet, tables, flow, segment)
    }

    #[inline(always)]
    fn other(self, verdict: Verdict) -> Option<Verdict> {
        Some(verdict)
    }
}

/// A TCP segment for a service, beside its [`Flow`]. Two values, because the flow is passed by
/// reference here and there: the rest would then have to lie on the stack with it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Its TCP header.
    pub tcp: tcp::Header,
    /// Where the IP header starts in the frame.
    pub ip_at: usize,
    /// Where the TCP header starts.
    pub tcp_at: usize,
    /// Where the packet ends, by the length its IP header gives.
    pub end: usize,
    /// MTU of the device that has the address.
    pub mtu: u16,
    /// The service, never [`SERVICE_NONE`].
    pub service: u16,
}

impl Segment {
    /// The client's initial sequence number, if this is the first segment after its SYN.
    #[inline(always)]
    pub fn isn(&self) -> u32 {
        self.tcp.sequence.wrapping_sub(1)
    }

    /// The cookie that this segment acknowledges, if it does.
    #[inline(always)]
    pub fn cookie(&self) -> u32 {
        self.tcp.acknowledgment.wrapping_sub(1)
    }
}

/// What to do with a packet once its service is known.
///
/// A visitor, not an enum of both families: LLVM merges the variants of a large enum into shared
/// registers, some of them never written, and the verifier answers "R2 !read_ok".
pub trait Visitor<P, T> {
    /// What it comes to.
    type Output;
    /// A TCP segment for a service.
    fn segment<N: Net>(
        self,
        packet: P,
        tables: &T,
        flow: &Flow<N>,
        segment: &Segment,
    ) -> Self::Output;
    /// Anything else, with the verdict on it.
    fn other(self, verdict: Verdict) -> Self::Output;
}

/// Finds the service of a frame and its TCP header, or the verdict where there is none to find.
#[inline(always)]
pub fn locate<P: Packet, T: Tables, V: Visitor<P, T>>(
    packet: P,
    tables: &T,
    visitor: V,
) -> V::Output {
    let Some((ethertype, at)) = ethernet::payload(&packet) else {
        return visitor.other(Verdict::none(Reason::NotTcp));
    };
    let at = at + tables.zero();
    if at > ethernet::MAX_HEADER {
        return visitor.other(Verdict::none(Reason::NotTcp));
    }
    if ethertype == ethernet::IPV4 {
        visit_v4(packet, *tables, at, visitor)
    } else if ethertype == ethernet::IPV6 {
        visit_v6(packet, *tables, at, visitor)
    } else if ethernet::is_tag(ethertype) {
        visitor.other(hidden(tables, Reason::TooManyTags))
    } else {
        visitor.other(Verdict::none(Reason::NotTcp))
    }
}

// A function for each family, so that their stacks do not add up: "combined stack size of 2 calls
// is 592. Too large".

#[inline(never)]
fn visit_v4<P: Packet, T: Tables, V: Visitor<P, T>>(
    packet: P,
    tables: T,
    at: usize,
    visitor: V,
) -> V::Output {
    match locate_v4(&packet, &tables, at) {
        Ok((flow, segment)) => visitor.segment(packet, &tables, &flow, &segment),
        Err(verdict) => visitor.other(verdict),
    }
}

#[inline(never)]
fn visit_v6<P: Packet, T: Tables, V: Visitor<P, T>>(
    packet: P,
    tables: T,
    at: usize,
    visitor: V,
) -> V::Output {
    match locate_v6(&packet, &tables, at) {
        Ok((flow, segment)) => visitor.segment(packet, &tables, &flow, &segment),
        Err(verdict) => visitor.other(verdict),
    }
}

#[inline(always)]
fn locate_v4<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    at: usize,
) -> Result<(Flow<V4>, Segment), Verdict> {
    let Some(view) = packet.view(at, ipv4::HEADER) else {
        return Err(Verdict::none(Reason::NotTcp));
    };
    let ip = ipv4::Header::read(view);
    if ip.protocol != ipv4::TCP {
        return Err(Verdict::none(Reason::NotTcp));
    }
    let net = V4 {
        client: ip.source,
        server: ip.destination,
    };
    let Some(entry) = tables.address(&net.server()) else {
        return Err(Verdict::none(Reason::Unprotected));
    };
    let header_len = ip.header_len as usize;
    let total_len = ip.total_len as usize;
    if ip.version != 4 || header_len < ipv4::HEADER || total_len < header_len {
        return Err(hidden(tables, Reason::BadIp));
    }
    if ip.fragment & ipv4::OFFSET_MASK != 0 {
        return Err(Verdict::none(Reason::Incomplete));
    }
    let tcp_at = at + header_len;
    let fragment = ip.fragment & ipv4::MORE_FRAGMENTS != 0;
    segment(
        packet,
        tables,
        &entry,
        net,
        at,
        tcp_at,
        at + total_len,
        fragment,
    )
}

#[inline(always)]
fn locate_v6<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    at: usize,
) -> Result<(Flow<V6>, Segment), Verdict> {
    let Some(view) = packet.view(at, ipv6::HEADER) else {
        return Err(Verdict::none(Reason::NotTcp));
    };
    let ip = ipv6::Header::read(view);
    if ip.next_header != ipv6::TCP && !ipv6::is_extension(ip.next_header) {
        return Err(Verdict::none(Reason::NotTcp));
    }
    // The tables hold IPv4 addresses in mapped form; as the destination of an IPv6 packet such an
    // address is nobody's.
    if ip.destination[0] == 0 && ip.destination[1] >> 32 == MAPPED {
        return Err(Verdict::none(Reason::Unprotected));
    }
    let net = V6 {
        client: ip.source,
        server: ip.destination,
    };
    let Some(entry) = tables.address(&net.server()) else {
        return Err(Verdict::none(Reason::Unprotected));
    };
    if ip.version_class_flow >> 28 != 6 {
        return Err(hidden(tables, Reason::BadIp));
    }
    let payload_at = at + ipv6::HEADER;
    let end = payload_at + ip.payload_len as usize;
    if ip.next_header == ipv6::TCP {
        return segment(packet, tables, &entry, net, at, payload_at, end, false);
    }
    match ipv6::upper(packet, payload_at, ip.next_header) {
        ipv6::Upper::Tcp {
            at: tcp_at,
            fragment,
        } => segment(packet, tables, &entry, net, at, tcp_at, end, fragment),
        ipv6::Upper::Other => Err(Verdict::none(Reason::NotTcp)),
        ipv6::Upper::LaterFragment => Err(Verdict::none(Reason::Incomplete)),
        ipv6::Upper::Hidden => Err(hidden(tables, Reason::BadExtension)),
    }
}

/// The verdict on a packet whose service cannot be known, though the kernel might find one:
/// `reason` while any service is guarded, else it passes as the kernel's business.
#[inline(always)]
fn hidden<T: Tables>(tables: &T, reason: Reason) -> Verdict {
    match tables.state(SERVICE_NONE) {
        Some(all) if all.state() == STATE_GUARDED && !tables.draining() => Verdict::none(reason),
        _ => Verdict::none(Reason::Calm),
    }
}

/// The verdict on a packet that ends before its TCP header does.
#[inline(always)]
fn cut_short<P: Packet, T: Tables>(packet: &P, tables: &T) -> Verdict {
    if packet.is_whole() {
        Verdict::none(Reason::Incomplete)
    } else {
        hidden(tables, Reason::OutOfReach)
    }
}

/// `reason` where the service is guarded, else its packet passes as the kernel's business.
#[inline(always)]
fn by_state<T: Tables>(tables: &T, service: u16, reason: Reason) -> Verdict {
    let (Some(config), Some(state)) = (tables.service(service), tables.state(service)) else {
        return Verdict::none(Reason::Unprotected);
    };
    let reason = if is_guarded(tables, config, state) {
        reason
    } else {
        Reason::Calm
    };
    Verdict {
        service,
        reason,
        observe: config.mode == MODE_OBSERVE,
        syn: false,
    }
}

/// The service of a port of an address.
#[inline(always)]
pub fn service_of<T: Tables>(tables: &T, entry: &AddressEntry, port: u16) -> u16 {
    if entry.ports_id == 0 {
        return entry.service;
    }
    let key = PortKey {
        ports_id: entry.ports_id,
        port,
        pad: 0,
    };
    match tables.port(&key) {
        Some(service) => service,
        None => entry.service,
    }
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "one call per family; a struct would only rename them"
)]
fn segment<N: Net, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    entry: &AddressEntry,
    net: N,
    ip_at: usize,
    tcp_at: usize,
    end: usize,
    fragment: bool,
) -> Result<(Flow<N>, Segment), Verdict> {
    let tcp_at = tcp_at + tables.zero();
    if tcp_at > tcp::MAX_AT {
        return Err(Verdict::none(Reason::Incomplete));
    }
    if fragment {
        // The ports are in the first eight bytes, and a fragment with fewer is never reassembled
        // (`ip_frag_queue` rounds its length down to nothing, `ip6_frag_queue` refuses it).
        let Some(view) = packet.view(tcp_at, 4) else {
            return Err(cut_short(packet, tables));
        };
        let service = service_of(tables, entry, view.u16(tcp::field::DESTINATION));
        return Err(if service == SERVICE_NONE {
            Verdict::none(Reason::Unprotected)
        } else if sources::listed(tables, &net) as u32 == Listed::Blocked as u32 {
            match tables.service(service) {
                Some(config) => Verdict::of(config, service, Reason::SourceBlocked, false),
                None => Verdict::none(Reason::Unprotected),
            }
        } else {
            by_state(tables, service, Reason::Fragment)
        });
    }
    let Some(view) = packet.view(tcp_at, tcp::HEADER) else {
        return Err(cut_short(packet, tables));
    };
    let tcp = tcp::Header::read(view);
    let service = service_of(tables, entry, tcp.destination);
    if service == SERVICE_NONE {
        return Err(Verdict::none(Reason::Unprotected));
    }
    let flow = Flow {
        net,
        client_port: tcp.source,
        server_port: tcp.destination,
    };
    Ok((
        flow,
        Segment {
            tcp,
            ip_at,
            tcp_at,
            end,
            mtu: entry.mtu,
            service,
        },
    ))
}

/// Whether SYNs of the service are answered with cookies now (or would be, in mode observe).
#[inline(always)]
pub fn is_guarded<T: Tables>(tables: &T, config: &ServiceConfig, state: impl State) -> bool {
    if config.admission == ADMISSION_NONE || tables.draining() {
        return false;
    }
    config.mode == MODE_ALWAYS || state.state() == STATE_GUARDED
}

/// Whether cookies of a service that is not guarded may still be on their way back.
#[inline(always)]
pub fn has_grace<T: Tables>(tables: &T, state: impl State) -> bool {
    let until = state.grace_until();
    tables.draining() || (until != 0 && tables.now().monotonic < until)
}

#[inline(always)]
fn judge<N: Net, P: Arriving, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
) -> Option<Verdict> {
    let service = segment.service;
    let (Some(config), Some(state)) = (tables.service(service), tables.state(service)) else {
        return Some(Verdict::none(Reason::Unprotected));
    };
    let syn = segment.tcp.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let listed = sources::listed(tables, &flow.net);
    if listed as u32 == Listed::Blocked as u32 {
        return Some(Verdict::of(config, service, Reason::SourceBlocked, syn));
    }
    if config.admission == ADMISSION_PROXY && !syn {
        splice::park(tables, flow, segment);
        return None;
    }
    let reason = if is_guarded(tables, config, state) {
        if syn && listed as u32 == Listed::Allowed as u32 {
            allowed_syn(packet, tables, flow, segment)
        } else {
            guarded(packet, tables, flow, segment, config)
        }
    } else if syn
        && tables.syn_budget() != 0
        && listed as u32 == Listed::Not as u32
        && !sources::charge(tables, &flow.net.client(), tables.syn_budget())
    {
        Reason::SourceOverBudget
    } else {
        calm(packet, tables, flow, segment, config, state)
    };
    Some(Verdict::of(config, service, reason, syn))
}

/// Why a segment that no host sends is dropped for a guarded service.
#[inline(always)]
pub fn nonsense(tcp: &tcp::Header, tcp_at: usize, end: usize) -> Option<Reason> {
    let flags = tcp.flags;
    let header_len = tcp.header_len as usize;
    if header_len < tcp::HEADER || tcp_at + header_len > end {
        return Some(Reason::BadTcp);
    }
    if flags & tcp::SYN != 0 {
        if flags & tcp::RST != 0 {
            return Some(Reason::SynRst);
        }
        if flags & tcp::FIN != 0 {
            return Some(Reason::SynFin);
        }
    } else if flags & (tcp::ACK | tcp::RST) == 0 {
        return Some(Reason::NoAck);
    }
    None
}

// ---- calm -------------------------------------------------------------------------------------

/// A calm service's segment always passes; what matters is what it does to the half-open count.
#[inline(always)]
fn calm<N: Net, P: Arriving, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
    config: &ServiceConfig,
    state: T::State<'_>,
) -> Reason {
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
    if segment.tcp.flags & CONTROL == tcp::SYN {
        return calm_syn(packet, *tables, flow, Syn::of(segment));
    }
    let tcp = &segment.tcp;
    if state.half_open() != 0
        && let Some(reason) =
            half_open_step(*tables, flow, tcp.flags, tcp.sequence, tcp.acknowledgment)
    {
        return reason;
    }
    if config.admission == ADMISSION_LOCAL
        && segment.tcp.flags & CONTROL & !tcp::FIN == tcp::ACK
        && has_grace(tables, state)
        && tables.socket(flow) == Socket::Listener
    {
        let reason = check_cookie(*tables, flow, segment.isn(), segment.cookie());
        if reason as u32 != Reason::AckInvalid as u32 {
            return reason;
        }
    }
    Reason::Calm
}

/// What [`calm_syn`] has to know of a segment, in one of the five registers that arguments are passed in.
#[derive(Clone, Copy)]
struct Syn(u64);

impl Syn {
    #[inline(always)]
    fn of(segment: &Segment) -> Self {
        let place = (segment.ip_at as u64 & 0xffff) << 48;
        Self(place | (segment.service as u64) << 32 | segment.tcp.sequence as u64)
    }

    #[inline(always)]
    fn isn(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn service(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    fn ip_at(self) -> usize {
        (self.0 >> 48) as usize
    }
}

/// A SYN for a calm service. A function of its own, like [`track`], for the sake of the stack, of which a
/// program has 512 bytes.
#[inline(never)]
fn calm_syn<N: Net, P: Arriving, T: Tables>(
    packet: &P,
    tables: T,
    flow: &Flow<N>,
    syn: Syn,
) -> Reason {
    let service = syn.service();
    let (Some(config), Some(state)) = (tables.service(service), tables.state(service)) else {
        return Reason::Unprotected;
    };
    // What is not admitted locally may be forwarded: this box's socket table says nothing of it.
    if config.admission == ADMISSION_LOCAL {
        match tables.socket(flow) {
            Socket::Listener | Socket::TimeWait => {}
            Socket::None => return Reason::NoListener,
            Socket::Request => return Reason::SynRetransmitted,
            Socket::Connection => return Reason::SynKnown,
        }
    }
    match track(packet, tables, flow, syn) {
        Inserted::Exists => Reason::SynRetransmitted,
        Inserted::New => {
            let count = state.half_open_add();
            if config.admission != ADMISSION_NONE && halfopen::crosses(count, config.high) {
                turn_guarded(&tables, config, state);
                Reason::SynCrossed
            } else {
                Reason::SynTracked
            }
        }
        Inserted::Full => {
            if config.admission != ADMISSION_NONE {
                turn_guarded(&tables, config, state);
            }
            Reason::SynTableFull
        }
    }
}

/// Enters the connection of a SYN in the half-open table.
#[inline(never)]
fn track<N: Net, P: Arriving, T: Tables>(
    packet: &P,
    tables: T,
    flow: &Flow<N>,
    syn: Syn,
) -> Inserted {
    let link_len = ethernet::before_type(syn.ip_at());
    let mut entry = HalfOpen {
        since: tables.now().monotonic,
        client_isn: syn.isn(),
        server_isn: 0,
        service: syn.service(),
        confirmed: 0,
        link_len: link_len as u8,
        link: [0; LINK_HEADER / 4],
    };
    for (index, word) in entry.link.iter_mut().enumerate() {
        // The link header was read to get here.
        *word = ethernet::word(packet, index, link_len).unwrap_or(0);
    }
    tables.half_open_insert(&flow.tuple(), &entry)
}

#[inline(always)]
fn turn_guarded<T: Tables>(tables: &T, config: &ServiceConfig, state: T::State<'_>) {
    let now = tables.now().monotonic;
    state.turn_guarded(now);
    if config.mode != MODE_OBSERVE
        && let Some(all) = tables.state(SERVICE_NONE)
    {
        all.turn_guarded(now);
    }
}

/// Takes a half-open connection out of the count if this segment ends it.
#[inline(never)]
pub fn half_open_step<N: Net, T: Tables>(
    tables: T,
    flow: &Flow<N>,
    flags: u16,
    sequence: u32,
    acknowledgment: u32,
) -> Option<Reason> {
    let tuple = flow.tuple();
    let entry = tables.half_open(&tuple)?;
    let reason = match halfopen::step(&entry, flags, sequence, acknowledgment) {
        halfopen::Step::Stays => return None,
        halfopen::Step::Reset => Reason::HalfOpenReset,
        halfopen::Step::Done => Reason::HandshakeDone,
        halfopen::Step::AskSocket => match tables.socket(flow) {
            Socket::Connection | Socket::TimeWait => Reason::HandshakeDone,
            _ => return None,
        },
    };
    if !tables.half_open_remove(&tuple) {
        return None;
    }
    tables.state(entry.service)?.half_open_sub();
    if reason as u32 == Reason::HandshakeDone as u32 {
        sources::refund(&tables, &tuple.client);
    }
    Some(reason)
}

// ---- guarded ----------------------------------------------------------------------------------

#[inline(always)]
fn guarded<N: Net, P: Arriving, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
    config: &ServiceConfig,
) -> Reason {
    if let Some(reason) = nonsense(&segment.tcp, segment.tcp_at, segment.end) {
        return reason;
    }
    let flags = segment.tcp.flags;
    if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        return guarded_syn(packet, tables, flow, segment, config);
    }
    if config.admission == ADMISSION_RESET {
        let (sequence, acknowledgment) = (segment.tcp.sequence, segment.tcp.acknowledgment);
        if tables
            .state(segment.service)
            .is_some_and(|state| state.half_open() != 0)
            && let Some(reason) = half_open_step(*tables, flow, flags, sequence, acknowledgment)
        {
            return reason;
        }
        return reset::segment(*tables, flow, flags, segment.tcp.sequence);
    }
    match tables.socket(flow) {
        Socket::Request if flags & tcp::SYN == 0 => {
            let tcp = &segment.tcp;
            let step = half_open_step(*tables, flow, flags, tcp.sequence, tcp.acknowledgment);
            match step {
                Some(reason) => reason,
                None => Reason::Established,
            }
        }
        Socket::Request | Socket::TimeWait | Socket::Connection => Reason::Established,
        Socket::None | Socket::Listener if flags & tcp::SYN != 0 => Reason::SynAckUnknown,
        Socket::None | Socket::Listener if flags & tcp::RST != 0 => {
            syncache::forget(tables, flow, segment.tcp.sequence);
            Reason::RstUnknown
        }
        Socket::None => Reason::NoListener,
        Socket::Listener => check_cookie(*tables, flow, segment.isn(), segment.cookie()),
    }
}

/// A SYN of a source that need not prove anything.
#[inline(always)]
fn allowed_syn<N: Net, P: Arriving, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
) -> Reason {
    if let Some(reason) = nonsense(&segment.tcp, segment.tcp_at, segment.end) {
        return reason;
    }
    calm_syn(packet, *tables, flow, Syn::of(segment));
    Reason::SynAllowed
}

#[inline(always)]
fn guarded_syn<N: Net, P: Arriving, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
    config: &ServiceConfig,
) -> Reason {
    if flow.net.bad_source() {
        return Reason::BadSource;
    }
    let Some(link) = packet.view(0, 1) else {
        return Reason::NotForHost;
    };
    if link.u8(0) & 1 != 0 {
        return Reason::NotForHost;
    }
    if config.admission == ADMISSION_LOCAL {
        match tables.socket(flow) {
            Socket::Listener => {}
            Socket::None => return Reason::NoListener,
            Socket::TimeWait => return Reason::SynTimeWait,
            Socket::Request | Socket::Connection => return Reason::SynKnown,
        }
    }
    if config.admission == ADMISSION_RESET && tables.is_verified(&flow.net.client()) {
        calm_syn(packet, *tables, flow, Syn::of(segment));
        return Reason::SynVerified;
    }
    let now = tables.now();
    let Some(key) = key(tables, now.epoch()) else {
        return Reason::NoKey;
    };
    let frame_len = packet.frame_len(segment.end);
    if segment.end > frame_len {
        return Reason::BadIp;
    }
    if config.mode == MODE_OBSERVE {
        // It passes, so it is half-open at the server and counted as ever.
        calm_syn(packet, *tables, flow, Syn::of(segment));
        return Reason::Challenged;
    }

    if !sources::charge(tables, &flow.net.client(), tables.answer_budget()) {
        return Reason::SourceOverBudget;
    }
    let options_at = segment.tcp_at + tcp::HEADER;
    let options_len = segment.tcp.header_len as usize - tcp::HEADER;
    let offered = options::read(packet, options_at, options_len, tables.zero());
    let offer = match config.admission {
        ADMISSION_PROXY => {
            let Some(state) = tables.state(segment.service) else {
                return Reason::Unprotected;
            };
            let profile = state.profile();
            if config.learns != 0
                && profile::is_news(profile, offered.present, state.withheld(), tables.tick())
                && state.claim_probe(tables.tick())
            {
                calm_syn(packet, *tables, flow, Syn::of(segment));
                return Reason::ProfileProbe;
            }
            Offer::of(config, profile, N::OVERHEAD)
        }
        _ => Offer::of(config, Profile::default(), N::OVERHEAD),
    };
    let options = offered.agree(handshake::asks_for_ecn(segment.tcp.flags), offer.offers);
    let isn = segment.tcp.sequence;
    let limit = segment.mtu.saturating_sub(N::OVERHEAD);
    let mut answer = Handshake {
        sequence: 0,
        acknowledgment: isn.wrapping_add(1),
        flags: tcp::SYN | tcp::ACK | if options.has_ecn() { tcp::ECE } else { 0 },
        // A client that is proxied waits until its server is there.
        window: if config.admission == ADMISSION_PROXY {
            0
        } else {
            config.window
        },
        mss: if offer.mss != 0 && offer.mss < limit {
            offer.mss
        } else {
            limit
        },
        options: options.present,
        window_scale: offer.scale,
        ts_val: Timestamp::new(now.monotonic, &options).0,
        ts_ecr: options.ts_val,
        hop: Hop {
            limit: config.ttl,
            class: 0,
        },
    };
    let payload = Payload::new::<N>(&options, key.epoch);
    if config.admission == ADMISSION_RESET {
        reset::question(&mut answer, flow, payload, key);
    } else {
        answer.sequence = cookie::generate(flow, isn, payload, key);
        if tables.syn_cache() && tables.may_remember() {
            let mss = if options.mss == 0 {
                N::DEFAULT_MSS
            } else {
                options.mss
            };
            let syn = syncache::Syn::new(
                isn,
                answer.sequence,
                options.ts_val,
                segment.service,
                segment.ip_at,
            );
            let exact = Exact::new(mss, options.window_scale, options.present);
            syncache::remember(packet, tables, flow, syn, exact);
        }
    }
    if handshake::write(
        packet,
        segment.ip_at,
        frame_len,
        flow,
        Towards::Client,
        &answer,
    ) {
        Reason::Challenged
    } else {
        Reason::NoRoom
    }
}

/// Checks an ACK for which there is a listener but no connection.
///
/// A function of its own, as is [`half_open_step`]: called from several places, they would make
/// the program three times as long.
#[inline(never)]
fn check_cookie<N: Net, T: Tables>(tables: T, flow: &Flow<N>, isn: u32, cookie: u32) -> Reason {
    let now = tables.now();
    let place = recent::Place::of(*flow, tables.seed());
    let Some(bucket) = tables.bucket(place.bucket) else {
        return Reason::AckInvalid;
    };
    if validate(&tables, flow, isn, cookie, now).is_some() {
        recent::record(bucket, place, isn, now.monotonic);
        sources::refund(&tables, &flow.net.client());
        Reason::CookieValid
    } else if recent::seen(bucket, place, now.monotonic) {
        Reason::JustAdmitted
    } else {
        Reason::AckInvalid
    }
}

/// What a cookie says, if it is one of ours.
#[inline(always)]
pub fn validate<N: Net, T: Tables>(
    tables: &T,
    flow: &Flow<N>,
    isn: u32,
    cookie: u32,
    now: crate::clock::Now,
) -> Option<Payload> {
    let epoch = now.epoch_of(Payload::claimed(cookie).parity());
    cookie::validate(flow, isn, cookie, key(tables, epoch)?)
}
