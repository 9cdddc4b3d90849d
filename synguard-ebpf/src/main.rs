//! The programs of synguard: entry points only. What they decide is in `synguard-common`.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the entry-point macros drop documentation comments"
)]
// Both only exist on nightly, or where RUSTC_BOOTSTRAP says so, as `ebpf-build` does: `asm!` for
// the eBPF target hides values from LLVM and calls kernel functions that have no helper number,
// and the atomics of `core` lack fetch-and-add there.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "see above"))]

mod atomic;
mod count;
mod cursor;
mod kernel;
mod kfunc;
mod maps;
mod mark;
mod sweep;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use synguard_common::{
    admit::admit,
    egress::egress,
    ingress::ingress,
    verdict::{Action, Reason},
    wire::ethernet,
};

use crate::{cursor::Cursor, kernel::Kernel};

/// In a `trace` build, logs a verdict: the number of its reason is the position in
/// `synguard_common::verdict`.
macro_rules! trace {
    ($ctx:expr, $program:literal, $verdict:expr) => {
        #[cfg(feature = "trace")]
        aya_log_ebpf::info!(
            $ctx,
            "{}: service {} reason {}",
            $program,
            $verdict.service,
            $verdict.reason as u32
        );
    };
}

/// No objection: the next program or filter on the interface decides. `TC_ACT_OK` would keep it from
/// running.
const NEXT: i32 = TC_ACT_UNSPEC;

/// The outside interface's first look at a packet. `frags`: only the first buffer is looked at, so
/// frames of several (a large MTU) are welcome.
#[xdp(frags)]
pub fn synguard_in(ctx: XdpContext) -> u32 {
    enter(&ctx)
}

/// The same for generic XDP, as a program of another kind: for one that takes frames of several
/// buffers, the kernel makes a copy of the skb and forgets the length of its link header
/// (`skb_pp_cow_data`), so that TC sees packets without it.
#[xdp]
pub fn synguard_in_skb(ctx: XdpContext) -> u32 {
    enter(&ctx)
}

#[inline(always)]
fn enter(ctx: &XdpContext) -> u32 {
    let verdict = ingress(Cursor::of_xdp(ctx.ctx), &Kernel::of_xdp(ctx.ctx));
    count::count(&verdict);
    trace!(ctx, "in", verdict);
    if verdict.observe {
        return xdp_action::XDP_PASS;
    }
    if verdict.reason as u32 == Reason::CookieValid as u32 {
        mark::put(ctx.ctx);
    }
    match verdict.reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Answer => xdp_action::XDP_TX,
        Action::Drop => xdp_action::XDP_DROP,
    }
}

/// Makes connections of what `synguard_in` marked.
#[classifier]
pub fn synguard_admit(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if !mark::is_there(skb) && !mark::is_impossible() {
        return NEXT;
    }
    // Under a second VLAN tag the kernel does not see IP yet, and would refuse: the hook on the
    // VLAN device above sees the packet next.
    // SAFETY: `skb` is the program's context.
    let protocol = unsafe { (*skb).protocol } as u16;
    if protocol != ethernet::IPV4.to_be() && protocol != ethernet::IPV6.to_be() {
        return NEXT;
    }
    let Some(packet) = Cursor::of_skb(skb) else {
        return NEXT;
    };
    match admit(packet, &Kernel::of_skb(skb)) {
        None => NEXT,
        Some(verdict) => {
            count::count(&verdict);
            trace!(&ctx, "admit", verdict);
            match verdict.reason.action() {
                Action::Drop => TC_ACT_SHOT,
                Action::Pass | Action::Answer => NEXT,
            }
        }
    }
}

/// Learns from what leaves by the interface, and translates what the servers of spliced connections
/// send.
#[classifier]
pub fn synguard_out(ctx: TcContext) -> i32 {
    leave(&ctx, Kernel::of_skb(ctx.skb.skb))
}

/// The same where XDP runs in generic mode.
#[classifier]
pub fn synguard_out_skb(ctx: TcContext) -> i32 {
    leave(&ctx, Kernel::of_skb_behind_generic(ctx.skb.skb))
}

#[inline(always)]
fn leave(ctx: &TcContext, kernel: Kernel<__sk_buff>) -> i32 {
    if let Some(packet) = Cursor::of_skb(ctx.skb.skb)
        && let Some(verdict) = egress(packet, &kernel)
    {
        count::count(&verdict);
        trace!(ctx, "out", verdict);
        if let Action::Drop = verdict.reason.action() {
            return TC_ACT_SHOT;
        }
    }
    NEXT
}

/// Ages the flows. Attached nowhere: the daemon runs it by `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn synguard_sweep(_ctx: TcContext) -> i32 {
    sweep::sweep();
    NEXT
}

/// Tells both coarse clocks. Attached nowhere: the daemon runs it by `BPF_PROG_TEST_RUN`.
#[classifier]
pub fn synguard_moment(_ctx: TcContext) -> i32 {
    kernel::moment();
    NEXT
}

/// Lets every packet pass. Attached nowhere: the daemon has frames received through it, by
/// `BPF_PROG_TEST_RUN` with live frames, where XDP runs in generic mode.
#[xdp]
pub fn synguard_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// A panic that can be reached is an endless loop, which the verifier rejects.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
