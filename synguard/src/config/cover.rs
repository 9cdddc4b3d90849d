//! Which service an address and port belong to, when several cover them.
//!
//! Listed ports beat all ports; then a longer prefix beats a shorter one; then any prefix beats
//! the interface's own addresses. Where two services are equal in all of that there is no answer,
//! and the configuration is refused.

use std::{collections::HashMap, fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use crate::model::{Addresses, Service};

/// How closely a service fits an address and port: greater is closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    /// The port is listed.
    listed_port: bool,
    /// Length of the longest prefix that holds the address; none for the interface's own.
    prefix: Option<u8>,
}

/// Two services with an equal claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Position of one service.
    pub first: usize,
    /// Position of the other, which is later.
    pub second: usize,
    /// What both cover; `None` is the interface's own addresses.
    pub prefix: Option<IpNet>,
    /// Ports both list; `None` where both have all.
    pub ports: Option<RangeInclusive<u16>>,
}

/// How closely `service` fits; `None` where it does not cover the address and port. `own` are
/// the interface's addresses.
pub fn specificity(
    service: &Service,
    own: &[IpAddr],
    address: IpAddr,
    port: u16,
) -> Option<Specificity> {
    let listed_port = match &service.ports {
        None => false,
        Some(ranges) if ranges.iter().any(|range| range.contains(&port)) => true,
        Some(_) => return None,
    };
    let prefix = match &service.addresses {
        Addresses::Interface => own.contains(&address).then_some(None)?,
        Addresses::Prefixes(prefixes) => {
            let holding = prefixes.iter().filter(|prefix| prefix.contains(&address));
            Some(holding.map(IpNet::prefix_len).max()?)
        }
    };
    Some(Specificity {
        listed_port,
        prefix,
    })
}

/// The service that `address` and `port` belong to.
pub fn service_for(
    services: &[Service],
    own: &[IpAddr],
    address: IpAddr,
    port: u16,
) -> Option<usize> {
    let fits = services
        .iter()
        .enumerate()
        .filter_map(|(i, service)| Some((specificity(service, own, address, port)?, i)));
    fits.max().map(|(_, i)| i)
}

/// Each service that has an equal claim to some address and port as an earlier one, with the
/// first such service found.
///
/// Claims are equal only on the same prefix (or both on the interface), with both listing a port
/// or both having all: prefixes of equal length are either the same or have nothing in common.
pub fn conflicts(services: &[Service]) -> Vec<Conflict> {
    let mut claims: HashMap<Option<IpNet>, Vec<usize>> = HashMap::new();
    let mut conflicts = Vec::new();
    for (second, service) in services.iter().enumerate() {
        let prefixes: Vec<Option<IpNet>> = match &service.addresses {
            Addresses::Interface => vec![None],
            Addresses::Prefixes(prefixes) => prefixes.iter().copied().map(Some).collect(),
        };
        conflicts.extend(prefixes.iter().find_map(|&prefix| {
            let earlier = claims.get(&prefix)?;
            earlier.iter().find_map(|&first| {
                let ports = common_ports(&services[first], service)?;
                Some(Conflict {
                    first,
                    second,
                    prefix,
                    ports,
                })
            })
        }));
        for prefix in prefixes {
            claims.entry(prefix).or_default().push(second);
        }
    }
    conflicts
}

/// What the ports of two services have in common at the same specificity; `Some(None)` is "both
/// have all".
fn common_ports(a: &Service, b: &Service) -> Option<Option<RangeInclusive<u16>>> {
    match (&a.ports, &b.ports) {
        (None, None) => Some(None),
        (Some(a), Some(b)) => a
            .iter()
            .flat_map(|a| {
                b.iter()
                    .map(move |b| *a.start().max(b.start())..=*a.end().min(b.end()))
            })
            .find(|common| !common.is_empty())
            .map(Some),
        _ => None,
    }
}

