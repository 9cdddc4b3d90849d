//! Where the demo takes place: which machines there are, and what the daemon on the guarded one is
//! told.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    cpu::{self, Task},
    edge::{Edge, EdgeOptions, SERVER_V4},
    flood::{Flood, FloodSpec},
    link::End,
    netns::Netns,
    programs::Counters,
    topology::{Forwarding, ForwardingOptions},
};

/// The port that is served.
const PORT: u16 = 80;

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// On the guarded box itself; admission `local`, without any configuration
    Local,
    /// On a machine of its own behind a router, which is guarded; admission `proxy`
    Routed,
}

/// A topology that stands; taken down when dropped.
pub enum Site {
    /// See [`Topology::Local`].
    Local(Box<Edge>),
    /// See [`Topology::Routed`].
    Routed(Box<Forwarding>),
}

impl Site {
    /// Builds one.
    pub fn new(topology: Topology) -> Result<Self> {
        Ok(match topology {
            Topology::Local => Self::Local(Box::new(Edge::new(EdgeOptions::default())?)),
            Topology::Routed => {
                Self::Routed(Box::new(Forwarding::routed(ForwardingOptions::default())?))
            }
        })
    }

    /// What clients and flood dial.
    pub fn target(&self) -> SocketAddr {
        match self {
            Self::Local(_) => (SERVER_V4, PORT).into(),
            Self::Routed(forwarding) => forwarding.dial(false, PORT),
        }
    }

    /// Where clients and flood live.
    pub fn client(&self) -> &Netns {
        &self.client_end().ns
    }

    /// The client's end of the guarded wire.
    pub fn client_end(&self) -> &End {
        match self {
            Self::Local(edge) => &edge.client_end,
            Self::Routed(forwarding) => &forwarding.client_end,
        }
    }

    /// Addresses of the clients.
    pub fn client_sources(&self) -> Vec<IpAddr> {
        match self {
            Self::Local(edge) => edge.client_sources(false),
            Self::Routed(forwarding) => forwarding.client_sources(false),
        }
    }

    /// Where the server lives.
    pub fn server(&self) -> &Netns {
        match self {
            Self::Local(edge) => &edge.server,
            Self::Routed(forwarding) => &forwarding.server,
        }
    }

    /// The interface to guard.
    pub fn guarded(&self) -> &End {
        match self {
            Self::Local(edge) => &edge.server_end,
            Self::Routed(forwarding) => &forwarding.outside,
        }
    }

    /// What the daemon must be told of the services; `None` where it finds them by itself.
    pub fn services(&self) -> Option<String> {
        match self {
            Self::Local(_) => None,
            Self::Routed(_) => Some(format!(
                "[[service]]\nname = \"web\"\naddresses = [\"{}\"]\nports = [{PORT}]\nadmission = \"proxy\"\n",
                self.target().ip()
            )),
        }
    }

    /// What the client's end has counted.
    pub fn counters(&self) -> Result<Counters> {
        match self {
            Self::Local(edge) => edge.counters(),
            Self::Routed(forwarding) => forwarding.counters(),
        }
    }

    /// Binds the guarded interface's receive work to one CPU and the client's to another; the tasks
    /// that do the former. Behind a router there is a second wire, whose packets are received in
    /// softirqs, on the same CPU: within the first one's thread, or where there are too many of them
    /// in `ksoftirqd`.
    pub fn pin_napi(&self, serve: usize, flood: usize) -> Result<Vec<Task>> {
        match self {
            Self::Local(edge) => edge.pin_napi(serve, flood),
            Self::Routed(forwarding) => {
                let mut tasks = forwarding.pin_napi(serve, flood)?;
                let name = format!("ksoftirqd/{serve}");
                // A prefix: `ksoftirqd/1` would find `ksoftirqd/10`, which has another CPU's work.
                tasks.extend(
                    cpu::kernel_threads(&name)?
                        .into_iter()
                        .filter(|task| has_name(*task, &name)),
                );
                Ok(tasks)
            }
        }
    }

    /// Starts a flood from the client's end.
    pub fn flood(&self, spec: FloodSpec) -> Result<Flood> {
        match self {
            Self::Local(edge) => edge.flood(spec),
            Self::Routed(forwarding) => forwarding.flood(spec),
        }
    }
}

fn has_name(task: Task, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/comm", task.0))
        .is_ok_and(|comm| comm.trim_end() == name)
}
