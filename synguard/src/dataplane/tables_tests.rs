//! Tests of the compile step: against a matcher that walks the rules for one packet at a time,
//! and by hand where a rule is worth an example.

use proptest::prelude::*;

use synguard_common::abi::MODE_ADAPTIVE;

use super::*;
use crate::{
    config::{built_in, cover},
    model::{Addresses, Service},
};

fn config(mode: u8) -> ServiceConfig {
    ServiceConfig {
        high: 512,
        offers: 0,
        window: 64_240,
        mode,
        admission: 1,
        rcv_wscale: 7,
        ttl: 64,
        learns: 0,
        pad: 0,
        mss: 0,
        pad2: 0,
    }
}

fn target(number: u16, prefixes: Option<&[&str]>, ports: Option<&[RangeInclusive<u16>]>) -> Target {
    Target {
        number,
        name: format!("s{number}"),
        prefixes: prefixes.map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect()),
        ports: ports.map(<[_]>::to_vec),
        config: config(MODE_ADAPTIVE),
    }
}

fn facts(addresses: &[&str]) -> Facts {
    let addresses = addresses
        .iter()
        .map(|address| LocalAddress {
            address: address.parse().unwrap(),
            mtu: 1500,
        })
        .collect();
    Facts {
        addresses,
        mtu: 1400,
        ..Facts::default()
    }
}

/// `targets` as the configuration has them, in the same order.
fn services(targets: &[Target]) -> Vec<Service> {
    let of = |target: &Target| Service {
        addresses: target
            .prefixes
            .clone()
            .map_or(Addresses::Interface, Addresses::Prefixes),
        ports: target.ports.clone(),
        ..built_in().services.remove(0)
    };
    targets.iter().map(of).collect()
}

fn makes_sockets(target: &Target) -> bool {
    target.config.admission < ADMISSION_PROXY
}

/// The rules of the module's documentation, taken literally.
fn naive(targets: &[Target], facts: &Facts, address: IpAddr, port: u16) -> u16 {
    let local = facts.addresses.iter().any(|local| local.address == address);
    let excepted = |exception: &Exception| {
        exception.port == port && exception.address.is_none_or(|at| at == address)
    };
    let of_the_box = local || facts.others.contains(&address);
    let excepted = of_the_box && facts.exceptions.iter().any(excepted);
    let mut best = None;
    for (position, target) in targets.iter().enumerate() {
        if target
            .ports
            .as_ref()
            .is_some_and(|ports| !ports.iter().any(|range| range.contains(&port)))
        {
            continue;
        }
        let length = match &target.prefixes {
            None => local.then_some(-1),
            Some(nets) => nets
                .iter()
                .filter(|net| net.contains(&address))
                .map(|net| i32::from(net.prefix_len()))
                .max(),
        };
        if let Some(length) = length {
            let rank = (target.ports.is_some(), length, std::cmp::Reverse(position));
            if best.is_none_or(|(other, _): (_, &Target)| rank > other) {
                best = Some((rank, target));
            }
        }
    }
    match best {
        Some((_, target)) if !(excepted && makes_sockets(target)) => target.number,
        _ => SERVICE_NONE,
    }
}

#[test]
fn interface_addresses_are_exact_entries() {
    let tables = compile(
        &[target(1, None, None)],
        &facts(&["192.0.2.1", "2001:db8::1"]),
        &Tables::default(),
    );
    let tables = tables.unwrap();
    assert_eq!(tables.addresses.len(), 2);
    assert!(tables.prefixes.is_empty() && tables.ports.is_empty());
    let entry = tables.addresses[&mapped("192.0.2.1".parse().unwrap())];
    assert_eq!(
        entry,
        AddressEntry {
            ports_id: 0,
            service: 1,
            mtu: 1500,
        }
    );
    assert_eq!(tables.lookup("2001:db8::1".parse().unwrap(), 80), 1);
    assert_eq!(
        tables.lookup("2001:db8::2".parse().unwrap(), 80),
        SERVICE_NONE
    );
}

