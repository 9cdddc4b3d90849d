//! The kernel's packet cursor: the only place that dereferences packet pointers.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{
        bpf_clone_redirect, bpf_l4_csum_replace, bpf_loop, bpf_skb_pull_data, bpf_xdp_adjust_head,
        bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    },
};
use synguard_common::{
    options::{Options, Places, Scanner},
    packet::{Arriving, Leaving, Packet, PacketMut, View, ViewMut},
    wire::{checksum, tcp::MAX_OPTIONS},
};

use crate::maps::SCANNER;

/// A program context that knows where its packet lies.
pub trait Context {
    /// First byte of the packet.
    ///
    /// # Safety
    /// `ctx` is the program's context.
    unsafe fn data(ctx: *mut Self) -> *mut u8;
    /// One past the last byte that can be accessed directly.
    ///
    /// # Safety
    /// `ctx` is the program's context.
    unsafe fn data_end(ctx: *mut Self) -> *mut u8;
    /// Length of the packet, whether it can be accessed directly or not.
    ///
    /// # Safety
    /// `ctx` is the program's context.
    unsafe fn len(ctx: *mut Self) -> usize;
}

/// Loads a pointer field of the context. Not by a load that LLVM sees: where it needs a field often
/// it would keep the field's address, "dereference of modified ctx ptr R1 off=76 disallowed". Nor
/// is it to remember the value, which changes behind its back: hence not `pure`.
macro_rules! load {
    ($ctx:expr, $type:ty, $field:ident) => {{
        #[cfg(target_arch = "bpf")]
        {
            let pointer: *mut u8;
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) pointer,
                in(reg) $ctx,
                const core::mem::offset_of!($type, $field),
                options(readonly, nostack)
            );
            pointer
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            (&raw const (*$ctx).$field).read() as usize as *mut u8
        }
    }};
}

macro_rules! context {
    ($type:ty, $ctx:ident => $len:expr) => {
        impl Context for $type {
            #[inline(always)]
            unsafe fn data(ctx: *mut Self) -> *mut u8 {
                // SAFETY: the caller's promise.
                unsafe { load!(ctx, $type, data) }
            }

            #[inline(always)]
            unsafe fn data_end(ctx: *mut Self) -> *mut u8 {
                // SAFETY: the caller's promise.
                unsafe { load!(ctx, $type, data_end) }
            }

            #[inline(always)]
            unsafe fn len($ctx: *mut Self) -> usize {
                // SAFETY: the caller's promise.
                unsafe { $len as usize }
            }
        }
    };
}

context!(xdp_md, ctx => bpf_xdp_get_buff_len(ctx));
context!(__sk_buff, ctx => (*ctx).len);

/// A packet between `data` and `data_end`, which are read from the context each time: keeping them
/// would cost two slots of the stack, and reading them again two loads.
pub struct Cursor<C> {
    ctx: *mut C,
}

/// Headers that are read directly: Ethernet with two tags, IPv6 with room for extension headers,
/// TCP with options. What an skb does not have in its linear part is pulled there.
const LINEAR: u32 = 256;

