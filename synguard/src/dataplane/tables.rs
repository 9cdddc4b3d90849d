//! Compiles what services cover to the exact entries of `ADDRESSES`, `PREFIXES`, `PORTS` and
//! `SERVICES`. Pure: the same input gives the same tables.
//!
//! # Which service a destination belongs to
//!
//! Every pair of a service and something it covers is a *rule*. Of the rules that match an
//! address and port, the first by this order wins:
//!
//! 1. listed ports before all ports;
//! 2. a longer prefix before a shorter one;
//! 3. any prefix before the interface's own addresses;
//! 4. the service that comes first (a configuration with such a tie is refused, see
//!    [`crate::config::cover`]).
//!
//! A port of a local address whose listener cannot take our sockets (see [`Exception`]) belongs
//! to no service, if it would belong to one that gives it some.
//!
//! # How the programs look it up
//!
//! They read *one* address entry: the exact one, else that of the longest matching prefix. So an
//! entry must already contain what shorter prefixes say about other ports. Where ports differ,
//! `ports_id` names a set of entries in `PORTS`, and one of those beats the entry's own service.
//! Equal sets share an id; a changed set gets a fresh one, so that no packet meets a set that is
//! half old and half new.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv6Net};
use synguard_common::abi::{
    ADMISSION_PROXY, ADMISSION_RESET, AddressEntry, SERVICE_NONE, ServiceConfig,
};

use super::wire::mapped;

/// Entries that a configuration may need in `ADDRESSES`, and as many in `PREFIXES`.
pub const MAX_ADDRESSES: usize = 8192;
/// Entries that a configuration may need in `PORTS`.
pub const MAX_PORTS: usize = 65_536;

/// What a service covers, and what the programs are to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its number, not [`SERVICE_NONE`].
    pub number: u16,
    /// Its name, for messages.
    pub name: String,
    /// Prefixes; `None` is the interface's own addresses.
    pub prefixes: Option<Vec<IpNet>>,
    /// Ports; `None` is all of them.
    pub ports: Option<Vec<RangeInclusive<u16>>>,
    /// Its entry in `SERVICES`.
    pub config: ServiceConfig,
}

/// An address of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// MTU of the device that has it.
    pub mtu: u32,
}

/// A listener that must not be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Address it listens at; `None` is all of them.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// What the box looks like at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Addresses of the attached interfaces and of the VLAN devices on them.
    pub addresses: Vec<LocalAddress>,
    /// Other addresses of the box (on loopback, say): exceptions hold there too.
    pub others: Vec<IpAddr>,
    /// Smallest MTU of the attached interfaces: that of addresses the box does not have.
    pub mtu: u32,
    /// Listeners to leave alone.
    pub exceptions: Vec<Exception>,
}

/// Key of `PREFIXES`: length in bits of the mapped address, and the address.
pub type Prefix = (u32, [u8; 16]);
/// Key of `PORTS`: the set's id, and the port.
pub type Port = (u32, u16);

/// The tables, whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// Entries of `ADDRESSES`.
    pub addresses: BTreeMap<[u8; 16], AddressEntry>,
    /// Entries of `PREFIXES`.
    pub prefixes: BTreeMap<Prefix, AddressEntry>,
    /// Entries of `PORTS`, the service of each.
    pub ports: BTreeMap<Port, u16>,
    /// Entries of `SERVICES`.
    pub services: BTreeMap<u16, ServiceConfig>,
    /// Exceptions that took a port from a service: its number, the address and the port.
    pub excepted: BTreeSet<(u16, IpAddr, u16)>,
    last_ports_id: u32,
}

impl Tables {
    /// Gives the sets of ports that come from now on ids of their own.
    pub(super) fn follow_ports(&mut self) {
        let ids = self.ports.keys().map(|(id, _)| *id);
        self.last_ports_id = ids.max().unwrap_or(0);
    }
}

/// Why a configuration does not fit the tables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Too many addresses or prefixes.
    #[error(
        "the services cover {have} {what}, and there is room for {room}: use fewer, wider prefixes"
    )]
    Addresses {
        /// Which table.
        what: &'static str,
        /// Entries needed.
        have: usize,
        /// Entries possible.
        room: usize,
    },
    /// Too many ports.
    #[error(
        "the port lists of the services need {have} entries, and there is room for {room}: list fewer ports, or leave `ports` out to cover all of them"
    )]
    Ports {
        /// Entries needed.
        have: usize,
        /// Entries possible.
        room: usize,
    },
}

/// A service and one thing it covers, in the order of the first lines of this file.
struct Rule<'a> {
    target: &'a Target,
    /// `None` is the interface's addresses.
    prefix: Option<IpNet>,
}