#[test]
fn an_exact_address_still_knows_what_a_wider_prefix_says_of_other_ports() {
    let targets = [
        target(1, Some(&["198.51.100.0/24"]), Some(&[443..=443])),
        target(2, Some(&["198.51.100.7/32"]), Some(&[80..=81])),
    ];
    let tables = compile(&targets, &facts(&[]), &Tables::default()).unwrap();
    let at = |address: &str, port| tables.lookup(address.parse().unwrap(), port);
    assert_eq!(at("198.51.100.7", 443), 1);
    assert_eq!(at("198.51.100.7", 81), 2);
    assert_eq!(at("198.51.100.7", 22), SERVICE_NONE);
    assert_eq!(at("198.51.100.8", 443), 1);
    assert_eq!(at("198.51.100.8", 80), SERVICE_NONE);
}

#[test]
fn an_ipv6_default_route_says_nothing_about_ipv4() {
    let tables = compile(
        &[target(3, Some(&["::/0"]), None)],
        &facts(&[]),
        &Tables::default(),
    )
    .unwrap();
    assert_eq!(tables.lookup("2001:db8::9".parse().unwrap(), 1), 3);
    assert_eq!(tables.lookup("192.0.2.9".parse().unwrap(), 1), SERVICE_NONE);
}

#[test]
fn an_exception_takes_the_port_from_whoever_has_it_and_says_from_whom() {
    let mut facts = facts(&["192.0.2.1"]);
    facts.exceptions = vec![Exception {
        address: None,
        port: 8080,
    }];
    let targets = [
        target(1, None, None),
        target(2, Some(&["203.0.113.0/24"]), None),
    ];
    let tables = compile(&targets, &facts, &Tables::default()).unwrap();
    let local: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(tables.lookup(local, 8080), SERVICE_NONE);
    assert_eq!(tables.lookup(local, 8081), 1);
    assert_eq!(tables.lookup("203.0.113.1".parse().unwrap(), 8080), 2);
    assert_eq!(tables.excepted, BTreeSet::from([(1, local, 8080)]));
    // A connection that is spliced to it, or that it accepts itself, suits any listener.
    for admission in [ADMISSION_PROXY, ADMISSION_RESET] {
        let mut targets = targets.clone();
        targets[0].config.admission = admission;
        let tables = compile(&targets, &facts, &Tables::default()).unwrap();
        assert_eq!(tables.lookup(local, 8080), 1);
        assert_eq!(tables.excepted, BTreeSet::new());
    }
}

#[test]
fn sets_of_ports_that_stay_keep_their_id_and_changed_ones_get_a_fresh_one() {
    let facts = facts(&[]);
    let mut targets = [
        target(1, Some(&["192.0.2.1/32"]), Some(&[80..=80])),
        target(2, Some(&["192.0.2.2/32"]), Some(&[1..=9])),
    ];
    let first = compile(&targets, &facts, &Tables::default()).unwrap();
    assert_eq!(compile(&targets, &facts, &first).unwrap(), first);
    targets[1].ports = Some(vec![1..=10]);
    let second = compile(&targets, &facts, &first).unwrap();
    let id = |tables: &Tables, address: &str| {
        tables.addresses[&mapped(address.parse().unwrap())].ports_id
    };
    assert_eq!(id(&first, "192.0.2.1"), id(&second, "192.0.2.1"));
    let fresh = id(&second, "192.0.2.2");
    assert!(first.ports.keys().all(|(id, _)| *id != fresh));
}

#[test]
fn more_ports_than_there_is_room_for_is_one_line() {
    let nets: Vec<String> = (0..3).map(|i| format!("192.0.2.{i}/32")).collect();
    let targets: Vec<Target> = nets
        .iter()
        .enumerate()
        .map(|(i, net)| target(i as u16 + 1, Some(&[net]), Some(&[1..=30_000])))
        .collect();
    let error = compile(&targets, &facts(&[]), &Tables::default()).unwrap_err();
    assert_eq!(
        error,
        CompileError::Ports {
            have: 90_000,
            room: MAX_PORTS
        }
    );
    assert!(!error.to_string().contains('\n'));
}

