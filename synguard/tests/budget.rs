//! How many instructions the verifier walks for each program, against the recorded budget.
//!
//! The verifier gives up at a million, and long before that loading takes seconds; a harmless change
//! of the source can double the count, because it walks ways through the program, not its text. So
//! growth is to be seen in the commit that brings it about. Counts differ between kernels: the
//! budget holds on the one it was recorded on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{collections::BTreeMap, fmt::Write as _, fs};

use aya::programs::ProgramInfo;
use synguard::dataplane::{
    Dataplane, Options, load,
    load::{PROGRAM_ADMIT, PROGRAM_IN, PROGRAM_OUT, kernel_release},
};
use synguard_lab::skip_unless_root;
use toml::de::{DeTable, DeValue};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../synguard-ebpf/budget.toml");
/// Set it to anything, and the table is written instead of checked.
const UPDATE: &str = "SYNGUARD_UPDATE_BUDGET";
const HOW_TO_UPDATE: &str = "if that is meant, record it, as root: \
     SYNGUARD_UPDATE_BUDGET=1 cargo test --release -p synguard --test budget";
/// Growth that passes, in percent: another build of the same compiler version differs a little.
const TOLERANCE: u64 = 10;

/// What the table says: the kernel it was recorded on, and the count of each program.
fn read() -> (String, BTreeMap<String, u64>) {
    let text = fs::read_to_string(TABLE).unwrap();
    let table = DeTable::parse(&text).unwrap().into_inner();
    let kernel = table["kernel"].get_ref().as_str().unwrap();
    let counts = table["verified_instructions"].get_ref().as_table().unwrap();
    let number = |value: &DeValue<'_>| value.as_integer().unwrap().as_str().parse().unwrap();
    let counts = counts
        .iter()
        .map(|(name, count)| (name.get_ref().to_string(), number(count.get_ref())));
    (kernel.to_owned(), counts.collect())
}

/// `6.18` of `6.18.5-200.fc43`.
fn major_minor(release: &str) -> String {
    let mut parts = release.splitn(3, |c: char| !c.is_ascii_digit());
    let mut next = || parts.next().unwrap_or_default();
    format!("{}.{}", next(), next())
}

fn counts(dataplane: &Dataplane) -> BTreeMap<String, u64> {
    let count = |name: &str, info: ProgramInfo| {
        let count = info.verified_instruction_count();
        (name.to_owned(), count.expect("Linux 5.16 or newer").into())
    };
    let classifier = |name| count(name, dataplane.classifier(name).unwrap().info().unwrap());
    let mut counts = BTreeMap::from([
        count(PROGRAM_IN, dataplane.xdp().unwrap().info().unwrap()),
        classifier(PROGRAM_OUT),
    ]);
    if dataplane.local_error.is_none() {
        counts.extend([classifier(PROGRAM_ADMIT)]);
    }
    counts
}

fn write(kernel: &str, counts: &BTreeMap<String, u64>) {
    let mut text = String::from(
        "# Instructions that the verifier walks for each program, on this kernel. Checked, and written, by\n\
         # synguard/tests/budget.rs.\n",
    );
    writeln!(text, "kernel = \"{kernel}\"\n\n[verified_instructions]").unwrap();
    for (name, count) in counts {
        writeln!(text, "{name} = {count}").unwrap();
    }
    fs::write(TABLE, text).unwrap();
}

/// What is wrong with these counts, a line for each.
fn excess(budget: &BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, count) in counts {
        match budget.get(name) {
            None => wrong.push(format!("{name}: {count}, without a budget")),
            Some(budget) if *count * 100 > budget * (100 + TOLERANCE) => {
                wrong.push(format!("{name}: {count} where {budget} are budgeted"));
            }
            Some(_) => {}
        }
    }
    for name in budget.keys().filter(|name| !counts.contains_key(*name)) {
        wrong.push(format!("{name}: has a budget, but is not loaded"));
    }
    wrong
}

#[test]
fn verified_instructions_stay_within_budget() {
    const NAME: &str = "verified instructions stay within budget";
    if !skip_unless_root(NAME) {
        return;
    }
    let dataplane = load(&Options {
        half_open_entries: 64,
        ..Options::default()
    })
    .unwrap();
    let counts = counts(&dataplane);
    let kernel = major_minor(&kernel_release());
    if std::env::var_os(UPDATE).is_some() {
        write(&kernel, &counts);
        println!("recorded for Linux {kernel}: {counts:?}");
        return;
    }
    let (recorded, budget) = read();
    if recorded != kernel {
        println!(
            "SKIP {NAME}: recorded on Linux {recorded}, this is {kernel}, where they are {counts:?}"
        );
        return;
    }
    let wrong = excess(&budget, &counts);
    assert!(wrong.is_empty(), "{}\n{HOW_TO_UPDATE}", wrong.join("\n"));
    println!("{counts:?}");
}

#[test]
fn growth_beyond_the_tolerance_is_found() {
    let table = |entries: &[(&str, u64)]| -> BTreeMap<String, u64> {
        let owned = entries
            .iter()
            .map(|(name, count)| (name.to_string(), *count));
        owned.collect()
    };
    let budget = table(&[("a", 1000), ("b", 10)]);
    assert!(excess(&budget, &table(&[("a", 1100), ("b", 1)])).is_empty());
    assert_eq!(excess(&budget, &table(&[("a", 1101), ("b", 1)])).len(), 1);
    assert_eq!(excess(&budget, &table(&[("a", 1)])).len(), 1);
    let more = table(&[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(excess(&budget, &more).len(), 1);
}

#[test]
fn releases_are_cut_to_two_numbers() {
    assert_eq!(major_minor("6.18.5-200.fc43.x86_64"), "6.18");
    assert_eq!(major_minor("6.18-rc3"), "6.18");
    assert_eq!(major_minor("6.1"), "6.1");
}
