//! Errands for pending flows, whose server has not answered: shows the programs the client's ACK
//! once more, so that they pass its SYN again, or refuses the connection in the server's name.

use std::io;

use anyhow::Context as _;
use synguard_common::abi::{ERRAND_REFUSE, ERRAND_RETRY, Errand, FLOW_PENDING};

use crate::dataplane::{frames, packet::PacketSocket, testrun::Runner};

/// A guarded interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub index: u32,
    /// Its link-layer address.
    pub mac: Vec<u8>,
    /// Whether XDP runs in generic mode on it.
    pub generic: bool,
}

/// What came of an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The SYN was passed again.
    Retried,
    /// The client was refused.
    Refused,
    /// There was nothing to do any more.
    Obsolete,
}

/// Runs errands.
pub struct Courier {
    /// `synguard_in`, which native XDP runs.
    native: Runner,
    /// A program that only passes: generic XDP sees the frame afterwards, like any other.
    pass: Runner,
    socket: PacketSocket,
}

impl Courier {
    /// One that has frames received by these programs.
    pub fn new(native: Runner, pass: Runner) -> anyhow::Result<Self> {
        let socket = PacketSocket::open().context("cannot open a packet socket")?;
        Ok(Self {
            native,
            pass,
            socket,
        })
    }

    /// Runs an errand.
    pub fn run(&self, errand: &Errand, ports: &[Port]) -> anyhow::Result<Outcome> {
        let flow = &errand.flow;
        let Some(port) = frames::link(flow)
            .filter(|_| flow.state == FLOW_PENDING)
            .and_then(|link| choose(ports, link))
        else {
            return Ok(Outcome::Obsolete);
        };
        match errand.what {
            ERRAND_RETRY => {
                let Some(frame) = frames::client_ack(&errand.tuple, flow) else {
                    return Ok(Outcome::Obsolete);
                };
                let program = if port.generic {
                    &self.pass
                } else {
                    &self.native
                };
                program
                    .receive(&frame, port.index)
                    .map_err(explain)
                    .context("cannot send a SYN again")?;
                Ok(Outcome::Retried)
            }
            ERRAND_REFUSE => {
                let Some(frame) = frames::refusal(&errand.tuple, flow) else {
                    return Ok(Outcome::Obsolete);
                };
                self.socket
                    .send(&frame, port.index)
                    .context("cannot refuse a connection")?;
                Ok(Outcome::Refused)
            }
            _ => Ok(Outcome::Obsolete),
        }
    }
}

/// The interface that a frame with this link header came to. A bridge port has frames for others:
/// with several of those, the first is as good as any, as the flow is known by its addresses.
fn choose<'a>(ports: &'a [Port], link: &[u8]) -> Option<&'a Port> {
    let addressed = ports.iter().find(|port| link.starts_with(&port.mac));
    addressed.or_else(|| ports.first())
}

fn explain(error: io::Error) -> anyhow::Error {
    let context = match error.raw_os_error() {
        // The flag is unknown to older kernels.
        Some(libc::EINVAL) => "the kernel does not receive frames from programs: needs Linux 5.18",
        _ => "the kernel does not receive the frame",
    };
    anyhow::Error::new(error).context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_belongs_to_the_interface_it_was_addressed_to() {
        let port = |index, last| Port {
            index,
            mac: vec![2, 0, 0, 0, 0, last],
            generic: false,
        };
        let ports = [port(3, 1), port(4, 2)];
        let of = |last| {
            let link = [2, 0, 0, 0, 0, last, 9, 9, 9, 9, 9, 9];
            choose(&ports, &link).map(|port| port.index)
        };
        assert_eq!([of(1), of(2), of(3)], [Some(3), Some(4), Some(3)]);
        assert_eq!(choose(&[], &[2; 12]), None);
    }
}