impl Rule<'_> {
    fn covers(&self, net: IpNet, local: bool) -> bool {
        match self.prefix {
            Some(prefix) => prefix.contains(&net),
            None => local,
        }
    }
}

/// Compiles `targets`; `previous` is what the tables hold, so that sets of ports that stay keep
/// their ids.
pub fn compile(
    targets: &[Target],
    facts: &Facts,
    previous: &Tables,
) -> Result<Tables, CompileError> {
    let rules = rules(targets);
    let mut compiler = Compiler {
        ids: port_sets(previous),
        tables: Tables {
            last_ports_id: previous.last_ports_id,
            ..Tables::default()
        },
    };
    compiler.tables.services = targets
        .iter()
        .map(|target| (target.number, target.config))
        .collect();

    let prefixes: BTreeSet<IpNet> = rules.iter().filter_map(|rule| rule.prefix).collect();
    let mut locals: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for local in &facts.addresses {
        // The same address on two devices: the smaller MTU suits both.
        let mtu = locals
            .entry(local.address.to_canonical())
            .or_insert(local.mtu);
        *mtu = local.mtu.min(*mtu);
    }
    let full = prefixes
        .iter()
        .filter(|net| net.prefix_len() == net.max_prefix_len())
        .map(IpNet::addr);
    let others: BTreeSet<IpAddr> = facts
        .others
        .iter()
        .map(IpAddr::to_canonical)
        .filter(|other| exceptions_of(facts, *other).next().is_some())
        .collect();
    let exact: BTreeSet<IpAddr> = locals.keys().chain(&others).copied().chain(full).collect();

    for address in exact {
        let mtu = locals.get(&address);
        let matching: Vec<&Rule> = rules
            .iter()
            .filter(|rule| rule.covers(address.into(), mtu.is_some()))
            .collect();
        let (service, mut ports) = resolve(&matching);
        // Exceptions do not count: the address is a service's all the same.
        let covered = is_covered(service, &ports);
        if mtu.is_some() || others.contains(&address) {
            for port in exceptions_of(facts, address) {
                let taken_from = ports.get(&port).copied().unwrap_or(service);
                if taken_from != SERVICE_NONE && compiler.makes_sockets(taken_from) {
                    compiler.tables.excepted.insert((taken_from, address, port));
                    ports.insert(port, SERVICE_NONE);
                }
            }
        }
        if covered {
            let entry = compiler.entry(service, ports, *mtu.unwrap_or(&facts.mtu));
            compiler.tables.addresses.insert(mapped(address), entry);
        }
    }
    for net in prefixes
        .iter()
        .filter(|net| net.prefix_len() < net.max_prefix_len())
    {
        let matching: Vec<&Rule> = rules
            .iter()
            .filter(|rule| rule.covers(*net, false))
            .collect();
        let (service, ports) = resolve(&matching);
        if is_covered(service, &ports) {
            let entry = compiler.entry(service, ports, facts.mtu);
            compiler.tables.prefixes.insert(prefix_key(*net), entry);
        }
    }
    compiler.fence_ipv4(&prefixes);
    compiler.finish()
}

struct Compiler {
    ids: BTreeMap<Vec<(u16, u16)>, u32>,
    tables: Tables,
}

impl Compiler {
    fn entry(&mut self, service: u16, ports: BTreeMap<u16, u16>, mtu: u32) -> AddressEntry {
        AddressEntry {
            ports_id: self.ports_id(ports),
            service,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        }
    }

    /// Whether listeners of a service must take sockets from us, now or once that is possible.
    fn makes_sockets(&self, service: u16) -> bool {
        let config = self.tables.services.get(&service);
        !config.is_some_and(|config| matches!(config.admission, ADMISSION_PROXY | ADMISSION_RESET))
    }

    fn ports_id(&mut self, ports: BTreeMap<u16, u16>) -> u32 {
        if ports.is_empty() {
            return 0;
        }
        let set: Vec<(u16, u16)> = ports.into_iter().collect();
        let id = *self.ids.entry(set.clone()).or_insert_with(|| {
            // Never 0, and not in use: 2^32 changed sets later the first id is long gone.
            self.tables.last_ports_id = self.tables.last_ports_id.checked_add(1).unwrap_or(1);
            self.tables.last_ports_id
        });
        self.tables
            .ports
            .extend(set.into_iter().map(|(port, service)| ((id, port), service)));
        id
    }

    /// IPv4 lies inside `::/0` when it is mapped, but a prefix of IPv6 says nothing about it.
    fn fence_ipv4(&mut self, prefixes: &BTreeSet<IpNet>) {
        let ipv4 = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let swallowed = prefixes
            .iter()
            .any(|net| matches!(net, IpNet::V6(v6) if v6.prefix_len() < 96 && v6.contains(&ipv4)));
        if swallowed {
            let nothing = AddressEntry {
                ports_id: 0,
                service: SERVICE_NONE,
                mtu: 0,
            };
            self.tables
                .prefixes
                .entry((96, ipv4.octets()))
                .or_insert(nothing);
        }
    }

