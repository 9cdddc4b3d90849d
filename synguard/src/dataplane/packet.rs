//! Sends single frames out of a device, past IP but by way of TC egress, where `synguard_out` sees
//! them.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// A packet socket that receives nothing.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one in the calling thread's namespace; takes CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        // SAFETY: creates a socket; the result is checked before it is owned. Protocol 0 is none.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just created and that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a whole frame, link header included, by the device of this index.
    pub fn send(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        let ethertype = match frame.get(12..14) {
            Some(&[high, low]) => u16::from_ne_bytes([high, low]),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        // SAFETY: made of integers and arrays of them, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype;
        address.sll_ifindex = ifindex as i32;
        // SAFETY: the frame is readable for its length and the address for its own, which both
        // outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
