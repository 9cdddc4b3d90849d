//! The status page of a synthetic snapshot.

use super::*;

/// When the fixture was taken.
const NOW: u64 = 1_800_000_000;

fn snapshot() -> Snapshot {
    serde_json::from_str(include_str!("../../../tests/fixtures/snapshot.json")).unwrap()
}

#[test]
fn the_page_fits_80_columns() {
    let mut snapshot = snapshot();
    let page = render(&snapshot, NOW, false).unwrap();
    println!("{page}");
    // The worst there can be: long names, large numbers, many addresses.
    snapshot.services[0].name = "x".repeat(63);
    snapshot.services[0].syns = u64::MAX;
    snapshot.services[0].half_open = 4_000_000;
    snapshot.services[0].covers = vec!["192.0.2.1:443".into(); 40];
    snapshot.interfaces[0].name = "a-long-if-name0".into();
    snapshot.interfaces[0].addresses =
        vec!["2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap(); 9];
    let worst = render(&snapshot, NOW, false).unwrap();
    println!("{worst}");
    for line in page.lines().chain(worst.lines()) {
        assert!(line.chars().count() <= fold::WIDTH, "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

#[test]
fn the_page_says_what_stands() {
    let page = render(&snapshot(), NOW, false).unwrap();
    for expected in [
        "synguard 0.1.0, up 3days 4h, Linux 6.18.0",
        "configuration: /etc/synguard/synguard.toml, applied 5m ago",
        "keys: epoch 112500000, 2 ahead in place, last written 3s ago",
        "web: covers 192.0.2.1:443 [2001:db8::1]:443; admission local (the kernel can);",
        "  high 2000 (configured)",
        "web: leaves alone 192.0.2.1:22: no listener",
        "forwarded: offers timestamps, window scale 7, MSS 1400 (learned from its",
        "  servers); withheld after a server fell short: sack, ecn",
        "sources: 3 prefixes allowed, 100000 blocked; at most 1000 unanswered SYN-ACKs to",
        "  one in a second",
        "flows: 2 pending, 50 spliced, 5 known, 9 of them over; 1000 created, 900",
        "  expired, 43 evicted, 6 SYNs sent again, 3 refused for a silent server, 1",
        "  retries lost",
    ] {
        assert!(
            page.lines().any(|line| line.trim_end() == expected),
            "{expected} in {page}"
        );
    }
    let row = page.lines().find(|line| line.starts_with("web ")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(
        cells,
        [
            "web", "guarded", "42s", "adaptive", "12", "500", "2000", "1.2M", "1.2M", "1500",
            "150k"
        ]
    );
    assert!(page.contains("HALF_OPEN"), "{page}");
}

#[test]
fn colours_are_only_for_terminals() {
    assert!(render(&snapshot(), NOW, true).unwrap().contains('\u{1b}'));
}
