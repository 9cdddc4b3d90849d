//! The map `STATES` as shared memory.
//!
//! The programs count half-open connections in it while the daemon subtracts what it expires; a
//! whole-value update by system call would lose counts. So the daemon maps the array and works
//! on the same words with atomic instructions.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use synguard_common::abi::{STATE_CALM, STATE_GUARDED, ServiceState};

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
#[derive(Debug)]
pub struct States {
    first: NonNull<SharedState>,
    slots: usize,
    bytes: usize,
}

// SAFETY: all access goes through shared references to atomics; the mapping belongs to this
// value alone and lives until it is dropped.
unsafe impl Send for States {}
// SAFETY: as above.
unsafe impl Sync for States {}

impl States {
    /// Maps the array; it must have been created with `BPF_F_MMAPABLE`.
    pub fn map(data: &MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<SharedState>() {
            return Err(io::Error::other(format!(
                "values of {} bytes instead of {}",
                info.value_size(),
                size_of::<SharedState>()
            )));
        }
        Self::map_fd(
            data.fd().as_fd().as_raw_fd(),
            libc::MAP_SHARED,
            info.max_entries() as usize,
        )
    }

    fn map_fd(fd: i32, flags: i32, slots: usize) -> io::Result<Self> {
        let bytes = slots * size_of::<SharedState>();
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours;
        // the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self {
            first,
            slots,
            bytes,
        })
    }

    /// Every slot; index = service number.
    pub fn slots(&self) -> &[SharedState] {
        // SAFETY: the mapping holds `slots` values (the kernel rounds it up to whole pages), is
        // page-aligned, readable and writable, and outlives the reference; any bytes are valid
        // atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.slots) }
    }

    /// The slot of a service.
    pub fn get(&self, service: u16) -> Option<&SharedState> {
        self.slots().get(usize::from(service))
    }
}

impl Drop for States {
    fn drop(&mut self) {
        // SAFETY: the address and length of our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(slots: usize) -> States {
        States::map_fd(-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, slots).unwrap()
    }

    #[test]
    fn counts_never_wrap() {
        let states = anonymous(1024);
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
        let states = anonymous(2);
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
