//! Every TCP header that passes an end of a wire, both ways, in its order: for tests that compare what
//! one end sent with what the other received.
//!
//! The kernel copies headers into a ring in shared memory (`PACKET_RX_RING`); a thread reads them
//! there, by etherparse. What does not fit is counted, and whoever relies on a whole capture asks
//! for that.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TransportSlice};
use nix::libc;
use socket2::Socket;

use crate::{link::End, wire};

/// Size of a place in the ring: the kernel's header, and all headers of a packet.
const FRAME: usize = 256;
const BLOCK: usize = 1 << 20;
/// Blocks of the ring: room for 131,072 packets, more than a second's worth.
const BLOCKS: usize = 32;
/// How often the ring is looked at when it was found empty.
const PAUSE: Duration = Duration::from_millis(1);

/// What a TCP packet's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// It left by this end; else it arrived.
    pub outgoing: bool,
    /// Address and port it comes from.
    pub source: SocketAddr,
    /// Address and port it goes to.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags; see [`flags`](crate::frame::flags).
    pub flags: u8,
    /// Bytes of payload. More than a packet's worth where the end sends or receives several at once.
    pub payload: u32,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    /// Left and right edges of the SACK blocks.
    pub sack: Vec<(u32, u32)>,
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// The segments in the order in which they passed.
    pub segments: Vec<Segment>,
    /// Packets that found no room in the ring.
    pub dropped: u32,
    /// Segments beyond the limit, which were not kept.
    pub beyond: u64,
}

impl Captured {
    /// The segments; an error where any is missing.
    pub fn whole(self) -> Result<Vec<Segment>> {
        if self.dropped != 0 || self.beyond != 0 {
            bail!(
                "the capture is not whole: {} packets found no room, {} segments are beyond its limit",
                self.dropped,
                self.beyond
            );
        }
        Ok(self.segments)
    }
}

/// A running capture; ends when dropped.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Captured>>>,
}

impl Capture {
    /// Starts to capture at an end, at most `limit` segments.
    pub fn start(end: &End, limit: usize) -> Result<Self> {
        let ring = end
            .ns
            .run(|| Ring::open(end.index))
            .with_context(|| format!("cannot capture at {}", end.name))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || read(ring, limit, &stopped))
            .context("cannot start a thread to capture")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it; what has passed until now is in what it returns.
    pub fn stop(mut self) -> Result<Captured> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(captured)) => captured,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => bail!("the capture has ended already"),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Reads the ring until it is empty after `stop`.
fn read(mut ring: Ring, limit: usize, stop: &AtomicBool) -> Result<Captured> {
    let mut captured = Captured::default();
    loop {
        // Before the look at the ring: what passed before the end is read.
        let stopping = stop.load(Ordering::Acquire);
        while let Some(segment) = ring.next(segment) {
            let Some(segment) = segment else { continue };
            if captured.segments.len() < limit {
                captured.segments.push(segment);
            } else {
                captured.beyond += 1;
            }
        }
        if stopping {
            captured.dropped = ring.dropped()?;
            return Ok(captured);
        }
        std::thread::sleep(PAUSE);
    }
}

/// What a frame's headers say, if they are TCP's.
fn segment(outgoing: bool, frame: &[u8]) -> Option<Segment> {
    // Lax: the IP length goes beyond what was captured.
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, length): (IpAddr, IpAddr, u32) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            let length = u32::from(header.total_len()).checked_sub(header.ihl() as u32 * 4)?;
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                length,
            )
        }
        LaxNetSlice::Ipv6(v6) => {
            let extensions = v6.extensions().slice().len() as u32;
            let length = u32::from(v6.header().payload_length()).checked_sub(extensions)?;
            (
                v6.header().source_addr().into(),
                v6.header().destination_addr().into(),
                length,
            )
        }
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        return None;
    };
    let (mut timestamps, mut sack) = (None, Vec::new());
    for option in tcp.options_iterator() {
        match option.ok()? {
            TcpOptionElement::Timestamp(value, echo) => timestamps = Some((value, echo)),
            TcpOptionElement::SelectiveAcknowledgement(first, others) => {
                sack.push(first);
                sack.extend(others.into_iter().flatten());
            }
            _ => {}
        }
    }
    Some(Segment {
        outgoing,
        source: (source, tcp.source_port()).into(),
        destination: (destination, tcp.destination_port()).into(),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: tcp.header_slice().get(13).copied()?,
        payload: length.checked_sub(u32::from(tcp.data_offset()) * 4)?,
        timestamps,
        sack,
    })
}

