//! The cursor through which every packet is seen: the kernel's carries `data` and `data_end`, the
//! host's wraps a slice. Everything above it is the same code on both sides.
//!
//! One bounds check gives a [`View`] of a fixed number of bytes, whose accessors then cannot fail:
//! the shape the verifier understands. All accessors take and return host order.

use crate::{
    options::{Options, Places, Scanner},
    wire::checksum,
};

/// Bytes of a packet that were checked to be there.
///
/// Accessors must be called with `at + width` within the length the view was made with; callers
/// use constants, so that a mistake shows in the first test.
pub trait View: Copy {
    /// One byte.
    fn u8(self, at: usize) -> u8;
    /// Two bytes, big-endian on the wire.
    fn u16(self, at: usize) -> u16;
    /// Four bytes, big-endian on the wire.
    fn u32(self, at: usize) -> u32;
    /// Eight bytes, big-endian on the wire.
    fn u64(self, at: usize) -> u64;
}

/// A view that can be written through.
pub trait ViewMut {
    /// One byte.
    fn set_u8(&mut self, at: usize, value: u8);
    /// Two bytes, big-endian on the wire.
    fn set_u16(&mut self, at: usize, value: u16);
    /// Four bytes, big-endian on the wire.
    fn set_u32(&mut self, at: usize, value: u32);
    /// Eight bytes, big-endian on the wire.
    fn set_u64(&mut self, at: usize, value: u64);
}

/// A frame that can be read.
pub trait Packet {
    /// What [`Packet::view`] gives.
    type View<'a>: View
    where
        Self: 'a;

    /// The `len` bytes from `at`, or `None` where the frame ends before.
    fn view(&self, at: usize, len: usize) -> Option<Self::View<'_>>;

    /// Whether all of the frame can be viewed. A frame of several buffers shows only its first.
    fn is_whole(&self) -> bool;

    /// Runs a [`Scanner`] over the `len` bytes (at most 40) of TCP options at `at`. The slow path
    /// of [`crate::options`]: a loop, which each side bounds in its own way.
    fn scan(&self, at: usize, len: usize) -> Options;

    /// Runs a [`Scanner`] likewise, to find where the options are that a splice changes.
    fn places(&self, at: usize, len: usize) -> Places;
}

/// A frame that can be rewritten in place.
pub trait PacketMut: Packet {
    /// What [`PacketMut::view_mut`] gives.
    type ViewMut<'a>: ViewMut
    where
        Self: 'a;

    /// The `len` bytes from `at` to write to, or `None` where the frame ends before.
    fn view_mut(&mut self, at: usize, len: usize) -> Option<Self::ViewMut<'_>>;

    /// Brings the checksum field at `at` up to date after bytes it covers were changed: `difference`
    /// is their new sum and the complement of their old one, as [`checksum::difference`] gives it.
    /// `None` where the frame ends before.
    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()>;
}

/// A frame that has just arrived, which can become longer or shorter.
pub trait Arriving: PacketMut {
    /// Length of the frame in bytes. `end` is where its IP packet ends: a frame that goes on beyond
    /// what can be accessed directly is measured in another, slower way.
    fn frame_len(&self, end: usize) -> usize;

    /// Cuts or extends the frame by `delta` bytes, of which the first `link` stay in place and any
    /// others may be lost. False where there is no room.
    fn resize(&mut self, delta: isize, link: usize) -> bool;

    /// Sum of the `len` bytes from `at` as big-endian 16-bit words, the last padded with zero;
    /// `None` where the frame ends before. Slow: meant for data, where there is any.
    fn sum(&self, at: usize, len: usize) -> Option<u64>;
}

/// A frame that is about to leave.
pub trait Leaving: PacketMut {
    /// Has the interface receive a copy of the frame as it is now; false where the kernel refuses.
    fn receive_copy(&mut self) -> bool;
}

impl<P: Packet + ?Sized> Packet for &mut P {
    type View<'a>
        = P::View<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Self::View<'_>> {
        (**self).view(at, len)
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        (**self).is_whole()
    }

    #[inline(always)]
    fn scan(&self, at: usize, len: usize) -> Options {
        (**self).scan(at, len)
    }

    #[inline(always)]
    fn places(&self, at: usize, len: usize) -> Places {
        (**self).places(at, len)
    }
}

