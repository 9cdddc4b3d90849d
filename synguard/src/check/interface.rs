//! Judges one interface: whether XDP runs in its driver, and what between the wire and the program
//! would spoil a packet.

use super::{
    Check, Status,
    facts::{Host, Interface, Missing, Peer, Seen},
    host::proxies,
};
use crate::{
    dataplane::attach::{auto_declines, is_ours},
    model::XdpMode,
};

/// Drivers that run XDP, asked only where the kernel does not tell (before 6.3).
const NATIVE_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bond",
    "dpaa2",
    "ena",
    "fec",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "nicvf",
    "qede",
    "rvu_nicpf",
    "sfc",
    "tun",
    "veth",
    "virtio_net",
];
/// Modes of a bond that sends by one port each frame, and so can send back what XDP answers
/// (`bond_xdp_check`).
const NATIVE_BONDS: [&str; 4] = ["active-backup", "802.3ad", "balance-xor", "balance-rr"];
/// The largest MTU of drivers that need a packet to be in one page, as most of them have it.
const PAGE_MTU: u32 = 3498;

/// Whether XDP will run in the driver.
enum Native {
    Yes(String),
    No { reason: String, fix: String },
}

pub(super) fn judge(interface: &Result<Interface, Missing>, host: &Host) -> Vec<Check> {
    let (name, checks) = match interface {
        Ok(interface) => (&interface.link.device.name, found(interface, host)),
        Err(Missing { name, hint }) => {
            let found = format!("no interface {name}{hint}");
            let check = Check::fail("link", found, "name one that `ip -br link` lists");
            (name, vec![check])
        }
    };
    let of = |check| Check {
        interface: Some(name.clone()),
        ..check
    };
    checks.into_iter().map(of).collect()
}

fn found(interface: &Interface, host: &Host) -> Vec<Check> {
    let mut checks = vec![link(interface)];
    if !interface.link.details.ethernet {
        // Nothing below means anything then.
        return checks;
    }
    let mode = host
        .config
        .as_ref()
        .map_or(XdpMode::Auto, |config| config.xdp_mode);
    let native = if mode == XdpMode::Auto {
        declined(interface).unwrap_or_else(|| native(interface))
    } else {
        native(interface)
    };
    let is_native = mode != XdpMode::Generic && matches!(native, Native::Yes(_));
    checks.extend(port(interface));
    checks.push(xdp(&native, mode));
    checks.push(mtu(interface, is_native));
    checks.push(queues(interface, host.cpus));
    checks.push(merging(interface, mode));
    checks.push(vlan_offload(interface));
    if let Some(peer) = &interface.peer {
        checks.push(peer_checksums(peer, proxies(host)));
        if is_native {
            checks.push(peer_receives(peer));
        }
    }
    checks.push(program(interface));
    if proxies(host) {
        checks.push(reverse_path(interface));
    }
    checks
}

fn name(interface: &Interface) -> &str {
    &interface.link.device.name
}

fn driver(interface: &Interface) -> &str {
    interface.link.device.driver.as_deref().unwrap_or("unknown")
}

fn kind(interface: &Interface) -> &str {
    interface.link.details.kind.as_deref().unwrap_or_default()
}

fn link(interface: &Interface) -> Check {
    const NAME: &str = "link";
    let (name, driver) = (name(interface), driver(interface));
    if !interface.link.details.ethernet {
        let found = format!("{driver}: packets have no Ethernet header, so nothing is guarded");
        return Check::fail(
            NAME,
            found,
            "guard the interface that these packets travel by",
        );
    }
    if !interface.link.details.enabled {
        let fix = format!("ip link set dev {name} up");
        return Check::warn(NAME, format!("down, driver {driver}"), fix);
    }
    if !interface.link.up {
        let found = format!("no carrier, driver {driver}");
        return Check::warn(NAME, found, "plug the cable in, or see to the other end");
    }
    Check::ok(NAME, format!("up, driver {driver}"))
}

/// Packets of a port may belong to the device above.
fn port(interface: &Interface) -> Option<Check> {
    const NAME: &str = "port";
    let (above, kind) = interface.controller.as_ref()?;
    Some(match kind.as_str() {
        "bond" | "team" => Check::fail(
            NAME,
            format!("a port of {kind} {above}, which answers must leave by"),
            format!("guard {above} instead"),
        ),
        "bridge" => Check::ok(
            NAME,
            format!("a port of bridge {above}: sees all that comes in"),
        ),
        kind => Check::ok(NAME, format!("a port of {kind} {above}")),
    })
}

