//! TCP listeners of this namespace, as sock_diag tells them: their backlogs, and which of them
//! cannot take our sockets.
//!
//! The kernel refuses `bpf_sk_assign_tcp_reqsk` for MPTCP listeners (`sk_is_mptcp`), and some
//! servers ask for MPTCP without their operator knowing, Go's since 1.24. The protocol number
//! of MPTCP does not fit the request's 8-bit field; it travels in an attribute.

use std::{io, net::IpAddr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// `INET_DIAG_REQ_PROTOCOL` of linux/inet_diag.h.
const REQ_PROTOCOL: u16 = 3;
const ATTRIBUTE_LENGTH: usize = 8;

/// A TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens; `None` is everywhere.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its listen queue.
    pub backlog: u32,
    /// Whether it speaks MPTCP.
    pub mptcp: bool,
}

/// All listeners.
pub fn list() -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump(family, false, &mut listeners)?;
        match dump(family, true, &mut listeners) {
            // A kernel without MPTCP has no such listeners.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)
                ) => {}
            other => other?,
        }
    }
    Ok(listeners)
}

fn dump(family: u8, mptcp: bool, listeners: &mut Vec<Listener>) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(family, mptcp), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let id = &response.header.socket_id;
                    let address = id.source_address.to_canonical();
                    listeners.push(Listener {
                        address: (!address.is_unspecified()).then_some(address),
                        port: id.source_port,
                        backlog: response.header.send_queue,
                        mptcp,
                    });
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn request(family: u8, mptcp: bool) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    if mptcp {
        bytes.extend_from_slice(&(ATTRIBUTE_LENGTH as u16).to_ne_bytes());
        bytes.extend_from_slice(&REQ_PROTOCOL.to_ne_bytes());
        bytes.extend_from_slice(&(libc::IPPROTO_MPTCP as u32).to_ne_bytes());
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::fd::{FromRawFd as _, OwnedFd},
    };

    use super::*;

    #[test]
    fn a_listener_is_found_with_its_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found: Vec<Listener> = list()
            .unwrap()
            .into_iter()
            .filter(|l| l.port == port)
            .collect();
        let [found] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(found.address, Some("127.0.0.1".parse().unwrap()));
        assert!(!found.mptcp);
        // The standard library asks for 128, or for the kernel's bound.
        assert!(found.backlog >= 128, "{}", found.backlog);
    }

    #[test]
    fn an_mptcp_listener_is_told_apart() {
        // SAFETY: creates a socket; the result is checked before it is owned.
        let fd = unsafe {
            libc::socket(
                libc::AF_INET6,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
                libc::IPPROTO_MPTCP,
            )
        };
        if fd < 0 {
            eprintln!(
                "SKIP an_mptcp_listener_is_told_apart: {}",
                io::Error::last_os_error()
            );
            return;
        }
        // SAFETY: a descriptor that was just created and that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::net::listen(&socket, 33).unwrap();
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().unwrap().port();
        let found: Vec<Listener> = list()
            .unwrap()
            .into_iter()
            .filter(|l| l.port == port && l.mptcp)
            .collect();
        assert_eq!(
            found,
            [Listener {
                address: None,
                port,
                backlog: 33,
                mptcp: true
            }]
        );
    }
}
