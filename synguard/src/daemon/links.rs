//! The network devices of this namespace and their addresses, as rtnetlink tells them.

use std::{collections::BTreeSet, fs, net::IpAddr};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use netlink_packet_route::{
    address::AddressAttribute,
    link::{
        InfoBond, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage, LinkXdp, XdpAttached,
    },
};
use rtnetlink::MulticastGroup;

use crate::dataplane::{Device, tables::LocalAddress};

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What attaching needs to know.
    pub device: Device,
    /// Whether it carries traffic.
    pub up: bool,
    /// Its link-layer address.
    pub mac: Vec<u8>,
    /// The device it is stacked on, in this namespace.
    lower: Option<u32>,
    vlan: bool,
    /// What only `synguard check` asks.
    pub details: Details,
}

/// More of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// What it is where it is not a card: `veth`, `bond`, `vlan`, …
    pub kind: Option<String>,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is meant to be up.
    pub enabled: bool,
    /// The device below it, or the other end of its wire, wherever that is.
    pub other: Option<u32>,
    /// The namespace that one is in, where it is another; a number of ours.
    pub other_namespace: Option<i32>,
    /// The bond or bridge it is a port of.
    pub controller: Option<u32>,
    /// How it chooses a port, where it is a bond: `active-backup`, `802.3ad`, …
    pub bond_mode: Option<String>,
    /// Receive queues it was made with.
    pub rx_queues: u32,
    /// Whether its XDP program is in generic mode.
    pub generic_xdp: bool,
}

/// All devices and addresses at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    links: Vec<Link>,
    addresses: Vec<(u32, IpAddr)>,
}

impl World {
    /// All devices.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The device of this name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.device.name == name)
    }

    /// The device of this index.
    pub fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.device.index == index)
    }

    /// Takes note that XDP was taken off a device since.
    pub fn forget_xdp(&mut self, index: u32) {
        let mut links = self.links.iter_mut();
        if let Some(link) = links.find(|link| link.device.index == index) {
            link.device.xdp_program = None;
        }
    }

    /// Names of all devices.
    pub fn names(&self) -> Vec<String> {
        self.links
            .iter()
            .map(|link| link.device.name.clone())
            .collect()
    }

    /// The VLAN devices stacked on a device, directly or on one another.
    pub fn vlans_on(&self, index: u32) -> Vec<Device> {
        let mut below = BTreeSet::from([index]);
        let mut vlans = Vec::new();
        loop {
            let next: Vec<&Link> = self
                .links
                .iter()
                .filter(|link| link.vlan && link.lower.is_some_and(|lower| below.contains(&lower)))
                .filter(|link| !below.contains(&link.device.index))
                .collect();
            if next.is_empty() {
                return vlans;
            }
            for link in next {
                below.insert(link.device.index);
                vlans.push(link.device.clone());
            }
        }
    }

    /// Every address of the box.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|(_, address)| *address)
    }

    /// Addresses of a device and of the VLAN devices on it, each with its own device's MTU.
    pub fn addresses_at(&self, index: u32) -> Vec<LocalAddress> {
        let vlans = self.vlans_on(index);
        let mtu_of = |at: u32| {
            let own = self
                .by_index(at)
                .filter(|_| at == index)
                .map(|link| link.device.mtu);
            own.or_else(|| {
                vlans
                    .iter()
                    .find(|vlan| vlan.index == at)
                    .map(|vlan| vlan.mtu)
            })
        };
        self.addresses
            .iter()
            .filter_map(|(at, address)| {
                Some(LocalAddress {
                    address: *address,
                    mtu: mtu_of(*at)?,
                })
            })
            .collect()
    }
}

/// The kernel's side of rtnetlink.
pub struct Netlink {
    handle: rtnetlink::Handle,
    changes: BoxStream<'static, ()>,
}

