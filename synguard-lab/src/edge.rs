//! The smallest topology: clients on one side of a wire, the edge box with its listeners on the
//! other.
//!
//! ```text
//!  client namespace                    server namespace
//!  10.77.0.1  fd77::1   [lab_peer] ─── (guarded here)   10.77.0.2  fd77::2
//!  10.77.0.32 to .63, fd77::32 to ::51                  routes to 198.18.0.0/15 and 2001:2::/48 via the client
//! ```
//!
//! Flood sources (RFC 2544 and RFC 5180 benchmarking addresses) belong to nobody; the server routes
//! its answers to the client's end, where `lab_peer` counts and drops them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::Result;
use aya::programs::xdp::XdpLink;
use synguard_lab_ebpf::FloodSources;

use crate::{
    cpu::{self, Task},
    flood::{Flood, FloodSpec},
    frame::Frame,
    link::{self, End, Top, Vlan},
    netns::Netns,
    programs::{CounterReader, Counters, Programs},
    wire::Wire,
};

/// First address of the client.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// First IPv6 address of the client.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Address of the server.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// IPv6 address of the server.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// Where IPv4 floods come from, with the length of the prefix.
pub const FLOOD_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// Where IPv6 floods come from, with the length of the prefix.
pub const FLOOD_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);

/// How many further addresses a client has in each family, so that many short connections do not
/// run out of ports.
const MORE_CLIENTS: u8 = 32;

/// How long the client's end gathers packets. Its ring of 256 frames takes five million a second.
pub(crate) const MODERATION: Duration = Duration::from_micros(50);

/// How an [`Edge`] is built.
#[derive(Clone, Debug)]
pub struct EdgeOptions {
    /// Tags on the wire, outermost first; up to two.
    pub vlans: Vec<Vlan>,
    /// MTU of the devices that have the addresses. The wire's is larger by four bytes per tag, so
    /// that full packets fit.
    pub mtu: u32,
    /// Fix each side's MAC address on the other, so that a flood which drowns ARP and neighbour
    /// discovery does not end the experiment.
    pub static_neighbours: bool,
}

impl Default for EdgeOptions {
    fn default() -> Self {
        Self {
            vlans: Vec::new(),
            mtu: 1500,
            static_neighbours: true,
        }
    }
}

/// A client and a server on one wire; taken down when dropped.
pub struct Edge {
    /// Where clients and floods live.
    pub client: Netns,
    /// Where servers live, and the daemon.
    pub server: Netns,
    /// The client's end of the wire.
    pub client_end: End,
    /// The server's end of the wire: the interface to guard.
    pub server_end: End,
    /// The server's device that has the addresses: the end itself, unless there are tags.
    pub server_top: Top,
    _client_top: Top,
    options: EdgeOptions,
    programs: Mutex<Programs>,
    counters: CounterReader,
    _peer: XdpLink,
}