/// A packet socket's ring, `TPACKET_V2`.
struct Ring {
    socket: Socket,
    memory: NonNull<u8>,
    next: usize,
}

// SAFETY: the mapping belongs to the ring alone, and the kernel does not care which thread reads it.
unsafe impl Send for Ring {}

impl Ring {
    const LENGTH: usize = BLOCK * BLOCKS;

    /// Must be called inside the device's namespace.
    fn open(device: u32) -> Result<Self> {
        // Of no protocol until it is bound: of no device it should see nothing.
        let socket = Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None)
            .context("cannot open a raw socket (needs root)")?;
        set(
            &socket,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (Self::LENGTH / FRAME) as u32,
        };
        set(&socket, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping, where the kernel likes it, as long as the ring.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map the ring");
        }
        let memory = NonNull::new(memory.cast()).context("the ring is mapped at zero")?;
        let ring = Self {
            socket,
            memory,
            next: 0,
        };
        let all = (libc::ETH_P_ALL as u16).to_be();
        ring.socket
            .bind(&wire::address(device, all))
            .context("cannot bind a raw socket")?;
        Ok(ring)
    }

    /// Hands the next frame, if there is one, to `read`, and its place back to the kernel.
    fn next<T>(&mut self, read: impl FnOnce(bool, &[u8]) -> T) -> Option<T> {
        // SAFETY: `next` is the start of a frame inside the mapping.
        let frame = unsafe { self.memory.add(self.next) };
        // SAFETY: a frame begins with its status, aligned, which the kernel and we change by turns.
        let status = unsafe { AtomicU32::from_ptr(frame.cast().as_ptr()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: with this status the frame is ours until we give it back, and the kernel keeps its
        // parts inside it; a sockaddr_ll follows the header.
        let (link, bytes) = unsafe {
            let header = frame.cast::<libc::tpacket2_hdr>().as_ref();
            let link = frame
                .add(size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT))
                .cast::<libc::sockaddr_ll>()
                .as_ref();
            let start = frame.add(header.tp_mac.into()).as_ptr();
            let length = (header.tp_snaplen as usize).min(FRAME - usize::from(header.tp_mac));
            (link, std::slice::from_raw_parts(start, length))
        };
        let result = read(link.sll_pkttype == libc::PACKET_OUTGOING, bytes);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + FRAME) % Self::LENGTH;
        Some(result)
    }

    /// How many packets found no room so far.
    fn dropped(&self) -> Result<u32> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to a structure of that size.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("PACKET_STATISTICS");
        }
        Ok(statistics.tp_drops)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), Self::LENGTH) };
    }
}

/// Sets an option of a packet socket.
fn set<T>(socket: &Socket, option: libc::c_int, value: &T) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the value has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("cannot set up a ring");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, TcpOption, flags};

    #[test]
    fn headers_are_read() {
        let blocks = vec![(5, 9), (0xffff_fff0, 3)];
        for (source, destination) in [
            ("10.0.0.1:700", "10.0.0.2:80"),
            ("[fd00::1]:700", "[fd00::2]:80"),
        ] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let mut frame = Frame::tcp(source, destination)
                .flags(flags::ACK | flags::PSH)
                .seq(1)
                .ack(2)
                .options([
                    TcpOption::Nop,
                    TcpOption::Timestamps(3, 4),
                    TcpOption::Nop,
                    TcpOption::Sack(blocks.clone()),
                ])
                .payload(&[0; 1000])
                .build();
            // As from the ring: the payload is cut off.
            frame.truncate(150);
            let expected = Segment {
                outgoing: true,
                source,
                destination,
                seq: 1,
                ack: 2,
                flags: flags::ACK | flags::PSH,
                payload: 1000,
                timestamps: Some((3, 4)),
                sack: blocks.clone(),
            };
            assert_eq!(segment(true, &frame), Some(expected));
        }
        assert_eq!(segment(true, &[0; 60]), None);
    }
}
