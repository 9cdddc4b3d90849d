//! Topologies in which the edge forwards: the servers are behind it, on a machine of their own.
//!
//! ```text
//!  client namespace          edge namespace             server namespace
//!  10.77.0.1  fd77::1 ────── (guarded here)      ────── 10.78.0.2  fd78::2
//!  [lab_peer]                 10.77.0.2  fd77::2        (10.79.0.2  fd79::2 behind a narrow link)
//!       └──────────────── the answers, where the path is asymmetric ───────────────┘
//! ```
//!
//! The client, and who floods, is the one of [`Edge`](crate::edge::Edge). Bridged, the server has the
//! addresses that the edge has otherwise.
//!
//! ```no_run
//! use synguard_lab::{
//!     client::{self, ConnectOptions},
//!     http::{HttpServer, ServerOptions},
//!     topology::{Forwarding, ForwardingOptions, Shape},
//! };
//!
//! # fn main() -> anyhow::Result<()> {
//! for shape in Shape::ALL {
//!     let topology = Forwarding::new(shape, ForwardingOptions::default())?;
//!     let options = ServerOptions {
//!         port: topology.server_port(80),
//!         ..ServerOptions::default()
//!     };
//!     let _server = HttpServer::start(&topology.server, options)?;
//!     // Attach what is to be tried to topology.outside, then:
//!     let target = topology.dial(false, 80);
//!     let stream = client::connect(&topology.client, target, &ConnectOptions::default())?;
//!     println!("{shape}: {:?}", client::get(&stream, "/")?);
//! }
//! # Ok(())
//! # }
//! ```

mod build;
mod nft;
mod options;
mod subnet;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use anyhow::{Result, bail};
use aya::programs::xdp::XdpLink;

pub use self::{
    nft::skip_unless_nft,
    options::{Ecn, ForwardingOptions, Shape, Stack},
};
use crate::{
    cpu::{self, Task},
    edge::{MODERATION, client_sources},
    flood::{Flood, FloodSpec},
    frame::Frame,
    link::{End, Top, Vlan},
    netns::Netns,
    programs::{CounterReader, Counters, Programs},
    wire::Wire,
};

/// A client, an edge that forwards, and a server; taken down when dropped.
pub struct Forwarding {
    /// What the edge does.
    pub shape: Shape,
    /// Where clients and floods live.
    pub client: Netns,
    /// Where the daemon lives.
    pub edge: Netns,
    /// Where servers live.
    pub server: Netns,
    /// The two routers at a narrow link, the edge's neighbour first.
    pub hops: Vec<Netns>,
    /// The client's end of the wire to the edge.
    pub client_end: End,
    /// The edge's end of that wire: the interface to guard.
    pub outside: End,
    /// The edge's end of the wire to the server, or to the first router.
    pub inside: End,
    /// The server's end of its wire.
    pub server_end: End,
    /// The edge's device towards the client that has the addresses: `outside` itself, unless there
    /// are tags; none on a bridge.
    pub outside_top: Option<Top>,
    /// The server's device that has the addresses: `server_end`, unless tags come over a bridge.
    pub server_top: Top,
    /// The wire round the edge.
    pub bypass: Option<Bypass>,
    dialled: [IpAddr; 2],
    bound: [IpAddr; 2],
    options: ForwardingOptions,
    programs: Mutex<Programs>,
    counters: CounterReader,
    _client_top: Top,
    _peers: Vec<XdpLink>,
}

/// The wire that answers take round the edge.
pub struct Bypass {
    /// The client's end.
    pub client_end: End,
    /// The server's end.
    pub server_end: End,
}

impl Forwarding {
    /// Builds a topology.
    pub fn new(shape: Shape, options: ForwardingOptions) -> Result<Self> {
        build::build(shape, options)
    }

    /// An edge that routes.
    pub fn routed(options: ForwardingOptions) -> Result<Self> {
        Self::new(Shape::Routed, options)
    }

    /// An edge that is a bridge.
    pub fn bridged(options: ForwardingOptions) -> Result<Self> {
        Self::new(Shape::Bridged, options)
    }

    /// An edge that translates the service's address. Needs `nft`: see [`skip_unless_nft`].
    pub fn dnat(options: ForwardingOptions) -> Result<Self> {
        Self::new(Shape::Dnat, options)
    }

    /// An edge that sees only what clients send.
    pub fn asymmetric(options: ForwardingOptions) -> Result<Self> {
        Self::new(Shape::Asymmetric, options)
    }

    /// The service on this port as clients dial it.
    pub fn dial(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.dialled[usize::from(v6)], port)
    }

    /// The same service as the server's sockets have it.
    pub fn bound(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.bound[usize::from(v6)], self.server_port(port))
    }

    /// The port a server must listen on for what clients dial as `port`.
    pub fn server_port(&self, port: u16) -> u16 {
        build::server_port(self.shape, port)
    }

    /// Addresses for many clients, IPv4 or IPv6.
    pub fn client_sources(&self, v6: bool) -> Vec<IpAddr> {
        client_sources(v6)
    }

    /// The tags on the guarded wire.
    pub fn vlans(&self) -> &[Vlan] {
        &self.options.vlans
    }

    /// What the client's ends have counted since the topology was built; of flood sources' answers
    /// that go round the edge, too.
    pub fn counters(&self) -> Result<Counters> {
        self.counters.read()
    }

    /// How many packets the edge's connection tracking has called invalid, and dropped.
    pub fn invalid(&self) -> Result<u64> {
        if !self.options.tracks(self.shape) {
            bail!(
                "this {} topology does not track connections: set conntrack",
                self.shape
            );
        }
        nft::invalid(&self.edge)
    }

    /// Receive work of the guarded interface and of the client on CPUs of their own, as
    /// [`Edge::pin_napi`](crate::edge::Edge::pin_napi) does; returns the threads of the former.
    pub fn pin_napi(&self, edge_cpu: usize, client_cpu: usize) -> Result<Vec<Task>> {
        let bypass = self.bypass.iter().map(|bypass| &bypass.client_end);
        for end in [&self.client_end].into_iter().chain(bypass) {
            for task in end.pin_napi(client_cpu)? {
                cpu::run_first(task)?;
            }
            end.moderate(MODERATION)?;
        }
        self.outside.pin_napi(edge_cpu)
    }

    /// A TCP frame as a client would put it on the guarded wire.
    pub fn frame(&self, from: SocketAddr, to: SocketAddr) -> Frame {
        let next = match self.shape {
            Shape::Bridged => self.server_end.mac,
            _ => self.outside.mac,
        };
        let frame = Frame::tcp(from, to).macs(self.client_end.mac, next);
        let tags = self.options.vlans.iter();
        tags.fold(frame, |frame, vlan| frame.vlan(vlan.tpid, vlan.id))
    }

    /// A raw socket on the client's end, to send frames by and to see what comes back.
    pub fn client_wire(&self) -> Result<Wire> {
        Wire::open(&self.client_end)
    }

    /// Starts a flood from the client's end.
    pub fn flood(&self, spec: FloodSpec) -> Result<Flood> {
        Flood::launch(
            &self.programs,
            &self.client_end,
            self.options.vlans.len(),
            |from, to| self.frame(from, to),
            spec,
        )
    }
}
