//! How `synguard_in` tells `synguard_admit` which packet to look at: a word in front of the packet
//! (XDP metadata), which the stack carries along with the skb.
//!
//! Where the driver leaves no room for it, a flag in `RUNTIME` has `synguard_admit` look at every
//! segment instead.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::bpf_xdp_adjust_meta,
};

use crate::maps::RUNTIME;

/// "SynG", so that another program's metadata is not taken for ours. It only says "look": a wrong
/// mark has no effect.
const MARK: u32 = 0x5379_6e47;

/// Marks the packet.
#[inline(always)]
pub fn put(ctx: *mut xdp_md) {
    // SAFETY: `ctx` is the program's context.
    let room = unsafe { bpf_xdp_adjust_meta(ctx, -(size_of::<u32>() as i32)) } == 0;
    if room {
        // SAFETY: as above; both fields are re-read after the helper moved them.
        let (meta, data) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*ctx).data_meta) as usize as *mut u32,
                core::ptr::read_volatile(&raw const (*ctx).data) as usize as *mut u32,
            )
        };
        if meta.wrapping_add(1) <= data {
            // SAFETY: four bytes between the two pointers were just checked.
            unsafe { meta.write_unaligned(MARK) };
        }
    } else if let Some(runtime) = RUNTIME.get_ptr_mut(0) {
        // SAFETY: a live map value; the flag only ever goes from 0 to 1.
        unsafe { (&raw mut (*runtime).no_metadata).write_volatile(1) };
    }
}

/// Whether the packet is marked.
#[inline(always)]
pub fn is_there(skb: *mut __sk_buff) -> bool {
    // SAFETY: `skb` is the program's context.
    let (meta, data) = unsafe {
        (
            (*skb).data_meta as usize as *const u32,
            (*skb).data as usize as *const u32,
        )
    };
    // SAFETY: four bytes between the two pointers are checked first.
    meta.wrapping_add(1) <= data && unsafe { meta.read_unaligned() } == MARK
}

/// Whether the driver leaves no room for marks.
#[inline(always)]
pub fn is_impossible() -> bool {
    RUNTIME
        .get(0)
        .is_some_and(|runtime| runtime.no_metadata != 0)
}