impl Cursor<xdp_md> {
    /// The packet of an XDP program.
    #[inline(always)]
    pub fn of_xdp(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

impl Cursor<__sk_buff> {
    /// The packet of a TC program, with its headers in the linear part.
    #[inline(always)]
    pub fn of_skb(ctx: *mut __sk_buff) -> Option<Self> {
        // SAFETY: `ctx` is the program's context.
        unsafe {
            let data = Context::data(ctx);
            if data.wrapping_add(MIN_LINEAR) > Context::data_end(ctx) {
                let len = (*ctx).len;
                let wanted = if len < LINEAR { len } else { LINEAR };
                if bpf_skb_pull_data(ctx, wanted) != 0 {
                    return None;
                }
            }
        }
        Some(Self { ctx })
    }
}

/// With at least this much in the linear part nothing is pulled: Ethernet with two tags, IPv6 and
/// TCP with all options.
const MIN_LINEAR: usize = 22 + 40 + 60;

/// A pointer to bytes that were checked.
#[derive(Clone, Copy)]
pub struct Checked(*mut u8);

impl View for Checked {
    #[inline(always)]
    fn u8(self, at: usize) -> u8 {
        // SAFETY: within the view, which was checked against `data_end`.
        unsafe { self.0.add(at).read() }
    }

    #[inline(always)]
    fn u16(self, at: usize) -> u16 {
        // SAFETY: as above.
        u16::from_be(unsafe { self.0.add(at).cast::<u16>().read_unaligned() })
    }

    #[inline(always)]
    fn u32(self, at: usize) -> u32 {
        // SAFETY: as above.
        u32::from_be(unsafe { self.0.add(at).cast::<u32>().read_unaligned() })
    }

    #[inline(always)]
    fn u64(self, at: usize) -> u64 {
        // SAFETY: as above.
        u64::from_be(unsafe { self.0.add(at).cast::<u64>().read_unaligned() })
    }
}

impl ViewMut for Checked {
    #[inline(always)]
    fn set_u8(&mut self, at: usize, value: u8) {
        // SAFETY: within the view, which was checked against `data_end`.
        unsafe { self.0.add(at).write(value) }
    }

    #[inline(always)]
    fn set_u16(&mut self, at: usize, value: u16) {
        // SAFETY: as above.
        unsafe { self.0.add(at).cast::<u16>().write_unaligned(value.to_be()) }
    }

    #[inline(always)]
    fn set_u32(&mut self, at: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.add(at).cast::<u32>().write_unaligned(value.to_be()) }
    }

    #[inline(always)]
    fn set_u64(&mut self, at: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.add(at).cast::<u64>().write_unaligned(value.to_be()) }
    }
}

