//! Reads a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
//!
//! Key by key a walk takes two system calls an entry, and begins again whenever the program removes the
//! key that it stands on. A batch is read bucket by bucket: nothing that stays is missed or met twice.

use std::{
    io,
    marker::PhantomData,
    ops::ControlFlow,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries of a batch: more than a bucket ever has, or the kernel answers ENOSPC.
const BATCH: usize = 4096;

/// The part of `union bpf_attr` for this command (linux/bpf.h).
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A hash map that is read as a whole now and then.
#[derive(Debug)]
pub struct Batches<K, V> {
    map: MapData,
    layout: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Batches<K, V> {
    /// Of a hash map with keys and values of these types.
    pub fn new(map: MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let sizes = [info.key_size(), info.value_size()];
        if sizes != [size_of::<K>() as u32, size_of::<V>() as u32] {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            map,
            layout: PhantomData,
        })
    }

    /// Shows batch after batch, until there are no more or `each` has had enough.
    pub fn walk(&self, mut each: impl FnMut(&[(K, V)]) -> ControlFlow<()>) -> io::Result<()> {
        let mut keys: Vec<K> = Vec::with_capacity(BATCH);
        let mut values: Vec<V> = Vec::with_capacity(BATCH);
        let mut pairs: Vec<(K, V)> = Vec::with_capacity(BATCH);
        // Where the kernel is to go on: an index of a bucket, which it writes and reads.
        let mut place = 0u32;
        let mut is_first = true;
        loop {
            let mut attributes = Attributes {
                in_batch: if is_first {
                    0
                } else {
                    (&raw const place) as u64
                },
                out_batch: (&raw mut place) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: BATCH as u32,
                map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: both buffers have room for as many keys and values of the map's sizes, which were
            // compared, as `count` says; they and `place` outlive the call.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    BPF_MAP_LOOKUP_BATCH,
                    &raw mut attributes,
                    size_of::<Attributes>(),
                )
            };
            let error = (result < 0).then(io::Error::last_os_error);
            let is_last = match error {
                None => false,
                // The end of the map: what there was of this batch is there.
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Some(error) => return Err(error),
            };
            let count = (attributes.count as usize).min(BATCH);
            // SAFETY: the kernel has written that many of each, and any bytes are a `Pod`.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            pairs.clear();
            pairs.extend(keys.iter().copied().zip(values.iter().copied()));
            if each(&pairs).is_break() || is_last {
                return Ok(());
            }
            is_first = false;
        }
    }
}
