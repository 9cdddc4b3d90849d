//! Builds the topologies: namespaces, wires, addresses, routes, rules.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use anyhow::{Context as _, Result};

use super::{
    Bypass, Forwarding, ForwardingOptions, Shape, nft,
    options::PORT_OFFSET,
    subnet::{
        BEHIND, BYPASS, DEFAULT, FAR, FLOOD, INNER, NARROW, OUTER, Port, Prefixes, join, route,
    },
};
use crate::{
    edge::{self, client_addresses},
    link::{self, End, Top},
    netns::Netns,
    programs::Programs,
};

/// Numbers of the wires, for their MAC addresses.
mod wire {
    pub(super) const OUTER: u8 = 0;
    pub(super) const INNER: u8 = 1;
    pub(super) const NARROW: u8 = 2;
    pub(super) const FAR: u8 = 3;
    pub(super) const BYPASS: u8 = 4;
}

/// The port a server listens on for what clients dial as `port`.
pub(super) fn server_port(shape: Shape, port: u16) -> u16 {
    match shape {
        Shape::Dnat => port.wrapping_add(PORT_OFFSET),
        _ => port,
    }
}

pub(super) fn build(shape: Shape, options: ForwardingOptions) -> Result<Forwarding> {
    options.check(shape)?;
    let client = namespace("client")?;
    let edge = namespace("edge")?;
    let server = namespace("server")?;
    edge::prepare_client(&client)?;
    options.client_stack.apply(&client)?;
    options.server_stack.apply(&server)?;
    if shape == Shape::Bridged {
        // Not even link-local addresses: a bridge need not have any.
        edge.set_sysctl("net.ipv6.conf.default.addr_gen_mode", 1)?;
    } else {
        forward(&edge)?;
    }

    let tags = 4 * options.vlans.len() as u32;
    let [client_end, outside] =
        link::numbered_veth(wire::OUTER, &client, &edge, options.outer_mtu + tags)?;
    let mut programs = Programs::load()?;
    programs.set_flood_sources(edge::flood_sources())?;
    let mut peers = vec![programs.attach("lab_peer", &client_end)?];
    let counters = programs.counters()?;
    let client_top = link::stack_vlans(&client_end, &options.vlans, options.outer_mtu)?;

    let behind = if shape == Shape::Bridged {
        bridged(
            &options,
            &client_end,
            &client_top,
            &edge,
            &server,
            &outside,
            tags,
        )?
    } else {
        routed(&options, &client_end, &client_top, &edge, &server, &outside)?
    };

    let bypass = if shape == Shape::Asymmetric {
        let bypass = go_round(&options, &client, &server)?;
        peers.push(programs.attach("lab_peer", &bypass.client_end)?);
        Some(bypass)
    } else {
        let gateway = behind.gateway;
        route(&server, behind.server_top.index, gateway.0, gateway.1)?;
        None
    };

    let dialled = match shape {
        Shape::Dnat => OUTER.host(2),
        _ => behind.server,
    };
    if options.tracks(shape) {
        let mut services = Vec::new();
        if shape == Shape::Dnat {
            for &port in &options.ports {
                let bound = server_port(shape, port);
                services.extend(dialled.into_iter().zip(behind.server).map(|(vip, server)| {
                    (SocketAddr::new(vip, port), SocketAddr::new(server, bound))
                }));
            }
        }
        nft::track(&edge, &services)?;
    }

    Ok(Forwarding {
        shape,
        client,
        edge,
        server,
        hops: behind.hops,
        client_end,
        outside,
        inside: behind.inside,
        server_end: behind.server_end,
        outside_top: behind.outside_top,
        server_top: behind.server_top,
        bypass,
        dialled,
        bound: behind.server,
        options,
        programs: Mutex::new(programs),
        counters,
        _client_top: client_top,
        _peers: peers,
    })
}

/// What is on the far side of the edge.
struct Behind {
    hops: Vec<Netns>,
    inside: End,
    server_end: End,
    outside_top: Option<Top>,
    server_top: Top,
    server: [IpAddr; 2],
    /// What the server routes through whom, unless its answers go round the edge.
    gateway: (Prefixes, [IpAddr; 2]),
}

fn namespace(name: &str) -> Result<Netns> {
    let ns = Netns::create(name)?;
    edge::prepare(&ns)?;
    control_congestion(&ns)?;
    Ok(ns)
}

/// CUBIC, or where the machine does not allow that in namespaces Reno, which all do. A machine's own
/// choice may be BBR, which paces single segments and makes little of loss, and would decide what a
/// topology shows.
fn control_congestion(ns: &Netns) -> Result<()> {
    let choose = |name| ns.set_sysctl("net.ipv4.tcp_congestion_control", name);
    choose("cubic").or_else(|_| choose("reno"))
}

/// Makes a namespace a router.
fn forward(ns: &Netns) -> Result<()> {
    ns.set_sysctl("net.ipv4.ip_forward", 1)?;
    ns.set_sysctl("net.ipv6.conf.all.forwarding", 1)
}