/// What `auto` does not use though the driver has it.
fn declined(interface: &Interface) -> Option<Native> {
    let reason = auto_declines(interface.link.device.driver.as_deref())?;
    let fix = match &interface.peer {
        Some(Ok(peer)) if peer.has_xdp => format!("xdp_mode = \"native\", as {} does", peer.name),
        Some(Ok(peer)) => format!(
            "xdp_mode = \"native\", and any XDP program on {}",
            peer.name
        ),
        _ => "xdp_mode = \"native\", if the other end runs XDP".to_owned(),
    };
    Some(Native::No {
        reason: reason.to_owned(),
        fix,
    })
}

fn native(interface: &Interface) -> Native {
    let driver = driver(interface);
    let no = |reason: String, fix: String| Native::No { reason, fix };
    let lower = interface.lower.as_deref().unwrap_or("the device below it");
    match kind(interface) {
        "vlan" => {
            return no(
                "a VLAN device has no native XDP".into(),
                format!("guard {lower} instead, which sees the tags"),
            );
        }
        kind @ ("macvlan" | "macvtap" | "ipvlan" | "ipvtap") => {
            return no(
                format!("a {kind} device has no native XDP"),
                format!("guard {lower} instead"),
            );
        }
        "bridge" => {
            let ports = match interface.ports.as_slice() {
                [] => "its ports".to_owned(),
                ports => ports.join(" and "),
            };
            return no(
                "a bridge has no native XDP".into(),
                format!("guard {ports} instead"),
            );
        }
        _ => {}
    }
    // Before what the driver tells: a veth with too few queues says that it cannot at all.
    if let Some(refusal) = too_few_queues(interface).or_else(|| too_many_queues(interface)) {
        return refusal;
    }
    let told = interface.xdp.map(|features| features.native);
    if kind(interface) == "bond"
        && let Some(refusal) = bond(interface, told)
    {
        return refusal;
    }
    if !told.unwrap_or_else(|| NATIVE_DRIVERS.contains(&driver)) {
        let reason = match told {
            Some(_) => format!("driver {driver} does not run it"),
            None => format!("driver {driver} is not known to run it (a guess)"),
        };
        return no(
            reason,
            "a card whose driver does, or accept generic XDP".into(),
        );
    }
    if let Some(refusal) = too_large(interface) {
        return refusal;
    }
    Native::Yes(match told {
        Some(_) => format!("yes, in driver {driver}"),
        None => format!("yes, as driver {driver} usually can (a guess)"),
    })
}

/// A bond hands the program to the drivers of its ports: all of them, or none.
fn bond(interface: &Interface, told: Option<bool>) -> Option<Native> {
    let ports = interface.ports.join(", ");
    let mode = interface.link.details.bond_mode.as_deref();
    let (reason, fix) = if let Some(mode) = mode.filter(|mode| !NATIVE_BONDS.contains(mode)) {
        let reason = format!("a bond in mode {mode} has no native XDP");
        let modes = NATIVE_BONDS.join(", ");
        (
            reason,
            format!("one of the modes {modes}, or accept generic XDP"),
        )
    } else if ports.is_empty() {
        (
            "a bond without ports has no native XDP".to_owned(),
            format!("ip link set dev PORT master {}", name(interface)),
        )
    } else if told == Some(false) {
        (
            format!("not on this bond: the driver of one of {ports} does not run it"),
            "cards whose drivers do, or accept generic XDP; in modes 802.3ad and balance-xor not \
             xmit_hash_policy vlan+srcmac"
                .to_owned(),
        )
    } else {
        return None;
    };
    Some(Native::No { reason, fix })
}

/// A veth wants a queue for each that its peer sends by.
fn too_few_queues(interface: &Interface) -> Option<Native> {
    let (Some(Ok(peer)), Some(own)) = (&interface.peer, interface.channels) else {
        return None;
    };
    let other = peer.channels.filter(|other| own.rx < other.tx)?;
    let reason = format!(
        "veth refuses: its peer {} sends by {} queues, and {} receive",
        peer.name, other.tx, own.rx
    );
    let fix = if own.rx_max >= other.tx {
        format!("ethtool -L {} rx {}", name(interface), other.tx)
    } else {
        format!("{}ethtool -L {} tx {}", at(peer), peer.name, own.rx)
    };
    Some(Native::No { reason, fix })
}

