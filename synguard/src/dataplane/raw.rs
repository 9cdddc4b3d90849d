//! Elements of maps of unknown layout, by the bare system call: what programs of another version have
//! written.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapData;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;

/// The part of `union bpf_attr` for these commands (linux/bpf.h).
#[repr(C)]
struct Attributes {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Element 0 of an array.
pub fn first(map: &MapData) -> io::Result<Vec<u8>> {
    let mut value = vec![0; value_size(map)?];
    on_first(map, BPF_MAP_LOOKUP_ELEM, value.as_mut_ptr())?;
    Ok(value)
}

/// Writes element 0 of an array, which must be as long as the map says.
pub fn set_first(map: &MapData, value: &mut [u8]) -> io::Result<()> {
    if value.len() != value_size(map)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    on_first(map, BPF_MAP_UPDATE_ELEM, value.as_mut_ptr())
}

fn value_size(map: &MapData) -> io::Result<usize> {
    let info = map.info().map_err(io::Error::other)?;
    if info.key_size() != size_of::<u32>() as u32 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(info.value_size() as usize)
}

/// `value` points to as many bytes as the map's values have.
fn on_first(map: &MapData, command: libc::c_long, value: *mut u8) -> io::Result<()> {
    let key = 0u32;
    let mut attributes = Attributes {
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key) as u64,
        value: value as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key of four bytes, which was checked to be the map's key size, and reads
    // or writes a value of the map's value size; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
