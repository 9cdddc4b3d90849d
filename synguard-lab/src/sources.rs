//! The budgets of sources, over the host's tables: how much one can have, whatever others do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use synguard_common::{
    abi::{BUDGET_SLOTS, TICKS_PER_SECOND},
    sources::{charge, refund},
};

use crate::host::{HostTables, address};

const LIMIT: u32 = 100;
const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn tables() -> HostTables {
    let tables = HostTables::default().seed(0x1234_5678_9abc_def1);
    tables.set_budgets(0, LIMIT);
    tables
}

/// How many of so many SYNs of a source are answered.
fn answered(tables: &HostTables, source: IpAddr, syns: u32) -> u32 {
    let source = address(source);
    (0..syns)
        .filter(|_| charge(&tables, &source, LIMIT))
        .count() as u32
}

#[test]
fn a_victim_gets_no_more_than_the_budget_each_second() {
    let tables = tables();
    for second in 0..5 {
        tables.set_tick(1000 + second * TICKS_PER_SECOND);
        assert_eq!(answered(&tables, VICTIM, 100_000), LIMIT);
        assert_eq!(answered(&tables, VICTIM, 1), 0);
    }
    assert_eq!(answered(&tables, [192, 0, 2, 2].into(), 10), 10);
    assert_eq!(answered(&tables, Ipv6Addr::LOCALHOST.into(), 10), 10);
}

#[test]
fn an_ipv6_host_is_its_64() {
    let tables = tables();
    let base = u128::from("2001:db8::".parse::<Ipv6Addr>().unwrap());
    let all: u32 = (0..1000)
        .map(|n| answered(&tables, Ipv6Addr::from(base + n).into(), 1))
        .sum();
    assert_eq!(all, LIMIT);
    assert_eq!(
        answered(&tables, Ipv6Addr::from(base + (1 << 64)).into(), 1),
        1
    );
}

/// A flood from everywhere neither uses up what one source may have, nor hides who has too much.
#[test]
fn a_flood_from_random_sources_is_nobodys_limit() {
    const FLOOD: u32 = 20 * BUDGET_SLOTS;
    let tables = tables();
    let (mut seed, mut flood, mut victim) = (1u64, 0, 0);
    for n in 0..FLOOD {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let source = Ipv4Addr::from((seed >> 32) as u32);
        flood += answered(&tables, source.into(), 1);
        // One in a hundred names the victim.
        if n.is_multiple_of(100) {
            victim += answered(&tables, VICTIM, 1);
        }
    }
    // Votes against it let it have as much more as the flood has sent to its slot.
    let share = FLOOD / BUDGET_SLOTS;
    assert!((LIMIT..=LIMIT + 3 * share).contains(&victim), "{victim}");
    assert_eq!(flood, FLOOD);
}

proptest! {
    #[test]
    fn what_completes_is_no_limit(bursts in prop::collection::vec(1..LIMIT, 1..50)) {
        let tables = tables();
        for burst in bursts {
            prop_assert_eq!(answered(&tables, VICTIM, burst), burst);
            for _ in 0..burst {
                refund(&(&tables), &address(VICTIM));
            }
        }
    }
}