    fn finish(self) -> Result<Tables, CompileError> {
        let tables = self.tables;
        for (what, have) in [
            ("addresses", tables.addresses.len()),
            ("prefixes", tables.prefixes.len()),
        ] {
            if have > MAX_ADDRESSES {
                return Err(CompileError::Addresses {
                    what,
                    have,
                    room: MAX_ADDRESSES,
                });
            }
        }
        if tables.ports.len() > MAX_PORTS {
            return Err(CompileError::Ports {
                have: tables.ports.len(),
                room: MAX_PORTS,
            });
        }
        Ok(tables)
    }
}

/// Rules in the order in which they win.
fn rules(targets: &[Target]) -> Vec<Rule<'_>> {
    let mut rules = Vec::new();
    for target in targets {
        match &target.prefixes {
            None => rules.push(Rule {
                target,
                prefix: None,
            }),
            Some(prefixes) => rules.extend(prefixes.iter().map(|net| Rule {
                target,
                prefix: Some(canonical(*net)),
            })),
        }
    }
    // Stable: rules of the same rank stay in the order of the configuration.
    rules.sort_by_key(|rule| {
        let length = rule.prefix.map(|net| net.prefix_len());
        (rule.target.ports.is_none(), std::cmp::Reverse(length))
    });
    rules
}

/// Host bits zero, and IPv4 where it was written as mapped IPv6.
fn canonical(net: IpNet) -> IpNet {
    match net.trunc() {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => {
                ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(IpNet::V6(v6), IpNet::V4)
            }
            None => IpNet::V6(v6),
        },
        other => other,
    }
}

/// What rules in winning order say: the service of all ports that are not listed, and those of
/// the ports that are.
fn resolve(rules: &[&Rule<'_>]) -> (u16, BTreeMap<u16, u16>) {
    let mut ports = BTreeMap::new();
    for rule in rules {
        let Some(listed) = &rule.target.ports else {
            // Listed ports came before; whatever follows is beaten on every port.
            let service = rule.target.number;
            ports.retain(|_, listed| *listed != service);
            return (service, ports);
        };
        for port in listed.iter().cloned().flatten() {
            ports.entry(port).or_insert(rule.target.number);
        }
    }
    (SERVICE_NONE, ports)
}

fn exceptions_of(facts: &Facts, address: IpAddr) -> impl Iterator<Item = u16> {
    facts
        .exceptions
        .iter()
        .filter(move |exception| {
            exception
                .address
                .is_none_or(|at| at.to_canonical() == address)
        })
        .map(|exception| exception.port)
}

/// The sets of ports of `tables` with their ids.
fn port_sets(tables: &Tables) -> BTreeMap<Vec<(u16, u16)>, u32> {
    let mut sets: BTreeMap<u32, Vec<(u16, u16)>> = BTreeMap::new();
    for ((id, port), service) in &tables.ports {
        sets.entry(*id).or_default().push((*port, *service));
    }
    sets.into_iter().map(|(id, set)| (set, id)).collect()
}

pub(super) fn prefix_key(net: IpNet) -> Prefix {
    match net {
        IpNet::V4(v4) => (
            96 + u32::from(v4.prefix_len()),
            v4.network().to_ipv6_mapped().octets(),
        ),
        IpNet::V6(v6) => (u32::from(v6.prefix_len()), v6.network().octets()),
    }
}

/// Whether any port of an address is a service's.
fn is_covered(service: u16, ports: &BTreeMap<u16, u16>) -> bool {
    let mut numbers = ports.values().chain([&service]);
    numbers.any(|number| *number != SERVICE_NONE)
}

impl Tables {
    /// What the programs find for a destination, in the way they look it up.
    pub fn lookup(&self, address: IpAddr, port: u16) -> u16 {
        let key = mapped(address.to_canonical());
        let entry = self
            .addresses
            .get(&key)
            .or_else(|| self.longest_prefix(key));
        let Some(entry) = entry else {
            return SERVICE_NONE;
        };
        if entry.ports_id != 0
            && let Some(service) = self.ports.get(&(entry.ports_id, port))
        {
            return *service;
        }
        entry.service
    }

    fn longest_prefix(&self, key: [u8; 16]) -> Option<&AddressEntry> {
        let address = Ipv6Addr::from(key);
        self.prefixes
            .iter()
            .rev()
            .find_map(|((length, prefix), entry)| {
                let net =
                    Ipv6Net::new(Ipv6Addr::from(*prefix), u8::try_from(*length).ok()?).ok()?;
                net.contains(&address).then_some(entry)
            })
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
