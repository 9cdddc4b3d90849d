//! Reads and writes maps in batches (`BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH`; Linux 5.6).
//!
//! Key by key a walk takes two system calls an entry, and begins again whenever a program removes the key
//! that it stands on. Batches of a hash are read bucket by bucket: nothing that stays is missed or met
//! twice. What comes or goes meanwhile may or may not be met.

use std::{
    io,
    marker::PhantomData,
    ops::ControlFlow,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};

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

/// Keys and values as they lie in a map, one after another, beginning on words.
#[derive(Debug)]
pub struct Entries {
    keys: Vec<u64>,
    values: Vec<u64>,
    /// How many there are.
    pub count: u32,
}

/// Shows an array or a hash (not one per CPU) batch by batch, until there are no more or `each` has had
/// enough.
pub fn read<B>(
    map: &MapData,
    mut each: impl FnMut(&Entries) -> ControlFlow<B>,
) -> io::Result<Option<B>> {
    let info = map.info().map_err(io::Error::other)?;
    let (key, value) = (info.key_size(), info.value_size());
    let words = |bytes: u32, count: u32| (bytes as usize * count as usize).div_ceil(8);
    let mut room = BATCH.min(BATCH_BYTES / (key + value)).max(1);
    // Where a batch ends: a key of an array, the number of a bucket of a hash.
    let mut position = vec![0u64; words(key, 1).max(1)];
    let mut started = false;
    let mut entries = Entries {
        keys: vec![0; words(key, room)],
        values: vec![0; words(value, room)],
        count: 0,
    };
    loop {
        let mut next = position.clone();
        let mut attributes = Attributes {
            in_batch: if started { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: entries.keys.as_mut_ptr() as u64,
            values: entries.values.as_mut_ptr() as u64,
            count: room,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            ..Attributes::default()
        };
        let is_last = match batch(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(()) => false,
            // The end of the map: what there was of this batch is there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < u32::MAX / 2 => {
                room *= 2;
                entries.keys.resize(words(key, room), 0);
                entries.values.resize(words(value, room), 0);
                continue;
            }
            Err(error) => return Err(error),
        };
        entries.count = attributes.count.min(room);
        if let ControlFlow::Break(with) = each(&entries) {
            return Ok(Some(with));
        }
        if is_last {
            return Ok(None);
        }
        position = next;
        started = true;
    }
}

/// Writes entries that were read from a map of the same shape.
pub fn write(map: &MapData, entries: &Entries) -> io::Result<()> {
    if entries.count == 0 {
        return Ok(());
    }
    let mut attributes = Attributes {
        keys: entries.keys.as_ptr() as u64,
        values: entries.values.as_ptr() as u64,
        count: entries.count,
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        ..Attributes::default()
    };
    batch(BPF_MAP_UPDATE_BATCH, &mut attributes)
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

/// A map whose keys and values are of these types, to be read as a whole now and then.
#[derive(Debug)]
pub struct Batches<K, V> {
    map: MapData,
    layout: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Batches<K, V> {
    /// Whether the types fit is known by their sizes alone.
    pub fn new(map: MapData) -> io::Result<Self> {
        const { assert!(align_of::<K>() <= 8 && align_of::<V>() <= 8) };
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

    /// Shows keys and values batch by batch, until there are no more or `each` has had enough.
    pub fn walk(&self, mut each: impl FnMut(&[K], &[V]) -> ControlFlow<()>) -> io::Result<()> {
        let typed = |entries: &Entries| {
            let count = entries.count as usize;
            // SAFETY: words hold as many keys and values of these sizes, which are the map's, and are
            // aligned well enough; any bytes are a `Pod`.
            let (keys, values) = unsafe {
                (
                    std::slice::from_raw_parts(entries.keys.as_ptr().cast::<K>(), count),
                    std::slice::from_raw_parts(entries.values.as_ptr().cast::<V>(), count),
                )
            };
            each(keys, values)
        };
        read(&self.map, typed).map(drop)
    }
}