/// Some keep as many queues for what XDP sends as they receive by.
fn too_many_queues(interface: &Interface) -> Option<Native> {
    let ("ena" | "gve", Some(channels)) = (driver(interface), interface.channels) else {
        return None;
    };
    let half = channels.rx_max / 2;
    (channels.rx > half && half > 0).then(|| Native::No {
        reason: format!(
            "driver {} refuses: {} of its {} queues are in use, more than half",
            driver(interface),
            channels.rx,
            channels.rx_max
        ),
        fix: format!("ethtool -L {} combined {half}", name(interface)),
    })
}

fn too_large(interface: &Interface) -> Option<Native> {
    let mtu = largest_packet(interface);
    if mtu <= PAGE_MTU || takes_frags(interface) {
        return None;
    }
    let set = |name: &str| format!("ip link set dev {name} mtu {PAGE_MTU}");
    Some(Native::No {
        reason: format!("MTU {mtu} is too large for driver {}", driver(interface)),
        fix: match &interface.peer {
            Some(Ok(peer)) => format!("{}{}", at(peer), set(&peer.name)),
            _ => set(name(interface)),
        },
    })
}

/// What may come in: with veth, what the other end may send.
fn largest_packet(interface: &Interface) -> u32 {
    match &interface.peer {
        Some(Ok(peer)) => peer.mtu,
        _ => interface.link.device.mtu,
    }
}

/// Whether the driver gives XDP packets of several buffers; before it was told (6.3), few did.
fn takes_frags(interface: &Interface) -> bool {
    interface.xdp.is_some_and(|features| features.frags)
}

fn xdp(native: &Native, mode: XdpMode) -> Check {
    const NAME: &str = "native-xdp";
    match (native, mode) {
        (_, XdpMode::Generic) => Check::warn(
            NAME,
            "generic XDP is configured: several times slower",
            "xdp_mode = \"auto\"",
        ),
        (Native::Yes(how), _) => Check::ok(NAME, how.as_str()),
        (Native::No { reason, fix }, XdpMode::Native) => Check::fail(
            NAME,
            format!("{reason}, and xdp_mode is native"),
            fix.as_str(),
        ),
        (Native::No { reason, fix }, XdpMode::Auto) => {
            let found = format!("{reason}: generic XDP, several times slower");
            Check::warn(NAME, found, fix.as_str())
        }
    }
}

fn mtu(interface: &Interface, is_native: bool) -> Check {
    const NAME: &str = "mtu";
    let mtu = interface.link.device.mtu;
    if mtu > PAGE_MTU && is_native {
        Check::ok(
            NAME,
            format!("{mtu}: packets of several buffers (frags) are taken"),
        )
    } else if mtu > PAGE_MTU {
        let found = format!("{mtu}: generic XDP copies each packet of several buffers");
        let fix = format!(
            "ip link set dev {} mtu {PAGE_MTU}, or less",
            name(interface)
        );
        Check::warn(NAME, found, fix)
    } else {
        Check::ok(NAME, mtu.to_string())
    }
}

fn queues(interface: &Interface, cpus: u32) -> Check {
    const NAME: &str = "queues";
    let (rx, most, word) = match interface.channels {
        Some(channels) => {
            let word = if channels.combined { "combined" } else { "rx" };
            (channels.rx, channels.rx_max, word)
        }
        None => {
            let rx = interface.link.details.rx_queues.max(1);
            (rx, rx, "rx")
        }
    };
    let found = format!(
        "{rx} receive queue{}, {cpus} CPU{}",
        if rx == 1 { "" } else { "s" },
        if cpus == 1 { "" } else { "s" }
    );
    if rx >= cpus {
        return Check::ok(NAME, found);
    }
    let found = format!("{found}: not all can help in a flood");
    let could = most.min(cpus);
    let fix = if could > rx {
        format!("ethtool -L {} {word} {could}", name(interface))
    } else {
        match driver(interface) {
            "virtio_net" | "vmxnet3" | "hv_netvsc" => {
                "give the virtual machine's card more queues".to_owned()
            }
            _ => "the device has no more".to_owned(),
        }
    };
    Check::warn(NAME, found, fix)
}

