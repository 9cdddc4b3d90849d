//! Atomic read-modify-write on map values.

/// Adds to a counter in a map value and returns what it was before.
///
/// # Safety
/// `counter` points into a live map value and is aligned.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u64, addend: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, addend)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        (*(counter as *const core::sync::atomic::AtomicU64))
            .fetch_add(addend, core::sync::atomic::Ordering::SeqCst)
    }
}

/// Replaces `old` by `new` and says whether it was `old`.
///
/// # Safety
/// `word` points into a live map value and is aligned.
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u32, old: u32, new: u32) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
            .1
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        use core::sync::atomic::{AtomicU32, Ordering};
        (*(word as *const AtomicU32))
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}
