//! VLAN devices for kernels that have none (`CONFIG_VLAN_8021Q` unset): on a macvlan device over the
//! wire's end these two do what a VLAN device would, at the same place above it. The end itself, and
//! the programs on it, see tagged frames either way.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
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
        // SAFETY: as above.
        if !fits || unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return TC_ACT_SHOT;
        }
    }
    TC_ACT_OK
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
    TC_ACT_OK
}
