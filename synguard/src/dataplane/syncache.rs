//! The map `SYN_CACHE` as shared memory: the daemon looks for SYN-ACKs that nobody has answered.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use synguard_common::abi::{ANSWERED_FREE, ANSWERED_LIVE, Address, Answered, LINK_HEADER, Tuple};

use super::shared::{Shareable, Shared};

/// [`Answered`] as shared memory.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedAnswered {
    tuple: [AtomicU64; 5],
    state: AtomicU32,
    since: AtomicU32,
    client_isn: AtomicU32,
    cookie: AtomicU32,
    ts_val: AtomicU32,
    mss: AtomicU16,
    service: AtomicU16,
    options: AtomicU8,
    window_scale: AtomicU8,
    tries: AtomicU8,
    link_len: AtomicU8,
    link: [AtomicU32; LINK_HEADER / 4],
}

macro_rules! same_layout {
    ($($field:ident),*) => {
        const _: () = {
            assert!(size_of::<SharedAnswered>() == size_of::<Answered>());
            $(assert!(
                std::mem::offset_of!(SharedAnswered, $field)
                    == std::mem::offset_of!(Answered, $field)
            );)*
        };
    };
}

same_layout!(
    tuple,
    state,
    since,
    client_isn,
    cookie,
    ts_val,
    mss,
    service,
    options,
    window_scale,
    tries,
    link_len,
    link
);

// SAFETY: see the assertions above.
unsafe impl Shareable for SharedAnswered {}

/// The mapped array.
pub type SynCache = Shared<SharedAnswered>;

impl SharedAnswered {
    /// The SYN in this slot, if there is one. A program may write another over it meanwhile, and the copy
    /// be of both: then it is of no connection, and nobody answers what is sent for it.
    pub fn read(&self) -> Option<Answered> {
        if self.state.load(Ordering::Acquire) != ANSWERED_LIVE {
            return None;
        }
        let words = self
            .tuple
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let address = |at: usize| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(words.get(at..at + 2)?.as_flattened());
            Some(Address(bytes))
        };
        let [a, b, c, d, ..] = words[4];
        let entry = Answered {
            tuple: Tuple {
                client: address(0)?,
                server: address(2)?,
                client_port: u16::from_ne_bytes([a, b]),
                server_port: u16::from_ne_bytes([c, d]),
                pad: 0,
            },
            state: ANSWERED_LIVE,
            since: self.since.load(Ordering::Relaxed),
            client_isn: self.client_isn.load(Ordering::Relaxed),
            cookie: self.cookie.load(Ordering::Relaxed),
            ts_val: self.ts_val.load(Ordering::Relaxed),
            mss: self.mss.load(Ordering::Relaxed),
            service: self.service.load(Ordering::Relaxed),
            options: self.options.load(Ordering::Relaxed),
            window_scale: self.window_scale.load(Ordering::Relaxed),
            tries: self.tries.load(Ordering::Relaxed),
            link_len: self.link_len.load(Ordering::Relaxed),
            link: self
                .link
                .each_ref()
                .map(|word| word.load(Ordering::Relaxed)),
        };
        (self.state.load(Ordering::Acquire) == ANSWERED_LIVE).then_some(entry)
    }

    /// Notes that its SYN-ACK was sent so often again.
    pub fn set_tries(&self, tries: u8) {
        self.tries.store(tries, Ordering::Relaxed);
    }

    /// Makes room, unless a program is writing.
    pub fn free(&self) {
        let _ = self.state.compare_exchange(
            ANSWERED_LIVE,
            ANSWERED_FREE,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }
}
