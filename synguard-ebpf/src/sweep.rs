//! The sweep of `FLOWS`: in the kernel, where going through a million entries takes milliseconds, and
//! nothing is copied that the packet path may be changing.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_for_each_map_elem;
use synguard_common::{
    abi::{
        ERRAND_REFUSE, ERRAND_RETRY, Errand, FLOW_PENDING, FLOW_SPLICED, FLOW_STATES, FLOW_WAYS,
        FlowSlot,
    },
    expiry::{self, Fate, fate},
    flowtable::{FREE, free},
    tables::{LiveBucket, LiveSlot},
};

use crate::kernel::Kernel;
use crate::maps::{CLOCK, ERRANDS, FLOWS, RUNTIME, SWEEP};

/// What the callback of `bpf_for_each_map_elem` works on, beside [`SWEEP`].
struct Context {
    tick: u32,
    idle: u32,
}

/// Goes through all flows once.
#[inline(always)]
pub fn sweep() {
    let (Some(clock), Some(runtime), Some(sweep)) =
        (CLOCK.get(0), RUNTIME.get(0), SWEEP.get_ptr_mut(0))
    else {
        return;
    };
    // SAFETY: a live map value; the daemon runs one sweep at a time and reads it in between.
    unsafe {
        (*sweep).left = 0;
        (*sweep).by_state = [0; FLOW_STATES];
        (*sweep).closing = 0;
    }
    let mut context = Context {
        tick: clock.tick,
        idle: runtime.flow_idle_ticks,
    };
    // SAFETY: a map, a callback of the signature that the helper wants, and a context that outlives
    // the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const FLOWS).cast_mut().cast(),
            visit as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
}

/// One bucket: 0 to go on.
extern "C" fn visit(
    _map: *mut c_void,
    _index: *const u32,
    bucket: *const LiveBucket,
    context: *const Context,
) -> i64 {
    // SAFETY: the helper passes a live value, and `context` as it was given.
    let (bucket, context) = unsafe { (&*bucket, &*context) };
    for way in 0..FLOW_WAYS {
        let tag = bucket.tags[way].get();
        if tag != FREE {
            look_at(bucket, way, tag, context);
        }
    }
    0
}

/// One flow.
#[inline(always)]
fn look_at(bucket: &LiveBucket, way: usize, tag: u32, context: &Context) {
    let Some(sweep) = SWEEP.get_ptr_mut(0) else {
        return;
    };
    let live = &bucket.slots[way].flow;
    match fate(live, context.tick, context.idle) {
        Fate::Expires => {
            // SAFETY: a live map value, see `sweep`.
            unsafe { (*sweep).removed += free(&Kernel::of_nothing(), bucket, way, tag) as u64 };
            return;
        }
        Fate::Stays => {}
        Fate::Retry => errand(&bucket.slots[way], ERRAND_RETRY),
        Fate::Refuse => errand(&bucket.slots[way], ERRAND_REFUSE),
    }
    let state = live.state.get() as usize & (FLOW_STATES - 1);
    let over = expiry::is_over(live.closing.get());
    // SAFETY: as above; the index is bounded by the mask.
    unsafe {
        let count = (&raw mut (*sweep).by_state).cast::<u64>().add(state);
        count.write(count.read() + 1);
        (*sweep).closing += over as u64;
        let needed = (state == FLOW_PENDING as usize) | (state == FLOW_SPLICED as usize);
        (*sweep).left += (needed & !over) as u64;
    }
}

/// Asks the daemon for something.
#[inline(always)]
fn errand(slot: &LiveSlot, what: u32) {
    // SAFETY: plain words of the same layout; a copy that is torn by a packet of this moment is of a
    // flow that needs nothing any more, or asks for the same.
    let FlowSlot { tuple, flow } = unsafe { *(&raw const *slot).cast::<FlowSlot>() };
    let errand = Errand {
        tuple,
        flow,
        what,
        pad: 0,
    };
    if ERRANDS.push(errand, 0).is_err()
        && let Some(sweep) = SWEEP.get_ptr_mut(0)
    {
        // SAFETY: as in `sweep`.
        unsafe { (*sweep).errands_lost += 1 };
    }
}