impl Edge {
    /// Builds the topology.
    pub fn new(options: EdgeOptions) -> Result<Self> {
        let client = Netns::create("client")?;
        let server = Netns::create("server")?;
        prepare(&client)?;
        prepare(&server)?;
        prepare_client(&client)?;

        let [client_end, server_end] = link::veth(
            &client,
            &server,
            options.mtu + 4 * options.vlans.len() as u32,
        )?;
        let mut programs = Programs::load()?;
        programs.set_flood_sources(flood_sources())?;
        let peer = programs.attach("lab_peer", &client_end)?;
        let counters = programs.counters()?;

        let client_top = link::stack_vlans(&client_end, &options.vlans, options.mtu)?;
        let server_top = link::stack_vlans(&server_end, &options.vlans, options.mtu)?;
        client.netlink(async |handle| {
            for address in client_addresses() {
                link::add_address(&handle, client_top.index, address, prefix_of(address)).await?;
            }
            if options.static_neighbours {
                for address in [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)] {
                    link::add_neighbour(&handle, client_top.index, address, server_end.mac).await?;
                }
            }
            Ok(())
        })?;
        server.netlink(async |handle| {
            for address in [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)] {
                link::add_address(&handle, server_top.index, address, prefix_of(address)).await?;
            }
            if options.static_neighbours {
                for address in client_addresses() {
                    link::add_neighbour(&handle, server_top.index, address, client_end.mac).await?;
                }
            }
            let (v4, v6) = (FLOOD_V4, FLOOD_V6);
            link::add_route(
                &handle,
                server_top.index,
                v4.0.into(),
                v4.1,
                CLIENT_V4.into(),
            )
            .await?;
            link::add_route(
                &handle,
                server_top.index,
                v6.0.into(),
                v6.1,
                CLIENT_V6.into(),
            )
            .await
        })?;

        let programs = Mutex::new(programs);
        Ok(Self {
            client,
            server,
            client_end,
            server_end,
            server_top,
            _client_top: client_top,
            options,
            programs,
            counters,
            _peer: peer,
        })
    }

    /// Addresses for many clients, IPv4 or IPv6.
    pub fn client_sources(&self, v6: bool) -> Vec<IpAddr> {
        client_sources(v6)
    }

    /// The tags on the wire.
    pub fn vlans(&self) -> &[Vlan] {
        &self.options.vlans
    }

    /// What the client's end has counted since the topology was built.
    pub fn counters(&self) -> Result<Counters> {
        self.counters.read()
    }

    /// Receive work of either side on a CPU of its own: see [`End::pin_napi`]. To be called again
    /// whenever XDP was attached to or detached from an end. Returns the server's threads.
    ///
    /// The client's end is a measuring instrument, so it comes before the flood and the clients on
    /// its CPU, and gathers packets: otherwise its full ring would lose answers that the server has
    /// given. The server's end gets no favours.
    pub fn pin_napi(&self, server_cpu: usize, client_cpu: usize) -> Result<Vec<Task>> {
        for task in self.client_end.pin_napi(client_cpu)? {
            cpu::run_first(task)?;
        }
        self.client_end.moderate(MODERATION)?;
        self.server_end.pin_napi(server_cpu)
    }

    /// A TCP frame as a client would put it on the wire: addresses of both machines, the wire's tags.
    /// Flood sources are behind the client's MAC address.
    pub fn frame(&self, from: SocketAddr, to: SocketAddr) -> Frame {
        let mut frame = Frame::tcp(from, to).macs(self.client_end.mac, self.server_end.mac);
        for vlan in &self.options.vlans {
            frame = frame.vlan(vlan.tpid, vlan.id);
        }
        frame
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

/// Settings that all namespaces share.
pub(crate) fn prepare(ns: &Netns) -> Result<()> {
    for (name, value) in [
        ("net.ipv4.conf.all.rp_filter", 0),
        ("net.ipv4.conf.default.rp_filter", 0),
        // Addresses are usable at once: nobody else is on the wire.
        ("net.ipv6.conf.all.accept_dad", 0),
        ("net.ipv6.conf.default.accept_dad", 0),
        ("net.ipv6.conf.default.accept_ra", 0),
        ("net.ipv6.conf.default.router_solicitations", 0),
    ] {
        ns.set_sysctl(name, value)?;
    }
    Ok(())
}

/// Settings of a namespace that many short connections come from.
pub(crate) fn prepare_client(ns: &Netns) -> Result<()> {
    ns.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    ns.set_sysctl("net.ipv4.tcp_tw_reuse", 1)
}

/// Length of the prefix of a wire's addresses.
pub(crate) fn prefix_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// All addresses of the client.
pub(crate) fn client_addresses() -> impl Iterator<Item = IpAddr> {
    let more = (0..MORE_CLIENTS).flat_map(|n| {
        let v4 = Ipv4Addr::new(10, 77, 0, 32 + n);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x32 + u16::from(n));
        [IpAddr::V4(v4), IpAddr::V6(v6)]
    });
    [IpAddr::V4(CLIENT_V4), IpAddr::V6(CLIENT_V6)]
        .into_iter()
        .chain(more)
}

/// Those of one family.
pub(crate) fn client_sources(v6: bool) -> Vec<IpAddr> {
    client_addresses()
        .filter(|address| address.is_ipv6() == v6)
        .collect()
}

/// Where floods come from, for `lab_peer`.
pub(crate) fn flood_sources() -> FloodSources {
    let v4_mask = u32::MAX << (32 - FLOOD_V4.1);
    let v6_mask = u64::MAX << (64 - FLOOD_V6.1);
    let mut v6 = [0; 8];
    v6.copy_from_slice(&FLOOD_V6.0.octets()[..8]);
    FloodSources {
        v4: FLOOD_V4.0.octets(),
        v4_mask: v4_mask.to_be_bytes(),
        v6,
        v6_mask: v6_mask.to_be_bytes(),
    }
}