/// Hides a pointer's origin from LLVM. It would otherwise turn `data + at + len > end` into a
/// comparison with another sum of the same parts, and the verifier, which follows the checked
/// register only, answers "invalid access to packet, off=… size=…, R…(id=…,off=…,r=0)".
#[inline(always)]
#[cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::pointers_in_nomem_asm_block,
        reason = "the instruction moves the pointer and follows it nowhere"
    )
)]
fn opaque(pointer: *mut u8) -> *mut u8 {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = pointer;
        // A real instruction: after one of no length, the kernel refuses the line information,
        // "Invalid line_info[17].insn_off:34 (prev_offset:34 …)".
        // SAFETY: moves a register to itself.
        unsafe {
            core::arch::asm!("{0} = {0}", inlateout(reg) pointer, options(pure, nomem, nostack))
        };
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

/// Hides a number's origin from LLVM, likewise.
#[inline(always)]
pub fn hidden(number: usize) -> usize {
    opaque(number as *mut u8) as usize
}

impl<C: Context> Cursor<C> {
    /// Bytes that can be accessed directly.
    #[inline(always)]
    fn linear(&self) -> usize {
        // SAFETY: `ctx` is the program's context.
        let (data, end) = unsafe { (C::data(self.ctx), C::data_end(self.ctx)) };
        // LLVM would subtract in 32 bits where that is all the caller looks at: "R2 32-bit pointer
        // arithmetic prohibited".
        opaque(end.wrapping_sub(data as usize)) as usize
    }

    #[inline(always)]
    fn checked(&self, at: usize, len: usize) -> Option<Checked> {
        // SAFETY: `ctx` is the program's context.
        let (data, end) = unsafe { (C::data(self.ctx), C::data_end(self.ctx)) };
        let start = opaque(data.wrapping_add(at));
        if start.wrapping_add(len) > end {
            None
        } else {
            Some(Checked(start))
        }
    }
}

impl<C: Context> Packet for Cursor<C> {
    type View<'a>
        = Checked
    where
        C: 'a;

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Checked> {
        self.checked(at, len)
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        // SAFETY: `ctx` is the program's context.
        unsafe { C::len(self.ctx) == self.linear() }
    }

    #[inline(always)]
    fn scan(&self, at: usize, len: usize) -> Options {
        let Some(scanner) = SCANNER.get_ptr_mut(0) else {
            return Options::default();
        };
        // SAFETY: a per-CPU map value; nothing else uses it on this CPU meanwhile.
        unsafe { *scanner = Scanner::new(len) };
        scan_bytes(self.ctx, at);
        // SAFETY: as above.
        unsafe { (*scanner).options() }
    }

    #[inline(always)]
    fn places(&self, at: usize, len: usize) -> Places {
        let Some(scanner) = SCANNER.get_ptr_mut(0) else {
            return Places::default();
        };
        // SAFETY: as in `scan`.
        unsafe { *scanner = Scanner::new(len) };
        scan_bytes(self.ctx, at);
        // SAFETY: as above.
        unsafe { (*scanner).places() }
    }
}

impl PacketMut for Cursor<xdp_md> {
    type ViewMut<'a>
        = Checked
    where
        Self: 'a;

    #[inline(always)]
    fn view_mut(&mut self, at: usize, len: usize) -> Option<Checked> {
        self.checked(at, len)
    }

    #[inline(always)]
    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()> {
        let mut field = self.checked(at, 2)?;
        field.set_u16(0, checksum::adjust(field.u16(0), difference));
        Some(())
    }
}

impl PacketMut for Cursor<__sk_buff> {
    type ViewMut<'a>
        = Checked
    where
        Self: 'a;

    #[inline(always)]
    fn view_mut(&mut self, at: usize, len: usize) -> Option<Checked> {
        self.checked(at, len)
    }

    #[inline(always)]
    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()> {
        // The helper knows what it means where a device is to finish the checksum.
        let difference = checksum::fold(difference).to_be() as u64;
        // SAFETY: `ctx` is the program's context.
        let result = unsafe { bpf_l4_csum_replace(self.ctx, at as u32, 0, difference, 0) };
        (result == 0).then_some(())
    }
}

impl Leaving for Cursor<__sk_buff> {
    #[inline(always)]
    fn receive_copy(&mut self) -> bool {
        // SAFETY: `ctx` is the program's context.
        unsafe { bpf_clone_redirect(self.ctx, (*self.ctx).ifindex, INGRESS) == 0 }
    }
}

impl Arriving for Cursor<xdp_md> {
    #[inline(always)]
    fn frame_len(&self, end: usize) -> usize {
        let linear = self.linear();
        if end > linear {
            // A frame in several buffers (or one whose IP header lies about its length).
            // SAFETY: `ctx` is the program's context.
            return unsafe { Context::len(self.ctx) };
        }
        linear
    }

    #[inline(always)]
    fn resize(&mut self, delta: isize, link: usize) -> bool {
        // SAFETY: `ctx` is the program's context.
        let done = unsafe { bpf_xdp_adjust_tail(self.ctx, delta as i32) == 0 };
        done || grow_head(self.ctx, delta, link)
    }

    #[inline(always)]
    fn sum(&self, at: usize, len: usize) -> Option<u64> {
        sum_bytes(self.ctx, at, len)
    }
}

/// Longest link header, bytes.
const MAX_LINK: usize = 22;
/// By how much a frame grows at most: an ACK to a SYN with all its options.
const MAX_GROWTH: isize = 64;

/// Extends a frame at its head and moves the link header there. Behind a short packet on a virtual
/// device there may be no room, but in front of it there is.
#[inline(never)]
fn grow_head(ctx: *mut xdp_md, delta: isize, link: usize) -> bool {
    // SAFETY: `ctx` is the program's context.
    if delta <= 0 || delta > MAX_GROWTH || unsafe { bpf_xdp_adjust_head(ctx, -delta as i32) } != 0 {
        return false;
    }
    let cursor = Cursor { ctx };
    for at in (0..MAX_LINK).step_by(2) {
        if at >= link {
            break;
        }
        let Some(from) = cursor.checked(at + delta as usize, 2) else {
            return false;
        };
        let word = from.u16(0);
        let Some(mut to) = cursor.checked(at, 2) else {
            return false;
        };
        to.set_u16(0, word);
    }
    true
}

/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;

/// What the callback of `bpf_loop` sums up.
struct Sum {
    ctx: *mut xdp_md,
    at: usize,
    len: usize,
    sum: u64,
    failed: u64,
}

/// Longest IP packet, bytes.
const MAX_PACKET: usize = 0xffff;

/// See [`Arriving::sum`]. By a helper, which reads frames of several buffers too.
#[inline(never)]
fn sum_bytes(ctx: *mut xdp_md, at: usize, len: usize) -> Option<u64> {
    let mut sum = Sum {
        ctx,
        at,
        len: if len > MAX_PACKET { MAX_PACKET } else { len },
        sum: 0,
        failed: 0,
    };
    // SAFETY: the callback has the signature that bpf_loop wants, and `sum` outlives the call.
    unsafe {
        bpf_loop(
            (sum.len as u32).div_ceil(4),
            sum_word as *mut core::ffi::c_void,
            (&raw mut sum).cast(),
            0,
        );
    }
    (sum.failed == 0).then_some(sum.sum)
}

/// Four bytes, or the last one to three: 0 to go on, 1 to stop.
extern "C" fn sum_word(index: u32, sum: *mut Sum) -> i64 {
    // SAFETY: `sum` is what `sum_bytes` passed to bpf_loop.
    let sum = unsafe { &mut *sum };
    let done = index as usize * 4;
    let at = sum.at.wrapping_add(done) as u32;
    let mut word = [0u8; 4];
    let left = sum.len.wrapping_sub(done);
    let bytes = if left < 4 { left } else { 4 };
    for i in 0..4 {
        if i >= bytes {
            break;
        }
        // SAFETY: `ctx` is the program's context; one byte goes where there is room for one.
        let result = unsafe {
            bpf_xdp_load_bytes(
                sum.ctx,
                at + i as u32,
                (&raw mut word).cast::<u8>().add(i).cast(),
                1,
            )
        };
        if result != 0 {
            sum.failed = 1;
            return 1;
        }
    }
    sum.sum = sum.sum.wrapping_add(u32::from_be_bytes(word) as u64);
    0
}

/// What the callback of `bpf_loop` works on, beside [`SCANNER`].
struct Scan<C> {
    ctx: *mut C,
    at: usize,
}

/// Feeds the options at `at` to [`SCANNER`].
///
/// A loop over bytes at a variable offset makes the verifier walk every way through every byte,
/// "BPF program is too large. Processed 1000001 insn". So it is a callback, which is walked until
/// what it knows no longer changes; and the scanner is in a map, of whose contents the verifier
/// knows nothing to begin with.
#[inline(never)]
fn scan_bytes<C: Context>(ctx: *mut C, at: usize) {
    let mut scan = Scan { ctx, at };
    // SAFETY: the callback has the signature that bpf_loop wants, and `scan` outlives the call.
    unsafe {
        bpf_loop(
            MAX_OPTIONS as u32,
            scan_byte::<C> as *mut core::ffi::c_void,
            (&raw mut scan).cast(),
            0,
        );
    }
}

/// One byte of TCP options: 0 to go on, 1 to stop.
extern "C" fn scan_byte<C: Context>(index: u32, scan: *mut Scan<C>) -> i64 {
    // SAFETY: `scan` is what `scan_bytes` passed to bpf_loop.
    let scan = unsafe { &*scan };
    let index = index as usize;
    // The bounds again, for the verifier, which knows nothing of what is in `scan`.
    if index >= MAX_OPTIONS || scan.at > 0x3fff {
        return 1;
    }
    // SAFETY: `ctx` is the program's context.
    let (data, end) = unsafe { (C::data(scan.ctx), C::data_end(scan.ctx)) };
    let byte = opaque(data.wrapping_add(scan.at).wrapping_add(index));
    if byte.wrapping_add(1) > end {
        return 1;
    }
    let Some(scanner) = SCANNER.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: one byte was just checked; the scanner is this CPU's.
    let more = unsafe { (*scanner).step(byte.read()) };
    if more { 0 } else { 1 }
}
