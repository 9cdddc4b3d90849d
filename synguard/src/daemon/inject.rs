//! Has frames received as if they had come in by a guarded interface: the programs on it see them, and
//! what they let pass goes on to wherever packets from outside go.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
};

use crate::dataplane::{
    Dataplane, LoadError,
    load::{PROGRAM_IN, PROGRAM_PASS},
    testrun::Runner,
};

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

/// The guarded interfaces, as all threads see them.
#[derive(Debug, Default)]
pub struct Ports(RwLock<Vec<Port>>);

impl Ports {
    /// Replaces them.
    pub fn set(&self, ports: Vec<Port>) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if *now != ports {
            *now = ports;
        }
    }

    /// The interface that a frame with this link header came to. A bridge port has frames for others:
    /// with several of those, the first is as good as any, as connections are known by their addresses.
    pub fn of(&self, link: &[u8]) -> Option<Port> {
        let ports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let addressed = ports.iter().find(|port| link.starts_with(&port.mac));
        addressed.or_else(|| ports.first()).cloned()
    }
}

/// Injects frames.
#[derive(Debug)]
pub struct Injector {
    /// `synguard_in`, which native XDP runs.
    native: Runner,
    /// A program that only passes: generic XDP sees the frame afterwards, like any other.
    pass: Runner,
    /// Where frames can come in.
    pub ports: Arc<Ports>,
}

impl Injector {
    /// One with programs of this data plane.
    pub fn new(dataplane: &Dataplane, ports: Arc<Ports>) -> Result<Self, LoadError> {
        Ok(Self {
            native: dataplane.runner(PROGRAM_IN)?,
            pass: dataplane.runner(PROGRAM_PASS)?,
            ports,
        })
    }

    /// Has a frame received by a port; by the end of the call the programs have seen it.
    pub fn receive(&self, frame: &[u8], port: &Port) -> anyhow::Result<()> {
        let program = if port.generic {
            &self.pass
        } else {
            &self.native
        };
        program
            .receive(frame, port.index)
            .map_err(anyhow::Error::new)
            .map_err(explain)
    }
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    let context = match code {
        // The flag is unknown to older kernels.
        Some(libc::EINVAL) => "the kernel does not receive frames from programs: needs Linux 5.18",
        _ => "the kernel does not receive the frame",
    };
    error.context(context)
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
        let ports = Ports::default();
        let of = |last| {
            let link = [2, 0, 0, 0, 0, last, 9, 9, 9, 9, 9, 9];
            ports.of(&link).map(|port| port.index)
        };
        assert_eq!(of(1), None);
        ports.set(vec![port(3, 1), port(4, 2)]);
        assert_eq!([of(1), of(2), of(3)], [Some(3), Some(4), Some(3)]);
    }
}