fn bridged(
    options: &ForwardingOptions,
    client_end: &End,
    client_top: &Top,
    edge: &Netns,
    server: &Netns,
    outside: &End,
    tags: u32,
) -> Result<Behind> {
    let [inside, server_end] =
        link::numbered_veth(wire::INNER, edge, server, options.inner_mtu + tags)?;
    link::bridge(edge, "br0", &[outside, &inside])?;
    filter_bridged(edge, options.conntrack)?;

    let server_top = link::stack_vlans(&server_end, &options.vlans, options.inner_mtu)?;
    let server_addresses = OUTER.host(2);
    let ports = [
        Port::new(client_end, client_top.index, client_addresses().collect()),
        Port::new(&server_end, server_top.index, server_addresses.to_vec()),
    ];
    join(ports, options.static_neighbours)?;
    Ok(Behind {
        hops: Vec::new(),
        inside,
        server_end,
        outside_top: None,
        server_top,
        server: server_addresses,
        gateway: (FLOOD, OUTER.host(1)),
    })
}

/// Whether bridged packets go through the rules for routed ones, and so through connection tracking.
fn filter_bridged(edge: &Netns, on: bool) -> Result<()> {
    for name in [
        "bridge-nf-call-iptables",
        "bridge-nf-call-ip6tables",
        "bridge-nf-filter-vlan-tagged",
    ] {
        let name = format!("net.bridge.{name}");
        // A kernel without br_netfilter has no such switch, and need not be told to leave it off.
        if on || edge.sysctl(&name).is_ok() {
            edge.set_sysctl(&name, u8::from(on))
                .context("connection tracking on a bridge needs br_netfilter")?;
        }
    }
    Ok(())
}

fn routed(
    options: &ForwardingOptions,
    client_end: &End,
    client_top: &Top,
    edge: &Netns,
    server: &Netns,
    outside: &End,
) -> Result<Behind> {
    let fixed = options.static_neighbours;
    let outside_top = link::stack_vlans(outside, &options.vlans, options.outer_mtu)?;
    let ports = [
        Port::new(client_end, client_top.index, client_addresses().collect()),
        Port::new(outside, outside_top.index, OUTER.host(2).to_vec()),
    ];
    join(ports, fixed)?;
    route(&client_end.ns, client_top.index, BEHIND, OUTER.host(2))?;
    route(edge, outside_top.index, FLOOD, OUTER.host(1))?;

    let plain = |number, first: &Netns, second: &Netns, mtu, subnet: super::subnet::Subnet| {
        let ends = link::numbered_veth(number, first, second, mtu)?;
        let [left, right] = &ends;
        let ports = [(left, 1), (right, 2)]
            .map(|(end, host)| Port::new(end, end.index, subnet.host(host).to_vec()));
        join(ports, fixed)?;
        anyhow::Ok(ends)
    };
    let (hops, inside, server_end, subnet) = match options.narrow_mtu {
        None => {
            let [inside, server_end] = plain(wire::INNER, edge, server, options.inner_mtu, INNER)?;
            (Vec::new(), inside, server_end, INNER)
        }
        Some(mtu) => {
            let [near, far] = [namespace("near")?, namespace("far")?];
            forward(&near)?;
            forward(&far)?;
            let [inside, near_end] = plain(wire::INNER, edge, &near, options.inner_mtu, INNER)?;
            let [before, after] = plain(wire::NARROW, &near, &far, mtu, NARROW)?;
            let [_, server_end] = plain(wire::FAR, &far, server, options.inner_mtu, FAR)?;
            route(edge, inside.index, FAR.prefixes(), INNER.host(2))?;
            route(&near, before.index, FAR.prefixes(), NARROW.host(2))?;
            route(&near, near_end.index, DEFAULT, INNER.host(1))?;
            route(&far, after.index, DEFAULT, NARROW.host(1))?;
            (vec![near, far], inside, server_end, FAR)
        }
    };
    let server_top = link::stack_vlans(&server_end, &[], options.inner_mtu)?;
    Ok(Behind {
        hops,
        inside,
        server_end,
        outside_top: Some(outside_top),
        server_top,
        server: subnet.host(2),
        gateway: (DEFAULT, subnet.host(1)),
    })
}

/// A wire from server to client that has all of the server's answers.
fn go_round(options: &ForwardingOptions, client: &Netns, server: &Netns) -> Result<Bypass> {
    let [client_end, server_end] =
        link::numbered_veth(wire::BYPASS, client, server, options.outer_mtu)?;
    let ports = [(&client_end, 1), (&server_end, 2)]
        .map(|(end, host)| Port::new(end, end.index, BYPASS.host(host).to_vec()));
    join(ports, options.static_neighbours)?;
    route(server, server_end.index, DEFAULT, BYPASS.host(1))?;
    Ok(Bypass {
        client_end,
        server_end,
    })
}
