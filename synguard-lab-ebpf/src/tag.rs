//! VLAN devices for kernels that have none (`CONFIG_VLAN_8021Q` unset): on a macvlan device over the
//! wire's end these two do what a VLAN device would, at the same place above it. The end itself, and
//! the programs on it, see tagged frames either way. Neither has the last word (`TC_ACT_UNSPEC`): the
//! programs attached after it run as well.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_skb_vlan_pop, bpf_skb_vlan_push},
    macros::map,
    maps::Array,
    programs::TcContext,
};
use synguard_lab_ebpf::{TAGS_MAX, Tags};

/// Key: 0; value: the tags of the wire. Written by the lab before the programs are attached, read by
/// `lab_tag_in` and `lab_tag_out`.
#[map]
static TAGS: Array<Tags> = Array::with_max_entries(1, 0);

const ID: u32 = 0x0fff;

/// Takes the tags off a packet that has exactly these, drops any other.
#[inline(always)]
pub fn take_off(ctx: &TcContext) -> i32 {
    let Some(tags) = TAGS.get(0) else {
        return TC_ACT_SHOT;
    };
    let skb = ctx.skb.skb;
    for tag in tags.tags.iter().take(TAGS_MAX) {
        if tag.tpid_be == 0 {
            break;
        }
        // SAFETY: the context of this run.
        let (present, proto, tci) =
            unsafe { ((*skb).vlan_present, (*skb).vlan_proto, (*skb).vlan_tci) };
        let fits = present != 0 && proto == u32::from(tag.tpid_be) && tci & ID == u32::from(tag.id);
        let metadata = metadata(skb).map(|at| {
            // SAFETY: `metadata` returns a pointer to four bytes.
            unsafe { at.read_unaligned() }
        });
        // SAFETY: as above.
        if !fits || unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return TC_ACT_SHOT;
        }
        // The Ethernet header may have moved; the kernel's VLAN code (`skb_reorder_vlan_header`) has
        // what XDP wrote in front of it move along, the helper does not.
        if let Some(metadata) = metadata
            && let Some(at) = self::metadata(skb)
        {
            // SAFETY: `metadata` returns a pointer to four bytes.
            unsafe { at.write_unaligned(metadata) };
        }
    }
    TC_ACT_UNSPEC
}

/// The first word of XDP's metadata, if there is any.
#[inline(always)]
fn metadata(skb: *mut __sk_buff) -> Option<*mut u32> {
    // SAFETY: `skb` is the program's context; both fields are read anew, as helpers move them.
    let (meta, data) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).data_meta) as usize as *mut u32,
            core::ptr::read_volatile(&raw const (*skb).data) as usize as *mut u32,
        )
    };
    (meta.wrapping_add(1) <= data).then_some(meta)
}

/// Puts the tags on a packet, the innermost first.
#[inline(always)]
pub fn put_on(ctx: &TcContext) -> i32 {
    let Some(tags) = TAGS.get(0) else {
        return TC_ACT_SHOT;
    };
    for tag in tags.tags.iter().rev() {
        // SAFETY: the context of this run.
        if tag.tpid_be != 0 && unsafe { bpf_skb_vlan_push(ctx.skb.skb, tag.tpid_be, tag.id) } != 0 {
            return TC_ACT_SHOT;
        }
    }
    TC_ACT_UNSPEC
}