impl<P: PacketMut + ?Sized> PacketMut for &mut P {
    type ViewMut<'a>
        = P::ViewMut<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn view_mut(&mut self, at: usize, len: usize) -> Option<Self::ViewMut<'_>> {
        (**self).view_mut(at, len)
    }

    #[inline(always)]
    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()> {
        (**self).adjust_checksum(at, difference)
    }
}

impl<P: Arriving + ?Sized> Arriving for &mut P {
    #[inline(always)]
    fn frame_len(&self, end: usize) -> usize {
        (**self).frame_len(end)
    }

    #[inline(always)]
    fn resize(&mut self, delta: isize, link: usize) -> bool {
        (**self).resize(delta, link)
    }

    #[inline(always)]
    fn sum(&self, at: usize, len: usize) -> Option<u64> {
        (**self).sum(at, len)
    }
}

impl<P: Leaving + ?Sized> Leaving for &mut P {
    #[inline(always)]
    fn receive_copy(&mut self) -> bool {
        (**self).receive_copy()
    }
}

/// The host's cursor: a frame in a fixed buffer, with the room behind it that a driver's would
/// have.
#[derive(Clone)]
pub struct Frame {
    buffer: [u8; Self::CAPACITY],
    len: usize,
}

impl Frame {
    /// Longest frame, bytes: a jumbo frame of 9000 bytes with two VLAN tags and room to grow.
    pub const CAPACITY: usize = 9216;

    /// A frame with these bytes; `None` where they are more than [`Frame::CAPACITY`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut buffer = [0; Self::CAPACITY];
        buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self {
            buffer,
            len: bytes.len(),
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl View for &[u8] {
    #[inline]
    fn u8(self, at: usize) -> u8 {
        self[at]
    }

    #[inline]
    fn u16(self, at: usize) -> u16 {
        u16::from_be_bytes([self[at], self[at + 1]])
    }

    #[inline]
    fn u32(self, at: usize) -> u32 {
        u32::from_be_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }

    #[inline]
    fn u64(self, at: usize) -> u64 {
        u64::from_be_bytes(core::array::from_fn(|i| self[at + i]))
    }
}

impl ViewMut for &mut [u8] {
    fn set_u8(&mut self, at: usize, value: u8) {
        self[at] = value;
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn set_u64(&mut self, at: usize, value: u64) {
        self[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
}

/// A slice is a packet that is only looked at.
impl Packet for [u8] {
    type View<'a> = &'a [u8];

    fn view(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.get(at..at.checked_add(len)?)
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn scan(&self, at: usize, len: usize) -> Options {
        scan_slice(self, at, len).options()
    }

    fn places(&self, at: usize, len: usize) -> Places {
        scan_slice(self, at, len).places()
    }
}

fn scan_slice(bytes: &[u8], at: usize, len: usize) -> Scanner {
    let mut scanner = Scanner::new(len);
    let end = bytes.len().min(at + len);
    for &byte in bytes.get(at..end).unwrap_or_default() {
        if !scanner.step(byte) {
            break;
        }
    }
    scanner
}

impl Packet for Frame {
    type View<'a> = &'a [u8];

    fn view(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.bytes().view(at, len)
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn scan(&self, at: usize, len: usize) -> Options {
        self.bytes().scan(at, len)
    }

    fn places(&self, at: usize, len: usize) -> Places {
        self.bytes().places(at, len)
    }
}

impl PacketMut for Frame {
    type ViewMut<'a> = &'a mut [u8];

    fn view_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.buffer[..self.len].get_mut(at..at.checked_add(len)?)
    }

    fn adjust_checksum(&mut self, at: usize, difference: u64) -> Option<()> {
        let old = self.view(at, 2)?.u16(0);
        self.view_mut(at, 2)?
            .set_u16(0, checksum::adjust(old, difference));
        Some(())
    }
}

impl Arriving for Frame {
    fn frame_len(&self, _end: usize) -> usize {
        self.len
    }

    fn resize(&mut self, delta: isize, _link: usize) -> bool {
        let Some(len) = self.len.checked_add_signed(delta) else {
            return false;
        };
        if len > Self::CAPACITY {
            return false;
        }
        if len > self.len {
            self.buffer[self.len..len].fill(0);
        }
        self.len = len;
        true
    }

    fn sum(&self, at: usize, len: usize) -> Option<u64> {
        self.view(at, len).map(checksum::sum)
    }
}
