//! The subnets of the topologies, and joining two devices by one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use rtnetlink::Handle;

use crate::{
    edge::{self, FLOOD_V4, FLOOD_V6},
    link::{self, End},
    netns::Netns,
};

/// An IPv4 /24 and an IPv6 /64.
#[derive(Clone, Copy)]
pub(super) struct Subnet {
    v4: [u8; 3],
    v6: [u16; 4],
}

/// Client and edge: the subnet of [`Edge`](crate::edge::Edge), with the same client.
pub(super) const OUTER: Subnet = Subnet::new([10, 77, 0], [0xfd77, 0, 0, 0]);
/// Edge and what is behind it.
pub(super) const INNER: Subnet = Subnet::new([10, 78, 0], [0xfd78, 0, 0, 0]);
/// The two routers of a narrow link.
pub(super) const NARROW: Subnet = Subnet::new([10, 79, 1], [0xfd79, 0, 0, 1]);
/// The farther router and the server.
pub(super) const FAR: Subnet = Subnet::new([10, 79, 0], [0xfd79, 0, 0, 0]);
/// Server and client, round the edge.
pub(super) const BYPASS: Subnet = Subnet::new([10, 76, 0], [0xfd76, 0, 0, 0]);

/// Prefixes, with their lengths.
pub(super) type Prefixes = [(IpAddr, u8); 2];

/// Everything.
pub(super) const DEFAULT: Prefixes = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];
/// All that is behind the edge: [`INNER`], [`NARROW`] and [`FAR`].
pub(super) const BEHIND: Prefixes = [
    (IpAddr::V4(Ipv4Addr::new(10, 78, 0, 0)), 15),
    (IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0)), 15),
];
/// Where floods come from.
pub(super) const FLOOD: Prefixes = [
    (IpAddr::V4(FLOOD_V4.0), FLOOD_V4.1),
    (IpAddr::V6(FLOOD_V6.0), FLOOD_V6.1),
];

impl Subnet {
    const fn new(v4: [u8; 3], v6: [u16; 4]) -> Self {
        Self { v4, v6 }
    }

    /// The addresses of a host.
    pub(super) fn host(self, number: u8) -> [IpAddr; 2] {
        let ([a, b, c], [e, f, g, h]) = (self.v4, self.v6);
        [
            Ipv4Addr::new(a, b, c, number).into(),
            Ipv6Addr::new(e, f, g, h, 0, 0, 0, number.into()).into(),
        ]
    }

    /// The subnet itself.
    pub(super) fn prefixes(self) -> Prefixes {
        self.host(0)
            .map(|address| (address, edge::prefix_of(address)))
    }
}

/// A device on a wire.
pub(super) struct Port<'a> {
    end: &'a End,
    index: u32,
    addresses: Vec<IpAddr>,
}

impl<'a> Port<'a> {
    /// The device of this index, on an end of a wire or the end itself.
    pub(super) fn new(end: &'a End, index: u32, addresses: Vec<IpAddr>) -> Self {
        Self {
            end,
            index,
            addresses,
        }
    }
}

/// Gives two devices on one wire their addresses, and makes them neighbours for good if `fixed`.
pub(super) fn join(ports: [Port<'_>; 2], fixed: bool) -> Result<()> {
    let [left, right] = &ports;
    for (port, other) in [(left, right), (right, left)] {
        port.end.ns.netlink(async |handle| {
            for &address in &port.addresses {
                link::add_address(&handle, port.index, address, edge::prefix_of(address)).await?;
            }
            if fixed {
                for &address in &other.addresses {
                    link::add_neighbour(&handle, port.index, address, other.end.mac).await?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Routes both prefixes through a neighbour's addresses.
pub(super) fn route(ns: &Netns, index: u32, to: Prefixes, via: [IpAddr; 2]) -> Result<()> {
    ns.netlink(async |handle: Handle| {
        for ((destination, prefix), gateway) in to.into_iter().zip(via) {
            link::add_route(&handle, index, destination, prefix, gateway).await?;
        }
        Ok(())
    })
}
