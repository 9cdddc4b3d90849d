//! Copies what is in one map into another of the same shape, many entries to a system call
//! (`BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH`; Linux 5.6): the flow table of a busy box has a
//! hundred thousand buckets of a kilobyte.
//!
//! Programs may write to the source meanwhile. An array entry is then as good as any look at it; of a
//! hash, entries that come or go may or may not be in the copy.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{MapData, MapError, MapInfo};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// Entries in the first batch, as long as that many fit [`BATCH_BYTES`]. A bucket of a hash that has
/// more than a batch asks for a larger one.
const BATCH: u32 = 4096;
const BATCH_BYTES: u32 = 4 << 20;

/// The part of `union bpf_attr` for these commands (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
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

/// Why a map was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What they are cannot be asked.
    #[error(transparent)]
    Info(#[from] MapError),
    /// Another layout.
    #[error("its entries are laid out in another way")]
    Shape,
    /// The kernel said no.
    #[error("cannot {what} it: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Copies every entry of `from` (an array or a hash, not one per CPU) to `to`; says how many.
pub fn copy(from: &MapData, to: &MapData) -> Result<u64, CopyError> {
    let (source, target) = (from.info()?, to.info()?);
    let shape = |info: &MapInfo| -> Result<_, MapError> {
        Ok((info.map_type()?, info.key_size(), info.value_size()))
    };
    if shape(&source)? != shape(&target)? || source.max_entries() > target.max_entries() {
        return Err(CopyError::Shape);
    }
    let (key, value) = (source.key_size(), source.value_size());
    let words = |bytes: u32, count: u32| (bytes as usize * count as usize).div_ceil(8);
    let mut room = BATCH.min(BATCH_BYTES / (key + value)).max(1);
    // Where a batch ends: a key of an array, the number of a bucket of a hash.
    let mut position = vec![0u64; words(key, 1).max(1)];
    let mut started = false;
    let mut copied = 0;
    loop {
        let mut keys = vec![0u64; words(key, room)];
        let mut values = vec![0u64; words(value, room)];
        let mut next = position.clone();
        let mut attributes = Attributes {
            in_batch: if started { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room,
            map_fd: from.fd().as_fd().as_raw_fd() as u32,
            ..Attributes::default()
        };
        let last = match batch(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < u32::MAX / 2 => {
                room *= 2;
                continue;
            }
            Err(source) => return Err(kernel("read", source)),
        };
        let read = attributes.count;
        if read > 0 {
            let mut attributes = Attributes {
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: read,
                map_fd: to.fd().as_fd().as_raw_fd() as u32,
                ..Attributes::default()
            };
            batch(BPF_MAP_UPDATE_BATCH, &mut attributes)
                .map_err(|source| kernel("write a copy of", source))?;
        }
        copied += u64::from(read);
        if last {
            return Ok(copied);
        }
        position = next;
        started = true;
    }
}

fn kernel(what: &'static str, source: io::Error) -> CopyError {
    CopyError::Kernel { what, source }
}

/// To be given attributes whose pointers lead to room for `count` entries.
fn batch(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the kernel reads and writes as many keys and values as `count` says, of the sizes that
    // the map has, and one position; the caller holds buffers of that size during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
