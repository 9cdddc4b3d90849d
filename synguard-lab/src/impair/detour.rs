//! The veth pair that delayed packets go through, and what it takes that a packet at the hooks is one
//! of the wire.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    LinkUnspec,
    packet_route::link::{LinkAttribute, LinkMessage},
};

use crate::link::{self, End};

/// Number of the detour's wire.
const WIRE: u8 = 0xd0;

/// How many empty polls it takes until the far end waits for packets again, and so does not hold the
/// next one: two seconds' worth.
const EMPTY_POLLS: u32 = 2000;

/// A veth pair beside an end, in the same namespace; removed when dropped.
pub(super) struct Detour {
    /// Where packets enter.
    pub(super) entry: End,
    /// Where they come out, later.
    pub(super) exit: End,
}

impl Detour {
    /// Makes one whose exit polls at this interval.
    pub(super) fn new(end: &End, interval: Duration) -> Result<Self> {
        let mtu = links(end)?
            .iter()
            .filter(|link| link.header.index == end.index)
            .flat_map(|link| &link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
            .with_context(|| format!("the kernel does not say the MTU of {}", end.name))?;
        let [entry, exit] = link::numbered_veth(WIRE, &end.ns, &end.ns, mtu)?;
        let detour = Self { entry, exit };
        let exit = &detour.exit;
        let directory = format!("/sys/class/net/{}", exit.name);
        exit.ns.run_with_sysfs(|| {
            for (file, value) in [
                ("napi_defer_hard_irqs", u128::from(EMPTY_POLLS)),
                ("gro_flush_timeout", interval.as_nanos()),
            ] {
                let path = format!("{directory}/{file}");
                std::fs::write(&path, value.to_string())
                    .with_context(|| format!("cannot write {value} to {path}"))?;
            }
            Ok(())
        })?;
        limit_to_segments(exit)?;
        Ok(detour)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        if let Err(error) = link::remove(&self.entry) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Makes an end, and the devices above it, send and receive one segment at a time: TCP hands larger
/// packets to the TC hooks, and GRO makes them before ingress, even where the wire has small ones.
pub(super) fn limit_to_segments(end: &End) -> Result<()> {
    let devices: Vec<u32> = links(end)?
        .iter()
        .filter(|link| link.header.index == end.index || is_above(link, end))
        .map(|link| link.header.index)
        .collect();
    end.ns
        .netlink(async |handle| {
            for device in devices {
                let message = LinkUnspec::new_with_index(device)
                    .append_extra_attribute(LinkAttribute::GsoMaxSegs(1))
                    .append_extra_attribute(LinkAttribute::GroMaxSize(1))
                    .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(1))
                    .build();
                handle.link().set(message).execute().await?;
            }
            Ok(())
        })
        .with_context(|| format!("cannot limit {} to single segments", end.name))
}

/// Whether a device is a VLAN or macvlan device above the end. A veth's link is its peer, elsewhere.
fn is_above(link: &LinkMessage, end: &End) -> bool {
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    link.attributes.contains(&LinkAttribute::Link(end.index))
        && !link.attributes.iter().any(elsewhere)
}

/// The devices of the end's namespace.
fn links(end: &End) -> Result<Vec<LinkMessage>> {
    end.ns
        .netlink(async |handle| Ok(handle.link().get().execute().try_collect().await?))
        .with_context(|| format!("cannot list the devices of namespace {}", end.ns.name()))
}