/// Packets merged by the card are none that came by the wire, and drivers refuse XDP with it.
fn merging(interface: &Interface, mode: XdpMode) -> Check {
    const NAME: &str = "lro";
    let Some(offloads) = &interface.offloads else {
        return Check::told(NAME, None);
    };
    let on: Vec<(&str, &str)> = [("rx-lro", "LRO"), ("rx-gro-hw", "GRO-HW")]
        .into_iter()
        .filter(|(feature, _)| offloads.contains(*feature))
        .collect();
    if on.is_empty() {
        return Check::ok(NAME, "LRO and GRO-HW are off");
    }
    let titles: Vec<&str> = on.iter().map(|(_, title)| *title).collect();
    let switches: Vec<String> = on
        .iter()
        .map(|(feature, _)| format!("{feature} off"))
        .collect();
    Check {
        status: if mode == XdpMode::Native && offloads.contains("rx-lro") {
            Status::Fail
        } else {
            Status::Warn
        },
        ..Check::warn(
            NAME,
            format!(
                "{} on: drivers refuse native XDP with it",
                titles.join(" and ")
            ),
            format!("ethtool -K {} {}", name(interface), switches.join(" ")),
        )
    }
}

fn vlan_offload(interface: &Interface) -> Check {
    const NAME: &str = "vlan-offload";
    let Some(offloads) = &interface.offloads else {
        return Check::told(NAME, None);
    };
    let parsed = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
    let on = parsed.iter().any(|feature| offloads.contains(*feature));
    match (on, interface.vlans.as_slice()) {
        (false, _) => Check::ok(NAME, "off: tags stay where XDP sees them"),
        (true, []) => Check::ok(NAME, "on, but there is no VLAN device here"),
        (true, vlans) => Check::fail(
            NAME,
            format!(
                "on: XDP does not see the tags of {}, and would answer without",
                vlans.join(", ")
            ),
            format!("ethtool -K {} rxvlan off", name(interface)),
        ),
    }
}

/// Where to give a command that is about the other end.
fn at(peer: &Peer) -> &'static str {
    if peer.elsewhere {
        "in its namespace: "
    } else {
        ""
    }
}

fn peer_checksums(peer: &Seen<Peer>, proxies: bool) -> Check {
    const NAME: &str = "peer-checksum";
    Check::seen(NAME, peer, |peer| {
        let name = &peer.name;
        let on = [
            "tx-checksum-ip-generic",
            "tx-checksum-ipv4",
            "tx-checksum-ipv6",
        ];
        if !on.iter().any(|feature| peer.offloads.contains(*feature)) {
            return Check::ok(NAME, format!("{name} finishes its checksums"));
        }
        let fix = format!("{}ethtool -K {name} tx off", at(peer));
        if proxies {
            let found = format!("{name} leaves them unfinished: `proxy` drops what it sends");
            Check::fail(NAME, found, fix)
        } else {
            let found = format!("{name} leaves them unfinished, which `proxy` could not take");
            Check::warn(NAME, found, fix)
        }
    })
}

/// A veth is not told of what XDP sends back to it unless it runs an XDP program itself
/// (`veth_xdp_flush`), whatever its offloads are.
fn peer_receives(peer: &Seen<Peer>) -> Check {
    const NAME: &str = "peer-receive";
    Check::seen(NAME, peer, |peer| {
        let name = &peer.name;
        if peer.has_xdp {
            return Check::ok(NAME, format!("{name} runs an XDP program: answers arrive"));
        }
        Check::fail(
            NAME,
            format!("{name} runs no XDP program, and so loses every answer"),
            format!(
                "xdp_mode = \"generic\", or {}any XDP program on {name}",
                at(peer)
            ),
        )
    })
}

fn program(interface: &Interface) -> Check {
    const NAME: &str = "xdp-program";
    let Some(id) = interface.link.device.xdp_program else {
        return Check::ok(NAME, "none yet");
    };
    let mode = if interface.link.details.generic_xdp {
        "generic"
    } else {
        "native"
    };
    match interface.program.as_deref() {
        Some(program) if is_ours(program) => Check::ok(
            NAME,
            format!("guarded already: {program} (id {id}, {mode})"),
        ),
        Some(program) => Check::fail(
            NAME,
            format!("another: {program} (id {id}, {mode})"),
            format!("ip link set dev {} xdp off", name(interface)),
        ),
        None => Check::unsure(NAME, format!("id {id}, {mode}; needs root to tell whose")),
    }
}

fn reverse_path(interface: &Interface) -> Check {
    const NAME: &str = "rp_filter";
    match interface.rp_filter {
        Some(1) => Check::warn(
            NAME,
            "1 (strict): drops clients whose answers would leave elsewhere",
            format!(
                "sysctl -w net.ipv4.conf.{}.rp_filter=2",
                name(interface).replace('.', "/")
            ),
        ),
        value => Check::told(NAME, value),
    }
}
