//! `local` admission: what the TC program `synguard_admit` does with a segment that XDP let
//! through for its cookie.
//!
//! The cookie is checked again: the mark that XDP puts on a packet says only that it is worth
//! looking, so a driver without metadata, or anything else that marks packets, can harm nothing.

use crate::{
    abi::{
        ADMISSION_LOCAL, MODE_OBSERVE, OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE,
    },
    cookie::Timestamp,
    flow::{Flow, Net},
    ingress::{Segment, Visitor, has_grace, is_guarded, locate, validate},
    options,
    packet::Packet,
    recent, syncache,
    tables::{Socket, Tables, Verdict},
    verdict::Reason,
    wire::tcp,
};

/// What the kernel is told about a connection: `struct bpf_tcp_req_attrs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestAttributes {
    /// The client's TSval.
    pub rcv_tsval: u32,
    /// Our TSval, as the client echoed it.
    pub rcv_tsecr: u32,
    /// The client's MSS, bytes.
    pub mss: u16,
    /// Window scale that we promised.
    pub rcv_wscale: u8,
    /// Window scale of the client.
    pub snd_wscale: u8,
    /// ECN was agreed on.
    pub ecn_ok: u8,
    /// Window scaling was agreed on.
    pub wscale_ok: u8,
    /// SACK was agreed on.
    pub sack_ok: u8,
    /// Timestamps were agreed on.
    pub tstamp_ok: u8,
    /// Timestamps are in microseconds: never.
    pub usec_ts_ok: u8,
    /// Zero, or the kernel refuses.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<RequestAttributes>() == 20);

/// What `synguard_admit` can do beyond looking things up.
pub trait Admission: Tables {
    /// Has the kernel make a socket of the segment at hand, for the listener of its tuple
    /// (`bpf_sk_assign_tcp_reqsk`); false where it refuses.
    fn assign<N: Net>(&self, flow: &Flow<N>, attributes: &mut RequestAttributes) -> bool;
    /// Counts the round trip between our SYN-ACK and the segment at hand, ms.
    fn round_trip(&self, service: u16, ms: u32);
}

/// Decides on a packet; `None` where it is none of admission's business.
#[inline(always)]
pub fn admit<P: Packet, T: Admission>(packet: P, tables: &T) -> Option<Verdict> {
    locate(packet, tables, Judge)
}

struct Judge;

impl<P: Packet, T: Admission> Visitor<P, T> for Judge {
    type Output = Option<Verdict>;

    #[inline(always)]
    fn segment<N: Net>(
        self,
        packet: P,
        tables: &T,
        flow: &Flow<N>,
        segment: &Segment,
    ) -> Option<Verdict> {
        judge(&packet, tables, flow, segment)
    }

    #[inline(always)]
    fn other(self, _verdict: Verdict) -> Option<Verdict> {
        None
    }
}

#[inline(always)]
fn judge<N: Net, P: Packet, T: Admission>(
    packet: &P,
    tables: &T,
    flow: &Flow<N>,
    segment: &Segment,
) -> Option<Verdict> {
    const CONTROL: u16 = tcp::SYN | tcp::ACK | tcp::RST;
    let service = segment.service;
    let config = tables.service(service)?;
    let state = tables.state(service)?;
    let now = tables.now();
    if segment.tcp.flags & CONTROL != tcp::ACK
        || config.admission != ADMISSION_LOCAL
        || !(is_guarded(tables, config, state) || has_grace(tables, state))
    {
        return None;
    }
    let verdict = |reason| Some(Verdict::on(service, reason));
    if tables.socket(flow) != Socket::Listener {
        return verdict(Reason::AdmitNoListener);
    }
    let place = recent::Place::of(*flow, tables.seed());
    let bucket = tables.bucket(place.bucket)?;
    let Some(payload) = validate(tables, flow, segment.isn(), segment.cookie(), now) else {
        if recent::seen(bucket, place, now.monotonic) {
            return verdict(Reason::AdmitRepeated);
        }
        // A calm service's stray ACK is the kernel's business, and so is that of one that is only
        // observed: without metadata, every segment comes here.
        let drops = is_guarded(tables, config, state) && config.mode != MODE_OBSERVE;
        return verdict(if drops {
            Reason::AdmitInvalid
        } else {
            Reason::Calm
        });
    };
    if !recent::claim(bucket, place, segment.isn(), now.monotonic) {
        return verdict(Reason::AdmitRepeated);
    }

    let header_len = segment.tcp.header_len as usize;
    if header_len < tcp::HEADER {
        return verdict(Reason::BadTcp);
    }
    let received = options::read(
        packet,
        segment.tcp_at + tcp::HEADER,
        header_len - tcp::HEADER,
        tables.zero(),
    );
    let offers = config.offers;
    let timestamps = received.has_timestamps() && offers & OFFER_TIMESTAMPS != 0;
    let stamp = Timestamp(received.ts_ecr);
    let exact = syncache::exact(tables, flow, segment.isn(), segment.cookie());
    let scale = match timestamps {
        true => stamp.window_scale(payload),
        false if exact.is_known() => exact.scales().then_some(exact.window_scale()),
        false => payload.window_scale(),
    };
    let scaling = scale.is_some() && offers & OFFER_WINDOW_SCALE != 0;
    // The kernel takes no MSS below what its own cookies could stand for.
    let mss = if exact.is_known() {
        exact.mss()
    } else {
        payload.mss::<N>()
    };
    let mss = if mss < N::MIN_KERNEL_MSS {
        N::MIN_KERNEL_MSS
    } else {
        mss
    };
    let mut attributes = RequestAttributes {
        rcv_tsval: if timestamps { received.ts_val } else { 0 },
        rcv_tsecr: if timestamps { received.ts_ecr } else { 0 },
        mss,
        rcv_wscale: if scaling { config.rcv_wscale } else { 0 },
        snd_wscale: if scaling { scale.unwrap_or(0) } else { 0 },
        ecn_ok: (timestamps && stamp.ecn() && offers & OFFER_ECN != 0) as u8,
        wscale_ok: scaling as u8,
        sack_ok: (payload.sack_permitted() && offers & OFFER_SACK != 0) as u8,
        tstamp_ok: timestamps as u8,
        usec_ts_ok: 0,
        reserved: [0; 3],
    };
    if !tables.assign(flow, &mut attributes) {
        return verdict(Reason::AdmitRefused);
    }
    if timestamps {
        tables.round_trip(service, stamp.elapsed_ms(now.monotonic));
    }
    verdict(Reason::Admitted)
}

/// Bucket of the round-trip histogram: bucket `i` holds what is at most 2^i ms.
#[inline(always)]
pub const fn round_trip_bucket(ms: u32) -> usize {
    let mut bucket = 0;
    while bucket < crate::abi::RTT_BUCKETS - 1 {
        if ms <= 1 << bucket {
            break;
        }
        bucket += 1;
    }
    bucket
}
