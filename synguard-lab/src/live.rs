//! `BPF_PROG_TEST_RUN` with live frames: the program's verdict on each frame is carried out, as if
//! the frames had come in by a device.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::libc;

use crate::testrun::xdp_context;

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// The part of `union bpf_attr` for this command.
#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Runs an XDP program over `repeat` live frames that seem to have come in by the device of this
/// index, in the calling thread's namespace. The device must run an XDP program itself. Up to
/// `batch` frames (at most 256) are handled before they are sent off.
///
/// aya can do this for a whole program; a flood's thread has only its file descriptor.
pub fn run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    ifindex: u32,
    repeat: u32,
    batch: u32,
) -> io::Result<()> {
    let context = xdp_context(frame.len(), ifindex);
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_in: frame.as_ptr() as u64,
        data_size_in: frame.len() as u32,
        ctx_in: context.as_ptr() as u64,
        ctx_size_in: context.len() as u32,
        repeat,
        batch_size: batch,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        ..TestRunAttr::default()
    };
    // SAFETY: the buffers are readable and as long as the attribute says, and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRunAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
