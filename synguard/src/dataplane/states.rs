//! The map `STATES` as shared memory.
//!
//! The programs count half-open connections in it while the daemon subtracts what it expires; a
//! whole-value update by system call would lose counts. So the daemon maps the array and works
//! on the same words with atomic instructions.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use synguard_common::abi::{STATE_CALM, STATE_GUARDED, ServiceState};

use super::shared::{Shareable, Shared};

/// [`ServiceState`] with the fields as both sides use them.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedState {
    half_open: AtomicU64,
    state: AtomicU32,
    guarded_count: AtomicU32,
    guarded_at: AtomicU64,
    grace_until: AtomicU64,
    profile: AtomicU64,
    withheld: AtomicU32,
    withheld_at: AtomicU32,
    probed_at: AtomicU32,
    pad: AtomicU32,
}

const _: () = {
    assert!(size_of::<SharedState>() == size_of::<ServiceState>());
    assert!(align_of::<SharedState>() == 8);
    assert!(offset_of!(SharedState, half_open) == offset_of!(ServiceState, half_open));
    assert!(offset_of!(SharedState, state) == offset_of!(ServiceState, state));
    assert!(offset_of!(SharedState, guarded_count) == offset_of!(ServiceState, guarded_count));
    assert!(offset_of!(SharedState, guarded_at) == offset_of!(ServiceState, guarded_at));
    assert!(offset_of!(SharedState, grace_until) == offset_of!(ServiceState, grace_until));
    assert!(offset_of!(SharedState, profile) == offset_of!(ServiceState, profile));
    assert!(offset_of!(SharedState, withheld) == offset_of!(ServiceState, withheld));
    assert!(offset_of!(SharedState, withheld_at) == offset_of!(ServiceState, withheld_at));
    assert!(offset_of!(SharedState, probed_at) == offset_of!(ServiceState, probed_at));
};

impl SharedState {
    /// What it is at this moment, field by field.
    pub fn read(&self) -> ServiceState {
        ServiceState {
            half_open: self.half_open.load(Ordering::Relaxed),
            state: self.state.load(Ordering::Acquire),
            guarded_count: self.guarded_count.load(Ordering::Relaxed),
            guarded_at: self.guarded_at.load(Ordering::Relaxed),
            grace_until: self.grace_until.load(Ordering::Relaxed),
            profile: self.profile.load(Ordering::Relaxed),
            withheld: self.withheld.load(Ordering::Relaxed),
            withheld_at: self.withheld_at.load(Ordering::Relaxed),
            probed_at: self.probed_at.load(Ordering::Relaxed),
            pad: 0,
        }
    }

    /// Subtracts expired connections. Never below zero: the count of a number that was given to
    /// another service in between must not wrap.
    pub fn expire(&self, connections: u64) {
        // The closure always yields a value, so that there is no failure to handle.
        let _ = self
            .half_open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                Some(count.saturating_sub(connections))
            });
    }

    /// Turns a guarded service calm. Cookies stay good until `grace_until` (monotonic ns), which
    /// is in place before any packet can see the new state. False if it was calm already.
    pub fn turn_calm(&self, grace_until: u64) -> bool {
        self.grace_until.store(grace_until, Ordering::Release);
        self.state
            .compare_exchange(
                STATE_GUARDED,
                STATE_CALM,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Turns a calm service guarded, as the programs would. False if it was guarded already.
    pub fn turn_guarded(&self, now: u64) -> bool {
        self.guarded_at.store(now, Ordering::Release);
        self.state
            .compare_exchange(
                STATE_CALM,
                STATE_GUARDED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Back to the beginning, before the number goes to another service.
    pub fn clear(&self) {
        self.state.store(STATE_CALM, Ordering::Release);
        self.half_open.store(0, Ordering::Relaxed);
        self.guarded_count.store(0, Ordering::Relaxed);
        self.guarded_at.store(0, Ordering::Relaxed);
        self.grace_until.store(0, Ordering::Relaxed);
        self.profile.store(0, Ordering::Relaxed);
        self.withheld.store(0, Ordering::Relaxed);
        self.withheld_at.store(0, Ordering::Relaxed);
        self.probed_at.store(0, Ordering::Relaxed);
    }
}

/// The mapped array.
pub type States = Shared<SharedState>;

// SAFETY: see the assertions above.
unsafe impl Shareable for SharedState {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_never_wrap() {
        let states = States::anonymous(1024).unwrap();
        let slot = states.get(1023).unwrap();
        slot.half_open.store(3, Ordering::Relaxed);
        slot.expire(2);
        assert_eq!(slot.read().half_open, 1);
        slot.expire(2);
        assert_eq!(slot.read().half_open, 0);
        assert!(states.get(1024).is_none());
        assert_eq!(states.get(1022).unwrap().read(), ServiceState::default());
    }

    #[test]
    fn only_a_guarded_service_turns_calm_and_only_once() {
        let states = States::anonymous(2).unwrap();
        let slot = states.get(1).unwrap();
        assert!(!slot.turn_calm(5));
        assert!(slot.turn_guarded(7));
        assert!(!slot.turn_guarded(8));
        assert!(slot.turn_calm(9));
        assert_eq!(
            slot.read(),
            ServiceState {
                guarded_at: 8,
                grace_until: 9,
                ..ServiceState::default()
            }
        );
        slot.clear();
        assert_eq!(slot.read(), ServiceState::default());
    }
}
