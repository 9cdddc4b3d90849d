//! The sweep of `FLOWS`: in the kernel, where going through a million entries takes milliseconds, and
//! nothing is copied that the packet path may be changing.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_for_each_map_elem, bpf_map_delete_elem};
use synguard_common::{
    abi::{
        CLOSING_CLIENT, CLOSING_RESET, CLOSING_SERVER, ERRAND_REFUSE, ERRAND_RETRY, Errand,
        FLOW_STATES, Tuple,
    },
    expiry::{Fate, fate},
    tables::LiveFlow,
};

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

/// One flow: 0 to go on.
extern "C" fn visit(
    map: *mut c_void,
    tuple: *const Tuple,
    flow: *const LiveFlow,
    context: *const Context,
) -> i64 {
    let Some(sweep) = SWEEP.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: the helper passes a live entry, and `context` as it was given.
    let (live, context) = unsafe { (&*flow, &*context) };
    // SAFETY: a live map value, see `sweep`; the index is bounded by the mask.
    unsafe {
        match fate(live, context.tick, context.idle) {
            Fate::Expires => {
                if bpf_map_delete_elem(map, tuple.cast_mut().cast()) == 0 {
                    (*sweep).removed += 1;
                }
                return 0;
            }
            Fate::Stays => {}
            Fate::Retry => errand(tuple, ERRAND_RETRY),
            Fate::Refuse => errand(tuple, ERRAND_REFUSE),
        }
        let state = live.state.get() as usize & (FLOW_STATES - 1);
        (&raw mut (*sweep).by_state).cast::<u64>().add(state).write(
            (&raw const (*sweep).by_state)
                .cast::<u64>()
                .add(state)
                .read()
                + 1,
        );
        let closing = live.closing.get();
        const OVER: u8 = CLOSING_CLIENT | CLOSING_SERVER;
        if closing & CLOSING_RESET != 0 || closing & OVER == OVER {
            (*sweep).closing += 1;
        }
    }
    0
}

/// Asks the daemon for something.
#[inline(always)]
fn errand(tuple: *const Tuple, what: u32) {
    let errand = Errand {
        // SAFETY: the key of a live entry.
        tuple: unsafe { *tuple },
        what,
        pad: 0,
    };
    if ERRANDS.push(&errand, 0).is_err()
        && let Some(sweep) = SWEEP.get_ptr_mut(0)
    {
        // SAFETY: as in `sweep`.
        unsafe { (*sweep).errands_lost += 1 };
    }
}
