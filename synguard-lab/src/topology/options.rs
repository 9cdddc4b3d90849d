//! How a topology is built: its shape, its wires, and the TCP stacks at both ends.

use std::fmt;

use anyhow::{Result, bail};

use crate::{link::Vlan, netns::Netns};

/// What [`Shape::Dnat`] adds to a port.
pub(super) const PORT_OFFSET: u16 = 8000;
const PORT_MAX: u16 = u16::MAX - PORT_OFFSET;

/// What the edge does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It routes between two subnets.
    Routed,
    /// It is a bridge without an address; client and server share a subnet.
    Bridged,
    /// It owns the service's address and translates it to the server's, on a port 8000 higher.
    Dnat,
    /// It routes what goes to the server; the answers take another wire, round the edge.
    Asymmetric,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Routed, Self::Bridged, Self::Dnat, Self::Asymmetric];
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Routed => "routed",
            Self::Bridged => "bridged",
            Self::Dnat => "dnat",
            Self::Asymmetric => "asymmetric",
        })
    }
}

/// How a [`Forwarding`](super::Forwarding) is built.
#[derive(Clone, Debug)]
pub struct ForwardingOptions {
    /// Tags on the wire between client and edge, outermost first; up to two. A bridge passes them on
    /// to the server.
    pub vlans: Vec<Vlan>,
    /// MTU between client and edge, of the devices that have the addresses: the wire's is larger by
    /// four bytes per tag.
    pub outer_mtu: u32,
    /// MTU behind the edge.
    pub inner_mtu: u32,
    /// Two more routers between edge and server, and the MTU of the link between these: neither the
    /// client nor the server can know it but by path-MTU discovery.
    pub narrow_mtu: Option<u32>,
    /// Fix the MAC addresses of neighbours, so that a flood which drowns ARP and neighbour discovery
    /// does not end the experiment.
    pub static_neighbours: bool,
    /// Connection tracking on the edge that picks nothing up in mid-stream, and counts and drops what
    /// it calls invalid. Always on with [`Shape::Dnat`].
    pub conntrack: bool,
    /// The ports that [`Shape::Dnat`] translates.
    pub ports: Vec<u16>,
    /// The client's TCP.
    pub client_stack: Stack,
    /// The server's TCP.
    pub server_stack: Stack,
}

impl Default for ForwardingOptions {
    fn default() -> Self {
        Self {
            vlans: Vec::new(),
            outer_mtu: 1500,
            inner_mtu: 1500,
            narrow_mtu: None,
            static_neighbours: true,
            conntrack: false,
            ports: vec![80, 25, 7, 5201],
            client_stack: Stack::default(),
            server_stack: Stack::default(),
        }
    }
}

impl ForwardingOptions {
    /// Refuses what the shape cannot have.
    pub(super) fn check(&self, shape: Shape) -> Result<()> {
        match shape {
            Shape::Bridged if self.narrow_mtu.is_some() => {
                bail!("a bridged topology has no routers: leave narrow_mtu out")
            }
            Shape::Bridged if self.outer_mtu != self.inner_mtu => bail!(
                "a bridge does not fragment: outer_mtu {} and inner_mtu {} must be equal",
                self.outer_mtu,
                self.inner_mtu
            ),
            Shape::Asymmetric if self.conntrack => bail!(
                "conntrack sees only half of each asymmetric connection and calls it invalid: leave it off"
            ),
            Shape::Dnat => match self.ports.iter().find(|port| **port > PORT_MAX) {
                Some(port) => bail!(
                    "port {port} cannot be translated to one {PORT_OFFSET} higher: at most {PORT_MAX}"
                ),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Whether the edge tracks connections.
    pub(super) fn tracks(&self, shape: Shape) -> bool {
        self.conntrack || shape == Shape::Dnat
    }
}

/// What a namespace's TCP offers and accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Window scaling (RFC 7323).
    pub scaling: bool,
    /// Explicit congestion notification (RFC 3168).
    pub ecn: Ecn,
}

/// What a namespace's TCP does about ECN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// Nothing.
    Off,
    /// Agrees when the other side asks, as Linux does by default.
    Accept,
    /// Asks for it, and agrees.
    Request,
}

impl Default for Stack {
    /// As Linux comes.
    fn default() -> Self {
        Self {
            timestamps: true,
            sack: true,
            scaling: true,
            ecn: Ecn::Accept,
        }
    }
}

impl Stack {
    /// Makes a namespace's TCP so. Connections that exist keep what they have agreed on.
    pub fn apply(&self, ns: &Netns) -> Result<()> {
        ns.set_sysctl("net.ipv4.tcp_timestamps", u8::from(self.timestamps))?;
        ns.set_sysctl("net.ipv4.tcp_sack", u8::from(self.sack))?;
        ns.set_sysctl("net.ipv4.tcp_window_scaling", u8::from(self.scaling))?;
        let ecn = match self.ecn {
            Ecn::Off => 0,
            Ecn::Request => 1,
            Ecn::Accept => 2,
        };
        ns.set_sysctl("net.ipv4.tcp_ecn", ecn)
    }
}
