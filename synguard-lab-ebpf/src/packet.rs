//! Access to packet bytes: the one file that dereferences packet pointers.

use aya_ebpf::programs::{TcContext, XdpContext};

/// A context whose packet lies between two pointers.
pub trait Linear {
    /// Its first byte.
    fn start(&self) -> usize;
    /// Behind its last byte.
    fn end(&self) -> usize;
}

impl Linear for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Linear for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// The bytes of a packet from `start` on, as far as they were shown to exist.
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize> {
    start: usize,
}

/// `N` bytes at `offset`, if the packet is that long.
#[inline(always)]
pub fn bytes<const N: usize>(ctx: &impl Linear, offset: usize) -> Option<Bytes<N>> {
    let start = ctx.start() + offset;
    if start + N > ctx.end() {
        return None;
    }
    Some(Bytes { start })
}

impl<const N: usize> Bytes<N> {
    /// The `T` at `offset`, in the order it lies in memory.
    ///
    /// `T` is an integer. eBPF on every architecture with an in-kernel JIT that the lab supports
    /// loads unaligned words; `read_unaligned` would be compiled to one load per byte.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: usize) -> T {
        const { assert!(size_of::<T>() <= N) };
        // SAFETY: `bytes` has shown N bytes to exist; the verifier rejects an offset outside.
        unsafe { *((self.start + offset) as *const T) }
    }

    /// Stores `value` at `offset`, in the order it lies in memory.
    #[inline(always)]
    pub fn store<T: Copy>(self, offset: usize, value: T) {
        const { assert!(size_of::<T>() <= N) };
        // SAFETY: as for `load`.
        unsafe { *((self.start + offset) as *mut T) = value }
    }
}
