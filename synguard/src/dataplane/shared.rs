//! Array maps as shared memory: what the daemon and others write at the same time, word by word.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
};

use aya::maps::MapData;

/// Values that may lie in memory that others write to.
///
/// # Safety
///
/// The type consists of atomics only, is `repr(C)` with the layout of the map's value, has an alignment of
/// at most eight bytes, and any bytes are a value of it.
pub unsafe trait Shareable: Sync {}

/// A mapped array.
#[derive(Debug)]
pub struct Shared<T> {
    first: NonNull<T>,
    slots: usize,
    bytes: usize,
}

// SAFETY: all access goes through shared references to atomics; the mapping belongs to this
// value alone and lives until it is dropped.
unsafe impl<T: Shareable> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Shareable> Sync for Shared<T> {}

impl<T: Shareable> Shared<T> {
    /// Maps the array; it must have been created with `BPF_F_MMAPABLE`.
    pub fn map(data: &MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(io::Error::other(format!(
                "values of {} bytes instead of {}",
                info.value_size(),
                size_of::<T>()
            )));
        }
        Self::map_fd(
            data.fd().as_fd().as_raw_fd(),
            libc::MAP_SHARED,
            info.max_entries() as usize,
        )
    }

    /// The same without a map, for tests.
    #[cfg(test)]
    pub fn anonymous(slots: usize) -> io::Result<Self> {
        Self::map_fd(-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, slots)
    }

    fn map_fd(fd: i32, flags: i32, slots: usize) -> io::Result<Self> {
        let bytes = slots * size_of::<T>();
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
    pub fn slots(&self) -> &[T] {
        // SAFETY: the mapping holds `slots` values (the kernel rounds it up to whole pages), is
        // page-aligned, readable and writable, and outlives the reference; any bytes are valid
        // atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.slots) }
    }

    /// The slot of a service.
    pub fn get(&self, service: u16) -> Option<&T> {
        self.slots().get(usize::from(service))
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the address and length of our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}