/// Few enough addresses and ports that rules meet.
fn nets() -> impl Strategy<Value = IpNet> {
    let v4 = (0u32..8, 28u8..=32).prop_map(|(host, length)| (host, length, true));
    let wide = prop_oneof![
        Just((0, 0, true)),
        Just((0, 24, true)),
        Just((0, 0, false)),
        Just((0, 64, false))
    ];
    let v6 = (0u32..8, 124u8..=128).prop_map(|(host, length)| (host, length, false));
    prop_oneof![4 => v4, 1 => wide, 3 => v6].prop_map(|(host, length, v4)| {
        let address = address_of(host, v4);
        let address = if length == 0 && v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            address
        };
        IpNet::new(address, length).unwrap().trunc()
    })
}

fn address_of(host: u32, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::from(0xc000_0200 + host).into()
    } else {
        Ipv6Addr::from((0x2001_0db8u128 << 96) + u128::from(host)).into()
    }
}

fn ports() -> impl Strategy<Value = Option<Vec<RangeInclusive<u16>>>> {
    let range = (1u16..12, 0u16..4).prop_map(|(first, more)| first..=first + more);
    prop::option::of(prop::collection::vec(range, 1..3))
}

fn targets() -> impl Strategy<Value = Vec<Target>> {
    let one = (
        prop::option::weighted(0.75, prop::collection::vec(nets(), 1..4)),
        ports(),
        0u8..3,
    );
    prop::collection::vec(one, 0..6).prop_map(|services| {
        services
            .into_iter()
            .enumerate()
            .map(|(position, (prefixes, ports, mode))| Target {
                number: position as u16 + 1,
                name: String::new(),
                prefixes,
                ports,
                config: ServiceConfig {
                    admission: position as u8 % 4,
                    ..config(mode)
                },
            })
            .collect()
    })
}

fn boxes() -> impl Strategy<Value = Facts> {
    let address = (
        0u32..8,
        any::<bool>(),
        prop_oneof![Just(1500u32), Just(1400)],
    )
        .prop_map(|(host, v4, mtu)| LocalAddress {
            address: address_of(host, v4),
            mtu,
        });
    let exception =
        (prop::option::of((0u32..8, any::<bool>())), 1u16..14).prop_map(|(at, port)| Exception {
            address: at.map(|(host, v4)| address_of(host, v4)),
            port,
        });
    let other = (0u32..8, any::<bool>()).prop_map(|(host, v4)| address_of(host, v4));
    (
        prop::collection::vec(address, 0..4),
        prop::collection::vec(exception, 0..3),
        prop::collection::vec(other, 0..2),
    )
        .prop_map(|(addresses, exceptions, others)| Facts {
            addresses,
            others,
            mtu: 1500,
            exceptions,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn tables_say_what_the_rules_say(targets in targets(), facts in boxes(), earlier in targets()) {
        let previous = compile(&earlier, &facts, &Tables::default()).unwrap();
        let tables = compile(&targets, &facts, &previous).unwrap();
        for v4 in [true, false] {
            for host in 0..20 {
                let address = address_of(host, v4);
                for port in 1..16 {
                    prop_assert_eq!(
                        tables.lookup(address, port),
                        naive(&targets, &facts, address, port),
                        "{} port {}", address, port
                    );
                }
            }
        }
        // The configuration's own matcher agrees, where it has an answer and nothing is excepted.
        let services = services(&targets);
        if cover::conflicts(&services).is_empty() && facts.exceptions.is_empty() {
            let own: Vec<IpAddr> = facts.addresses.iter().map(|local| local.address).collect();
            for (host, port) in (0..10).flat_map(|host| (1..16).map(move |port| (host, port))) {
                let address = address_of(host, true);
                let position = cover::service_for(&services, &own, address, port);
                let number = position.map_or(SERVICE_NONE, |position| targets[position].number);
                prop_assert_eq!(tables.lookup(address, port), number, "{} port {}", address, port);
            }
        }
        // Every id is used and every set is complete.
        let used: BTreeSet<u32> = tables.addresses.values().chain(tables.prefixes.values())
            .map(|entry| entry.ports_id).filter(|id| *id != 0).collect();
        let stored: BTreeSet<u32> = tables.ports.keys().map(|(id, _)| *id).collect();
        prop_assert_eq!(used, stored);
    }
}
