//! veth pairs between namespaces, and VLAN devices on them, free of the traps of veth.
//!
//! What a veth needs before packets behave as on a wire:
//!
//! - checksum offload off, or its peer sees unfinished checksums;
//! - TSO and GSO off, or a sender's large segments go round the peer's XDP ring;
//! - VLAN offload off, or tags travel beside the packet where no XDP program sees them;
//! - GRO on, which makes the peer poll by NAPI, without which `XDP_TX` and redirects vanish;
//! - one queue, so that one NAPI thread does all the receive work.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    Handle, LinkBridge, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
    RouteMessageBuilder,
    packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkXdp, MacVlanMode, VlanProtocol},
};

use crate::{
    cpu::{self, Task},
    ethtool,
    netns::Netns,
    programs::TagLinks,
};

/// Features of both ends; see the module's text.
const FEATURES: &[(&str, bool)] = &[
    ("tx-checksum-ip-generic", false),
    ("tx-checksum-sctp", false),
    ("tx-scatter-gather", false),
    ("tx-tcp-segmentation", false),
    ("tx-tcp6-segmentation", false),
    ("tx-tcp-ecn-segmentation", false),
    ("tx-tcp-mangleid-segmentation", false),
    ("tx-udp-segmentation", false),
    ("tx-generic-segmentation", false),
    ("tx-vlan-hw-insert", false),
    ("tx-vlan-stag-hw-insert", false),
    ("rx-vlan-hw-parse", false),
    ("rx-vlan-stag-hw-parse", false),
    ("rx-gro", true),
];

/// One VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// EtherType of the tag: [`Vlan::CUSTOMER`] or [`Vlan::SERVICE`].
    pub tpid: u16,
    /// VLAN identifier, 1 to 4094.
    pub id: u16,
}

impl Vlan {
    /// 802.1Q.
    pub const CUSTOMER: u16 = 0x8100;
    /// 802.1ad.
    pub const SERVICE: u16 = 0x88a8;

    /// An 802.1Q tag.
    pub const fn customer(id: u16) -> Self {
        Self {
            tpid: Self::CUSTOMER,
            id,
        }
    }

    /// An 802.1ad tag.
    pub const fn service(id: u16) -> Self {
        Self {
            tpid: Self::SERVICE,
            id,
        }
    }
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace it is in.
    pub ns: Netns,
    /// Name of the device. Unique on the machine, because NAPI threads are found by it.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
}

impl End {
    /// Makes a device's packets be received by a kernel thread of its own, bound to `cpu`, instead
    /// of by whichever CPU the sender happens to be on. Attach XDP first: attaching and detaching
    /// starts NAPI afresh, and the threads with it. Calling it again is what to do then.
    ///
    /// Returns the threads, for accounting.
    pub fn pin_napi(&self, cpu: usize) -> Result<Vec<Task>> {
        let path = format!("/sys/class/net/{}/threaded", self.name);
        self.ns.run_with_sysfs(|| {
            for value in ["0", "1"] {
                std::fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {path}"))?;
            }
            Ok(())
        })?;
        let threads = self.napi_threads()?;
        if threads.is_empty() {
            bail!(
                "{} has no NAPI threads: neither XDP nor GRO is on",
                self.name
            );
        }
        for thread in &threads {
            cpu::pin(thread.0, cpu)?;
        }
        Ok(threads)
    }

    /// Makes the device gather packets for this long before it polls, as the interrupt moderation of
    /// a NIC does. Without it a veth wakes its NAPI thread for nearly every packet, and both sides
    /// pay for that.
    pub fn moderate(&self, time: Duration) -> Result<()> {
        let directory = format!("/sys/class/net/{}", self.name);
        self.ns.run_with_sysfs(|| {
            for (file, value) in [
                ("napi_defer_hard_irqs", 10),
                ("gro_flush_timeout", time.as_nanos()),
            ] {
                let path = format!("{directory}/{file}");
                std::fs::write(&path, value.to_string())
                    .with_context(|| format!("cannot write {value} to {path}"))?;
            }
            Ok(())
        })
    }

    /// The NAPI threads of the device as they are now.
    pub fn napi_threads(&self) -> Result<Vec<Task>> {
        cpu::kernel_threads(&format!("napi/{}-", self.name))
    }

