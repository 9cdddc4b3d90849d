//! The flood generator: run over live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`), it turns each into a
//! packet of a flood and sends it out of the interface the frame seems to have come in by.
//!
//! A live frame comes back with what the last run left in it, so every byte is written each time.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use synguard_lab_ebpf::{FRAME_MAX, Flood, counter};

use crate::{
    count,
    packet::{Bytes, bytes},
};

/// Key: 0; value: what the frames look like. Written by the lab before a flood, read by
/// `lab_flood`.
#[map]
static FLOOD: Array<Flood> = Array::with_max_entries(1, 0);

/// Key: 0; value: when the next frame is due, in the time of `bpf_ktime_get_ns`. Written and read
/// by `lab_flood`.
#[map]
static NEXT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// How often the clock is read while waiting for a frame's turn: at 25 ns, for about 25 µs. The
/// lab asks for no longer gap.
const WAIT_READS: u32 = 1024;

const ACK: u8 = 0x10;

/// Writes and sends one frame.
#[inline(always)]
pub fn send(ctx: &XdpContext) -> u32 {
    let Some(flood) = FLOOD.get(0) else {
        return xdp_action::XDP_ABORTED;
    };
    if write(ctx, flood).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    if flood.gap_ns != 0 {
        wait(flood.gap_ns);
    }
    count(counter::SENT);
    xdp_action::XDP_TX
}

/// Writes the frame; `None` where the live frame is shorter than the template says.
#[inline(always)]
fn write(ctx: &XdpContext, flood: &Flood) -> Option<()> {
    copy(ctx, &flood.template);

    // The offsets come from a map, so the verifier wants to see them bounded.
    let l3 = (flood.l3 & 0x3f) as usize;
    let l4 = (flood.l4 & 0x7f) as usize;
    let mut tcp_sum = u64::from(flood.tcp_sum);

    if flood.ip_version == 4 {
        let ip: Bytes<20> = bytes(ctx, l3)?;
        let source = word(&flood.source, 0) | (random() & word(&flood.source_random, 0));
        ip.store(12, source);
        ip.store(10, !fold(u64::from(flood.ip_sum) + u64::from(source)));
        tcp_sum += u64::from(source);
    } else {
        let ip: Bytes<40> = bytes(ctx, l3)?;
        // At most 64 of its bits are ever random: the lower half.
        for i in 0..4 {
            let mut part = word(&flood.source, i);
            if i >= 2 {
                part |= random() & word(&flood.source_random, i);
            }
            ip.store(8 + 4 * i, part);
            tcp_sum += u64::from(part);
        }
    }

    let draw = random();
    let flags = flood.flags[(draw & 7) as usize];
    let port = flood.port_be | ((draw >> 16) as u16 & flood.port_random);
    let seq = random();
    // A stack leaves the field zero where the flag is not set.
    let ack = if flags & ACK != 0 { random() } else { 0 };

    let tcp: Bytes<20> = bytes(ctx, l4)?;
    tcp.store(0, port);
    tcp.store(4, seq);
    tcp.store(8, ack);
    tcp.store(13, flags);
    tcp_sum += u64::from(port) + u64::from(seq) + u64::from(ack);
    // The flags are the second byte of their 16-bit word.
    tcp_sum += u64::from(u16::from_ne_bytes([0, flags]));

    let timestamp = (flood.timestamp & 0x7f) as usize;
    if timestamp != 0 {
        let option: Bytes<8> = bytes(ctx, timestamp)?;
        // As good as a number of its own, and a call less.
        let value = seq ^ draw.rotate_left(13);
        let echo = ack.rotate_left(7);
        option.store(0, value);
        option.store(4, echo);
        // The option's words are 16-bit aligned in the segment, whatever their place in the frame.
        tcp_sum += u64::from(value) + u64::from(echo);
    }
    tcp.store(16, !fold(tcp_sum));
    Some(())
}

/// Copies the template over the frame, as far as the frame goes, which is an even number of bytes.
/// The offsets are constants once the loop is unrolled: what the verifier needs.
#[inline(always)]
fn copy(ctx: &XdpContext, template: &[u8; FRAME_MAX]) {
    let from = template.as_ptr();
    let mut at = 0;
    while at < FRAME_MAX {
        if let Some(to) = bytes::<8>(ctx, at) {
            // SAFETY: inside the template, which is aligned to eight bytes.
            to.store(0, unsafe { from.add(at).cast::<u64>().read() });
            at += 8;
            continue;
        }
        // Each case with an offset of its own: through one that varies, LLVM gets at the template by a
        // pointer put together from halves, "invalid mem access 'scalar'".
        if let Some(to) = bytes::<4>(ctx, at) {
            // SAFETY: as above; a multiple of eight is one of four.
            to.store(0, unsafe { from.add(at).cast::<u32>().read() });
            if let Some(to) = bytes::<2>(ctx, at + 4) {
                // SAFETY: as above, of two.
                to.store(0, unsafe { from.add(at + 4).cast::<u16>().read() });
            }
        } else if let Some(to) = bytes::<2>(ctx, at) {
            // SAFETY: as above.
            to.store(0, unsafe { from.add(at).cast::<u16>().read() });
        }
        return;
    }
}

/// The four bytes at `4 * index`, as they lie in memory.
#[inline(always)]
fn word(bytes: &[u8; 16], index: usize) -> u32 {
    // SAFETY: the callers pass 0 to 3; the arrays of `Flood` lie at multiples of eight.
    unsafe { bytes.as_ptr().cast::<u32>().add(index).read() }
}

/// A ones' complement sum folded to 16 bits (RFC 1071).
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: takes no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Waits until the frame is due.
#[inline(always)]
fn wait(gap: u64) {
    let Some(next) = NEXT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the slot of this CPU.
    let due = unsafe { *next };
    let mut now = 0;
    for _ in 0..WAIT_READS {
        // SAFETY: takes no arguments.
        now = unsafe { bpf_ktime_get_ns() };
        if now >= due {
            break;
        }
    }
    // A pause between two calls is not made up for here: the lab keeps the average.
    // SAFETY: as above.
    unsafe {
        *next = if now > due + gap {
            now + gap
        } else {
            due + gap
        }
    };
}
