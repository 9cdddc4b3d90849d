//! The harness of the bench: restores the packet, then jumps to a program by tail call.
//!
//! `BPF_PROG_TEST_RUN` runs a program many times on one buffer, so a program that rewrites packets
//! would see its own answer from the second run on. The harness undoes that: metadata, length and
//! bytes. What it costs is measured with a program that does nothing in the place of the one under
//! test, and subtracted. Every step is therefore taken whether or not there is something to undo.
//!
//! Each run takes the next of a ring of frames, for caches and branch predictors learn a packet that
//! never changes.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    helpers::{bpf_xdp_adjust_meta, bpf_xdp_adjust_tail},
    macros::map,
    maps::{Array, PerCpuArray, ProgramArray},
    programs::{TcContext, XdpContext},
};
use synguard_lab_ebpf::{
    FRAME_MAX,
    bench::{FRAMES, Frame, Round, slot},
};

use crate::packet::{Linear, bytes};

/// Key: 0; value: what to go round. Written by the bench, read by the harness.
#[map]
static BENCH: Array<Round> = Array::with_max_entries(1, 0);

/// Key: place in the ring; value: a frame. Written by the bench, read by the harness.
#[map]
static BENCH_FRAMES: Array<Frame> = Array::with_max_entries(FRAMES, 0);

/// Key: 0; value: runs so far, per CPU. Written and read by the harness, set to 0 by the bench.
#[map]
static BENCH_RUNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Key: a [`slot`]; value: an XDP program. Written by the bench.
#[map]
static BENCH_XDP: ProgramArray = ProgramArray::with_max_entries(slot::COUNT, 0);

/// Key: a [`slot`]; value: a TC program. Written by the bench.
#[map]
static BENCH_TC: ProgramArray = ProgramArray::with_max_entries(slot::COUNT, 0);

/// Restores the packet and jumps to the XDP program in `SLOT`. Comes back only where there is none;
/// `XDP_ABORTED` then tells the bench.
#[inline(always)]
pub fn xdp<const SLOT: u32>(ctx: &XdpContext) -> u32 {
    let Some((length, frame)) = next() else {
        return xdp_action::XDP_ABORTED;
    };
    let metadata = distance(ctx.metadata(), ctx.data());
    // SAFETY: the context of this run; pointers into the packet are read again below.
    unsafe { bpf_xdp_adjust_meta(ctx.ctx, metadata as i32) };
    let growth = i64::from(length) - distance(ctx.data(), ctx.data_end());
    // SAFETY: as above.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, growth as i32) };
    restore(ctx, frame);
    // SAFETY: nothing here is dropped.
    unsafe { BENCH_XDP.tail_call(ctx, SLOT) };
    xdp_action::XDP_ABORTED
}

/// The same for TC programs, which leave the packet as long as it was.
#[inline(always)]
pub fn tc<const SLOT: u32>(ctx: &TcContext) -> i32 {
    let Some((_, frame)) = next() else {
        return TC_ACT_SHOT;
    };
    restore(ctx, frame);
    // SAFETY: nothing here is dropped.
    unsafe { BENCH_TC.tail_call(ctx, SLOT) };
    TC_ACT_SHOT
}

/// The next frame of the ring, and the length of all of them.
#[inline(always)]
fn next() -> Option<(u32, &'static Frame)> {
    let round = BENCH.get(0)?;
    let runs = BENCH_RUNS.get_ptr_mut(0)?;
    // SAFETY: the slot of this CPU; a test run is not interrupted by another on its CPU.
    let run = unsafe {
        let run = *runs;
        *runs = run.wrapping_add(1);
        run
    };
    Some((round.length, BENCH_FRAMES.get(run & round.mask)?))
}

/// Bytes between two packet pointers.
///
/// By way of memory, as LLVM would subtract in 32 bits where that is all the caller looks at: "R2
/// 32-bit pointer arithmetic prohibited".
#[inline(always)]
fn distance(from: usize, to: usize) -> i64 {
    let mut distance = 0;
    // SAFETY: a local variable.
    unsafe {
        (&raw mut distance).write_volatile(to.wrapping_sub(from) as i64);
        (&raw const distance).read_volatile()
    }
}

/// Copies the frame over the packet, as far as the packet goes; it is even in length.
#[inline(always)]
fn restore(ctx: &impl Linear, frame: &Frame) {
    let mut at = 0;
    while at + 8 <= FRAME_MAX {
        let Some(packet) = bytes::<8>(ctx, at) else {
            break;
        };
        packet.store::<u64>(0, part(frame, at));
        at += 8;
    }
    // The last two, four or six bytes. Of the offsets only one is left when the loop has been
    // unrolled, so these checks cost no more than their two comparisons.
    if at + 6 <= FRAME_MAX {
        let mut at = at;
        if let Some(packet) = bytes::<4>(ctx, at) {
            packet.store::<u32>(0, part(frame, at));
            at += 4;
        }
        if let Some(packet) = bytes::<2>(ctx, at) {
            packet.store::<u16>(0, part(frame, at));
        }
    }
}

/// The `T` at `offset`, a multiple of its size, as it lies in memory.
#[inline(always)]
fn part<T: Copy>(frame: &Frame, offset: usize) -> T {
    // SAFETY: the callers stay inside the frame, which is aligned to eight bytes.
    unsafe { frame.0.as_ptr().add(offset).cast::<T>().read() }
}
