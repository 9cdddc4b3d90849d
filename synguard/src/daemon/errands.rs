//! Errands for pending flows, whose server has not answered: shows the programs the client's ACK
//! once more, so that they pass its SYN again, or refuses the connection in the server's name.

use anyhow::Context as _;
use synguard_common::abi::{ERRAND_REFUSE, ERRAND_RETRY, Errand, FLOW_PENDING};

use super::inject::Injector;
use crate::dataplane::{frames, packet::PacketSocket};

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
    injector: Injector,
    socket: PacketSocket,
}

impl Courier {
    /// One that has frames received by this.
    pub fn new(injector: Injector) -> anyhow::Result<Self> {
        let socket = PacketSocket::open().context("cannot open a packet socket")?;
        Ok(Self { injector, socket })
    }

    /// Runs an errand.
    pub fn run(&self, errand: &Errand) -> anyhow::Result<Outcome> {
        let flow = &errand.flow;
        let Some(port) = frames::link(flow)
            .filter(|_| flow.state == FLOW_PENDING)
            .and_then(|link| self.injector.ports.of(link))
        else {
            return Ok(Outcome::Obsolete);
        };
        match errand.what {
            ERRAND_RETRY => {
                let Some(frame) = frames::client_ack(&errand.tuple, flow) else {
                    return Ok(Outcome::Obsolete);
                };
                self.injector
                    .receive(&frame, &port)
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