impl Netlink {
    /// Connects, and listens for changes of devices and addresses. Must be called on the runtime.
    pub fn connect() -> anyhow::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)
            .context("cannot open an rtnetlink socket")?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            changes: messages.map(|_| ()).boxed(),
        })
    }

    /// Waits for something to change; what it was is to be discovered. Pending for ever once the
    /// connection is lost, as the loop also looks by itself from time to time.
    pub async fn changed(&mut self) {
        if self.changes.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Looks at everything.
    pub async fn discover(&self) -> anyhow::Result<World> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot list the network devices")?;
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot list the addresses")?;
        let mut addresses = Vec::new();
        for message in messages {
            let mut address = None;
            for attribute in &message.attributes {
                match attribute {
                    // On point-to-point links `Address` is the peer's.
                    AddressAttribute::Local(local) => address = Some(*local),
                    AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
                    _ => {}
                }
            }
            addresses.extend(address.map(|address| (message.header.index, address)));
        }
        Ok(World {
            links: links.iter().map(link).collect(),
            addresses,
        })
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        driver: None,
        xdp_program: None,
    };
    let mut details = Details {
        ethernet: matches!(
            message.header.link_layer_type,
            LinkLayerType::Ether | LinkLayerType::Loopback
        ),
        enabled: flags.contains(LinkFlags::Up),
        ..Details::default()
    };
    let mut kind = None;
    let mut mac = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(address) => mac.clone_from(address),
            LinkAttribute::Link(index) => details.other = Some(*index),
            LinkAttribute::LinkNetNsId(id) => details.other_namespace = Some(*id),
            LinkAttribute::Controller(index) => details.controller = Some(*index),
            LinkAttribute::NumRxQueues(queues) => details.rx_queues = *queues,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
                details.bond_mode = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Bond(bond)) => {
                        bond.iter().find_map(|bond| match bond {
                            InfoBond::Mode(mode) => Some(mode.to_string()),
                            _ => None,
                        })
                    }
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => {
                details.generic_xdp = xdp.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
                device.xdp_program = xdp.iter().find_map(|xdp| match xdp {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => {
                        Some(*id)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    device.driver = match &kind {
        Some(kind) => Some(kind.to_string()),
        None => driver(&device.name),
    };
    details.kind = kind.as_ref().map(ToString::to_string);
    Link {
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mac,
        lower: details.other.filter(|_| details.other_namespace.is_none()),
        vlan: matches!(kind, Some(InfoKind::Vlan)),
        device,
        details,
    }
}

/// The driver of a physical device.
fn driver(name: &str) -> Option<String> {
    let link = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
impl Link {
    /// One that is up, for tests.
    pub(crate) fn made_up(device: Device, details: Details) -> Self {
        Self {
            up: true,
            mac: Vec::new(),
            lower: None,
            vlan: false,
            device,
            details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, lower: Option<u32>, vlan: bool, mtu: u32) -> Link {
        let device = Device {
            index,
            name: name.into(),
            mtu,
            driver: None,
            xdp_program: None,
        };
        Link {
            lower,
            vlan,
            ..Link::made_up(device, Details::default())
        }
    }

    #[test]
    fn vlans_are_followed_through_one_another_and_nothing_else_is() {
        let world = World {
            links: vec![
                device(5, "eth0.7.8", Some(4), true, 1400),
                device(2, "eth0", None, false, 1500),
                device(3, "eth1", None, false, 1500),
                device(4, "eth0.7", Some(2), true, 1450),
                device(6, "macvlan0", Some(2), false, 1500),
                device(7, "eth1.7", Some(3), true, 1500),
            ],
            addresses: vec![
                (2, "192.0.2.1".parse().unwrap()),
                (5, "192.0.2.2".parse().unwrap()),
                (6, "192.0.2.3".parse().unwrap()),
                (7, "192.0.2.4".parse().unwrap()),
            ],
        };
        let names: Vec<String> = world
            .vlans_on(2)
            .into_iter()
            .map(|vlan| vlan.name)
            .collect();
        assert_eq!(names, ["eth0.7", "eth0.7.8"]);
        let addresses = world.addresses_at(2);
        assert_eq!(
            addresses,
            [
                LocalAddress {
                    address: "192.0.2.1".parse().unwrap(),
                    mtu: 1500
                },
                LocalAddress {
                    address: "192.0.2.2".parse().unwrap(),
                    mtu: 1400
                },
            ]
        );
    }
}
