//! Runs a loaded program on one frame, by `BPF_PROG_TEST_RUN`, from any thread.
//!
//! aya does this too, but only through its handle of the program, which stays with the object that
//! it was loaded from; a thread of its own has the program's descriptor.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::programs::ProgramFd;

const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// The verdict on the frame is carried out (Linux 5.18).
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Frames of a batch, at most (`TEST_XDP_MAX_BATCH` of the kernel's net/bpf/test_run.c).
const MAX_BATCH: u32 = 256;

/// The part of `union bpf_attr` for this command (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
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

/// `struct xdp_md` for a frame of this length that came in by the first queue of the device of this
/// index.
pub fn xdp_context(length: usize, ifindex: u32) -> Vec<u8> {
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    [0, length as u32, 0, ifindex, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// A program that can be run.
#[derive(Debug)]
pub struct Runner(OwnedFd);

impl Runner {
    /// For a loaded program.
    pub fn new(program: &ProgramFd) -> io::Result<Self> {
        program.as_fd().try_clone_to_owned().map(Self)
    }

    /// Runs it once on a copy of `frame`, of which nothing is left; says what it returned.
    pub fn run(&self, frame: &[u8]) -> io::Result<u32> {
        let attributes = Attributes {
            repeat: 1,
            ..self.on(frame)
        };
        test_run(attributes).map(|attributes| attributes.retval)
    }

    /// Runs it, an XDP program, once on a copy of `frame` as if that had come in by the device of
    /// this index in the calling thread's namespace; 0 is loopback. A frame longer than a page comes
    /// in several buffers (Linux 5.18).
    pub fn run_at(&self, frame: &[u8], ifindex: u32) -> io::Result<u32> {
        let context = xdp_context(frame.len(), ifindex);
        let attributes = Attributes {
            ctx_in: context.as_ptr() as u64,
            ctx_size_in: context.len() as u32,
            repeat: 1,
            ..self.on(frame)
        };
        test_run(attributes).map(|attributes| attributes.retval)
    }

    /// Has `frame` received by the device of this index, in the calling thread's namespace, with
    /// this XDP program in place of the device's own.
    pub fn receive(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        // More than one would have the kernel rewrite its dispatcher and wait for all CPUs.
        self.receive_often(frame, ifindex, 1, 1)
    }

    /// The same `repeat` times, with up to `batch` frames (at most 256) handled before they are sent
    /// off. The device must run an XDP program itself.
    pub fn receive_often(
        &self,
        frame: &[u8],
        ifindex: u32,
        repeat: u32,
        batch: u32,
    ) -> io::Result<()> {
        let context = xdp_context(frame.len(), ifindex);
        let attributes = Attributes {
            ctx_in: context.as_ptr() as u64,
            ctx_size_in: context.len() as u32,
            repeat,
            batch_size: batch,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            ..self.on(frame)
        };
        test_run(attributes).map(drop)
    }

    /// Whether the kernel can have frames received by this XDP program. Asked by batches that it must
    /// refuse, so that no frame is.
    pub fn knows_live_frames(&self) -> bool {
        let refusal = |flags, batch_size| {
            let attributes = Attributes {
                flags,
                batch_size,
                ..self.on(&[])
            };
            test_run(attributes)
                .err()
                .and_then(|error| error.raw_os_error())
        };
        // A kernel without batches says that the attributes are too many, not that these are wrong.
        refusal(0, 1) == Some(libc::EINVAL)
            && refusal(BPF_F_TEST_XDP_LIVE_FRAMES, MAX_BATCH + 1) == Some(libc::E2BIG)
    }

    fn on(&self, frame: &[u8]) -> Attributes {
        Attributes {
            prog_fd: self.0.as_raw_fd() as u32,
            data_in: frame.as_ptr() as u64,
            data_size_in: frame.len() as u32,
            ..Attributes::default()
        }
    }
}

/// To be given attributes whose pointers are good.
fn test_run(mut attributes: Attributes) -> io::Result<Attributes> {
    // SAFETY: the kernel reads as much of frame and context as the attributes say, which is as long
    // as they are, while the caller still holds them; it writes to nothing but the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(attributes)
    }
}
