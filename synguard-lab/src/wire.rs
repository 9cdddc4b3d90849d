//! A raw socket on one end of a wire: sends frames byte by byte, and sees what comes in.
//!
//! It sees what the device's XDP program lets through. On the client's end of an
//! [`Edge`](crate::edge::Edge) that is everything but answers to flood sources.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::{
    frame::{Answer, describe},
    link::End,
};

const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// An open raw socket.
pub struct Wire {
    socket: Socket,
    device: String,
}

impl Wire {
    /// Opens a socket on a device.
    pub fn open(end: &End) -> Result<Self> {
        let device = end.name.clone();
        let socket = end.ns.run(|| {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let socket = Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(i32::from(all))),
            )
            .context("cannot open a raw socket (needs root)")?;
            socket
                .bind(&address(end.index, all))
                .with_context(|| format!("cannot bind a raw socket to {device}"))?;
            Ok(socket)
        })?;
        // A frame of a flood occupies a page: the default would hold about fifty of them.
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))
            .context("cannot enlarge a socket's buffer")?;
        let on: libc::c_int = 1;
        for option in [PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA] {
            // SAFETY: the option's value is an int that lives through the call.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                )
            };
            if set != 0 {
                return Err(io::Error::last_os_error()).context("cannot set up a raw socket");
            }
        }
        Ok(Self { socket, device })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = self
            .socket
            .send(frame)
            .with_context(|| format!("cannot send {} bytes by {}", frame.len(), self.device))?;
        if sent != frame.len() {
            bail!("{} took {sent} of {} bytes", self.device, frame.len());
        }
        Ok(())
    }

    /// The next frame that comes in, with its VLAN tags; `None` if there is none in time.
    pub fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        // Zero would mean for ever.
        self.socket
            .set_read_timeout(Some(timeout.max(Duration::from_micros(1))))
            .context("cannot set a timeout")?;
        match self.receive_one() {
            Ok(frame) => Ok(Some(frame)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot receive from {}", self.device))
            }
        }
    }

    /// The next TCP packet that `wanted` accepts; what else comes in is skipped. `None` if there is
    /// none in time.
    pub fn receive_tcp(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Result<Option<Answer>> {
        let end = Instant::now() + timeout;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(frame) = self.receive(left)? else {
                break;
            };
            if let Ok(answer) = describe(&frame)
                && wanted(&answer)
            {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Sends a frame and waits for the TCP packet that comes back to its sender.
    pub fn exchange(&self, frame: &[u8], timeout: Duration) -> Result<Option<Answer>> {
        let sent = describe(frame).context("only a whole TCP packet has an answer")?;
        self.send(frame)?;
        self.receive_tcp(timeout, |answer| {
            answer.source == sent.destination && answer.destination == sent.source
        })
    }

    /// Receives a frame and puts back the outer tag, which the kernel delivers beside it.
    fn receive_one(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; 65_536];
        // Room for one tpacket_auxdata, aligned as a cmsghdr must be.
        let mut control = [0u64; 8];
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all zeroes is a valid msghdr.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in the message is to memory that outlives the call.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            return Err(io::Error::last_os_error());
        };
        buffer.truncate(length);

        // SAFETY: the message was filled in by recvmsg.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers inside the control buffer.
            let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
            if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
                // SAFETY: this kind carries a tpacket_auxdata.
                let aux: libc::tpacket_auxdata = unsafe {
                    libc::CMSG_DATA(header)
                        .cast::<libc::tpacket_auxdata>()
                        .read_unaligned()
                };
                if aux.tp_status & TP_STATUS_VLAN_VALID != 0 && buffer.len() >= 12 {
                    let has_tpid = aux.tp_status & TP_STATUS_VLAN_TPID_VALID != 0;
                    let tpid = if has_tpid { aux.tp_vlan_tpid } else { 0x8100 };
                    let tag = [tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()].concat();
                    buffer.splice(12..12, tag);
                }
            }
            // SAFETY: as above.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        Ok(buffer)
    }
}

/// The address of a device for a packet socket.
pub(crate) fn address(index: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the structures the storage is for.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = protocol;
    link.sll_ifindex = index as i32;
    // SAFETY: the storage holds a sockaddr_ll of this size.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