    /// Whether an XDP program is attached, in whatever mode.
    pub fn has_xdp(&self) -> Result<bool> {
        let links = self.ns.netlink(async |handle| {
            let links = handle.link().get().match_index(self.index).execute();
            Ok(links.try_collect::<Vec<_>>().await?)
        });
        let links = links.with_context(|| format!("cannot look at {}", self.name))?;
        let attributes = links.iter().flat_map(|link| &link.attributes);
        Ok(attributes
            .filter_map(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => Some(xdp),
                _ => None,
            })
            .flatten()
            .any(|xdp| matches!(xdp, LinkXdp::ProgId(_))))
    }

    /// One of the kernel's counters of the device, `rx_packets` for example.
    pub fn statistic(&self, name: &str) -> Result<u64> {
        let path = format!("/sys/class/net/{}/statistics/{name}", self.name);
        self.ns.run_with_sysfs(|| {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            text.trim()
                .parse()
                .with_context(|| format!("{path} holds {text:?}"))
        })
    }
}

/// Makes a veth pair with both ends up. MAC addresses are 02:…:01 for the first end and 02:…:02 for
/// the second.
pub fn veth(first: &Netns, second: &Netns, mtu: u32) -> Result<[End; 2]> {
    numbered_veth(0, first, second, mtu)
}

/// As [`veth`], with the wire's number in the last but one byte of both MAC addresses: where several
/// wires meet in a bridge, no two ends may have the same.
pub fn numbered_veth(wire: u8, first: &Netns, second: &Netns, mtu: u32) -> Result<[End; 2]> {
    let names = ["a", "b"].map(unique_name);
    let macs = [[2, 0, 0, 0, wire, 1], [2, 0, 0, 0, wire, 2]];
    let single_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

    let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(names[1].clone())
        .address(macs[1].to_vec())
        .mtu(mtu)
        .setns_by_fd(second.as_fd().as_raw_fd())
        .build();
    peer.attributes.extend(single_queue.clone());
    let mut link = LinkVeth::new(&names[0], &names[1])
        .address(macs[0].to_vec())
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    link.attributes.extend(single_queue);
    first
        .netlink(async |handle| Ok(handle.link().add(link).execute().await?))
        .with_context(|| format!("cannot make the veth pair {} - {}", names[0], names[1]))?;

    // Both before either is up: when a veth comes up it looks at its peer's GRO to decide whether it
    // can be a redirect target, and does not look again.
    for (ns, name) in [(first, &names[0]), (second, &names[1])] {
        ns.run(|| ethtool::set_features(name, FEATURES))?;
    }
    let end = |ns: &Netns, name: &str, mac| -> Result<End> {
        let index = ns.run(|| index_of(name))?;
        ns.netlink(async |handle| set_up(&handle, index).await)?;
        Ok(End {
            ns: ns.clone(),
            name: name.to_owned(),
            index,
            mac,
        })
    };
    let ends = [
        end(first, &names[0], macs[0])?,
        end(second, &names[1], macs[1])?,
    ];
    for end in &ends {
        wait_until_active(&end.ns, end.index)?;
    }
    Ok(ends)
}

