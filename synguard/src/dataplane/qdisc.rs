//! The `clsact` qdisc, which TC programs need on kernels before 6.6 (no TCX). Whoever adds it
//! removes it again, so that the interface is left as it was found.

use std::io;

use aya::programs::tc::{TcError, qdisc_add_clsact};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tracing::debug;

/// A `clsact` qdisc that we added; removed on drop.
#[derive(Debug)]
pub struct Clsact {
    index: u32,
}

impl Clsact {
    /// Adds it to an interface; `None` where there was one already.
    pub fn ensure(name: &str, index: u32) -> Result<Option<Self>, TcError> {
        match qdisc_add_clsact(name) {
            Ok(()) => Ok(Some(Self { index })),
            Err(TcError::AlreadyAttached) => Ok(None),
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        // The interface may be gone, and the qdisc with it.
        if let Err(error) = remove(self.index) {
            debug!(index = self.index, %error, "cannot remove the clsact qdisc");
        }
    }
}

fn remove(index: u32) -> io::Result<()> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(io::Error::other)?;
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