/// A prefix as people write it: an address without its full length.
pub fn show(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// The service's addresses and ports for people, one string for each address: `192.0.2.1:443`,
/// `[2001:db8::1]:80,443`, `interface:all`.
pub fn describe(service: &Service) -> Vec<String> {
    let ports = match &service.ports {
        None => "all".to_owned(),
        Some(ranges) => ranges.iter().map(show_ports).collect::<Vec<_>>().join(","),
    };
    match &service.addresses {
        Addresses::Interface => vec![format!("interface:{ports}")],
        Addresses::Prefixes(prefixes) => prefixes
            .iter()
            .map(|prefix| match prefix {
                IpNet::V4(_) => format!("{}:{ports}", show(prefix)),
                IpNet::V6(_) => format!("[{}]:{ports}", show(prefix)),
            })
            .collect(),
    }
}

fn show_ports(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prefix {
            None => f.write_str("the interface's addresses")?,
            Some(prefix) => f.write_str(&show(prefix))?,
        }
        match &self.ports {
            None => f.write_str(", all ports"),
            Some(range) if range.start() == range.end() => write!(f, ", port {}", range.start()),
            Some(range) => write!(f, ", ports {}", show_ports(range)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::built_in;

    /// A universe small enough to try every address and port of it.
    const ADDRESSES: [IpAddr; 4] = [
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 0)),
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3)),
    ];
    const OWN: [IpAddr; 1] = [ADDRESSES[1]];
    const PORTS: RangeInclusive<u16> = 1..=6;

    fn service(addresses: Addresses, ports: Option<Vec<RangeInclusive<u16>>>) -> Service {
        let mut config = built_in();
        Service {
            addresses,
            ports,
            ..config.services.remove(0)
        }
    }

    fn any_service() -> impl Strategy<Value = Service> {
        let prefix = (0..4u8, 30..=32u8).prop_map(|(host, length)| {
            IpNet::new(IpAddr::from([10, 0, 0, host]), length)
                .unwrap()
                .trunc()
        });
        let addresses = prop_oneof![
            1 => Just(Addresses::Interface),
            4 => prefix.prop_map(|prefix| Addresses::Prefixes(vec![prefix])),
        ];
        let range = (PORTS, 0..3u16).prop_map(|(first, more)| first..=(first + more).min(6));
        let ports = proptest::option::of(proptest::collection::vec(range, 1..3));
        (addresses, ports).prop_map(|(addresses, ports)| service(addresses, ports))
    }

    /// Pairs of services that are equally close to some address and port.
    fn ties(services: &[Service]) -> Vec<(usize, usize)> {
        let mut ties = Vec::new();
        for second in 0..services.len() {
            for first in 0..second {
                let equal = |address: IpAddr, port| {
                    let a = specificity(&services[first], &OWN, address, port);
                    a.is_some() && a == specificity(&services[second], &OWN, address, port)
                };
                if ADDRESSES
                    .iter()
                    .any(|a| PORTS.into_iter().any(|p| equal(*a, p)))
                {
                    ties.push((first, second));
                }
            }
        }
        ties
    }

    proptest! {
        #[test]
        fn conflicts_are_the_ties(services in proptest::collection::vec(any_service(), 0..6)) {
            let ties = ties(&services);
            let found = conflicts(&services);
            for conflict in &found {
                prop_assert!(ties.contains(&(conflict.first, conflict.second)));
            }
            let mut expected: Vec<_> = ties.iter().map(|(_, second)| *second).collect();
            expected.dedup();
            let found: Vec<_> = found.iter().map(|c| c.second).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn without_conflicts_the_order_of_services_does_not_matter(
            services in proptest::collection::vec(any_service(), 1..5),
        ) {
            prop_assume!(conflicts(&services).is_empty());
            let reversed: Vec<_> = services.iter().rev().cloned().collect();
            for address in ADDRESSES {
                for port in PORTS {
                    let there = service_for(&services, &OWN, address, port);
                    let back = service_for(&reversed, &OWN, address, port)
                        .map(|i| services.len() - 1 - i);
                    prop_assert_eq!(there, back);
                }
            }
        }
    }

    fn prefixes(prefixes: &[&str]) -> Addresses {
        Addresses::Prefixes(prefixes.iter().map(|p| p.parse().unwrap()).collect())
    }

    #[test]
    fn the_closest_service_wins() {
        let services = [
            service(Addresses::Interface, None),
            service(prefixes(&["10.0.0.0/30"]), None),
            service(prefixes(&["10.0.0.1/32"]), None),
            service(prefixes(&["10.0.0.0/30"]), Some(vec![3..=4])),
        ];
        let of = |address: usize, port| service_for(&services, &OWN, ADDRESSES[address], port);
        assert_eq!(of(1, 1), Some(2), "the longer prefix");
        assert_eq!(of(0, 1), Some(1), "the only one");
        assert_eq!(
            of(1, 3),
            Some(3),
            "the listed port, though its prefix is shorter"
        );
        assert_eq!(service_for(&services[..1], &OWN, ADDRESSES[1], 1), Some(0));
        assert_eq!(
            service_for(&services[..2], &OWN, ADDRESSES[1], 1),
            Some(1),
            "any prefix"
        );
        assert_eq!(service_for(&services[..1], &OWN, ADDRESSES[0], 1), None);
    }

    #[test]
    fn a_conflict_names_what_both_cover() {
        let services = [
            service(
                prefixes(&["10.0.0.0/24", "2001:db8::1/128"]),
                Some(vec![1..=80, 443..=443]),
            ),
            service(prefixes(&["2001:db8::1/128"]), Some(vec![70..=90])),
            service(Addresses::Interface, None),
            service(Addresses::Interface, None),
        ];
        let shown: Vec<_> = conflicts(&services)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            [
                "2001:db8::1, ports 70-80",
                "the interface's addresses, all ports"
            ]
        );
    }

    #[test]
    fn services_are_described_for_people() {
        let some = service(
            prefixes(&["10.0.0.0/24", "2001:db8::1/128"]),
            Some(vec![1..=80, 443..=443]),
        );
        assert_eq!(
            describe(&some),
            ["10.0.0.0/24:1-80,443", "[2001:db8::1]:1-80,443"]
        );
        assert_eq!(
            describe(&service(Addresses::Interface, None)),
            ["interface:all"]
        );
    }
}