/// Waits until the kernel has given a device that is up its queue, which it does in its own time, up
/// to a second later. What is sent before then is lost.
fn wait_until_active(ns: &Netns, index: u32) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let is_noop = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Qdisc(name) if name == "noop");
    ns.netlink(async |handle| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let links = handle.link().get().match_index(index).execute();
            let links: Vec<_> = links.try_collect().await?;
            if !links.iter().flat_map(|link| &link.attributes).any(is_noop) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("device {index} is up, but has no queue after {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

/// Makes a bridge in a namespace with these ends as its ports, and returns its interface index. It
/// forwards at once (no spanning tree) and floods multicast.
pub fn bridge(ns: &Netns, name: &str, ports: &[&End]) -> Result<u32> {
    let message = LinkBridge::new(name).mcast_snooping(false).build();
    ns.netlink(async |handle| Ok(handle.link().add(message).execute().await?))
        .with_context(|| format!("cannot make bridge {name}"))?;
    let index = ns.run(|| index_of(name))?;
    ns.netlink(async |handle| {
        for port in ports {
            let message = LinkUnspec::new_with_index(port.index)
                .controller(index)
                .build();
            let request = handle.link().set(message);
            request
                .execute()
                .await
                .with_context(|| format!("cannot make {} a port of {name}", port.name))?;
        }
        set_up(&handle, index).await
    })?;
    wait_until_active(ns, index)?;
    Ok(index)
}

/// Removes a device; with one end of a veth pair the other goes, too.
pub(crate) fn remove(end: &End) -> Result<()> {
    let request = end
        .ns
        .netlink(async |handle| Ok(handle.link().del(end.index).execute().await?));
    request.with_context(|| format!("cannot remove {}", end.name))
}

/// The device above an end that deals in untagged packets.
pub struct Top {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Keeps the tags coming and going where the kernel has no VLAN devices.
    _tags: Option<TagLinks>,
}

/// Puts a device above an end that adds and removes these tags, outermost first. A kernel without
/// VLAN devices gets a macvlan device with two programs that do the same. Without tags the end
/// itself is the top.
pub fn stack_vlans(end: &End, vlans: &[Vlan], mtu: u32) -> Result<Top> {
    let mut top = Top {
        index: end.index,
        name: end.name.clone(),
        _tags: None,
    };
    if vlans.is_empty() {
        return Ok(top);
    }
    let ids: Vec<_> = vlans.iter().map(|vlan| vlan.id.to_string()).collect();
    for (depth, vlan) in vlans.iter().enumerate() {
        let name = format!("vlan{}", ids[..=depth].join("."));
        match add_vlan(end, &name, top.index, *vlan) {
            Err(error) if depth == 0 && is_unsupported(&error) => return stand_in(end, vlans, mtu),
            result => {
                result.with_context(|| format!("cannot make VLAN device {name} on {}", end.name))?
            }
        }
        top.index = end.ns.run(|| index_of(&name))?;
        end.ns
            .netlink(async |handle| set_up(&handle, top.index).await)?;
        wait_until_active(&end.ns, top.index)?;
        top.name = name;
    }
    set_mtu(end, top.index, mtu)?;
    Ok(top)
}

fn add_vlan(end: &End, name: &str, lower: u32, vlan: Vlan) -> Result<()> {
    let protocol = match vlan.tpid {
        Vlan::CUSTOMER => VlanProtocol::Ieee8021Q,
        Vlan::SERVICE => VlanProtocol::Ieee8021Ad,
        other => bail!("{other:#06x} is no VLAN tag the kernel makes devices for"),
    };
    let message = LinkVlan::new(name, lower, vlan.id)
        .protocol(protocol)
        .build();
    end.ns
        .netlink(async |handle| Ok(handle.link().add(message).execute().await?))
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EOPNOTSUPP
    )
}

/// A macvlan device instead of VLAN devices: see `synguard-lab-ebpf/src/tag.rs`.
fn stand_in(end: &End, vlans: &[Vlan], mtu: u32) -> Result<Top> {
    let name = "vlan".to_owned();
    let message = LinkMacVlan::new(&name, end.index, MacVlanMode::Passthrough)
        .mtu(mtu)
        .build();
    end.ns
        .netlink(async |handle| Ok(handle.link().add(message).execute().await?))
        .with_context(|| format!("cannot make a macvlan device on {}", end.name))?;
    let index = end.ns.run(|| index_of(&name))?;
    let tags = TagLinks::attach(end, &name, vlans)?;
    end.ns
        .netlink(async |handle| set_up(&handle, index).await)?;
    wait_until_active(&end.ns, index)?;
    Ok(Top {
        index,
        name,
        _tags: Some(tags),
    })
}

fn set_mtu(end: &End, index: u32, mtu: u32) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
    end.ns
        .netlink(async |handle| Ok(handle.link().set(message).execute().await?))
        .with_context(|| format!("cannot set MTU {mtu} of device {index}"))
}

/// Brings a device up.
pub async fn set_up(handle: &Handle, index: u32) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .with_context(|| format!("cannot bring device {index} up"))
}

/// Gives a device an address.
pub async fn add_address(handle: &Handle, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
    let request = handle.address().add(index, address, prefix);
    request
        .execute()
        .await
        .with_context(|| format!("cannot add address {address}/{prefix} to device {index}"))
}

/// Adds a route through a neighbour.
pub async fn add_route(
    handle: &Handle,
    index: u32,
    destination: IpAddr,
    prefix: u8,
    gateway: IpAddr,
) -> Result<()> {
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination, prefix)?
        .gateway(gateway)?
        .output_interface(index)
        .build();
    let request = handle.route().add(message);
    request
        .execute()
        .await
        .with_context(|| format!("cannot add route {destination}/{prefix} via {gateway}"))
}

/// Fixes the MAC address of a neighbour.
pub async fn add_neighbour(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    mac: [u8; 6],
) -> Result<()> {
    let request = handle
        .neighbours()
        .add(index, address)
        .link_layer_address(&mac)
        .replace();
    request
        .execute()
        .await
        .with_context(|| format!("cannot add neighbour {address}"))
}

/// Interface index of a device in the calling thread's namespace.
pub fn index_of(device: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(device).with_context(|| format!("there is no device {device}"))
}

/// A device name that no other lab on the machine uses.
fn unique_name(end: &str) -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    format!(
        "sg{}{end}{}",
        std::process::id(),
        SERIAL.fetch_add(1, Ordering::Relaxed)
    )
}
